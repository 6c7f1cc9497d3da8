#!/usr/bin/env bash
# Train on the GPUs of one machine, or of several; without a GPU, in as many processes on the CPU.
#   tools/dist_train.sh CONFIG NUM_GPUS [arguments of train.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT for several machines; PYTHON for the interpreter.
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 CONFIG NUM_GPUS [arguments of train.py]" >&2
    exit 2
fi
config=$1
processes=$2
shift 2

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"

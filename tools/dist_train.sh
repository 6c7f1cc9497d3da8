#!/usr/bin/env bash
# Train on the GPUs of one machine, or of several; without a GPU, in as many processes on the CPU.
#   tools/dist_train.sh CONFIG NUM_GPUS [arguments of train.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT for several machines; PYTHON for the interpreter;
# MAX_RESTARTS (0), which with --resume starts all processes again from the newest valid checkpoint when
# one dies, or from the beginning where there is none yet.
# SIGTERM or Ctrl-C makes all processes finish the step and write a checkpoint, for which torchrun gives
# them 30 seconds; its own exit code is then 1.
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 CONFIG NUM_GPUS [arguments of train.py]" >&2
    exit 2
fi
config=$1
processes=$2
shift 2

# torchrun hands on SIGUSR1 only if it is told to, and dies of it where its version cannot be told.
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    --max-restarts="${MAX_RESTARTS:-0}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"

#!/usr/bin/env bash
# Train on the GPUs of one machine, or of several; without a GPU, in as many processes on the CPU.
#   tools/dist_train.sh CONFIG NUM_GPUS [arguments of train.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT for several machines; PYTHON for the interpreter;
# MAX_RESTARTS (0), on one machine, which with --resume starts all processes again from the newest valid
# checkpoint when one dies, or from the beginning where there is none yet.
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

meeting_point=(
    --node_rank="${NODE_RANK:-0}"
    --master_addr="${MASTER_ADDR:-127.0.0.1}"
    --master_port="${PORT:-29500}"
)
if ((${MAX_RESTARTS:-0} > 0)); then
    if ((${NNODES:-1} > 1)); then
        echo "$0: MAX_RESTARTS=$MAX_RESTARTS works on one machine and NNODES is $NNODES: leave it out," \
            "and let the scheduler start all machines again, with --resume" >&2
        exit 2
    fi
    # Processes that start again must not read the addresses of those that died, which a store that
    # outlives them still holds (pytorch/pytorch#135712): one store for each start.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    meeting_point=(
        --rdzv_backend=c10d
        --rdzv_endpoint="127.0.0.1:${PORT:-29500}"
        --local_addr=127.0.0.1
    )
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    "${meeting_point[@]}" \
    --nproc_per_node="$processes" \
    --max-restarts="${MAX_RESTARTS:-0}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"

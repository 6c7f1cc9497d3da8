#!/usr/bin/env bash
# Train as a Slurm job, one task per GPU, that goes on by itself when its time is up.
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [arguments of train.py]
# Outside of a job this submits one with sbatch and returns; inside of one, as under salloc, it trains.
# Before the time limit Slurm sends SIGUSR1: training finishes its step, writes a checkpoint and exits
# with 138, and the job is queued again. From its second start on, a job adds --resume.
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), STOP_SECONDS (120) between SIGUSR1 and
# the time limit, SBATCH_ARGS (more options of sbatch, as --time=24:00:00), SRUN_ARGS (more options of
# srun), PYTHON for the interpreter.
set -euo pipefail

if (($# < 3)); then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [WORK_DIR] [arguments of train.py]" >&2
    exit 2
fi
tools=$(cd "$(dirname "$0")" && pwd)
partition=$1
job_name=$2
config=$3

gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-8}
read -r -a sbatch_args <<<"${SBATCH_ARGS:-}"
read -r -a srun_args <<<"${SRUN_ARGS:-}"
resources=(
    --partition="$partition"
    --job-name="$job_name"
    --gres="gpu:$((gpus < gpus_per_node ? gpus : gpus_per_node))"
    --ntasks="$gpus"
    --ntasks-per-node="$((gpus < gpus_per_node ? gpus : gpus_per_node))"
    --cpus-per-task="${CPUS_PER_TASK:-5}"
)

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    # Slurm runs a copy of what it is given, so that it is given the way to this file.
    sbatch "${resources[@]}" \
        --signal="USR1@${STOP_SECONDS:-120}" --requeue --open-mode=append \
        "${sbatch_args[@]}" <<<"#!/usr/bin/env bash
exec bash $(printf '%q ' "$tools/slurm_train.sh" "$@")"
    exit
fi

shift 3
if (($# > 0)) && [[ $1 != -* ]]; then
    set -- --work-dir "$@"
fi
arguments=()
for argument; do
    if ((${SLURM_RESTART_COUNT:-0} == 0)) || [[ $argument != --overwrite ]]; then
        arguments+=("$argument")
    fi
done
if ((${SLURM_RESTART_COUNT:-0} > 0)); then
    arguments+=(--resume)
fi

code=0
srun "${resources[@]}" --kill-on-bad-exit=1 "${srun_args[@]}" \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" --launcher slurm "${arguments[@]}" || code=$?
if ((code == 138)); then
    echo "$0: the time is up; job $SLURM_JOB_ID is queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

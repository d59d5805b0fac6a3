#!/bin/bash
# pretrain-geometry: launch.pretrain. Rendered by launch.cluster; submit it from the checkout with
# sbatch. --signal: 300 s before the time limit every process is told to save and
# stop; the job then goes back into the queue.
#SBATCH --job-name=pretrain-geometry
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --partition=train
#SBATCH --account=shapes
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
#SBATCH --qos=high
set -uo pipefail

source /data/venv/bin/activate

export PYTHONUNBUFFERED=1
export TF_CPP_MIN_LOG_LEVEL=1
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
export NCCL_DEBUG=WARN
export XLA_FLAGS='--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_while_loop_double_buffering=true --xla_gpu_enable_pipelined_all_gather=true --xla_gpu_enable_pipelined_reduce_scatter=true --xla_gpu_all_gather_combine_threshold_bytes=134217728 --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728 --xla_gpu_all_reduce_combine_threshold_bytes=134217728 --xla_gpu_enable_triton_gemm=false'
export NCCL_IB_TIMEOUT=22
launch=/data/runs/pretrain/launch
retries=3
processes=32

# verdict CODE...: what the exit codes of all processes say together
verdict() {
  local code failed= stopped=
  for code in "$@"; do
    case $code in
      0) ;;
      2) echo refused; return ;;
      75) stopped=1 ;;
      *) failed=1 ;;
    esac
  done
  if [[ $failed ]]; then echo failed; elif [[ $stopped ]]; then echo stopped; else echo done; fi
}

# again CODE...: returns 0 if the job should be started again, else exits;
# failures in a row are counted in $launch/failures
again() {
  local outcome; outcome=$(verdict "$@")
  echo "launcher: exit codes $*: $outcome" >&2
  case $outcome in
    done) rm -f "$launch/failures"; exit 0 ;;
    refused) echo "launcher: bad configuration or input, not started again" >&2; exit 2 ;;
    stopped) rm -f "$launch/failures" ;;
    failed)
      echo "$(date -u +%FT%TZ) $*" >> "$launch/failures"
      if (( $(wc -l < "$launch/failures") > retries )); then
        echo "launcher: failed more than $retries times in a row" >&2
        exit 1
      fi ;;
  esac
}

# every process leaves its exit code here
codes="$launch/${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}"
mkdir -p "$codes"
rm -f "$codes"/*
told=
# by scancel or a preemption, not by --signal: SLURM itself decides what becomes of the job
trap told=1 TERM
srun --wait=300 --cpu-bind=none bash -c '
  "$@" & process=$!; told=; trap "told=1; kill -TERM $process" TERM
  wait $process; code=$?
  # a signal ends the wait, not the process
  while (( code > 128 )) && [[ $told ]]; do told=; wait $process; code=$?; done
  echo $code > "$0/$SLURM_PROCID"; exit $code' "$codes" \
  python -m launch.pretrain --config=configs/pretrain_geometry.py --workdir=/data/runs/pretrain --config.optim.lr=2e-4 --config.mesh.fsdp=8 '--config.data.mixture.iso_3do.path=/data/iso 3do'
ended=$?
answers=("$codes"/*)
all=($(cat "${answers[@]}" 2>/dev/null))
if (( ${#all[@]} < processes )); then  # one was killed
  all+=($(( ended == 0 || ended == 2 || ended == 75 ? 1 : ended )))
fi
again "${all[@]}"
if [[ $told ]]; then exit 75; fi
scontrol requeue "$SLURM_JOB_ID"
exit 75

#!/bin/bash
# sft-geometry: launch.sft. Rendered by launch.cluster. Stays until the job is done (run
# it in tmux or as a service); Ctrl-C or SIGTERM tells every machine to save and stop. Logs and the
# count of failures are in ./sft-geometry_launch.
set -uo pipefail

launch=sft-geometry_launch
retries=10
hosts=4
pause=${RETRY_SECONDS:-30}  # before another start

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

on() {
  gcloud compute tpus tpu-vm ssh sft-v6e-16 --project=shapes --zone=us-east5-b --worker="$1" --command "$2"
}

stopping= told=
stop() {
  stopping=1 told=1
  for (( host = 0; host < hosts; host++ )); do
    on "$host" 'kill -TERM $(cat /tmp/sft-geometry.pid)' &
  done
}
trap stop TERM INT

mkdir -p "$launch"
while true; do
  processes=() codes=()
  for (( host = 0; host < hosts; host++ )); do
    on "$host" 'cd /opt/sam3d && echo $$ > /tmp/sft-geometry.pid && exec env PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=1 LIBTPU_INIT_ARGS='"'"'--xla_enable_async_all_gather=true --xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true --xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true --xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true --xla_tpu_scoped_vmem_limit_kib=98304'"'"' python -m launch.sft --config=configs/sft_geometry.py --workdir=/data/runs/sft --config.init_from=/data/runs/pretrain --multihost' >> "$launch/host_$host.log" 2>&1 &
    processes+=($!)
  done
  for process in "${processes[@]}"; do
    wait "$process"; code=$?
    # a signal ends the wait, not the process
    while (( code > 128 )) && [[ $told ]]; do told=; wait "$process"; code=$?; done
    codes+=("$code")
  done
  again "${codes[@]}"
  if [[ $stopping ]]; then exit 75; fi
  sleep "$pause"
done

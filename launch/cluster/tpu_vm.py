"""A script that runs a job on the machines of a TPU VM by ssh, from any machine with gcloud, and
starts it again when it should.
"""

import shlex

from launch.cluster import retry
from launch.cluster.spec import Spec


def render(spec: Spec) -> str:
  """`tpu_vm.sh`."""
  cfg = spec.tpu_vm
  place = shlex.join([f"--project={cfg.project}", f"--zone={cfg.zone}"])

  # What every machine runs, in place of its shell, so that the shell's id is that of the process.
  pid = shlex.quote(f"/tmp/{spec.name}.pid")
  folder = shlex.quote(cfg.folder)
  settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in spec.environment.items())
  command = spec.shell_command
  if spec.hosts > 1:
    command += " --multihost"
  remote = f"cd {folder} && echo $$ > {pid} && exec env {settings} {command}"
  end = shlex.quote(f"kill -TERM $(cat {pid})")
  return f"""#!/bin/bash
# {spec.name}: launch.{spec.command}. Rendered by launch.cluster. Stays until the job is done (run
# it in tmux or as a service); Ctrl-C or SIGTERM tells every machine to save and stop. Logs and the
# count of failures are in ./{spec.name}_launch.
set -uo pipefail

launch={shlex.quote(spec.name + "_launch")}
retries={spec.retries}
hosts={spec.hosts}
pause=${{RETRY_SECONDS:-30}}  # before another start
{retry.DECIDE}
on() {{
  gcloud compute tpus tpu-vm ssh {shlex.quote(cfg.tpu)} {place} --worker="$1" --command "$2"
}}

stopping= told=
stop() {{
  stopping=1 told=1
  for (( host = 0; host < hosts; host++ )); do
    on "$host" {end} &
  done
}}
trap stop TERM INT

mkdir -p "$launch"
while true; do
  processes=() codes=()
  for (( host = 0; host < hosts; host++ )); do
    on "$host" {shlex.quote(remote)} >> "$launch/host_$host.log" 2>&1 &
    processes+=($!)
  done
  for process in "${{processes[@]}}"; do
    wait "$process"; code=$?
    # a signal ends the wait, not the process
    while (( code > 128 )) && [[ $told ]]; do told=; wait "$process"; code=$?; done
    codes+=("$code")
  done
  again "${{codes[@]}}"
  if [[ $stopping ]]; then exit 75; fi
  sleep "$pause"
done
"""

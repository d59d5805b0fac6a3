"""A batch script for SLURM, which puts itself back into the queue when the job should go on."""

import shlex

from launch.cluster import retry
from launch.cluster.spec import Spec

# One process: tells it to stop if this shell alone was told, and leaves its exit code in a file,
# since srun reports only the highest.
PROCESS = """'
  "$@" & process=$!; told=; trap "told=1; kill -TERM $process" TERM
  wait $process; code=$?
  # a signal ends the wait, not the process
  while (( code > 128 )) && [[ $told ]]; do told=; wait $process; code=$?; done
  echo $code > "$0/$SLURM_PROCID"; exit $code'"""


def options(spec: Spec) -> list[str]:
  """What is asked for, as options of sbatch and srun alike. One process an accelerator, which is
  what JAX expects under SLURM.
  """
  asked = [
    f"--nodes={spec.hosts}",
    f"--ntasks-per-node={processes_of(spec)}",
  ]
  if spec.kind == "gpu":
    asked.append(f"--gpus-per-node={spec.chips}")
  return asked


def processes_of(spec: Spec) -> int:
  """Processes of a machine."""
  return spec.chips if spec.kind == "gpu" else 1


def given(**settings: str) -> list[str]:
  """Options for the settings that are not empty."""
  return [f"--{name}={value}" for name, value in settings.items() if value]


def render(spec: Spec) -> str:
  """`slurm.sh`."""
  cfg = spec.slurm
  asked = [
    f"--job-name={spec.name}",
    *options(spec),
    f"--time={cfg.time}",
    "--exclusive",
    "--mem=0",
  ]
  asked += given(partition=cfg.partition, account=cfg.account)
  # Told in time to save; put back into the queue, its log continued. Own options come last and win.
  asked += [
    f"--signal=TERM@{spec.grace_seconds}",
    "--requeue",
    "--open-mode=append",
    "--output=%x_%j.log",
    *cfg.options,
  ]
  header = "\n".join(f"#SBATCH {option}" for option in asked)
  processes = spec.hosts * processes_of(spec)
  setup = f"\n{cfg.setup.rstrip()}\n" if cfg.setup else ""
  return f"""#!/bin/bash
# {spec.name}: launch.{spec.command}. Rendered by launch.cluster; submit it from the checkout with
# sbatch. --signal: {spec.grace_seconds} s before the time limit every process is told to save and
# stop; the job then goes back into the queue.
{header}
set -uo pipefail
{setup}
{retry.exports(spec.environment)}
launch={shlex.quote(spec.workdir + "/launch")}
retries={spec.retries}
processes={processes}
{retry.DECIDE}
# every process leaves its exit code here
codes="$launch/${{SLURM_JOB_ID}}_${{SLURM_RESTART_COUNT:-0}}"
mkdir -p "$codes"
rm -f "$codes"/*
told=
# by scancel or a preemption, not by --signal: SLURM itself decides what becomes of the job
trap told=1 TERM
srun --wait=300 --cpu-bind=none bash -c {PROCESS} "$codes" \\
  {spec.shell_command}
ended=$?
answers=("$codes"/*)
all=($(cat "${{answers[@]}}" 2>/dev/null))
if (( ${{#all[@]}} < processes )); then  # one was killed
  all+=($(( ended == 0 || ended == 2 || ended == 75 ? 1 : ended )))
fi
again "${{all[@]}}"
if [[ $told ]]; then exit 75; fi
scontrol requeue "$SLURM_JOB_ID"
exit 75
"""


def launcher(spec: Spec) -> list[str]:
  """The command that runs one trial of a sweep as a job of its own and waits for it; the trial's
  command line follows.
  """
  cfg = spec.slurm
  asked = given(partition=cfg.partition, account=cfg.account, time=cfg.time)
  variables = [f"{name}={value}" for name, value in spec.environment.items()]
  return [
    "env",
    *variables,
    "srun",
    "--cpu-bind=none",
    f"--job-name={spec.name}",
    *options(spec),
    "--exclusive",
    *asked,
    *cfg.options,
  ]

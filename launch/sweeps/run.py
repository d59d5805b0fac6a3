"""One sweep in one folder: check, run what is left, rank."""

import dataclasses
import json
import pathlib
import shlex

from launch.cluster import slurm
from launch.cluster import spec as cluster_spec
from launch.console import cli
from launch.console.folders import check_folder
from launch.sweeps import report, space
from launch.sweeps.trials import Runner, command_of, wrong_metric
from launch.trainer import checks
from sam3d_jax.errors import ConfigError, InputError, JobFailed
from sam3d_jax.files import atomic

RECORD = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Spec:
  """A sweep and how to run it.

  base: FILE[:VARIANT] in place of the one that the sweep's file names. overrides: KEY=VALUE of
  every trial. launcher: command that submits a trial and waits for it. cluster: file of
  launch.cluster, in place of a launcher. report: only renew table and report.
  """

  sweep: str
  workdir: pathlib.Path
  base: str | None = None
  overrides: tuple[str, ...] = ()
  parallel: int = 1
  retries: int = 1
  launcher: str = ""
  cluster: str = ""
  dry_run: bool = False
  report: bool = False

  def __post_init__(self):
    if self.parallel < 1 or self.retries < 0:
      raise InputError(
        f"--parallel {self.parallel} must be at least 1 and --retries {self.retries} at least 0"
      )


def run(spec: Spec) -> None:
  """Checks every trial's configuration, then runs what is left of the sweep.

  Raises JobFailed naming the logs if trials failed.
  """
  # What there is to run. Nothing is written before all of it is known to be right.
  check_folder(spec.workdir)
  sweep = space.load(spec.sweep, base=spec.base, extra=list(spec.overrides))
  check_values(sweep)
  launcher = launcher_of(spec)
  print(
    f"{len(sweep.trials)} trials of launch.{sweep.command} {sweep.config}, ranked by "
    f"{sweep.metric} ({sweep.goal}, {sweep.pick})"
  )
  if spec.dry_run:
    for trial in sweep.trials:
      words = [*launcher, *command_of(sweep, trial, spec.workdir)]
      print(f"{trial.id}  {shlex.join(words)}")
    return

  # Trials that are not done yet; table and report are renewed whenever one ends.
  claim(spec.workdir, sweep)
  if not spec.report:
    runner = Runner(
      sweep,
      spec.workdir,
      parallel=spec.parallel,
      retries=spec.retries,
      launcher=launcher,
    )
    runner.run(lambda: report.write(sweep, spec.workdir))

  # The ranking, and which trials came to nothing.
  rows = report.write(sweep, spec.workdir)
  print(report.text(sweep, rows))
  print(f"wrote {spec.workdir / 'table.csv'} and {spec.workdir / 'report.html'}")
  _, wrong = wrong_metric(sweep, spec.workdir)
  if wrong:
    raise ConfigError(wrong)
  failed = [row["id"] for row in rows if row["status"] == "failed"]
  if failed and not spec.report:
    logs = ", ".join(str(spec.workdir / name / "log.txt") for name in failed)
    raise JobFailed(f"{len(failed)} of {len(rows)} trials failed: {logs}")


def check_values(sweep: space.Sweep) -> None:
  """Raises ConfigError, naming the trial, for values that cannot work. Data need not be here."""
  # The wall: it needs JAX, which takes seconds that no wrong key should cost.
  from launch.trainer import setup

  for trial in sweep.trials:
    config = cli.load_config(sweep.config, space.arguments(trial))
    try:
      checks.check(config, checks.stages_of(sweep.command), before_data=True)
      setup.read(config)
    except ConfigError as error:
      raise ConfigError(f"trial {trial.id} {trial.swept}: {error}") from error


def launcher_of(spec: Spec) -> list[str]:
  """What stands before the command line of every trial."""
  if not spec.cluster:
    return shlex.split(spec.launcher)
  if spec.launcher:
    raise InputError(
      f"--cluster {spec.cluster} and --launcher {spec.launcher!r} both say how trials are "
      "submitted: give one"
    )
  job = cluster_spec.load(spec.cluster, flag="--cluster")
  if job.slurm is None:
    raise InputError(
      f"--cluster {spec.cluster} has no section slurm, the only kind of cluster that sweeps run on"
    )
  # The wall: it needs JAX, which takes seconds that a sweep without a cluster does not need.
  from launch.cluster import fit

  fit.check(job, spec.cluster)
  return slurm.launcher(job)


def claim(workdir: pathlib.Path, sweep: space.Sweep) -> None:
  """Writes down what the folder is a sweep of.

  Raises InputError if it is one of other trials; more of the same may be added.
  """
  now = {
    "command": sweep.command,
    "config": sweep.config,
    "trials": {trial.id: trial.swept for trial in sweep.trials},
  }
  path = workdir / RECORD
  if path.exists():
    before = json.loads(path.read_text())
    # trials may be added, none may go
    gone = [name for name in before["trials"] if name not in now["trials"]]
    same_command = all(before[key] == now[key] for key in ("command", "config"))
    if gone or not same_command:
      differs = ", ".join(gone[:3]) or "another command"
      raise InputError(
        f"{workdir} holds a sweep of launch.{before['command']} {before['config']} with other "
        f"trials ({differs}): give another --workdir, or the settings it was started with"
      )
  atomic.write_json(path, now)

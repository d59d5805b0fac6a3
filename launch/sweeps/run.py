"""One sweep in one folder: check, run what is left, rank."""

from collections.abc import Mapping
import dataclasses
import pathlib
import shlex
from typing import Any

from launch.cluster import slurm
from launch.cluster import spec as cluster_spec
from launch.console import cli
from launch.console.folders import check_folder
from launch.sweeps import report, space
from launch.sweeps.trials import Runner, command_of, wrong_metric
from launch.trainer import checks
from sam3d_jax.errors import ConfigError, InputError, JobFailed
from sam3d_jax.files import atomic, locks, texts

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
  settings = check_values(sweep)
  job = cluster_of(spec)
  if job is None:
    launcher = shlex.split(spec.launcher)
  else:
    check_machines(job, spec.cluster, settings)
    launcher = slurm.launcher(job)
  print(
    f"{len(sweep.trials)} trials of launch.{sweep.command} {sweep.config}, ranked by "
    f"{sweep.metric} ({sweep.goal}, {sweep.pick})"
  )
  if spec.dry_run:
    for trial in sweep.trials:
      words = [*launcher, *command_of(sweep, trial, spec.workdir)]
      print(f"{trial.id}  {shlex.join(words)}")
    return

  # A report may be renewed beside a sweep that runs.
  if spec.report:
    run_rest(spec, sweep, launcher)
    return
  # Trials that are not done yet; table and report are renewed whenever one ends.
  try:
    with locks.hold(spec.workdir, "launch.sweep"):
      run_rest(spec, sweep, launcher)
  # a sweep is started by hand: nothing starts it again
  except locks.InUse as error:
    raise InputError(str(error)) from error


def run_rest(spec: Spec, sweep: space.Sweep, launcher: list[str]) -> None:
  """Runs the trials that are not done yet, and ranks all of them."""
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


def check_values(sweep: space.Sweep) -> dict[str, Any]:
  """The settings of every trial, by what it is called in messages. Data need not be here.

  Raises ConfigError, naming the trial, for values that cannot work.
  """
  # The wall: it needs JAX, which takes seconds that no wrong key should cost.
  from launch.trainer import setup

  settings = {}
  for trial in sweep.trials:
    name = f"trial {trial.id} {trial.swept}"
    config = cli.load_config(sweep.config, space.arguments(trial))
    try:
      checks.check(config, checks.stages_of(sweep.command), before_data=True)
      settings[name] = setup.read(config)
    except ConfigError as error:
      raise ConfigError(f"{name}: {error}") from error
  return settings


def cluster_of(spec: Spec) -> cluster_spec.Spec | None:
  """The machines of a trial, None without a cluster. Raises InputError for what sweeps cannot run
  on.
  """
  if not spec.cluster:
    return None
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
  return job


def check_machines(job: cluster_spec.Spec, path: str, settings: Mapping[str, Any]) -> None:
  """The machines are what they are called, and mesh and batch of every trial divide over them.

  path: of the file that describes the job, whose own configuration no trial runs. settings: of
  every trial, by its name. Raises ConfigError naming file, key, value and remedy.
  """
  # The wall: it needs JAX, which takes seconds that a sweep without a cluster does not need.
  from launch.cluster import fit

  fit.check_machines(job, path)
  for name, one in settings.items():
    try:
      fit.check_mesh(job, path, one)
    except ConfigError as error:
      raise ConfigError(f"{name}: {error}") from error


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
  before = texts.read_own(path, *now)
  if before is not None:
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

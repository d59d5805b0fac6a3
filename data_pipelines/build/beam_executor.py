"""The shards of a build made by Apache Beam: its own runner, Dataflow, Flink or Spark.

Beam distributes the jobs; each worker runs `shard_jobs.run_job`, the same function that local
processes run, so the bytes are the same. Shards and reports are written to the build's folder,
which workers and this process must see under one path (NFS, Lustre, a mounted bucket); the same
holds for the source. Workers need this package and requirements-beam.txt: an image of both, or the
runner's own means.

A retried bundle finds its shard finished and leaves it alone; a killed build continues with the
shards that are left, with this executor or the local one.
"""

from collections.abc import Iterator, Sequence
import functools
import pathlib
import shlex
import threading
from typing import Any

from data_pipelines.build import limited, shard_jobs
from sam3d_jax.errors import ConfigError, JobFailed

POLL_SECONDS = 1.0  # between looks at the folder for finished shards


def make_executor(options: Sequence[str]) -> shard_jobs.Executor:
  """An executor that runs with Beam's command-line `options`, given apart or as one text.

  Raises ConfigError if Beam is not installed or knows an option not.
  """
  try:
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise ConfigError(
      "--executor beam needs apache-beam, which is not in this environment (it wants older "
      "packages than training): make one with `pip install -r requirements-beam.txt` and run this "
      "command in it, or use --executor local"
    ) from error
  # what was given, word by word
  words = []
  for option in options:
    words += shlex.split(option)

  # Beam itself passes over options that it does not know
  parsed = PipelineOptions(words)
  known = parsed.get_all_options()
  for word in words:
    name, _, _ = word.removeprefix("--").partition("=")
    if word.startswith("--") and name not in known:
      raise ConfigError(f"--beam_options {word}: Beam knows no such option")
  return functools.partial(_execute, parsed)


def make_shard(
  job: shard_jobs.ShardJob,
  *,
  make,
  out: pathlib.Path,
  name: str,
  kind: str,
  limits: limited.Limits = limited.NONE,
) -> str:
  """Makes a shard unless it stands; runs on Beam's workers."""
  if shard_jobs.standing_report(name, out, job) is None:
    shard_jobs.run_job(job, make=make, out=out, name=name, kind=kind, limits=limits)
  return f"{job.split} {job.index}"


class _Run(threading.Thread):
  """A pipeline that runs beside this process's look at its results; direct runners block while they
  run.
  """

  def __init__(self, pipeline):
    super().__init__(daemon=True)  # a direct runner cannot be interrupted: it ends with the process
    self.pipeline = pipeline
    self.result = None
    self.error = None

  def run(self):
    try:
      self.result = self.pipeline.run()
      self.result.wait_until_finish()
    # Every runner wraps what went wrong in its own way. The thread that looks on raises it again.
    except Exception as error:
      self.error = error


def _execute(
  options, plan: shard_jobs.Plan, out: pathlib.Path, jobs: list[shard_jobs.ShardJob]
) -> Iterator[tuple[shard_jobs.ShardJob, dict[str, Any]]]:
  import apache_beam as beam

  if not jobs:
    return
  out = out.resolve()
  make = functools.partial(
    make_shard,
    make=plan.make,
    out=out,
    name=plan.name,
    kind=plan.kind,
    limits=plan.limits,
  )
  pipeline = beam.Pipeline(options=options)
  # Without the reshuffle a runner may fuse all jobs into one bundle, that is, onto one worker.
  _ = (
    pipeline
    | "Shards" >> beam.Create(jobs)
    | "Spread" >> beam.Reshuffle()
    | "Make" >> beam.Map(make)
  )

  # the folder says which shards have been finished
  left = {shard_jobs.shard_path(plan.name, out, job).name: job for job in jobs}
  run = _Run(pipeline)
  run.start()
  try:
    running = True
    while running:
      # looked at before the folder: what ends in between is seen in one more round
      running = run.is_alive()
      present = {path.name for path in out.iterdir()}
      for name in sorted(present & left.keys()):
        job = left.pop(name)
        yield job, shard_jobs.finished_report(plan, out, job)
      run.join(POLL_SECONDS if running else 0)
  finally:
    if run.is_alive() and run.result is not None:
      run.result.cancel()

  # how it ended
  count = f"{len(left)} of {len(jobs)} shards left"
  if run.error is not None:
    raise JobFailed(
      f"Beam failed with {count}: {run.error}. Finished shards are kept: run the same command again"
    ) from run.error
  if left:
    raise JobFailed(f"Beam ended as {run.result.state} with {count}; run the same command again")

"""Interrupts real training jobs at random points and checks that each ends exactly where an
unbroken one does.

    python -m tests.chaos --runs 50 [--seed 0] [--out chaos.json] [--keep DIR]

A run starts a small structure-VAE training on shards, interrupts it (kill -9 of the job or of a
data worker, SIGTERM, SIGINT) in a given phase at a random moment, starts it again as a scheduler
would, and compares with the unbroken run: every array of the final checkpoint (parameters, average,
optimiser, counters) and every logged metric, the fingerprint of the samples included, bit for bit.
It also checks exit codes, that the ledger sums to the wall time, and that no process is left over.
Moments are found from the files that a run writes anyway; nothing in the code under test knows of
this.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

from launch.console.progress import Progress
from sam3d_jax.training import ledger
from tests.support import jobs
from tests.support.tiny_dataset import write_dataset

STEPS, SAVE_EVERY, EVAL_EVERY = 8, 2, 4
PHASES = ("import", "compile", "step", "eval", "save", "commit", "worker")
# steps with such a phase; any step has the others
STEPS_OF = {"eval": [EVAL_EVERY], "save": [2, 4, 6], "commit": [2, 4, 6]}
LONGEST_DELAY = {"import": 2.0, "compile": 3.0, "eval": 0.2, "save": 0.05}  # seconds
EXIT_RETRY = 75


@dataclasses.dataclass(frozen=True)
class Strike:
  """One interruption: what is sent, in which phase, at which step if that matters, how long after
  the phase was seen to begin.
  """

  how: str  # kill, term or int
  phase: str
  step: int
  delay: float  # seconds


def draw(rng: random.Random, phase: str) -> Strike:
  """A random interruption in a phase. A data worker is only ever killed."""
  how = "kill" if phase == "worker" else rng.choice(("kill", "kill", "term", "int"))
  step = rng.choice(STEPS_OF.get(phase, range(1, STEPS - 1)))
  longest = LONGEST_DELAY.get(phase, 0.02)
  return Strike(how, phase, step, rng.uniform(0.0, longest))


def make_dataset(folder: pathlib.Path) -> pathlib.Path:
  """Shards to train on and to evaluate on."""
  write_dataset(folder, 24, shards=2)
  return write_dataset(folder, 8, split="test", shards=1, first=100)


def overrides(
  data: pathlib.Path,
  cache: pathlib.Path,
  *,
  workers: int = 0,
  channels: tuple[int, ...] = (4, 8, 16, 16),
) -> list[str]:
  """A structure VAE on the shards in `data` that saves and evaluates often."""
  values = {
    "data.kind": "shards",
    "data.mixture.iso_3do.path": data,
    "compile_cache": cache,
    "data.threads": 2,
    "data.cache_mb": 0,
    "data.workers": workers,
    "steps": STEPS,
    "batch_size": 4,
    "log.every": 1,
    "checkpoint.every": SAVE_EVERY,
    "eval.every": EVAL_EVERY,
    "eval.batches": 8,
    "model.channels": channels,
    "optim.warmup_steps": 1,
  }
  return [f"--config.{key}={value}" for key, value in values.items()]


def reached(job: jobs.Job, strike: Strike, starts: int) -> bool:
  """Whether the job, started for the `starts`-th time, is where the strike is due (or past it)."""
  workdir = job.workdir
  if strike.phase == "import":
    return True
  if len(jobs.ledger_rows(workdir)) < starts:
    return False
  if strike.phase == "compile":
    return True
  # A checkpoint has another name until it is whole; its meta is written last.
  if strike.phase in ("save", "commit"):
    partial = list((workdir / "checkpoints").glob(f"{strike.step}.*-tmp-*"))
    if strike.phase == "save":
      return bool(partial)
    committed = [folder for folder in partial if (folder / "meta" / "metadata").exists()]
    return bool(committed)
  if strike.phase == "worker" and not job.workers():
    return False
  # Metrics are read a step late: when row n - 1 is there, step n was dispatched and what is due
  # after it comes next.
  due = strike.step - 1 if strike.phase == "eval" else strike.step
  return jobs.trained_to(workdir) >= due


def interrupt(job: jobs.Job, strike: Strike, starts: int) -> tuple[bool, int, list[int]]:
  """Waits for the moment and strikes. Returns (whether the job still ran, its exit code, reading
  processes it had).
  """

  def due() -> bool:
    almost_done = jobs.trained_to(job.workdir) >= STEPS - 1
    return almost_done or reached(job, strike, starts)

  job.until(due)
  time.sleep(strike.delay)
  workers = job.workers()
  alive = job.processes[0].poll() is None
  if alive and strike.phase == "worker":
    for pid in workers:
      os.kill(pid, signal.SIGKILL)
  elif alive:
    job.signal(jobs.SIGNALS[strike.how])
  return alive, job.wait()[0], workers


def expected_exits(strike: Strike) -> tuple[int, ...]:
  """Exit codes that are right after a strike; 0 where the job had finished its last step when the
  signal came.
  """
  if strike.phase == "worker":
    return (1, 0)
  if strike.how == "kill":
    return (-signal.SIGKILL,)
  if strike.phase != "import":
    return (EXIT_RETRY, 0)
  # before Python has armed the stop flag
  by_signal = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT, 1)
  return (EXIT_RETRY, 0, *by_signal)


def one_run(workdir: pathlib.Path, strikes: list[Strike], settings, unbroken: pathlib.Path) -> dict:
  """A job interrupted by `strikes`, one a start, and then left to finish. Raises AssertionError if
  anything is not as it should be.
  """
  begun = time.time()
  record, starts = [], 0
  for strike in strikes:
    workers = 2 if strike.phase == "worker" else 0
    with jobs.Job(workdir, settings(workers)) as job:
      # struck while it imports, it never gets as far as the ledger
      if strike.phase != "import":
        starts += 1
      alive, code, readers = interrupt(job, strike, starts)
      starts = max(starts, len(jobs.ledger_rows(workdir)))
      if alive:
        assert code in expected_exits(strike), f"{strike}: exit {code}\n{job.output()}"
      assert_gone(readers)

    # Told to stop, it has saved.
    steps = jobs.checkpoint_steps.steps(workdir)
    if code == EXIT_RETRY and strike.phase != "import":
      assert steps and f"saved at step {steps[-1]} of" in job.output(), job.output()
    record.append(
      {
        **dataclasses.asdict(strike),
        "exit": code,
        "trained_to": jobs.trained_to(workdir),
        "saved": steps,
      }
    )
  if record[-1]["exit"] != 0:
    with jobs.Job(workdir, settings(0)) as job:
      assert job.wait() == [0], job.output()

  # The end is that of the unbroken run, and so is every metric on the way.
  jobs.assert_same_run(unbroken, workdir)
  assert jobs.science(workdir) == jobs.science(unbroken)
  evaluations = jobs.science(workdir, "eval/loss")
  all_of_them = jobs.science(unbroken, "eval/loss")
  # one that was under way at a kill may be lost
  assert evaluations.items() <= all_of_them.items() and STEPS in evaluations
  check_ledger(workdir, begun)
  return {
    "strikes": record,
    "seconds": round(time.time() - begun, 1),
    "goodput": ledger.summarize(jobs.ledger_rows(workdir)),
  }


def assert_gone(pids: list[int], *, timeout: float = 30.0) -> None:
  """The reading processes end with their job."""
  deadline = time.monotonic() + timeout
  while left := [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]:
    assert time.monotonic() < deadline, f"reading processes {left} outlive their job"
    time.sleep(0.1)


def check_ledger(workdir: pathlib.Path, begun: float) -> None:
  """The ledger's phases sum to the wall time, by its own clock and by ours, within 1 %."""
  rows = jobs.ledger_rows(workdir)
  summary = ledger.summarize(rows)
  wall = summary["wall"]
  tolerance = 0.01 * wall
  phases = sum(summary["seconds"].values())
  assert abs(phases - wall) <= tolerance, summary

  # from the begin of the first start to the last row
  first, last = rows[0][0], rows[-1][-1]
  begin = first["unix_time"] - first["wall"]
  assert abs(wall - (last["unix_time"] - begin)) <= tolerance, summary
  # the clock of the day may be set between the two
  assert begin >= begun - tolerance, (begin, begun)


def main() -> int:
  """Runs what the command line says; 1 if any run failed."""
  purpose, *_ = __doc__.split("\n\n")
  parser = argparse.ArgumentParser(description=purpose)
  parser.add_argument("--runs", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--phases", default=",".join(PHASES), help="comma-separated")
  parser.add_argument("--out", type=pathlib.Path, help="JSON record of every run")
  parser.add_argument(
    "--keep", type=pathlib.Path, help="folder for the runs (default: a temporary one)"
  )
  args = parser.parse_args()
  folder = args.keep or pathlib.Path(tempfile.mkdtemp(prefix="chaos_"))
  folder.mkdir(parents=True, exist_ok=True)
  data = make_dataset(folder / "data")

  def settings(workers: int) -> list[str]:
    return overrides(data, folder / "cache", workers=workers)

  # What every run is compared with.
  unbroken = folder / "unbroken"
  with jobs.Job(unbroken, settings(0)) as job:
    assert job.wait() == [0], job.output()

  # The phases take turns, moments are random. Only a run that failed is kept.
  rng = random.Random(args.seed)
  phases = args.phases.split(",")
  rows, failures = [], 0
  with Progress(args.runs, "chaos", "runs") as progress:
    for number in range(args.runs):
      strike = draw(rng, phases[number % len(phases)])
      workdir = folder / f"run_{number}"
      try:
        row = one_run(workdir, [strike], settings, unbroken)
      except AssertionError as error:
        failures += 1
        row = {"strikes": [dataclasses.asdict(strike)], "failure": str(error)}
        print(f"run {number}: {error}", file=sys.stderr, flush=True)
      else:
        shutil.rmtree(workdir)
      rows.append(row)
      if args.out:
        args.out.write_text(json.dumps(rows, indent=1))
      progress.update(1, failed=failures, last=f"{strike.how} in {strike.phase}")
  print(table(rows))
  if args.keep is None and not failures:
    shutil.rmtree(folder)
  return 1 if failures else 0


def table(rows: list[dict]) -> str:
  """Runs and failures by phase and signal."""
  counts: dict[tuple[str, str], list[int]] = {}
  for row in rows:
    strike = row["strikes"][0]
    count = counts.setdefault((strike["phase"], strike["how"]), [0, 0])
    count[0] += 1
    count[1] += "failure" in row
  lines = [f"{'phase':10s} {'signal':8s} {'runs':>5s} {'failed':>7s}"]
  for (phase, how), (runs, failed) in sorted(counts.items()):
    lines.append(f"{phase:10s} {how:8s} {runs:5d} {failed:7d}")
  return "\n".join(lines)


if __name__ == "__main__":
  raise SystemExit(main())

"""The one training loop. Stages differ in what they hand to it, not in it."""

from collections.abc import Callable, Iterator
import dataclasses
import json
import pathlib
import time
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils
import numpy as np

from sam3d_jax.errors import JobFailed, Preempted
from sam3d_jax.sharding import mesh as mesh_lib
from sam3d_jax.training import hardware, optim
from sam3d_jax.training.best import Best
from sam3d_jax.training.checkpointer import Checkpointer
from sam3d_jax.training.ledger import Ledger
from sam3d_jax.training.preemption import StopFlag
from sam3d_jax.training.pulse import Pulse, SlowestHost
from sam3d_jax.training.state import TrainState
from sam3d_jax.training.step import GuardConfig
from sam3d_jax.training.tracer import Tracer
from sam3d_jax.training.writers import Writers

# that a run which was told to stop, and has saved, waits for evaluations under way
LAST_RESULTS_SECONDS = 10.0
# own time of the slowest host over the median host's from which it is named on the console
SLOW_FACTOR = 1.5


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long, and how often what."""

  steps: int
  batch_size: int  # global
  log_every: int
  checkpoint_every: int
  eval_every: int  # 0: never
  wandb: str = ""  # Weights & Biases project for the metrics; empty: none


class Evaluation(Protocol):
  """Evaluation beside training: nothing here waits for a device unless it says so."""

  def start(self, step: int, state: TrainState, last: bool) -> list[Any]:
    """Dispatches the evaluation of a state, before the next step may overwrite it; returns results
    that are ready.
    """

  def wait(self) -> list[Any]:
    """Results of all that is under way, once they are there."""

  def poll(self) -> list[Any]:
    """Results that have become ready; each has `step`, `scalars` and `picture` (or None). Raises
    what went wrong in one.
    """

  def finish(self, timeout: float | None = None) -> list[Any]:
    """Waits for the rest, for each at most `timeout` seconds."""

  def abandon(self) -> None:
    """Gives up what is not finished."""


@dataclasses.dataclass
class Job:
  """What a stage hands to the loop."""

  cfg: LoopConfig
  optim: optim.OptimConfig
  guard: GuardConfig
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  step_fn: Callable  # compiled (state, batch, lr) -> (state, metrics)
  # first step -> this host's rows of every batch from there on
  batches: Callable[[int], Iterator[Any]]
  # what this host has met while reading them (unreadable records, ...), by the metric's name; the
  # metrics hold the sums over all hosts
  counters: Callable[[], dict[str, float]]
  evaluation: Evaluation | None
  meta: dict[str, Any]  # config and lineage, stored with every checkpoint
  flops_per_sample: float  # model FLOPs (training/flops.py), the numerator of utilisation
  # progress display: (total, label, unit, done=) -> context manager with update(n, **fields)
  progress: Callable[..., Any]
  tell: Callable[[str], None]  # takes a line for the screen, such as the result of an evaluation
  best: Best | None = None  # of a run that stops for want of a better state


class StoppedOnBadGradients(JobFailed):
  """Too many steps in a row had to be skipped."""


def train(
  job: Job, state: TrainState, checkpointer: Checkpointer, ledger: Ledger, stop: StopFlag
) -> TrainState:
  """Trains from `state.step` to `cfg.steps`, or to where `job.best` ends it, saving, evaluating and
  reporting on the way; returns the final state.

  Metrics of a step are read while the next one runs, so nothing waits for the host. Raises
  Preempted after saving when asked to stop, StoppedOnBadGradients when the guard gives up (nothing
  of the bad state is saved).
  """
  # What goes along with the steps.
  first, last = int(state.step), job.cfg.steps
  writers = Writers(
    job.workdir,
    resume_step=first,
    wandb=job.cfg.wandb,
    config=job.meta["config"],
  )
  batches = job.batches(first)
  meter = Meter(
    job,
    writers,
    ledger,
    skipped=int(state.skipped),
  )
  pulse = Pulse(job.mesh)
  own_seconds = 0.0
  try:
    with (
      job.progress(last, "training", "steps", done=first) as progress,
      Tracer(job.workdir) as tracer,
    ):
      catch_up(job, state, first, ledger, writers)
      for step in range(first, last):
        # Whether any host was told to stop, and what each has met: all learn it at the same step.
        counters = job.counters()
        told = pulse.exchange((bool(stop.reason), own_seconds, *counters.values()))
        stopping, seconds, counted = told[:, 0], told[:, 1], told[:, 2:]
        meter.hosts.add(seconds)
        meter.counters = dict(zip(counters, counted.sum(axis=0), strict=True))
        if stopping.any():
          meter.flush()
          save(job, state, step, checkpointer, ledger)
          with ledger.phase("checkpoint"):
            checkpointer.wait()
          last_results(job, writers, ledger, LAST_RESULTS_SECONDS)
          reason = stop.reason or "another host was told to stop"
          raise Preempted(f"{reason}, saved at step {step} of {last}")

        # This host's rows of the batch. What it works on its own is counted from here.
        tracer.before_step(step)
        begin = time.monotonic()
        with ledger.phase("input_wait"):
          rows = next(batches)

        # The step is dispatched; what is waited for here are the metrics of the one before.
        with ledger.phase("step"):
          lr = np.float32(optim.learning_rate(job.optim, step, last))
          batch = mesh_lib.place_batch(job.mesh, rows)
          state, metrics = job.step_fn(state, batch, lr)
          own_seconds = time.monotonic() - begin
          meter.push(step + 1, metrics, rows.key)
        ledger.step = step + 1
        progress.update(1, **meter.shown)
        after_step(
          job,
          state,
          step + 1,
          checkpointer,
          ledger,
          writers,
        )
        if job.best is not None and job.best.over:
          last = step + 1
          break
      meter.flush(last=True)

    # The end: the last state, known to read back, and the last results.
    if first < last:
      save(job, state, last, checkpointer, ledger)
    with ledger.phase("checkpoint"):
      checkpointer.wait()
      checkpointer.read_back()
    last_results(job, writers, ledger)
    return state
  finally:
    if job.evaluation:
      job.evaluation.abandon()
    batches.close()
    writers.close()


def last_results(job: Job, writers: Writers, ledger: Ledger, timeout: float | None = None) -> None:
  """Writes what evaluations under way still find, waiting at most `timeout` seconds for each."""
  with ledger.phase("eval"):
    if job.evaluation:
      record(job, writers, job.evaluation.finish(timeout))


def after_step(
  job: Job, state: TrainState, step: int, checkpointer, ledger: Ledger, writers: Writers
) -> None:
  """Evaluation and checkpoint where they are due, and what earlier evaluations have found."""
  last = step == job.cfg.steps

  # Before the next step may overwrite the state.
  better = False
  if job.evaluation is not None:
    due = step % job.cfg.eval_every == 0
    if due or last:
      better = evaluate(job, state, step, ledger, writers, last=last)
    record(job, writers, job.evaluation.poll())

  # The best state is saved whenever it comes, the last one after the loop.
  if better:
    checkpointer.keep_best(step)
  due = step % job.cfg.checkpoint_every == 0
  if (due or better) and not last:
    save(job, state, step, checkpointer, ledger)


def evaluate(
  job: Job, state: TrainState, step: int, ledger: Ledger, writers: Writers, *, last: bool
) -> bool:
  """Dispatches the evaluation of a state; whether it is the best so far, for a run that looks for
  it: such a run waits for the result.
  """
  with ledger.phase("eval"):
    ready = job.evaluation.start(step, state, last=last)
    if job.best is not None:
      ready += job.evaluation.wait()
    record(job, writers, ready)
  if job.best is None:
    return False
  (scores,) = [result.scalars for result in ready if result.step == step]
  return job.best.take(step, scores)


def catch_up(job: Job, state: TrainState, step: int, ledger: Ledger, writers: Writers) -> None:
  """Repeats the evaluation of the state that a run resumes from, if it was due and was stopped
  before its result was written.
  """
  # A fresh run has nothing to catch up with.
  started = job.evaluation is not None and step > 0
  due = started and step % job.cfg.eval_every == 0
  is_missing = due and not writers.has(step, "eval/loss")
  missing = np.array(is_missing)
  # The first process has the file, and all of them evaluate or none.
  if jax.process_count() > 1:
    missing = multihost_utils.broadcast_one_to_all(missing)
  if missing:
    evaluate(job, state, step, ledger, writers, last=False)


def record(job: Job, writers: Writers, results: list[Any]) -> None:
  """Writes the results of evaluations, under the steps that they belong to, and tells them."""
  for result in results:
    writers.scalars(result.step, result.scalars)
    if writers.enabled:
      job.tell(evaluation_line(result))
    if result.picture is not None:
      writers.picture(result.step, "samples", result.picture)


def evaluation_line(result: Any) -> str:
  """'step 200: eval/loss 0.8712  viou 0.213 ...': the losses and scores of an evaluation, without
  what is split up further (by time, for one).
  """
  said = []
  for name, value in result.scalars.items():
    group, _, short = name.partition("/")
    if group != "eval" or "/" in short:
      continue
    # the loss first, by the name under which it is in metrics.jsonl
    if short == "loss":
      said.insert(0, f"{name} {value:.4g}")
    else:
      said.append(f"{short} {value:.4g}")
  return f"step {result.step}: {'  '.join(said)}"


def save(job: Job, state: TrainState, step: int, checkpointer, ledger: Ledger) -> None:
  """Starts writing a checkpoint, and says so in the ledger."""
  # Copying to the host counts; the disk works beside training.
  with ledger.phase("checkpoint"):
    checkpointer.save(step, state, job.meta)
  ledger.record("checkpoint", step=step)


class Meter:
  """Reads metrics one step late, averages them over `log_every` steps, writes them, and stops a run
  whose gradients stay bad.
  """

  def __init__(self, job: Job, writers: Writers, ledger: Ledger, *, skipped: int):
    self.job = job
    self.writers = writers
    self.ledger = ledger
    self.pending: tuple[int, Any, np.ndarray] | None = None  # dispatched, not read yet
    self.rows: list[dict[str, float]] = []  # read, not written yet
    self.window_start = time.monotonic()
    self.shown: dict[str, float] = {}  # on the console
    self.skipped = skipped  # steps so far
    self.counters: dict[str, float] = {}  # of all hosts together
    self.hosts = SlowestHost()

  def push(self, step: int, metrics, keys: np.ndarray) -> None:
    """Registers the metrics of a step that was just dispatched and reads those of the step before
    it.
    """
    self.flush()
    self.pending = (step, metrics, keys)

  def flush(self, *, last: bool = False) -> None:
    """Reads the metrics that are still on the devices; waits for their step. last: none follow."""
    if self.pending is None:
      return
    step, metrics, keys = self.pending
    self.pending = None
    # One transfer for all of them.
    metrics = jax.device_get(metrics)
    values = {name: float(value) for name, value in metrics.items()}
    # Before the row is written, so that a bad run stops at its step.
    self._watch_skips(step, values, keys)

    self.rows.append(values)
    due = step % self.job.cfg.log_every == 0
    if due or last:
      self._write(step)

  def _watch_skips(self, step: int, values: dict[str, float], keys: np.ndarray) -> None:
    """Writes down which examples were in a refused step; raises StoppedOnBadGradients."""
    # The counter of the state, which a resumed run goes on with.
    skipped = int(values["skipped"])
    if skipped > self.skipped:
      # Every host knows the keys of its own rows.
      words = np.asarray(keys).reshape(-1, 2).tolist()
      # As text: JSON has no NaN.
      row = {
        "step": step,
        "grad_norm": str(values["norm/grad"]),
        "loss": str(values["loss"]),
        "keys": [f"{high:08x}{low:08x}" for high, low in words],
      }
      line = json.dumps(row) + "\n"
      path = self.job.workdir / f"skipped_{jax.process_index()}.jsonl"
      with path.open("a") as file:
        file.write(line)
    self.skipped = skipped

    in_a_row = values["skipped_in_a_row"]
    if in_a_row >= self.job.guard.max_in_a_row:
      raise StoppedOnBadGradients(
        f"{int(in_a_row)} steps in a row up to step {step} had a gradient that "
        "was not finite or spiked; the "
        f"examples are in {self.job.workdir}/skipped_*.jsonl, the last good checkpoint is "
        "untouched (lower optim.lr?)"
      )

  def _write(self, step: int) -> None:
    """Writes the means since the last time, and how fast it went."""
    now = time.monotonic()
    mean = {}
    for name in self.rows[0]:
      values = [row[name] for row in self.rows]
      mean[name] = finite_mean(values)

    # Wall time of a step, whatever it was spent on.
    seconds = (now - self.window_start) / len(self.rows)
    samples_per_second = self.job.cfg.batch_size / seconds
    speed = {
      "time/step_seconds": seconds,
      **speeds(self.job, samples_per_second),
      "time/input_wait_share": self.ledger.share("input_wait"),
    }
    hosts = self.hosts.read()
    self.writers.scalars(step, {**mean, **speed, **hosts, **self.counters})

    # Of all that, what the console shows.
    self.shown = {"loss": mean["loss"]}
    if "time/mfu" in speed:
      self.shown["MFU"] = speed["time/mfu"]
    unreadable = self.counters.get("data/corrupt_records")
    if unreadable:
      self.shown["unreadable"] = int(unreadable)
    if hosts:
      slow = SLOW_FACTOR * hosts["hosts/median_seconds"]
      if hosts["hosts/slowest_seconds"] > slow:
        self.shown["slowest host"] = int(hosts["hosts/slowest"])

    self.rows = []
    self.window_start = now


def finite_mean(values: list[float]) -> float:
  """The mean without NaNs; NaN where no value is finite."""
  # NumPy warns of a mean of nothing.
  if not np.isfinite(values).any():
    return float("nan")
  return float(np.nanmean(values))


def speeds(job: Job, samples_per_second: float) -> dict[str, float]:
  """A rate in all, of one chip, and as the share of the chip's peak (`time/mfu`, left out where
  that is not known).
  """
  each = samples_per_second / job.mesh.size
  rates = {
    "time/samples_per_second": samples_per_second,
    "time/samples_per_second_per_chip": each,
  }
  kind = job.mesh.devices.flat[0].device_kind
  full = hardware.full_rate(kind, job.flops_per_sample)
  if full is not None:
    rates["time/mfu"] = each / full
  return rates

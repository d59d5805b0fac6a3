"""The best state of a run by a held-out score, and when to stop for want of a better one.

A run that is told to look for it evaluates and waits, counts, and saves the state if it is better
than all before. What it knows follows from the scores in `metrics.jsonl` up to a step, so a run
that goes on from a checkpoint stops where an unbroken one does. Beside the checkpoints lies

    <workdir>/best.json   score, step and value of the best state, evaluations since

and whoever reads the folder without naming a step gets that state
(`checkpoint_steps.resolve_step`).
"""

import dataclasses
import math
import pathlib
import sys

import jax
from jax.experimental import multihost_utils
import numpy as np

from sam3d_jax.errors import ConfigError
from sam3d_jax.files import atomic, texts

FILE = "best.json"
METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class StopRule:
  """score: its name among the metrics of an evaluation. higher: whether more is better. patience:
  evaluations in a row without a better score that end the run.
  """

  score: str
  higher: bool
  patience: int


class Best:
  """The best step so far. Every process of a job has one; the first one judges for all.

  step, value: of the best state; None and NaN before the first evaluation. since: evaluations after
  it.
  """

  def __init__(self, rule: StopRule, workdir: pathlib.Path):
    self.rule = rule
    self.workdir = workdir
    self.step: int | None = None
    self.value = math.nan
    self.since = 0

  @property
  def over(self) -> bool:
    """Whether training ends for want of a better score."""
    return self.since >= self.rule.patience

  def resume(self, until: int) -> None:
    """Knows again what a run knew at step `until`, from the metrics that it wrote."""
    # Rows beyond that step are of a process that was killed before it saved what they tell of.
    file = self.workdir / METRICS
    if jax.process_index() == 0 and file.is_file():
      for step, value in written(file, self.rule.score):
        if step <= until:
          self._count(step, value)
    self._agree()
    self._write()

  def take(self, step: int, scores: dict[str, float]) -> bool:
    """Counts the evaluation of a step; whether it is the best so far.

    Raises ConfigError if the evaluation does not have the score.
    """
    # A score that cannot be taken here, such as a pose without poses, never will be.
    value = scores.get(self.rule.score, math.nan)
    if not math.isfinite(value):
      name = self.rule.score.removeprefix("eval/")
      finite = [other for other in sorted(scores) if math.isfinite(scores[other])]
      there = ", ".join(other.removeprefix("eval/") for other in finite)
      raise ConfigError(
        f"eval.score = {name!r}: the evaluation of step {step} gives no such number; it gives "
        f"{there}"
      )
    if jax.process_index() == 0:
      self._count(step, value)
    self._agree()
    self._write()
    return self.step == step

  def text(self) -> str:
    """What it knows, in words."""
    name = self.rule.score
    if self.over:
      return (
        f"no {name} better than {self.value:.6g} (step {self.step}) in {self.since} evaluations"
      )
    return f"best {name} {self.value:.6g} at step {self.step}"

  def _count(self, step: int, value: float) -> None:
    # As good as before is not better.
    if self.rule.higher:
      better = value > self.value
    else:
      better = value < self.value
    if self.step is None or better:
      self.step = step
      self.value = value
      self.since = 0
    else:
      self.since += 1

  def _agree(self) -> None:
    """All processes know what the first one knows."""
    if jax.process_count() == 1:
      return
    # No step is -1 on the way.
    known = -1 if self.step is None else self.step
    mine = np.array([known, self.since])
    step, since = multihost_utils.broadcast_one_to_all(mine)
    value = multihost_utils.broadcast_one_to_all(np.float32(self.value))
    if jax.process_index() != 0:
      self.step = None if step < 0 else int(step)
      self.since = int(since)
      self.value = float(value)

  def _write(self) -> None:
    if self.step is None or jax.process_index() != 0:
      return
    known = {
      "score": self.rule.score,
      "higher_is_better": self.rule.higher,
      "step": self.step,
      "value": self.value,
      "evaluations_since": self.since,
      "stops_after": self.rule.patience,
    }
    atomic.write_json(self.workdir / FILE, known)


def written(file: pathlib.Path, score: str) -> list[tuple[int, float]]:
  """(step, value) of a score wherever a run wrote it, in order of steps."""
  found = {}
  for row in texts.read_rows(file, "step"):
    if row.get(score) is not None:
      found[row["step"]] = row[score]
  return sorted(found.items())


def step_of(workdir: str | pathlib.Path) -> int | None:
  """The best step of a work folder; None if its run does not look for one, or if the file is cut
  off: a run that goes on writes it anew.
  """
  file = pathlib.Path(workdir) / FILE
  known = texts.read_own(file, "step")
  if known is not None:
    return known["step"]
  if file.is_file():
    print(f"{file} is damaged and counts as absent: the newest step is read", file=sys.stderr)
  return None

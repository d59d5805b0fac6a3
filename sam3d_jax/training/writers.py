"""Metrics out: JSONL, TensorBoard and, if asked for, Weights & Biases.

The same names everywhere, written by the first process only.
"""

from collections.abc import Mapping
import json
import pathlib
import secrets
from typing import Any

import jax
import numpy as np

from sam3d_jax.files import atomic


class Writers:
  """Appends scalars to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard/`.

  resume_step: rows beyond it, written by a run that was killed before it saved, are dropped, so
  that the file reads as one run. wandb: project of Weights & Biases that gets the same rows. The
  run there goes on over restarts of this work folder; rows that a killed run sent are sent again,
  with the same `step`, which is the axis. config: shown beside them.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    resume_step: int = 0,
    wandb: str = "",
    config: Mapping[str, Any] | None = None,
  ):
    self.enabled = jax.process_index() == 0
    self.board = self.wandb_run = None
    if not self.enabled:
      return
    from tensorboardX import SummaryWriter  # only the process that writes pays for the import

    workdir = pathlib.Path(workdir)
    self.path = workdir / "metrics.jsonl"
    self._drop_rows_after(resume_step)
    self.file = self.path.open("a")
    self.board = SummaryWriter(
      str(workdir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None
    )
    if wandb:
      self.wandb_run = start_wandb(workdir, wandb, dict(config or {}))

  def _drop_rows_after(self, step: int) -> None:
    if self.path.exists():
      rows = []
      for line in self.path.read_text().splitlines():
        whole = line.endswith("}")  # the last line of a killed run may be cut off
        if whole and json.loads(line)["step"] <= step:
          rows.append(line)
      atomic.write_text(self.path, "".join(row + "\n" for row in rows))

  def has(self, step: int, name: str) -> bool:
    """Whether a value was written for a step, in this run or in those that it continues."""
    rows = self.path.read_text().splitlines() if self.enabled else []
    return any(name in row for row in map(json.loads, rows) if row["step"] == step)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    if not self.enabled:
      return
    values = {name: float(value) for name, value in values.items()}
    # JSON has no NaN
    shown = {name: value if np.isfinite(value) else None for name, value in values.items()}
    self.file.write(json.dumps({"step": step, **shown}) + "\n")
    self.file.flush()
    for name, value in values.items():
      self.board.add_scalar(name, value, step)
    if self.wandb_run is not None:
      self.wandb_run.log({"step": step, **values})

  def picture(self, step: int, name: str, picture_HW3: np.ndarray) -> None:
    """Shows a picture beside the metrics."""
    if self.enabled:
      self.board.add_image(name, picture_HW3, step, dataformats="HWC")
    if self.wandb_run is not None:
      import wandb

      self.wandb_run.log({"step": step, name: wandb.Image(picture_HW3)})

  def close(self) -> None:
    if self.enabled:
      self.file.close()
      self.board.close()
    if self.wandb_run is not None:
      self.wandb_run.finish()


def start_wandb(workdir: pathlib.Path, project: str, config: dict[str, Any]):
  """The run of this work folder in a project; its id is kept in `<workdir>/wandb_id`."""
  import wandb  # optional, and slow to import

  file = workdir / "wandb_id"
  if not file.exists():
    atomic.write_text(file, secrets.token_hex(8))
  run = wandb.init(
    project=project,
    id=file.read_text(),
    name=workdir.resolve().name,
    dir=str(workdir),
    resume="allow",
    config=config,
  )
  run.define_metric("*", step_metric="step")
  return run

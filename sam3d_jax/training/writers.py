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

from sam3d_jax.files import atomic, texts


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
    # TensorBoard then drops what a killed run wrote beyond the step that it had saved.
    purge_step = resume_step + 1 if resume_step else None
    self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge_step)
    if wandb:
      self.wandb_run = start_wandb(workdir, wandb, dict(config or {}))

  def _drop_rows_after(self, step: int) -> None:
    if not self.path.exists():
      return
    # The last line of a killed run may be cut off.
    kept = []
    for row in texts.read_rows(self.path, "step"):
      if row["step"] <= step:
        kept.append(json.dumps(row) + "\n")
    atomic.write_text(self.path, "".join(kept))

  def has(self, step: int, name: str) -> bool:
    """Whether a value was written for a step, in this run or in those that it continues."""
    if not self.enabled:
      return False
    # Rarely asked, so the file is read rather than remembered.
    rows = texts.read_rows(self.path, "step", name)
    return any(row["step"] == step for row in rows)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Writes numbers everywhere; one that is not finite is null in the file, JSON has no NaN."""
    if not self.enabled:
      return
    values = {name: float(value) for name, value in values.items()}

    # The file.
    row: dict[str, float | None] = {"step": step}
    for name, value in values.items():
      row[name] = value if np.isfinite(value) else None
    line = json.dumps(row) + "\n"
    self.file.write(line)
    # Others read the file while the run goes on.
    self.file.flush()

    for name, value in values.items():
      self.board.add_scalar(name, value, step)
    if self.wandb_run is not None:
      self.wandb_run.log({"step": step, **values})

  def picture(self, step: int, name: str, picture_HW3: np.ndarray) -> None:
    """Shows a picture beside the metrics."""
    # TensorBoard takes it as it is: height, width, channels.
    if self.enabled:
      self.board.add_image(name, picture_HW3, step, dataformats="HWC")
    if self.wandb_run is not None:
      import wandb  # optional, and slow to import

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
  # The first start of a work folder names its run; restarts go on with it.
  if not file.exists() or not file.read_text().strip():
    new = secrets.token_hex(8)
    atomic.write_text(file, new)
  run = wandb.init(
    project=project,
    id=file.read_text(),
    name=workdir.resolve().name,
    dir=str(workdir),
    resume="allow",
    config=config,
  )
  # Rows may be sent twice, which Weights & Biases' own step, a counter, does not allow.
  run.define_metric("*", step_metric="step")
  return run

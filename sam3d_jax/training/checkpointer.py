"""Writing and restoring the training state of a run: whole or not at all, beside training.

Arrays are copied to the host, then written in the background; what was written is read back. A step
that fails its checksums is named and the one before it is used. `checkpoint_steps` says what lies
where.
"""

from collections.abc import Mapping
import contextlib
import logging
import pathlib
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from sam3d_jax.errors import JobFailed
from sam3d_jax.files import locks
from sam3d_jax.training import (
  agreement,
  checkpoint_arrays,
  checkpoint_steps,
  checksums,
  retention,
)

# that a host waits for a step which the first one sees
SEEN_SECONDS = 60.0


def _without_stack(record: logging.LogRecord) -> bool:
  """What Orbax logs of a write that failed, in a line: the error itself is raised and explained."""
  record.exc_info = record.exc_text = None
  return True


class NonFiniteState(JobFailed):
  """The state holds a NaN or an infinity; such a state is never written."""


class Checkpointer:
  """Checkpoints of one work folder; every process of the job has one and calls it alike.

  present: committed steps, agreed by all processes. bad_steps: those found unreadable by `restore`.
  restored: meta of the step that `restore` gave. best: the step that `keep_best` named last.
  """

  def __init__(self, workdir: str | pathlib.Path, *, keep: int = 3):
    self.workdir = pathlib.Path(workdir).absolute()
    self.bad_steps: list[int] = []
    # Agreed by all processes: one that looks at a network disk may see an older folder.
    self.present = set(agreement.of_first(checkpoint_steps.steps(self.workdir)))
    self.writing: int | None = None
    self.best: int | None = None
    self.restored: dict[str, Any] | None = None

    # One process decides what stays.
    self.keeper: retention.Keeper | None = None
    if jax.process_index() == 0:
      self.keeper = retention.Keeper(self.workdir, keep, verify=checkpoint_arrays.verify)

    logging.getLogger("absl").addFilter(_without_stack)

    # Orbax decides nothing: what stays is the keeper's, what is read is ours.
    options = ocp.CheckpointManagerOptions(
      enable_async_checkpointing=True,
      create=True,
      cleanup_tmp_directories=True,
    )
    with explained(self.workdir):
      folder = checkpoint_steps.steps_folder(self.workdir)
      self.manager = ocp.CheckpointManager(folder, options=options)

  def prepare(self, state) -> None:
    """Compiles what a save computes on the devices, so that the first one does not hold training
    up.

    After a restore it is compiled already.
    """
    if self.restored is None:
      checksums.inspect(checkpoint_arrays.flatten(state))

  def save(self, step: int, state, meta: Mapping[str, Any]) -> bool:
    """Starts writing `state` as of `step` and returns; False if that step is there already.

    Returns when the arrays are copied to the host and the save before is committed; the disk is
    written in the background. Raises NonFiniteState naming the leaves if any is not finite: such a
    state is never written.
    """
    # A resumed run may come by a step that was written before.
    if step in self.present:
      return False

    # What another run has taken over is left to it.
    locks.check(self.workdir)

    # On the devices, while the save before is still being written.
    flat = checkpoint_arrays.flatten(state)
    sums, bad = checksums.inspect(flat)
    if bad:
      raise NonFiniteState(
        f"step {step} is not saved: {len(bad)} arrays are not finite, first {bad[0]}"
      )
    self.wait()

    # Arrays and what is said of them are committed together.
    whole = checkpoint_steps.make_meta(meta, step, flat, sums)
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(checkpoint_arrays.nest(flat)),
      meta=ocp.args.JsonSave(whole),
    )
    with explained(self.workdir):
      self.manager.save(step, args=args)
    self.writing = step
    self.present.add(step)
    return True

  def wait(self) -> None:
    """Returns when everything started is committed.

    What was committed is then read back in the background.
    """
    written, self.writing = self.writing, None
    try:
      with explained(self.workdir):
        self.manager.wait_until_finished()
    except JobFailed:
      self.present.discard(written)
      raise
    # Renaming is the commit: only then is there something to read back.
    if written is not None and self.keeper is not None:
      if written == self.best:
        self.keeper.best = self.best
      self.keeper.committed(written)

  def keep_best(self, step: int | None) -> None:
    """A step that stays, in place of the one named before; that one stays until `step` is there."""
    self.best = step
    if self.keeper is not None and step in self.present and step != self.writing:
      self.keeper.best = step

  def read_back(self) -> None:
    """Waits until the newest step was read back.

    Raises JobFailed if it did not survive being written.
    """
    if self.keeper is None:
      return
    # The newest step may still be on its way back from the disk.
    self.keeper.wait()
    latest = self.latest()
    folder = self.workdir / "checkpoints"
    if latest in self.keeper.damaged:
      raise JobFailed(
        f"step {latest} did not read back as it was written; {folder} is on a bad disk"
      )
    if latest in self.keeper.unread:
      raise JobFailed(
        f"step {latest} could not be read back, and stays; {folder} is on a disk that fails: mend "
        "it and run the same command again"
      )

  def close(self) -> None:
    """Commits what was started and ends all threads."""
    self.wait()
    self.manager.close()
    if self.keeper is not None:
      self.keeper.close()

  def latest(self) -> int | None:
    """The newest committed step, or None."""
    return max(self.present, default=None)

  def restore(self, abstract_state):
    """The newest readable state and its meta, or None if nothing was ever saved.

    abstract_state: the state as shape structs with shardings; every one of its leaves must come
    from disk and every leaf on disk must be in it, or InputError lists the differences. Steps that
    fail their checksums are reported, remembered in `bad_steps`, and the one before is tried, by
    all processes together; CorruptCheckpoint is raised if none is left, JobFailed if a disk fails.
    """
    if not self.present:
      return None

    def read(step: int):
      self._wait_until_seen(step)
      return checkpoint_arrays.read_state(self.workdir, step, abstract_state)

    newest_first = sorted(self.present, reverse=True)
    state, meta = checkpoint_steps.first_readable(
      self.workdir,
      newest_first,
      read,
      self.bad_steps,
      together=True,
    )
    # It has just been read, so it stays whatever becomes of newer ones.
    if self.keeper is not None:
      self.keeper.good = meta["step"]
    self.restored = meta
    return state, meta

  def _wait_until_seen(self, step: int) -> None:
    """A step that another host sees appears here too once the network disk is asked anew."""
    deadline = time.monotonic() + SEEN_SECONDS
    while step not in checkpoint_steps.steps(self.workdir):
      if jax.process_count() == 1 or time.monotonic() > deadline:
        return
      time.sleep(1.0)

  def discard_bad_steps(self) -> None:
    """Moves damaged steps to `<step>.damaged`, so that training can write them again."""
    for step in self.bad_steps:
      if jax.process_index() == 0:
        folder = checkpoint_steps.folder_of(self.workdir, step)
        retention.set_aside(folder)
      self.present.discard(step)
    # No process looks at the folder before the first has renamed them.
    if self.bad_steps and jax.process_count() > 1:
      multihost_utils.sync_global_devices("damaged steps are out of the way")
    self.manager.reload()


@contextlib.contextmanager
def explained(workdir: pathlib.Path):
  """Turns what the storage layer raises while writing into a JobFailed that names the folder."""
  try:
    yield
  except JobFailed:
    raise
  except (OSError, ValueError, RuntimeError) as error:
    folder = workdir / "checkpoints"
    # The first line says what happened; the rest is the library's own stack.
    lines = str(error).splitlines()
    said = lines[0] if lines else type(error).__name__
    raise JobFailed(
      f"a checkpoint could not be written to {folder}: {said} "
      "(is the disk full or gone? the checkpoints before it are untouched)"
    ) from error

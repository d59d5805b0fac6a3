"""A disk that fails while a checkpoint is read: tried again, and no step is set aside for it."""

import errno
import os

import pytest

from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import retries
from sam3d_jax.training import checkpoint_arrays, checkpoint_steps, checksums, retention
from sam3d_jax.training.checkpointer import Checkpointer
from tests.support.tiny_checkpoints import META, equal, make_state, restored, saved

EIO = OSError(errno.EIO, os.strerror(errno.EIO))
# as TensorStore and XLA word it
STORAGE = ValueError("UNKNOWN: Error reading local file [OS error 5: EIO Input/output error]")
MEMORY = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes")
GARBLED = ValueError("DATA_LOSS: CRC-32C checksum verification failed: expected=1, actual=2")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(retries, "PATIENCE_SECONDS", 0.5)
  monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)


def fail(monkeypatch, module, name: str, error: Exception, times: int | None = 1) -> None:
  """The next calls of a function raise; all of them if `times` is None."""
  real = getattr(module, name)
  calls = []

  def failing(*args, **kwargs):
    calls.append(args)
    if times is None or len(calls) <= times:
      raise error
    return real(*args, **kwargs)

  monkeypatch.setattr(module, name, failing)


READERS = [
  (checkpoint_steps, "_read_meta", EIO),
  (checkpoint_arrays, "_read", EIO),
  (checkpoint_arrays, "_read", STORAGE),
  (checkpoint_arrays, "_read", MEMORY),
]


@pytest.mark.parametrize("module, name, error", READERS)
def test_a_read_that_fails_for_a_moment_costs_no_step(tmp_path, monkeypatch, module, name, error):
  saved(tmp_path, 1, 2).close()
  checkpointer = Checkpointer(tmp_path)
  fail(monkeypatch, module, name, error, times=2)
  state, step = restored(checkpointer)
  assert step == 2 and equal(state, make_state(2))
  assert not checkpointer.bad_steps


@pytest.mark.parametrize("module, name, error", READERS)
def test_a_disk_that_goes_on_failing_fails_the_job_and_renames_nothing(
  tmp_path, monkeypatch, module, name, error
):
  saved(tmp_path, 1, 2).close()
  checkpointer = Checkpointer(tmp_path)
  fail(monkeypatch, module, name, error, times=None)
  with pytest.raises(JobFailed, match="checkpoints/2 cannot be read .* run the same command again"):
    restored(checkpointer)
  checkpointer.discard_bad_steps()
  assert checkpoint_steps.steps(tmp_path) == [1, 2]


def test_damage_is_what_two_reads_agree_on(tmp_path, monkeypatch):
  saved(tmp_path, 1, 2).close()
  with monkeypatch.context() as once:
    fail(once, checkpoint_arrays, "_read", GARBLED)
    assert restored(Checkpointer(tmp_path))[1] == 2
  fail(monkeypatch, checkpoint_arrays, "_read", GARBLED, times=2)
  checkpointer = Checkpointer(tmp_path)
  assert restored(checkpointer)[1] == 1
  assert checkpointer.bad_steps == [2]


def test_numbers_that_differ_at_one_read_are_read_again(tmp_path, monkeypatch):
  saved(tmp_path, 1).close()
  real = checksums.on_device
  calls = []

  def wrong_once(arrays):
    calls.append(arrays)
    sums = real(arrays)
    if len(calls) == 1:
      sums["params/a/kernel"] = "0" * 16
    return sums

  monkeypatch.setattr(checksums, "on_device", wrong_once)
  assert restored(Checkpointer(tmp_path))[1] == 1
  assert len(calls) == 2


def test_a_lack_of_permission_is_no_damage(tmp_path, monkeypatch):
  saved(tmp_path, 1, 2).close()
  denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  fail(monkeypatch, checkpoint_steps, "_read_meta", denied, times=None)
  with pytest.raises(InputError, match="checkpoints/2 cannot be read .*give the right"):
    checkpoint_steps.read_meta(tmp_path, 2)


def test_steps_that_cannot_be_read_back_stay_and_so_do_all_others(tmp_path, monkeypatch, capfd):
  checkpointer = Checkpointer(tmp_path, keep=1)
  fail(monkeypatch, checkpoint_arrays, "_read", STORAGE, times=None)
  for step in (1, 2):
    checkpointer.save(step, make_state(step), META)
    checkpointer.wait()
    checkpointer.keeper.wait()
  with pytest.raises(JobFailed, match="step 2 could not be read back, and stays"):
    checkpointer.read_back()
  checkpointer.close()
  assert checkpoint_steps.steps(tmp_path) == [1, 2]
  assert "all steps stay" in capfd.readouterr().err


def test_a_step_that_cannot_be_renamed_ends_no_thread(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(retention, "set_aside", lambda folder: (_ for _ in ()).throw(EIO))
  checkpointer = Checkpointer(tmp_path, keep=1)
  fail(monkeypatch, checkpoint_arrays, "_read", GARBLED, times=None)
  checkpointer.save(1, make_state(1), META)
  checkpointer.wait()
  checkpointer.keeper.wait()
  assert checkpointer.keeper.damaged == checkpointer.keeper.unread == [1]
  checkpointer.close()
  assert "could not be read back" in capfd.readouterr().err

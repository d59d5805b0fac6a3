"""A run whose disk fills up or goes away: code 1 with words, and the last good state stays."""

import contextlib
import resource
import shutil
import threading
import time

import pytest

from launch.trainer import command
from sam3d_jax.training import checkpoint_arrays, checkpoint_steps
from tests.support import jobs

LONG = ("--config.steps=100000", "--config.checkpoint.every=2", "--config.eval.every=0")


def run(workdir, *flags: str) -> int:
  argv = ["--config", "configs/vae_structure.py:fake", "--workdir", str(workdir), *flags]
  return command.main(("train_vae",), "x", [*argv, "--config.log.every=1"])


@contextlib.contextmanager
def quota(size: int):
  """No file of this process grows beyond so many bytes, as on a disk that is full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
  """A run of two steps."""
  folder = tmp_path_factory.mktemp("begun") / "run"
  assert run(folder, "--config.steps=2", "--config.eval.every=0") == 0
  return folder


def test_a_disk_that_fills_up_fails_the_run_and_leaves_its_last_checkpoint(begun, tmp_path, capfd):
  workdir = shutil.copytree(begun, tmp_path / "run")
  with quota(20_000):
    assert run(workdir, *LONG) == 1
  said = capfd.readouterr().err
  assert "Traceback" not in said
  assert "File too large" in said and "untouched" in said
  # there is room again
  assert 2 in checkpoint_steps.steps(workdir)
  assert run(workdir, "--config.steps=3", "--config.eval.every=0") == 0
  assert checkpoint_steps.resolve_step(workdir) == 3


def test_a_disk_that_goes_away_fails_the_run_and_no_checkpoint_is_made_in_its_place(
  begun, tmp_path, capfd
):
  workdir, gone = tmp_path / "run", tmp_path / "unmounted"
  shutil.copytree(begun, workdir)

  def unmount() -> None:
    deadline = time.monotonic() + 120
    while jobs.trained_to(workdir) < 4 and time.monotonic() < deadline:
      time.sleep(0.001)
    workdir.rename(gone)

  thread = threading.Thread(target=unmount)
  thread.start()
  assert run(workdir, *LONG) == 1
  thread.join()
  said = capfd.readouterr().err
  assert "Traceback" not in said
  assert not checkpoint_steps.steps(workdir)
  # it comes back
  shutil.rmtree(workdir, ignore_errors=True)
  gone.rename(workdir)
  last = checkpoint_steps.resolve_step(workdir)
  assert last >= 2
  checkpoint_arrays.verify(workdir, last)

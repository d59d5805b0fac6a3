"""Chains of commands: what is repeated, what is not, and what a user sees of a step that failed."""

import os
import pathlib
import signal
import threading
import time

import pytest

from launch.console import chain
from sam3d_jax.errors import JobFailed, Preempted


@pytest.fixture
def run(tmp_path):
  """run(*names) runs a chain of those steps and returns the names of those that ran so far."""

  def of(*names, **extra):
    steps = [
      chain.Step(n, "does it", ("tests.support.chain_step", n, str(tmp_path), *extra.get(n, ())))
      for n in names
    ]
    chain.run_all(steps, tmp_path)
    return (tmp_path / "ran").read_text().split()

  return of


def after_waiting(folder: pathlib.Path, strike) -> None:
  """Calls `strike` from a thread once the step waits."""

  def watch():
    while not (folder / "waiting").exists():
      time.sleep(0.05)
    strike()

  threading.Thread(target=watch, daemon=True).start()


def test_what_is_done_is_not_repeated_and_what_changed_is_with_all_that_follows(run):
  assert run("a", "b", "c") == ["a", "b", "c"]
  assert run("a", "b", "c") == ["a", "b", "c"]
  assert run("a", "b", "c", b=("other",)) == ["a", "b", "c", "b", "c"]


def test_a_failed_step_shows_its_output_and_command_and_is_the_next_to_run(run, tmp_path, capfd):
  (tmp_path / "b.exit").write_text("3")
  with pytest.raises(
    JobFailed,
    match=rf"b ended with code 3.*b\.log(.|\n)*python -m tests\.support\.chain_step b {tmp_path}",
  ):
    run("a", "b", "c")
  assert "output of b" in capfd.readouterr().err
  (tmp_path / "b.exit").unlink()
  assert run("a", "b", "c") == ["a", "b", "b", "c"]


def test_a_stopped_chain_waits_for_its_step_to_save_and_continues_there(run, tmp_path):
  (tmp_path / "a.exit").write_text("wait")
  after_waiting(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(Preempted, match="during a"):
    run("a", "b")
  (tmp_path / "a.exit").unlink()
  assert run("a", "b") == ["a", "a", "b"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_chain_that_was_told_to_stop_begins_no_other_step(run, tmp_path, number):
  (tmp_path / "a.exit").write_text("ignore")
  after_waiting(tmp_path, lambda: os.kill(os.getpid(), number))
  with pytest.raises(Preempted, match="after a"):
    run("a", "b")
  assert run("a", "b") == ["a", "b"]


def test_a_setting_of_the_user_is_kept(tmp_path, monkeypatch):
  monkeypatch.delenv("XLA_FLAGS")  # the tests' own
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  own = chain.environment(tmp_path)
  assert (
    own["XLA_FLAGS"] == chain.COMPILE_FAST
    and pathlib.Path(own["JAX_COMPILATION_CACHE_DIR"]).parent == tmp_path
  )
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  assert "XLA_FLAGS" not in chain.environment(tmp_path)
  monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/shared/compiled")
  theirs = chain.environment(tmp_path)
  assert (theirs["XLA_FLAGS"], theirs["JAX_COMPILATION_CACHE_DIR"]) == (
    "--xla_dump_to=x",
    "/shared/compiled",
  )

"""Programs are compiled once by whoever needs them at the same time, and it is said how long it
took. The programs here are stand-ins that compile in no time.
"""

import errno
import json
import re
import threading

import jax
import pytest

from sam3d_jax.training import compilation

PATIENCE = 60.0  # seconds


class Program:
  """What `jax.jit(f).lower(x)` gives, as far as it is looked at. body: what happens meanwhile."""

  def __init__(self, text: str, body=None):
    self.text = text
    self.body = body or (lambda: None)

  def as_text(self) -> str:
    return self.text

  def compile(self, compiler_options=None) -> str:
    self.body()
    return f"compiled {self.text}"


@pytest.fixture
def cache(tmp_path):
  """A folder of compiled programs that is in use."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  yield tmp_path
  jax.config.update("jax_compilation_cache_dir", before)


def test_how_long_a_program_took_last_time_is_said_before_it_is_compiled_again(cache):
  told = []
  assert compilation.compiled(Program("a"), "the step", told.append) == "compiled a"
  assert told[0] == "compiling the step (for the first time)"
  assert re.fullmatch(r"compiled the step in \d+\.\d s", told[1])

  # as if it had taken long
  (file,) = (cache / compilation.FOLDER).iterdir()
  row = json.loads(file.read_text())
  file.write_text(json.dumps({**row, "seconds": 37.04}))
  compilation.compiled(Program("a"), "the step", told.append)
  assert told[2] == "compiling the step (37.0 s last time)"
  assert json.loads(file.read_text())["seconds"] < 37.0

  # another program
  compilation.compiled(Program("b"), "the step", told.append)
  assert told[4] == "compiling the step (for the first time)"

  # whoever wrote it was killed
  file.write_text('{"seco')
  compilation.compiled(Program("a"), "the step", told.append)
  assert told[6] == "compiling the step (for the first time)"


def test_a_program_that_is_being_compiled_is_waited_for_and_another_one_is_not(cache):
  begun, told_to_wait, order = threading.Event(), threading.Event(), []

  def first():
    begun.set()
    assert told_to_wait.wait(PATIENCE)
    order.append("first")

  def tell(line: str) -> None:
    if "waiting" in line:
      told_to_wait.set()

  one = threading.Thread(target=compilation.compiled, args=(Program("a", first), "a"))
  one.start()
  assert begun.wait(PATIENCE)

  # meanwhile another program is compiled, the same one is not
  compilation.compiled(Program("b", lambda: order.append("another")), "b", tell)
  assert not told_to_wait.is_set()
  compilation.compiled(Program("a", lambda: order.append("second")), "a", tell)
  one.join(PATIENCE)
  assert order == ["another", "first", "second"]


def test_of_the_processes_of_a_job_the_first_remembers_and_none_waits(cache, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  told = []
  inner = Program("a")
  # inside itself: with a lock it would wait for ever
  outer = Program("a", lambda: compilation.compiled(inner, "it", told.append))
  compilation.compiled(outer, "it", told.append)
  compilation.compiled(Program("a"), "it", told.append)
  assert re.fullmatch(r"compiling it \(\d+\.\d s last time\)", told[-2])

  monkeypatch.setattr(jax, "process_index", lambda: 1)
  count = len(told)
  assert compilation.compiled(Program("a"), "it", told.append) == "compiled a"
  assert len(told) == count


def test_without_a_cache_nothing_is_kept_and_nobody_waits(cache):
  jax.config.update("jax_compilation_cache_dir", None)

  def tell(line: str) -> None:
    assert "waiting" not in line

  inner = Program("a")
  outer = Program("a", lambda: compilation.compiled(inner, "it", tell))
  assert compilation.compiled(outer, "it", tell) == "compiled a"
  assert list(cache.iterdir()) == []


@pytest.mark.parametrize("number, is_refused", [(errno.EROFS, False), (errno.EIO, True)])
def test_a_cache_that_may_not_be_written_is_no_error(cache, monkeypatch, number, is_refused):
  def fail(path, *args, **kwargs):
    raise OSError(number, "as the system says it", str(path))

  monkeypatch.setattr(compilation.pathlib.Path, "open", fail)
  if is_refused:
    with pytest.raises(OSError, match="as the system says it"):
      compilation.compiled(Program("a"), "it")
  else:
    assert compilation.compiled(Program("a"), "it") == "compiled a"

"""Compiling: said before it begins, done once by whoever needs the same program, remembered.

Compilation is the longest silence of a short run. Beside JAX's cache of compiled programs lies

    <cache>/programs/<fingerprint>-<platform>.json    how many seconds the program took last time

and, while somebody compiles it, a lock on that file. A second process that needs the same program
waits for it and then finds it in the cache: the trials of a sweep, for one.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import fcntl
import hashlib
import json
import pathlib
import re
import time
from typing import IO, Any

import jax

from sam3d_jax.files import blame

FOLDER = "programs"  # in the folder of compiled programs
# what a disk that has no locks says when it is asked for one
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
Tell = Callable[[str], None]  # takes a line for the screen


def silent(line: str) -> None:
  """Tells nobody."""


def compiled(
  lowered: jax.stages.Lowered,
  what: str,
  tell: Tell = silent,
  options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
  """Compiles a program, or finds it in JAX's cache.

  what: the program in words, for the lines that `tell` gets: one before, one after, in the first
  process of a job only. options: of XLA.
  """
  if jax.process_index() != 0:
    tell = silent
  with shared_file(lowered, what, tell) as file:
    seconds = last_seconds(file)
    before = "for the first time" if seconds is None else f"{seconds:.1f} s last time"
    tell(f"compiling {what} ({before})")

    begin = time.monotonic()
    program = lowered.compile(compiler_options=options)
    seconds = time.monotonic() - begin

    tell(f"compiled {what} in {seconds:.1f} s")
    remember(file, what, seconds)
  return program


@contextlib.contextmanager
def shared_file(lowered: jax.stages.Lowered, what: str, tell: Tell) -> Iterator[IO | None]:
  """The program's file, locked; None where there is nothing to share or nowhere to keep it.

  Processes of one job compile together: if one held a lock, none of them would end. The first of
  them keeps the file, without a lock.
  """
  folder = jax.config.jax_compilation_cache_dir
  if not folder or "://" in folder or jax.process_index() != 0:
    yield None
    return

  path = pathlib.Path(folder) / FOLDER / f"{fingerprint(lowered)}-{jax.default_backend()}.json"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
  except OSError as error:
    # a cache that others filled and that this process may only read
    if error.errno not in blame.PERMISSION:
      raise
    yield None
    return
  with file:
    if jax.process_count() == 1:
      lock(file, what, tell)
    yield file


def lock(file: IO, what: str, tell: Tell) -> None:
  """Locks a file until it is closed, and says so if that takes waiting."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    tell(f"another process is compiling {what}: waiting for it")
    fcntl.flock(file, fcntl.LOCK_EX)
  except OSError as error:
    # on a disk without locks whoever comes second compiles too
    if error.errno not in WITHOUT_LOCKS:
      raise


def last_seconds(file: IO | None) -> float | None:
  """How long the program took last time, None if nobody knows."""
  if file is None:
    return None
  file.seek(0)
  try:
    return float(json.load(file)["seconds"])
  except (ValueError, KeyError, TypeError):  # new, or its writer was killed
    return None


def remember(file: IO | None, what: str, seconds: float) -> None:
  """Writes down how long it took."""
  if file is None:
    return
  row: dict[str, Any] = {"program": what, "seconds": round(seconds, 3)}
  file.truncate(0)
  file.write(json.dumps(row) + "\n")
  file.flush()


def fingerprint(lowered: jax.stages.Lowered) -> str:
  """Sixteen hexadecimal digits that are equal for equal programs; names and source locations do not
  count.
  """
  # Locations hold the folder in which the code lies.
  names_and_locations = r"\s*loc\(.*\)|^#loc.*$|module @\S+"
  text = re.sub(names_and_locations, "", lowered.as_text(), flags=re.MULTILINE)
  return hashlib.sha256(text.encode()).hexdigest()[:16]

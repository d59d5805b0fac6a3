"""Files that are whole or absent, whatever happens while they are written.

What is written goes to a temporary file beside its place, is synced to the disk, and only then
takes the name; then the folder is synced too. A process that fails or is killed in the middle
leaves the file that was there before. Temporary names are unique, so writers of one file do not
meet: the last one wins. A process that has lost the lock of a folder (`locks`) writes nothing
there.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
import shutil
from typing import Any
import uuid

from sam3d_jax.files import locks

LEFTOVERS = ".*.part*"  # what a killed writer leaves in a folder
# and nobody else: with what is unique in it, once the number of a process
OWN = re.compile(r"\..*\.([0-9a-f]{12}|\d+)\.part(\..*)?", re.DOTALL)


@contextlib.contextmanager
def write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary path to write to, with the suffix of `path`; its folder is made if needed.

  When the block ends the file takes its name; if the block raises, nothing is left of it.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = _temporary(path)
  try:
    yield temporary
    _sync(temporary)
    locks.check(path)
    os.replace(temporary, path)
    _sync(path.parent)
  finally:
    temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a whole file."""
  with write(path) as temporary:
    temporary.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a whole text file."""
  with write(path) as temporary:
    temporary.write_text(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes indented JSON. Raises ValueError for NaN, which is no JSON."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary folder to fill, which takes the name `path` when the block ends.

  `path` may be an empty folder. If the block raises, nothing is left of the temporary one.
  """
  path = pathlib.Path(path).absolute()
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = _temporary(path)
  temporary.mkdir()
  try:
    yield temporary
    for inside in (*temporary.rglob("*"), temporary):
      _sync(inside)
    locks.check(path)
    if path.exists():
      path.rmdir()
    os.replace(temporary, path)
    _sync(path.parent)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: str | os.PathLike) -> None:
  """Removes what killed writers left in a folder in which nobody is writing now."""
  for path in pathlib.Path(folder).glob(LEFTOVERS):
    if OWN.fullmatch(path.name):
      path.unlink(missing_ok=True)


def _temporary(path: pathlib.Path) -> pathlib.Path:
  # Not the process number: two containers that write the same file may both have number 1. The
  # suffix stays, since some libraries choose the kind of file by it.
  return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.part{path.suffix}")


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)

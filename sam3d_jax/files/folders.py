"""Folders as people leave them: with links, files of other systems, names of other encodings."""

from collections import Counter
from collections.abc import Iterable, Sequence
import os
import pathlib
import re
import sys

from sam3d_jax.errors import InputError
from sam3d_jax.files import texts

# What archives from a Mac hold beside the files: twins with their attributes, never content.
APPLE_TWIN = "._"
# folders of systems, not of people: a Mac's twins once more, and what a disk check found
SYSTEM_FOLDERS = ("__MACOSX", "lost+found")
ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")  # a byte of a name that is not UTF-8, as `shown` has it


def is_foreign(name: str) -> bool:
  """Whether a file or folder of this name is another system's, and no content."""
  return name.startswith(APPLE_TWIN) or name in SYSTEM_FOLDERS


def files_below(root: str | os.PathLike) -> list[pathlib.Path]:
  """Every file below a folder, by path; what is no content is passed over, and said so.

  Linked folders are followed, each folder is entered once: under its own name where it lies below
  the root, else under the first link to it. Links to folders that hold them are not followed. Files
  of other systems (`is_foreign`) and links to nothing are counted on standard error. Raises OSError
  for a folder that cannot be read.
  """
  root = pathlib.Path(root)
  files: list[pathlib.Path] = []
  foreign, dangling = 0, 0

  # Links wait until every real folder was entered: what is reached both ways keeps its own name.
  entered = {_identity(root)}
  waiting = [root]
  links: list[pathlib.Path] = []
  while waiting or links:
    if waiting:
      folder = waiting.pop()
    else:
      folder = links.pop(0)
      if _identity(folder) in entered or _holds(folder):
        continue
      entered.add(_identity(folder))

    # What the folder holds, by kind.
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
      path = folder / entry.name
      if is_foreign(entry.name):
        foreign += _files_in(path)
      elif entry.is_dir(follow_symlinks=False):
        # below a link there may be what was reached before
        if _identity(path) not in entered:
          entered.add(_identity(path))
          waiting.append(path)
      elif path.is_dir():
        links.append(path)
      elif path.is_file():
        files.append(path)
      elif path.is_symlink():
        dangling += 1

  # What was passed over is said, not lost.
  if foreign:
    tell(root, f"{foreign} files of other systems (._*, __MACOSX)")
  if dangling:
    tell(root, f"{dangling} links to nothing")
  return sorted(files)


def tell_unread(root: pathlib.Path, files: Iterable[pathlib.Path], suffixes: Sequence[str]) -> None:
  """Says which files of formats that nothing here reads were passed over, and how many."""
  unread = Counter(path.suffix.lower() for path in files if path.suffix.lower() in suffixes)
  if unread:
    counted = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
    tell(root, f"{unread.total()} files of formats that are not read ({counted})")


def tell(root: pathlib.Path, what: str) -> None:
  """Says on standard error what was passed over below a folder."""
  print(f"{shown(root)}: {what} passed over", file=sys.stderr)


def check_own(folder: pathlib.Path, record: pathlib.Path, key: str, flag: str) -> None:
  """Raises InputError for a folder that a command would empty and has not made itself.

  Its own one is a folder, no link to one, with a record of JSON that has the key; an empty one is
  as good, and so is none.
  """
  if not folder.exists() and not folder.is_symlink():
    return
  is_folder = folder.is_dir() and not folder.is_symlink()
  if is_folder and not any(folder.iterdir()):
    return
  stated = None
  if is_folder and record.is_file() and not record.is_symlink():
    try:
      stated = texts.read_json(record)
    except texts.TextError:
      stated = None
  if isinstance(stated, dict) and key in stated:
    return
  raise InputError(
    f"{shown(folder)} was not made by this command (it has no {record.name} of it) and is not "
    f"touched: give another folder with {flag}, or move it away"
  )


def _identity(folder: pathlib.Path) -> tuple[int, int]:
  """What tells a folder from all others, whatever name it is reached by."""
  status = folder.stat()
  return status.st_dev, status.st_ino


def _holds(link: pathlib.Path) -> bool:
  """Whether a link leads to a folder in which it lies itself."""
  target = link.resolve()
  return link.parent.resolve().is_relative_to(target)


def _files_in(path: pathlib.Path) -> int:
  """How many files there are in what is passed over."""
  if path.is_symlink() or not path.is_dir():
    return 1
  return sum(len(names) for _, _, names in os.walk(path))


def shown(path: str | os.PathLike) -> str:
  r"""A path as text that every file can hold: a byte that is not UTF-8 is written as \xNN."""
  posix = pathlib.PurePath(path).as_posix()
  return os.fsencode(posix).decode("utf-8", "backslashreplace")


def located(root: str | os.PathLike, name: str) -> pathlib.Path:
  """The file below `root` whose relative path `shown` gives as `name`."""
  path = pathlib.Path(root) / name
  if path.exists() or "\\x" not in name:
    return path
  # the bytes that were written as text
  written = name.encode()
  raw = ESCAPED.sub(_byte, written)
  return pathlib.Path(root) / os.fsdecode(raw)


def _byte(match: re.Match) -> bytes:
  """The byte whose two digits were found."""
  digits = match[1].decode()
  return bytes.fromhex(digits)

"""Folders as people leave them: with links, files of other systems, names of other encodings."""

import os
import pathlib
import re
import sys

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
  passed_over = {"files of other systems (._*, __MACOSX)": 0, "links to nothing": 0}
  foreign, dangling = passed_over
  entered = {_identity(root)}
  links: list[pathlib.Path] = []

  # Real folders first, so that what can be reached both ways has its own name.
  waiting = [root]
  while waiting or links:
    if not waiting:
      link = links.pop(0)
      identity = _identity(link)
      if identity in entered or _holds(link):
        continue
      entered.add(identity)
      waiting.append(link)
    folder = waiting.pop()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
      path = folder / entry.name
      if is_foreign(entry.name):
        passed_over[foreign] += _files_in(path)
      elif entry.is_dir(follow_symlinks=False):
        # below a link there may be what was reached before
        identity = _identity(path)
        if identity not in entered:
          entered.add(identity)
          waiting.append(path)
      elif path.is_dir():
        links.append(path)
      elif path.is_file():
        files.append(path)
      elif path.is_symlink():
        passed_over[dangling] += 1

  for what, count in passed_over.items():
    if count:
      print(f"{shown(root)}: {count} {what} passed over", file=sys.stderr)
  return sorted(files)


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
  raw = ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), name.encode())
  return pathlib.Path(root) / os.fsdecode(raw)

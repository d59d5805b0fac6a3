"""Names that data state, where files are looked for or written by them.

A name is text of whoever made the data: a key of a record, a path in a JSON file. It must never
lead out of the folder that it is used in. `below` is for files that are read, `file_name` for files
that are written.
"""

from collections.abc import Sequence
import hashlib
import os
import pathlib
import re

from sam3d_jax.errors import InputError

PLAIN = re.compile(r"\w[\w.,+@=-]*")
MOST_BYTES = 120  # of a plain name: file systems take 255, and suffixes follow
KEPT = 40  # characters of a name that is not plain
DIGITS = 12  # of the digest that stands for what is not kept
SHOWN = 200  # characters of a name in a message


class Outside(InputError):
  """A name that leads out of its folder, or is none."""


def below(
  root: str | os.PathLike, name: str, *, also: Sequence[str | os.PathLike] = ()
) -> pathlib.Path:
  """The place of `name`, seen from the folder `root`; it need not exist.

  Links are followed before the place is judged, those on the way and the last one.

  Args:
    root: the folder that the name is relative to, and may not lead out of.
    name: as the data state it.
    also: further folders in which the place may lie.

  Raises:
    Outside: the name leads elsewhere, goes round in links, or is no text that a path can hold.
  """
  if not isinstance(name, str) or not name or "\0" in name:
    raise Outside(f"{_shown(name)} names no file")
  place = pathlib.Path(root) / name
  try:
    real = place.resolve()
    allowed = [pathlib.Path(folder).resolve() for folder in (root, *also)]
  # links in a circle; a name that no file system takes
  except (OSError, RuntimeError, ValueError) as error:
    raise Outside(f"{_shown(name)} names no file ({error})") from error
  if not any(real.is_relative_to(folder) for folder in allowed):
    raise Outside(f"{_shown(name)} leads out of {root}")
  return place


def is_plain(name: str) -> bool:
  """Whether a name may be that of a file as it is: letters, digits and .,+@=- behind the first."""
  if not isinstance(name, str) or not PLAIN.fullmatch(name):
    return False
  return len(name.encode("utf-8", "surrogatepass")) <= MOST_BYTES


def file_name(name: str) -> str:
  """The name itself if it is plain, else what can be kept of it and a digest of all of it."""
  if is_plain(name):
    return name
  digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
  # plain ASCII: a letter takes one byte
  words = re.findall(r"[A-Za-z0-9_]+", name)
  kept = "-".join(words)[:KEPT].strip("-")
  return f"{kept or 'name'}-{digest[:DIGITS]}"


def _shown(name: object) -> str:
  """A name as text for a message, cut where it is long."""
  text = repr(name)
  return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

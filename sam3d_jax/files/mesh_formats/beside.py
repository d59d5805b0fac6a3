"""Files that a mesh file names: buffers, material libraries, textures.

Names are written by many tools on many systems: percent-encoded, with backslashes, with a drive
letter of somebody else's machine, in other case than the file has. They are looked for from the
folder of the file that names them; `../` is followed within the folders that `within` states,
absolute paths are not.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import pathlib
import re
import unicodedata
import urllib.parse

from sam3d_jax.errors import Refused

# "https:", "file:", and other schemes; one letter is a drive of Windows
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
DRIVE = re.compile(r"[A-Za-z]:")
# where files may lie that a mesh names, while it is read; None: anywhere
_allowed: contextvars.ContextVar[tuple[pathlib.Path, ...] | None] = contextvars.ContextVar(
  "allowed", default=None
)


@contextlib.contextmanager
def within(*folders: pathlib.Path) -> Iterator[None]:
  """Files that are found inside lie below one of these folders, links followed."""
  token = _allowed.set(tuple(folder.resolve() for folder in folders))
  try:
    yield
  finally:
    _allowed.reset(token)


def find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """The file that `name` means, seen from `folder`; None if there is none.

  The name is taken as it is, then percent-decoded, each first in its own case and then in any. Of
  an absolute path only the last part counts: it is a path of the machine that wrote the file. Empty
  files are passed over: there is nothing in them, or they are no files but windows into the system.
  """
  # nothing is fetched from anywhere
  if SCHEME.match(name) or "\0" in name:
    return None
  decoded = urllib.parse.unquote(name)
  for spelling in dict.fromkeys((name, decoded)):
    for parts in _places(spelling):
      found = _walk(folder, parts)
      if found is not None and _is_allowed(found):
        return found
  return None


def _is_allowed(found: pathlib.Path) -> bool:
  """Whether a file lies where those of the mesh may lie."""
  allowed = _allowed.get()
  if allowed is None:
    return True
  real = found.resolve()
  return any(real.is_relative_to(folder) for folder in allowed)


def needed(folder: pathlib.Path, name: str, *, of: str) -> pathlib.Path:
  """The texture `name` that the file `of` needs. Raises Refused (missing_texture)."""
  found = find(folder, name)
  if found is None:
    raise missing(name, of=of)
  return found


def missing(name: str, *, of: str) -> Refused:
  """A texture that a file names and that is not there."""
  return Refused("missing_texture", f"{of} needs {name!r}, which is not beside it")


def _places(name: str) -> Iterator[list[str]]:
  """Where a name may lie, as parts of a path: as it says, or else right beside."""
  slashed = name.strip().replace("\\", "/")
  parts = [part for part in slashed.split("/") if part not in ("", ".")]
  if not parts:
    return
  has_drive = DRIVE.match(slashed) is not None
  is_absolute = slashed.startswith("/") or has_drive
  if not is_absolute:
    yield parts
  elif parts[-1] != "..":
    yield parts[-1:]


def _walk(folder: pathlib.Path, parts: list[str]) -> pathlib.Path | None:
  """The file at the end of a path, each part in its own case or in any; None if there is none."""
  exact = folder.joinpath(*parts)
  if _has_content(exact):
    return exact

  # Folder by folder, whatever case a name is in.
  place = folder
  for part in parts:
    inner = place / part
    if part != ".." and not inner.exists():
      if not place.is_dir():
        return None
      wanted = _folded(part)
      alike = [entry for entry in place.iterdir() if _folded(entry.name) == wanted]
      if not alike:
        return None
      inner = min(alike)  # the same one on every machine
    place = inner
  return place if _has_content(place) else None


def _folded(name: str) -> str:
  """A name in one case, and with accents as one character: some systems store two."""
  return unicodedata.normalize("NFC", name).casefold()


def _has_content(path: pathlib.Path) -> bool:
  return path.is_file() and path.stat().st_size > 0

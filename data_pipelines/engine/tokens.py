"""The token of a server on this machine: a file that only its user can read, by port.

Whoever may read the file may work: the browser gets the token with the address that the server
prints, programs of the same user find it here.
"""

import contextlib
import os
import pathlib
import secrets
import uuid

HEADER = "x-engine-token"


def file_of(port: int) -> pathlib.Path:
  """Where the token of the server at a port lies."""
  runtime = os.environ.get("XDG_RUNTIME_DIR")
  base = pathlib.Path(runtime) if runtime else pathlib.Path.home() / ".cache"
  return base / "sam3d_engine" / f"{port}.token"


def make(port: int) -> str:
  """A new token for the server at a port, kept for its user's eyes only."""
  path = file_of(port)
  path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
  token = secrets.token_urlsafe(24)
  os.replace(_private(path, token), path)
  return token


def kept_secret(path: pathlib.Path) -> str:
  """The secret in a file that only its user reads, made where there is none yet.

  Of several that make it at once one does; all get the same.
  """
  if not path.exists():
    made = _private(path, secrets.token_urlsafe(32))
    # Another one may have been first: its secret counts.
    with contextlib.suppress(FileExistsError):
      os.link(made, path)
    made.unlink()
  return path.read_text()


def _private(path: pathlib.Path, text: str) -> pathlib.Path:
  """A whole file beside `path`, for its user's eyes only, to take its name."""
  made = path.with_name(f".{path.name}.part{uuid.uuid4().hex}")
  handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  with os.fdopen(handle, "w") as file:
    file.write(text)
  return made


def found(port: int | None) -> str:
  """The token of the server at a port; "" where there is none that this user may read."""
  if port is None:
    return ""
  try:
    return file_of(port).read_text()
  except (FileNotFoundError, PermissionError):
    return ""

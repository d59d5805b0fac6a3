"""The token of a server on this machine: a file that only its user can read, by port.

Whoever may read the file may work: the browser gets the token with the address that the server
prints, programs of the same user find it here.
"""

import os
import pathlib
import secrets

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
  path.unlink(missing_ok=True)
  handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  with os.fdopen(handle, "w") as file:
    file.write(token)
  return token


def found(port: int | None) -> str:
  """The token of the server at a port; "" where there is none that this user may read."""
  if port is None:
    return ""
  try:
    return file_of(port).read_text()
  except (FileNotFoundError, PermissionError):
    return ""

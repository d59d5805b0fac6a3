"""Work folders: made if need be, and known to be writable before anything is computed."""

import os
import pathlib
import platform

from sam3d_jax.errors import InputError


def prepare_workdir(path: str) -> pathlib.Path:
  """The work folder, made if need be. Raises InputError if it cannot be written."""
  workdir = pathlib.Path(path).absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    # several hosts may probe at once
    probe = workdir / f".write_test_{platform.node()}_{os.getpid()}"
    probe.write_text("x")
    probe.unlink()
  except OSError as error:
    raise InputError(
      f"--workdir {path}: {error.strerror}; give a folder on a disk with space that you may write "
      "to"
    ) from error
  return workdir

"""Work folders: made if need be, and known to be writable before anything is computed."""

from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
import platform

from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import blame, locks

RESTARTS = "SLURM_RESTART_COUNT"  # SLURM's variable for how often it has queued a job again

PSEUDO = ("/proc", "/sys")


def output_folder(path: str, *, dry_run: bool, flag: str = "--out") -> pathlib.Path:
  """The folder of a command's results: made and tried, or for a dry run only looked at.

  Raises InputError, naming the flag, if it cannot be written.
  """
  if dry_run:
    return check_folder(path, flag)
  return prepare_workdir(path, flag)


@contextlib.contextmanager
def output_lock(
  path: str, what: str, *, dry_run: bool, flag: str = "--out"
) -> Iterator[pathlib.Path]:
  """`output_folder`, held for this command alone while the block runs. what: its name.

  Raises InputError, and InUse if another process writes there.
  """
  folder = output_folder(path, dry_run=dry_run, flag=flag)
  if dry_run:
    yield folder
    return
  with locks.hold(folder, what):
    try:
      yield folder
    # It could be written a moment ago: a disk that is mounted to be read only after a fault.
    except OSError as error:
      inside = pathlib.Path(os.fsdecode(error.filename or "")).is_relative_to(folder)
      if error.errno not in blame.PERMISSION or not inside:
        raise
      raise JobFailed(
        f"{error}: the disk takes nothing any more; what is done stays, the same command goes on"
      ) from error


def check_folder(path: str | os.PathLike, flag: str = "--workdir") -> pathlib.Path:
  """The folder, absolute, which need not be there; nothing is made. Raises InputError unless it, or
  the nearest one above it, can be written.
  """
  folder = pathlib.Path(path).absolute()
  _check_writable(folder, f"{flag} {path}")
  return folder


def check_file(path: str | os.PathLike, flag: str) -> pathlib.Path:
  """The file, absolute, that a command is to write; nothing is made. Raises InputError if it is a
  folder or lies in none that can be written.
  """
  file = pathlib.Path(path).absolute()
  if file.is_dir():
    raise InputError(f"{flag} {path} is a folder; give the name of a file")
  _check_writable(file.parent, f"{flag} {path}")
  return file


def _check_writable(folder: pathlib.Path, given: str) -> None:
  nearest = folder
  while not nearest.exists():
    nearest = nearest.parent
  may_write = os.access(nearest, os.W_OK) and not is_pseudo(nearest)
  if not nearest.is_dir() or not may_write:
    raise InputError(
      f"{given}: {nearest} is no folder that you may write to; give one on a disk with space"
    )


def is_pseudo(folder: pathlib.Path) -> bool:
  """Whether a folder is a view of the kernel, which keeps no files whatever its rights say."""
  whole = folder.resolve()
  return any(whole.is_relative_to(view) for view in PSEUDO)


def is_begun(workdir: str | os.PathLike) -> bool:
  """Whether a run lies in a work folder: what is wrong with its disks is then no mistake of whoever
  started it, and the next start may end otherwise.
  """
  folder = pathlib.Path(workdir)
  return any((folder / name).exists() for name in ("checkpoints", "goodput.jsonl"))


def restarts(env: Mapping[str, str] = os.environ) -> int:
  """How often a scheduler has started this job again, as far as it says."""
  said = env.get(RESTARTS, "0")
  return int(said) if said.isdigit() else 0


def prepare_workdir(path: str, flag: str = "--workdir") -> pathlib.Path:
  """The work folder, made if need be.

  Raises InputError if it cannot be written; JobFailed if a disk is full, failing or not mounted.
  """
  workdir = pathlib.Path(path).absolute()
  if is_pseudo(workdir):
    _check_writable(workdir, f"{flag} {path}")
  # The first start made it; one that was begun elsewhere must not begin anew beside its mount.
  if restarts() and not workdir.exists():
    raise JobFailed(
      f"{flag} {path} is not there, and this job was started {restarts()} times before: mount its "
      "disk (or make the folder, if no start came so far)"
    )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    # several hosts may probe at once
    probe = workdir / f".write_test_{platform.node()}_{os.getpid()}"
    probe.write_text("x")
    probe.unlink()
  except OSError as error:
    words = (
      f"{flag} {path}: {error.strerror}; give a folder on a disk with space that you may write to"
    )
    if error.errno in blame.DISK or restarts() or is_begun(workdir):
      raise JobFailed(words) from error
    raise InputError(words) from error
  return workdir

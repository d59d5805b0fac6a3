"""Who is to blame for what a reader raised: the file that it read, or the machine."""

from collections.abc import Iterator
import contextlib
import errno
import os

from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import folders

# What the system says of a file itself. Anything else (a bad disk, a full one, no permission) is
# the machine's or its owner's: the file may be in order, and reading it again may succeed.
OF_THE_FILE = (
  None,  # not of the system: decoders say so of broken content
  errno.ENOENT,
  errno.EISDIR,
  errno.ENOTDIR,
  errno.ENAMETOOLONG,
  errno.EINVAL,
  errno.ELOOP,
  errno.ENXIO,  # a socket, or a pipe that nobody writes to
)
# What whoever started the job can give.
PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
# What a disk says of itself.
DISK = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE)


def is_of_the_file(error: BaseException) -> bool:
  """Whether an error that a reader raised says that the file is wrong."""
  if isinstance(error, OSError):
    return error.errno in OF_THE_FILE
  return isinstance(error, Exception) and not isinstance(error, MemoryError)


def said(error: BaseException) -> str:
  """The error in one line, with its kind where its text does not explain itself."""
  lines = str(error).splitlines()
  if not lines:
    return type(error).__name__
  return f"{type(error).__name__}: {lines[0]}"


def explained(error: OSError, path: str | os.PathLike) -> InputError | JobFailed:
  """What the system says of a file or folder that is not to blame, with its name and a remedy."""
  name = folders.shown(error.filename or path)
  why = error.strerror or str(error)
  if error.errno in PERMISSION:
    return InputError(
      f"{name} cannot be read ({why}): give the right to read it, or take it out of the folder"
    )
  return JobFailed(
    f"{name} cannot be read ({why}): the disk is at fault, mend it and run the same command again"
  )


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
  """Explains what keeps a file or folder from being read.

  Raises InputError for a lack of permission, JobFailed for a disk that fails.
  """
  try:
    yield
  except OSError as error:
    raise explained(error, path) from error

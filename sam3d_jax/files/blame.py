"""Who is to blame for what a reader raised: the file that it read, or the machine."""

from collections.abc import Iterator
import contextlib
import errno
import os

from sam3d_jax.errors import DeniedError, InputError, JobFailed
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
# What a full disk says: only somebody who makes room helps.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a process says that has too many files open.
HANDLES = (errno.EMFILE, errno.ENFILE)
# What a disk, or the network before it, says of itself: the same read may succeed later.
DISK = (
  *FULL,
  *HANDLES,
  errno.EIO,
  errno.ESTALE,
  errno.EAGAIN,
  errno.EBUSY,
  errno.ENODEV,
  errno.ENOLCK,
  errno.EREMOTEIO,
  errno.ETIMEDOUT,
  errno.ENOTCONN,
  errno.ECONNRESET,
  errno.ECONNABORTED,
  errno.EHOSTDOWN,
  errno.EHOSTUNREACH,
  errno.ENETDOWN,
  errno.ENETUNREACH,
)
# How libraries that read files by themselves (ArrayRecord, TensorStore) name such a state.
UNAVAILABLE = (
  "UNAVAILABLE",
  "DEADLINE_EXCEEDED",
  "RESOURCE_EXHAUSTED",
  "ABORTED",
)


def is_of_the_file(error: BaseException) -> bool:
  """Whether an error that a reader raised says that the file is wrong."""
  if isinstance(error, OSError):
    return error.errno in OF_THE_FILE
  return isinstance(error, Exception) and not isinstance(error, MemoryError)


def system_errno(error: BaseException) -> int | None:
  """What the system said, as a number of `errno`; None if an error is not the system's.

  Libraries that read files by themselves raise errors of their own that quote the system's words.
  """
  if isinstance(error, OSError):
    return error.errno
  text = str(error)
  for number in (*DISK, *PERMISSION, *OF_THE_FILE):
    if number is not None and os.strerror(number) in text:
      return number
  return None


def is_of_the_disk(error: BaseException) -> bool:
  """Whether an error that a reader raised is the disk's, or the network's: reading again may
  succeed, and nothing is known of the file.
  """
  if system_errno(error) in DISK:
    return True
  return not isinstance(error, OSError) and str(error).startswith(UNAVAILABLE)


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
    return DeniedError(
      f"{name} cannot be read ({why}): give the right to read it, or take it out of the folder"
    )
  if error.errno in HANDLES:
    return JobFailed(
      f"{name} cannot be opened ({why}): raise the limit (ulimit -n) and run the same command again"
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

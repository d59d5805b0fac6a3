"""NumPy files that others have made, read without trust: what a header claims is checked before
memory is taken for it.
"""

import math
import pathlib
from typing import BinaryIO
import zipfile

import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.files import blame

MAX_BYTES = 2**31  # of the arrays of one file
NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"


def read_arrays(path: str | pathlib.Path, name: str) -> np.ndarray | dict[str, np.ndarray]:
  """The array of a .npy file, or the arrays of a .npz file by name; told apart by content.

  Args:
    path: the file.
    name: how messages name it.

  Raises:
    InputError: no such file; objects, damage, or arrays of other sizes than the headers claim.
    OSError: the disk failed, or the file may not be read.
  """
  try:
    with open(path, "rb") as file:
      size = pathlib.Path(path).stat().st_size
      return load(file, size)
  except FileNotFoundError as error:
    raise InputError(f"{name}: no such file") from error
  # zip, zlib and numpy each have their own errors for a damaged file
  except Exception as error:
    if not blame.is_of_the_file(error):
      raise
    raise InputError(f"{name}: not a .npy or .npz file of plain arrays ({error})") from error


def load(file: BinaryIO, size: int) -> np.ndarray | dict[str, np.ndarray]:
  """As read_arrays, of an open file of `size` bytes. Raises what NumPy, zipfile and zlib raise of
  damage, and ValueError for what is not read.
  """
  head = file.read(len(NPY_MAGIC))
  file.seek(0)
  if head.startswith(ZIP_MAGIC):
    return _read_npz(file)
  _check_header(file, size)
  file.seek(0)
  return np.load(file, allow_pickle=False)


def _read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
  """The arrays of an archive. Raises what zipfile, zlib and numpy raise, and ValueError."""
  # All headers, before the first array is read.
  with zipfile.ZipFile(file) as archive:
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
      raise ValueError(f"its arrays take {total:,} bytes; at most {MAX_BYTES:,} are read")
    for member in members:
      with archive.open(member) as stream:
        # NumPy gives other members as bytes
        if stream.peek(len(NPY_MAGIC)).startswith(NPY_MAGIC):
          _check_header(stream, member.file_size)

  file.seek(0)
  with np.load(file, allow_pickle=False) as loaded:
    return {key: loaded[key] for key in loaded.files}


def _check_header(stream: BinaryIO, size: int) -> None:
  """Raises ValueError unless an array of numbers or text starts here that `size` bytes can hold."""
  version = np.lib.format.read_magic(stream)
  read = np.lib.format.read_array_header_2_0
  if version == (1, 0):
    read = np.lib.format.read_array_header_1_0
  try:
    shape, _, dtype = read(stream)
  # Python's parser says so of brackets in brackets
  except (MemoryError, RecursionError) as error:
    raise ValueError("its header is nested too deeply") from error
  if dtype.hasobject:
    raise ValueError("it holds Python objects")
  claimed = math.prod(shape) * dtype.itemsize
  if claimed > size:
    raise ValueError(f"its header claims {claimed:,} bytes, it holds {size:,}")
  if claimed > MAX_BYTES:
    raise ValueError(f"it takes {claimed:,} bytes; at most {MAX_BYTES:,} are read")

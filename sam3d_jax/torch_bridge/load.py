"""Reading published state dicts one entry at a time: PyTorch files (.ckpt, .pt, .pth) and
.safetensors.

A 6 GB file never becomes 12 GB of memory: PyTorch files are mapped, each entry is copied out when
it is asked for and its pages are given back; a safetensors file is read by offset and needs no
PyTorch. `convert` goes on from there to our parameters, a stack of layers at a time, and
`stream.write_params` writes each before the next is made.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import ctypes
import dataclasses
import functools
import hashlib
import json
import math
import mmap
import pathlib
import zipfile

import ml_dtypes
import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.models import parameters
from sam3d_jax.torch_bridge import keys

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
SAFETENSORS_DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}
MAX_SAFETENSORS_HEADER = 100 * 2**20  # the format's own limit
BUFFER_TOLERANCE = 2e-3  # a stored fixed table may have been through fp16


@dataclasses.dataclass(frozen=True)
class StateFile:
  """An opened state dict.

  read: one entry by name, as a fresh array in its stored dtype.
  """

  path: pathlib.Path
  shapes: Mapping[str, tuple[int, ...]]
  dtypes: Mapping[str, np.dtype]
  read: Callable[[str], np.ndarray]


def open_state(path: str | pathlib.Path, *, unsafe_pickle: bool = False) -> StateFile:
  """Opens a state dict by its suffix. Nested `state_dict` roots are entered.

  unsafe_pickle: also accept PyTorch files that can only be read by running what is pickled in them.
  Raises InputError if the file is missing, damaged, of another kind, holds more than tensors, or
  needs a PyTorch that is missing.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f"{path} does not exist")
  if path.suffix == ".safetensors":
    return _open_safetensors(path)
  if path.suffix in TORCH_SUFFIXES:
    return _open_torch(path, unsafe_pickle)
  raise InputError(f"{path}: a state dict is a file ending in {', '.join(SUFFIXES)}")


def file_digest(path: str | pathlib.Path) -> str:
  """SHA-256 of a file's bytes; of one that has not changed since, it is remembered."""
  path = pathlib.Path(path).absolute()
  stat = path.stat()
  return _digest(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: pathlib.Path, size: int, changed_ns: int) -> str:
  """The digest of a file as it was at that time."""
  del size, changed_ns
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def convert(
  rules: Iterable[keys.Rule],
  file: StateFile,
  our_shapes: Mapping[str, tuple[int, ...]],
  sizes: Sequence[keys.Size] = (),
) -> parameters.LazyParams:
  """Our parameters of an opened state dict, read and converted one at a time.

  sizes: keys of the configuration that are named where a file of another size does not fit. Raises
  at once KeyMismatch, listing every missing, unexpected and misshapen entry, and InputError
  for an entry that is not of a floating type or a fixed table that differs from the one this model
  computes.
  """
  # Everything is checked before anything is read.
  rules = list(rules)
  try:
    keys.check(rules, file.shapes, our_shapes, sizes)
  except keys.KeyMismatch as error:
    raise keys.KeyMismatch(f"{file.path}: {error}") from error
  _check_floating(file)
  for rule in rules:
    if rule.ours is None:
      _check_buffer(rule, file)

  rule_of = {rule.ours: rule for rule in rules}

  def make(path: str) -> np.ndarray:
    """One of our parameters as fp32, a stack layer by layer."""
    rule = rule_of[path]
    shape = our_shapes[path]
    if not rule.stacked:
      array = rule.to_ours(file.read(rule.torch), shape)
      return np.asarray(array, np.float32, order="C")
    stack = np.empty(shape, np.float32)
    for layer in range(shape[0]):
      entry = file.read(rule.torch.format(n=layer))
      stack[layer] = rule.to_ours(entry, shape[1:])
    return stack

  return parameters.LazyParams(our_shapes, make)


def _check_floating(file: StateFile) -> None:
  """Parameters are floating point: an integer entry is something else."""
  wrong = []
  for name, dtype in file.dtypes.items():
    floating = dtype == ml_dtypes.bfloat16 or np.issubdtype(dtype, np.floating)
    if not floating:
      wrong.append(f"{name} is {dtype}")
  if wrong:
    raise InputError(f"{file.path}: parameters must be floating point: {', '.join(wrong)}")


def _check_buffer(rule: keys.Rule, file: StateFile) -> None:
  """A fixed table that differs would mean that the file's model computes something else."""
  stored = file.read(rule.torch).astype(np.float32)
  difference = np.abs(stored - rule.buffer()).max()
  if not difference <= BUFFER_TOLERANCE:  # NaN is refused too
    raise InputError(
      f"{file.path}: the fixed table {rule.torch} differs by {difference:.2g} from the one this "
      "model computes"
    )


def require_torch(purpose: str):
  """The torch module. Raises InputError that says how to install it, or to do without."""
  try:
    import torch
  except ImportError as error:
    raise InputError(
      f"{purpose} needs PyTorch, which is not installed ({error}): pip install -r "
      "requirements-torch.txt. "
      "Files ending in .safetensors need no PyTorch."
    ) from error
  return torch


def _open_torch(path: pathlib.Path, unsafe_pickle: bool) -> StateFile:
  """Opens a PyTorch file, mapped where its kind allows it."""
  torch = require_torch(f"reading {path}")
  # files of PyTorch before 1.6 are no zip archives and can only be read whole
  mapped = zipfile.is_zipfile(path)
  try:
    root = torch.load(path, map_location="cpu", weights_only=not unsafe_pickle, mmap=mapped)
  # torch raises UnpicklingError, RuntimeError, EOFError, KeyError, ... for damaged and unsafe files
  except Exception as error:
    raise InputError(_why_not_loaded(torch, path, error, mapped)) from error
  tensors = _state_dict(torch, path, root)

  # Shapes and types are known without reading a value.
  shapes, dtypes = {}, {}
  for name, tensor in tensors.items():
    shapes[name] = tuple(tensor.shape)
    dtypes[name] = _numpy_dtype(torch, tensor.dtype)

  def read(name: str) -> np.ndarray:
    tensor = tensors[name].detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # which NumPy does not know
      bits = tensor.view(torch.uint16).numpy()
      view = bits.view(ml_dtypes.bfloat16)
    else:
      view = tensor.numpy()
    array = np.array(view)  # a copy, so that the mapped pages can go
    if mapped:
      _release_pages(tensors[name])
    return array

  return StateFile(path=path, shapes=shapes, dtypes=dtypes, read=read)


def _numpy_dtype(torch, dtype) -> np.dtype:
  """The NumPy type of a torch type."""
  if dtype == torch.bfloat16:
    return np.dtype(ml_dtypes.bfloat16)
  empty = torch.empty(0, dtype=dtype)
  return empty.numpy().dtype


def _why_not_loaded(torch, path: pathlib.Path, error: Exception, mapped: bool) -> str:
  """Tells a file that would run code from one that is damaged."""
  said = str(error).strip()
  if "Weights only load failed" not in said:
    reason = said.splitlines()[0] if said else type(error).__name__
    return f"{path} cannot be read: {reason}"

  # What it would call: an archive can be asked, an old file has it in the error alone.
  names = []
  if mapped:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
  if names:
    needs = f"it refers to {', '.join(names)}"
  else:
    reason = said.split("WeightsUnpickler error:")[-1]
    needs = reason.strip().splitlines()[0]
  return (
    f"{path} holds more than tensors: {needs}. Loading that would run code chosen by the file's "
    "author; it was not loaded. Ask for a file of plain tensors or .safetensors, or, if you trust "
    "the author, give --unsafe_pickle."
  )


def _state_dict(torch, path: pathlib.Path, root) -> dict:
  """The names and tensors of a loaded file. Raises InputError if it has none, or more than them."""
  # Trainers put the state dict beside epoch, optimiser and so on.
  while isinstance(root, Mapping) and isinstance(root.get("state_dict"), Mapping):
    root = root["state_dict"]
  if not isinstance(root, Mapping):
    raise InputError(f"{path} holds a {type(root).__name__}, not a state dict")

  # Everything in it is a tensor.
  other = []
  for name, value in root.items():
    if not isinstance(value, torch.Tensor):
      other.append(str(name))
  if other:
    raise InputError(f"{path} is no state dict: {', '.join(other[:8])} are no tensors")
  if not root:
    raise InputError(f"{path} is no state dict: it is empty")
  return dict(root)


def _release_pages(tensor) -> None:
  """Drops the mapped file's pages below a tensor from this process.

  They are clean and would be read again if needed.
  """
  if not hasattr(mmap, "MADV_DONTNEED"):
    return
  # Only whole pages can go: from the first that starts in the tensor's storage.
  storage = tensor.untyped_storage()
  first = storage.data_ptr()
  end = first + storage.nbytes()
  start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
  length = (end - start) // mmap.PAGESIZE * mmap.PAGESIZE
  if length > 0:
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _open_safetensors(path: pathlib.Path) -> StateFile:
  """Opens a safetensors file; entries are read by their offset."""
  header, data_start = read_safetensors_header(path)
  shapes, dtypes = {}, {}
  for name, entry in header.items():
    shapes[name] = tuple(entry["shape"])
    dtype = SAFETENSORS_DTYPES[entry["dtype"]]
    dtypes[name] = np.dtype(dtype)

  def read(name: str) -> np.ndarray:
    shape = shapes[name]
    count = math.prod(shape)
    start, _ = header[name]["data_offsets"]
    with open(path, "rb") as file:
      file.seek(data_start + start)
      values = np.fromfile(file, dtypes[name], count)
    return values.reshape(shape)

  return StateFile(path=path, shapes=shapes, dtypes=dtypes, read=read)


def read_safetensors_header(path: pathlib.Path) -> tuple[dict[str, dict], int]:
  """Entries of a safetensors file (name -> dtype, shape, data_offsets) and the data's offset.

  Both are checked against the file's size. Raises InputError if they do not fit it.
  """
  size = path.stat().st_size
  with open(path, "rb") as file:
    # eight bytes say how long the header is
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_SAFETENSORS_HEADER):
      raise InputError(f"{path} is not a safetensors file, or is cut off")
    data_start = 8 + length

    # the header, as JSON: where each entry lies in the data behind it
    try:
      header = json.loads(file.read(length))
      entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
      for name, entry in entries.items():
        _check_safetensors_entry(path, name, entry, size - data_start)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
      raise InputError(f"{path} has a damaged safetensors header: {error!r}") from error
  return entries, data_start


def _check_safetensors_entry(path: pathlib.Path, name: str, entry: dict, data_size: int) -> None:
  """Raises InputError for an unknown type, or a place that is not the entry's size or not there."""
  if entry["dtype"] not in SAFETENSORS_DTYPES:
    raise InputError(
      f"{path}: {name} has dtype {entry['dtype']}, which is not one of "
      f"{', '.join(SAFETENSORS_DTYPES)}"
    )

  # as many bytes as its shape needs, all of them in the file
  dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
  needed = math.prod(entry["shape"]) * dtype.itemsize
  start, end = entry["data_offsets"]
  within_file = 0 <= start <= end <= data_size
  if not within_file or end - start != needed:
    raise InputError(
      f"{path}: {name} needs {needed} bytes at {start}, the file has {data_size} bytes of data; "
      "is it cut off?"
    )

"""Writing published state dicts: .ckpt / .pt with PyTorch, .safetensors without.

Files appear whole or not at all. Storage types. The published code keeps what its `use_fp16`
modules hold: weights and biases of the transformer blocks and inner convolutions in half precision,
norms, embeddings, input and output layers in fp32.

    fp32   every entry float32
    fp16   what the published fp16 modules hold in half (`Rule.half`) float16, the rest float32
    bf16   entries with two or more dimensions bfloat16, vectors and fixed tables float32
"""

import collections
from collections.abc import Iterable, Iterator, Mapping
import io
import json
import math
import pathlib
import pickle
import sys

import ml_dtypes
import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic
from sam3d_jax.torch_bridge import keys, load

STORAGE = ("fp32", "fp16", "bf16")
_SAFETENSORS_NAMES = {np.dtype(v): k for k, v in load.SAFETENSORS_DTYPES.items()}


def storage_dtype(rule: keys.Rule, shape: tuple[int, ...], storage: str) -> np.dtype:
  """Dtype of a published entry under a storage type."""
  if storage not in STORAGE:
    raise InputError(f"storage {storage!r} is not one of {', '.join(STORAGE)}")
  # what the published fp16 modules hold in half
  if storage == "fp16" and rule.half:
    return np.dtype(np.float16)
  # every kernel, neither vectors nor fixed tables
  is_parameter = rule.ours is not None
  if storage == "bf16" and is_parameter and len(shape) >= 2:
    return np.dtype(ml_dtypes.bfloat16)
  return np.dtype(np.float32)


def published_dtypes(
  rules: Iterable[keys.Rule], our_shapes: Mapping[str, tuple[int, ...]], storage: str
) -> dict[str, np.dtype]:
  """Published name -> stored dtype, in file order. Takes no memory."""
  dtypes = {}
  for entry in keys.expand(rules, our_shapes):
    dtypes[entry.name] = storage_dtype(entry.rule, entry.shape, storage)
  return dtypes


def published_entries(
  rules: list[keys.Rule],
  params: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  storage: str,
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (published name, array in its stored dtype), one at a time.

  Raises InputError if a value exceeds the range of fp16.
  """
  for entry in keys.expand(rules, shapes):
    array = entry.array(params)
    dtype = storage_dtype(entry.rule, entry.shape, storage)
    yield entry.name, _cast(entry.name, array, dtype)


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """The array in its stored dtype. Raises InputError for what fp16 cannot hold."""
  if dtype == np.float16:
    sizes = np.abs(array)
    in_range = sizes <= np.finfo(np.float16).max  # NaN is not
    if not in_range.all():
      raise InputError(
        f"{name} has values up to {sizes.max():.3g}, beyond the range of fp16; store it as "
        "bf16 or fp32"
      )
  return np.asarray(array, dtype, order="C")


def write_state(
  path: str | pathlib.Path,
  rules: list[keys.Rule],
  params: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  *,
  storage: str = "fp32",
  root: str | None = None,
) -> None:
  """Writes parameters as a published state dict; the suffix decides the kind of file.

  rules: of everything that goes into the file. params: asked for one path at a time, all layers of
  a stack in a row. shapes: of all of them. root: key of the outer dict that a .ckpt's state dict
  lies under, None for a bare one; .safetensors files are bare. Raises InputError if the suffix is
  unknown or PyTorch is needed and missing, KeyMismatch if rules and parameters do not fit.
  """
  path = pathlib.Path(path)
  keys.check_paths(rules, shapes)
  entries = published_entries(rules, params, shapes, storage)

  if path.suffix == ".safetensors":
    names = keys.torch_names(rules, shapes)
    dtypes = published_dtypes(rules, shapes, storage)
    _write_safetensors(path, names, dtypes, entries)
  elif path.suffix in load.TORCH_SUFFIXES:
    names = keys.torch_names(rules, shapes)
    dtypes = published_dtypes(rules, shapes, storage)
    torch = load.require_torch(f"writing {path}")
    _write_archive(torch, path, names, dtypes, entries, root)
  else:
    raise InputError(
      f"{path}: a state dict is written to a file ending in {', '.join(load.SUFFIXES)}"
    )


class _Storage:
  """Stands for the numbers of an entry, which lie in a record of the archive."""

  def __init__(self, record: int, storage_type: type, size: int):
    self.record, self.storage_type, self.size = record, storage_type, size


class _Tensor:
  """Is pickled as a tensor of these numbers would be."""

  def __init__(self, torch, storage: _Storage, shape: tuple[int, ...]):
    self.rebuild = torch._utils._rebuild_tensor_v2
    self.storage, self.shape = storage, shape

  def __reduce__(self):
    # contiguous: as many numbers from one index to the next as the axes behind it hold
    strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
    hooks = collections.OrderedDict()
    return self.rebuild, (self.storage, 0, self.shape, tuple(strides), False, hooks)


class _Pickler(pickle.Pickler):
  """Writes references to records in place of storages, as `torch.save` does."""

  def persistent_id(self, obj):
    if not isinstance(obj, _Storage):
      return None
    return "storage", obj.storage_type, str(obj.record), "cpu", obj.size


def _write_archive(
  torch,
  path: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  dtypes: Mapping[str, np.dtype],
  entries: Iterable[tuple[str, np.ndarray]],
  root: str | None,
) -> None:
  """What `torch.save` of the state dict would write, entry by entry: one of them in memory at a
  time. `torch.save` itself takes all tensors at once.
  """
  # The tensors without their numbers.
  storage_types = {
    np.dtype(np.float32): torch.FloatStorage,
    np.dtype(np.float16): torch.HalfStorage,
    np.dtype(ml_dtypes.bfloat16): torch.BFloat16Storage,
  }
  state = {}
  for record, (name, shape) in enumerate(shapes.items()):
    storage = _Storage(record, storage_types[dtypes[name]], math.prod(shape))
    state[name] = _Tensor(torch, storage, shape)
  if root is not None:
    state = {root: state}
  described = io.BytesIO()
  _Pickler(described, protocol=torch.serialization.DEFAULT_PROTOCOL).dump(state)

  # The records in torch's order; tensors know no bfloat16 of NumPy, their bytes are the same.
  with atomic.write(path) as temporary:
    with torch.serialization._open_zipfile_writer(str(temporary)) as archive:
      _write_record(archive, "data.pkl", described.getvalue())
      _write_record(archive, "byteorder", sys.byteorder.encode())
      for record, (_, array) in enumerate(entries):
        flat = array.reshape(-1)
        if not flat.flags.writeable:  # torch warns of memory that it may not write to
          flat = flat.copy()
        numbers = torch.from_numpy(flat.view(np.uint8)).untyped_storage()
        archive.write_record(f"data/{record}", numbers, numbers.nbytes())


def _write_record(archive, name: str, data: bytes) -> None:
  """Writes a small record of an archive."""
  archive.write_record(name, data, len(data))


def _write_safetensors(
  path: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  dtypes: Mapping[str, np.dtype],
  entries: Iterable[tuple[str, np.ndarray]],
) -> None:
  """Header first, then entry by entry: one of them in memory at a time."""
  # Where every entry will lie.
  header = {"__metadata__": {"format": "pt"}}
  start = 0
  for name, shape in shapes.items():
    dtype = dtypes[name]
    end = start + math.prod(shape) * dtype.itemsize
    header[name] = {
      "dtype": _SAFETENSORS_NAMES[dtype],
      "shape": list(shape),
      "data_offsets": [start, end],
    }
    start = end
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # the format asks for data aligned to 8 bytes
  length = len(text).to_bytes(8, "little")

  # The entries in that order.
  with atomic.write(path) as temporary, open(temporary, "wb") as file:
    file.write(length + text)
    for _, array in entries:
      # a bfloat16 array has no buffer of its own
      data = array.tobytes() if array.dtype == ml_dtypes.bfloat16 else array.data
      file.write(data)

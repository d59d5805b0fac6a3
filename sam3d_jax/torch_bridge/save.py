"""Writing published state dicts: .ckpt / .pt with PyTorch, .safetensors without.

Files appear whole or not at all. Storage types. The published code keeps what its `use_fp16`
modules hold: weights and biases of the transformer blocks and inner convolutions in half precision,
norms, embeddings, input and output layers in fp32.

    fp32   every entry float32
    fp16   what the published fp16 modules hold in half (`Rule.half`) float16, the rest float32
    bf16   entries with two or more dimensions bfloat16, vectors and fixed tables float32
"""

from collections.abc import Iterable, Iterator, Mapping
import json
import math
import pathlib

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
    # entry by entry
    names = keys.torch_names(rules, shapes)
    dtypes = published_dtypes(rules, shapes, storage)
    _write_safetensors(path, names, dtypes, entries)
  elif path.suffix in load.TORCH_SUFFIXES:
    # as a whole, which is how PyTorch writes
    torch = load.require_torch(f"writing {path}")
    state = {name: _tensor(torch, array) for name, array in entries}
    if root is not None:
      state = {root: state}
    with atomic.write(path) as temporary:
      torch.save(state, temporary)
  else:
    raise InputError(
      f"{path}: a state dict is written to a file ending in {', '.join(load.SUFFIXES)}"
    )


def _tensor(torch, array: np.ndarray):
  """The array as a tensor, in the same memory where torch may write to it."""
  if array.dtype == ml_dtypes.bfloat16:
    bits = array.view(np.uint16)
    return torch.from_numpy(bits).view(torch.bfloat16)
  if not array.flags.writeable:
    array = array.copy()
  return torch.from_numpy(array)


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

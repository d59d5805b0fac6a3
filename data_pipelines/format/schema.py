"""The record format: every field of every dataset, stated once.

An example is a flat dict with the fields of `features()`; `camera` is a dict of its own. A
preference example is the winner's example with `generator` and a list `losers`. A field that an
example lacks has length zero (arrays, bytes, text) or is NaN (fixed-size floats) or -1 (integers);
`is_present` is the only judge of that, and nothing absent may be trained on.

Frames: the camera frame is x left, y up, z forward; the object lives in the unit cube [-0.5,
0.5]^3, z up. A pose takes object points to the camera by

    p_camera = R @ (scale * p_object) + translation        (column vectors; metres where known)

so `rotation` is R with its columns the object's axes seen from the camera, as in
`sam3d_jax.geometry.pose.Pose`.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any
import zlib

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from sam3d_jax.content_keys import example_key, key_words  # noqa: F401 (records are keyed by them)
from sam3d_jax.errors import InputError
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose

VERSION = "1.2.0"  # of the fields below; readers refuse datasets of another major version
# fields that older datasets lack (the first came with 1.1.0); they read as absent
ADDED = ("image_delit", "alpha", "depth")
MAX_FIELD = 1 << 28  # bytes of a field that is stored compressed: a point map of 44 million pixels
VOXEL_RESOLUTION = 64
SLAT_CHANNELS = 8
# largest coordinate that a point map holds; points beyond it are stored as unknown
POINTMAP_MAX = float(np.finfo(np.float16).max)
CAMERA_LENGTHS = ("fx", "fy", "cx", "cy")  # pixels
CAMERA_SIZES = ("width", "height")  # pixels
POSE_FIELDS = ("rotation", "translation", "scale")

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RecordKind:
  """One kind of record.

  losers: whether it is the winner of comparisons: it has `generator` and a list `losers` beside the
  fields of every example.
  """

  losers: bool = False


KINDS: dict[str, RecordKind] = {
  "example": RecordKind(),
  "preference": RecordKind(losers=True),
}


class SchemaError(InputError):
  """An example does not have the form that `features` prescribes; the message names the field, the
  expected and the got.
  """


def _tensor(shape: tuple[int | None, ...], dtype: type, doc: str) -> tfds.features.Tensor:
  # Raw bytes are the cheapest to write and read. With several unknown dimensions TFDS cannot read
  # an empty array back from raw bytes (it cuts the stored shape to the number of bytes), from
  # compressed ones it can.
  encodings = {0: "none", 1: "bytes"}
  open_dimensions = shape.count(None)
  encoding = encodings.get(open_dimensions, "zlib")
  feature = tfds.features.Tensor(
    shape=shape,
    dtype=dtype,
    encoding=encoding,
    doc=doc,
  )
  # TFDS itself inflates whatever it is given.
  if encoding == "zlib":
    feature.decode_example_np = functools.partial(_inflated, shape, np.dtype(dtype))
  return feature


def _inflated(
  shape: tuple[int | None, ...], dtype: np.dtype, stored: Mapping[str, Any]
) -> np.ndarray:
  """The array of a compressed field, of the size that it states. Raises SchemaError for another, or
  one beyond MAX_FIELD.
  """
  lengths = []
  for known, length in zip(shape, stored["shape"], strict=True):
    lengths.append(int(length) if known is None else known)
  needed = math.prod(lengths) * dtype.itemsize
  if min(lengths) < 0 or needed > MAX_FIELD:
    raise SchemaError(f"a field of shape {lengths} takes more than {MAX_FIELD} bytes")

  # One byte more than is needed tells whether there are more.
  data = zlib.decompressobj().decompress(stored["value"], needed + 1)
  if len(data) != needed:
    raise SchemaError(f"a field of shape {lengths} holds {len(data)} bytes or more, not {needed}")
  return np.frombuffer(data, dtype).reshape(lengths)


def _encoded(doc: str) -> tfds.features.Tensor:
  # An Image feature would decode on every read and cannot be empty.
  return tfds.features.Tensor(
    shape=(),
    dtype=np.object_,
    doc=doc,
  )


def _scalar(dtype: type, doc: str) -> tfds.features.Scalar:
  return tfds.features.Scalar(dtype, doc=doc)


def _camera_fields() -> dict[str, tfds.features.Scalar]:
  # Floats and integers apart: readers compare types.
  fields = {}
  for name in CAMERA_LENGTHS:
    fields[name] = _scalar(np.float32, f"{name} of the pinhole camera, pixels of `image`")
  for name in CAMERA_SIZES:
    fields[name] = _scalar(np.int32, f"{name} that fx, fy, cx, cy refer to, pixels")
  return fields


def _example_fields() -> dict[str, Any]:
  text = tfds.features.Text
  return {
    "key": text(doc="stable content key of the example"),
    "source": text(doc="dataset or builder that the example comes from"),
    "view": _scalar(np.int32, "index of the view among those of its mesh, -1 if there is only one"),
    "image": _encoded("encoded sRGB image (PNG or JPEG)"),
    "image_delit": _encoded(
      "as `image`, the object in its base colour: ambient light only, no shading, no shadow"
    ),
    "alpha": _encoded("PNG, coverage of each pixel by the object, 0..255, size of `image`"),
    "depth": _tensor(
      (None, None),
      np.float16,
      "H x W depth along the camera's axis at the pixels of `image`, NaN where nothing is",
    ),
    "mask": _encoded("PNG, visible part of the object, non-zero inside, size of `image`"),
    "mask_full": _encoded("PNG, the object as if nothing stood before it"),
    "pointmap": _tensor(
      (None, None, 3), np.float16, "H x W x 3 points in the camera frame, NaN where unknown"
    ),
    "camera": _camera_fields(),
    "voxels": _tensor(
      (None, 3),
      np.uint8,
      "N x 3 surface voxels in the 64^3 grid, lexicographic order, object frame",
    ),
    "structure_latent": _tensor(
      (None,) * 4, np.float32, "X x Y x Z x C mean of the structure encoder"
    ),
    "structure_latent_autoencoder": text(
      doc="digest of the autoencoder that made `structure_latent`"
    ),
    "slat": _tensor(
      (None, SLAT_CHANNELS),
      np.float16,
      "N x 8 structured latent, one row a voxel, in the order of `voxels`",
    ),
    "slat_autoencoder": text(doc="digest of the autoencoder that made `slat`"),
    "rotation": _tensor((3, 3), np.float32, "object to camera, acts on column vectors"),
    "translation": _tensor((3,), np.float32, "of the object's origin, camera frame"),
    "scale": _tensor((3,), np.float32, "of the unit cube along the object's axes"),
    "rating": _scalar(np.float32, "annotators' quality rating"),
    "mesh_key": text(doc="content key of the mesh"),
    "license": text(doc="licence of the mesh and, where it differs, of the image"),
    "lineage": text(doc="JSON: renderer, seeds, versions, parents"),
  }


# Losers are stored one column a field. How a column is joined depends on the field:
LOSER_ROWS = ("voxels", "structure_latent", "slat")  # end to end, with the rows of each
LOSER_TEXTS = ("structure_latent_autoencoder", "slat_autoencoder", "generator")  # comma-separated
LOSER_FIELDS = (
  "voxels",
  "structure_latent",
  "structure_latent_autoencoder",
  "slat",
  "slat_autoencoder",
  "rotation",
  "translation",
  "scale",
  "generator",
)


def _loser_fields() -> dict[str, Any]:
  """Losers lie one after another: TFDS without TensorFlow cannot read ragged arrays inside a
  sequence.
  """
  count = "rows of each loser, 0 where a loser has none"
  return {
    "voxels": _tensor((None, 3), np.uint8, "all losers' voxels"),
    "voxels_count": _tensor((None,), np.int32, count),
    "structure_latent": _tensor(
      (None,) * 4, np.float32, "all losers' latents along the first axis"
    ),
    "structure_latent_count": _tensor((None,), np.int32, count),
    "structure_latent_autoencoder": tfds.features.Text(doc="one digest a loser, comma-separated"),
    "slat": _tensor((None, SLAT_CHANNELS), np.float16, "all losers' structured latents"),
    "slat_count": _tensor((None,), np.int32, count),
    "slat_autoencoder": tfds.features.Text(doc="one digest a loser, comma-separated"),
    "rotation": _tensor((None, 3, 3), np.float32, "one pose a loser, NaN if it has none"),
    "translation": _tensor((None, 3), np.float32, "as rotation"),
    "scale": _tensor((None, 3), np.float32, "as rotation"),
    "generator": tfds.features.Text(doc="one generator a loser, comma-separated"),
  }


def lookup(kind: str) -> RecordKind:
  """The entry of that name. Raises ValueError."""
  if kind not in KINDS:
    raise ValueError(f"kind {kind!r} is not one of {tuple(KINDS)}")
  return KINDS[kind]


@functools.cache
def features(kind: str = "example") -> tfds.features.FeaturesDict:
  """The fields as stored. `kind` is one of KINDS."""
  # Cached: TFDS builds them slowly, and every record needs them.
  fields = _example_fields()
  if lookup(kind).losers:
    fields["generator"] = tfds.features.Text(doc="model that made the winner")
    fields["losers"] = _loser_fields()
  return tfds.features.FeaturesDict(fields)


def _empty_value(feature: tfds.features.FeatureConnector) -> Any:
  if isinstance(feature, tfds.features.FeaturesDict):
    return {name: _empty_value(inner) for name, inner in feature.items()}
  # No length is the mark of absence.
  if isinstance(feature, tfds.features.Text):
    return ""
  if feature.np_dtype == np.object_:
    return b""

  # NaN for numbers of a fixed size, -1 for an index, length zero for the rest
  is_scalar = feature.shape == ()
  fill = 0
  if np.issubdtype(feature.np_dtype, np.floating):
    fill = np.nan
  elif is_scalar:
    fill = -1
  smallest = [length or 0 for length in feature.shape]
  value = np.full(smallest, fill, feature.np_dtype)
  return value[()] if is_scalar else value


def empty_example(kind: str = "example") -> Example:
  """An example in which every field is absent; builders fill in what they have."""
  example = {}
  for name, feature in features(kind).items():
    # in memory losers are a list, stored they are columns
    example[name] = [] if name == "losers" else _empty_value(feature)
  return example


def empty_loser() -> Example:
  """A loser of a preference example in which every field is absent."""
  example = empty_example("preference")
  return {name: example[name] for name in LOSER_FIELDS}


def is_present(example: Mapping[str, Any], field: str) -> bool:
  """Whether `example` (or a loser) has `field`. Every mask of the losses rests on this function.

  Raises KeyError for a field that the example does not know at all.
  """
  if field not in example:
    known = ", ".join(sorted(example))
    raise KeyError(f"no field {field!r}; known: {known}")
  value = example[field]
  if field == "camera":
    return _camera_is_present(value)
  if isinstance(value, (bytes, str, list)):
    return len(value) > 0

  # numbers: an index is not negative, what has a fixed size is not NaN, an array is not empty
  value = np.asarray(value)
  is_integer = np.issubdtype(value.dtype, np.integer)
  if is_integer and value.ndim == 0:
    return bool(value >= 0)
  if field in POSE_FIELDS or field == "rating":
    return bool(np.isfinite(value).all())
  return value.size > 0


def _camera_is_present(camera: Mapping[str, Any]) -> bool:
  # A camera is there with all of its numbers or not at all.
  for name in CAMERA_LENGTHS:
    if not np.isfinite(camera[name]):
      return False
  return all(camera[name] > 0 for name in CAMERA_SIZES)


def example_pose(example: Mapping[str, Any]) -> Pose:
  """The pose of an example (or loser) that has one."""
  return Pose(
    rotation=np.asarray(example["rotation"], np.float32),
    translation=np.asarray(example["translation"], np.float32),
    scale=np.asarray(example["scale"], np.float32),
  )


def pose_fields(pose: Pose) -> dict[str, np.ndarray]:
  """The fields of a record that state a pose; the inverse of `example_pose`."""
  rotation = np.asarray(pose.rotation)
  translation = np.asarray(pose.translation)
  scale = np.asarray(pose.scale)
  # Poses are computed in double precision and stored in single.
  return {
    "rotation": rotation.astype(np.float32),
    "translation": translation.astype(np.float32),
    "scale": scale.astype(np.float32),
  }


def camera_field(camera: Camera) -> dict[str, Any]:
  """The field `camera` of a record."""
  field: dict[str, Any] = {}
  for name in CAMERA_LENGTHS:
    field[name] = np.float32(getattr(camera, name))
  for name in CAMERA_SIZES:
    field[name] = np.int32(getattr(camera, name))
  return field


def check_example(example: Mapping[str, Any], kind: str = "example") -> None:
  """Raises SchemaError naming every field that is missing, unknown, or of another type or shape
  than prescribed.
  """
  # the fields there are
  expected = features(kind)
  problems = []
  for name in expected:
    if name not in example:
      problems.append(f"field {name!r} is missing")
  for name in example:
    if name not in expected:
      problems.append(f"field {name!r} is unknown")

  # what they hold; losers are looked at one by one
  for name, feature in expected.items():
    if name in example and name != "losers":
      problems += _problems(name, feature, example[name])
  if lookup(kind).losers:
    losers = example.get("losers", ())
    for index, loser in enumerate(losers):
      problems += _loser_problems(f"losers[{index}]", loser, expected)

  if problems:
    key = example.get("key", "?")
    found = "; ".join(problems)
    raise SchemaError(f"example {key!r} does not fit schema {VERSION} ({kind}): {found}")


def _loser_problems(
  place: str, loser: Mapping[str, Any], expected: tfds.features.FeaturesDict
) -> list[str]:
  """What is wrong with one loser; `place` is its name in messages."""
  problems = []
  for name in LOSER_FIELDS:
    if name not in loser:
      problems.append(f"{place}: field {name!r} is missing")
  for name in LOSER_FIELDS:
    if name in loser:
      problems += _problems(f"{place}.{name}", expected[name], loser[name])

  # generators are stored comma-separated
  generator = loser.get("generator", "")
  if "," in generator:
    problems.append(f"field {place}.generator: expected a name without comma, got {generator!r}")
  return problems


def _problems(name: str, feature: tfds.features.FeatureConnector, value: Any) -> list[str]:
  """What is wrong with the value of one field."""
  # a dict: its keys, then what they hold
  if isinstance(feature, tfds.features.FeaturesDict):
    is_dict = isinstance(value, Mapping)
    if not is_dict or set(value) != set(feature):
      got = sorted(value) if is_dict else repr(value)
      return [f"field {name!r}: expected a dict of {sorted(feature)}, got {got}"]
    problems = []
    # Names in messages lead to the field: camera.fx.
    for key, inner in feature.items():
      problems += _problems(f"{name}.{key}", inner, value[key])
    return problems

  # text and encoded bytes
  is_text = isinstance(feature, tfds.features.Text)
  if is_text or feature.np_dtype == np.object_:
    wanted = str if is_text else bytes
    if isinstance(value, wanted):
      return []
    got = type(value).__name__
    return [f"field {name!r}: expected {wanted.__name__}, got {got}"]

  # Arrays and numbers. Python's own numbers have no type to compare; NumPy's must have the stored.
  array = np.asarray(value)
  is_python_number = isinstance(value, (int, float))
  typed = is_python_number or array.dtype == feature.np_dtype
  if typed and _fits(array.shape, feature.shape):
    return []
  drawn = tuple("*" if length is None else length for length in feature.shape)
  dtype = np.dtype(feature.np_dtype)
  return [f"field {name!r}: expected {dtype} {drawn}, got {array.dtype} {array.shape}"]


def _fits(shape: tuple[int, ...], prescribed: tuple[int | None, ...]) -> bool:
  """Whether an array of this shape may be stored; None is any length."""
  if len(shape) != len(prescribed):
    return False
  # Dimension by dimension.
  pairs = zip(prescribed, shape, strict=True)
  return all(wanted is None or wanted == length for wanted, length in pairs)


def _join_losers(losers: list[Example]) -> dict[str, Any]:
  """The columns in which losers are stored."""
  # What a column holds where there is no loser.
  empty = _empty_value(features("preference")["losers"])
  joined = {}
  for name in LOSER_FIELDS:
    values = [loser[name] for loser in losers]
    if name in LOSER_TEXTS:
      joined[name] = ",".join(values)
    elif name in LOSER_ROWS:
      # an empty array may have no shape to be joined with
      filled = [value for value in values if len(value)]
      counts = [len(value) for value in values]
      joined[name] = np.concatenate(filled) if filled else empty[name]
      joined[name + "_count"] = np.array(counts, np.int32)
    else:
      joined[name] = np.stack(values) if values else empty[name]
  return joined


def _split_losers(joined: Mapping[str, Any]) -> list[Example]:
  """The inverse of _join_losers."""
  # As many as there are poses: each has one, if only NaN.
  losers: list[Example] = [{} for _ in joined["rotation"]]
  for name in LOSER_FIELDS:
    values = joined[name]
    if name in LOSER_TEXTS:
      values = values.split(",")
    elif name in LOSER_ROWS:
      ends = np.cumsum(joined[name + "_count"])
      values = np.split(values, ends[:-1])
    # joining no text at all gives one empty entry
    for loser, value in zip(losers, values, strict=False):
      loser[name] = value
  return losers


@functools.cache
def _serialiser(kind: str) -> example_serializer.ExampleSerializer:
  stored_as = features(kind).get_serialized_info()
  return example_serializer.ExampleSerializer(stored_as)


def serialise(example: Example, kind: str = "example") -> bytes:
  """One example as bytes, equal for equal ones. Raises SchemaError if it does not fit."""
  check_example(example, kind)
  if lookup(kind).losers:
    columns = _join_losers(example["losers"])
    example = example | {"losers": columns}
  encoded = features(kind).encode_example(example)
  proto = _serialiser(kind).get_tf_example(encoded)
  return proto.SerializeToString(deterministic=True)  # a proto map has no order of its own


@functools.cache
def _partial_features(kind: str, skip: frozenset[str]) -> tfds.features.FeaturesDict:
  kept = {name: feature for name, feature in features(kind).items() if name not in skip}
  return tfds.features.FeaturesDict(kept)


def deserialise(
  record: bytes, kind: str = "example", *, skip: frozenset[str] = frozenset()
) -> Example:
  """Inverse of `serialise`. Fields in `skip` are not decoded, which saves their time, and come back
  absent.

  Raises SchemaError if the bytes are no record of this schema.
  """
  try:
    wanted = _partial_features(kind, skip)
    stored = wanted.deserialize_example_np(record)
    example = _decode_text(wanted, stored)
    if "losers" in wanted:
      example["losers"] = _split_losers(example["losers"])
    if not skip:
      return example
    # what was not decoded reads as absent
    return empty_example(kind) | example
  # protobuf and TFDS raise many kinds; to a reader they all mean a broken record
  except Exception as error:
    cause = f"{type(error).__name__}: {error}"
    raise SchemaError(f"not a record of schema {VERSION} ({kind}): {cause}") from error


def _decode_text(feature: tfds.features.FeaturesDict, example: Mapping[str, Any]) -> Example:
  """The example with text as str; TFDS gives bytes."""
  decoded = {}
  for name, inner in feature.items():
    # Nested dictionaries have text of their own.
    value = example[name]
    if isinstance(inner, tfds.features.FeaturesDict):
      value = _decode_text(inner, value)
    elif isinstance(inner, tfds.features.Text):
      value = value.decode()
    decoded[name] = value
  return decoded

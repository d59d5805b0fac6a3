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
import functools
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from sam3d_jax.content_keys import example_key, key_words  # noqa: F401 (records are keyed by them)
from sam3d_jax.errors import InputError
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose

VERSION = "1.1.0"  # of the fields below; readers refuse datasets of another major version
ADDED = ("image_delit",)  # fields that datasets of 1.0.0 lack; they read as absent
KINDS = ("example", "preference")
VOXEL_RESOLUTION = 64
SLAT_CHANNELS = 8

Example = dict[str, Any]


class SchemaError(InputError):
  """An example does not have the form that `features` prescribes; the message names the field, the
  expected and the got.
  """


def _tensor(shape: tuple[int | None, ...], dtype: type, doc: str) -> tfds.features.Tensor:
  # Raw bytes are the cheapest to write and read. With several unknown dimensions TFDS cannot read
  # an empty array back from raw bytes (it cuts the stored shape to the number of bytes), from
  # compressed ones it can.
  unknown = shape.count(None)
  encoding = "none" if unknown == 0 else "bytes" if unknown == 1 else "zlib"
  return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding, doc=doc)


def _encoded(doc: str) -> tfds.features.Tensor:
  # An Image feature would decode on every read and cannot be empty.
  return tfds.features.Tensor(shape=(), dtype=np.object_, doc=doc)


def _scalar(dtype: type, doc: str) -> tfds.features.Scalar:
  return tfds.features.Scalar(dtype, doc=doc)


def _camera_fields() -> dict[str, tfds.features.Scalar]:
  lengths = {
    name: _scalar(np.float32, f"{name} of the pinhole camera, pixels of `image`")
    for name in ("fx", "fy", "cx", "cy")
  }
  sizes = {
    name: _scalar(np.int32, f"{name} that fx, fy, cx, cy refer to, pixels")
    for name in ("width", "height")
  }
  return lengths | sizes


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


@functools.cache
def features(kind: str = "example") -> tfds.features.FeaturesDict:
  """The fields as stored. `kind` is "example" or "preference"."""
  if kind not in KINDS:
    raise ValueError(f"kind {kind!r} is not one of {KINDS}")
  fields = _example_fields()
  if kind == "preference":
    fields["generator"] = tfds.features.Text(doc="model that made the winner")
    fields["losers"] = _loser_fields()
  return tfds.features.FeaturesDict(fields)


def _empty_value(feature: tfds.features.FeatureConnector) -> Any:
  if isinstance(feature, tfds.features.FeaturesDict):
    return {name: _empty_value(inner) for name, inner in feature.items()}
  if isinstance(feature, tfds.features.Text):
    return ""
  if feature.np_dtype == np.object_:
    return b""
  fill = (
    np.nan if np.issubdtype(feature.np_dtype, np.floating) else -1 if feature.shape == () else 0
  )
  value = np.full([n or 0 for n in feature.shape], fill, feature.np_dtype)
  return value[()] if feature.shape == () else value


def empty_example(kind: str = "example") -> Example:
  """An example in which every field is absent; builders fill in what they have."""
  example = {
    name: _empty_value(feature) for name, feature in features(kind).items() if name != "losers"
  }
  return example | {"losers": []} if kind == "preference" else example


def empty_loser() -> Example:
  """A loser of a preference example in which every field is absent."""
  example = empty_example("preference")
  return {name: example[name] for name in LOSER_FIELDS}


def is_present(example: Mapping[str, Any], field: str) -> bool:
  """Whether `example` (or a loser) has `field`. Every mask of the losses rests on this function.

  Raises KeyError for a field that the example does not know at all.
  """
  if field not in example:
    raise KeyError(f"no field {field!r}; known: {', '.join(sorted(example))}")
  value = example[field]
  if field == "camera":
    return bool(
      all(np.isfinite(value[n]) for n in ("fx", "fy", "cx", "cy"))
      and value["width"] > 0
      and value["height"] > 0
    )
  if isinstance(value, (bytes, str, list)):
    return len(value) > 0
  value = np.asarray(value)
  if np.issubdtype(value.dtype, np.integer) and value.ndim == 0:
    return bool(value >= 0)
  if field in ("rotation", "translation", "scale", "rating"):
    return bool(np.isfinite(value).all())
  return value.size > 0


def example_pose(example: Mapping[str, Any]) -> Pose:
  """The pose of an example (or loser) that has one."""
  return Pose(
    np.asarray(example["rotation"], np.float32),
    np.asarray(example["translation"], np.float32),
    np.asarray(example["scale"], np.float32),
  )


def pose_fields(pose: Pose) -> dict[str, np.ndarray]:
  """The fields of a record that state a pose; the inverse of `example_pose`."""
  return {
    "rotation": np.asarray(pose.rotation).astype(np.float32),
    "translation": np.asarray(pose.translation).astype(np.float32),
    "scale": np.asarray(pose.scale).astype(np.float32),
  }


def camera_field(camera: Camera) -> dict[str, Any]:
  """The field `camera` of a record."""
  lengths = {name: np.float32(getattr(camera, name)) for name in ("fx", "fy", "cx", "cy")}
  return lengths | {"width": np.int32(camera.width), "height": np.int32(camera.height)}


def check_example(example: Mapping[str, Any], kind: str = "example") -> None:
  """Raises SchemaError naming every field that is missing, unknown, or of another type or shape
  than prescribed.
  """
  expected = features(kind)
  problems = [f"field {n!r} is missing" for n in expected if n not in example]
  problems += [f"field {n!r} is unknown" for n in example if n not in expected]
  for name, feature in expected.items():
    if name in example and name != "losers":
      problems += _problems(name, feature, example[name])
  for i, loser in enumerate(example.get("losers", ())):
    problems += [f"losers[{i}]: field {n!r} is missing" for n in LOSER_FIELDS if n not in loser]
    problems += [
      p
      for n in LOSER_FIELDS
      if n in loser
      for p in _problems(f"losers[{i}].{n}", expected[n], loser[n])
    ]
    if "," in loser.get("generator", ""):
      problems.append(
        f"field losers[{i}].generator: expected a name without comma, got {loser['generator']!r}"
      )
  if problems:
    raise SchemaError(
      f"example {example.get('key', '?')!r} does not fit schema {VERSION} ({kind}): "
      + "; ".join(problems)
    )


def _problems(name: str, feature: tfds.features.FeatureConnector, value: Any) -> list[str]:
  if isinstance(feature, tfds.features.FeaturesDict):
    if not isinstance(value, Mapping) or set(value) != set(feature):
      got = sorted(value) if isinstance(value, Mapping) else repr(value)
      return [f"field {name!r}: expected a dict of {sorted(feature)}, got {got}"]
    return [
      p for inner, f in feature.items() for p in _problems(f"{name}.{inner}", f, value[inner])
    ]
  if isinstance(feature, tfds.features.Text) or feature.np_dtype == np.object_:
    wanted = str if isinstance(feature, tfds.features.Text) else bytes
    return (
      []
      if isinstance(value, wanted)
      else [f"field {name!r}: expected {wanted.__name__}, got {type(value).__name__}"]
    )
  shape = feature.shape
  got = np.asarray(value)
  fits = got.ndim == len(shape) and all(
    n is None or n == m for n, m in zip(shape, got.shape, strict=True)
  )
  # Python numbers have no type of their own; arrays and numpy scalars must have the stored one.
  typed = isinstance(value, (int, float)) or got.dtype == feature.np_dtype
  if fits and typed:
    return []
  drawn = tuple("*" if n is None else n for n in shape)
  return [
    f"field {name!r}: expected {np.dtype(feature.np_dtype)} {drawn}, got {got.dtype} {got.shape}"
  ]


def _join_losers(losers: list[Example]) -> dict[str, Any]:
  columns = {name: [loser[name] for loser in losers] for name in LOSER_FIELDS}
  joined = {}
  empty = _empty_value(features("preference")["losers"])
  for name, values in columns.items():
    if name in ("generator", "structure_latent_autoencoder", "slat_autoencoder"):
      joined[name] = ",".join(values)
    elif name in ("rotation", "translation", "scale"):
      joined[name] = np.stack(values) if values else empty[name]
    else:
      full = [v for v in values if len(v)]
      joined[name] = np.concatenate(full) if full else empty[name]
      joined[name + "_count"] = np.array([len(v) for v in values], np.int32)
  return joined


def _split_losers(joined: Mapping[str, Any]) -> list[Example]:
  count = len(joined["rotation"])
  losers: list[Example] = [{} for _ in range(count)]
  for name in LOSER_FIELDS:
    if name in ("generator", "structure_latent_autoencoder", "slat_autoencoder"):
      values = joined[name].split(",")
    elif name in ("rotation", "translation", "scale"):
      values = joined[name]
    else:
      values = np.split(joined[name], np.cumsum(joined[name + "_count"])[:-1])
    # joining no text at all gives one empty entry
    for loser, value in zip(losers, values, strict=False):
      loser[name] = value
  return losers


@functools.cache
def _serialiser(kind: str) -> example_serializer.ExampleSerializer:
  return example_serializer.ExampleSerializer(features(kind).get_serialized_info())


def serialise(example: Example, kind: str = "example") -> bytes:
  """One example as bytes, equal for equal ones. Raises SchemaError if it does not fit."""
  check_example(example, kind)
  if kind == "preference":
    example = example | {"losers": _join_losers(example["losers"])}
  proto = _serialiser(kind).get_tf_example(features(kind).encode_example(example))
  return proto.SerializeToString(deterministic=True)  # a proto map has no order of its own


@functools.cache
def _partial_features(kind: str, skip: frozenset[str]) -> tfds.features.FeaturesDict:
  return tfds.features.FeaturesDict(
    {name: feature for name, feature in features(kind).items() if name not in skip}
  )


def deserialise(
  record: bytes, kind: str = "example", *, skip: frozenset[str] = frozenset()
) -> Example:
  """Inverse of `serialise`. Fields in `skip` are not decoded, which saves their time, and come back
  absent.

  Raises SchemaError if the bytes are no record of this schema.
  """
  try:
    wanted = _partial_features(kind, skip)
    example = _decode_text(wanted, wanted.deserialize_example_np(record))
    if "losers" in wanted:
      example["losers"] = _split_losers(example["losers"])
    return empty_example(kind) | example if skip else example
  # protobuf and TFDS raise many kinds; to a reader they all mean a broken record
  except Exception as error:
    raise SchemaError(
      f"not a record of schema {VERSION} ({kind}): {type(error).__name__}: {error}"
    ) from error


def _decode_text(feature: tfds.features.FeaturesDict, example: Mapping[str, Any]) -> Example:
  decoded = {}
  for name, inner in feature.items():
    value = example[name]
    if isinstance(inner, tfds.features.FeaturesDict):
      value = _decode_text(inner, value)
    elif isinstance(inner, tfds.features.Text):
      value = value.decode()
    decoded[name] = value
  return decoded

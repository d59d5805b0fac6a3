"""Primitives of glTF 2.0: triangles in every mode, attributes of every type, morph targets, Draco.

A primitive is read once, however many nodes draw it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from sam3d_jax.files.mesh_formats import gltf_accessors, gltf_codecs
from sam3d_jax.files.mesh_formats.gltf_document import Document, extension, is_count, wrong

POINTS, TRIANGLES, STRIP, FAN = 0, 4, 5, 6
SURFACES = (TRIANGLES, STRIP, FAN)
DRACO = "KHR_draco_mesh_compression"


@dataclasses.dataclass(frozen=True)
class Primitive:
  """One drawing of a mesh in the mesh's own frame; of points, `faces` is empty."""

  positions_V3: np.ndarray  # float64
  faces_F3: np.ndarray  # int64
  uv_sets: Mapping[int, np.ndarray]  # number of a set -> (V, 2) float64, origin upper left
  colours_V4: np.ndarray | None  # float64 linear with alpha
  joints_VJ: np.ndarray | None  # int64, numbers of a skin's joints
  weights_VJ: np.ndarray | None  # float64, 1 in all
  material: Any  # number of a material, or None
  # morph targets: what each adds to attributes, by their names in glTF
  targets: tuple[Mapping[str, np.ndarray], ...] = ()

  def morphed(self, weights: Sequence[float]) -> "Primitive":
    """With its morph targets added, each with its weight."""
    positions, colours, uv_sets = self.positions_V3, self.colours_V4, dict(self.uv_sets)
    for weight, target in zip(weights, self.targets, strict=False):
      if not weight:
        continue
      for name, change in target.items():
        if name == "POSITION":
          positions = positions + weight * change
        elif name == "COLOR_0" and colours is not None:
          colours = colours.copy()
          colours[:, : change.shape[1]] += weight * change
        elif name.startswith("TEXCOORD_"):
          number = int(name.removeprefix("TEXCOORD_"))
          if number in uv_sets:
            uv_sets[number] = uv_sets[number] + weight * change
    if colours is not None:
      colours = np.clip(colours, 0, 1)
    return dataclasses.replace(self, positions_V3=positions, colours_V4=colours, uv_sets=uv_sets)


def mode_of(entry: Mapping[str, Any]) -> int:
  return entry.get("mode", TRIANGLES)


def corner_count(document: Document, entry: Mapping[str, Any]) -> int:
  """Corners that a primitive draws, as its accessors announce."""
  index = entry.get("indices", entry["attributes"]["POSITION"])
  count = document.item("accessors", index).get("count")
  if not is_count(count):
    raise wrong(f"accessors[{index}]: count {count!r}")
  return 3 * max(count - 2, 0) if mode_of(entry) in (STRIP, FAN) else count


def read(document: Document, entry: Mapping[str, Any]) -> Primitive:
  """A primitive that draws triangles or points.

  Raises Refused (unreadable, unsupported).
  """
  source = _source(document, entry)
  positions = source.attribute("POSITION", 3)
  count = len(positions)
  mode = mode_of(entry)

  # Which vertices each triangle joins.
  indices = source.indices
  if indices is None:
    indices = np.arange(count)
  if len(indices) and indices.max() >= count:
    raise wrong(f"a primitive names vertex {indices.max()} of {count}")
  drawn = TRIANGLES if source.triangles and mode != POINTS else mode
  faces = triangles(indices, drawn)

  # Attributes in the order of the vertices.
  names = [str(name) for name in entry["attributes"]]
  uv_sets = {}
  for name in names:
    if re.fullmatch(r"TEXCOORD_\d+", name):
      uv_sets[int(name.removeprefix("TEXCOORD_"))] = source.attribute(name, 2)
  colours = _colours(source) if "COLOR_0" in names else None
  joints, weights = _influences(source, names)
  targets = tuple(_target(document, target) for target in entry.get("targets", ()))
  attributes = [positions, *uv_sets.values(), colours, joints, weights]
  for target in targets:
    attributes += target.values()
  for values in attributes:
    if values is not None and len(values) != count:
      raise wrong(f"an attribute of {len(values)} vertices beside {count} positions")
  primitive = Primitive(
    positions, faces, uv_sets, colours, joints, weights, entry.get("material"), targets
  )
  # many primitives may name parts of one long list of vertices
  if mode != POINTS and count > faces.size:
    return _compact(primitive)
  return primitive


def triangles(indices: np.ndarray, mode: int) -> np.ndarray:
  """(F, 3) int64 of a list, strip or fan; none of points."""
  indices = np.asarray(indices, np.int64)
  if mode == TRIANGLES:
    whole = len(indices) // 3 * 3
    return indices[:whole].reshape(-1, 3)
  if mode == STRIP and len(indices) > 2:
    first = np.arange(len(indices) - 2)
    odd = first % 2
    # every second triangle turns the other way
    faces = indices[np.stack([first, first + 1 + odd, first + 2 - odd], 1)]
  elif mode == FAN and len(indices) > 2:
    hub = np.broadcast_to(indices[0], len(indices) - 2)
    faces = np.stack([indices[1:-1], indices[2:], hub], 1)
  else:
    return np.zeros((0, 3), np.int64)
  # strips are stitched with triangles that name a vertex twice
  a, b, c = faces.T
  return faces[(a != b) & (b != c) & (c != a)]


# --- Attributes -----------------------------------------------------------------------------------


class _Accessors:
  """Attributes and indices that lie in accessors."""

  triangles = False  # indices are as the mode says

  def __init__(self, document: Document, entry: Mapping[str, Any]):
    self._document = document
    self._attributes = entry["attributes"]
    self.indices = None
    if "indices" in entry:
      stored = gltf_accessors.stored(document, entry["indices"])
      if stored.dtype.kind != "u":
        raise wrong(f"indices of type {stored.dtype}")
      self.indices = stored.reshape(-1).astype(np.int64)

  def stored(self, name: str) -> np.ndarray:
    return gltf_accessors.stored(self._document, self._attributes[name])

  def normalised(self, name: str) -> bool:
    entry = self._document.item("accessors", self._attributes[name])
    return _is_fraction(self._document, name, entry)

  def attribute(self, name: str, components: int) -> np.ndarray:
    """(V, components) float64."""
    found = gltf_accessors.fractions(self.stored(name), self.normalised(name))
    if found.shape[1] != components:
      raise wrong(f"{name} has {found.shape[1]} components, expected {components}")
    return found


class _Draco(_Accessors):
  """Attributes and indices of a primitive that is compressed with Draco."""

  triangles = True  # indices join triangles, whatever the mode says

  def __init__(self, document: Document, entry: Mapping[str, Any], packed: Mapping[str, Any]):
    super().__init__(document, {"attributes": entry["attributes"]})
    encoded = bytes(document.view(packed.get("bufferView"))[0])
    ids = packed.get("attributes", {})
    self.indices, self._decoded = gltf_codecs.decode_draco(encoded, ids)

  def stored(self, name: str) -> np.ndarray:
    if name in self._decoded:
      return self._decoded[name]
    return super().stored(name)


def _source(document: Document, entry: Mapping[str, Any]) -> _Accessors:
  """Where a primitive's data lies: in accessors, if they have views, else in a Draco stream."""
  packed = extension(entry, DRACO)
  if packed is None:
    return _Accessors(document, entry)
  position = document.item("accessors", entry["attributes"]["POSITION"])
  if "bufferView" in position or "sparse" in position:
    return _Accessors(document, entry)
  return _Draco(document, entry, packed)


def _is_fraction(document: Document, name: str, accessor: Mapping[str, Any]) -> bool:
  """Whether integers of an attribute are fractions of their range."""
  if name.startswith(("COLOR_", "WEIGHTS_")):
    return True
  # only KHR_mesh_quantization allows coordinates that are whole numbers
  if name.startswith("TEXCOORD_") and not document.uses("KHR_mesh_quantization"):
    return True
  return accessor.get("normalized") is True


def _colours(source: _Accessors) -> np.ndarray:
  """(V, 4) float64 of COLOR_0."""
  stored = source.stored("COLOR_0")
  colours = gltf_accessors.fractions(stored, normalised=True)
  if colours.shape[1] == 3:
    opaque = np.ones((len(colours), 1))
    colours = np.concatenate([colours, opaque], 1)
  if colours.shape[1] != 4:
    raise wrong(f"COLOR_0 has {colours.shape[1]} components, expected 3 or 4")
  return np.clip(np.nan_to_num(colours), 0, 1)


def _influences(
  source: _Accessors, names: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """(V, J) joints and weights of all sets; None where there are none."""
  joints, weights = [], []
  for number in range(len(names)):
    if f"JOINTS_{number}" not in names or f"WEIGHTS_{number}" not in names:
      break
    joints.append(source.stored(f"JOINTS_{number}").astype(np.int64))
    weights.append(source.attribute(f"WEIGHTS_{number}", 4))
  if not joints:
    return None, None
  weights_VJ = np.concatenate(weights, 1)
  total = weights_VJ.sum(1, keepdims=True)
  # a vertex that nothing moves goes with its first joint
  weights_VJ[total[:, 0] <= 0, 0] = 1.0
  total = np.where(total > 0, total, 1.0)
  return np.concatenate(joints, 1), weights_VJ / total


def _target(document: Document, target: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
  """What a morph target adds to shape and colour."""
  found = {}
  for name, index in target.items():
    if name == "POSITION" or name.startswith(("TEXCOORD_", "COLOR_0")):
      found[name] = gltf_accessors.values(document, index)
  return found


def _compact(primitive: Primitive) -> Primitive:
  """Without the vertices that no face uses."""
  used, faces = np.unique(primitive.faces_F3, return_inverse=True)

  def kept(values):
    return None if values is None else values[used]

  targets = tuple(
    {name: kept(change) for name, change in target.items()} for target in primitive.targets
  )
  return dataclasses.replace(
    primitive,
    positions_V3=primitive.positions_V3[used],
    faces_F3=faces.reshape(-1, 3),
    uv_sets={number: kept(uv) for number, uv in primitive.uv_sets.items()},
    colours_V4=kept(primitive.colours_V4),
    joints_VJ=kept(primitive.joints_VJ),
    weights_VJ=kept(primitive.weights_VJ),
    targets=targets,
  )

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
from sam3d_jax.files.mesh_formats.surfaces import used_by

POINTS, TRIANGLES, STRIP, FAN = 0, 4, 5, 6
SURFACES = (TRIANGLES, STRIP, FAN)
DRACO = "KHR_draco_mesh_compression"
UV_SET = re.compile(r"TEXCOORD_(\d+)$")
MORPHED = ("POSITION", "TEXCOORD_", "COLOR_0")  # what of a morph target counts here


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
    # Most meshes have none, most targets no weight.
    active = []
    for weight, target in zip(weights, self.targets, strict=False):
      if weight:
        active.append((weight, target))
    if not active:
      return self

    # One after another.
    positions = self.positions_V3
    colours = self.colours_V4
    uv_sets = dict(self.uv_sets)
    for weight, target in active:
      if "POSITION" in target:
        positions = positions + weight * target["POSITION"]
      if "COLOR_0" in target and colours is not None:
        # which may leave alpha alone
        change = target["COLOR_0"]
        width = change.shape[1]
        colours = colours.copy()
        colours[:, :width] += weight * change
      for number, uv in uv_sets.items():
        change = target.get(f"TEXCOORD_{number}", 0.0)
        uv_sets[number] = uv + weight * change
    if colours is not None:
      colours = np.clip(colours, 0, 1)
    return dataclasses.replace(
      self,
      positions_V3=positions,
      colours_V4=colours,
      uv_sets=uv_sets,
    )


def mode_of(entry: Mapping[str, Any]) -> int:
  return entry.get("mode", TRIANGLES)


def corner_count(document: Document, entry: Mapping[str, Any]) -> int:
  """Corners that a primitive draws, as its accessors announce."""
  index = entry.get("indices", entry["attributes"]["POSITION"])
  count = document.item("accessors", index).get("count")
  if not is_count(count):
    raise wrong(f"accessors[{index}]: count {count!r}")
  if mode_of(entry) in (STRIP, FAN):
    return 3 * max(count - 2, 0)
  return count


def read(document: Document, entry: Mapping[str, Any]) -> Primitive:
  """A primitive that draws triangles or points.

  Raises Refused (unreadable, unsupported).
  """
  source = _source(document, entry)
  names = [str(name) for name in entry["attributes"]]
  positions = source.attribute("POSITION", 3)
  faces = _faces(source, mode_of(entry), len(positions))

  # Attributes in the order of the vertices.
  uv_sets = {}
  for name in names:
    match = UV_SET.match(name)
    if match:
      uv_sets[int(match[1])] = source.attribute(name, 2)
  colours = _colours(source) if "COLOR_0" in names else None
  joints, weights = _influences(source, names)
  targets = tuple(_target(document, target) for target in entry.get("targets", ()))
  primitive = Primitive(
    positions,
    faces,
    uv_sets,
    colours,
    joints,
    weights,
    entry.get("material"),
    targets,
  )
  _check_lengths(primitive)
  # many primitives may name parts of one long list of vertices
  if mode_of(entry) != POINTS and len(positions) > faces.size:
    return _compact(primitive)
  return primitive


def triangles(indices: np.ndarray, mode: int) -> np.ndarray:
  """(F, 3) int64 of a list, strip or fan; none of points."""
  indices = np.asarray(indices, np.int64)
  if mode == TRIANGLES:
    whole = len(indices) // 3 * 3
    return indices[:whole].reshape(-1, 3)
  if mode not in SURFACES or len(indices) < 3:
    return np.zeros((0, 3), np.int64)

  if mode == STRIP:
    first = np.arange(len(indices) - 2)
    # every second triangle turns the other way
    odd = first % 2
    places = np.stack([first, first + 1 + odd, first + 2 - odd], axis=1)
    faces = indices[places]
  else:
    second = indices[1:-1]
    third = indices[2:]
    hub = np.broadcast_to(indices[0], second.shape)
    faces = np.stack([second, third, hub], axis=1)
  # strips are stitched with triangles that name a vertex twice
  a, b, c = faces.T
  is_stitch = (a == b) | (b == c) | (c == a)
  return faces[~is_stitch]


# --- Where data lies ------------------------------------------------------------------------------


class _Accessors:
  """Attributes and indices that lie in accessors."""

  joins_triangles = False  # indices are as the mode says

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
    """(V, components) of an attribute in its own type."""
    accessor = self._attributes[name]
    return gltf_accessors.stored(self._document, accessor)

  def attribute(self, name: str, components: int) -> np.ndarray:
    """(V, components) float64."""
    accessor = self._document.item("accessors", self._attributes[name])
    are_fractions = _are_fractions(self._document, name, accessor)
    stored = self.stored(name)
    count = stored.shape[1]
    if count != components:
      raise wrong(f"{name} has {count} components, expected {components}")
    return gltf_accessors.fractions(stored, are_fractions)


class _Draco(_Accessors):
  """Attributes and indices of a primitive that is compressed with Draco."""

  joins_triangles = True  # whatever the mode says

  def __init__(self, document: Document, entry: Mapping[str, Any], packed: Mapping[str, Any]):
    # indices lie in the stream too
    attributes = entry["attributes"]
    super().__init__(document, {"attributes": attributes})
    encoded, _ = document.view(packed.get("bufferView"))
    unique_ids = packed.get("attributes", {})
    decoded = gltf_codecs.decode_draco(bytes(encoded), unique_ids)
    self.indices, self._decoded = decoded

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


def _faces(source: _Accessors, mode: int, count: int) -> np.ndarray:
  """(F, 3) int64: which vertices each triangle joins."""
  # without indices vertices are drawn in their order
  indices = source.indices
  if indices is None:
    indices = np.arange(count)
  highest = indices.max(initial=0)
  if len(indices) and highest >= count:
    raise wrong(f"a primitive names vertex {highest} of {count}")
  if source.joins_triangles and mode != POINTS:
    mode = TRIANGLES
  return triangles(indices, mode)


# --- Attributes -----------------------------------------------------------------------------------


def _are_fractions(document: Document, name: str, accessor: Mapping[str, Any]) -> bool:
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
  count, components = stored.shape
  if components not in (3, 4):
    raise wrong(f"COLOR_0 has {components} components, expected 3 or 4")
  colours = np.ones((count, 4))
  colours[:, :components] = gltf_accessors.fractions(stored, normalised=True)
  known = np.nan_to_num(colours)
  return np.clip(known, 0, 1)


def _influences(
  source: _Accessors, names: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """(V, J) joints and weights of all sets; None where there are none."""
  # Four influences a set.
  joints, weights = [], []
  for number in range(len(names)):
    joint_name = f"JOINTS_{number}"
    weight_name = f"WEIGHTS_{number}"
    if joint_name not in names or weight_name not in names:
      break
    stored = source.stored(joint_name)
    joints.append(stored.astype(np.int64))
    weights.append(source.attribute(weight_name, 4))
  if not joints:
    return None, None
  joints_VJ = np.concatenate(joints, axis=1)
  weights_VJ = np.concatenate(weights, axis=1)

  # Weights are 1 in all; a vertex that nothing moves goes with its first joint.
  total = weights_VJ.sum(1)
  is_loose = total <= 0
  weights_VJ[is_loose, 0] = 1.0
  total[is_loose] = 1.0
  return joints_VJ, weights_VJ / total[:, None]


def _target(document: Document, target: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
  """What a morph target adds to shape and colour."""
  found = {}
  for name, index in target.items():
    if name.startswith(MORPHED):
      found[name] = gltf_accessors.values(document, index)
  return found


def _check_lengths(primitive: Primitive) -> None:
  """Raises Refused (unreadable) for an attribute of more or fewer vertices than there are."""
  count = len(primitive.positions_V3)
  attributes = [*primitive.uv_sets.values()]
  attributes += [primitive.colours_V4, primitive.joints_VJ, primitive.weights_VJ]
  for target in primitive.targets:
    attributes += target.values()
  for values in attributes:
    if values is not None and len(values) != count:
      raise wrong(f"an attribute of {len(values)} vertices beside {count} positions")


def _compact(primitive: Primitive) -> Primitive:
  """Without the vertices that no face uses."""
  count = len(primitive.positions_V3)
  used, faces = used_by(primitive.faces_F3, count)

  def kept(values: np.ndarray | None) -> np.ndarray | None:
    if values is None:
      return None
    return values[used]

  def all_kept(named: Mapping[Any, np.ndarray]) -> dict[Any, np.ndarray]:
    found = {}
    for name, values in named.items():
      found[name] = values[used]
    return found

  return Primitive(
    positions_V3=primitive.positions_V3[used],
    faces_F3=faces,
    uv_sets=all_kept(primitive.uv_sets),
    colours_V4=kept(primitive.colours_V4),
    joints_VJ=kept(primitive.joints_VJ),
    weights_VJ=kept(primitive.weights_VJ),
    material=primitive.material,
    targets=tuple(map(all_kept, primitive.targets)),
  )

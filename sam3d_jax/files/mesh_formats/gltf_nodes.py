"""The scene of a glTF 2.0 file: where each mesh is drawn, instances and skins included."""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np

from sam3d_jax.files.mesh_formats import gltf_accessors
from sam3d_jax.files.mesh_formats.gltf_document import Document, extension, is_index, numbers, wrong

INSTANCING = "EXT_mesh_gpu_instancing"


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A mesh at one place."""

  mesh: int
  world_44: np.ndarray  # from the mesh to the scene, acting on columns
  weights: tuple[float, ...]  # of morph targets
  # of a skinned mesh: from the mesh, as it was bound to each joint, to the scene; `world_44` is not
  # used then
  joints_J44: np.ndarray | None = None


class Nodes:
  """The tree of nodes, each with its place in the scene."""

  def __init__(self, document: Document):
    self._document = document
    self._nodes = document.items("nodes")
    self._children = [self._children_of(index) for index in range(len(self._nodes))]
    self._world = self._places()
    self._bindings: dict[Any, np.ndarray] = {}
    self.hidden = 0  # nodes that the file hides

  def drawings(self) -> Iterator[Drawing]:
    """Every drawing of a mesh in the scene that the file shows, depth first."""
    if not self._nodes:
      # a library of meshes
      for mesh in range(len(self._document.items("meshes"))):
        yield Drawing(mesh, np.eye(4), self._weights({}, mesh))
      return
    pending = list(reversed(self._shown_roots()))
    while pending:
      index = pending.pop()
      node = self._document.item("nodes", index)
      visibility = extension(node, "KHR_node_visibility")
      if visibility is not None and visibility.get("visible") is False:
        self.hidden += 1
        continue
      if "mesh" in node:
        yield from self._drawings_of(index, node)
      pending += reversed(self._children[index])

  def _shown_roots(self) -> list[int]:
    """The roots of the scene that is shown: the default one, else the first, else all."""
    if not self._document.items("scenes"):
      inner = {child for children in self._children for child in children}
      return [index for index in range(len(self._nodes)) if index not in inner]
    scene = self._document.item("scenes", self._document.json.get("scene", 0))
    roots = scene.get("nodes", [])
    for root in roots:
      if not is_index(root, len(self._nodes)):
        raise wrong(f"a scene shows node {root!r} of {len(self._nodes)}")
    # a node that is listed twice is there once
    return list(dict.fromkeys(roots))

  def _drawings_of(self, index: int, node: Mapping[str, Any]) -> Iterator[Drawing]:
    weights = self._weights(node, node["mesh"])
    world = self._world[index]
    if "skin" in node:
      yield Drawing(node["mesh"], world, weights, self._joints(node["skin"]))
      return
    instanced = extension(node, INSTANCING)
    if instanced is None:
      yield Drawing(node["mesh"], world, weights)
      return
    for local in self._instances(instanced):
      yield Drawing(node["mesh"], world @ local, weights)

  def _weights(self, node: Mapping[str, Any], mesh: Any) -> tuple[float, ...]:
    """Weights of morph targets: the node's, else the mesh's."""
    stated = node.get("weights", self._document.item("meshes", mesh).get("weights", ()))
    return tuple(float(weight) for weight in stated)

  # --- Places -------------------------------------------------------------------------------------

  def _children_of(self, index: int) -> list[int]:
    children = self._document.item("nodes", index).get("children", [])
    for child in children:
      if not is_index(child, len(self._nodes)):
        raise wrong(f"nodes[{index}]: child {child!r} of {len(self._nodes)} nodes")
    return children

  def _places(self) -> list[np.ndarray]:
    """4 x 4 of every node to the scene. Raises Refused for nodes that form no tree."""
    parent: dict[int, int] = {}
    for index, children in enumerate(self._children):
      for child in children:
        if child in parent:
          raise wrong(f"nodes[{child}] is the child of {parent[child]} and of {index}")
        parent[child] = index
    world: list[np.ndarray | None] = [None] * len(self._nodes)
    pending = [index for index in range(len(self._nodes)) if index not in parent]
    while pending:
      index = pending.pop()
      local = _local(self._document.item("nodes", index), f"nodes[{index}]")
      above = parent.get(index)
      if above is None:
        world[index] = local
      else:
        # places beyond what floats hold are refused with the vertices that they move
        with np.errstate(invalid="ignore", over="ignore"):
          world[index] = world[above] @ local
      pending += self._children[index]
    lost = [index for index, place in enumerate(world) if place is None]
    if lost:
      raise wrong(f"nodes[{lost[0]}] is below itself")
    return world

  def _instances(self, instanced: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """4 x 4 of every instance to its node."""
    attributes = instanced.get("attributes", {})
    found = {}
    for name in ("TRANSLATION", "ROTATION", "SCALE"):
      if name in attributes:
        found[name] = gltf_accessors.values(self._document, attributes[name])
    lengths = {len(values) for values in found.values()}
    if len(lengths) > 1:
      raise wrong(f"{INSTANCING}: attributes of {sorted(lengths)} instances")
    for index in range(max(lengths, default=1)):
      stated = {name.lower(): values[index] for name, values in found.items()}
      yield _local(stated, INSTANCING)

  def _joints(self, skin: Any) -> np.ndarray:
    """(J, 4, 4) of a skin: from the mesh as it was bound to each joint to the scene."""
    if skin in self._bindings:
      return self._bindings[skin]
    entry = self._document.item("skins", skin)
    joints = entry.get("joints", [])
    for joint in joints:
      if not is_index(joint, len(self._nodes)):
        raise wrong(f"skins[{skin}]: joint {joint!r} of {len(self._nodes)} nodes")
    world = np.array([self._world[joint] for joint in joints]).reshape(-1, 4, 4)
    if "inverseBindMatrices" in entry:
      columns = gltf_accessors.values(self._document, entry["inverseBindMatrices"])
      if columns.shape[1] != 16 or len(columns) < len(joints):
        raise wrong(f"skins[{skin}]: {len(joints)} joints, matrices {columns.shape}")
      inverse = columns[: len(joints)].reshape(-1, 4, 4).transpose(0, 2, 1)
      world = world @ inverse
    self._bindings[skin] = world
    return world


def _local(node: Mapping[str, Any], what: str) -> np.ndarray:
  """4 x 4 of a node to its parent: its matrix, or translation, rotation (x, y, z, w) and scale."""
  if "matrix" in node:
    # stored column by column
    return numbers(node["matrix"], 16, f"{what}: matrix").reshape(4, 4).T
  place = np.eye(4)
  if "rotation" in node:
    place[:3, :3] = _rotation(numbers(node["rotation"], 4, f"{what}: rotation"))
  if "scale" in node:
    place[:3, :3] *= numbers(node["scale"], 3, f"{what}: scale")
  if "translation" in node:
    place[:3, 3] = numbers(node["translation"], 3, f"{what}: translation")
  return place


def _rotation(quaternion_4: np.ndarray) -> np.ndarray:
  """3 x 3 of a quaternion (x, y, z, w), which is made a unit one; of zero the identity."""
  length = np.linalg.norm(quaternion_4)
  if not length > 0:
    return np.eye(3)
  x, y, z, w = quaternion_4 / length
  return np.array(
    [
      [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
      [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
      [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
  )

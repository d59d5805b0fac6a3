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
    self._count = len(document.items("nodes"))
    self._children = [self._children_of(index) for index in range(self._count)]
    self._parent = self._parents()
    self._world = self._places()
    self._bindings: dict[Any, np.ndarray] = {}
    self.hidden = 0  # nodes that the file hides

  def drawings(self) -> Iterator[Drawing]:
    """Every drawing of a mesh in the scene that the file shows, depth first."""
    if not self._count:
      yield from self._library()
      return
    pending = self._shown_roots()[::-1]
    drawn = set()
    while pending:
      index = pending.pop()
      if index in drawn:
        # listed by the scene, though it is below another
        continue
      drawn.add(index)
      node = self._document.item("nodes", index)
      visibility = extension(node, "KHR_node_visibility") or {}
      if visibility.get("visible") is False:
        # and all that is below it
        self.hidden += 1
        continue
      if "mesh" in node:
        yield from self._drawings_of(index, node)
      pending += self._children[index][::-1]

  def _library(self) -> Iterator[Drawing]:
    """Every mesh of a file without nodes."""
    meshes = self._document.items("meshes")
    for mesh in range(len(meshes)):
      weights = self._weights({}, mesh)
      yield Drawing(mesh, np.eye(4), weights)

  def _shown_roots(self) -> list[int]:
    """The roots of the scene that is shown: the default one, else the first, else all."""
    if not self._document.items("scenes"):
      return [index for index in range(self._count) if index not in self._parent]
    shown = self._document.json.get("scene", 0)
    scene = self._document.item("scenes", shown)
    roots = scene.get("nodes", [])
    for root in roots:
      if not is_index(root, self._count):
        raise wrong(f"a scene shows node {root!r} of {self._count}")
    return roots

  def _drawings_of(self, index: int, node: Mapping[str, Any]) -> Iterator[Drawing]:
    mesh = node["mesh"]
    weights = self._weights(node, mesh)
    world = self._world[index]
    instanced = extension(node, INSTANCING)
    if "skin" in node:
      # its joints alone place it
      joints = self._joints(node["skin"])
      yield Drawing(mesh, world, weights, joints)
    elif instanced is not None:
      for local in self._instances(instanced):
        yield Drawing(mesh, world @ local, weights)
    else:
      yield Drawing(mesh, world, weights)

  def _weights(self, node: Mapping[str, Any], mesh: Any) -> tuple[float, ...]:
    """Weights of morph targets: the node's, else the mesh's."""
    entry = self._document.item("meshes", mesh)
    stated = entry.get("weights", ())
    stated = node.get("weights", stated)
    return tuple(map(float, stated))

  # --- Places -------------------------------------------------------------------------------------

  def _children_of(self, index: int) -> list[int]:
    node = self._document.item("nodes", index)
    children = node.get("children", [])
    for child in children:
      if not is_index(child, self._count):
        raise wrong(f"nodes[{index}]: child {child!r} of {self._count} nodes")
    return children

  def _parents(self) -> dict[int, int]:
    """Child -> parent. Raises Refused for a node with two."""
    parent: dict[int, int] = {}
    for index, children in enumerate(self._children):
      for child in children:
        if child in parent:
          raise wrong(f"nodes[{child}] is the child of {parent[child]} and of {index}")
        parent[child] = index
    return parent

  def _places(self) -> dict[int, np.ndarray]:
    """4 x 4 of every node to the scene. Raises Refused for a node below itself."""
    # From the roots down.
    world: dict[int, np.ndarray] = {}
    pending = [index for index in range(self._count) if index not in self._parent]
    while pending:
      index = pending.pop()
      node = self._document.item("nodes", index)
      local = _local(node, f"nodes[{index}]")
      if index in self._parent:
        above = world[self._parent[index]]
        local = above @ local
      world[index] = local
      pending += self._children[index]
    # who cannot be reached from above is in a circle
    for index in range(self._count):
      if index not in world:
        raise wrong(f"nodes[{index}] is below itself")
    return world

  def _instances(self, instanced: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """4 x 4 of every instance to its node."""
    # Columns of the parts of their places; what is not stated is as of any node.
    attributes = instanced.get("attributes", {})
    stated = {}
    for name in ("TRANSLATION", "ROTATION", "SCALE"):
      if name in attributes:
        stated[name.lower()] = gltf_accessors.values(self._document, attributes[name])

    # One instance a row.
    lengths = {len(rows) for rows in stated.values()}
    if len(lengths) > 1:
      raise wrong(f"{INSTANCING}: attributes of {sorted(lengths)} instances")
    for index in range(max(lengths, default=1)):
      own = {name: rows[index] for name, rows in stated.items()}
      yield _local(own, INSTANCING)

  def _joints(self, skin: Any) -> np.ndarray:
    """(J, 4, 4) of a skin: from the mesh as it was bound to each joint to the scene."""
    if skin not in self._bindings:
      self._bindings[skin] = self._bound(skin)
    return self._bindings[skin]

  def _bound(self, skin: Any) -> np.ndarray:
    entry = self._document.item("skins", skin)
    joints = entry.get("joints", [])
    for joint in joints:
      if not is_index(joint, self._count):
        raise wrong(f"skins[{skin}]: joint {joint!r} of {self._count} nodes")
    places = [self._world[joint] for joint in joints]
    world = np.array(places).reshape(-1, 4, 4)
    if "inverseBindMatrices" not in entry:
      return world

    # Before a joint moves the mesh, the mesh is brought to where it was bound to the joint.
    accessor = entry["inverseBindMatrices"]
    stored = gltf_accessors.values(self._document, accessor)
    count, size = stored.shape
    if size != 16 or count < len(joints):
      raise wrong(f"skins[{skin}]: {len(joints)} joints, matrices {stored.shape}")
    stored = stored[: len(joints)]
    # stored column by column
    columns = stored.reshape(-1, 4, 4)
    return world @ columns.transpose(0, 2, 1)


def _local(node: Mapping[str, Any], what: str) -> np.ndarray:
  """4 x 4 of a node to its parent: its matrix, or translation, rotation (x, y, z, w) and scale."""
  if "matrix" in node:
    # stored column by column
    columns = numbers(node["matrix"], 16, f"{what}: matrix")
    return columns.reshape(4, 4).T
  place = np.eye(4)
  if "rotation" in node:
    quaternion = numbers(node["rotation"], 4, f"{what}: rotation")
    place[:3, :3] = _rotation(quaternion)
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
  # v -> v + 2 w (axis x v) + 2 axis x (axis x v), with the cross product as a matrix
  x, y, z, w = quaternion_4 / length
  cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
  return np.eye(3) + 2 * w * cross + 2 * cross @ cross

"""glTF 2.0, text and binary: core, and the extensions that change shape or base colour.

Parsed here from JSON and buffers, as the specification says; nothing is guessed. Shown is the
default scene in the pose of its nodes: instances, skins and morph weights are applied, cameras and
lights may be anywhere in the tree. What is no surface is named in `dropped`.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files.mesh_formats import alpha, gltf_primitives
from sam3d_jax.files.mesh_formats.gltf_document import Document, extension, wrong
from sam3d_jax.files.mesh_formats.gltf_materials import Look, Materials
from sam3d_jax.files.mesh_formats.gltf_nodes import Drawing, Nodes
from sam3d_jax.files.mesh_formats.gltf_primitives import POINTS, SURFACES, Primitive
from sam3d_jax.files.mesh_formats.surfaces import Surfaces, together
from sam3d_jax.render.mesh import Mesh

# Corners that instances may make of a small file; a large one may have one for each of its bytes.
MAX_CORNERS = 30_000_000


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The surfaces of a .glb or .gltf file.

  Raises Refused (unreadable, unsupported, missing_texture).
  """
  document = Document(path, data)
  nodes = Nodes(document)
  reader = _Reader(document, appearance)

  # What is drawn, before anything of it is read: instances of instances may be beyond any memory.
  surfaces, clouds, others, corners, points = [], [], 0, 0, 0
  for drawing in nodes.drawings():
    for entry in _primitives(document, drawing.mesh):
      mode = gltf_primitives.mode_of(entry)
      if "POSITION" not in entry["attributes"] or mode not in (POINTS, *SURFACES):
        others += 1
        continue
      count = gltf_primitives.corner_count(document, entry)
      if mode == POINTS:
        clouds.append((drawing, entry))
        points += count
      else:
        surfaces.append((drawing, entry))
        corners += count
      if max(corners, points) > max(MAX_CORNERS, document.size):
        what = f"{max(corners, points):,} corners from {document.size:,} bytes"
        raise wrong(f"it draws {what}")

  parts = [reader.surface(drawing, entry) for drawing, entry in surfaces]
  parts, cut = _without_cut(parts)
  if not surfaces:
    parts = [reader.cloud(drawing, entry) for drawing, entry in clouds]
  mesh = together(parts)
  if not appearance:
    mesh = Mesh(mesh.vertices, mesh.faces)

  # What is not in it.
  dropped = []
  if others:
    dropped.append(f"{others} drawings that are neither triangles nor points")
  if surfaces and points:
    dropped.append(f"{points} points beside triangles")
  if cut:
    dropped.append(f"{cut} faces that alpha makes invisible")
  if reader.materials.unmapped:
    dropped.append(f"{reader.materials.unmapped} textures without texture coordinates")
  if nodes.hidden:
    dropped.append(f"{nodes.hidden} hidden nodes")
  dropped += _beside_surfaces(document)
  return Surfaces(mesh, tuple(dropped))


def _primitives(document: Document, mesh: Any) -> list[Mapping[str, Any]]:
  return document.item("meshes", mesh).get("primitives", [])


def _without_cut(parts: list[tuple[Mesh, alpha.Cut | None]]) -> tuple[list[Mesh], int]:
  """Parts without what alpha cuts away, and how many of their faces are gone altogether."""
  if all(cut is None for _, cut in parts):
    return [mesh for mesh, _ in parts], 0
  corners = np.concatenate([mesh.vertices for mesh, _ in parts])
  finite = corners[np.isfinite(corners).all(1)]
  longest = float(np.ptp(finite, axis=0).max()) if len(finite) else 0.0
  left, gone = [], 0
  for mesh, cut in parts:
    if cut is not None:
      mesh, lost = alpha.apply(mesh, cut, longest)
      gone += lost
    left.append(mesh)
  return left, gone


def _beside_surfaces(document: Document) -> list[str]:
  """What a file has beside its scene of surfaces, in words."""
  lights = extension(document.json, "KHR_lights_punctual") or {}
  variants = extension(document.json, "KHR_materials_variants") or {}
  counts = {
    "animations": len(document.items("animations")),
    "cameras": len(document.items("cameras")),
    "lights": len(lights.get("lights", ())),
    "variants of materials": len(variants.get("variants", ())),
    "scenes that are not shown": max(len(document.items("scenes")) - 1, 0),
  }
  return [f"{count} {name}" for name, count in counts.items() if count]


class _Reader:
  """Reads what is drawn; each primitive and each picture once."""

  def __init__(self, document: Document, appearance: bool):
    self._document = document
    self._appearance = appearance
    self._read: dict[int, Primitive] = {}
    self._looks: dict[tuple, Look] = {}
    self.materials = Materials(document, appearance)

  def surface(self, drawing: Drawing, entry: Mapping[str, Any]) -> tuple[Mesh, alpha.Cut | None]:
    """Triangles where they are drawn, and what alpha cuts away of them."""
    primitive = self._primitive(entry, drawing)
    vertices, faces = _placed(primitive, drawing)
    look = self._look(entry, primitive, drawing)
    if not self._appearance and look.cut is None:
      return Mesh(vertices, faces), None
    colours = None
    if primitive.colours_V4 is not None:
      colours = primitive.colours_V4[:, :3].astype(np.float32)
    return _dressed(vertices, faces, colours, look), look.cut

  def cloud(self, drawing: Drawing, entry: Mapping[str, Any]) -> Mesh:
    """Points where they are drawn."""
    primitive = self._primitive(entry, drawing)
    vertices, _ = _placed(primitive, drawing)
    cloud = Mesh(vertices, np.zeros((0, 3), np.int64))
    if primitive.colours_V4 is None or not self._appearance:
      return cloud
    return Mesh(cloud.vertices, cloud.faces, primitive.colours_V4[:, :3].astype(np.float32))

  def _primitive(self, entry: Mapping[str, Any], drawing: Drawing) -> Primitive:
    if id(entry) not in self._read:
      self._read[id(entry)] = gltf_primitives.read(self._document, entry)
    return self._read[id(entry)].morphed(drawing.weights)

  def _look(self, entry: Mapping[str, Any], primitive: Primitive, drawing: Drawing) -> Look:
    # morph targets may change coordinates and colours
    key = (id(entry), drawing.weights)
    if key not in self._looks:
      self._looks[key] = self.materials.look(
        primitive.material, primitive.uv_sets, primitive.colours_V4
      )
    return self._looks[key]


def _dressed(
  vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray | None, look: Look
) -> Mesh:
  material = np.zeros(len(faces), np.int32)
  mesh = Mesh(vertices, faces, colours, look.uv, material, (look.material,))
  return mesh.with_appearance()


def _placed(primitive: Primitive, drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
  """Vertices in the scene and faces the right way out.

  NaN and infinity are let through: whoever uses the mesh says what they mean.
  """
  positions, faces = primitive.positions_V3, primitive.faces_F3
  with np.errstate(invalid="ignore", over="ignore"):
    if drawing.joints_J44 is not None and primitive.joints_VJ is not None:
      vertices, mirrored_V = _skinned(primitive, drawing.joints_J44)
      turned = mirrored_V[faces].sum(1) >= 2
    else:
      world = drawing.world_44
      vertices = positions @ world[:3, :3].T + world[:3, 3]
      # a mirrored node turns its faces inside out
      turned = np.full(len(faces), np.linalg.det(world[:3, :3]) < 0)
  if turned.any():
    faces = np.where(turned[:, None], faces[:, ::-1], faces)
  return vertices, faces


def _skinned(primitive: Primitive, joints_J44: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Vertices where their joints take them, and which of them a mirrored joint moves."""
  joints, weights = primitive.joints_VJ, primitive.weights_VJ
  used = joints[weights > 0]
  if len(used) and used.max() >= len(joints_J44):
    raise Refused("unreadable", f"a vertex follows joint {used.max()} of {len(joints_J44)}")
  joints = np.where(weights > 0, joints, 0)
  vertices = np.zeros_like(primitive.positions_V3)
  for joint_V, weight_V in zip(joints.T, weights.T, strict=True):
    if not weight_V.any():
      continue
    place = joints_J44[joint_V]
    moved = np.einsum("vij,vj->vi", place[:, :3, :3], primitive.positions_V3) + place[:, :3, 3]
    vertices += weight_V[:, None] * moved
  mirrored_J = np.linalg.det(joints_J44[:, :3, :3]) < 0
  leading = np.take_along_axis(joints, weights.argmax(1)[:, None], 1)[:, 0]
  return vertices, mirrored_J[leading]

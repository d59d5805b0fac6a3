"""glTF 2.0, text and binary: core, and the extensions that change shape or base colour.

Parsed here from JSON and buffers, as the specification says; nothing is guessed. Shown is the
default scene in the pose of its nodes: instances, skins and morph weights are applied, cameras and
lights may be anywhere in the tree. What is no surface is named in `dropped`.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import numpy as np

from sam3d_jax.files.mesh_formats import alpha, gltf_primitives, surfaces
from sam3d_jax.files.mesh_formats.gltf_document import Document, extension, wrong
from sam3d_jax.files.mesh_formats.gltf_materials import Look, Materials
from sam3d_jax.files.mesh_formats.gltf_nodes import Drawing, Nodes
from sam3d_jax.files.mesh_formats.gltf_primitives import POINTS, SURFACES, Primitive
from sam3d_jax.files.mesh_formats.surfaces import Surfaces
from sam3d_jax.render.mesh import Mesh

# What instances may make of a small file; a large one may have a corner for each of its bytes.
MAX_CORNERS = 15_000_000
MAX_DRAWINGS = 200_000

# A primitive, as the JSON has it, and where it is drawn.
Drawn = tuple[Drawing, Mapping[str, Any]]


@dataclasses.dataclass
class _Plan:
  """What a scene draws, before any of it is read."""

  triangles: list[Drawn] = dataclasses.field(default_factory=list)
  clouds: list[Drawn] = dataclasses.field(default_factory=list)
  corners: int = 0  # of triangles
  points: int = 0  # of clouds
  others: int = 0  # lines, and what has no positions


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The surfaces of a .glb or .gltf file.

  Raises Refused (unreadable, unsupported, missing_texture).
  """
  document = Document(path, data)
  nodes = Nodes(document)
  plan = _plan(document, nodes)

  # Triangles, or points where there are none.
  reader = _Reader(document, appearance)
  dropped = surfaces.drawings_dropped(plan.others)
  if plan.triangles:
    cut_parts = [reader.surface(*drawn) for drawn in plan.triangles]
    parts, invisible = _without_cut(cut_parts)
    if plan.points:
      dropped.append(f"{plan.points} points beside triangles")
    dropped += surfaces.faces_dropped(invisible)
  else:
    parts = [reader.cloud(*drawn) for drawn in plan.clouds]
  mesh = surfaces.together(parts)
  if not appearance:
    mesh = Mesh(mesh.vertices, mesh.faces)

  # What is not in it.
  dropped += surfaces.textures_dropped(reader.materials.unmapped)
  if nodes.hidden:
    dropped.append(f"{nodes.hidden} hidden nodes")
  dropped += _beside_surfaces(document)
  return Surfaces(mesh, tuple(dropped))


def _plan(document: Document, nodes: Nodes) -> _Plan:
  """Everything that is drawn.

  Raises Refused (unreadable) where instances of instances go beyond all bounds.
  """
  plan = _Plan()
  for drawing in nodes.drawings():
    mesh = document.item("meshes", drawing.mesh)
    for entry in mesh.get("primitives", []):
      _add(plan, document, drawing, entry)

    # within bounds so far
    most = max(MAX_CORNERS, document.size)
    count = plan.corners + plan.points
    if count > most:
      raise wrong(f"it draws {count:,} corners from {document.size:,} bytes")
    drawings = len(plan.triangles) + len(plan.clouds)
    if drawings > MAX_DRAWINGS:
      raise wrong(f"it draws more than {MAX_DRAWINGS:,} primitives")
  return plan


def _add(plan: _Plan, document: Document, drawing: Drawing, entry: Mapping[str, Any]) -> None:
  # lines, and what the specification says has nothing to draw
  mode = gltf_primitives.mode_of(entry)
  has_positions = "POSITION" in entry["attributes"]
  if not has_positions or mode not in (POINTS, *SURFACES):
    plan.others += 1
    return

  # as many corners as its accessors announce
  count = gltf_primitives.corner_count(document, entry)
  if mode == POINTS:
    plan.clouds.append((drawing, entry))
    plan.points += count
  else:
    plan.triangles.append((drawing, entry))
    plan.corners += count


def _without_cut(parts: list[tuple[Mesh, alpha.Cut | None]]) -> tuple[list[Mesh], int]:
  """Parts without what alpha cuts away, and how many of their faces are gone altogether."""
  if all(cut is None for _, cut in parts):
    return [mesh for mesh, _ in parts], 0

  # How finely faces are split is a matter of the whole.
  corners = np.concatenate([mesh.vertices for mesh, _ in parts])
  longest = surfaces.longest_side(corners)

  # Part by part.
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
  unshown = document.items("scenes")[1:]
  found = {
    "animations": document.items("animations"),
    "cameras": document.items("cameras"),
    "lights": lights.get("lights", ()),
    "variants of materials": variants.get("variants", ()),
    "scenes that are not shown": unshown,
  }
  return [f"{len(things)} {name}" for name, things in found.items() if things]


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
    look = self._look(entry, primitive, drawing)
    vertices, faces = _placed(primitive, drawing)
    if not self._appearance and look.cut is None:
      return Mesh(vertices, faces), None
    mesh = Mesh(vertices, faces, _rgb(primitive), look.uv)
    return surfaces.in_one(mesh, look.material), look.cut

  def cloud(self, drawing: Drawing, entry: Mapping[str, Any]) -> Mesh:
    """Points where they are drawn."""
    primitive = self._primitive(entry, drawing)
    vertices, _ = _placed(primitive, drawing)
    no_faces = np.zeros((0, 3), np.int64)
    if not self._appearance:
      return Mesh(vertices, no_faces)
    return Mesh(vertices, no_faces, _rgb(primitive))

  def _primitive(self, entry: Mapping[str, Any], drawing: Drawing) -> Primitive:
    key = id(entry)
    if key not in self._read:
      self._read[key] = gltf_primitives.read(self._document, entry)
    primitive = self._read[key]
    return primitive.morphed(drawing.weights)

  def _look(self, entry: Mapping[str, Any], primitive: Primitive, drawing: Drawing) -> Look:
    # morph targets may change coordinates and colours
    key = (id(entry), drawing.weights)
    if key not in self._looks:
      self._looks[key] = self.materials.look(
        primitive.material,
        primitive.uv_sets,
        primitive.colours_V4,
      )
    return self._looks[key]


def _rgb(primitive: Primitive) -> np.ndarray | None:
  """(V, 3) float32 linear colours of vertices."""
  colours = primitive.colours_V4
  if colours is None:
    return None
  return colours[:, :3].astype(np.float32)


def _placed(primitive: Primitive, drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
  """Vertices in the scene and faces the right way out."""
  positions = primitive.positions_V3
  faces = primitive.faces_F3
  is_skinned = drawing.joints_J44 is not None and primitive.joints_VJ is not None
  if is_skinned:
    # a face goes with most of its corners
    vertices, mirrored_V = _skinned(primitive, drawing.joints_J44)
    turned = mirrored_V[faces].sum(1) >= 2
  else:
    linear = drawing.world_44[:3, :3]
    offset = drawing.world_44[:3, 3]
    vertices = positions @ linear.T + offset
    is_mirrored = np.linalg.det(linear) < 0
    turned = np.full(len(faces), is_mirrored)
  # what is mirrored has its faces inside out
  if turned.any():
    faces = np.where(turned[:, None], faces[:, ::-1], faces)
  return vertices, faces


def _skinned(primitive: Primitive, joints_J44: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Vertices where their joints take them, and which of them a mirrored joint moves."""
  # Joints that count for nothing need not exist.
  weights = primitive.weights_VJ
  counts = weights > 0
  joints = np.where(counts, primitive.joints_VJ, 0)
  highest = joints.max(initial=0)
  if highest >= len(joints_J44):
    raise wrong(f"a vertex follows joint {highest} of {len(joints_J44)}")

  # One influence after another.
  vertices = np.zeros_like(primitive.positions_V3)
  for joint_V, weight_V in zip(joints.T, weights.T, strict=True):
    if not weight_V.any():
      continue
    place = joints_J44[joint_V]
    moved = np.einsum("vij,vj->vi", place[:, :3, :3], primitive.positions_V3)
    vertices += weight_V[:, None] * (moved + place[:, :3, 3])

  # A vertex is mirrored where the joint that moves it most is.
  mirrored_J = np.linalg.det(joints_J44[:, :3, :3]) < 0
  strongest = weights.argmax(1)[:, None]
  leading = np.take_along_axis(joints, strongest, axis=1)[:, 0]
  return vertices, mirrored_J[leading]

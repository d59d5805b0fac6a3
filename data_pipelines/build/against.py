"""Meshes of a dataset read a second time, by a library that shares nothing with ours (Assimp).

Compared are extents, triangles that have an area, their area, and, where a file states one colour a
surface and no picture, its mean. Assimp has faults of its own: a difference is a reason to look, a
match of two readers that were written apart is hardly a coincidence.
"""

from collections.abc import Callable, Iterator
import dataclasses
import json
import pathlib

import numpy as np

from data_pipelines.build.validation import Choice
from data_pipelines.format.records import CorruptRecord
from data_pipelines.synth import assets
from sam3d_jax.errors import ConfigError, Refused
from sam3d_jax.files import folders, meshes
from sam3d_jax.files.mesh_formats.surfaces import GREY
from sam3d_jax.render.colour import srgb_to_linear
from sam3d_jax.render.mesh import Mesh, join

LENGTH_STEP = 1e-4  # of the longest side: extents that differ by less are the same
AREA_STEP = 1e-3  # of the area
COLOUR_STEP = 0.01  # linear
LINEAR_COLOURS = (".glb", ".gltf")


@dataclasses.dataclass(frozen=True)
class Reading:
  """What one reader sees in a file, in the file's own frame and unit."""

  extents_3: np.ndarray
  triangles: int  # that have an area
  area: float
  textured: float  # share of the area that has a picture
  # (3,) mean linear base colour by area; None where pictures or nothing at all decide it
  colour_3: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Compared:
  """A mesh file, and in what its two readings differ."""

  name: str
  differences: tuple[str, ...] = ()
  unread: str = ""  # why there is nothing to compare


def meshes_of(
  chosen: list[Choice], progress: Callable[[], None] | None = None
) -> dict[str, set[str]]:
  """The mesh files that records name in their lineage, with the content keys that records give."""
  found: dict[str, set[str]] = {}
  for choice in chosen:
    for index in choice.indices:
      try:
        example = choice.split[index]
      except CorruptRecord:
        # the check of the examples says so
        continue
      lineage = json.loads(example["lineage"] or "{}")
      name = lineage.get("mesh", "")
      if pathlib.PurePath(name).suffix.lower() in meshes.SUFFIXES:
        found.setdefault(name, set()).add(example["mesh_key"])
      if progress is not None:
        progress()
  return found


def compare(source: pathlib.Path, named: dict[str, set[str]]) -> Iterator[Compared]:
  """Every mesh of `named` under `source`, as both readers see it and as records have it.

  Raises ConfigError if Assimp is not installed or `source` is no folder.
  """
  if not source.is_dir():
    raise ConfigError(f"--against {source}: no such folder; give the folder that was built from")
  _assimp()
  for name, keys in sorted(named.items()):
    path = folders.located(source, name)
    if not path.is_file():
      yield Compared(name, (f"not in {source}",))
      continue
    try:
      asset = assets.load(path)
      ours = read(path)
    except Refused as error:
      yield Compared(name, (f"is refused now: {error}",))
      continue
    found = []
    if keys != {asset.key}:
      found.append("its key is not that of the records: the file or its reader has changed")
    try:
      theirs = read_independently(path)
    except RuntimeError as error:
      yield Compared(name, tuple(found), unread=str(error))
      continue
    yield Compared(name, (*found, *differences(ours, theirs)))


def differences(ours: Reading, theirs: Reading) -> list[str]:
  """In what two readings differ, in words."""
  found = []

  # Comparisons are written so that NaN differs too.
  apart = np.abs(ours.extents_3 - theirs.extents_3)
  longest = ours.extents_3.max()
  if not apart.max() <= LENGTH_STEP * longest:
    here, there = _numbers(ours.extents_3), _numbers(theirs.extents_3)
    found.append(f"extents {here}, Assimp {there}")
  if ours.triangles != theirs.triangles:
    found.append(f"{ours.triangles} triangles, Assimp {theirs.triangles}")
  if not abs(ours.area - theirs.area) <= AREA_STEP * ours.area:
    found.append(f"area {ours.area:.6g}, Assimp {theirs.area:.6g}")
  if not abs(ours.textured - theirs.textured) <= AREA_STEP:
    found.append(f"{ours.textured:.1%} of it textured, Assimp {theirs.textured:.1%}")

  # A colour that a reader makes up is no statement.
  if ours.colour_3 is None or theirs.colour_3 is None:
    return found
  apart = np.abs(ours.colour_3 - theirs.colour_3)
  if not apart.max() <= COLOUR_STEP:
    here, there = _numbers(ours.colour_3), _numbers(theirs.colour_3)
    found.append(f"colour {here}, Assimp {there}")
  return found


def describe(compared: list[Compared]) -> str:
  """The report, as text."""
  lines = []
  alike = 0
  for one in compared:
    if one.differences:
      words = "; ".join(one.differences)
      lines.append(f"  differs  {one.name}: {words}")
    if one.unread:
      lines.append(f"  unread   {one.name}: {one.unread}")
    if not one.differences and not one.unread:
      alike += 1
  heading = f"against Assimp: {alike} of {len(compared)} meshes alike"
  return "\n".join([heading, *lines])


def _numbers(values: np.ndarray) -> str:
  return " ".join(f"{value:.4g}" for value in values)


# --- Two readers ----------------------------------------------------------------------------------


def read(path: pathlib.Path) -> Reading:
  """What our reader sees. Raises Refused."""
  found = meshes.read(path).mesh
  mesh = found.with_appearance()

  # Which faces have a picture, and the colours of the others.
  pictured = [material.texture is not None for material in mesh.materials]
  base = [material.colour for material in mesh.materials]
  textured_F = np.array(pictured)[mesh.material]
  colour_F3 = np.array(base)[mesh.material] * _mean_corner(mesh.colours, mesh.faces)
  states_none = any(material is GREY for material in mesh.materials)
  if states_none or any(pictured):
    colour_F3 = None
  return _reading(mesh.vertices, mesh.faces, textured_F, colour_F3)


def read_independently(path: pathlib.Path) -> Reading:
  """What Assimp sees.

  Raises RuntimeError where it refuses the file, ConfigError if it is not installed.
  """
  assimp = _assimp()
  scene = assimp.import_file(str(path), assimp.Process_Triangulate)
  are_linear = path.suffix.lower() in LINEAR_COLOURS

  # Every drawing of triangles.
  parts, textured, colours = [], [], []
  for mesh, world_44 in _drawn(scene):
    if mesh.num_indices != 3 * mesh.num_faces:
      continue  # lines or points
    part = _placed(mesh, world_44)
    material = scene.materials[mesh.material_index]
    is_pictured = bool(material.get("TEXTURE_BASE")) and bool(mesh.texcoords)
    colour = None
    if not is_pictured:
      colour = _colour(mesh, material, part.faces, are_linear)
    parts.append(part)
    textured.append(np.full(len(part.faces), is_pictured))
    colours.append(colour)
  if not parts:
    raise RuntimeError("Assimp finds no triangles")

  # All of them together.
  whole = join(parts)
  colour_F3 = None
  if all(colour is not None for colour in colours):
    colour_F3 = np.concatenate(colours)
  return _reading(whole.vertices, whole.faces, np.concatenate(textured), colour_F3)


def _assimp():
  # optional: nothing else needs it
  try:
    import assimp_py
  except ImportError as error:
    raise ConfigError(
      "--against needs a second reader: pip install -r requirements-against.txt"
    ) from error
  return assimp_py


def _drawn(scene) -> Iterator[tuple]:
  """Every drawing of a mesh of an Assimp scene, with the 4 x 4 that places it."""
  pending = [(scene.root_node, np.eye(4))]
  while pending:
    node, above_44 = pending.pop()
    rows = np.array(node.transformation, np.float64)
    world_44 = above_44 @ rows.reshape(4, 4)
    for number in node.mesh_indices:
      yield scene.meshes[number], world_44
    for child in node.children:
      pending.append((child, world_44))


def _placed(mesh, world_44: np.ndarray) -> Mesh:
  """The triangles of an Assimp mesh in the scene."""
  places = np.array(mesh.vertices, np.float64).reshape(-1, 3)
  faces = np.array(mesh.indices, np.int64).reshape(-1, 3)
  vertices = places @ world_44[:3, :3].T + world_44[:3, 3]
  return Mesh(vertices, faces)


def _colour(mesh, material: dict, faces: np.ndarray, are_linear: bool) -> np.ndarray | None:
  """(F, 3) linear colours of an Assimp mesh; None where Assimp makes its material up."""
  stated = material.get("COLOR_DIFFUSE", (1, 1, 1))
  diffuse = np.array(stated[:3], np.float64)
  if mesh.colors:
    rows = np.array(mesh.colors[0], np.float64)
    corner = rows.reshape(mesh.num_vertices, -1)[:, :3]
    if are_linear:
      return _mean_corner(corner, faces) * diffuse
    # outside of glTF colours of vertices stand for the material's
    return _mean_corner(srgb_to_linear(corner), faces)
  if material.get("NAME") == "DefaultMaterial":
    return None
  if not are_linear:
    diffuse = srgb_to_linear(diffuse)
  return np.broadcast_to(diffuse, (len(faces), 3))


def _mean_corner(values_V3: np.ndarray, faces_F3: np.ndarray) -> np.ndarray:
  corners = np.asarray(values_V3, np.float64)[faces_F3]
  return corners.mean(1)


def _reading(
  vertices: np.ndarray, faces: np.ndarray, textured_F: np.ndarray, colour_F3: np.ndarray | None
) -> Reading:
  a, b, c = vertices[faces].swapaxes(0, 1)
  cross = np.cross(b - a, c - a)
  area_F = np.linalg.norm(cross, axis=1) / 2
  area = float(area_F.sum())
  used = vertices[np.unique(faces)]
  mean = None
  if colour_F3 is not None:
    weighted = colour_F3 * area_F[:, None]
    mean = weighted.sum(0) / area
  return Reading(
    extents_3=np.ptp(used, axis=0),
    triangles=int(np.count_nonzero(area_F)),
    area=area,
    textured=float(area_F[textured_F].sum()) / area,
    colour_3=mean,
  )

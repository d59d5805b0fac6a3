"""Meshes as the builders see them: a mesh in the unit cube, a content key and a licence.

Object frame: z up, inside [-0.5, 0.5]^3, the box's centre at the origin and its longest side 1.
Files that are y up are turned by (x, y, z) -> (x, -z, y). The reader (sam3d_jax/files/meshes.py)
knows which are by their format, and a side-car file says otherwise where that is wrong.

Side-cars (all optional): `<file>.license` holds the licence as text; `sources.json` in the mesh's
folder maps file names to {"license": ..., "up": "y" | "z"}. A licence travels into every record
made from the mesh.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import pathlib
from typing import Any
import unicodedata

import numpy as np
import trimesh

from data_pipelines.synth import trimesh_scenes
from sam3d_jax.errors import Refused
from sam3d_jax.files import blame, folders, meshes, texts
from sam3d_jax.files.mesh_formats import surfaces
from sam3d_jax.geometry.cameras import OBJECT_FROM_GLTF
from sam3d_jax.render.mesh import Mesh

Y_UP_TO_Z_UP = OBJECT_FROM_GLTF.T  # column form: p_z = M @ p_y
KEY_STEP = 1e-5  # vertices that differ by less are the same in the content key
MIN_AREA = 1e-14  # of a triangle that counts, over the square of the longest side


@dataclasses.dataclass(frozen=True)
class Asset:
  """A mesh in the object frame, what it is and where it comes from."""

  mesh: Mesh  # with all of its appearance; faces int32
  key: str  # content key of the geometry
  source: str
  license: str = ""
  # From the file to the object frame: turned to z up, less `centre_3`, over `extent`.
  up: str = "z"
  centre_3: np.ndarray | None = None
  extent: float = 1.0
  dropped: tuple[str, ...] = ()  # what its file holds beside it, in words

  @property
  def radius(self) -> float:
    """Of the sphere about the origin that holds the mesh, unit cubes."""
    distances = np.linalg.norm(self.mesh.vertices, axis=1)
    return float(distances.max())


def load(
  path: pathlib.Path,
  *,
  root: pathlib.Path | None = None,
  license: str = "",
  max_coordinate: float = 1e6,
) -> Asset:
  """Reads one mesh file into an Asset. `license` applies where no side-car states one.

  Raises Refused with the reasons of `meshes.read` (unreadable, missing_texture, unsupported) and:
  empty (no triangles), non_finite (NaN or infinity in a vertex), huge_coordinates (beyond
  `max_coordinate`), zero_area (no triangle has an area).
  """
  path = pathlib.Path(path)
  sidecar = _read_sidecar(path)
  found = meshes.read(path, root=root)
  source = folders.shown(path.relative_to(root) if root else path.name)
  asset = normalised(
    found.mesh,
    source=source,
    up=sidecar.get("up", found.up),
    license=sidecar.get("license", license),
    max_coordinate=max_coordinate,
  )
  return dataclasses.replace(asset, dropped=found.dropped)


def lineage(asset: Asset) -> dict[str, Any]:
  """What a record's lineage says of the file that a mesh was read from; nothing if it is whole."""
  if not asset.dropped:
    return {}
  return {"dropped": list(asset.dropped)}


def _read_sidecar(path: pathlib.Path) -> Mapping[str, str]:
  """What the side-cars of a mesh state: license, up. Raises Refused (unreadable)."""
  # The folder's table.
  entry = _table_entry(path)
  table = path.parent / "sources.json"
  for key, value in entry.items():
    if key in ("license", "up") and not isinstance(value, str):
      raise Refused("unreadable", f"{table}: {key!r} of {path.name} is {value!r}, expected a text")
  if entry.get("up", "y") not in ("y", "z"):
    detail = f"{table}: 'up' of {path.name} is {entry['up']!r}, expected 'y' or 'z'"
    raise Refused("unreadable", detail)

  # The mesh's own licence file goes before it.
  text = path.with_name(path.name + ".license")
  if text.is_file():
    entry["license"] = read_license(text)
  return entry


def _table_entry(path: pathlib.Path) -> dict[str, Any]:
  """What sources.json says of a mesh; nothing if it is not there or does not name it."""
  table = path.parent / "sources.json"
  if not table.is_file():
    return {}
  try:
    content = texts.read_json(table)
  except texts.TextError as error:
    raise Refused("unreadable", f"{table} of {path.name}: {error}") from error
  if not isinstance(content, dict):
    raise Refused("unreadable", f"{table} of {path.name}: expected an object of file names")
  entry = content.get(path.name, {})
  if path.name not in content:
    # a Mac writes an accent as a character of its own, tables often do not
    wanted = unicodedata.normalize("NFC", path.name)
    alike = [name for name in content if unicodedata.normalize("NFC", name) == wanted]
    entry = content[alike[0]] if alike else {}
  if not isinstance(entry, dict):
    detail = f"{table}: {path.name} is {entry!r}, expected an object with 'license' and 'up'"
    raise Refused("unreadable", detail)
  return dict(entry)


def states_license(path: pathlib.Path) -> bool:
  """Whether something beside a file says under which licence it is: its own file, or the table."""
  if path.with_name(path.name + ".license").is_file():
    return True
  try:
    with blame.reading(path):
      return bool(_table_entry(path).get("license"))
  # the mesh is refused when its turn comes
  except Refused:
    return True


def read_license(path: pathlib.Path) -> str:
  """The text of a licence beside a file. Raises Refused (unreadable)."""
  try:
    return texts.read(path).strip()
  except texts.TextError as error:
    raise Refused("unreadable", f"{path.name}: {error}") from error


def from_scene(scene: trimesh.Scene, *, source: str, up: str, license: str = "") -> Asset:
  """An Asset of a trimesh scene with linear colours. Raises Refused as `load` does."""
  mesh = trimesh_scenes.flatten(scene)
  return normalised(mesh, source=source, up=up, license=license)


def normalised(
  mesh: Mesh, *, source: str, up: str, license: str = "", max_coordinate: float = 1e6
) -> Asset:
  """A mesh of any frame and unit as an Asset: in the unit cube, without what has no area.

  `up` is the axis that points up. Raises Refused as `load` does.
  """
  if not len(mesh.faces):
    raise Refused("empty", f"{source}: no triangles")
  mesh = mesh.with_appearance()
  turn = OBJECT_FROM_GLTF if up == "y" else np.eye(3)
  # non-finite vertices are refused by name in the next line
  with np.errstate(invalid="ignore", over="ignore"):
    vertices = mesh.vertices @ turn
  kept = _faces_with_area(vertices, mesh.faces, source, max_coordinate)

  # Vertices that no face uses go, and count for neither the box nor the key.
  used, faces = surfaces.used_by(mesh.faces[kept], len(vertices))
  faces = faces.astype(np.int32)
  vertices = vertices[used]

  # The box's centre comes to the origin, its longest side to 1.
  low = vertices.min(0)
  high = vertices.max(0)
  centre = (low + high) / 2
  extent = float((high - low).max())
  # Rounding must not leave a vertex outside.
  unit = (vertices - centre) / extent
  vertices = np.clip(unit, -0.5, 0.5)
  in_cube = Mesh(
    vertices=vertices,
    faces=faces,
    colours=mesh.colours[used],
    uv=mesh.uv[used],
    material=mesh.material[kept],
    materials=mesh.materials,
  )
  return Asset(
    mesh=in_cube,
    key=geometry_key(vertices, faces),
    source=source,
    license=license,
    up=up,
    centre_3=centre,
    extent=extent,
  )


def _faces_with_area(vertices, faces, source: str, max_coordinate: float) -> np.ndarray:
  """Refuses what cannot be normalised; returns which faces have an area."""
  finite = np.isfinite(vertices)
  if not finite.all():
    bad = np.count_nonzero(~finite.all(1))
    raise Refused("non_finite", f"{source}: {bad} of {len(vertices)} vertices are NaN or infinite")
  used, _ = surfaces.used_by(faces, len(vertices))
  corners = vertices[used]
  largest = np.abs(corners).max()
  if largest > max_coordinate:
    detail = f"{source}: a coordinate of {largest:.3g} exceeds {max_coordinate:.3g}"
    raise Refused("huge_coordinates", detail)

  # An area that counts is one against the square of the longest side.
  a, b, c = vertices[faces].swapaxes(0, 1)
  cross = np.cross(b - a, c - a)
  area = np.linalg.norm(cross, axis=1) / 2
  longest = np.ptp(corners, axis=0).max()
  kept = area > MIN_AREA * longest**2
  if not kept.any():
    raise Refused("zero_area", f"{source}: none of {len(faces)} triangles has an area")
  return kept


def geometry_key(vertices_V3: np.ndarray, faces_F3: np.ndarray) -> str:
  """32 hex digits that depend on the surface alone.

  Neither the order of vertices or faces nor duplicated vertices change them.
  """
  # The three integers of a corner, each below 2^21, in one.
  corners_F33 = vertices_V3[faces_F3]
  steps_F33 = np.rint(corners_F33 / KEY_STEP)
  steps_F33 = steps_F33.astype(np.int64)
  positive_F33 = steps_F33 + (1 << 20)
  x, y, z = np.moveaxis(positive_F33, -1, 0)
  packed_F3 = (x << 42) | (y << 21) | z

  # Every face starts with its smallest corner, and faces are sorted.
  first_F = packed_F3.argmin(1)
  order_F3 = (first_F[:, None] + np.arange(3)) % 3
  rolled_F3 = np.take_along_axis(packed_F3, order_F3, axis=1)
  by_corners = np.lexsort(rolled_F3.T[::-1])
  sorted_F3 = rolled_F3[by_corners]

  # Little-endian on every machine.
  content = sorted_F3.astype("<i8").tobytes()
  return hashlib.sha256(content).hexdigest()[:32]

"""Meshes as the builders see them: one triangle soup in the unit cube, with colours, a content key
and a licence.

Object frame: z up, inside [-0.5, 0.5]^3, the box's centre at the origin and its longest side 1.
glTF is y-up by its specification and is turned by (x, y, z) -> (x, -z, y). The other formats state
no axis: y up is assumed for OBJ, PLY and OFF and z up for STL, and a side-car file says otherwise
where that is wrong.

Side-cars (all optional): `<file>.license` holds the licence as text; `sources.json` in the mesh's
folder maps file names to {"license": ..., "up": "y" | "z"}. A licence travels into every record
made from the mesh.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import pathlib

import numpy as np
import trimesh

from data_pipelines.synth import completeness
from sam3d_jax.errors import Refused

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
UP_AXIS = {".glb": "y", ".gltf": "y", ".obj": "y", ".ply": "y", ".off": "y", ".stl": "z"}
Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # column form: p_z = M @ p_y
KEY_STEP = 1e-5  # vertices that differ by less are the same in the content key
GREY = (0.6, 0.6, 0.6)  # linear, of surfaces that state no colour at all
MAX_UV = 1e4  # repeats of a texture; beyond it float32 no longer resolves a texel
MAX_TEXTURE = 4096  # pixels a side; larger textures are reduced on the way in


@dataclasses.dataclass(frozen=True)
class Material:
  """Linear base colour, multiplied with an sRGB texture (H, W, 3) uint8, row 0 on top, where there
  is one.

  `cutout` (H, W) bool says where the texture has no surface (leaves, lattices); None: nowhere.
  """

  colour: tuple[float, float, float]
  texture: np.ndarray | None = None
  cutout: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Asset:
  """A normalised mesh. V vertices, F faces."""

  vertices_V3: np.ndarray  # float64, object frame
  faces_F3: np.ndarray  # int32
  uv_V2: np.ndarray  # float32, origin at the texture's lower left
  colour_V3: np.ndarray  # float32 linear vertex colours, 1 where the mesh has none
  material_F: np.ndarray  # int32 into `materials`
  materials: tuple[Material, ...]
  key: str  # content key of the geometry
  source: str
  license: str = ""
  # From the file to the object frame: turned to z up, less `centre_3`, over `extent`.
  up: str = "z"
  centre_3: np.ndarray | None = None
  extent: float = 1.0


def srgb_to_linear(c):
  """sRGB electro-optical transfer function (IEC 61966-2-1), values in 0..1."""
  c = np.asarray(c, np.float32)
  return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4).astype(np.float32)


def load(
  path: pathlib.Path,
  *,
  root: pathlib.Path | None = None,
  license: str = "",
  max_coordinate: float = 1e6,
) -> Asset:
  """Reads one mesh file of `SUFFIXES` into an Asset. `license` applies where no side-car states
  one.

  Raises Refused with reason: unreadable (not parseable, truncated, missing parts), missing_texture
  (a texture file that the mesh names), empty (no triangles), non_finite (NaN or infinity in a
  vertex), huge_coordinates (beyond `max_coordinate`), zero_area (no triangle has an area).
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix not in SUFFIXES:
    raise Refused(
      "unreadable", f"{path.name}: unknown mesh format, expected one of {', '.join(SUFFIXES)}"
    )
  sidecar = _read_sidecar(path)
  completeness.check_file(path)
  try:
    # process=False keeps NaN vertices and their faces, which processing would silently drop.
    scene = trimesh.load_scene(path, process=False, resolver=completeness.Resolver(path))
  except MemoryError:
    raise
  # parsers raise whatever a broken byte leads them to; all of it means the same here
  except Exception as error:
    raise Refused("unreadable", f"{path.name}: {type(error).__name__}: {error}") from error
  completeness.check_textures(path, scene)
  source = str(path.relative_to(root)) if root else path.name
  return from_scene(
    scene,
    source=source,
    up=sidecar.get("up", UP_AXIS[suffix]),
    license=sidecar.get("license", license),
    linear_vertex_colours=suffix in (".glb", ".gltf"),
    max_coordinate=max_coordinate,
  )


def _read_sidecar(path: pathlib.Path) -> Mapping[str, str]:
  entry = {}
  table = path.parent / "sources.json"
  if table.is_file():
    entry = dict(json.loads(table.read_text()).get(path.name, {}))
  if entry.get("up", "y") not in ("y", "z"):
    raise Refused(
      "unreadable", f"{table}: 'up' of {path.name} is {entry['up']!r}, expected 'y' or 'z'"
    )
  text = path.with_name(path.name + ".license")
  if text.is_file():
    entry["license"] = text.read_text().strip()
  return entry


def from_scene(
  scene: trimesh.Scene,
  *,
  source: str,
  up: str,
  license: str = "",
  linear_vertex_colours: bool = True,
  max_coordinate: float = 1e6,
) -> Asset:
  """Flattens a scene (nodes, transforms, several geometries and materials) into an Asset. Raises
  Refused as `load` does.
  """
  pieces = [piece for piece in _pieces(scene, linear_vertex_colours)]
  if not pieces:
    raise Refused("empty", f"{source}: no triangles")
  offsets = np.cumsum([0] + [len(p["vertices"]) for p in pieces])
  joined = {
    name: np.concatenate([p[name] for p in pieces]) for name in ("vertices", "uv", "colour")
  }
  faces = np.concatenate([p["faces"] + o for p, o in zip(pieces, offsets, strict=False)])
  slot = {
    id(p["material"]): i for i, p in enumerate({id(p["material"]): p for p in pieces}.values())
  }
  material = np.concatenate(
    [np.full(len(p["faces"]), slot[id(p["material"])], np.int32) for p in pieces]
  )
  materials = tuple({id(p["material"]): p["material"] for p in pieces}.values())
  vertices = joined["vertices"] @ (Y_UP_TO_Z_UP.T if up == "y" else np.eye(3))
  keep = _check(vertices, faces, source, max_coordinate)
  return _finish(
    vertices,
    faces[keep],
    joined["uv"],
    joined["colour"],
    material[keep],
    materials,
    source,
    license,
    up,
  )


def _pieces(scene: trimesh.Scene, linear_vertex_colours: bool):
  """Every drawn triangle mesh with its node's transform applied, as plain arrays."""
  materials: dict[int | str | None, Material] = {}
  for node in scene.graph.nodes_geometry:
    transform, name = scene.graph[node]
    mesh = scene.geometry[name]
    if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
      continue
    # non-finite vertices are refused by name below
    with np.errstate(invalid="ignore", over="ignore"):
      vertices = np.asarray(mesh.vertices, np.float64) @ transform[:3, :3].T + transform[:3, 3]
    faces = np.asarray(mesh.faces, np.int64)
    if np.linalg.det(transform[:3, :3]) < 0:  # a mirrored node turns its faces inside out
      faces = faces[:, ::-1]
    if faces.min() < 0 or faces.max() >= len(vertices):
      raise Refused(
        "unreadable", f"geometry {name!r}: a face names vertex {faces.max()} of {len(vertices)}"
      )
    vertices, faces, uv, colour = _appearance(mesh, vertices, faces, linear_vertex_colours)
    slot = id(mesh.visual.material) if mesh.visual.kind == "texture" else mesh.visual.kind
    if slot not in materials:
      materials[slot] = _material(mesh.visual)
    yield {
      "vertices": vertices,
      "faces": faces,
      "uv": uv,
      "colour": colour,
      "material": materials[slot],
    }


def _appearance(mesh: trimesh.Trimesh, vertices, faces, linear: bool):
  """Vertex colours and texture coordinates; face colours are given vertices of their own."""
  uv = np.zeros((len(vertices), 2), np.float32)
  colour = np.ones((len(vertices), 3), np.float32)
  kind = mesh.visual.kind
  decode = (
    (lambda c: np.asarray(c[:, :3], np.float32) / 255.0)
    if linear
    else (lambda c: srgb_to_linear(c[:, :3] / 255.0))
  )
  if kind == "texture" and mesh.visual.uv is not None and len(mesh.visual.uv) == len(vertices):
    uv = np.clip(np.nan_to_num(np.asarray(mesh.visual.uv, np.float32)), -MAX_UV, MAX_UV)
    if "color" in mesh.visual.vertex_attributes:
      colour = decode(np.asarray(mesh.visual.vertex_attributes["color"]))
  elif kind == "vertex":
    colour = decode(np.asarray(mesh.visual.vertex_colors))
  elif kind == "face":
    colour = np.repeat(decode(np.asarray(mesh.visual.face_colors)), 3, axis=0)
    vertices, faces = vertices[faces].reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3)
    uv = np.zeros((len(vertices), 2), np.float32)
  return vertices, faces, uv, colour


def _material(visual) -> Material:
  """Base colour and texture of a trimesh visual; grey where it states neither a material nor vertex
  or face colours.
  """
  material = visual.material if visual.kind == "texture" else None
  if isinstance(material, trimesh.visual.material.PBRMaterial):
    factor = material.baseColorFactor
    colour = (1.0, 1.0, 1.0) if factor is None else tuple(np.asarray(factor[:3], float) / 255.0)
    return Material(
      colour=colour, texture=_texture(material.baseColorTexture), cutout=_cutout(material)
    )
  if isinstance(material, trimesh.visual.material.SimpleMaterial):
    texture = _texture(material.image)
    diffuse = srgb_to_linear(np.asarray(material.diffuse[:3]) / 255.0)
    return Material(
      colour=(1.0, 1.0, 1.0) if texture is not None else tuple(map(float, diffuse)), texture=texture
    )
  return Material(colour=GREY if visual.kind is None else (1.0, 1.0, 1.0))


def _cutout(material) -> np.ndarray | None:
  """Where a glTF material of alpha mode MASK or BLEND is more transparent than its cut-off (0.5
  where it states none).
  """
  image = material.baseColorTexture
  if (
    material.alphaMode not in ("MASK", "BLEND")
    or image is None
    or image.mode not in ("RGBA", "LA", "PA")
  ):
    return None
  cutoff = (
    0.5 if material.alphaCutoff is None or material.alphaMode == "BLEND" else material.alphaCutoff
  )
  cutout = _reduced(image.getchannel("A")) < 255 * cutoff
  return cutout if cutout.any() and not cutout.all() else None


def _texture(image) -> np.ndarray | None:
  if image is None:
    return None
  try:
    return _reduced(image.convert("RGB"))
  # Pillow decodes late and raises any of these on broken bytes
  except (OSError, ValueError, SyntaxError) as error:
    raise Refused("unreadable", f"a texture cannot be decoded: {error}") from error


def _reduced(image) -> np.ndarray:
  if max(image.size) > MAX_TEXTURE:
    ratio = MAX_TEXTURE / max(image.size)
    image = image.resize([max(1, round(s * ratio)) for s in image.size])
  return np.asarray(image)


def _check(vertices, faces, source: str, max_coordinate: float) -> np.ndarray:
  """Refuses what cannot be normalised; returns which faces have an area."""
  used = vertices[np.unique(faces)]
  if not np.isfinite(vertices).all():
    bad = int((~np.isfinite(vertices)).any(1).sum())
    raise Refused("non_finite", f"{source}: {bad} of {len(vertices)} vertices are NaN or infinite")
  if np.abs(used).max() > max_coordinate:
    raise Refused(
      "huge_coordinates",
      f"{source}: a coordinate of {np.abs(used).max():.3g} exceeds {max_coordinate:.3g}",
    )
  corner = vertices[faces]
  area = (
    np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1) / 2
  )
  keep = area > 1e-14 * np.ptp(used, axis=0).max() ** 2
  if not keep.any():
    raise Refused("zero_area", f"{source}: none of {len(faces)} triangles has an area")
  return keep


def _finish(
  vertices, faces, uv, colour, material, materials, source: str, license: str, up: str
) -> Asset:
  """Drops unused vertices, normalises to the unit cube and computes the key."""
  used, faces = np.unique(faces, return_inverse=True)
  vertices, faces = vertices[used], faces.reshape(-1, 3).astype(np.int32)
  low, high = vertices.min(0), vertices.max(0)
  centre, extent = (low + high) / 2, float((high - low).max())
  vertices = np.clip((vertices - centre) / extent, -0.5, 0.5)
  return Asset(
    vertices_V3=vertices,
    faces_F3=faces,
    uv_V2=uv[used],
    colour_V3=colour[used],
    material_F=material,
    materials=materials,
    key=geometry_key(vertices, faces),
    source=source,
    license=license,
    up=up,
    centre_3=centre,
    extent=extent,
  )


def geometry_key(vertices_V3: np.ndarray, faces_F3: np.ndarray) -> str:
  """32 hex digits that depend on the surface alone: not on the order of vertices or faces, nor on
  duplicated vertices.
  """
  # (F, 3, 3), each below 2^21
  corners = np.rint(vertices_V3[faces_F3] / KEY_STEP).astype(np.int64) + (1 << 20)
  packed = (corners[..., 0] << 42) | (corners[..., 1] << 21) | corners[..., 2]
  first = packed.argmin(1)[:, None]
  rolled = np.take_along_axis(packed, (first + np.arange(3)) % 3, axis=1)
  rolled = rolled[np.lexsort(rolled.T[::-1])]
  return hashlib.sha256(rolled.astype("<i8").tobytes()).hexdigest()[:32]

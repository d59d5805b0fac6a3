"""Scenes that were made here with trimesh, as one `Mesh`. Files: sam3d_jax/files/meshes.py."""

import numpy as np
import trimesh

from sam3d_jax.files.mesh_formats import alpha
from sam3d_jax.files.mesh_formats.surfaces import GREY, MAX_UV, check_faces, together
from sam3d_jax.render.colour import srgb_to_linear
from sam3d_jax.render.mesh import WHITE, Material, Mesh


def flatten(scene: trimesh.Scene) -> Mesh:
  """Every drawn triangle of a scene with its colours, which are linear.

  Raises Refused (unreadable) for a face of a vertex that does not exist.
  """
  materials: dict[int | str | None, Material] = {}
  parts = []
  for node in scene.graph.nodes_geometry:
    transform_44, name = scene.graph[node]
    geometry = scene.geometry[name]
    # Lines and point clouds are not drawn.
    is_surface = isinstance(geometry, trimesh.Trimesh)
    if not is_surface or not len(geometry.faces):
      continue
    shape = _placed(name, geometry, transform_44)

    # Geometries that share a material share one entry.
    visual = geometry.visual
    slot = visual.kind
    if visual.kind == "texture":
      slot = id(visual.material)
    if slot not in materials:
      materials[slot] = _material(visual)
    dressed = _dressed(shape, visual, materials[slot])
    parts.append(dressed)
  return together(parts)


def _placed(name: str, geometry: trimesh.Trimesh, transform_44: np.ndarray) -> Mesh:
  """Vertices where the node puts them, faces the right way out."""
  linear_33 = transform_44[:3, :3]
  offset_3 = transform_44[:3, 3]
  own_V3 = np.asarray(geometry.vertices, np.float64)
  # what is not finite is refused later, with a reason
  with np.errstate(invalid="ignore", over="ignore"):
    turned = own_V3 @ linear_33.T
    vertices = turned + offset_3
  faces = np.asarray(geometry.faces, np.int64)
  check_faces(faces, len(vertices), f"geometry {name!r}")

  # a mirrored node turns its faces inside out
  is_mirrored = np.linalg.det(linear_33) < 0
  if is_mirrored:
    faces = faces[:, ::-1]
  return Mesh(vertices, faces)


def _dressed(shape: Mesh, visual, look: Material) -> Mesh:
  """The shape with its appearance; face colours are given vertices of their own."""
  vertices = shape.vertices
  faces = shape.faces
  uv = None
  colours = None
  kind = visual.kind
  has_uv = kind == "texture" and visual.uv is not None
  if has_uv and len(visual.uv) == len(vertices):
    # texture coordinates, and the vertex colours that they are multiplied with
    stated = np.asarray(visual.uv, np.float32)
    stated = np.nan_to_num(stated)
    uv = np.clip(stated, -MAX_UV, MAX_UV)
    if "color" in visual.vertex_attributes:
      colours = _fractions(visual.vertex_attributes["color"])
  elif kind == "vertex":
    colours = _fractions(visual.vertex_colors)
  elif kind == "face":
    # a vertex for each corner, so that no two faces share a colour
    of_face = _fractions(visual.face_colors)
    colours = np.repeat(of_face, 3, axis=0)
    vertices = vertices[faces].reshape(-1, 3)
    corner = np.arange(3 * len(faces))
    faces = corner.reshape(-1, 3)

  material = np.zeros(len(faces), np.int32)
  dressed = Mesh(
    vertices,
    faces,
    colours,
    uv,
    material,
    (look,),
  )
  return dressed.with_appearance()


def _fractions(rgba_V4: np.ndarray) -> np.ndarray:
  """float32 colours (V, 3) of stored bytes."""
  rgb = np.asarray(rgba_V4)[:, :3]
  return np.asarray(rgb, np.float32) / 255.0


def _material(visual) -> Material:
  """Base colour and texture; grey where neither a material nor colours are stated."""
  if visual.kind is None:
    return GREY
  material = None
  if visual.kind == "texture":
    material = visual.material

  # glTF's material: a factor times a texture
  if isinstance(material, trimesh.visual.material.PBRMaterial):
    factor = material.baseColorFactor
    colour = (1.0, 1.0, 1.0)
    if factor is not None:
      stored = np.asarray(factor[:3], float)
      colour = tuple(stored / 255.0)
    image = material.baseColorTexture
    texture = None
    if image is not None:
      texture = np.asarray(image.convert("RGB"))
    return Material(colour, texture, _cutout(material))

  # OBJ's: a texture, or a colour that is encoded
  if isinstance(material, trimesh.visual.material.SimpleMaterial):
    if material.image is not None:
      picture = material.image.convert("RGB")
      return Material((1.0, 1.0, 1.0), np.asarray(picture))
    encoded = np.asarray(material.diffuse[:3]) / 255.0
    diffuse = srgb_to_linear(encoded)
    return Material(tuple(map(float, diffuse)))

  # colours of vertices or faces: the material is white
  return WHITE


def _cutout(material: trimesh.visual.material.PBRMaterial) -> np.ndarray | None:
  """Which texels of a material of alpha mode MASK or BLEND are gone; None if none or all are."""
  image = material.baseColorTexture
  if image is None or image.mode not in ("RGBA", "LA", "PA"):
    return None

  # from which opacity on a texel counts
  if material.alphaMode == "MASK":
    cutoff = material.alphaCutoff
    if cutoff is None:
      cutoff = alpha.MASK_CUTOFF
  elif material.alphaMode == "BLEND":
    cutoff = alpha.BLEND_CUTOFF
  else:
    return None
  opacity = np.asarray(image.getchannel("A"))
  gone = alpha.cutout(opacity, 1.0, cutoff)
  # what would vanish wholly is drawn: its alpha means something else
  if gone is None or gone.all():
    return None
  return gone

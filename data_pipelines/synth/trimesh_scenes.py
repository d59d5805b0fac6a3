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
    if not isinstance(geometry, trimesh.Trimesh) or not len(geometry.faces):
      continue
    shape = _placed(name, geometry, transform_44)
    visual = geometry.visual
    slot = id(visual.material) if visual.kind == "texture" else visual.kind
    if slot not in materials:
      materials[slot] = _material(visual)
    parts.append(_dressed(shape, visual, materials[slot]))
  return together(parts)


def _placed(name: str, geometry: trimesh.Trimesh, transform_44: np.ndarray) -> Mesh:
  """Vertices where the node puts them, faces the right way out."""
  with np.errstate(invalid="ignore", over="ignore"):
    turned = np.asarray(geometry.vertices, np.float64) @ transform_44[:3, :3].T
    vertices = turned + transform_44[:3, 3]
  faces = np.asarray(geometry.faces, np.int64)
  check_faces(faces, len(vertices), f"geometry {name!r}")
  # a mirrored node turns its faces inside out
  if np.linalg.det(transform_44[:3, :3]) < 0:
    faces = faces[:, ::-1]
  return Mesh(vertices, faces)


def _dressed(shape: Mesh, visual, look: Material) -> Mesh:
  """The shape with its appearance; face colours are given vertices of their own."""
  vertices, faces = shape.vertices, shape.faces
  uv, colours = None, None
  if visual.kind == "texture" and visual.uv is not None and len(visual.uv) == len(vertices):
    stated = np.nan_to_num(np.asarray(visual.uv, np.float32))
    uv = np.clip(stated, -MAX_UV, MAX_UV)
    if "color" in visual.vertex_attributes:
      colours = _fractions(visual.vertex_attributes["color"])
  elif visual.kind == "vertex":
    colours = _fractions(visual.vertex_colors)
  elif visual.kind == "face":
    colours = np.repeat(_fractions(visual.face_colors), 3, axis=0)
    vertices = vertices[faces].reshape(-1, 3)
    faces = np.arange(3 * len(faces)).reshape(-1, 3)
  material = np.zeros(len(faces), np.int32)
  return Mesh(vertices, faces, colours, uv, material, (look,)).with_appearance()


def _fractions(rgba_V4: np.ndarray) -> np.ndarray:
  """float32 colours (V, 3) of stored bytes."""
  rgb = np.asarray(rgba_V4)[:, :3]
  return np.asarray(rgb, np.float32) / 255.0


def _material(visual) -> Material:
  """Base colour and texture; grey where neither a material nor colours are stated."""
  if visual.kind is None:
    return GREY
  material = visual.material if visual.kind == "texture" else None
  if isinstance(material, trimesh.visual.material.PBRMaterial):
    factor = material.baseColorFactor
    colour = (1.0, 1.0, 1.0)
    if factor is not None:
      colour = tuple(np.asarray(factor[:3], float) / 255.0)
    image = material.baseColorTexture
    texture = None if image is None else np.asarray(image.convert("RGB"))
    return Material(colour, texture, _cutout(material))
  if isinstance(material, trimesh.visual.material.SimpleMaterial):
    if material.image is not None:
      return Material((1.0, 1.0, 1.0), np.asarray(material.image.convert("RGB")))
    diffuse = srgb_to_linear(np.asarray(material.diffuse[:3]) / 255.0)
    return Material(tuple(map(float, diffuse)))
  return WHITE


def _cutout(material: trimesh.visual.material.PBRMaterial) -> np.ndarray | None:
  """Which texels of a material of alpha mode MASK or BLEND are gone; None if none or all are."""
  image = material.baseColorTexture
  if image is None or image.mode not in ("RGBA", "LA", "PA"):
    return None
  if material.alphaMode == "MASK":
    cutoff = material.alphaCutoff
    cutoff = alpha.MASK_CUTOFF if cutoff is None else cutoff
  elif material.alphaMode == "BLEND":
    cutoff = alpha.BLEND_CUTOFF
  else:
    return None
  gone = alpha.cutout(np.asarray(image.getchannel("A")), 1.0, cutoff)
  return None if gone is None or gone.all() else gone

"""Colours, texture coordinates and materials of parsed meshes, as `Mesh` holds them."""

import dataclasses

import numpy as np
import trimesh

from sam3d_jax.errors import Refused
from sam3d_jax.render.colour import srgb_to_linear
from sam3d_jax.render.mesh import WHITE, Material, Mesh

GREY = Material((0.6, 0.6, 0.6))  # of surfaces that state no colour at all
MAX_UV = 1e4  # repeats of a texture; beyond it float32 no longer resolves a texel
MAX_TEXTURE = 4096  # pixels a side; larger textures are reduced on the way in


class Materials:
  """The materials met while a scene is flattened; each is converted once.

  linear: vertex and face colours are linear, as in glTF; else sRGB.
  """

  def __init__(self, linear: bool):
    self._linear = linear
    self._known: dict[int | str | None, Material] = {}

  def dress(self, shape: Mesh, geometry: trimesh.Trimesh) -> Mesh:
    """The shape with the geometry's appearance; face colours are given vertices of their own."""
    visual = geometry.visual
    vertices, faces = shape.vertices, shape.faces
    uv, colours = None, None
    if visual.kind == "texture" and visual.uv is not None and len(visual.uv) == len(vertices):
      stated = np.nan_to_num(np.asarray(visual.uv, np.float32))
      uv = np.clip(stated, -MAX_UV, MAX_UV)
      if "color" in visual.vertex_attributes:
        colours = self._decoded(visual.vertex_attributes["color"])
    elif visual.kind == "vertex":
      colours = self._decoded(visual.vertex_colors)
    elif visual.kind == "face":
      colours = np.repeat(self._decoded(visual.face_colors), 3, axis=0)
      vertices = vertices[faces].reshape(-1, 3)
      faces = np.arange(3 * len(faces)).reshape(-1, 3)
    material = np.zeros(len(faces), np.int32)
    dressed = Mesh(vertices, faces, colours, uv, material, (self._material(visual),))
    return dressed.with_appearance()

  def tint(self, cloud: Mesh, geometry: trimesh.parent.Geometry) -> Mesh:
    """A point cloud with its points' colours, if it has any."""
    colours = np.asarray(getattr(geometry, "colors", ()))
    if len(colours) != len(cloud.vertices) or not len(colours):
      return cloud
    return dataclasses.replace(cloud, colours=self._decoded(colours))

  def shared(self, mesh: Mesh) -> Mesh:
    """The same mesh with each material once, in the order of first use."""
    once = tuple({id(m): m for m in mesh.materials}.values())
    slot = {id(m): i for i, m in enumerate(once)}
    if len(once) == len(mesh.materials):
      return mesh
    new_slot = np.array([slot[id(m)] for m in mesh.materials], np.int32)
    return dataclasses.replace(mesh, material=new_slot[mesh.material], materials=once)

  def _decoded(self, rgba_V4: np.ndarray) -> np.ndarray:
    """Linear float32 colours (V, 3) of stored bytes."""
    rgb = np.asarray(rgba_V4)[:, :3]
    if self._linear:
      return np.asarray(rgb, np.float32) / 255.0
    return srgb_to_linear(rgb / 255.0)

  def _material(self, visual) -> Material:
    slot = id(visual.material) if visual.kind == "texture" else visual.kind
    if slot not in self._known:
      self._known[slot] = _material_of(visual)
    return self._known[slot]


def _material_of(visual) -> Material:
  """Base colour and texture; grey where neither a material nor colours are stated."""
  if visual.kind is None:
    return GREY
  material = visual.material if visual.kind == "texture" else None
  if isinstance(material, trimesh.visual.material.PBRMaterial):
    factor = material.baseColorFactor
    colour = (1.0, 1.0, 1.0)
    if factor is not None:
      colour = tuple(np.asarray(factor[:3], float) / 255.0)
    return Material(colour, _texture(material.baseColorTexture), _cutout(material))
  if isinstance(material, trimesh.visual.material.SimpleMaterial):
    texture = _texture(material.image)
    if texture is not None:
      return Material((1.0, 1.0, 1.0), texture)
    diffuse = srgb_to_linear(np.asarray(material.diffuse[:3]) / 255.0)
    return Material(tuple(map(float, diffuse)))
  return WHITE


def _cutout(material: trimesh.visual.material.PBRMaterial) -> np.ndarray | None:
  """Where a glTF material of alpha mode MASK or BLEND is more transparent than its cut-off.

  The cut-off is 0.5 where the material states none. None if nothing or everything is cut out.
  """
  image = material.baseColorTexture
  transparent = material.alphaMode in ("MASK", "BLEND")
  if not transparent or image is None or image.mode not in ("RGBA", "LA", "PA"):
    return None
  cutoff = material.alphaCutoff
  if cutoff is None or material.alphaMode == "BLEND":
    cutoff = 0.5
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
  """Pixels of an image, at most MAX_TEXTURE a side."""
  if max(image.size) > MAX_TEXTURE:
    ratio = MAX_TEXTURE / max(image.size)
    image = image.resize([max(1, round(side * ratio)) for side in image.size])
  return np.asarray(image)

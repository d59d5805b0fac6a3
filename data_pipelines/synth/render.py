"""Ray-cast renderer: Embree finds the hits, numpy shades them. Headless and deterministic.

Lambertian surfaces under directional lights with shadows and an ambient term; both sides of a face
are drawn; a texel is opaque or cut out (a cut-out still casts a shadow). Textures are sampled
bilinearly from a pyramid level chosen by footprint. Depth, mask and point map come from one ray
through each pixel's centre; colours are averaged over samples within the pixel, in linear light.
Safe to use in spawned processes.
"""

import dataclasses
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.synth import textures
from data_pipelines.synth.camera import Viewpoint, rays, sample_grid
from data_pipelines.synth.lighting import Lights
from data_pipelines.synth.normals import corner_normals, face_areas_normals
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.render.colour import linear_to_srgb8, srgb_to_linear
from sam3d_jax.render.mesh import Mesh
from sam3d_jax.render.raycast import Caster

VERSION = "1"  # raise it when the same scene gives other pixels
# unit cubes, along the normal: above the float32 error of a hit, below visible detail
SHADOW_OFFSET = 2e-4
MAX_CUTOUTS = 16  # transparent layers that a ray passes before it counts as a miss


@dataclasses.dataclass(frozen=True)
class View:
  """What one camera sees. Colours are linear, over black, not divided by `alpha`."""

  lit_HW3: np.ndarray  # float32 under the given lights
  delit_HW3: np.ndarray  # float32 base colour: ambient light of radiance 1 only
  alpha_HW: np.ndarray  # float32 coverage
  mask_HW: np.ndarray  # bool, the pixel's centre is covered
  # float32 z at the pixel's centre in the camera's unit, NaN where nothing is hit
  depth_HW: np.ndarray
  pointmap_HW3: np.ndarray  # float32 camera-frame points of `depth_HW`, NaN where nothing is hit


@dataclasses.dataclass(frozen=True)
class Shot:
  """N rays and their nearest opaque hits, in the object frame; a cast changes the hits in place."""

  origin_N3: np.ndarray
  direction_N3: np.ndarray  # of camera depth 1
  face_N: np.ndarray  # int32, -1 where there is nothing
  depth_N: np.ndarray  # along the ray
  u_N: np.ndarray  # weights of the face's second and third corner
  v_N: np.ndarray


class Scene:
  """A mesh prepared for rendering: build once, render many views. `name` is for messages."""

  def __init__(self, mesh: Mesh, name: str = "mesh"):
    self.mesh = mesh.with_appearance()
    self.name = name
    self.caster = Caster(mesh)

    # Geometry: normals of faces and, smoothed, of their corners.
    area, self.normal_F3 = face_areas_normals(mesh.vertices, mesh.faces)
    normals = corner_normals(
      mesh.vertices,
      mesh.faces,
      area,
      self.normal_F3,
    )
    self.corner_normal_F33 = normals.astype(np.float32)

    # Appearance: textures at every size, and how finely they lie on the faces.
    materials = self.mesh.materials
    self.pyramids = [textures.pyramid(material.texture) for material in materials]
    self.has_cutouts = any(material.cutout is not None for material in materials)
    self.texels_F = self._texel_density(area)

  def _texel_density(self, area_F: np.ndarray) -> np.ndarray:
    """Texels of the face's texture per unit of length on the surface."""
    # Area of each face in the unit square of its texture: half a determinant.
    corners_F32 = self.mesh.uv[self.mesh.faces]
    corners_F32 = corners_F32.astype(np.float64)
    a, b, c = corners_F32.swapaxes(0, 1)
    d = b - a
    e = c - a
    determinant = d[:, 0] * e[:, 1] - d[:, 1] * e[:, 0]
    uv_area = np.abs(determinant) / 2

    # Texels of each texture, none where a material has no texture.
    texels = np.zeros(len(self.mesh.materials), int)
    for slot, material in enumerate(self.mesh.materials):
      if material.texture is not None:
        height, width = material.texture.shape[:2]
        texels[slot] = height * width

    # Texels per unit of area, and of length.
    on_face = uv_area * texels[self.mesh.material]
    area = np.maximum(area_F, 1e-300)
    return np.sqrt(on_face / area)


# --- Views ----------------------------------------------------------------------------------------


def render(scene: Scene, viewpoint: Viewpoint, lights: Lights, *, samples: int = 2) -> View:
  """Renders one view with `samples` x `samples` colour rays a pixel.

  Raises ValueError if a part of the object is behind the camera.
  """
  camera = viewpoint.camera
  depth = trace(scene, viewpoint)

  # Colour rays through a regular grid within each pixel of the window.
  window = _window(scene, viewpoint)
  u, v = sample_grid(window.rows, window.columns, samples)
  lit, delit, covered = _shade(
    scene,
    viewpoint,
    lights,
    u.ravel(),
    v.ravel(),
    samples,
  )

  # Their means, put where the window lies in the picture.
  size = (camera.height, camera.width)
  lit_HW3 = np.zeros((*size, 3), np.float32)
  delit_HW3 = np.zeros((*size, 3), np.float32)
  alpha_HW = np.zeros(size, np.float32)
  height, width = window.size
  by_pixel = (height, samples, width, samples)
  inside = window.slices
  lit_samples = lit.reshape(*by_pixel, 3)
  delit_samples = delit.reshape(*by_pixel, 3)
  covered_samples = covered.reshape(by_pixel)
  lit_HW3[inside] = lit_samples.mean((1, 3))
  delit_HW3[inside] = delit_samples.mean((1, 3))
  alpha_HW[inside] = covered_samples.mean((1, 3))
  return View(
    lit_HW3=lit_HW3,
    delit_HW3=delit_HW3,
    alpha_HW=alpha_HW,
    mask_HW=np.isfinite(depth),
    depth_HW=depth,
    pointmap_HW3=points_of(depth, camera),
  )


def trace(scene: Scene, viewpoint: Viewpoint) -> np.ndarray:
  """Depth (H, W) float32 at the pixels' centres alone, NaN where nothing is hit.

  Raises ValueError as `render` does.
  """
  # One ray through the centre of every pixel that the object can touch.
  camera = viewpoint.camera
  size = (camera.height, camera.width)
  depth = np.full(size, np.nan, np.float32)
  window = _window(scene, viewpoint)
  u, v = sample_grid(window.rows, window.columns)
  shot = _cast(
    scene,
    viewpoint,
    u.ravel(),
    v.ravel(),
  )
  is_hit = shot.face_N >= 0
  seen = np.where(is_hit, shot.depth_N, np.nan)
  depth[window.slices] = seen.reshape(window.size)
  return depth


def points_of(depth_HW: np.ndarray, camera: Camera) -> np.ndarray:
  """Camera-frame points (H, W, 3) float32 of depths at the pixels' centres."""
  rows = (0, camera.height)
  columns = (0, camera.width)
  u, v = sample_grid(rows, columns)
  # Of camera depth 1, so that the depth is all that they are multiplied with.
  directions = rays(camera, u, v)
  directions = directions.astype(np.float32)
  return directions * depth_HW[..., None]


class Window(NamedTuple):
  """A part of the picture: half-open ranges of pixels."""

  rows: tuple[int, int]
  columns: tuple[int, int]

  @property
  def size(self) -> tuple[int, int]:
    """(height, width)."""
    top, bottom = self.rows
    left, right = self.columns
    return bottom - top, right - left

  @property
  def slices(self) -> tuple[slice, slice]:
    """What cuts it out of an array (H, W, ...)."""
    return slice(*self.rows), slice(*self.columns)


def _window(scene: Scene, viewpoint: Viewpoint) -> Window:
  """The pixels that the object can touch. Raises ValueError as `render` does."""
  vertices = scene.mesh.vertices
  posed = viewpoint.points(vertices)
  nearest = posed[:, 2].min()
  if nearest <= 0:
    raise ValueError(f"{scene.name}: part of the object lies behind the camera (z = {nearest:.3g})")

  # The projected box, a pixel wider on every side, within the picture.
  uv = viewpoint.project(vertices)
  limits = [viewpoint.camera.width, viewpoint.camera.height]
  low = np.floor(uv.min(0))
  high = np.ceil(uv.max(0))
  first = low.astype(int) - 1
  last = high.astype(int) + 1
  left, top = np.clip(first, 0, limits)
  right, bottom = np.clip(last, 0, limits)
  return Window(
    rows=(top, max(bottom, top)),
    columns=(left, max(right, left)),
  )


# --- Rays -----------------------------------------------------------------------------------------


def _cast(scene: Scene, viewpoint: Viewpoint, u_N: np.ndarray, v_N: np.ndarray) -> Shot:
  """Nearest opaque hits of rays through pixel coordinates.

  Rays run in the object frame with camera depth as their parameter.
  """
  in_camera = rays(viewpoint.camera, u_N, v_N)
  in_object = in_camera @ viewpoint.to_object
  direction = np.ascontiguousarray(in_object, np.float32)
  origin = np.empty_like(direction)
  origin[:] = viewpoint.eye
  hits = scene.caster.nearest(origin, direction)
  shot = Shot(
    origin_N3=origin,
    direction_N3=direction,
    face_N=hits.face_N,
    depth_N=hits.distance_N,
    u_N=hits.u_N,
    v_N=hits.v_N,
  )
  if scene.has_cutouts:
    _pass_cutouts(scene, shot, step=SHADOW_OFFSET * viewpoint.scale)
  return shot


def _pass_cutouts(scene: Scene, shot: Shot, step: float) -> None:
  """Sends the rays that hit a cut-out texel on behind it; `step` is a length along the ray."""
  for _ in range(MAX_CUTOUTS):
    through = np.flatnonzero(_is_cut_out(scene, shot))
    if not len(through):
      return
    # They start anew just behind what they hit.
    start = shot.depth_N[through] + np.float32(step)
    direction = shot.direction_N3[through]
    origin = shot.origin_N3[through] + start[:, None] * direction
    behind = scene.caster.nearest(origin, direction)
    shot.face_N[through] = behind.face_N
    shot.depth_N[through] = start + behind.distance_N
    shot.u_N[through] = behind.u_N
    shot.v_N[through] = behind.v_N
  # Too many layers count as a miss.
  still_cut_out = _is_cut_out(scene, shot)
  shot.face_N[still_cut_out] = -1


def _is_cut_out(scene: Scene, shot: Shot) -> np.ndarray:
  """Which rays hit a texel that has no surface, (N,) bool."""
  mesh = scene.mesh
  face = shot.face_N
  is_hit = face >= 0
  cut = np.zeros(len(face), bool)
  for slot, material in enumerate(mesh.materials):
    if material.cutout is None:
      continue
    # Texture coordinates of the hits on this material.
    on_material = mesh.material[face] == slot
    here = np.flatnonzero(is_hit & on_material)
    weights = _corner_weights(shot, here)
    corners = mesh.faces[face[here]]
    corners_uv = mesh.uv[corners]
    uv = np.einsum("nk,nkd->nd", weights, corners_uv)

    # The texel that they fall into; textures repeat, and their origin is the lower left.
    height, width = material.cutout.shape
    column = np.floor(uv[:, 0] * width)
    row = np.floor((1 - uv[:, 1]) * height)
    column = column.astype(int) % width
    row = row.astype(int) % height
    cut[here] = material.cutout[row, column]
  return cut


def _corner_weights(shot: Shot, chosen: np.ndarray) -> np.ndarray:
  """Barycentric weights (n, 3) of the chosen hits."""
  second = shot.u_N[chosen, None]
  third = shot.v_N[chosen, None]
  first = 1 - second - third
  return np.concatenate([first, second, third], axis=1)


# --- Colours --------------------------------------------------------------------------------------


def _shade(scene: Scene, viewpoint: Viewpoint, lights: Lights, u_N, v_N, samples: int):
  """Linear lit and de-lit colours (N, 3) and hit flags (N,) of colour rays."""
  shot = _cast(scene, viewpoint, u_N, v_N)
  covered = shot.face_N >= 0
  lit = np.zeros((len(u_N), 3), np.float32)
  delit = np.zeros((len(u_N), 3), np.float32)
  if not covered.any():
    return lit, delit, covered

  # Base colours of the hits.
  face = shot.face_N[covered]
  depth = shot.depth_N[covered]
  direction = shot.direction_N3[covered]
  weights = _corner_weights(shot, covered)
  # A sample's width on the surface, in the object's unit.
  samples_per_unit = viewpoint.camera.fx * samples * viewpoint.scale
  footprint = depth / samples_per_unit
  albedo = _albedo(scene, face, weights, footprint)

  # Faces are two-sided: the geometric normal turns towards the viewer and takes the smooth normal
  # with it.
  flat = scene.normal_F3[face].astype(np.float32)
  along_ray = np.einsum("ij,ij->i", flat, direction)
  sign = np.where(along_ray > 0, -1.0, 1.0)
  turn = sign.astype(np.float32)[:, None]
  flat = flat * turn
  corner_normals = scene.corner_normal_F33[face]
  smooth = np.einsum("nk,nkd->nd", weights, corner_normals) * turn
  length = np.linalg.norm(smooth, axis=1, keepdims=True)
  smooth /= np.maximum(length, 1e-6)

  # Shadow rays start a little off the surface.
  hit = shot.origin_N3[covered] + depth[:, None] * direction
  point = hit + SHADOW_OFFSET * flat
  irradiance = _irradiance(scene, lights, point, flat, smooth)
  lit[covered] = albedo * irradiance
  delit[covered] = albedo
  return lit, delit, covered


def _irradiance(scene: Scene, lights: Lights, point_N3, flat_N3, smooth_N3) -> np.ndarray:
  """Light that arrives at each point, (N, 3).

  The ambient term falls off away from `up`; direct light is shadowed.
  """
  up = lights.up_3.astype(np.float32)
  upwards = smooth_N3 @ up
  sky = 0.75 + 0.25 * upwards[:, None]
  total = (sky * lights.ambient_3).astype(np.float32)
  directions = lights.directions_L3.astype(np.float32)
  colours = lights.colours_L3.astype(np.float32)
  for direction, colour in zip(directions, colours, strict=True):
    # Only what faces the light by both normals can be lit.
    cosine = smooth_N3 @ direction
    flat_cosine = flat_N3 @ direction
    is_facing = (cosine > 0) & (flat_cosine > 0)
    facing = np.flatnonzero(is_facing)
    towards = np.broadcast_to(direction, (len(facing), 3))
    blocked = scene.caster.blocked(point_N3[facing], towards)
    seen = facing[~blocked]
    total[seen] += cosine[seen, None] * colour
  return total


def _albedo(scene: Scene, face_N, weights_N3, footprint_N) -> np.ndarray:
  """Linear base colour (N, 3): material x vertex colour x texture.

  footprint_N: a sample's width on the surface.
  """
  mesh = scene.mesh
  corner = mesh.faces[face_N]
  colour = np.einsum("nk,nkd->nd", weights_N3, mesh.colours[corner])
  material = mesh.material[face_N]
  base = np.array([m.colour for m in mesh.materials], np.float32)
  colour *= base[material]

  for slot, pyramid in enumerate(scene.pyramids):
    if pyramid is None:
      continue
    here = np.flatnonzero(material == slot)
    if not len(here):
      continue
    corners_uv = mesh.uv[corner[here]]
    uv = np.einsum("nk,nkd->nd", weights_N3[here], corners_uv)
    # The level of which a texel is about as wide as a sample.
    density = scene.texels_F[face_N[here]]
    texels = density * footprint_N[here]
    exponent = np.log2(np.maximum(texels, 1.0))
    nearest = np.rint(exponent).astype(int)
    level = np.clip(nearest, 0, len(pyramid) - 1)
    for number in np.unique(level):
      at = level == number
      colour[here[at]] *= textures.bilinear(pyramid[number], uv[at])
  return colour


# --- Pictures -------------------------------------------------------------------------------------


def over(colour_HW3: np.ndarray, alpha_HW: np.ndarray, background) -> np.ndarray:
  """sRGB uint8 image of a linear colour over an sRGB background.

  background: a colour (3,) or an image (H, W, 3), values 0..255.
  """
  encoded = np.asarray(background, np.float32) / 255.0
  behind = srgb_to_linear(encoded)
  blended = colour_HW3 + (1 - alpha_HW[..., None]) * behind
  return linear_to_srgb8(blended)


def encode(image: np.ndarray, format: str = "png", quality: int = 95) -> bytes:
  """PNG or JPEG bytes of a uint8 image or a boolean mask. Raises ValueError on another format."""
  if format == "png":
    options = {"compress_level": 3}
  elif format == "jpeg":
    options = {"quality": quality, "subsampling": 0}
  else:
    raise ValueError(f"image_format is 'png' or 'jpeg', got {format!r}")
  array = image
  if image.dtype == bool:
    array = image.astype(np.uint8) * 255
  stream = io.BytesIO()
  picture = Image.fromarray(array)
  picture.save(stream, format, **options)
  return stream.getvalue()

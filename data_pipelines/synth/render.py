"""Ray-cast renderer: Embree finds the hits, numpy shades them. Headless, deterministic, safe to use
in spawned processes.

Lambertian surfaces under directional lights with shadows and an ambient term; both sides of a face
are drawn; a texel is opaque or cut out (a cut-out still casts a shadow). Textures are sampled
bilinearly from a pyramid level chosen by footprint. Depth, mask and point map come from one ray
through each pixel's centre; colours are averaged over samples within the pixel, in linear light.
"""

import dataclasses
import io

import numpy as np
from PIL import Image
from scipy import sparse

from data_pipelines.synth.camera import Camera
from data_pipelines.synth.filters import face_areas_normals
from data_pipelines.synth.lighting import Lights
from sam3d_jax.render.colour import linear_to_srgb8, srgb_to_linear
from sam3d_jax.render.mesh import Mesh
from sam3d_jax.render.raycast import Caster

CREASE_DEG = 40.0  # faces that meet at a sharper angle are not smoothed across the edge
# unit cubes, along the normal: above the float32 error of a hit, below visible detail
SHADOW_OFFSET = 2e-4
MAX_CUTOUTS = 16  # transparent layers that a ray passes before it counts as a miss
SRGB_TO_LINEAR = srgb_to_linear(np.arange(256) / 255.0)


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


class Scene:
  """A mesh prepared for rendering: build once, render many views. `name` is for messages."""

  def __init__(self, mesh: Mesh, name: str = "mesh"):
    self.mesh = mesh.with_appearance()
    self.name = name
    self.caster = Caster(mesh)
    area, self.normal_F3 = face_areas_normals(mesh.vertices, mesh.faces)
    normals = corner_normals(mesh.vertices, mesh.faces, area, self.normal_F3)
    self.corner_normal_F33 = normals.astype(np.float32)
    self.pyramids = [
      None if m.texture is None else _pyramid(m.texture) for m in self.mesh.materials
    ]
    self.texels_F = self._texel_density(area)

  def _texel_density(self, area_F) -> np.ndarray:
    """Texels of the face's texture per unit of length on the surface."""
    a, b, c = (self.mesh.uv[self.mesh.faces[:, i]].astype(np.float64) for i in range(3))
    d, e = b - a, c - a
    uv_area = np.abs(d[:, 0] * e[:, 1] - d[:, 1] * e[:, 0]) / 2
    texels = np.array(
      [
        0 if m.texture is None else m.texture.shape[0] * m.texture.shape[1]
        for m in self.mesh.materials
      ]
    )
    return np.sqrt(uv_area * texels[self.mesh.material] / np.maximum(area_F, 1e-300))


def corner_normals(
  vertices_V3, faces_F3, area_F, normal_F3, crease_deg: float = CREASE_DEG
) -> np.ndarray:
  """Normals (F, 3, 3) of every face corner, smoothed over edges flatter than `crease_deg`; equal
  positions are one vertex.
  """
  _, point = np.unique(np.rint(vertices_V3 / 1e-6).astype(np.int64), axis=0, return_inverse=True)
  faces = point.reshape(-1)[faces_F3]
  count = len(faces)
  corner = np.arange(3 * count).reshape(-1, 3)
  # Half-edges sorted so that those of one edge lie together; each carries the face and the corners
  # at its two ends.
  tail, head = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
  at_tail, at_head = corner.ravel(), np.roll(corner, -1, axis=1).ravel()
  flip = tail > head
  low, high = np.where(flip, head, tail), np.where(flip, tail, head)
  at_low, at_high = np.where(flip, at_head, at_tail), np.where(flip, at_tail, at_head)
  order = np.lexsort((high, low))
  a, b = order[:-1], order[1:]
  smooth = (low[a] == low[b]) & (high[a] == high[b])
  cosine = np.einsum("ij,ij->i", normal_F3[a // 3], normal_F3[b // 3])
  smooth &= cosine > np.cos(np.radians(crease_deg))
  a, b = a[smooth], b[smooth]
  links = np.concatenate(
    [np.stack([at_low[a], at_low[b]]), np.stack([at_high[a], at_high[b]])], axis=1
  )
  graph = sparse.coo_matrix((np.ones(links.shape[1], bool), links), shape=(3 * count, 3 * count))
  groups, label = sparse.csgraph.connected_components(graph, directed=False)
  weighted = np.repeat(normal_F3 * area_F[:, None], 3, axis=0)
  total = np.stack([np.bincount(label, weighted[:, k], groups) for k in range(3)], -1)
  length = np.linalg.norm(total, axis=1, keepdims=True)
  smoothed = (total / np.maximum(length, 1e-300))[label].reshape(-1, 3, 3)
  return np.where(length[label].reshape(-1, 3, 1) > 1e-12, smoothed, normal_F3[:, None])


def render(scene: Scene, camera: Camera, lights: Lights, *, samples: int = 2) -> View:
  """Renders one view with `samples` x `samples` colour rays a pixel. The object must lie in front
  of the camera.

  Raises ValueError if a part of the object is behind the camera.
  """
  height, width = camera.height, camera.width
  depth = trace(scene, camera)
  top, bottom, left, right = _window(scene, camera)
  rows, cols = np.arange(top, bottom), np.arange(left, right)
  window = (slice(top, bottom), slice(left, right))
  offset = (np.arange(samples) + 0.5) / samples
  v, u = np.meshgrid(
    (rows[:, None] + offset).ravel(), (cols[:, None] + offset).ravel(), indexing="ij"
  )
  lit, delit, covered = _shade(scene, camera, lights, u.ravel(), v.ravel(), samples)
  lit_HW3, delit_HW3 = (
    np.zeros((height, width, 3), np.float32),
    np.zeros((height, width, 3), np.float32),
  )
  alpha_HW = np.zeros((height, width), np.float32)
  pixels = (len(rows), samples, len(cols), samples)
  lit_HW3[window] = lit.reshape(*pixels, 3).mean((1, 3))
  delit_HW3[window] = delit.reshape(*pixels, 3).mean((1, 3))
  alpha_HW[window] = covered.reshape(pixels).mean((1, 3))
  return View(lit_HW3, delit_HW3, alpha_HW, np.isfinite(depth), depth, points_of(depth, camera))


def trace(scene: Scene, camera: Camera) -> np.ndarray:
  """Depth (H, W) float32 at the pixels' centres alone, NaN where nothing is hit. Raises ValueError
  as `render` does.
  """
  depth = np.full((camera.height, camera.width), np.nan, np.float32)
  top, bottom, left, right = _window(scene, camera)
  v, u = np.meshgrid(np.arange(top, bottom) + 0.5, np.arange(left, right) + 0.5, indexing="ij")
  hit = _cast(scene, camera, u.ravel(), v.ravel())
  depth[top:bottom, left:right] = np.where(hit["primID"] >= 0, hit["tfar"], np.nan).reshape(u.shape)
  return depth


def points_of(depth_HW: np.ndarray, camera: Camera) -> np.ndarray:
  """Camera-frame points (H, W, 3) float32 of depths at the pixels' centres."""
  u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5, indexing="xy")
  return camera.rays(u, v).astype(np.float32) * depth_HW[..., None]


def _window(scene: Scene, camera: Camera) -> tuple[int, int, int, int]:
  """The pixel rows and columns that the object can touch: top, bottom, left, right (half open)."""
  points = camera.to_camera(scene.mesh.vertices)
  if points[:, 2].min() <= 0:
    raise ValueError(
      f"{scene.name}: part of the object lies behind the camera (z = {points[:, 2].min():.3g})"
    )
  uv = camera.project(scene.mesh.vertices)
  low = np.clip(np.floor(uv.min(0)).astype(int) - 1, 0, [camera.width, camera.height])
  high = np.clip(np.ceil(uv.max(0)).astype(int) + 1, 0, [camera.width, camera.height])
  return low[1], max(high[1], low[1]), low[0], max(high[0], low[0])


def _cast(scene: Scene, camera: Camera, u, v) -> dict[str, np.ndarray]:
  """Nearest hits of rays through pixel coordinates. Rays run in the object frame with camera depth
  as their parameter.
  """
  # row vectors of the camera frame times this are object vectors
  to_object = camera.rotation / camera.scale
  direction = np.ascontiguousarray(camera.rays(u, v) @ to_object, np.float32)
  origin = np.empty_like(direction)
  origin[:] = -camera.translation @ to_object
  found = scene.caster.nearest(origin, direction)
  hit = {
    "primID": found.face_N,
    "tfar": found.distance_N,
    "u": found.u_N,
    "v": found.v_N,
    "direction": direction,
    "origin": origin,
  }
  if any(m.cutout is not None for m in scene.mesh.materials):
    _pass_cutouts(scene, hit, step=SHADOW_OFFSET * camera.scale)
  return hit


def _pass_cutouts(scene: Scene, hit: dict[str, np.ndarray], step: float) -> None:
  """Sends the rays that hit a cut-out texel on behind it; changes `hit` in place. `step` is in
  units of the ray parameter.
  """
  for _ in range(MAX_CUTOUTS):
    through = np.flatnonzero(_is_cut_out(scene, hit))
    if not len(through):
      return
    start = hit["tfar"][through] + np.float32(step)
    direction = hit["direction"][through]
    behind = scene.caster.nearest(hit["origin"][through] + start[:, None] * direction, direction)
    hit["tfar"][through] = start + behind.distance_N
    hit["primID"][through] = behind.face_N
    hit["u"][through], hit["v"][through] = behind.u_N, behind.v_N
  hit["primID"][_is_cut_out(scene, hit)] = -1


def _is_cut_out(scene: Scene, hit: dict[str, np.ndarray]) -> np.ndarray:
  mesh, face = scene.mesh, hit["primID"]
  cut = np.zeros(len(face), bool)
  for index, material in enumerate(mesh.materials):
    if material.cutout is None:
      continue
    here = np.flatnonzero((face >= 0) & (mesh.material[face] == index))
    s, t = hit["u"][here, None], hit["v"][here, None]
    uv = np.einsum(
      "nk,nkd->nd",
      np.concatenate([1 - s - t, s, t], axis=1),
      mesh.uv[mesh.faces[face[here]]],
    )
    height, width = material.cutout.shape
    column, row = (
      np.floor(uv[:, 0] * width).astype(int),
      np.floor((1 - uv[:, 1]) * height).astype(int),
    )
    cut[here] = material.cutout[row % height, column % width]
  return cut


def _shade(scene: Scene, camera: Camera, lights: Lights, u, v, samples: int):
  """Linear lit and de-lit colours (N, 3) and hit flags (N,) of colour rays."""
  hit = _cast(scene, camera, u, v)
  covered = hit["primID"] >= 0
  lit, delit = np.zeros((len(u), 3), np.float32), np.zeros((len(u), 3), np.float32)
  if not covered.any():
    return lit, delit, covered
  face, s, t = hit["primID"][covered], hit["u"][covered, None], hit["v"][covered, None]
  distance, direction = hit["tfar"][covered], hit["direction"][covered]
  weights = np.concatenate([1 - s - t, s, t], axis=1)
  albedo = _albedo(
    scene, face, weights, texel_footprint=distance / (camera.fx * samples * camera.scale)
  )
  # Faces are two-sided: the geometric normal turns towards the viewer and takes the smooth normal
  # with it.
  flat = scene.normal_F3[face].astype(np.float32)
  turn = np.where(np.einsum("ij,ij->i", flat, direction) > 0, -1.0, 1.0).astype(np.float32)[:, None]
  flat = flat * turn
  smooth = np.einsum("nk,nkd->nd", weights, scene.corner_normal_F33[face]) * turn
  smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-6)
  point = hit["origin"][covered] + distance[:, None] * direction + SHADOW_OFFSET * flat
  lit[covered] = albedo * _irradiance(scene, lights, point, flat, smooth)
  delit[covered] = albedo
  return lit, delit, covered


def _irradiance(scene: Scene, lights: Lights, point_N3, flat_N3, smooth_N3) -> np.ndarray:
  """Light that arrives at each point, (N, 3): the ambient term falls off away from `up`, direct
  light is shadowed.
  """
  sky = 0.75 + 0.25 * (smooth_N3 @ lights.up_3.astype(np.float32))[:, None]
  total = (sky * lights.ambient_3).astype(np.float32)
  for direction, colour in zip(
    lights.directions_L3.astype(np.float32), lights.colours_L3.astype(np.float32), strict=True
  ):
    cosine = smooth_N3 @ direction
    facing = np.flatnonzero((cosine > 0) & (flat_N3 @ direction > 0))
    if not len(facing):
      continue
    towards = np.broadcast_to(direction, (len(facing), 3))
    seen = facing[~scene.caster.blocked(point_N3[facing], towards)]
    total[seen] += cosine[seen, None] * colour
  return total


def _albedo(scene: Scene, face, weights, *, texel_footprint) -> np.ndarray:
  """Linear base colour (N, 3): material x vertex colour x texture. `texel_footprint` is a sample's
  width on the surface.
  """
  mesh = scene.mesh
  corner = mesh.faces[face]
  colour = np.einsum("nk,nkd->nd", weights, mesh.colours[corner])
  material = mesh.material[face]
  colour *= np.array([m.colour for m in mesh.materials], np.float32)[material]
  for index, pyramid in enumerate(scene.pyramids):
    here = np.flatnonzero(material == index) if pyramid is not None else ()
    if not len(here):
      continue
    uv = np.einsum("nk,nkd->nd", weights[here], mesh.uv[corner[here]])
    texels = np.maximum(scene.texels_F[face[here]] * texel_footprint[here], 1.0)
    level = np.clip(np.rint(np.log2(texels)).astype(int), 0, len(pyramid) - 1)
    for l in np.unique(level):
      at = level == l
      colour[here[at]] *= _bilinear(pyramid[l], uv[at])
  return colour


def _pyramid(texture_HW3: np.ndarray) -> list[np.ndarray]:
  """Box-filtered halvings of an sRGB texture, full size first."""
  levels = [texture_HW3]
  while min(levels[-1].shape[:2]) > 4:
    height, width = levels[-1].shape[:2]
    levels.append(
      np.asarray(
        Image.fromarray(levels[-1]).resize((width // 2, height // 2), Image.Resampling.BOX)
      )
    )
  return levels


def _bilinear(texture_HW3: np.ndarray, uv_N2: np.ndarray) -> np.ndarray:
  """Linear colours (N, 3) at texture coordinates (origin lower left, repeating)."""
  height, width = texture_HW3.shape[:2]
  x = uv_N2[:, 0] * width - 0.5
  y = (1 - uv_N2[:, 1]) * height - 0.5
  x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
  fx, fy = (x - x0)[:, None].astype(np.float32), (y - y0)[:, None].astype(np.float32)
  texel = lambda row, col: SRGB_TO_LINEAR[texture_HW3[row % height, col % width]]
  top = texel(y0, x0) * (1 - fx) + texel(y0, x0 + 1) * fx
  return top * (1 - fy) + (texel(y0 + 1, x0) * (1 - fx) + texel(y0 + 1, x0 + 1) * fx) * fy


def over(colour_HW3: np.ndarray, alpha_HW: np.ndarray, background) -> np.ndarray:
  """sRGB uint8 image of a linear colour over an sRGB background, a colour (3,) or an image (H, W,
  3), values 0..255.
  """
  behind = srgb_to_linear(np.asarray(background, np.float32) / 255.0)
  return linear_to_srgb8(colour_HW3 + (1 - alpha_HW[..., None]) * behind)


def encode(image: np.ndarray, format: str = "png", quality: int = 95) -> bytes:
  """PNG or JPEG bytes of a uint8 image or a boolean mask. Raises ValueError on another format."""
  if format not in ("png", "jpeg"):
    raise ValueError(f"image_format is 'png' or 'jpeg', got {format!r}")
  array = image.astype(np.uint8) * 255 if image.dtype == bool else image
  stream = io.BytesIO()
  options = {"quality": quality, "subsampling": 0} if format == "jpeg" else {"compress_level": 3}
  Image.fromarray(array).save(stream, format, **options)
  return stream.getvalue()

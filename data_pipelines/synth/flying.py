"""RP-3DO FO, flying occlusions: a target and an occluder, randomly oriented, before a photograph.

    M_vis = M_obj * (1 - M_occ)
    kept if 0.1 <= |M_vis| / |M_obj| <= 0.9 and |M_vis| / |image| >= 0.2 %

In one third of the samples the target is the object in front: its mask is complete. The bounds on
the hidden object's share hold for them too, so that something is always hidden.

The objects are nearer than the photo: where its point map is known they are moved towards the
camera and made smaller by the same factor, which changes no pixel, and the front object likewise
before the one behind. So the point map is that of one possible scene. Where the photo has none,
only points of the objects are known.
"""

import dataclasses

import numpy as np

from data_pipelines.synth import composite, lighting, render
from data_pipelines.synth.camera import Viewpoint, look_at, rays, viewpoint
from data_pipelines.synth.render_paste import (
  PasteConfig,
  Pasted,
  Rejected,
  Stock,
  Subject,
  random_rotation,
)
from data_pipelines.synth.scene import Scene
from sam3d_jax.geometry import cameras

GAP = 0.95  # the farthest point of what is in front over the nearest point behind it
VIEWER = look_at(0.0, 0.0)  # world to camera of the viewer about whom lights are drawn


@dataclasses.dataclass(frozen=True)
class FlyingRules:
  """Thresholds and ranges."""

  visible: tuple[float, float] = (0.1, 0.9)  # of the hidden object's pixels
  min_image_share: float = 0.002  # of the target's visible pixels in the image
  front_share: float = 1 / 3  # of the samples show the object in front
  # diameter of the bounding sphere over the image's shorter side
  size: tuple[float, float] = (0.3, 0.75)
  overlap: tuple[float, float] = (0.1, 0.8)  # distance of the centres over the sum of the radii
  # of photos whose camera is unknown, along the longer side
  fov_deg: tuple[float, float] = (30.0, 60.0)
  largest_turn_deg: float = 180.0  # of an object from the view of its front; 180: any orientation
  # metres along the unit cube's edge, log-uniform, before objects move to the front
  scale: tuple[float, float] = (0.2, 2.0)


def is_front(view: int, phase: float, share: float) -> bool:
  """Whether sample `view` of a mesh shows it in front.

  It does in exactly `share` of any run of samples, up to rounding.
  """
  # How many samples did so before this one, and with it.
  before = np.floor(view * share + phase)
  after = np.floor((view + 1) * share + phase)
  return int(after) > int(before)


def visible_part(hidden_HW: np.ndarray, front_HW: np.ndarray) -> np.ndarray:
  """M_vis = M_obj * (1 - M_occ)."""
  return hidden_HW & ~front_HW


def check(
  hidden_HW: np.ndarray, front_HW: np.ndarray, target_HW: np.ndarray, rules: FlyingRules
) -> None:
  """Raises Rejected: nothing_in_view, too_hidden, too_visible or too_small."""
  if not hidden_HW.any():
    raise Rejected("nothing_in_view")
  # The bounds hold for the hidden object, whichever of the two is the target.
  visible_HW = visible_part(hidden_HW, front_HW)
  share = visible_HW.sum() / hidden_HW.sum()
  least, most = rules.visible
  if share < least:
    raise Rejected("too_hidden")
  if share > most:
    raise Rejected("too_visible")
  # And the target must be worth looking at.
  if target_HW.mean() < rules.min_image_share:
    raise Rejected("too_small")


def draw(
  subject: Subject, stock: Stock, config: PasteConfig, rng: np.random.Generator, view: int
) -> Pasted:
  """One draw. Raises Rejected."""
  # What is drawn: a photo, an occluder or an object to hide, and where both float.
  rules: FlyingRules = config.rules
  scene = stock.draw_scene(rng)
  partner = stock.draw_partner(rng, subject)
  # Meshes begin at different places of the cycle, so that first samples are not all alike.
  phase = int(subject.asset.key[:8], 16) / 2**32
  front = is_front(view, phase, rules.front_share)
  order = (partner, subject) if front else (subject, partner)  # hidden, in front
  target = 1 if front else 0
  camera = scene_camera(rng, scene, rules)
  viewpoints = place(rng, order, camera, scene, rules)

  # Whether the draw is worth rendering.
  traced = []
  for one, at in zip(order, viewpoints, strict=True):
    depth = render.trace(one.scene, at)
    traced.append(np.isfinite(depth))
  hidden_HW, front_HW = traced
  whole = traced[target]
  mask = whole if front else visible_part(hidden_HW, front_HW)
  check(hidden_HW, front_HW, mask, rules)

  # Both objects under one light, pasted over the photo.
  lights = lighting.random_lights(rng, config.light, 0.0)
  shown = []
  for one, at in zip(order, viewpoints, strict=True):
    seen_lights = camera_lights(lights, at.pose.rotation)
    seen = render.render(
      one.scene,
      at,
      seen_lights,
      samples=config.samples,
    )
    shown.append(seen)
  layers = [(s.lit_HW3, s.alpha_HW) for s in shown]
  image = composite.paste(scene.image_HW3, layers)

  # The target loses its light; what stands before or behind it keeps it.
  delit = None
  if config.delit:
    bare = shown[target]
    layers[target] = (bare.delit_HW3, bare.alpha_HW)
    delit = composite.paste(scene.image_HW3, layers)

  # The point map shows the nearest surface.
  points = scene.pointmap_HW3
  if points is None:
    points = np.full((*scene.size, 3), np.nan, np.float32)
  for s in shown:
    points = np.where(s.mask_HW[..., None], s.pointmap_HW3, points)
  return Pasted(
    image_HW3=image,
    delit_HW3=delit,
    mask_HW=mask,
    whole_HW=whole,
    pointmap_HW3=points,
    viewpoint=viewpoints[target],
    lineage={
      "photo": scene.name,
      "partner": partner.asset.source,
      "role": "front" if front else "hidden",
    },
    licenses=(partner.asset.license, scene.license),
  )


def scene_camera(rng: np.random.Generator, scene: Scene, rules: FlyingRules) -> cameras.Camera:
  """The photo's camera; a random one where it is unknown."""
  # drawn in any case: a point map must not shift the numbers that follow
  fov = np.radians(rng.uniform(*rules.fov_deg))
  if scene.camera is not None:
    return scene.camera
  height, width = scene.size
  # The angle is that of the longer side.
  longer = max(height, width)
  half_width = np.tan(fov / 2) * width / longer  # at depth 1
  fov_x = 2 * np.arctan(half_width)
  return cameras.camera_from_fov(width, height, fov_x)


def place(
  rng: np.random.Generator,
  order: tuple[Subject, Subject],
  camera: cameras.Camera,
  scene: Scene,
  rules: FlyingRules,
) -> tuple[Viewpoint, Viewpoint]:
  """Where the hidden object and the one in front are seen from.

  Raises Rejected (outside_image, too_close) if one of them leaves the image.
  """
  # The hidden object lies anywhere in the image.
  short = min(scene.size)
  radii = rng.uniform(*rules.size, 2) * short / 2  # pixels
  hidden_radius, front_radius = radii
  extent = np.array([camera.width, camera.height], float)
  free = extent - 2 * hidden_radius
  inside = rng.uniform(size=2) * free + hidden_radius
  centre = np.where(free > 0, inside, extent / 2)

  # The other one lies beside it so that they overlap, and within the image.
  angle = rng.uniform(0, 2 * np.pi)
  apart = rng.uniform(*rules.overlap) * radii.sum()
  direction = np.array([np.cos(angle), np.sin(angle)])
  other = centre + apart * direction
  middle = extent / 2
  lowest = np.minimum(front_radius, middle)
  highest = np.maximum(extent - front_radius, middle)
  other = np.clip(other, lowest, highest)

  # Each at a random size in metres and turned at random.
  low, high = np.log(rules.scale)
  viewpoints = []
  for subject, at_2, radius in zip(order, (centre, other), radii, strict=True):
    log_scale = rng.uniform(low, high)
    scale = float(np.exp(log_scale))
    seen = random_viewpoint(
      rng,
      subject,
      camera,
      at_2,
      radius,
      scale,
      rules.largest_turn_deg,
    )
    viewpoints.append(seen)
  hidden, front = viewpoints
  hidden_subject, front_subject = order
  free_depth = nearest(hidden, hidden_subject)
  front = before(front, front_subject, free_depth)
  if scene.pointmap_HW3 is None:
    return hidden, front

  # Both before the photo, where its depth is known.
  depth = scene.pointmap_HW3[..., 2]
  depth = np.where(np.isfinite(depth), depth, np.inf)
  hidden_box = box(hidden, hidden_subject, scene.size)
  front_box = box(front, front_subject, scene.size)
  behind_hidden = depth[hidden_box].min()
  behind_front = depth[front_box].min()
  behind = min(float(behind_hidden), float(behind_front))

  # One factor for both keeps them before each other as they are.
  hidden_depth = farthest(hidden, hidden_subject)
  front_depth = farthest(front, front_subject)
  deepest = max(hidden_depth, front_depth)
  factor = min(1.0, GAP * behind / deepest)
  return hidden.moved(factor), front.moved(factor)


def random_viewpoint(
  rng: np.random.Generator,
  subject: Subject,
  camera: cameras.Camera,
  at_2: np.ndarray,
  radius: float,
  scale: float,
  largest_turn_deg: float,
) -> Viewpoint:
  """A random orientation at a pixel, so far that the bounding sphere has `radius` pixels.

  Raises Rejected: too_close or outside_image.
  """
  # A sphere of that size appears that large at this distance.
  distance = camera.fx * scale * subject.radius / radius
  u, v = at_2
  place = rays(camera, u, v) * distance
  rotation = random_rotation(rng, largest_turn_deg)
  found = viewpoint(camera, rotation, place, scale)
  if nearest(found, subject) <= 0.1 * distance:
    raise Rejected("too_close")

  # All of it is to be in the picture.
  pixels = found.project(subject.asset.mesh.vertices)
  is_beyond = (pixels > [camera.width, camera.height]).any()
  if pixels.min() < 0 or is_beyond:
    raise Rejected("outside_image")
  return found


def nearest(seen: Viewpoint, subject: Subject) -> float:
  """The smallest depth of the posed mesh."""
  posed = seen.points(subject.asset.mesh.vertices)
  return float(posed[:, 2].min())


def farthest(seen: Viewpoint, subject: Subject) -> float:
  """The largest depth of the posed mesh."""
  posed = seen.points(subject.asset.mesh.vertices)
  return float(posed[:, 2].max())


def before(seen: Viewpoint, subject: Subject, depth: float) -> Viewpoint:
  """The object brought closer until all of it is nearer than `depth`."""
  # Nearer and smaller by one factor: no pixel of it changes.
  deepest = farthest(seen, subject)
  factor = min(1.0, GAP * depth / deepest)
  return seen.moved(factor)


def box(seen: Viewpoint, subject: Subject, size: tuple[int, int]) -> tuple[slice, slice]:
  """Rows and columns of the posed mesh's box in the image; at least one of each."""
  height, width = size
  pixels = seen.project(subject.asset.mesh.vertices)
  first = np.floor(pixels.min(0))
  last = np.ceil(pixels.max(0))
  first = first.astype(int)
  last = last.astype(int)
  low = np.clip(first, 0, [width - 1, height - 1])
  high = np.clip(last, low + 1, [width, height])
  rows = slice(low[1], high[1])
  columns = slice(low[0], high[0])
  return rows, columns


def camera_lights(lights: lighting.Lights, rotation: np.ndarray) -> lighting.Lights:
  """Lights drawn about a viewer at azimuth 0 with the world's z up, in an object's frame.

  The object is posed by `rotation` before the camera.
  """
  in_camera = lighting.turned(lights, VIEWER.T)
  return lighting.turned(in_camera, rotation)

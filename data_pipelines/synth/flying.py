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
  before, after = np.floor(view * share + phase), np.floor((view + 1) * share + phase)
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
  share = visible_part(hidden_HW, front_HW).sum() / hidden_HW.sum()
  if share < rules.visible[0]:
    raise Rejected("too_hidden")
  if share > rules.visible[1]:
    raise Rejected("too_visible")
  if target_HW.mean() < rules.min_image_share:
    raise Rejected("too_small")


def draw(
  subject: Subject, stock: Stock, config: PasteConfig, rng: np.random.Generator, view: int
) -> Pasted:
  """One draw. Raises Rejected."""
  rules: FlyingRules = config.rules
  scene = stock.draw_scene(rng)
  partner = stock.draw_partner(rng, subject)
  phase = int(subject.asset.key[:8], 16) / 2**32
  front = is_front(view, phase, rules.front_share)
  order = (partner, subject) if front else (subject, partner)  # hidden, in front
  target = 1 if front else 0
  viewpoints = place(rng, order, scene_camera(rng, scene, rules), scene, rules)

  # Whether the draw is worth rendering.
  hidden_HW, front_HW = (
    np.isfinite(render.trace(s.scene, v)) for s, v in zip(order, viewpoints, strict=True)
  )
  whole = front_HW if front else hidden_HW
  mask = whole if front else visible_part(hidden_HW, front_HW)
  check(hidden_HW, front_HW, mask, rules)

  lights = lighting.random_lights(rng, config.light, 0.0)
  shown = []
  for one, at in zip(order, viewpoints, strict=True):
    seen_lights = camera_lights(lights, at.pose.rotation)
    shown.append(render.render(one.scene, at, seen_lights, samples=config.samples))
  image = composite.paste(scene.image_HW3, [(s.lit_HW3, s.alpha_HW) for s in shown])
  delit = None
  if config.delit:
    # The target loses its light; what stands before or behind it keeps it.
    colours = [s.lit_HW3 for s in shown]
    colours[target] = shown[target].delit_HW3
    alphas = [s.alpha_HW for s in shown]
    delit = composite.paste(scene.image_HW3, list(zip(colours, alphas, strict=True)))
  points = scene.pointmap_HW3
  if points is None:
    points = np.full((*scene.size, 3), np.nan, np.float32)
  for s in shown:
    points = np.where(s.mask_HW[..., None], s.pointmap_HW3, points)
  role = "front" if front else "hidden"
  lineage = {"photo": scene.name, "partner": partner.asset.source, "role": role}
  licenses = (partner.asset.license, scene.license)
  return Pasted(image, delit, mask, whole, points, viewpoints[target], lineage, licenses)


def scene_camera(rng: np.random.Generator, scene: Scene, rules: FlyingRules) -> cameras.Camera:
  """The photo's camera; a random one where it is unknown."""
  # drawn in any case: a point map must not shift the numbers that follow
  fov = np.radians(rng.uniform(*rules.fov_deg))
  if scene.camera is not None:
    return scene.camera
  height, width = scene.size
  fov_x = 2 * np.arctan(np.tan(fov / 2) * width / max(height, width))
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
  # The hidden object lies anywhere in the image, the other one beside it so that they overlap.
  short = min(scene.size)
  radii = rng.uniform(*rules.size, 2) * short / 2  # pixels
  extent = np.array([camera.width, camera.height], float)
  free = extent - 2 * radii[0]
  centre = np.where(free > 0, rng.uniform(size=2) * free + radii[0], extent / 2)
  angle = rng.uniform(0, 2 * np.pi)
  apart = rng.uniform(*rules.overlap) * radii.sum()
  other = centre + apart * np.array([np.cos(angle), np.sin(angle)])
  lowest, highest = np.minimum(radii[1], extent / 2), np.maximum(extent - radii[1], extent / 2)
  other = np.clip(other, lowest, highest)

  low, high = np.log(rules.scale)
  viewpoints = []
  for subject, at_2, radius in zip(order, (centre, other), radii, strict=True):
    scale = float(np.exp(rng.uniform(low, high)))
    viewpoints.append(
      random_viewpoint(rng, subject, camera, at_2, radius, scale, rules.largest_turn_deg)
    )
  hidden, front = viewpoints
  front = before(front, order[1], nearest(hidden, order[0]))

  # Both before the photo, where its depth is known.
  if scene.pointmap_HW3 is not None:
    depth = scene.pointmap_HW3[..., 2]
    depth = np.where(np.isfinite(depth), depth, np.inf)
    behind = min(
      float(depth[box(hidden, order[0], scene.size)].min()),
      float(depth[box(front, order[1], scene.size)].min()),
    )
    deepest = max(farthest(hidden, order[0]), farthest(front, order[1]))
    factor = min(1.0, GAP * behind / deepest)
    hidden, front = hidden.moved(factor), front.moved(factor)
  return hidden, front


def random_viewpoint(
  rng: np.random.Generator,
  subject: Subject,
  camera: cameras.Camera,
  at_2: np.ndarray,
  radius: float,
  scale: float,
  largest_turn_deg: float,
) -> Viewpoint:
  """A random orientation at a pixel, so far that the bounding sphere has `radius` pixels."""
  distance = camera.fx * scale * subject.radius / radius
  place = rays(camera, at_2[0], at_2[1]) * distance
  found = viewpoint(camera, random_rotation(rng, largest_turn_deg), place, scale)
  if nearest(found, subject) <= 0.1 * distance:
    raise Rejected("too_close")
  pixels = found.project(subject.asset.mesh.vertices)
  if pixels.min() < 0 or (pixels > [camera.width, camera.height]).any():
    raise Rejected("outside_image")
  return found


def nearest(seen: Viewpoint, subject: Subject) -> float:
  """The smallest depth of the posed mesh."""
  return float(seen.points(subject.asset.mesh.vertices)[:, 2].min())


def farthest(seen: Viewpoint, subject: Subject) -> float:
  """The largest depth of the posed mesh."""
  return float(seen.points(subject.asset.mesh.vertices)[:, 2].max())


def before(seen: Viewpoint, subject: Subject, depth: float) -> Viewpoint:
  """The object brought closer until all of it is nearer than `depth`."""
  return seen.moved(min(1.0, GAP * depth / farthest(seen, subject)))


def box(seen: Viewpoint, subject: Subject, size: tuple[int, int]) -> tuple[slice, slice]:
  """Rows and columns of the posed mesh's box in the image."""
  pixels = seen.project(subject.asset.mesh.vertices)
  low = np.clip(np.floor(pixels.min(0)).astype(int), 0, [size[1] - 1, size[0] - 1])
  high = np.clip(np.ceil(pixels.max(0)).astype(int), low + 1, [size[1], size[0]])
  return slice(low[1], high[1]), slice(low[0], high[0])


def camera_lights(lights: lighting.Lights, rotation: np.ndarray) -> lighting.Lights:
  """Lights drawn about a viewer at azimuth 0 with the world's z up, in an object's frame.

  The object is posed by `rotation` before the camera.
  """
  in_camera = lighting.turned(lights, VIEWER.T)
  return lighting.turned(in_camera, rotation)

"""RP-3DO FO, flying occlusions: a random target and a random occluder, both randomly oriented,
before a photograph.

    M_vis = M_obj * (1 - M_occ),   kept if 0.1 <= |M_vis| / |M_obj| <= 0.9 and |M_vis| / |image| >= 0.2 %

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
from data_pipelines.synth.camera import Camera, look_at
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
  """Whether sample `view` of a mesh shows it in front: exactly `share` of any run of samples, up to
  rounding.
  """
  return int(np.floor((view + 1) * share + phase)) > int(np.floor(view * share + phase))


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
  scene, partner = stock.draw_scene(rng), stock.draw_partner(rng, subject)
  front = is_front(view, int(subject.asset.key[:8], 16) / 2**32, rules.front_share)
  order = (partner, subject) if front else (subject, partner)  # hidden, in front
  poses = place(rng, order, scene_camera(rng, scene, rules), scene, rules)
  masks = [np.isfinite(render.trace(s.scene, pose)) for s, pose in zip(order, poses, strict=True)]
  whole = masks[1] if front else masks[0]
  mask = whole if front else visible_part(*masks)
  check(*masks, mask, rules)
  lights = lighting.random_lights(rng, config.light, 0.0)
  shown = [
    render.render(s.scene, pose, camera_lights(lights, pose.rotation), samples=config.samples)
    for s, pose in zip(order, poses, strict=True)
  ]
  image = composite.paste(scene.image_HW3, [(s.lit_HW3, s.alpha_HW) for s in shown])
  delit = None
  if config.delit:
    delit = composite.paste(
      scene.image_HW3,
      [(s.delit_HW3 if (i == 1) == front else s.lit_HW3, s.alpha_HW) for i, s in enumerate(shown)],
    )
  points = (
    np.full((*scene.size, 3), np.nan, np.float32)
    if scene.pointmap_HW3 is None
    else scene.pointmap_HW3
  )
  for s in shown:
    points = np.where(s.mask_HW[..., None], s.pointmap_HW3, points)
  lineage = {
    "photo": scene.name,
    "partner": partner.asset.source,
    "role": "front" if front else "hidden",
  }
  return Pasted(
    image,
    delit,
    mask,
    whole,
    points,
    poses[1] if front else poses[0],
    lineage,
    (partner.asset.license, scene.license),
  )


def scene_camera(rng: np.random.Generator, scene: Scene, rules: FlyingRules) -> cameras.Camera:
  """The photo's camera; a random one where it is unknown."""
  # drawn in any case: a point map must not shift the numbers that follow
  fov = np.radians(rng.uniform(*rules.fov_deg))
  if scene.camera is not None:
    return scene.camera
  height, width = scene.size
  return cameras.camera_from_fov(
    width, height, 2 * np.arctan(np.tan(fov / 2) * width / max(height, width))
  )


def place(
  rng: np.random.Generator,
  order: tuple[Subject, Subject],
  camera: cameras.Camera,
  scene: Scene,
  rules: FlyingRules,
) -> tuple[Camera, Camera]:
  """Poses of the hidden object and of the one in front. Raises Rejected (outside_image) if one of
  them leaves the image.
  """
  short = min(scene.size)
  radii = rng.uniform(*rules.size, 2) * short / 2  # pixels
  extent = np.array([camera.width, camera.height], float)
  centre = np.where(
    extent > 2 * radii[0], rng.uniform(size=2) * (extent - 2 * radii[0]) + radii[0], extent / 2
  )
  angle = rng.uniform(0, 2 * np.pi)
  other = centre + rng.uniform(*rules.overlap) * radii.sum() * np.array(
    [np.cos(angle), np.sin(angle)]
  )
  other = np.clip(
    other, np.minimum(radii[1], extent / 2), np.maximum(extent - radii[1], extent / 2)
  )
  low, high = np.log(rules.scale)
  hidden, front = (
    pose(rng, s, camera, at, radius, float(np.exp(rng.uniform(low, high))), rules.largest_turn_deg)
    for s, at, radius in zip(order, (centre, other), radii, strict=True)
  )
  front = before(front, order[1], nearest(hidden, order[0]))
  if scene.pointmap_HW3 is not None:
    depth = np.where(np.isfinite(scene.pointmap_HW3[..., 2]), scene.pointmap_HW3[..., 2], np.inf)
    behind = [
      float(depth[box(p, s, scene.size)].min()) for p, s in zip((hidden, front), order, strict=True)
    ]
    factor = min(
      1.0, GAP * min(behind) / max(farthest(hidden, order[0]), farthest(front, order[1]))
    )
    hidden, front = closer(hidden, factor), closer(front, factor)
  return hidden, front


def pose(
  rng: np.random.Generator,
  subject: Subject,
  camera: cameras.Camera,
  at_2: np.ndarray,
  radius: float,
  scale: float,
  largest_turn_deg: float,
) -> Camera:
  """A random orientation at a pixel, at the distance at which the bounding sphere has `radius`
  pixels.
  """
  distance = camera.fx * scale * subject.radius / radius
  place = (
    np.array([(camera.cx - at_2[0]) / camera.fx, (camera.cy - at_2[1]) / camera.fy, 1.0]) * distance
  )
  found = Camera(*camera, random_rotation(rng, largest_turn_deg), place, scale)
  if found.to_camera(subject.asset.mesh.vertices)[:, 2].min() <= 0.1 * distance:
    raise Rejected("too_close")
  pixels = found.project(subject.asset.mesh.vertices)
  if pixels.min() < 0 or (pixels > [camera.width, camera.height]).any():
    raise Rejected("outside_image")
  return found


def nearest(pose: Camera, subject: Subject) -> float:
  """The smallest depth of the posed mesh."""
  return float(pose.to_camera(subject.asset.mesh.vertices)[:, 2].min())


def farthest(pose: Camera, subject: Subject) -> float:
  """The largest depth of the posed mesh."""
  return float(pose.to_camera(subject.asset.mesh.vertices)[:, 2].max())


def closer(pose: Camera, factor: float) -> Camera:
  """The pose at `factor` of its distance and size: the picture is the same."""
  return dataclasses.replace(pose, translation=pose.translation * factor, scale=pose.scale * factor)


def before(pose: Camera, subject: Subject, depth: float) -> Camera:
  """The pose, brought closer until all of the object is nearer than `depth`."""
  return closer(pose, min(1.0, GAP * depth / farthest(pose, subject)))


def box(pose: Camera, subject: Subject, size: tuple[int, int]) -> tuple[slice, slice]:
  """Rows and columns of the posed mesh's box in the image."""
  pixels = pose.project(subject.asset.mesh.vertices)
  low = np.clip(np.floor(pixels.min(0)).astype(int), 0, [size[1] - 1, size[0] - 1])
  high = np.clip(np.ceil(pixels.max(0)).astype(int), low + 1, [size[1], size[0]])
  return slice(low[1], high[1]), slice(low[0], high[0])


def camera_lights(lights: lighting.Lights, rotation: np.ndarray) -> lighting.Lights:
  """Lights drawn about a viewer at azimuth 0 with the world's z up, as an object posed by
  `rotation` before the camera sees them.
  """
  return lighting.turned(lighting.turned(lights, VIEWER.T), rotation)

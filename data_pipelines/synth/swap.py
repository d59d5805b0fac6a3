"""RP-3DO OS-R and OS-A, object swap: a rendered object takes the place of a photographed one.

    OS-R   a random mesh with a random rotation, at the centroid of the object's point-map points,
           scaled to their 3-D box
    OS-A   the annotated mesh with the annotated pose, aligned with the pixels of the object that it
           replaces

The object is inpainted in colours and depth (removal.py). The z-buffer against the remaining point
map decides what of the new object is seen; where it is, the point map takes the new surface. A
sample is kept if at least 20 % of the object is visible and it is supported (the background is
nearer the camera within its lowest 10 %) or partly occluded (at least 10 % of its contour has a
clearly nearer outside).
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from data_pipelines.synth import composite, flying, lighting, removal, render
from data_pipelines.synth.camera import Viewpoint, viewpoint
from data_pipelines.synth.render_paste import (
  PasteConfig,
  Pasted,
  Rejected,
  Stock,
  Subject,
  random_rotation,
)
from data_pipelines.synth.scene import Scene

MIN_POINTS = 50  # of the point map under a mask, to find a box


@dataclasses.dataclass(frozen=True)
class SwapRules:
  """Thresholds and ranges."""

  # of an object of OS-R from the view of its front; 180: any orientation
  largest_turn_deg: float = 180.0
  min_visible: float = 0.2  # of the object's pixels in the image
  # lowest part of the object's height in which the background may lie before it
  support_band: float = 0.1
  # share of that band's pixels that must be hidden for it; more than none if 0
  min_support: float = 0.0
  # of the depth, by which the background may be farther and still support
  support_tolerance: float = 0.0
  min_contour: float = 0.1  # share of the visible contour with a clearly nearer outside
  contour_margin: float = 0.05  # of the depth: what is nearer by more is clearly nearer
  # of the image: smaller photographed objects are left where they are
  min_object_share: float = 0.005
  # by which the mask grows before the object is taken out, of the image's longer side
  margin: float = 0.01
  # of the object's points left out at each end of each axis: they are strays
  box_percent: float = 2.0


class Cleared(NamedTuple):
  """A photo without one of its objects, and where that object was."""

  image_HW3: np.ndarray
  points_HW3: np.ndarray
  centroid_3: np.ndarray
  extent_3: np.ndarray  # sides of its 3-D box, metres


def clear(scene: Scene, mask_HW: np.ndarray, rules: SwapRules) -> Cleared:
  """Takes the object out. Raises Rejected (few_points) if too little of its point map is known."""
  points = scene.pointmap_HW3[mask_HW]
  known = np.isfinite(points).all(-1)
  points = points[known].astype(np.float64)
  if len(points) < MIN_POINTS:
    raise Rejected("few_points")

  # Its box, without strays.
  percentiles = (rules.box_percent, 100 - rules.box_percent)
  low, high = np.percentile(points, percentiles, axis=0)
  inside = (points >= low) & (points <= high)
  is_core = inside.all(1)
  core = points[is_core] if is_core.any() else points

  # Colours and depth behind it.
  region = removal.enlarged(mask_HW, rules.margin)
  scene_depth = scene.pointmap_HW3[..., 2]
  depth = removal.fill_depth(scene_depth, region)
  filled = render.points_of(depth, scene.camera)
  return Cleared(
    image_HW3=removal.remove(scene.image_HW3, region),
    points_HW3=np.where(region[..., None], filled, scene.pointmap_HW3),
    centroid_3=core.mean(0),
    extent_3=high - low,
  )


class Inserted(NamedTuple):
  """A cleared photo with a posed mesh put in."""

  image_HW3: np.ndarray
  delit_HW3: np.ndarray | None
  visible_HW: np.ndarray
  whole_HW: np.ndarray
  points_HW3: np.ndarray
  measures: dict[str, float]  # of `check`


def usable_objects(scene: Scene, rules: SwapRules) -> list[int]:
  """Which of the scene's objects may be swapped."""
  if scene.pointmap_HW3 is None:
    return []
  usable = []
  for number, mask in enumerate(scene.masks):
    if mask is None:
      continue
    share = mask.mean()
    if share >= rules.min_object_share:
      usable.append(number)
  return usable


def fit(subject: Subject, rotation: np.ndarray, cleared: Cleared, scene: Scene) -> Viewpoint:
  """The turned mesh with its box at the centroid, just fitting the object's across and upwards.

  Depth does not count: only the near side of the object was seen, so the depth of its box is too
  small. Raises Rejected (too_close).
  """
  turned = subject.asset.mesh.vertices @ rotation.T
  low = turned.min(0)
  high = turned.max(0)
  # As large as both sides allow, its box about the object's centroid.
  ratio = cleared.extent_3 / (high - low)
  scale = float(ratio[:2].min())
  place = cleared.centroid_3 - scale * (low + high) / 2
  seen = viewpoint(scene.camera, rotation, place, scale)
  closest = 0.05 * cleared.centroid_3[2]
  if flying.nearest(seen, subject) <= closest:
    raise Rejected("too_close")
  return seen


def check(
  depth_HW: np.ndarray, visible_HW: np.ndarray, scene_HW: np.ndarray, rules: SwapRules
) -> dict[str, float]:
  """What was measured of a kept sample.

  Raises Rejected: nothing_in_view, too_hidden or neither_supported_nor_occluded.
  """
  # Enough of the object is seen.
  whole = np.isfinite(depth_HW)
  if not whole.any():
    raise Rejected("nothing_in_view")
  share = visible_HW.sum() / whole.sum()
  if not visible_HW.any() or share < rules.min_visible:
    raise Rejected("too_hidden")

  # It stands on something, or something stands before it.
  support = composite.support(
    depth_HW,
    scene_HW,
    band=rules.support_band,
    tolerance=rules.support_tolerance,
  )
  contour = composite.hidden_contour(
    visible_HW,
    depth_HW,
    scene_HW,
    margin=rules.contour_margin,
  )
  supported = support > 0 and support >= rules.min_support
  if not supported and contour < rules.min_contour:
    raise Rejected("neither_supported_nor_occluded")
  return {
    "visible": round(float(share), 4),
    "support": round(support, 4),
    "hidden_contour": round(contour, 4),
  }


def insert(
  subject: Subject, seen: Viewpoint, cleared: Cleared, config: PasteConfig, rng: np.random.Generator
) -> Inserted:
  """Puts the posed mesh into the photo. Raises Rejected."""
  # Whether the sample is worth rendering.
  depth = render.trace(subject.scene, seen)
  behind = cleared.points_HW3[..., 2]
  visible = composite.in_front(depth, behind)
  measures = check(depth, visible, behind, config.rules)

  # Light from about the viewer, wherever the object is turned to.
  lights = lighting.random_lights(rng, config.light, 0.0)
  lights = flying.camera_lights(lights, seen.pose.rotation)
  shown = render.render(
    subject.scene,
    seen,
    lights,
    samples=config.samples,
  )

  def pasted(colour_HW3: np.ndarray) -> np.ndarray:
    layer = composite.limited(
      colour_HW3,
      shown.alpha_HW,
      shown.mask_HW,
      visible,
    )
    return composite.paste(cleared.image_HW3, [layer])

  delit = pasted(shown.delit_HW3) if config.delit else None
  points = np.where(visible[..., None], shown.pointmap_HW3, cleared.points_HW3)
  return Inserted(
    image_HW3=pasted(shown.lit_HW3),
    delit_HW3=delit,
    visible_HW=visible,
    whole_HW=shown.mask_HW,
    points_HW3=points,
    measures=measures,
  )


def record(seen: Viewpoint, scene: Scene, inserted: Inserted, lineage: dict) -> Pasted:
  """What `insert` made as a sample."""
  return Pasted(
    image_HW3=inserted.image_HW3,
    delit_HW3=inserted.delit_HW3,
    mask_HW=inserted.visible_HW,
    whole_HW=inserted.whole_HW,
    pointmap_HW3=inserted.points_HW3,
    viewpoint=seen,
    lineage={"photo": scene.name, **lineage, **inserted.measures},
    licenses=(scene.license,),
  )


def draw_random(
  subject: Subject, stock: Stock, config: PasteConfig, rng: np.random.Generator, view: int
) -> Pasted:
  """One draw of OS-R. Raises Rejected."""
  # A photo, one of its objects, and how the mesh is turned.
  scene = stock.draw_scene(rng)
  choices = usable_objects(scene, config.rules)
  if not choices:
    raise Rejected("no_object_with_depth")
  drawn = int(rng.integers(len(choices)))
  number = choices[drawn]
  rotation = random_rotation(rng, config.rules.largest_turn_deg)

  # Clearing a photo takes longest; other draws from it meet it again.
  def cleared_photo() -> Cleared:
    return clear(scene, scene.masks[number], config.rules)

  cleared = stock.memory(("cleared", scene.name, number), cleared_photo)
  seen = fit(subject, rotation, cleared, scene)
  inserted = insert(subject, seen, cleared, config, rng)
  return record(seen, scene, inserted, {"object": number})

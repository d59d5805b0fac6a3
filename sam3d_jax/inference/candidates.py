"""One sample of one object of a photo: mesh, pose, place in the photo, and how well that fits.

Everything is worked out when first asked for, so that a reward which needs no mesh costs none.
"""

import dataclasses
import functools

import numpy as np

from sam3d_jax.files.photos import Photo
from sam3d_jax.geometry import pose
from sam3d_jax.geometry.conditions import Condition
from sam3d_jax.geometry.normalisers import masked_points
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.inference import placement
from sam3d_jax.inference.predictor import Prediction, Predictor
from sam3d_jax.render import mesh, raycast


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What a reward can look at.

  photo: the whole photo. name: of the object in `photo.masks`. index: counts the samples of an
  object. condition: the model's inputs for it. predictor, prediction: who drew it, and what.
  """

  photo: Photo
  name: str
  index: int
  condition: Condition
  predictor: Predictor
  prediction: Prediction

  @property
  def mask_HW(self) -> np.ndarray:
    """Its mask, bool, of the photo's size."""
    return self.photo.masks[self.name]

  @functools.cached_property
  def shape(self) -> mesh.Mesh | None:
    """The object as a mesh in the object frame, None if the sample is empty.

    What decodes more than occupancy goes here.
    """
    colour = object_colour(self.photo.image_HW3, self.mask_HW)
    return mesh.from_occupancy(self.prediction.occupancy, colour=colour)

  @functools.cached_property
  def caster(self) -> raycast.Caster | None:
    """Casts rays at `shape`; None if the sample is empty."""
    return None if self.shape is None else raycast.Caster(self.shape)

  @property
  def metric(self) -> bool:
    """Whether the pose is in the camera frame and the point map's unit."""
    return self.photo.pointmap_HW3 is not None and self.predictor.placed

  @functools.cached_property
  def pose(self) -> Pose:
    """What the model says: object frame to camera.

    Metric with a point map, else in the normalised frame; the rotation alone if no more was
    learned.
    """
    # A model of rotations alone: the place is none.
    said = self.prediction
    if not self.predictor.placed:
      rotation = said.rotation.astype(np.float64)
      return Pose(rotation, np.zeros(3), np.ones(3))

    # Without a point map the pose stays relative to the unknown one.
    scale = self.condition.scale
    shift = self.condition.shift
    if scale is None:
      scale = np.ones(3, np.float32)
      shift = np.zeros(3, np.float32)

    layout = {name: x for name, x in said.latents.items() if name != "shape"}
    found = pose.decode_latents(
      layout,
      scale,
      shift,
      convention=self.predictor.convention,
    )
    return Pose(
      rotation=np.asarray(found.rotation, np.float64),
      translation=np.asarray(found.translation, np.float64),
      scale=np.asarray(found.scale, np.float64),
    )

  @functools.cached_property
  def placement(self) -> Pose | None:
    """Where the object stands in the photo's camera: its pose if that is metric.

    Otherwise the model's rotation fitted to the mask, at the point map's depth if there is one.
    None for an empty sample that would have to be fitted.
    """
    if self.metric:
      return self.pose
    if self.shape is None:
      return None

    # The object's depth, where it is known.
    points_HW3 = self.photo.pointmap_HW3
    depth = placement.ASSUMED_DEPTH
    if points_HW3 is not None:
      points_P3 = masked_points(points_HW3, self.mask_HW)
      depth = float(np.nanmedian(points_P3[:, 2]))

    camera = self.photo.camera
    fitted = placement.fit_to_mask(
      self.shape.vertices,
      self.pose.rotation,
      self.mask_HW,
      camera,
      depth,
    )
    if points_HW3 is None:
      return fitted
    return placement.onto_points(self.caster, fitted, self.mask_HW, points_HW3, camera)

  @functools.cached_property
  def mask_iou(self) -> float:
    """IoU of silhouette and mask, 0 for an empty sample."""
    # Where the model puts it, before any refinement.
    if self.caster is None:
      return 0.0
    return raycast.mask_iou(
      self.caster,
      self.placement,
      self.mask_HW,
      self.photo.camera,
    )


def object_colour(image_HW3: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
  """Median colour of the masked pixels, (3,) uint8: the tint of a mesh that has no texture."""
  inside = image_HW3[mask_HW > 0]
  if not len(inside):
    return mesh.GREY
  median = np.median(inside, axis=0)
  return median.astype(np.uint8)

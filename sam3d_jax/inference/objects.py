"""The objects of a scene: which of its samples each is, and where it stands."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses

import numpy as np

from sam3d_jax.geometry.pose import Pose
from sam3d_jax.inference import placement
from sam3d_jax.inference.candidates import Candidate
from sam3d_jax.inference.rewards import Reward
from sam3d_jax.render import raycast
from sam3d_jax.render.mesh import Mesh

# Measures the parts of the work: phases("mesh") is a context in which they run.
Phases = Callable[[str], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class SceneObject:
  """One object of a photo: the sample that was kept, and where it stands.

  name: of its mask. candidate: the sample. scores: rewards of all samples that it was chosen among,
  None if there was no choice. placement: object frame to the photo's camera as it stands in the
  scene, None for an empty sample. source: of the placement: "model", "fitted to the mask" or
  "refined". refined: what render-and-compare found, None if it was not asked for.
  """

  name: str
  candidate: Candidate
  scores: tuple[float, ...] | None
  placement: Pose | None
  source: str
  refined: placement.Refined | None

  @property
  def mesh(self) -> Mesh | None:
    """Surface in the object frame: unit cube [-0.5, 0.5]^3, z up. None for an empty sample."""
    return self.candidate.shape

  @property
  def splats(self) -> None:
    """Gaussian splats: None, since they come with the texture model, which this release lacks."""
    return None

  @property
  def pose(self) -> Pose:
    """Object frame to camera (x left, y up, z forward), in the scene's frame of reference.

    Scene.frame says how much of it is known: with a point map it is in the map's unit; without one,
    translation and scale are relative to the point map that was not given, or unknown.
    """
    return self.placement if self.candidate.metric else self.candidate.pose

  @property
  def mask_iou(self) -> float:
    """IoU of the placed object's silhouette and its mask, 0 for an empty sample."""
    # Where it stands in the scene, which refinement may have changed.
    caster = self.candidate.caster
    if caster is None:
      return 0.0
    return raycast.mask_iou(
      caster,
      self.placement,
      self.candidate.mask_HW,
      self.candidate.photo.camera,
    )


def resolve(
  found: Sequence[Candidate], reward: Reward | None, *, refine: bool, phases: Phases
) -> SceneObject:
  """Chooses among the samples of one object and finds its place.

  The sample with the highest reward is kept, the first without a reward.
  """
  # The choice.
  scores = None
  best = 0
  if reward is not None:
    with phases("mesh"):
      for candidate in found:
        _ = candidate.shape  # worked out here, so that the reward is not charged with it
    with phases("reward"):
      scores = tuple(reward(found))
    best = int(np.argmax(scores))
  chosen = found[best]

  # Its place.
  with phases("placement"):
    where = chosen.placement
  source = "model" if chosen.metric else "fitted to the mask"

  # A better place, if one is asked for and found.
  refined = None
  if refine and chosen.caster is not None:
    with phases("refine"):
      refined = placement.refine(
        chosen.caster,
        where,
        chosen.mask_HW,
        chosen.photo.camera,
        chosen.photo.pointmap_HW3,
      )
    if refined.accepted:
      where = refined.pose
      source = "refined"
  return SceneObject(
    name=chosen.name,
    candidate=chosen,
    scores=scores,
    placement=where,
    source=source,
    refined=refined,
  )

"""What a photo was reconstructed to: its objects, each with mesh and pose, in one scene."""

from collections.abc import Mapping
import contextlib
import dataclasses
import os
import pathlib
from typing import Any

from sam3d_jax.files.photos import Photo
from sam3d_jax.inference import scene_files
from sam3d_jax.inference.objects import Phases, SceneObject


@dataclasses.dataclass(frozen=True)
class Scene:
  """A reconstructed photo.

  photo: the photo, its masks, camera and point map. objects: one a mask, in the masks' order.
  settings: what decided the samples: weights, sampler, seed, number of samples, reward.
  """

  photo: Photo
  objects: tuple[SceneObject, ...]
  settings: Mapping[str, Any]

  @property
  def frame(self) -> str:
    """What the poses are known in.

    "camera": the camera's frame in the point map's unit. "normalised": no point map was given,
    translation and scale are relative to it. "rotation only": the model has learned no more.
    """
    first = self.objects[0].candidate
    if first.metric:
      return "camera"
    return "normalised" if first.predictor.placed else "rotation only"

  def save(self, folder: str | os.PathLike, *, phases: Phases = contextlib.nullcontext) -> None:
    """Writes the scene's files, layout.json last: a folder that has it is complete.

    <object>.glb, scene.glb, points.ply (with a point map), preview.png and layout.json, as
    docs/inference.md describes them. Files of an earlier scene in the folder are removed.

    Args:
      folder: made if need be.
      phases: measures the parts "write" and "preview".
    """
    scene_files.write(
      pathlib.Path(folder),
      self.photo,
      self.objects,
      self.frame,
      self.settings,
      phases,
    )

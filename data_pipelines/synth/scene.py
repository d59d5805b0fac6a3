"""A photographed scene as the builders see it."""

import dataclasses

import numpy as np

from data_pipelines.synth.assets import Asset
from data_pipelines.synth.camera import Viewpoint
from sam3d_jax.geometry import cameras


@dataclasses.dataclass(frozen=True)
class Annotated:
  """The mesh of a photographed object and how the camera sees it."""

  asset: Asset
  viewpoint: Viewpoint


@dataclasses.dataclass(frozen=True)
class Scene:
  """A photo, its objects and, if known, its point map.

  The map has one camera-frame point a pixel, which projects to that pixel's centre.
  """

  name: str
  image_HW3: np.ndarray  # uint8 sRGB
  # (H, W) bool a photographed object, visible part; None: unusable
  masks: tuple[np.ndarray | None, ...] = ()
  pointmap_HW3: np.ndarray | None = None  # float32, NaN where unknown
  camera: cameras.Camera | None = None  # of image and point map; there if the point map is
  license: str = ""

  @property
  def size(self) -> tuple[int, int]:
    """(height, width)."""
    return self.image_HW3.shape[:2]

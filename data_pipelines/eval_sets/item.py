"""What an evaluation set is made of, whatever files it comes from."""

from collections.abc import Iterator
import dataclasses
from typing import Any, Protocol

import numpy as np

from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Item:
  """One object of one photo with its truth.

  name: unique in the set, usable as a folder name.
  truth: the true surface, in any object frame and unit.
  pose: truth's frame -> camera, in the unit of the point map; None if unknown.
  group: scores are also averaged within groups (an occlusion level, a scene); empty: no groups.
  subject: items of one subject are not independent and are drawn together by the bootstrap; empty:
    the item alone.
  voxels_N3: true surface voxels in the model's own object frame (unit cube, z up, 64^3); None where
    the set does not know it.
  """

  name: str
  image_HW3: np.ndarray  # uint8
  mask_HW: np.ndarray  # bool, the visible part of the object
  truth: Mesh
  pose: Pose | None
  pointmap_HW3: np.ndarray | None = None  # camera frame, NaN where unknown
  camera: Camera | None = None  # in pixels of the photo
  group: str = ""
  subject: str = ""
  voxels_N3: np.ndarray | None = None


class EvalSet(Protocol):
  """Items by position, read when they are asked for. `names` are known without reading them."""

  names: list[str]
  identity: dict[str, Any]  # what is evaluated, for the record and for resuming

  def __getitem__(self, index: int) -> Item: ...


@dataclasses.dataclass(frozen=True)
class Subset:
  """Some items of a set, in the order of `indices`."""

  whole: EvalSet
  indices: tuple[int, ...]

  @property
  def names(self) -> list[str]:
    # The set's own names: a subset's results can be laid beside the whole's.
    return [self.whole.names[i] for i in self.indices]

  @property
  def identity(self) -> dict[str, Any]:
    return self.whole.identity | {"chosen": len(self.indices)}

  def __getitem__(self, index: int) -> Item:
    return self.whole[self.indices[index]]


def items(chosen: EvalSet) -> Iterator[Item]:
  """All items in order."""
  for index in range(len(chosen.names)):
    yield chosen[index]

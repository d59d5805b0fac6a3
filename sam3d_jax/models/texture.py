"""The Texture & Refinement model: condition encoder and flow over structured latents.

What the photo says of an object whose voxels are known, and how the latents on them flow.
"""

import dataclasses

from flax import nnx
import jax

from sam3d_jax import sections
from sam3d_jax.batch import Conditioning
from sam3d_jax.geometry.packing import BLOCK, PackedVoxels
from sam3d_jax.models import latent_statistics
from sam3d_jax.models.conditioning import ConditionConfig, ConditionEncoder
from sam3d_jax.models.latent_statistics import LatentStatistics
from sam3d_jax.models.texture_flow import LATENT, TextureFlow, TextureFlowConfig
from sam3d_jax.sections import FieldError


@dataclasses.dataclass(frozen=True)
class RowConfig:
  """What a row of packed objects holds; the program is compiled for it.

  voxels, coarse: slots at the voxels' resolution and at half of it, whole blocks of
  packing.BLOCK. objects: most objects of a row, and those that FLOPs and memory are counted for,
  equal ones that fill it.
  """

  voxels: int = 65_536
  coarse: int = 20_480
  objects: int = 6

  def __post_init__(self):
    sections.check_positive(self, "voxels", "coarse", "objects")
    for name in ("voxels", "coarse"):
      slots = getattr(self, name)
      if slots % BLOCK:
        nearest = max(1, round(slots / BLOCK)) * BLOCK
        raise FieldError(
          f"{name} = {slots} is not a multiple of {BLOCK}; the nearest that is is {nearest}"
        )
      # an object takes a block at least
      if slots < self.objects * BLOCK:
        raise FieldError(
          f"{name} = {slots} slots do not hold objects = {self.objects} of {BLOCK} or more: give "
          f"{self.objects * BLOCK} or more, or fewer objects"
        )


@dataclasses.dataclass(frozen=True)
class TextureConfig:
  """statistics: of the latents that the flow learns, see latent_statistics.py."""

  flow: TextureFlowConfig
  condition: ConditionConfig
  row: RowConfig = RowConfig()
  statistics: LatentStatistics = latent_statistics.PUBLISHED["release"]

  def __post_init__(self):
    channels = len(self.statistics.mean)
    if channels != self.flow.latent_channels:
      raise FieldError(
        f"latent_statistics have {channels} channels and flow.latent_channels = "
        f"{self.flow.latent_channels}: they have to agree"
      )


class TextureModel(nnx.Module):
  """p(latents on the voxels | image, mask, voxels) as a velocity field, for packed objects.

  arXiv 2511.16624 §2.
  """

  def __init__(self, cfg: TextureConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    # Encoder first: the draws of both come from one stream of keys.
    self.condition = ConditionEncoder(cfg.condition, rngs=rngs)
    self.flow = TextureFlow(cfg.flow, rngs=rngs)

  @property
  def step_conditioned(self) -> bool:
    """Whether the flow has an embedder for the step size d.

    Objectives and samplers then feed d = 0 where none is meant.
    """
    # The embedder exists if and only if the flow is a shortcut model.
    return self.cfg.flow.shortcut

  def encode(self, cond: Conditioning, drop_pointmap_N=None):
    """Condition tokens (R, K, S, D) of a conditioning whose streams are (R, K, ...).

    `drop_pointmap_N` (R K,) bool zeroes the tokens of both point-map streams, if it has some.
    """
    streams = [x for x in cond if x is not None]
    rows, objects = streams[0].shape[:2]

    # one object after the other: what is said of it depends on nothing around it
    def flat(x):
      return x.reshape(rows * objects, *x.shape[2:])

    each = jax.tree.map(flat, cond)
    tokens_NSD = self.condition(each, drop_pointmap_N)
    return tokens_NSD.reshape(rows, objects, *tokens_NSD.shape[1:])

  def velocity(self, x, t_RK, tokens_RKSD, d_RK=None, *, voxels: PackedVoxels):
    """Velocity of the latents at time t (0 noise, 1 data), by name.

    x: {"slat": (R, V, C)}. t_RK, d_RK: of each object, or (1,); `d_RK` is the step size of shortcut
    models, None to leave it out. voxels: with the tables that the flow needs.
    """
    velocity_RVC = self.flow(
      x[LATENT],
      t_RK,
      tokens_RKSD,
      voxels,
      d_RK,
    )
    return {LATENT: velocity_RVC}

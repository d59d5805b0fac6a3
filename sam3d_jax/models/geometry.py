"""The Geometry model: condition encoder and flow.

What the photo says, and how the latents flow (Mixture of Transformers).
"""

import dataclasses

from flax import nnx

from sam3d_jax.batch import Conditioning
from sam3d_jax.models.conditioning import ConditionConfig, ConditionEncoder
from sam3d_jax.models.geometry_flow import GeometryFlow, GeometryFlowConfig


@dataclasses.dataclass(frozen=True)
class GeometryConfig:
  flow: GeometryFlowConfig
  condition: ConditionConfig


class GeometryModel(nnx.Module):
  """p(shape, rotation, translation, scale | image, mask, point map) as a velocity field.

  arXiv 2511.16624 §2.
  """

  def __init__(self, cfg: GeometryConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    # Encoder first: the draws of both come from one stream of keys.
    self.condition = ConditionEncoder(cfg.condition, rngs=rngs)
    self.flow = GeometryFlow(cfg.flow, rngs=rngs)

  @property
  def step_conditioned(self) -> bool:
    """Whether the flow has an embedder for the step size d.

    Objectives and samplers then feed d = 0 where none is meant.
    """
    # The embedder exists if and only if the flow is a shortcut model.
    return self.cfg.flow.shortcut

  def encode(self, cond: Conditioning, drop_pointmap_B=None):
    """Condition tokens (B, S, D).

    `drop_pointmap_B` (B,) bool zeroes the tokens of both point-map streams.
    """
    return self.condition(cond, drop_pointmap_B)

  def velocity(self, x, t_B, tokens_BSD, d_B=None):
    """Velocity of every latent at time t (0 noise, 1 data).

    `d_B` is the step size of shortcut models, None to leave it out.
    """
    return self.flow(x, t_B, tokens_BSD, d_B)

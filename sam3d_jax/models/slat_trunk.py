"""The trunk of the SLAT autoencoder: a transformer over active voxels, attention in windows.

Encoder, Gaussian decoder and mesh decoder have the same trunk (arXiv 2412.01506 §3.1): a linear
layer, positions of the voxels, then blocks whose windows are moved by half a window in every second
block, as in Swin. What follows it differs.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax import sections
from sam3d_jax.models.attention import check_backend
from sam3d_jax.models.layers import Dense, layer_norm, position_sincos
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.models.sparse_layers import WindowBlock
from sam3d_jax.models.stack import REMAT_POLICIES, Stack
from sam3d_jax.sections import FieldError

OUT_EPS = 1e-5  # of the norm before the last layer


@dataclasses.dataclass(frozen=True)
class TrunkConfig:
  """The defaults are the published trunk.

  width: of the residual stream. depth: blocks. heads: of attention. mlp_ratio: feed-forward width
  over width. window: voxels along a side of an attention window. remat: what is kept for the
  backward pass. unroll: no loop over blocks. attention: backend. dtype: of matrix products; the
  residual stream, norms and the first layer are fp32.
  """

  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_ratio: float = 4.0
  window: int = 8
  remat: str = "none"
  unroll: bool = False
  attention: str = "auto"
  dtype: str = "bfloat16"

  def __post_init__(self):
    # sizes
    sections.check_positive(self, "depth", "mlp_ratio", "window")
    sections.check_divides(self, "heads", "width")
    if self.window % 2:
      raise FieldError(
        f"window = {self.window} is odd: every second block moves the windows by half of it"
      )
    # how it is computed
    sections.check_choice(self, "remat", REMAT_POLICIES)
    sections.check_dtype(self)
    check_backend(self)


class AlternatingBlock(WindowBlock):
  """A block that finds its windows by its number, so that a stack of them is one loop."""

  def __call__(self, carry, x: SparseTensor, orders):
    """carry: features (R, V, D) and the block's number. x: whose voxels they are. orders: both
    window orders, stacked.
    """
    feats_RVD, number = carry
    order = jax.tree.map(lambda both: both[number % 2], orders)
    out = super().__call__(x.of(feats_RVD), order)
    return out.feats_RVC, number + 1


class SlatTrunk(nnx.Module):
  """Features of packed voxels (R, V, C) to (R, V, D), fp32."""

  def __init__(self, channels: int, cfg: TrunkConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.proj_in = Dense(channels, cfg.width, rngs=rngs)

    def block(rngs: nnx.Rngs) -> AlternatingBlock:
      return AlternatingBlock(
        cfg.width,
        cfg.heads,
        mlp_ratio=cfg.mlp_ratio,
        dtype=jnp.dtype(cfg.dtype),
        attention=cfg.attention,
        rngs=rngs,
      )

    self.blocks = Stack(
      block,
      cfg.depth,
      rngs=rngs,
      remat=cfg.remat,
      unroll=cfg.unroll,
    )

  def __call__(self, x: SparseTensor) -> SparseTensor:
    """Raises ValueError for voxels without window orders."""
    level = x.level
    if level.windows is None:
      raise ValueError(f"attention needs windows: pack with Tables(window={self.cfg.window})")

    # in, with the place of each voxel
    feats_RVC = x.feats_RVC.astype(jnp.float32)
    rows, slots, axes = level.coords_RV3.shape
    coords_L3 = level.coords_RV3.reshape(rows * slots, axes)
    positions_LD = position_sincos(coords_L3, self.cfg.width)
    positions_RVD = positions_LD.reshape(rows, slots, self.cfg.width)
    h = x.of(self.proj_in(feats_RVC) + positions_RVD)

    # the blocks
    orders = jax.tree.map(lambda *both: jnp.stack(both), *level.windows)
    first = jnp.zeros((), jnp.int32)
    feats_RVD, _ = self.blocks((h.feats_RVC, first), h, orders)
    return h.of(feats_RVD)


def slat_output(h: SparseTensor, proj_out: Dense) -> SparseTensor:
  """What the trunk gives to the channels of a latent or of Gaussians: a norm without parameters,
  then a linear layer, in fp32.
  """
  normed = layer_norm(h.feats_RVC, OUT_EPS)
  return h.of(proj_out(normed))

"""Condition encoder: images, masks and point maps to one sequence of tokens.

The flow models attend to it by cross-attention.

Images (crop and whole photo) share one DINOv2 encoder, masks a second one, point maps a third
encoder. The tokens of each encoder go through LayerNorm and a SwiGLU feed-forward to the common
width, get the embedding of their group (crop or whole photo) and are concatenated encoder by
encoder: image, rgb_image, mask, rgb_image_mask, pointmap, rgb_pointmap.
"""

import dataclasses
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.batch import Conditioning
from sam3d_jax.models import layers
from sam3d_jax.models.dinov2 import Dino, DinoConfig
from sam3d_jax.models.pointmap import PointmapConfig, PointmapEncoder

IMAGE_STREAMS = ("image", "rgb_image")
MASK_STREAMS = ("mask", "rgb_image_mask")
POINTMAP_STREAMS = ("pointmap", "rgb_pointmap")
STREAMS = IMAGE_STREAMS + MASK_STREAMS + POINTMAP_STREAMS  # order of the tokens
GROUPS = 2  # crop, whole photo; the embedding table has one more row, published but unused
NORM_EPS = 1e-5
HIDDEN_MULTIPLE = 256


@dataclasses.dataclass(frozen=True)
class ConditionConfig:
  """What the condition encoder reads and how large it is; the defaults are the published ones."""

  dino: DinoConfig = DinoConfig()  # of the image and of the mask encoder
  # None: no point-map encoder, and no parameters for one
  pointmap: PointmapConfig | None = PointmapConfig()
  width: int = 1024
  hidden_multiplier: float = 4.0
  # those that are read; the order of the tokens is always that of STREAMS
  streams: tuple[str, ...] = STREAMS
  dtype: str = "bfloat16"

  def __post_init__(self):
    unknown = [s for s in self.streams if s not in STREAMS]
    if unknown or not self.streams:
      raise ValueError(f"ConditionConfig.streams={self.streams}: give some of {STREAMS}")
    if self.pointmap is None and set(self.streams) & set(POINTMAP_STREAMS):
      raise ValueError(
        f"ConditionConfig.streams={self.streams} has point maps, but ConditionConfig.pointmap is "
        "None"
      )

  @property
  def hidden(self) -> int:
    """Hidden width of the SwiGLU projections.

    Two thirds of multiplier x width, rounded up to a multiple of 256.
    """
    wanted = int(2 * int(self.hidden_multiplier * self.width) / 3)
    return math.ceil(wanted / HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE

  @property
  def tokens(self) -> int:
    """Length of the condition sequence."""
    total = 0
    for stream in self.streams:
      encoder = self.pointmap if stream in POINTMAP_STREAMS else self.dino
      total += encoder.tokens
    return total


class SwiGLU(nnx.Module):
  """w2(silu(w1 x) * w3 x) without biases (Shazeer 2020)."""

  def __init__(self, width: int, hidden: int, width_out: int, *, rngs: nnx.Rngs, dtype):
    self.w1 = layers.Dense(width, hidden, rngs=rngs, dtype=dtype, bias=False)
    self.w2 = layers.Dense(hidden, width_out, rngs=rngs, dtype=dtype, bias=False)
    self.w3 = layers.Dense(width, hidden, rngs=rngs, dtype=dtype, bias=False)

  def __call__(self, x):
    return self.w2(jax.nn.silu(self.w1(x)) * self.w3(x))


class Projection(nnx.Module):
  """LayerNorm, then SwiGLU to the common width."""

  def __init__(self, width: int, cfg: ConditionConfig, *, rngs: nnx.Rngs):
    self.norm = layers.LayerNorm(width, eps=NORM_EPS)
    self.mlp = SwiGLU(width, cfg.hidden, cfg.width, rngs=rngs, dtype=jnp.dtype(cfg.dtype))

  def __call__(self, x):
    return self.mlp(self.norm(x))


class ConditionEncoder(nnx.Module):
  """Conditioning -> (B, S, D) tokens in the compute dtype."""

  def __init__(self, cfg: ConditionConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.image_encoder = Dino(cfg.dino, rngs=rngs)
    self.mask_encoder = Dino(cfg.dino, rngs=rngs)
    self.image_projection = Projection(cfg.dino.width, cfg, rngs=rngs)
    self.mask_projection = Projection(cfg.dino.width, cfg, rngs=rngs)
    if cfg.pointmap is None:
      self.pointmap_encoder = None
      self.pointmap_projection = None
    else:
      self.pointmap_encoder = PointmapEncoder(cfg.pointmap, rngs=rngs)
      self.pointmap_projection = Projection(cfg.pointmap.width, cfg, rngs=rngs)
    rows = 0.02 * jax.random.normal(rngs.params(), (GROUPS, cfg.width), jnp.float32)
    # the published row that nothing reads is zero
    self.group_embed = nnx.Param(jnp.pad(rows, ((0, 1), (0, 0))))

  def __call__(self, cond: Conditioning, drop_pointmap_B=None):
    """Encodes the configured streams.

    Args:
      cond: its streams are (B, H, W, channels) of any size; a stream that the config does not name
      is ignored.
      drop_pointmap_B: (B,) bool; the tokens of both point maps become zero where it is true, and
        where neither map knows any point: that is how an example without a point map comes.

    Raises:
      ValueError: a configured stream is missing.
    """
    missing = [s for s in self.cfg.streams if getattr(cond, s) is None]
    if missing:
      raise ValueError(f"the conditioning lacks {missing}, which ConditionConfig.streams asks for")
    tokens = [
      self.encode(cond, IMAGE_STREAMS, as_float, self.image_encoder, self.image_projection),
      self.encode(cond, MASK_STREAMS, as_mask, self.mask_encoder, self.mask_projection),
    ]
    if self.pointmap_encoder is not None:
      points_BSD = self.encode(
        cond, POINTMAP_STREAMS, lambda x: x, self.pointmap_encoder, self.pointmap_projection
      )
      if points_BSD is not None:
        drop_B = self.lacks_pointmap(cond)
        if drop_pointmap_B is not None:
          drop_B = drop_B | drop_pointmap_B
        points_BSD = jnp.where(drop_B[:, None, None], 0, points_BSD)
      tokens.append(points_BSD)
    return jnp.concatenate([x for x in tokens if x is not None], axis=1)

  def lacks_pointmap(self, cond: Conditioning):
    """(B,) bool, true where no configured point map knows a point."""
    maps = [getattr(cond, s) for s in POINTMAP_STREAMS if s in self.cfg.streams]
    known = [jnp.isfinite(points_BHW3).all(-1).any((1, 2)) for points_BHW3 in maps]
    return ~functools.reduce(jnp.logical_or, known)

  def encode(self, cond: Conditioning, streams, prepare, encoder, projection):
    """Tokens (B, S, D) of those of the two `streams` that the config names.

    None if it names neither.
    """
    groups = [g for g, stream in enumerate(streams) if stream in self.cfg.streams]
    if not groups:
      return None
    inputs = [prepare(getattr(cond, streams[g])) for g in groups]
    if len({x.shape for x in inputs}) == 1:
      x_BGSD = apart(projection(encoder(together(inputs))), len(inputs))
    else:  # the crop and the photo differ in size: one pass each
      x_BGSD = jnp.stack([projection(encoder(x)) for x in inputs], axis=1)
    x_BSD = x_BGSD.reshape(x_BGSD.shape[0], -1, self.cfg.width)
    # A product with rows that name their group: its gradient is a product too, where that of a
    # broadcast would be a sum over all tokens into two rows, for which GPUs are too wide.
    group_of_row = np.repeat(groups, x_BGSD.shape[2])
    of_row_SG = jax.nn.one_hot(group_of_row, len(self.group_embed), dtype=jnp.float32)
    embedding_SD = jnp.matmul(of_row_SG, self.group_embed[...], precision="highest")
    return x_BSD + embedding_SD.astype(x_BSD.dtype)


def together(streams):
  """Streams of equal shape (B, ...) -> one batch (B * streams, ...), example by example.

  Interleaved rather than end to end, so that on a mesh which shards B no example leaves its device.
  """
  return jnp.stack(streams, axis=1).reshape(-1, *streams[0].shape[1:])


def apart(x, streams: int):
  """Inverse of `together`, the streams on axis 1."""
  return x.reshape(-1, streams, *x.shape[1:])


def as_float(image):
  """uint8 images become float in 0..1; float images pass."""
  return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def as_mask(mask):
  """Integer or bool masks become 1 where they are not zero; float masks pass.

  So 0/1 and 0/255 mean the same.
  """
  if jnp.issubdtype(mask.dtype, jnp.floating):
    return mask
  return (mask != 0).astype(jnp.float32)

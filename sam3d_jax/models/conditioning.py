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

from sam3d_jax import sections
from sam3d_jax.batch import Conditioning
from sam3d_jax.models import layers
from sam3d_jax.models.dinov2 import Dino, DinoConfig
from sam3d_jax.models.pointmap import PointmapConfig, PointmapEncoder
from sam3d_jax.sections import FieldError

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
    sections.check_positive(self, "width", "hidden_multiplier")
    sections.check_dtype(self)

    # what is looked at
    unknown = [name for name in self.streams if name not in STREAMS]
    if unknown or not self.streams:
      wrong = "names none"
      if unknown:
        wrong = f"{unknown[0]!r} is no stream{sections.nearest(unknown[0], STREAMS)}"
      raise FieldError(
        f"streams = {tuple(self.streams)}: {wrong}; give some of {STREAMS}, written as a tuple"
      )
    pointmaps = [name for name in self.streams if name in POINTMAP_STREAMS]
    if self.pointmap is None and pointmaps:
      raise FieldError(
        f"streams = {tuple(self.streams)} has point maps, but pointmap is None: leave out "
        f"{', '.join(pointmaps)}, or take a configuration with a section pointmap"
      )

  @property
  def hidden(self) -> int:
    """Hidden width of the SwiGLU projections.

    Two thirds of multiplier x width, rounded up to a multiple of 256.
    """
    # cut to an integer twice, as published
    full = int(self.hidden_multiplier * self.width)
    wanted = int(2 * full / 3)
    multiples = math.ceil(wanted / HIDDEN_MULTIPLE)
    return multiples * HIDDEN_MULTIPLE

  @property
  def tokens(self) -> int:
    """Length of the condition sequence."""
    total = 0
    for stream in self.streams:
      if stream in POINTMAP_STREAMS:
        total += self.pointmap.tokens
      else:
        total += self.dino.tokens
    return total


class SwiGLU(nnx.Module):
  """w2(silu(w1 x) * w3 x) without biases (Shazeer 2020)."""

  def __init__(self, width: int, hidden: int, width_out: int, *, rngs: nnx.Rngs, dtype):
    # Names as in the published checkpoint: w1 gates, w3 is gated, w2 leads out.
    dense = functools.partial(
      layers.Dense,
      rngs=rngs,
      dtype=dtype,
      bias=False,
    )
    self.w1 = dense(width, hidden)
    self.w2 = dense(hidden, width_out)
    self.w3 = dense(width, hidden)

  def __call__(self, x):
    gate = jax.nn.silu(self.w1(x))
    hidden = gate * self.w3(x)
    return self.w2(hidden)


class Projection(nnx.Module):
  """LayerNorm, then SwiGLU to the common width."""

  def __init__(self, width: int, cfg: ConditionConfig, *, rngs: nnx.Rngs):
    self.norm = layers.LayerNorm(width, eps=NORM_EPS)
    self.mlp = SwiGLU(
      width,
      cfg.hidden,
      cfg.width,
      rngs=rngs,
      dtype=jnp.dtype(cfg.dtype),
    )

  def __call__(self, x):
    normed = self.norm(x)
    return self.mlp(normed)


class ConditionEncoder(nnx.Module):
  """Conditioning -> (B, S, D) tokens in the compute dtype."""

  def __init__(self, cfg: ConditionConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    projection = functools.partial(
      Projection,
      cfg=cfg,
      rngs=rngs,
    )

    # one encoder for each kind of stream
    self.image_encoder = Dino(cfg.dino, rngs=rngs)
    self.mask_encoder = Dino(cfg.dino, rngs=rngs)
    self.image_projection = projection(cfg.dino.width)
    self.mask_projection = projection(cfg.dino.width)
    if cfg.pointmap is None:
      self.pointmap_encoder = None
      self.pointmap_projection = None
    else:
      self.pointmap_encoder = PointmapEncoder(cfg.pointmap, rngs=rngs)
      self.pointmap_projection = projection(cfg.pointmap.width)

    # the published row that nothing reads is zero
    normal = jax.random.normal(
      rngs.params(),
      (GROUPS, cfg.width),
      jnp.float32,
    )
    rows = 0.02 * normal
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

    # what the photo shows, and of it the object
    images_BSD = self.encode(
      cond,
      IMAGE_STREAMS,
      as_float,
      self.image_encoder,
      self.image_projection,
    )
    masks_BSD = self.encode(
      cond,
      MASK_STREAMS,
      as_mask,
      self.mask_encoder,
      self.mask_projection,
    )

    # where it is; zero where that is unknown or dropped
    points_BSD = None
    if self.pointmap_encoder is not None:
      points_BSD = self.encode(
        cond,
        POINTMAP_STREAMS,
        as_is,
        self.pointmap_encoder,
        self.pointmap_projection,
      )
    if points_BSD is not None:
      drop_B = self.lacks_pointmap(cond)
      if drop_pointmap_B is not None:
        drop_B = drop_B | drop_pointmap_B
      drop_B11 = drop_B[:, None, None]
      points_BSD = jnp.where(drop_B11, 0, points_BSD)

    # one sequence of those that the configuration names
    sequences = (images_BSD, masks_BSD, points_BSD)
    present = [x for x in sequences if x is not None]
    return jnp.concatenate(present, axis=1)

  def lacks_pointmap(self, cond: Conditioning):
    """(B,) bool, true where no configured point map knows a point."""
    # A point with one unknown coordinate is unknown.
    known = []
    for stream in POINTMAP_STREAMS:
      if stream not in self.cfg.streams:
        continue
      points_BHW3 = getattr(cond, stream)
      known_BHW = jnp.isfinite(points_BHW3).all(-1)
      known_B = known_BHW.any((1, 2))
      known.append(known_B)
    return ~functools.reduce(jnp.logical_or, known)

  def encode(self, cond: Conditioning, streams, prepare, encoder, projection):
    """Tokens (B, S, D) of those of the two `streams` that the config names.

    None if it names neither.
    """
    # The first stream of a pair is of the crop, the second of the whole photo.
    groups = [g for g, stream in enumerate(streams) if stream in self.cfg.streams]
    if not groups:
      return None
    inputs = []
    for g in groups:
      given = getattr(cond, streams[g])
      inputs.append(prepare(given))

    # through encoder and projection, as one batch if the sizes allow
    sizes = {x.shape for x in inputs}
    if len(sizes) == 1:
      encoded = encoder(together(inputs))
      projected = projection(encoded)
      x_BGSD = apart(projected, len(inputs))
    else:  # the crop and the photo differ in size: one pass each
      passes = [projection(encoder(x)) for x in inputs]
      x_BGSD = jnp.stack(passes, axis=1)
    batch, _, tokens, _ = x_BGSD.shape
    x_BSD = x_BGSD.reshape(batch, -1, self.cfg.width)

    # A product with rows that name their group: its gradient is a product too, where that of a
    # broadcast would be a sum over all tokens into two rows, for which GPUs are too wide.
    group_of_row = np.repeat(groups, tokens)
    of_row_SG = jax.nn.one_hot(
      group_of_row,
      len(self.group_embed),
      dtype=jnp.float32,
    )
    embedding_SD = jnp.matmul(
      of_row_SG,
      self.group_embed[...],
      precision="highest",
    )
    return x_BSD + embedding_SD.astype(x_BSD.dtype)


def together(streams):
  """Streams of equal shape (B, ...) -> one batch (B * streams, ...), example by example.

  Interleaved rather than end to end, so that on a mesh which shards B no example leaves its device.
  """
  # The streams of an example lie side by side.
  each = streams[0].shape[1:]
  interleaved = jnp.stack(streams, axis=1)
  return interleaved.reshape(-1, *each)


def apart(x, streams: int):
  """Inverse of `together`, the streams on axis 1."""
  each = x.shape[1:]
  return x.reshape(-1, streams, *each)


def as_float(image):
  """uint8 images become float in 0..1; float images pass."""
  if image.dtype == jnp.uint8:
    return image.astype(jnp.float32) / 255
  return image


def as_is(pointmap):
  """Point maps pass."""
  return pointmap


def as_mask(mask):
  """Integer or bool masks become 1 where they are not zero; float masks pass.

  So 0/1 and 0/255 mean the same.
  """
  if jnp.issubdtype(mask.dtype, jnp.floating):
    return mask
  # Any label but 0 is the object.
  is_object = mask != 0
  return is_object.astype(jnp.float32)

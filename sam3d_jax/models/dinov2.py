"""DINOv2 vision transformer with registers (Oquab et al. 2023; Darcet et al. 2023), any image size.

Blocks are pre-norm with layer scale: x + ls1 * attn(norm1(x)), then x + ls2 * mlp(norm2(x)); exact
GELU, LayerNorm eps 1e-6. Tokens are ordered [CLS, registers, patches], patches row by row.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax import sections
from sam3d_jax.models import attention as attention_lib
from sam3d_jax.models import layers
from sam3d_jax.models.stack import REMAT_POLICIES, Stack

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORM_EPS = 1e-6
PRENORM_EPS = 1e-5  # of the parameter-free norm that follows the pre-norm tokens


@dataclasses.dataclass(frozen=True)
class DinoConfig:
  """Size and behaviour of one encoder; the defaults are ViT-L/14 with 4 registers at 518 pixels."""

  width: int = 1024
  depth: int = 24
  heads: int = 16
  mlp_ratio: float = 4.0
  patch: int = 14
  image_size: int = 518  # image side that the position embedding's grid belongs to
  input_size: int = 518  # images are resized to this side
  registers: int = 4
  # False: final-norm tokens without registers. True: pre-norm tokens, parameter-free norm, with
  # registers
  prenorm: bool = False
  dtype: str = "bfloat16"
  remat: str = "none"
  attention: str = "auto"

  def __post_init__(self):
    # sizes
    sections.check_positive(self, "depth", "mlp_ratio")
    sections.check_not_negative(self, "registers")
    sections.check_divides(self, "heads", "width")
    sections.check_divides(self, "patch", "image_size")
    sections.check_divides(self, "patch", "input_size")
    # how it is computed
    sections.check_choice(self, "remat", REMAT_POLICIES)
    sections.check_dtype(self)
    attention_lib.check_backend(self)

  @property
  def tokens(self) -> int:
    """Tokens that one image becomes."""
    registers = 0
    if self.prenorm:
      registers = self.registers
    patches = (self.input_size // self.patch) ** 2
    return 1 + registers + patches


def initial_positions(grid: int, width: int):
  """(1 + grid^2, D): zero for the CLS, 2-D sin/cos for the patches.

  Learned from there. An encoder trained from scratch knows from the first step where a patch lies;
  from small random values it has to find out.
  """
  # Rows first, as the patches lie in the sequence.
  axis = np.arange(grid, dtype=np.int32)
  rows_columns = np.meshgrid(axis, axis, indexing="ij")
  places = np.stack(rows_columns, axis=-1)
  places_L2 = places.reshape(-1, 2)
  patches_LD = layers.position_sincos(places_L2, width)
  # The CLS token has no place.
  cls_1D = jnp.zeros((1, width), jnp.float32)
  return jnp.concatenate([cls_1D, patches_LD])


class SelfAttention(nnx.Module):
  """Multi-head self-attention with one fused q, k, v projection: kernel (D, 3, H, K)."""

  def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype, backend: str = "auto"):
    head_dim = width // heads
    self.qkv = layers.Dense(
      width,
      (3, heads, head_dim),
      rngs=rngs,
      dtype=dtype,
    )
    self.out = layers.Dense(
      (heads, head_dim),
      width,
      rngs=rngs,
      dtype=dtype,
    )
    self.backend = backend

  def __call__(self, x_BLD):
    # that of keys cancels in the softmax, that of values passes through it
    biased = (True, False, False)
    q, k, v = self.qkv.parts(x_BLD, biased=biased)
    attended_BLHK = attention_lib.attend(
      q,
      k,
      v,
      backend=self.backend,
    )
    # Weights sum to 1, so the values' bias can be added after the mixing.
    v_bias_HK = self.qkv.bias[...][2]
    return self.out.of_sum(attended_BLHK, v_bias_HK)


class Mlp(nnx.Module):
  """Two affine maps around an exact (erf) GELU."""

  def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs, dtype):
    self.fc1 = layers.Dense(
      width,
      hidden,
      rngs=rngs,
      dtype=dtype,
    )
    self.fc2 = layers.Dense(
      hidden,
      width,
      rngs=rngs,
      dtype=dtype,
    )

  def __call__(self, x_BLD):
    hidden = self.fc1(x_BLD)
    active = layers.gelu(hidden, exact=True)
    return self.fc2(active)


class DinoBlock(nnx.Module):
  """One transformer block; keeps the dtype of its input."""

  def __init__(self, cfg: DinoConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(cfg.dtype)
    width = cfg.width
    # attention
    self.norm1 = layers.LayerNorm(width, eps=NORM_EPS)
    self.attn = SelfAttention(
      width,
      cfg.heads,
      rngs=rngs,
      dtype=dtype,
      backend=cfg.attention,
    )
    self.ls1 = nnx.Param(jnp.ones(width, jnp.float32))
    # feed-forward
    self.norm2 = layers.LayerNorm(width, eps=NORM_EPS)
    self.mlp = Mlp(
      width,
      int(width * cfg.mlp_ratio),
      rngs=rngs,
      dtype=dtype,
    )
    self.ls2 = nnx.Param(jnp.ones(width, jnp.float32))

  def __call__(self, x_BLD):
    dtype = x_BLD.dtype
    # attention
    normed_BLD = self.norm1(x_BLD)
    attended_BLD = self.attn(normed_BLD) * self.ls1[...]
    x_BLD = x_BLD + attended_BLD.astype(dtype)
    # feed-forward
    normed_BLD = self.norm2(x_BLD)
    processed_BLD = self.mlp(normed_BLD) * self.ls2[...]
    return x_BLD + processed_BLD.astype(dtype)


class Dino(nnx.Module):
  """Image -> tokens. `mask_token` belongs to the published parameters; nothing here reads it."""

  def __init__(self, cfg: DinoConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    grid = cfg.image_size // cfg.patch

    def normal(*shape: int) -> nnx.Param:
      draw = jax.random.normal(rngs.params(), shape, jnp.float32)
      return nnx.Param(0.02 * draw)

    def block(rngs: nnx.Rngs) -> DinoBlock:
      return DinoBlock(cfg, rngs=rngs)

    # tokens that are no patch, and the patches' positions
    self.cls_token = normal(cfg.width)
    if cfg.registers:
      self.register_tokens = normal(cfg.registers, cfg.width)
    else:
      self.register_tokens = None
    self.mask_token = nnx.Param(jnp.zeros(cfg.width, jnp.float32))
    self.pos_embed = nnx.Param(initial_positions(grid, cfg.width))

    # from pixels to tokens
    self.patch_embed = layers.Dense(
      (cfg.patch, cfg.patch, 3),
      cfg.width,
      rngs=rngs,
      dtype=jnp.dtype(cfg.dtype),
    )

    # the transformer
    self.blocks = Stack(
      block,
      cfg.depth,
      rngs=rngs,
      remat=cfg.remat,
    )
    self.norm = layers.LayerNorm(cfg.width, eps=NORM_EPS)

  def __call__(self, image_BHWC):
    """(B, H, W, 1 or 3) float in 0..1, any size -> (B, cfg.tokens, D) in the compute dtype."""
    # Any size in; the network has one.
    image = preprocess(image_BHWC, self.cfg.input_size)
    x_BLD = self.prenorm(image)
    if self.cfg.prenorm:
      normed_BLD = layers.layer_norm(x_BLD, PRENORM_EPS)
      return normed_BLD.astype(x_BLD.dtype)
    return self.drop_registers(self.norm(x_BLD))

  def prenorm(self, image_BHWC):
    """Tokens before the final norm, registers included.

    `image_BHWC` is already resized and normalised.
    """
    patch, dim = self.cfg.patch, self.cfg.width
    batch, height, width, _ = image_BHWC.shape
    rows = height // patch
    columns = width // patch

    # patches, row by row
    pixels = image_BHWC.reshape(
      batch,
      rows,
      patch,
      columns,
      patch,
      3,
    )
    patches = pixels.swapaxes(2, 3)
    x_BLD = self.patch_embed(patches)
    x_BLD = x_BLD.reshape(batch, rows * columns, dim)
    dtype = x_BLD.dtype

    # before them the CLS token, which has a position, and the registers, which have none
    pos_LD = position_embedding(
      self.pos_embed[...],
      rows,
      columns,
    )
    pos_LD = pos_LD.astype(dtype)
    cls_1D = self.cls_token[...].astype(dtype)[None]
    prefix_LD = cls_1D + pos_LD[:1]
    if self.register_tokens is not None:
      registers_RD = self.register_tokens[...].astype(dtype)
      prefix_LD = jnp.concatenate([prefix_LD, registers_RD])
    prefix_BLD = jnp.broadcast_to(
      prefix_LD,
      (batch, *prefix_LD.shape),
    )

    # the transformer sees them as one sequence
    patches_BLD = x_BLD + pos_LD[1:]
    sequence_BLD = jnp.concatenate([prefix_BLD, patches_BLD], axis=1)
    return self.blocks(sequence_BLD)

  def drop_registers(self, x_BLD):
    """[CLS, registers, patches] -> [CLS, patches]."""
    # Registers only serve the layers (Darcet et al. 2023).
    first_patch = 1 + self.cfg.registers
    cls_B1D = x_BLD[:, :1]
    patches_BLD = x_BLD[:, first_patch:]
    return jnp.concatenate([cls_B1D, patches_BLD], axis=1)


def preprocess(image_BHWC, size: int):
  """Resizes (bilinear, no antialiasing) and normalises as ImageNet, masks included.

  A single channel is repeated to three.
  """
  batch, height, width, channels = image_BHWC.shape
  image_BHWC = image_BHWC.astype(jnp.float32)
  if (height, width) != (size, size):
    image_BHWC = jax.image.resize(
      image_BHWC,
      (batch, size, size, channels),
      "linear",
      antialias=False,
    )
  # Masks go through the same network as pictures.
  if channels == 1:
    image_BHWC = jnp.repeat(image_BHWC, 3, axis=-1)
  centred_BHWC = image_BHWC - jnp.asarray(IMAGENET_MEAN)
  return centred_BHWC / jnp.asarray(IMAGENET_STD)


def position_embedding(pos_LD, rows: int, columns: int):
  """Position embedding (1 + grid², D) for a grid of rows x columns patches.

  The CLS row is kept, the grid is resized in fp32. The resize is bicubic with a = -0.5 and
  antialiasing (Keys' kernel, widened when shrinking), unlike plain bicubic (a = -0.75).
  """
  # One row is the CLS token's, the others are a square grid.
  length, width = pos_LD.shape
  grid = int((length - 1) ** 0.5)
  if (rows, columns) == (grid, grid):
    return pos_LD
  grid_HWD = pos_LD[1:].reshape(grid, grid, -1)
  grid_HWD = jax.image.resize(
    grid_HWD,
    (rows, columns, width),
    "cubic",
    antialias=True,
  )
  # the CLS token has no place on the grid
  cls_1D = pos_LD[:1]
  patches_LD = grid_HWD.reshape(rows * columns, -1)
  return jnp.concatenate([cls_1D, patches_LD])

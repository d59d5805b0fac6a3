"""The mesh decoder: SLAT latents to the features of fine cubes, of which FlexiCubes makes a mesh
(arXiv 2412.01506 §3.1).

The trunk works on voxels of 64^3. Two blocks then subdivide each voxel, to 4 x 4 x 4 cubes; they
are kept as a brick a voxel (models/brick_layers.py).
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax import sections
from sam3d_jax.geometry import bricks as brick_grid
from sam3d_jax.geometry.packing import VoxelLevel
from sam3d_jax.models import flexicubes
from sam3d_jax.models.brick_layers import (
  BrickGroupNorm,
  brick_conv,
  children_in_place,
  copied,
  merged_kernels,
  subdividing_conv,
)
from sam3d_jax.models.layers import Dense
from sam3d_jax.models.slat_trunk import SlatTrunk, TrunkConfig
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.models.sparse_layers import SubmanifoldConv
from sam3d_jax.sections import FieldError

GROUPS = 32  # of the norms


@dataclasses.dataclass(frozen=True)
class SlatMeshConfig:
  """The defaults are the published decoder.

  up_channels: width after each of the two subdivisions. latent_channels: of a voxel's latent.
  resolution: voxels along a side of the grid; cubes are a quarter of a voxel wide.
  """

  trunk: TrunkConfig = TrunkConfig()
  up_channels: tuple[int, ...] = (192, 96)
  latent_channels: int = 8
  resolution: int = 64

  def __post_init__(self):
    # a configuration file may hold a list
    object.__setattr__(self, "up_channels", tuple(self.up_channels))
    sections.check_positive(self, "latent_channels", "resolution")
    if len(self.up_channels) != 2:
      raise FieldError(f"up_channels = {self.up_channels}: give a width for each of 2 subdivisions")
    for channels in (self.trunk.width, *self.up_channels):
      if channels % GROUPS:
        raise FieldError(f"width {channels} is not a multiple of {GROUPS}, the groups of its norm")

  @property
  def cubes(self) -> int:
    """Cubes along a side of the grid."""
    return self.resolution * brick_grid.SIDE


class SubdivideBlock(nnx.Module):
  """Halves the cells: a residual block of two convolutions, the second of which starts at zero.

  Products run in `dtype` with fp32 sums. Norms are fp32, and so is the way around: no norm bounds
  its numbers, and half precision could not hold them.
  """

  def __init__(self, channels: int, out_channels: int, *, dtype, rngs: nnx.Rngs):
    self.norm1 = BrickGroupNorm(GROUPS, channels)
    self.norm2 = BrickGroupNorm(GROUPS, out_channels)
    self.conv1 = SubmanifoldConv(channels, out_channels, rngs=rngs)
    self.conv2 = SubmanifoldConv(out_channels, out_channels, rngs=rngs, zero=True)
    if channels == out_channels:
      self.skip = None
    else:
      self.skip = Dense(channels, out_channels, rngs=rngs)
    self.dtype = dtype

  def __call__(self, x_RVxyzC, level: VoxelLevel):
    """(R, V, s, s, s, C) to (R, V, 2s, 2s, 2s, O) fp32. level: of the voxels, with neighbours."""
    # the first convolution, over cells that are about to be subdivided
    active = jax.nn.silu(self.norm1(x_RVxyzC, level))
    kernels = merged_kernels(self.conv1.kernel[...])
    h = subdividing_conv(
      active.astype(self.dtype),
      kernels.astype(self.dtype),
      level.neighbours_R27V,
    )
    h = children_in_place(h + self.conv1.bias[...])

    # the second, over their children
    active = jax.nn.silu(self.norm2(h, level))
    h = brick_conv(
      active.astype(self.dtype),
      self.conv2.kernel[...].astype(self.dtype),
      level.neighbours_R27V,
    )
    h = h + self.conv2.bias[...]

    # the way around, before the cells are copied
    shortcut = x_RVxyzC
    if self.skip is not None:
      shortcut = self.skip(x_RVxyzC)
    return h + copied(shortcut)


class SlatMeshDecoder(nnx.Module):
  """Latents (R, V, C), as encoded, to the features of cubes (R, V, 4, 4, 4, 101) fp32."""

  def __init__(self, cfg: SlatMeshConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.trunk = SlatTrunk(cfg.latent_channels, cfg.trunk, rngs=rngs)
    channels = cfg.trunk.width
    blocks = []
    for out in cfg.up_channels:
      block = SubdivideBlock(channels, out, dtype=jnp.dtype(cfg.trunk.dtype), rngs=rngs)
      blocks.append(block)
      channels = out
    self.up_blocks = nnx.List(blocks)
    # from zero, as published: a field without any sign
    self.proj_out = Dense(channels, flexicubes.CHANNELS, rngs=rngs, zero=True)

  def __call__(self, x: SparseTensor):
    """Raises ValueError for voxels without neighbours or window orders."""
    if x.level.neighbours_R27V is None:
      raise ValueError("the mesh decoder needs neighbours: pack with Tables(neighbours=True)")
    h = self.trunk(x)
    # every voxel is a brick of one cell
    rows, slots, width = h.feats_RVC.shape
    feats = h.feats_RVC.reshape(rows, slots, 1, 1, 1, width)
    for block in self.up_blocks:
      feats = self._subdivided(block, feats, x.level)
    return self.proj_out(feats)

  def _subdivided(self, block: SubdivideBlock, feats, level: VoxelLevel):
    """One block; unless everything is kept, its inside is computed again in the backward pass."""
    if self.cfg.trunk.remat == "none":
      return block(feats, level)
    graph, params = nnx.split(block)

    @jax.checkpoint
    def again(params, feats, level):
      return nnx.merge(graph, params)(feats, level)

    return again(params, feats, level)


def meshes(feats_RVxyzC, level: VoxelLevel, resolution: int) -> list[list[flexicubes.Mesh]]:
  """The mesh of each object of each row, from what the decoder gave; on the host.

  resolution: of the voxels. Raises ValueError for features that are not finite.
  """
  found = []
  for row, feats_VxyzC in enumerate(feats_RVxyzC):
    in_row = []
    for start, count in zip(level.start_RK[row], level.count_RK[row], strict=True):
      if count:
        mesh = _mesh(feats_VxyzC, level.coords_RV3[row], int(start), int(count), resolution)
        in_row.append(mesh)
    found.append(in_row)
  return found


def _mesh(feats_VxyzC, coords_V3, start: int, count: int, resolution: int) -> flexicubes.Mesh:
  """The mesh of the `count` voxels of a row from `start` on.

  With them come some of those after or before, as padding, so that objects of about this size share
  a program.
  """
  slots = len(coords_V3)
  taken = min(brick_grid.rounded(count), slots)
  begin = min(start, slots - taken)
  number = begin + np.arange(taken)
  own = (number >= start) & (number < start + count)
  bricks = brick_grid.around(
    np.asarray(coords_V3)[begin : begin + taken],
    resolution,
    valid_V=own,
  )
  return flexicubes.extract(
    feats_VxyzC[begin : begin + taken],
    bricks,
    resolution * brick_grid.SIDE,
  )


def in_published_order(feats_RVxyzC):
  """Cubes as the published code lists them: (R, V, 64, C), children of children, z fastest."""
  rows, slots, *_, channels = feats_RVxyzC.shape
  halves = feats_RVxyzC.reshape(rows, slots, 2, 2, 2, 2, 2, 2, channels)
  # the first halving of all axes before the second
  ordered = halves.transpose(0, 1, 2, 4, 6, 3, 5, 7, 8)
  return ordered.reshape(rows, slots, 64, channels)

"""Pictures of Gaussian splats on a device: colour, alpha and depth, differentiable.

    settings = Settings(width=512, height=512, kernel="mip", slots=8_000_000)
    picture = jax.jit(functools.partial(render, settings=settings))(splats, camera, pose)

Shapes are static: the number of splats (unused ones have opacity 0), the size of the picture and
`slots`, the room for (tile, splat) pairs. If `picture.lost` is not 0 the farthest splats had no
room: take more slots (`picture.needed`). One call is one picture; several are `jax.lax.map`, which
keeps the memory of one.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render import tiles
from sam3d_jax.render.splats import Splats
from sam3d_jax.render.splats_compositor import Walk, composite
from sam3d_jax.render.splats_projection import KERNELS, Ellipses, project
from sam3d_jax.render.tiles import Grid

SLOTS_PER_SPLAT = 8  # room for pairs where nothing is said
FEWEST_SLOTS = 1 << 12
ALPHA_OF_DEPTH = 1e-6  # below which nothing has a depth


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is static in a picture. Only size, kernel and near change it; the rest is speed."""

  width: int  # pixels
  height: int
  kernel: str = "mip"  # of splats_projection.KERNELS
  near: float = 0.2  # camera z up to which splats are not drawn
  slots: int | None = None  # room for (tile, splat) pairs; None: SLOTS_PER_SPLAT each
  tile: int = 16  # pixels along a tile's side
  block: int = 32  # splats that a tile takes at once
  lanes: int = 16  # tiles at once

  def __post_init__(self):
    if self.kernel not in KERNELS:
      known = ", ".join(KERNELS)
      raise ValueError(f"kernel {self.kernel!r} is not one of {known}")
    for name in ("width", "height", "tile", "block", "lanes"):
      value = getattr(self, name)
      if value < 1:
        raise ValueError(f"{name} = {value} is not a positive number")

  @property
  def grid(self) -> Grid:
    return Grid(self.width, self.height, self.tile)

  def walk(self, count: int) -> Walk:
    """For so many splats."""
    slots = self.slots
    if slots is None:
      slots = max(FEWEST_SLOTS, SLOTS_PER_SPLAT * count)
    # More than every splat in every tile are never used.
    most = max(1, count) * self.grid.tiles
    lanes = min(self.lanes, self.grid.tiles)
    return Walk(
      slots=min(slots, most),
      block=self.block,
      lanes=lanes,
    )


class Picture(NamedTuple):
  """What a camera sees of splats."""

  colour_HW3: jax.Array  # over the background
  alpha_HW: jax.Array
  # camera z, the mean by share of the pixel; NaN where nothing is
  depth_HW: jax.Array
  needed: jax.Array  # uint32: (tile, splat) pairs
  lost: jax.Array  # uint32: of these, pairs without room; the farthest splats
  invalid: jax.Array  # int32: splats that were left out for NaN or overflow


def render(
  splats: Splats,
  camera: Camera,
  where: Pose,
  *,
  settings: Settings,
  background_3=(0.0, 0.0, 0.0),
) -> Picture:
  """One picture, differentiable in splats, camera, pose and background.

  Args:
    splats: N of them, in a frame of their own.
    camera: its fx, fy, cx and cy may be traced; width and height are those of `settings`.
    where: from the splats' frame to the camera's (x left, y up, z forward).
    settings: static.
    background_3: shows where splats let light through.

  Raises:
    ValueError: more splats and tiles than 32 bits can name; the remedy is named.
  """
  grid = settings.grid
  count = splats.centres_N3.shape[0]
  tiles.check(count, grid)
  where = Pose(*(jnp.asarray(field, jnp.float32) for field in where))
  splats = Splats(*(jnp.asarray(field, jnp.float32) for field in splats))
  camera = camera._replace(width=settings.width, height=settings.height)

  # Ellipses, and rows of what is seen in the order of their depth.
  kernel = KERNELS[settings.kernel]
  ellipses = project(splats, camera, where, kernel, settings.near)
  order, placed = _by_depth(ellipses)
  table = _table(ellipses, splats.colours_N3)
  table = _reordered(table, order, placed)

  # Which tiles each can touch.
  walk = settings.walk(count)
  pairs = _pairs(ellipses, order, grid, walk.slots)
  gathered = composite(table, pairs, grid, walk)

  # Colour over the background, depth as a mean over what is seen.
  alpha = gathered[..., 4]
  background = jnp.asarray(background_3, jnp.float32)
  colour = gathered[..., :3] + (1.0 - alpha[..., None]) * background
  is_seen = alpha > ALPHA_OF_DEPTH
  share = jnp.where(is_seen, alpha, 1.0)
  depth = jnp.where(is_seen, gathered[..., 3] / share, jnp.nan)
  return Picture(
    colour_HW3=colour,
    alpha_HW=alpha,
    depth_HW=depth,
    needed=pairs.needed,
    lost=pairs.lost,
    invalid=(~ellipses.valid_N).sum(),
  )


def _by_depth(ellipses: Ellipses) -> tuple[jax.Array, jax.Array]:
  """The splats from near to far, those that are not seen last, and each one's place in it."""
  depth = jax.lax.stop_gradient(ellipses.depth_N)
  depth = jnp.where(ellipses.visible_N, depth, jnp.inf)
  order = jnp.argsort(depth)
  order = order.astype(jnp.int32)
  return order, tiles.inverse(order)


def _table(ellipses: Ellipses, colours_N3) -> jax.Array:
  """Rows as the compositor takes them; features are the colour and the depth."""
  # What is not seen must not bring NaN in.
  visible = ellipses.visible_N[:, None]
  colours = jnp.where(visible, colours_N3, 0.0)
  shape = jnp.stack(
    [
      ellipses.u_N,
      ellipses.v_N,
      ellipses.xx_N,
      ellipses.xy_N,
      ellipses.yy_N,
      ellipses.opacity_N,
    ],
    axis=1,
  )
  return jnp.concatenate([shape, colours, ellipses.depth_N[:, None]], axis=1)


@jax.custom_vjp
def _reordered(table_NK, order_N, placed_N):
  """Rows in another order; the derivative gathers them back."""
  return table_NK[order_N]


def _reordered_forward(table_NK, order_N, placed_N):
  return table_NK[order_N], placed_N


def _reordered_backward(placed_N, slope_NK):
  return slope_NK[placed_N], None, None


_reordered.defvjp(_reordered_forward, _reordered_backward)


def _pairs(ellipses: Ellipses, order_N, grid: Grid, slots: int) -> tiles.Pairs:
  """Pairs of tiles and splats, whose numbers are their places in the order."""
  fixed = jax.lax.stop_gradient(ellipses)
  # A little wider than computed, as the bound is rounded too.
  reach_u = 1.0001 * fixed.reach_u_N + 1e-3
  reach_v = 1.0001 * fixed.reach_v_N + 1e-3
  touched = tiles.boxes(
    grid,
    fixed.u_N - reach_u,
    fixed.u_N + reach_u,
    fixed.v_N - reach_v,
    fixed.v_N + reach_v,
  )
  # What is not seen touches nothing.
  right = jnp.where(fixed.visible_N, touched.right_N, touched.left_N)
  touched = touched._replace(right_N=right)
  ordered = tiles.Boxes(*(field[order_N] for field in touched))
  return tiles.pair(grid, ordered, slots)

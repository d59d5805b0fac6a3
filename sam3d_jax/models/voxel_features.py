"""Image features of an object's voxels: what the views that see a voxel show at its place.

Each view is encoded into a grid of patch tokens, before the encoder's final norm; a voxel's centre
is projected into the view and the tokens are read there bilinearly. Its feature is the mean over
the views that see it: those in which it does not lie behind the surface (the Depth-VAE of arXiv
2511.16624), or all of them (arXiv 2412.01506).

Views come in batches and are summed up, so that memory does not grow with their number.

Dimension letters: B views of a batch, V voxels, P patches along a side, D channels of a token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam3d_jax.models.dinov2 import Dino, preprocess

# of depths, unit cubes: more than a voxel's half diagonal, 0.0135, and the step of half precision
TOLERANCE = 1 / 64


class Views(NamedTuple):
  """Views of one object. Frames as everywhere: camera x left, y up, z forward."""

  image_BHW3: jax.Array  # float 0..1, before black
  depth_BHW: jax.Array  # along the camera's axis, NaN where nothing is
  # to the camera, for columns: p_camera = rotation @ (scale * p_object) + translation
  rotation_B33: jax.Array
  translation_B3: jax.Array
  scale_B: jax.Array
  focal_B2: jax.Array  # fx, fy in pixels of the image
  centre_B2: jax.Array  # cx, cy
  valid_B: jax.Array  # bool, False for views that only fill a batch


class FeatureSums(NamedTuple):
  """Sums over views so far; fp32."""

  seen_VD: jax.Array  # over the views that see a voxel
  count_V: jax.Array  # how many these are
  all_VD: jax.Array  # over all views
  views: jax.Array  # how many these are


def no_features(voxels: int, channels: int) -> FeatureSums:
  """Sums over no view."""
  return FeatureSums(
    seen_VD=jnp.zeros((voxels, channels), jnp.float32),
    count_V=jnp.zeros(voxels, jnp.float32),
    all_VD=jnp.zeros((voxels, channels), jnp.float32),
    views=jnp.zeros((), jnp.float32),
  )


def add_views(
  dino: Dino,
  sums: FeatureSums,
  coords_V3,
  views: Views,
  *,
  resolution: int,
  tolerance: float = TOLERANCE,
) -> FeatureSums:
  """Sums with a batch of views more.

  coords_V3: voxel indices in a grid of `resolution`. tolerance: how far behind the surface the
  centre of a voxel that is seen may lie, in the depth's unit.
  """
  # what the encoder makes of the pictures
  pixels = preprocess(views.image_BHW3, dino.cfg.input_size)
  tokens_BLD = dino.prenorm(pixels)
  first_patch = 1 + dino.cfg.registers
  side = dino.cfg.input_size // dino.cfg.patch
  grid_BPPD = tokens_BLD[:, first_patch:].reshape(len(tokens_BLD), side, side, -1)

  # where the voxels are in them
  centres_V3 = (coords_V3.astype(jnp.float32) + 0.5) / resolution - 0.5
  height, width = views.depth_BHW.shape[1:]
  extent_2 = jnp.array([width, height], jnp.float32)

  def of_view(carried, view):
    grid_PPD, depth_HW, rotation_33, translation_3, scale, focal_2, centre_2, valid = view
    pixel_V2, z_V = project(centres_V3, rotation_33, translation_3, scale, focal_2, centre_2)
    features_VD = sample(grid_PPD.astype(jnp.float32), pixel_V2 / extent_2)
    seen_V = visible(depth_HW, pixel_V2, z_V, tolerance) & valid
    # a view that only fills the batch adds nothing
    weight = valid.astype(jnp.float32)
    seen_V1 = seen_V[:, None].astype(jnp.float32)
    added = FeatureSums(
      seen_VD=carried.seen_VD + seen_V1 * features_VD,
      count_V=carried.count_V + seen_V1[:, 0],
      all_VD=carried.all_VD + weight * features_VD,
      views=carried.views + weight,
    )
    return added, None

  each = (
    grid_BPPD,
    views.depth_BHW,
    views.rotation_B33,
    views.translation_B3,
    views.scale_B,
    views.focal_B2,
    views.centre_B2,
    views.valid_B,
  )
  summed, _ = jax.lax.scan(of_view, sums, each)
  return summed


def mean_features(sums: FeatureSums, *, depth_aware: bool = True):
  """(V, D) fp32: the mean over the views that see a voxel, over all views where none does, and over
  all views everywhere if not `depth_aware`.
  """
  plain_VD = sums.all_VD / jnp.maximum(sums.views, 1)
  if not depth_aware:
    return plain_VD
  seen_VD = sums.seen_VD / jnp.maximum(sums.count_V, 1)[:, None]
  return jnp.where(sums.count_V[:, None] > 0, seen_VD, plain_VD)


def project(points_V3, rotation_33, translation_3, scale, focal_2, centre_2):
  """Pixel coordinates (V, 2), x right and y down with pixel centres at + 0.5, and depths (V,)."""
  moved_V3 = jnp.einsum(
    "vi,ci->vc", scale * points_V3, rotation_33, precision=jax.lax.Precision.HIGHEST
  )
  camera_V3 = moved_V3 + translation_3
  z_V = camera_V3[:, 2]
  # the camera's x is left and its y up
  pixel_V2 = centre_2 - focal_2 * camera_V3[:, :2] / z_V[:, None]
  return pixel_V2, z_V


def sample(grid_PPD, place_V2):
  """(V, D): a grid read bilinearly at places of 0..1 (x, y), whose first cell has its centre at
  half a cell; zero outside (`grid_sample` with zeros and align_corners=False).
  """
  rows, columns, _ = grid_PPD.shape
  size_2 = jnp.array([columns, rows], jnp.float32)
  at_V2 = place_V2 * size_2 - 0.5
  low_V2 = jnp.floor(at_V2)
  part_V2 = at_V2 - low_V2

  found = 0.0
  for right in (0, 1):
    for down in (0, 1):
      column_V = low_V2[:, 0] + right
      row_V = low_V2[:, 1] + down
      inside_V = (column_V >= 0) & (column_V < columns) & (row_V >= 0) & (row_V < rows)
      x_V = part_V2[:, 0] if right else 1 - part_V2[:, 0]
      y_V = part_V2[:, 1] if down else 1 - part_V2[:, 1]
      row_index_V = jnp.clip(row_V, 0, rows - 1).astype(jnp.int32)
      column_index_V = jnp.clip(column_V, 0, columns - 1).astype(jnp.int32)
      weight_V = jnp.where(inside_V, x_V * y_V, 0)
      found += weight_V[:, None] * grid_PPD[row_index_V, column_index_V]
  return found


def visible(depth_HW, pixel_V2, z_V, tolerance: float):
  """(V,) bool: within the picture, on the object, and not behind its surface by more than
  `tolerance`. Where the pixel shows nothing, the farthest of its neighbours counts: a voxel's
  centre at the silhouette may lie a fraction of a pixel outside.
  """
  height, width = depth_HW.shape
  known_HW = jnp.where(jnp.isfinite(depth_HW), depth_HW, -jnp.inf)
  surface_HW = jax.lax.reduce_window(
    known_HW.astype(jnp.float32), -jnp.inf, jax.lax.max, (3, 3), (1, 1), "SAME"
  )
  own_HW = jnp.where(jnp.isfinite(depth_HW), depth_HW, surface_HW)

  column_V = jnp.floor(pixel_V2[:, 0])
  row_V = jnp.floor(pixel_V2[:, 1])
  inside_V = (column_V >= 0) & (column_V < width) & (row_V >= 0) & (row_V < height) & (z_V > 0)
  row_index_V = jnp.clip(row_V, 0, height - 1).astype(jnp.int32)
  column_index_V = jnp.clip(column_V, 0, width - 1).astype(jnp.int32)
  surface_V = own_HW[row_index_V, column_index_V]
  return inside_V & (z_V < surface_V + tolerance)

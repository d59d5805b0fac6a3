"""Published names of the SLAT autoencoder: encoder, Gaussian decoders, mesh decoder.

All three have the same trunk: a linear layer, blocks of attention in windows; what follows differs.
"""

from collections.abc import Sequence

import numpy as np

from sam3d_jax.torch_bridge.keys import Rule
from sam3d_jax.torch_bridge.names_geometry import affine_rules, layer_norm_rules
from sam3d_jax.torch_bridge.names_sparse import (
  pointwise_conv_rules,
  submanifold_conv_rules,
  window_block_rules,
)


def trunk_rules(width: int) -> list[Rule]:
  """The trunk: the way in and the stack of blocks."""
  return [
    *affine_rules("input_layer", "trunk/proj_in"),
    *window_block_rules(width, "blocks.{n}.", "trunk/blocks/layer/", stacked=True),
  ]


def encoder_rules(width: int) -> list[Rule]:
  """Names of `slat_encoder`: the trunk, then mean and log variance side by side."""
  return [*trunk_rules(width), *affine_rules("out_layer", "proj_out")]


def gaussian_decoder_rules(width: int, offsets_G3: np.ndarray) -> list[Rule]:
  """Names of `slat_decoder_gs` and `slat_decoder_gs_4`.

  offsets_G3: where the Gaussians of a voxel start, a table that the published code stores.
  """
  return [
    Rule("offset_perturbation", None, buffer=lambda: offsets_G3),
    *trunk_rules(width),
    *affine_rules("out_layer", "proj_out"),
  ]


def mesh_decoder_rules(width: int, up_channels: Sequence[int]) -> list[Rule]:
  """Names of `slat_decoder_mesh`: the trunk, then blocks that halve the voxels.

  up_channels: what each of those gives.
  """
  rules = trunk_rules(width)
  channels = width
  for number, out in enumerate(up_channels):
    rules += up_block_rules(channels, out, f"upsample.{number}.", f"up_blocks/{number}/")
    channels = out
  return [*rules, *affine_rules("out_layer", "proj_out")]


def up_block_rules(channels: int, out_channels: int, torch: str, ours: str) -> list[Rule]:
  """A block that halves the voxels: a norm before, two convolutions with a norm between them after,
  and the way around.
  """
  # widths that differ are brought together on the way around
  skip = []
  if channels != out_channels:
    skip = pointwise_conv_rules(
      f"{torch}skip_connection.conv",
      f"{ours}skip",
      channels,
      out_channels,
      half=True,
    )
  return [
    *layer_norm_rules(f"{torch}act_layers.0", f"{ours}norm1"),
    *submanifold_conv_rules(f"{torch}out_layers.0.conv", f"{ours}conv1", half=True),
    *layer_norm_rules(f"{torch}out_layers.1", f"{ours}norm2"),
    *submanifold_conv_rules(f"{torch}out_layers.3.conv", f"{ours}conv2", half=True),
    *skip,
  ]

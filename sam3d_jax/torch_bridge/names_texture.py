"""Published names of the Texture & Refinement flow model.

A U of residual blocks around a transformer: `input_blocks` go down to the coarse voxels and to the
transformer's width, `out_blocks` mirror them. `half` follows the published fp16 storage, as in
`names_geometry`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sam3d_jax.torch_bridge.keys import Rule, prefixed
from sam3d_jax.torch_bridge.names_geometry import (
  adaln_rules,
  affine_rules,
  stream_rules,
  timestep_embedder_rules,
)
from sam3d_jax.torch_bridge.names_sparse import res_block_rules

# the generator holds guidance, which holds the flow model
BACKBONE = "reverse_fn.backbone."


class Widths(NamedTuple):
  """Channels of a residual block, in and out."""

  channels: int
  out_channels: int


def down_blocks(io_channels: Sequence[int], width: int, blocks: int) -> list[Widths]:
  """The residual blocks on the way down: at each level `blocks`, of which the last one halves the
  resolution and goes on to the next level's width.
  """
  found = []
  next_channels = (*io_channels[1:], width)
  for channels, following in zip(io_channels, next_channels, strict=True):
    found += [Widths(channels, channels)] * (blocks - 1)
    found.append(Widths(channels, following))
  return found


def up_blocks(io_channels: Sequence[int], width: int, blocks: int, *, skip: bool) -> list[Widths]:
  """The residual blocks on the way up: the way down mirrored; with `skip` each also reads what its
  mirror image gave.
  """
  joined = 2 if skip else 1
  found = []
  coarser = (width, *reversed(io_channels[1:]))
  for channels, before in zip(reversed(io_channels), coarser, strict=True):
    found.append(Widths(joined * before, channels))
    found += [Widths(joined * channels, channels)] * (blocks - 1)
  return found


def texture_flow_rules(
  width: int,
  io_channels: Sequence[int],
  io_blocks: int,
  *,
  qk_rms_norm: bool = True,
  skip: bool = True,
  shortcut: bool = False,
) -> list[Rule]:
  """Names inside the flow model itself.

  width: of the transformer. io_channels: of the levels around it, finest first. io_blocks: residual
  blocks a level. skip: whether blocks on the way up read what the way down gave. shortcut: whether
  it has an embedder of step sizes.
  """
  # what it is told
  rules = []
  if shortcut:
    rules += timestep_embedder_rules("d_embedder.", "step/")
  rules += timestep_embedder_rules("t_embedder.", "time/")

  # down
  rules += affine_rules("input_layer", "proj_in")
  for number, (channels, out) in enumerate(down_blocks(io_channels, width, io_blocks)):
    rules += res_block_rules(channels, out, f"input_blocks.{number}.", f"in_blocks/{number}/")

  # the transformer
  torch, ours = "blocks.{n}.", "blocks/layer/"
  rules += adaln_rules(width, torch, ours, stacked=True)
  rules += stream_rules(width, qk_rms_norm, torch, f"{ours}stream/", stacked=True)

  # up
  for number, (channels, out) in enumerate(up_blocks(io_channels, width, io_blocks, skip=skip)):
    rules += res_block_rules(channels, out, f"out_blocks.{number}.", f"out_blocks/{number}/")
  rules += affine_rules("out_layer", "proj_out")
  return rules


def texture_generator_rules(rules: Sequence[Rule]) -> list[Rule]:
  """Names of `slat_generator` without the checkpoint's prefix, of those of its flow model."""
  return prefixed(rules, torch=BACKBONE)

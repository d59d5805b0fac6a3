"""Published names of the sparse layers."""

from sam3d_jax.torch_bridge.keys import Rule
from sam3d_jax.torch_bridge.names_geometry import (
  affine_rules,
  layer_norm_rules,
  self_attention_rules,
)


def submanifold_conv_rules(
  torch: str, ours: str, *, bias: bool = True, half: bool = False
) -> list[Rule]:
  """A 3x3x3 convolution, stored as (out, x, y, z, in)."""
  rules = [Rule(f"{torch}.weight", f"{ours}/kernel", layout="sparse_conv", half=half)]
  if bias:
    rules.append(Rule(f"{torch}.bias", f"{ours}/bias", half=half))
  return rules


def pointwise_conv_rules(
  torch: str, ours: str, channels: int, out_channels: int, *, half: bool = False
) -> list[Rule]:
  """A 1x1x1 convolution, ours a Dense (in, out).

  The published library keeps a buffer of shape (out, 1, 1, 1, in) and multiplies by its memory read
  as (in, out): not the transpose, the same numbers in the same order.
  """
  buffer_shape = (out_channels, 1, 1, 1, channels)
  return [
    Rule(f"{torch}.weight", f"{ours}/kernel", torch_shape=buffer_shape, half=half),
    Rule(f"{torch}.bias", f"{ours}/bias", half=half),
  ]


def res_block_rules(
  channels: int, out_channels: int, torch: str = "", ours: str = ""
) -> list[Rule]:
  """A residual block under a time embedding; its second norm has no parameters."""
  # the norm, two convolutions and the modulation between them
  rules = layer_norm_rules(f"{torch}norm1", f"{ours}norm1")
  for conv in ("conv1", "conv2"):
    rules += submanifold_conv_rules(f"{torch}{conv}.conv", f"{ours}{conv}", half=True)
  scale_and_shift = 2 * out_channels
  rules += affine_rules(f"{torch}emb_layers.1", f"{ours}mod", out=scale_and_shift, half=True)
  # widths that differ are brought together on the way around
  if channels != out_channels:
    rules += affine_rules(f"{torch}skip_connection", f"{ours}skip", half=True)
  return rules


def window_block_rules(
  width: int, torch: str = "", ours: str = "", *, stacked: bool = False
) -> list[Rule]:
  """A block of the latent autoencoders; its norms have no parameters."""
  stored = dict(stacked=stacked, half=True)
  return [
    *self_attention_rules(
      width,
      False,
      f"{torch}attn.",
      f"{ours}attn/projections/",
      stacked=stacked,
    ),
    *affine_rules(f"{torch}mlp.mlp.0", f"{ours}mlp/up", **stored),
    *affine_rules(f"{torch}mlp.mlp.2", f"{ours}mlp/down", **stored),
  ]

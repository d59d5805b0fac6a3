"""Published names of the Geometry flow model and of the structure VAE.

`half` follows the published fp16 storage: the products inside transformer and residual blocks are
stored in fp16; norms, embedders, input and output projections stay fp32.
"""

import numpy as np

from sam3d_jax.models.geometry_flow import STREAMS, GeometryFlowConfig
from sam3d_jax.models.layers import grid_positions, position_sincos
from sam3d_jax.models.structure_vae import StructureVAEConfig
from sam3d_jax.torch_bridge.keys import Rule, Size, prefixed

# the layout stream is stored under one of its latents
STREAM_NAMES = {"shape": "shape", "layout": "6drotation_normalized"}
LATENT_NAMES = {
  "rotation": "6drotation_normalized",
  "scale": "scale",
  "shape": "shape",
  "translation": "translation",
  "translation_scale": "translation_scale",
}


def geometry_flow_rules(cfg: GeometryFlowConfig) -> list[Rule]:
  """Names of `ss_generator` without the checkpoint's prefix: the generator holds guidance, which
  holds the flow model.
  """
  return prefixed(backbone_rules(cfg), torch="reverse_fn.backbone.")


def geometry_flow_sizes(cfg: GeometryFlowConfig, prefix: str = "") -> list[Size]:
  """The keys that shapes of `ss_generator` tell. prefix: of the checkpoint."""
  backbone = f"{prefix}reverse_fn.backbone."
  shape = f"{backbone}latent_mapping.shape."
  block = f"{backbone}blocks.0."
  return [
    Size("model.flow.depth", cfg.depth, f"{backbone}blocks."),
    Size("model.flow.width", cfg.width, f"{shape}input_layer.weight", axis=0),
    Size("model.flow.heads", cfg.heads, f"{block}self_attn.q_rms_norm.shape.gamma", axis=0),
    Size("model.flow.cond_width", cfg.cond_width, f"{block}cross_attn.shape.to_kv.weight", axis=1),
    Size("model.flow.latent_channels", cfg.latent_channels, f"{shape}input_layer.weight", axis=1),
    Size(
      "model.flow.shape_resolution",
      cfg.shape_resolution,
      f"{shape}pos_emb",
      axis=0,
      of_length=lambda cells: round(cells ** (1 / 3)),
    ),
  ]


def backbone_rules(cfg: GeometryFlowConfig) -> list[Rule]:
  """Names inside the flow model itself."""
  # what it is told: the step size, if it has shortcuts, and the time
  rules = []
  if cfg.shortcut:
    rules += timestep_embedder_rules("d_embedder.", "step/")
  rules += timestep_embedder_rules("t_embedder.", "time/")

  # the transformer, and the way into and out of it
  rules += mot_block_rules(cfg.width, cfg.qk_rms_norm, "blocks.{n}.", "blocks/layer/", stacked=True)
  for name, torch in LATENT_NAMES.items():
    rules += latent_rules(cfg, name, f"latent_mapping.{torch}.", f"latents/{name}/")
  return rules


def timestep_embedder_rules(torch: str = "", ours: str = "") -> list[Rule]:
  """A timestep embedder."""
  return [
    *affine_rules(f"{torch}mlp.0", f"{ours}hidden"),
    *affine_rules(f"{torch}mlp.2", f"{ours}out"),
  ]


def latent_rules(cfg: GeometryFlowConfig, name: str, torch: str, ours: str) -> list[Rule]:
  """One latent's projections and position embedding: a parameter, or for shape a table that the
  published code stores.
  """
  if name == "shape":
    position = Rule(f"{torch}pos_emb", None, buffer=lambda: shape_position_table(cfg))
  else:
    position = Rule(f"{torch}pos_emb", f"{ours}position")
  return [
    position,
    *affine_rules(f"{torch}input_layer", f"{ours}proj_in"),
    *affine_rules(f"{torch}out_layer", f"{ours}proj_out"),
  ]


def shape_position_table(cfg: GeometryFlowConfig) -> np.ndarray:
  """The sin/cos table (resolution^3, width) of the shape tokens."""
  positions = grid_positions(cfg.shape_resolution)
  return np.asarray(position_sincos(positions, cfg.width))


def mot_block_rules(
  width: int, qk_rms_norm: bool, torch: str = "", ours: str = "", *, stacked: bool = False
) -> list[Rule]:
  """One Mixture-of-Transformers block; in its modules the stream's name comes after the layer's."""
  rules = adaln_rules(width, torch, ours, stacked=stacked)
  for name in STREAMS:
    rules += stream_rules(
      width,
      qk_rms_norm,
      torch,
      f"{ours}{name}/",
      stream=f".{STREAM_NAMES[name]}",
      stacked=stacked,
    )
  return rules


def adaln_rules(
  width: int, torch: str = "", ours: str = "", *, stacked: bool = False
) -> list[Rule]:
  """The modulation of a block."""
  return affine_rules(
    f"{torch}adaLN_modulation.1",
    f"{ours}adaln",
    out=6 * width,  # shift, scale and gate of two branches
    stacked=stacked,
    half=True,
  )


def stream_rules(
  width: int,
  qk_rms_norm: bool,
  torch: str = "",
  ours: str = "",
  *,
  stream: str = "",
  stacked: bool = False,
) -> list[Rule]:
  """One stream of a block: self-attention, cross-attention and its norm, MLP. `stream` is what the
  published names insert.
  """
  # Of the three norms only the one before cross-attention has parameters.
  rules = layer_norm_rules(f"{torch}norm2{stream}", f"{ours}cross_norm", stacked=stacked)
  rules += self_attention_rules(
    width,
    qk_rms_norm,
    f"{torch}self_attn.",
    f"{ours}self_attn/",
    stream=stream,
    stacked=stacked,
  )
  rules += cross_attention_rules(
    width,
    f"{torch}cross_attn{stream}.",
    f"{ours}cross_attn/",
    stacked=stacked,
  )
  mlp = f"{torch}mlp{stream}.mlp"
  rules += affine_rules(f"{mlp}.0", f"{ours}mlp/up", stacked=stacked, half=True)
  rules += affine_rules(f"{mlp}.2", f"{ours}mlp/down", stacked=stacked, half=True)
  return rules


def self_attention_rules(
  width: int,
  qk_rms_norm: bool,
  torch: str = "",
  ours: str = "",
  *,
  stream: str = "",
  stacked: bool = False,
) -> list[Rule]:
  """Self-attention projections and, with `qk_rms_norm`, the gains of queries and keys."""
  rules = affine_rules(
    f"{torch}to_qkv{stream}",
    f"{ours}qkv",
    out=3 * width,
    stacked=stacked,
    half=True,
  )
  if qk_rms_norm:
    rules += _head_gains(torch, ours, stream=stream, stacked=stacked)
  rules += affine_rules(
    f"{torch}to_out{stream}",
    f"{ours}out",
    dims_in=2,  # heads and their width
    stacked=stacked,
    half=True,
  )
  return rules


def cross_attention_rules(
  width: int, torch: str = "", ours: str = "", *, qk_rms_norm: bool = False, stacked: bool = False
) -> list[Rule]:
  """Cross-attention projections; the flow model's have no RMS norms, but the published layer
  can."""
  stored = dict(stacked=stacked, half=True)
  rules = affine_rules(f"{torch}to_q", f"{ours}q", out=width, **stored)
  rules += affine_rules(f"{torch}to_kv", f"{ours}kv", out=2 * width, **stored)
  if qk_rms_norm:
    rules += _head_gains(torch, ours, stacked=stacked)
  # heads and their width are two dimensions of ours
  rules += affine_rules(f"{torch}to_out", f"{ours}out", dims_in=2, **stored)
  return rules


def structure_encoder_rules(cfg: StructureVAEConfig) -> list[Rule]:
  """Names of `ss_encoder`: levels of residual blocks with a strided convolution between them, the
  middle, the output.
  """
  return [
    *conv_rules("input_layer", "conv_in"),
    *_level_rules(cfg, "downsample"),
    *_middle_rules(cfg),
    *layer_norm_rules("out_layer.0", "norm_out"),
    *conv_rules("out_layer.2", "conv_out"),
  ]


def structure_decoder_rules(cfg: StructureVAEConfig) -> list[Rule]:
  """Names of `ss_decoder`: the middle, then levels of residual blocks with an upsampling
  convolution between them.
  """
  return [
    *conv_rules("input_layer", "conv_in"),
    *_middle_rules(cfg),
    *_level_rules(cfg, "upsample"),
    *layer_norm_rules("out_layer.0", "norm_out"),
    *conv_rules("out_layer.2", "conv_out"),
  ]


def structure_decoder_sizes(cfg: StructureVAEConfig) -> list[Size]:
  """The keys that shapes of `ss_decoder` tell: it begins with latents and the coarsest level."""
  return [
    Size("model.latent_channels", cfg.latent_channels, "input_layer.weight", axis=1),
    Size("model.channels[-1]", cfg.channels[-1], "input_layer.weight", axis=0),
    Size("model.channels[0]", cfg.channels[0], "out_layer.0.weight", axis=0),
    Size("model.middle_blocks", cfg.middle_blocks, "middle_block."),
  ]


def structure_encoder_sizes(cfg: StructureVAEConfig) -> list[Size]:
  """The keys that shapes of `ss_encoder` tell: it ends with mean and variance of the latents."""
  return [
    Size("model.channels[0]", cfg.channels[0], "input_layer.weight", axis=0),
    Size("model.channels[-1]", cfg.channels[-1], "out_layer.0.weight", axis=0),
    Size("model.middle_blocks", cfg.middle_blocks, "middle_block."),
    Size(
      "model.latent_channels",
      cfg.latent_channels,
      "out_layer.2.weight",
      axis=0,
      of_length=lambda channels: channels // 2,
    ),
  ]


def resblock_rules(torch: str, ours: str, *, skip: bool = False) -> list[Rule]:
  """A 3-D residual block; `skip` where its 1x1x1 convolution exists."""
  rules = [
    *layer_norm_rules(f"{torch}norm1", f"{ours}norm1"),
    *layer_norm_rules(f"{torch}norm2", f"{ours}norm2"),
    *conv_rules(f"{torch}conv1", f"{ours}conv1", half=True),
    *conv_rules(f"{torch}conv2", f"{ours}conv2", half=True),
  ]
  if skip:
    rules += conv_rules(f"{torch}skip_connection", f"{ours}skip", half=True)
  return rules


def _level_rules(cfg: StructureVAEConfig, resample: str) -> list[Rule]:
  """The published `blocks` list runs through residual blocks and resamplers alike."""
  rules = []
  index = 0  # in the published list
  last = len(cfg.channels) - 1
  for level in range(len(cfg.channels)):
    for i in range(cfg.res_blocks):
      rules += resblock_rules(f"blocks.{index}.", f"levels/{level}/blocks/{i}/")
      index += 1
    # the last level has nothing to go on to
    if level < last:
      rules += conv_rules(f"blocks.{index}.conv", f"levels/{level}/{resample}", half=True)
      index += 1
  return rules


def _middle_rules(cfg: StructureVAEConfig) -> list[Rule]:
  """The residual blocks at the coarsest level."""
  rules = []
  for i in range(cfg.middle_blocks):
    rules += resblock_rules(f"middle_block.{i}.", f"middle/{i}/")
  return rules


def affine_rules(
  torch: str,
  ours: str,
  *,
  out: int | None = None,
  dims_in: int = 1,
  stacked: bool = False,
  half: bool = False,
) -> list[Rule]:
  """Weight and bias of a linear layer; `out` is its output width where ours is split over several
  dimensions.
  """
  weight = Rule(
    f"{torch}.weight",
    f"{ours}/kernel",
    layout="linear",
    dims_in=dims_in,
    stacked=stacked,
    half=half,
  )
  bias = Rule(
    f"{torch}.bias",
    f"{ours}/bias",
    torch_shape=None if out is None else (out,),
    stacked=stacked,
    half=half,
  )
  return [weight, bias]


def conv_rules(torch: str, ours: str, *, half: bool = False) -> list[Rule]:
  """A 3-D convolution."""
  return [
    Rule(f"{torch}.weight", f"{ours}/kernel", layout="conv", half=half),
    Rule(f"{torch}.bias", f"{ours}/bias", half=half),
  ]


def layer_norm_rules(torch: str, ours: str, *, stacked: bool = False) -> list[Rule]:
  """A layer norm with gain and bias."""
  return [
    Rule(f"{torch}.weight", f"{ours}/scale", stacked=stacked),
    Rule(f"{torch}.bias", f"{ours}/bias", stacked=stacked),
  ]


def _head_gains(torch: str, ours: str, *, stream: str = "", stacked: bool = False) -> list[Rule]:
  """The gains of the RMS norms of queries and keys."""
  rules = []
  for name in ("q", "k"):
    gamma = f"{torch}{name}_rms_norm{stream}.gamma"
    rules.append(Rule(gamma, f"{ours}{name}_norm/scale", stacked=stacked))
  return rules

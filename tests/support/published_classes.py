"""The published classes as far as their constructors and parameters go, in PyTorch.

Written from the arguments that published yamls give and the names that published files have: with
them a yaml is built as Hydra would build it (an argument that a class does not take is a TypeError)
and a file is loaded with strict=True, without the published code. What the modules compute is no
part of it. `tests/sam3d_jax/torch_bridge/strict_build_test.py` holds them against the published
full-size names and shapes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

DINO = {"dinov2_vitl14_reg": (1024, 24, 4), "dinov2_vitb14": (768, 12, 0)}
HALF = torch.float16


def build(tree: Any) -> Any:
  """The object that a tree of a yaml describes."""
  if isinstance(tree, list):
    return [build(item) for item in tree]
  if not isinstance(tree, Mapping):
    return tree
  arguments = {key: build(value) for key, value in tree.items() if key != "_target_"}
  if "_target_" not in tree:
    return arguments
  name = tree["_target_"].rpartition(".")[2]
  return globals()[name](**arguments)


def named(**children) -> nn.Module:
  """A module that only holds others."""
  return nn.ModuleDict(children)


def layers(*numbered: nn.Module | None) -> nn.Module:
  """Modules under their numbers; None: one without parameters."""
  return nn.Sequential(*[module or nn.Identity() for module in numbered])


def halved(*modules: nn.Module) -> None:
  """What use_fp16 does to the insides of blocks: products in half, norms as they are."""
  for module in modules:
    for child in module.modules():
      if isinstance(child, (nn.Linear, nn.Conv3d, SparseKernel)):
        child.to(HALF)


class SparseKernel(nn.Module):
  """(out, k, k, k, in), as the sparse library stores it."""

  def __init__(self, channels: int, out_channels: int, size: int):
    super().__init__()
    self.weight = nn.Parameter(torch.empty(out_channels, size, size, size, channels))
    self.bias = nn.Parameter(torch.empty(out_channels))


def sparse_conv(channels: int, out_channels: int, size: int = 3) -> nn.Module:
  return named(conv=SparseKernel(channels, out_channels, size))


class Gain(nn.Module):
  def __init__(self, heads: int, head_dim: int):
    super().__init__()
    self.gamma = nn.Parameter(torch.empty(heads, head_dim))


def timestep_embedder(width: int) -> nn.Module:
  return named(mlp=layers(nn.Linear(256, width), None, nn.Linear(width, width)))


def feed_forward(width: int, ratio: float) -> nn.Module:
  hidden = int(width * ratio)
  return named(mlp=layers(nn.Linear(width, hidden), None, nn.Linear(hidden, width)))


def self_attention(width: int, heads: int, *, qk_rms_norm: bool = False) -> nn.Module:
  found = {"to_qkv": nn.Linear(width, 3 * width), "to_out": nn.Linear(width, width)}
  if qk_rms_norm:
    found["q_rms_norm"] = Gain(heads, width // heads)
    found["k_rms_norm"] = Gain(heads, width // heads)
  return named(**found)


# --------------------------------------------------------------------------------------------------
# The SLAT autoencoder
# --------------------------------------------------------------------------------------------------


class SparseTransformer(nn.Module):
  """What all its parts begin with."""

  def __init__(
    self,
    channels: int,
    *,
    model_channels: int,
    num_blocks: int,
    num_heads: int,
    mlp_ratio: float,
    attn_mode: str,
    window_size: int,
    use_fp16: bool,
  ):
    super().__init__()
    assert attn_mode == "swin"
    assert window_size > 0
    self.input_layer = nn.Linear(channels, model_channels)
    blocks = []
    for _ in range(num_blocks):
      attention = self_attention(model_channels, num_heads)
      blocks.append(named(attn=attention, mlp=feed_forward(model_channels, mlp_ratio)))
    self.blocks = nn.ModuleList(blocks)
    if use_fp16:
      halved(self.blocks)


class SLatEncoderTdfyWrapper(SparseTransformer):
  def __init__(self, *, resolution: int, in_channels: int, latent_channels: int, **trunk):
    super().__init__(in_channels, **trunk)
    self.out_layer = nn.Linear(trunk["model_channels"], 2 * latent_channels)


class SLatGaussianDecoderTdfyWrapper(SparseTransformer):
  def __init__(
    self, *, resolution: int, latent_channels: int, representation_config: dict, **trunk
  ):
    super().__init__(latent_channels, **trunk)
    count = representation_config["num_gaussians"]
    assert set(representation_config["lr"]) == {
      "_xyz",
      "_features_dc",
      "_opacity",
      "_scaling",
      "_rotation",
    }
    self.out_layer = nn.Linear(trunk["model_channels"], 14 * count)
    self.register_buffer("offset_perturbation", torch.empty(count, 3))


class SLatMeshDecoderTdfyWrapper(SparseTransformer):
  def __init__(
    self, *, resolution: int, latent_channels: int, representation_config: dict, **trunk
  ):
    super().__init__(latent_channels, **trunk)
    assert representation_config == {"use_color": True}
    width = trunk["model_channels"]
    blocks = [up_block(width, width // 4), up_block(width // 4, width // 8)]
    self.upsample = nn.ModuleList(blocks)
    self.out_layer = nn.Linear(width // 8, 101)
    if trunk["use_fp16"]:
      halved(self.upsample)


def up_block(channels: int, out_channels: int) -> nn.Module:
  norm = nn.GroupNorm(32, channels)
  after = layers(
    sparse_conv(channels, out_channels),
    nn.GroupNorm(32, out_channels),
    None,
    sparse_conv(out_channels, out_channels),
  )
  around = sparse_conv(channels, out_channels, 1)
  return named(act_layers=layers(norm), out_layers=after, skip_connection=around)


# --------------------------------------------------------------------------------------------------
# The flow model of the second stage, and condition encoders
# --------------------------------------------------------------------------------------------------


class SLatFlowModelTdfyWrapper(nn.Module):
  def __init__(
    self,
    *,
    resolution: int,
    in_channels: int,
    model_channels: int,
    cond_channels: int,
    out_channels: int,
    num_blocks: int,
    num_heads: int,
    mlp_ratio: float,
    patch_size: int,
    num_io_res_blocks: int,
    io_block_channels: list[int],
    pe_mode: str,
    use_fp16: bool,
    qk_rms_norm: bool,
    condition_embedder: None,
    force_zeros_cond: bool,
    is_shortcut_model: bool = False,
  ):
    super().__init__()
    assert pe_mode == "ape"
    assert patch_size == 2
    width, (io,) = model_channels, io_block_channels
    self.t_embedder = timestep_embedder(width)
    if is_shortcut_model:
      self.d_embedder = timestep_embedder(width)
    self.input_layer = nn.Linear(in_channels, io)
    downs = [(io, io)] * (num_io_res_blocks - 1) + [(io, width)]
    ups = [(2 * width, io)] + [(2 * io, io)] * (num_io_res_blocks - 1)
    self.input_blocks = nn.ModuleList([residual(a, b, width) for a, b in downs])
    self.out_blocks = nn.ModuleList([residual(a, b, width) for a, b in ups])
    blocks = []
    for _ in range(num_blocks):
      block = named(
        norm2=nn.LayerNorm(width),
        self_attn=self_attention(width, num_heads, qk_rms_norm=qk_rms_norm),
        cross_attn=named(
          to_q=nn.Linear(width, width),
          to_kv=nn.Linear(cond_channels, 2 * width),
          to_out=nn.Linear(width, width),
        ),
        mlp=feed_forward(width, mlp_ratio),
        adaLN_modulation=layers(None, nn.Linear(width, 6 * width)),
      )
      blocks.append(block)
    self.blocks = nn.ModuleList(blocks)
    self.out_layer = nn.Linear(io, out_channels)
    if use_fp16:
      halved(self.input_blocks, self.blocks, self.out_blocks)


def residual(channels: int, out_channels: int, mod_width: int) -> nn.Module:
  found = {
    "norm1": nn.LayerNorm(channels),
    "conv1": sparse_conv(channels, out_channels),
    "conv2": sparse_conv(out_channels, out_channels),
    "emb_layers": layers(None, nn.Linear(mod_width, 2 * out_channels)),
  }
  if channels != out_channels:
    found["skip_connection"] = nn.Linear(channels, out_channels)
  return named(**found)


class FlowMatching(nn.Module):
  def __init__(
    self,
    *,
    reverse_fn: nn.Module,
    inference_steps: int,
    rescale_t: float,
    sigma_min: float,
    time_scale: float,
  ):
    super().__init__()
    self.reverse_fn = reverse_fn


class ShortCut(FlowMatching):
  pass


class ClassifierFreeGuidance(nn.Module):
  def __init__(
    self,
    *,
    backbone: nn.Module,
    p_unconditional: float,
    strength: float,
    unconditional_handling: str,
    interval: list[float] | None = None,
  ):
    super().__init__()
    assert unconditional_handling in ("zeros", "discard", "drop_tensors", "add_flag")
    self.backbone = backbone


class ClassifierFreeGuidanceWithExternalUnconditionalProbability(ClassifierFreeGuidance):
  pass


class Dino(nn.Module):
  def __init__(
    self,
    *,
    dino_model: str,
    input_size: int,
    normalize_images: bool = True,
    prenorm_features: bool = False,
    backbone_kwargs: dict | None = None,
  ):
    super().__init__()
    kwargs = dict(backbone_kwargs or {})
    patch = kwargs.get("patch_size", 14)
    ratio = kwargs.get("mlp_ratio", 4)
    # sizes that the hub does not know are spelt out by this project alone
    width, depth, registers = DINO.get(dino_model) or (
      kwargs["embed_dim"],
      kwargs["depth"],
      kwargs["num_register_tokens"],
    )
    self.width = width
    self.backbone = vision_transformer(
      width, depth, registers, patch, ratio, kwargs.get("img_size", 518)
    )


class Scale(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.gamma = nn.Parameter(torch.empty(width))


def vision_block(width: int, hidden: int) -> dict[str, nn.Module]:
  return {
    "norm1": nn.LayerNorm(width),
    "norm2": nn.LayerNorm(width),
    "attn": named(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width)),
    "mlp": named(fc1=nn.Linear(width, hidden), fc2=nn.Linear(hidden, width)),
  }


def vision_transformer(
  width: int, depth: int, registers: int, patch: int, ratio: float, side: int
) -> nn.Module:
  blocks = []
  hidden = int(width * ratio)
  for _ in range(depth):
    scales = {"ls1": Scale(width), "ls2": Scale(width)}
    blocks.append(named(**vision_block(width, hidden), **scales))
  model = named(
    patch_embed=named(proj=nn.Conv2d(3, width, patch, patch)),
    blocks=nn.ModuleList(blocks),
    norm=nn.LayerNorm(width),
  )
  tokens = {
    "cls_token": (1, 1, width),
    "pos_embed": (1, 1 + (side // patch) ** 2, width),
    "mask_token": (1, width),
  }
  if registers:
    tokens["register_tokens"] = (1, registers, width)
  for name, shape in tokens.items():
    model.register_parameter(name, nn.Parameter(torch.empty(shape)))
  return model


class PointPatchEmbed(nn.Module):
  """Without a token for point maps that are dropped."""

  def __init__(self, *, embed_dim: int, input_size: int, patch_size: int, remap_output: str):
    super().__init__()
    assert remap_output in ("linear", "sinh", "exp", "sinh_exp", "exp_disparity")
    self.width = embed_dim
    side = input_size // patch_size
    tokens = {
      "invalid_xyz_token": (embed_dim,),
      "pos_embed": (1, embed_dim, side, side),
      "pos_embed_window": (1, 1 + patch_size**2, embed_dim),
      "cls_token": (1, 1, embed_dim),
    }
    for name, shape in tokens.items():
      self.register_parameter(name, nn.Parameter(torch.empty(shape)))
    self.point_proj = nn.Linear(3, embed_dim)
    self.blocks = nn.ModuleList([named(**vision_block(embed_dim, 2 * embed_dim))])


class EmbedderFuser(nn.Module):
  def __init__(
    self,
    *,
    embedder_list: list,
    use_pos_embedding: str,
    projection_net_hidden_dim_multiplier: float,
    drop_modalities_weight: list | None = None,
    dropout_prob: float = 0.0,
    force_drop_modalities: None = None,
    freeze: bool = False,
  ):
    super().__init__()
    assert use_pos_embedding == "learned"
    groups, modules, nets = {}, [], []
    for module, streams in embedder_list:
      modules.append(module)
      for _, group in streams:
        groups.setdefault(group, len(groups))
    width = max(module.width for module in modules)
    wanted = int(2 * int(projection_net_hidden_dim_multiplier * width) / 3)
    hidden = -(-wanted // 256) * 256
    for module in modules:
      gated = named(
        w1=nn.Linear(module.width, hidden, bias=False),
        w2=nn.Linear(hidden, width, bias=False),
        w3=nn.Linear(module.width, hidden, bias=False),
      )
      nets.append(layers(nn.LayerNorm(module.width), gated))
    self.module_list = nn.ModuleList(modules)
    self.projection_nets = nn.ModuleList(nets)
    self.idx_emb = nn.Parameter(torch.empty(len(groups) + 1, width))


# --------------------------------------------------------------------------------------------------
# The first stage
# --------------------------------------------------------------------------------------------------


class LearntPositionEmbedder:
  def __init__(self, *, model_channels: int, token_len: int):
    self.shape, self.learnt = (token_len, model_channels), True


class ShapePositionEmbedder:
  def __init__(self, *, model_channels: int, resolution: int, patch_size: int):
    self.shape, self.learnt = ((resolution // patch_size) ** 3, model_channels), False


class Latent(nn.Module):
  def __init__(self, *, in_channels: int, model_channels: int, pos_embedder):
    super().__init__()
    self.input_layer = nn.Linear(in_channels, model_channels)
    self.out_layer = nn.Linear(model_channels, in_channels)
    table = torch.empty(pos_embedder.shape)
    if pos_embedder.learnt:
      self.pos_emb = nn.Parameter(table)
    else:
      self.register_buffer("pos_emb", table)


class SparseStructureFlowTdfyWrapper(nn.Module):
  """Mixture of transformers: a module a stream where the streams do not share it."""

  def __init__(
    self,
    *,
    resolution: int,
    in_channels: int,
    model_channels: int,
    cond_channels: int,
    out_channels: int,
    num_blocks: int,
    num_heads: int,
    mlp_ratio: float,
    patch_size: int,
    pe_mode: str,
    use_fp16: bool,
    use_checkpoint: bool,
    qk_rms_norm: bool,
    is_shortcut_model: bool,
    latent_mapping: dict,
    latent_share_transformer: dict,
    condition_embedder: None,
    force_zeros_cond: bool,
  ):
    super().__init__()
    width = model_channels
    (shared,) = latent_share_transformer.items()
    stream, members = shared
    streams = [name for name in latent_mapping if name not in members] + [stream]

    def each(make):
      return nn.ModuleDict({name: make() for name in streams})

    def attention():
      found = {
        "to_qkv": each(lambda: nn.Linear(width, 3 * width)),
        "to_out": each(lambda: nn.Linear(width, width)),
      }
      if qk_rms_norm:
        for gain in ("q_rms_norm", "k_rms_norm"):
          found[gain] = each(lambda: Gain(num_heads, width // num_heads))
      return named(**found)

    def cross():
      return named(
        to_q=nn.Linear(width, width),
        to_kv=nn.Linear(cond_channels, 2 * width),
        to_out=nn.Linear(width, width),
      )

    self.t_embedder = timestep_embedder(width)
    if is_shortcut_model:
      self.d_embedder = timestep_embedder(width)
    blocks = []
    for _ in range(num_blocks):
      block = named(
        norm2=each(lambda: nn.LayerNorm(width)),
        self_attn=attention(),
        cross_attn=each(cross),
        mlp=each(lambda: feed_forward(width, mlp_ratio)),
        adaLN_modulation=layers(None, nn.Linear(width, 6 * width)),
      )
      blocks.append(block)
    self.blocks = nn.ModuleList(blocks)
    self.latent_mapping = nn.ModuleDict(latent_mapping)
    if use_fp16:
      halved(self.blocks)


def dense_residual(channels: int) -> nn.Module:
  return named(
    norm1=nn.LayerNorm(channels),
    norm2=nn.LayerNorm(channels),
    conv1=nn.Conv3d(channels, channels, 3),
    conv2=nn.Conv3d(channels, channels, 3),
  )


class StructureCoder(nn.Module):
  """Encoder or decoder: they differ in what lies between two levels. `resample` makes that."""

  def __init__(
    self, first: int, last: int, channels: list[int], blocks: int, middle: int, half: bool, resample
  ):
    super().__init__()
    self.input_layer = nn.Conv3d(first, channels[0], 3)
    stages = []
    for level, width in enumerate(channels):
      stages += [dense_residual(width) for _ in range(blocks)]
      if level + 1 < len(channels):
        stages.append(named(conv=resample(width, channels[level + 1])))
    coarsest = max(channels)
    self.blocks = nn.ModuleList(stages)
    self.middle_block = layers(*[dense_residual(coarsest) for _ in range(middle)])
    end = channels[-1]
    self.out_layer = layers(nn.LayerNorm(end), None, nn.Conv3d(end, last, 3))
    if half:
      halved(self.blocks, self.middle_block)


class SparseStructureEncoderTdfyWrapper(StructureCoder):
  def __init__(
    self,
    *,
    in_channels: int,
    latent_channels: int,
    num_res_blocks: int,
    num_res_blocks_middle: int,
    channels: list[int],
    sample_posterior: bool,
    use_fp16: bool,
  ):
    super().__init__(
      in_channels,
      2 * latent_channels,
      channels,
      num_res_blocks,
      num_res_blocks_middle,
      use_fp16,
      lambda width, following: nn.Conv3d(width, following, 2, 2),
    )


class SparseStructureDecoderTdfyWrapper(StructureCoder):
  def __init__(
    self,
    *,
    out_channels: int,
    latent_channels: int,
    num_res_blocks: int,
    num_res_blocks_middle: int,
    channels: list[int],
    reshape_input_to_cube: bool,
    use_fp16: bool,
  ):
    super().__init__(
      latent_channels,
      out_channels,
      channels,
      num_res_blocks,
      num_res_blocks_middle,
      use_fp16,
      lambda width, following: nn.Conv3d(width, 8 * following, 3),
    )

"""The Geometry model and its training step in plain PyTorch, eager and fp32: what `launch.benchmark
--torch` measures ours against.

Modules carry the published names, so the bridge's parameters load strictly and both compute the
same function (a test compares losses and gradients). Written the way PyTorch code usually is: fused
attention and optimiser kernels, no compilation. Without point maps.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from sam3d_jax.batch import LATENTS, LAYOUT_LATENTS
from sam3d_jax.errors import ConfigError
from sam3d_jax.models.conditioning import MASK_STREAMS, STREAMS
from sam3d_jax.models.dinov2 import IMAGENET_MEAN, IMAGENET_STD
from sam3d_jax.torch_bridge import keys
from sam3d_jax.torch_bridge.names_conditioning import condition_encoder_rules, stream_groups
from sam3d_jax.torch_bridge.names_geometry import LATENT_NAMES, STREAM_NAMES, backbone_rules

BLOCK_EPS, OUTPUT_EPS = 1e-6, 1e-5


def attend(q_BLHK, k_BSHK, v_BSHK):
  """Multi-head attention; heads are merged in the result (B, L, D)."""
  out = F.scaled_dot_product_attention(
    q_BLHK.transpose(1, 2), k_BSHK.transpose(1, 2), v_BSHK.transpose(1, 2)
  )
  return out.transpose(1, 2).flatten(2)


def heads_of(x_BLD, parts: int, heads: int):
  """(B, L, parts * H * K) -> parts tensors (B, L, H, K)."""
  return x_BLD.unflatten(-1, (parts, heads, -1)).unbind(2)


class TimestepEmbedder(nn.Module):
  def __init__(self, width: int, frequencies: int = 256):
    super().__init__()
    self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
    half = frequencies // 2
    self.register_buffer("frequencies", 10_000.0 ** (-torch.arange(half) / half), persistent=False)

  def forward(self, t_B):
    angles = t_B[:, None] * self.frequencies
    return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class HeadRMSNorm(nn.Module):
  def __init__(self, heads: int, head_dim: int):
    super().__init__()
    self.gamma = nn.Parameter(torch.ones(heads, head_dim))

  def forward(self, x_BLHK):
    return F.normalize(x_BLHK, dim=-1) * self.gamma * x_BLHK.shape[-1] ** 0.5


def per_stream(make) -> nn.ModuleDict:
  return nn.ModuleDict({name: make() for name in STREAM_NAMES.values()})


class SelfAttention(nn.Module):
  """Shape tokens see shape tokens, layout tokens see both and send no gradient into shape's."""

  def __init__(self, cfg):
    super().__init__()
    self.heads = cfg.heads
    self.to_qkv = per_stream(lambda: nn.Linear(cfg.width, 3 * cfg.width))
    self.to_out = per_stream(lambda: nn.Linear(cfg.width, cfg.width))
    if cfg.qk_rms_norm:
      self.q_rms_norm = per_stream(lambda: HeadRMSNorm(cfg.heads, cfg.width // cfg.heads))
      self.k_rms_norm = per_stream(lambda: HeadRMSNorm(cfg.heads, cfg.width // cfg.heads))
    self.normalised = cfg.qk_rms_norm

  def forward(self, x):
    q, k, v = {}, {}, {}
    for s, h_BLD in x.items():
      q[s], k[s], v[s] = heads_of(self.to_qkv[s](h_BLD), 3, self.heads)
      if self.normalised:
        q[s], k[s] = self.q_rms_norm[s](q[s]), self.k_rms_norm[s](k[s])
    shape, layout = STREAM_NAMES["shape"], STREAM_NAMES["layout"]
    seen_k, seen_v = (torch.cat([y[layout], y[shape].detach()], 1) for y in (k, v))
    return {
      shape: self.to_out[shape](attend(q[shape], k[shape], v[shape])),
      layout: self.to_out[layout](attend(q[layout], seen_k, seen_v)),
    }


class CrossAttention(nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.heads = cfg.heads
    self.to_q, self.to_kv = (
      nn.Linear(cfg.width, cfg.width),
      nn.Linear(cfg.cond_width, 2 * cfg.width),
    )
    self.to_out = nn.Linear(cfg.width, cfg.width)

  def forward(self, x_BLD, tokens_BSD):
    (q,), (k, v) = (
      heads_of(self.to_q(x_BLD), 1, self.heads),
      heads_of(self.to_kv(tokens_BSD), 2, self.heads),
    )
    return self.to_out(attend(q, k, v))


class FeedForward(nn.Module):
  def __init__(self, cfg):
    super().__init__()
    hidden = int(cfg.width * cfg.mlp_ratio)
    self.mlp = nn.Sequential(
      nn.Linear(cfg.width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, cfg.width)
    )

  def forward(self, x):
    return self.mlp(x)


class Block(nn.Module):
  """adaLN self-attention, cross-attention, adaLN feed-forward, each with parameters per stream."""

  def __init__(self, cfg):
    super().__init__()
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(cfg.width, 6 * cfg.width))
    self.self_attn = SelfAttention(cfg)
    self.norm2 = per_stream(lambda: nn.LayerNorm(cfg.width, eps=BLOCK_EPS))
    self.cross_attn = per_stream(lambda: CrossAttention(cfg))
    self.mlp = per_stream(lambda: FeedForward(cfg))

  def forward(self, x, mod_BD, tokens_BSD):
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(mod_BD)[
      :, None
    ].chunk(6, -1)
    modulate = lambda h, scale, shift: (
      F.layer_norm(h, h.shape[-1:], eps=BLOCK_EPS) * (1 + scale) + shift
    )
    attended = self.self_attn({s: modulate(h, scale, shift) for s, h in x.items()})
    out = {}
    for s, h_BLD in x.items():
      h_BLD = h_BLD + gate * attended[s]
      h_BLD = h_BLD + self.cross_attn[s](self.norm2[s](h_BLD), tokens_BSD)
      out[s] = h_BLD + mlp_gate * self.mlp[s](modulate(h_BLD, mlp_scale, mlp_shift))
    return out


class LatentMapping(nn.Module):
  def __init__(self, tokens: int, channels: int, width: int, learned: bool):
    super().__init__()
    self.input_layer, self.out_layer = nn.Linear(channels, width), nn.Linear(width, channels)
    table = torch.zeros(tokens, width)
    if learned:
      self.pos_emb = nn.Parameter(table)
    else:
      self.register_buffer("pos_emb", table)


class Backbone(nn.Module):
  """Velocity of all latents, ours: models.geometry_flow.GeometryFlow."""

  def __init__(self, cfg):
    super().__init__()
    self.time_scale = cfg.time_scale
    self.t_embedder = TimestepEmbedder(cfg.width)
    self.d_embedder = TimestepEmbedder(cfg.width) if cfg.shortcut else None
    self.latent_mapping = nn.ModuleDict(
      {
        LATENT_NAMES[name]: LatentMapping(tokens, channels, cfg.width, name != "shape")
        for name, (tokens, channels) in cfg.latent_shapes().items()
      }
    )
    self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))

  def forward(self, x, t_B, tokens_BSD, d_B):
    mod_BD = self.t_embedder(t_B * self.time_scale)
    if self.d_embedder is not None:
      mod_BD = mod_BD + self.d_embedder(d_B * self.time_scale)
    mapping = {name: self.latent_mapping[LATENT_NAMES[name]] for name in LATENTS}
    embedded = {name: m.input_layer(x[name]) + m.pos_emb for name, m in mapping.items()}
    h = {
      STREAM_NAMES["shape"]: embedded["shape"],
      STREAM_NAMES["layout"]: torch.cat([embedded[n] for n in LAYOUT_LATENTS], 1),
    }
    for block in self.blocks:
      h = block(h, mod_BD, tokens_BSD)
    rows = dict(zip(LAYOUT_LATENTS, h[STREAM_NAMES["layout"]].split(1, 1), strict=True)) | {
      "shape": h[STREAM_NAMES["shape"]]
    }
    return {
      name: m.out_layer(F.layer_norm(rows[name], rows[name].shape[-1:], eps=OUTPUT_EPS))
      for name, m in mapping.items()
    }


class LayerScale(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.gamma = nn.Parameter(torch.ones(width))

  def forward(self, x):
    return x * self.gamma


class DinoAttention(nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.heads = cfg.heads
    self.qkv, self.proj = nn.Linear(cfg.width, 3 * cfg.width), nn.Linear(cfg.width, cfg.width)

  def forward(self, x_BLD):
    return self.proj(attend(*heads_of(self.qkv(x_BLD), 3, self.heads)))


class DinoMlp(nn.Module):
  def __init__(self, cfg):
    super().__init__()
    hidden = int(cfg.width * cfg.mlp_ratio)
    self.fc1, self.fc2 = nn.Linear(cfg.width, hidden), nn.Linear(hidden, cfg.width)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


class DinoBlock(nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.norm1, self.norm2 = nn.LayerNorm(cfg.width, eps=1e-6), nn.LayerNorm(cfg.width, eps=1e-6)
    self.attn, self.mlp = DinoAttention(cfg), DinoMlp(cfg)
    self.ls1, self.ls2 = LayerScale(cfg.width), LayerScale(cfg.width)

  def forward(self, x):
    x = x + self.ls1(self.attn(self.norm1(x)))
    return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
  def __init__(self, cfg):
    super().__init__()
    self.proj = nn.Conv2d(3, cfg.width, cfg.patch, cfg.patch)

  def forward(self, image_BCHW):
    return self.proj(image_BCHW).flatten(2).transpose(1, 2)


class Dino(nn.Module):
  """DINOv2 with registers at the size that its position embedding is for, final-norm tokens without
  registers.
  """

  def __init__(self, cfg):
    super().__init__()
    self.registers = cfg.registers
    self.patch_embed = PatchEmbed(cfg)
    self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width))
    self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (cfg.image_size // cfg.patch) ** 2, cfg.width))
    self.register_tokens = (
      nn.Parameter(torch.zeros(1, cfg.registers, cfg.width)) if cfg.registers else None
    )
    self.mask_token = nn.Parameter(torch.zeros(1, cfg.width))
    self.blocks = nn.ModuleList(DinoBlock(cfg) for _ in range(cfg.depth))
    self.norm = nn.LayerNorm(cfg.width, eps=1e-6)

  def forward(self, image_BCHW):
    batch = len(image_BCHW)
    x = (
      torch.cat([self.cls_token.expand(batch, -1, -1), self.patch_embed(image_BCHW)], 1)
      + self.pos_embed
    )
    if self.register_tokens is not None:
      x = torch.cat([x[:, :1], self.register_tokens.expand(batch, -1, -1), x[:, 1:]], 1)
    for block in self.blocks:
      x = block(x)
    x = self.norm(x)
    return torch.cat([x[:, :1], x[:, 1 + self.registers :]], 1)


class SwiGLU(nn.Module):
  def __init__(self, width: int, hidden: int, width_out: int):
    super().__init__()
    self.w1, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
    self.w2 = nn.Linear(hidden, width_out, bias=False)

  def forward(self, x):
    return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Encoder(nn.Module):
  """`backbone` is where the published module keeps the vision transformer."""

  def __init__(self, cfg):
    super().__init__()
    self.backbone = Dino(cfg)


def check(cfg) -> None:
  """Raises ConfigError for a condition encoder (models.conditioning.ConditionConfig) that has no
  twin.
  """
  if cfg.pointmap is not None or cfg.dino.prenorm or cfg.dino.image_size != cfg.dino.input_size:
    raise ConfigError(
      "the PyTorch twin has no point maps, no pre-norm tokens and no other image size than the "
      "position embedding's: "
      "measure a configuration without them, as configs/pretrain_geometry.py:tiny"
    )


def check_flow(cfg) -> None:
  """Raises ConfigError for a flow model (GeometryFlowConfig) without a twin."""
  if cfg.patch != 1:
    raise ConfigError(
      f"model.flow.patch = {cfg.patch}: the PyTorch twin has a token for every cell; measure with "
      "--config.model.flow.patch=1"
    )


class ConditionEmbedder(nn.Module):
  """Condition tokens from images and masks, ours: models.conditioning.ConditionEncoder."""

  def __init__(self, cfg):
    super().__init__()
    dino = cfg.dino
    check(cfg)
    self.module_list = nn.ModuleList(Encoder(dino) for _ in range(2))
    self.projection_nets = nn.ModuleList(
      nn.Sequential(nn.LayerNorm(dino.width, eps=1e-5), SwiGLU(dino.width, cfg.hidden, cfg.width))
      for _ in range(2)
    )
    self.idx_emb = nn.Parameter(torch.zeros(3, cfg.width))
    self.size = dino.input_size
    groups = stream_groups(cfg.streams)
    rows = list(dict.fromkeys(groups.values()))
    self.streams = [
      (s, int(s in MASK_STREAMS), rows.index(groups[s])) for s in STREAMS if s in cfg.streams
    ]
    self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
    self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

  def forward(self, cond):
    """cond: stream -> (B, C, H, W) in 0..1, of any size."""
    tokens = []
    for stream, which, row in self.streams:
      x = cond[stream]
      if x.shape[2:] != (self.size, self.size):
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
      x = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
      tokens.append(
        self.projection_nets[which](self.module_list[which].backbone(x)) + self.idx_emb[row]
      )
    return torch.cat(tokens, 1)


class Geometry(nn.Module):
  """Encoder and flow model. cfg: models.geometry.GeometryConfig."""

  def __init__(self, cfg):
    super().__init__()
    check_flow(cfg.flow)
    self.cfg = cfg
    self.condition, self.flow = ConditionEmbedder(cfg.condition), Backbone(cfg.flow)

  def load(self, params) -> None:
    """Takes over our parameters (path -> array) by their published names; every name must fit."""
    of = lambda prefix: {
      p.removeprefix(prefix): a for p, a in params.items() if p.startswith(prefix)
    }
    for module, rules, prefix in (
      (self.flow, backbone_rules(self.cfg.flow), "flow/"),
      (self.condition, condition_encoder_rules(self.cfg.condition), "condition/"),
    ):
      module.load_state_dict(
        {name: torch.tensor(a) for name, a in keys.to_torch(rules, of(prefix)).items()}
      )

  def loss(self, cond, data, noise, t_B, weights, keep_B=None):
    """Flow matching with every latent present: scalar. data, noise: latent -> (B, n, c); keep_B: 0
    where the condition is dropped.
    """
    tokens_BSD = self.condition(cond)
    if keep_B is not None:
      tokens_BSD = tokens_BSD * keep_B[:, None, None]
    along = t_B[:, None, None]
    x_t = {name: (1 - along) * noise[name] + along * data[name] for name in data}
    velocity = self.flow(x_t, t_B, tokens_BSD, torch.zeros_like(t_B))
    return sum(
      weight * F.mse_loss(velocity[name], data[name] - noise[name])
      for name, weight in weights.items()
    )


class Training:
  """A model in training: forward, backward, clipping, AdamW, one moving average."""

  def __init__(
    self,
    model: Geometry,
    *,
    weights: dict[str, float],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    clip_norm: float,
    decay: float,
    drop_condition: float,
    time_mean: float,
    time_std: float,
  ):
    self.model, self.average = model, copy.deepcopy(model)
    self.optimizer = torch.optim.AdamW(
      model.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=0.0, fused=True
    )
    self.weights, self.clip_norm, self.decay, self.drop_condition = (
      weights,
      clip_norm,
      decay,
      drop_condition,
    )
    self.time_mean, self.time_std = time_mean, time_std

  def step(self, cond, data) -> float:
    """One update from a batch of `tensors`; returns its loss."""
    batch = len(data["shape"])
    noise = {name: torch.randn_like(x) for name, x in data.items()}
    keep_B = (torch.rand(batch) >= self.drop_condition).float()
    t_B = torch.sigmoid(self.time_mean + self.time_std * torch.randn(batch))
    loss = self.model.loss(cond, data, noise, t_B, self.weights, keep_B)
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
    self.optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(
        list(self.average.parameters()), list(self.model.parameters()), 1 - self.decay
      )
    return loss.item()


def tensors(batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
  """A batch of the loader (batch.GeometryBatch) as conditioning, stream -> (B, C, H, W) in 0..1,
  and latents.
  """
  cond = {}
  for stream in STREAMS:
    x = getattr(batch.cond, stream)
    if x is not None:
      x_BCHW = torch.from_numpy(x).permute(0, 3, 1, 2)
      cond[stream] = (x_BCHW != 0).float() if stream in MASK_STREAMS else x_BCHW.float() / 255
  return cond, {name: torch.from_numpy(x).float() for name, x in batch.latents.items()}

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

BLOCK_EPS, OUTPUT_EPS, DINO_EPS = 1e-6, 1e-5, 1e-6


def attend(q_BLHK, k_BSHK, v_BSHK):
  """Multi-head attention; heads are merged in the result (B, L, D)."""
  # PyTorch's kernels have heads before tokens
  q_BHLK, k_BHSK, v_BHSK = (x.transpose(1, 2) for x in (q_BLHK, k_BSHK, v_BSHK))
  out_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHSK, v_BHSK)
  return out_BHLK.transpose(1, 2).flatten(2)


def heads_of(x_BLD, parts: int, heads: int):
  """(B, L, parts * H * K) -> parts tensors (B, L, H, K)."""
  return x_BLD.unflatten(-1, (parts, heads, -1)).unbind(2)


class TimestepEmbedder(nn.Module):
  """(B,) times or step sizes -> (B, D)."""

  def __init__(self, width: int, frequencies: int = 256):
    super().__init__()
    self.mlp = nn.Sequential(
      nn.Linear(frequencies, width),
      nn.SiLU(),
      nn.Linear(width, width),
    )
    half = frequencies // 2
    rates = 10_000.0 ** (-torch.arange(half) / half)
    self.register_buffer("frequencies", rates, persistent=False)

  def forward(self, t_B):
    angles = t_B[:, None] * self.frequencies
    waves = torch.cat([angles.cos(), angles.sin()], -1)
    return self.mlp(waves)


class HeadRMSNorm(nn.Module):
  """Queries or keys (B, L, H, K) at length sqrt(K), with a gain for each head and channel."""

  def __init__(self, heads: int, head_dim: int):
    super().__init__()
    self.gamma = nn.Parameter(torch.ones(heads, head_dim))

  def forward(self, x_BLHK):
    head_dim = x_BLHK.shape[-1]
    return F.normalize(x_BLHK, dim=-1) * self.gamma * head_dim**0.5


def per_stream(make) -> nn.ModuleDict:
  """A module of its own for each stream."""
  return nn.ModuleDict({name: make() for name in STREAM_NAMES.values()})


class SelfAttention(nn.Module):
  """Shape tokens see shape tokens, layout tokens see both and send no gradient into shape's."""

  def __init__(self, cfg):
    super().__init__()
    head_dim = cfg.width // cfg.heads
    self.heads = cfg.heads
    self.to_qkv = per_stream(lambda: nn.Linear(cfg.width, 3 * cfg.width))
    self.to_out = per_stream(lambda: nn.Linear(cfg.width, cfg.width))
    self.normalised = cfg.qk_rms_norm
    if self.normalised:
      self.q_rms_norm = per_stream(lambda: HeadRMSNorm(cfg.heads, head_dim))
      self.k_rms_norm = per_stream(lambda: HeadRMSNorm(cfg.heads, head_dim))

  def forward(self, x):
    # queries, keys and values of each stream, from its own parameters
    q, k, v = {}, {}, {}
    for s, h_BLD in x.items():
      qkv = self.to_qkv[s](h_BLD)
      q[s], k[s], v[s] = heads_of(qkv, 3, self.heads)
      if self.normalised:
        q[s] = self.q_rms_norm[s](q[s])
        k[s] = self.k_rms_norm[s](k[s])

    shape, layout = STREAM_NAMES["shape"], STREAM_NAMES["layout"]
    # layout sees shape, and shape learns nothing of it
    seen_k = torch.cat([k[layout], k[shape].detach()], 1)
    seen_v = torch.cat([v[layout], v[shape].detach()], 1)
    shape_BLD = attend(q[shape], k[shape], v[shape])
    layout_BLD = attend(q[layout], seen_k, seen_v)
    return {
      shape: self.to_out[shape](shape_BLD),
      layout: self.to_out[layout](layout_BLD),
    }


class CrossAttention(nn.Module):
  """Tokens of a stream (B, L, D) see those of the condition (B, S, C)."""

  def __init__(self, cfg):
    super().__init__()
    self.heads = cfg.heads
    self.to_q = nn.Linear(cfg.width, cfg.width)
    self.to_kv = nn.Linear(cfg.cond_width, 2 * cfg.width)
    self.to_out = nn.Linear(cfg.width, cfg.width)

  def forward(self, x_BLD, tokens_BSD):
    (q_BLHK,) = heads_of(self.to_q(x_BLD), 1, self.heads)
    k_BSHK, v_BSHK = heads_of(self.to_kv(tokens_BSD), 2, self.heads)
    attended_BLD = attend(q_BLHK, k_BSHK, v_BSHK)
    return self.to_out(attended_BLD)


class FeedForward(nn.Module):
  """(B, L, D) -> (B, L, D), token by token."""

  def __init__(self, cfg):
    super().__init__()
    hidden = int(cfg.width * cfg.mlp_ratio)
    self.mlp = nn.Sequential(
      nn.Linear(cfg.width, hidden),
      nn.GELU(approximate="tanh"),
      nn.Linear(hidden, cfg.width),
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
    # one modulation for all tokens of both streams
    modulation_B1D = self.adaLN_modulation(mod_BD)[:, None]
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation_B1D.chunk(6, -1)

    attended = self.self_attn({s: modulate(h, scale, shift) for s, h in x.items()})
    out = {}
    for s, h_BLD in x.items():
      h_BLD = h_BLD + gate * attended[s]
      h_BLD = h_BLD + self.cross_attn[s](self.norm2[s](h_BLD), tokens_BSD)
      fed_BLD = self.mlp[s](modulate(h_BLD, mlp_scale, mlp_shift))
      out[s] = h_BLD + mlp_gate * fed_BLD
    return out


def modulate(h_BLD, scale_B1D, shift_B1D):
  """The norm of adaLN, its gain and bias given by the time."""
  normed_BLD = F.layer_norm(h_BLD, h_BLD.shape[-1:], eps=BLOCK_EPS)
  return normed_BLD * (1 + scale_B1D) + shift_B1D


class LatentMapping(nn.Module):
  """Into and out of the width of the model, for one latent; positions are learned or a table."""

  def __init__(self, tokens: int, channels: int, width: int, learned: bool):
    super().__init__()
    self.input_layer = nn.Linear(channels, width)
    self.out_layer = nn.Linear(width, channels)
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
    self.latent_mapping = nn.ModuleDict()
    for name, (tokens, channels) in cfg.latent_shapes().items():
      # the grid of the shape has sinusoidal positions
      mapping = LatentMapping(tokens, channels, cfg.width, learned=name != "shape")
      self.latent_mapping[LATENT_NAMES[name]] = mapping
    self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))

  def forward(self, x, t_B, tokens_BSD, d_B):
    mod_BD = self.t_embedder(t_B * self.time_scale)
    if self.d_embedder is not None:
      mod_BD = mod_BD + self.d_embedder(d_B * self.time_scale)

    # Latents to tokens: the shape is a stream, everything else together the other.
    shape, layout = STREAM_NAMES["shape"], STREAM_NAMES["layout"]
    mapping = {name: self.latent_mapping[LATENT_NAMES[name]] for name in LATENTS}
    embedded = {}
    for name, latent in mapping.items():
      embedded[name] = latent.input_layer(x[name]) + latent.pos_emb
    h = {
      shape: embedded["shape"],
      layout: torch.cat([embedded[name] for name in LAYOUT_LATENTS], 1),
    }
    for block in self.blocks:
      h = block(h, mod_BD, tokens_BSD)

    # And back, each latent by its own projection; those of the layout are a token each.
    rows = dict(zip(LAYOUT_LATENTS, h[layout].split(1, 1), strict=True))
    rows["shape"] = h[shape]
    velocity = {}
    for name, latent in mapping.items():
      normed = F.layer_norm(rows[name], rows[name].shape[-1:], eps=OUTPUT_EPS)
      velocity[name] = latent.out_layer(normed)
    return velocity


class LayerScale(nn.Module):
  """A gain for each channel."""

  def __init__(self, width: int):
    super().__init__()
    self.gamma = nn.Parameter(torch.ones(width))

  def forward(self, x):
    return x * self.gamma


class DinoAttention(nn.Module):
  """Self-attention of the vision transformer: (B, L, D) -> (B, L, D)."""

  def __init__(self, cfg):
    super().__init__()
    self.heads = cfg.heads
    self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
    self.proj = nn.Linear(cfg.width, cfg.width)

  def forward(self, x_BLD):
    q, k, v = heads_of(self.qkv(x_BLD), 3, self.heads)
    attended_BLD = attend(q, k, v)
    return self.proj(attended_BLD)


class DinoMlp(nn.Module):
  """Feed-forward of the vision transformer."""

  def __init__(self, cfg):
    super().__init__()
    hidden = int(cfg.width * cfg.mlp_ratio)
    self.fc1 = nn.Linear(cfg.width, hidden)
    self.fc2 = nn.Linear(hidden, cfg.width)

  def forward(self, x):
    hidden = F.gelu(self.fc1(x))
    return self.fc2(hidden)


class DinoBlock(nn.Module):
  """Pre-norm attention and feed-forward, each scaled by channel."""

  def __init__(self, cfg):
    super().__init__()
    self.norm1 = nn.LayerNorm(cfg.width, eps=DINO_EPS)
    self.attn = DinoAttention(cfg)
    self.ls1 = LayerScale(cfg.width)
    self.norm2 = nn.LayerNorm(cfg.width, eps=DINO_EPS)
    self.mlp = DinoMlp(cfg)
    self.ls2 = LayerScale(cfg.width)

  def forward(self, x):
    attended = self.attn(self.norm1(x))
    x = x + self.ls1(attended)
    fed = self.mlp(self.norm2(x))
    return x + self.ls2(fed)


class PatchEmbed(nn.Module):
  """(B, 3, H, W) -> (B, patches, D), row by row."""

  def __init__(self, cfg):
    super().__init__()
    self.proj = nn.Conv2d(3, cfg.width, cfg.patch, cfg.patch)

  def forward(self, image_BCHW):
    grid_BDHW = self.proj(image_BCHW)
    return grid_BDHW.flatten(2).transpose(1, 2)


class Dino(nn.Module):
  """DINOv2 with registers at the size that its position embedding is for, final-norm tokens without
  registers.
  """

  def __init__(self, cfg):
    super().__init__()
    patches = (cfg.image_size // cfg.patch) ** 2
    self.registers = cfg.registers
    self.patch_embed = PatchEmbed(cfg)
    self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width))
    self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, cfg.width))
    self.register_tokens = None
    if cfg.registers:
      self.register_tokens = nn.Parameter(torch.zeros(1, cfg.registers, cfg.width))
    # of the published checkpoint, read by nothing here
    self.mask_token = nn.Parameter(torch.zeros(1, cfg.width))
    self.blocks = nn.ModuleList(DinoBlock(cfg) for _ in range(cfg.depth))
    self.norm = nn.LayerNorm(cfg.width, eps=DINO_EPS)

  def forward(self, image_BCHW):
    batch = len(image_BCHW)
    # class token and patches have a position, registers between them have none
    cls_B1D = self.cls_token.expand(batch, -1, -1)
    x = torch.cat([cls_B1D, self.patch_embed(image_BCHW)], 1) + self.pos_embed
    if self.register_tokens is not None:
      registers_BRD = self.register_tokens.expand(batch, -1, -1)
      x = torch.cat([x[:, :1], registers_BRD, x[:, 1:]], 1)
    for block in self.blocks:
      x = block(x)
    x = self.norm(x)
    return torch.cat([x[:, :1], x[:, 1 + self.registers :]], 1)


class SwiGLU(nn.Module):
  """Projection of a stream's tokens to the width of the condition."""

  def __init__(self, width: int, hidden: int, width_out: int):
    super().__init__()
    self.w1 = nn.Linear(width, hidden, bias=False)
    self.w3 = nn.Linear(width, hidden, bias=False)
    self.w2 = nn.Linear(hidden, width_out, bias=False)

  def forward(self, x):
    gated = F.silu(self.w1(x)) * self.w3(x)
    return self.w2(gated)


class Encoder(nn.Module):
  """`backbone` is where the published module keeps the vision transformer."""

  def __init__(self, cfg):
    super().__init__()
    self.backbone = Dino(cfg)


def check(cfg) -> None:
  """Raises ConfigError for a condition encoder (models.conditioning.ConditionConfig) that has no
  twin.
  """
  resized = cfg.dino.image_size != cfg.dino.input_size
  if cfg.pointmap is not None or cfg.dino.prenorm or resized:
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
    check(cfg)
    dino = cfg.dino
    self.size = dino.input_size

    # An encoder and a projection each for images and for masks.
    self.module_list = nn.ModuleList(Encoder(dino) for _ in range(2))
    self.projection_nets = nn.ModuleList()
    for _ in range(2):
      projection = SwiGLU(dino.width, cfg.hidden, cfg.width)
      self.projection_nets.append(nn.Sequential(nn.LayerNorm(dino.width, eps=1e-5), projection))

    # Streams in their order: name, which encoder, row of the embedding that tells crop from photo.
    self.idx_emb = nn.Parameter(torch.zeros(3, cfg.width))
    groups = stream_groups(cfg.streams)
    rows = list(dict.fromkeys(groups.values()))
    self.streams = []
    for stream in STREAMS:
      if stream in cfg.streams:
        which = int(stream in MASK_STREAMS)
        self.streams.append((stream, which, rows.index(groups[stream])))

    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    self.register_buffer("mean", mean, persistent=False)
    self.register_buffer("std", std, persistent=False)

  def forward(self, cond):
    """cond: stream -> (B, C, H, W) in 0..1, of any size."""
    size = (self.size, self.size)
    tokens = []
    for stream, which, row in self.streams:
      x = cond[stream]
      if x.shape[2:] != size:
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
      # a mask is a grey image
      x = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
      encoded = self.module_list[which].backbone(x)
      projected = self.projection_nets[which](encoded)
      tokens.append(projected + self.idx_emb[row])
    return torch.cat(tokens, 1)


class Geometry(nn.Module):
  """Encoder and flow model. cfg: models.geometry.GeometryConfig."""

  def __init__(self, cfg):
    super().__init__()
    check_flow(cfg.flow)
    self.cfg = cfg
    self.condition = ConditionEmbedder(cfg.condition)
    self.flow = Backbone(cfg.flow)

  def load(self, params) -> None:
    """Takes over our parameters (path -> array) by their published names; every name must fit."""
    flow_rules = backbone_rules(self.cfg.flow)
    condition_rules = condition_encoder_rules(self.cfg.condition)
    for module, rules, prefix in (
      (self.flow, flow_rules, "flow/"),
      (self.condition, condition_rules, "condition/"),
    ):
      own = {}
      for path, array in params.items():
        if path.startswith(prefix):
          own[path.removeprefix(prefix)] = array
      published = keys.to_torch(rules, own)
      module.load_state_dict({name: torch.tensor(array) for name, array in published.items()})

  def loss(self, cond, data, noise, t_B, weights, keep_B=None):
    """Flow matching with every latent present: scalar. data, noise: latent -> (B, n, c); keep_B: 0
    where the condition is dropped.
    """
    tokens_BSD = self.condition(cond)
    if keep_B is not None:
      tokens_BSD = tokens_BSD * keep_B[:, None, None]
    # t = 0 is noise, t = 1 is data
    along = t_B[:, None, None]
    x_t = {name: (1 - along) * noise[name] + along * data[name] for name in data}
    velocity = self.flow(x_t, t_B, tokens_BSD, torch.zeros_like(t_B))
    loss = 0
    for name, weight in weights.items():
      loss = loss + weight * F.mse_loss(velocity[name], data[name] - noise[name])
    return loss


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
    """weights: of each latent's error. clip_norm: of all gradients together. decay: of the average.
    drop_condition: share of the batch. time_mean, time_std: of the logit-normal times.
    """
    self.model = model
    self.average = copy.deepcopy(model)
    self.optimizer = torch.optim.AdamW(
      model.parameters(),
      lr=lr,
      betas=betas,
      eps=eps,
      weight_decay=0.0,
      fused=True,
    )
    self.weights = weights
    self.clip_norm = clip_norm
    self.decay = decay
    self.drop_condition = drop_condition
    self.time_mean = time_mean
    self.time_std = time_std

  def step(self, cond, data) -> float:
    """One update from a batch of `tensors`; returns its loss."""
    # what is drawn for each sample
    batch = len(data["shape"])
    noise = {name: torch.randn_like(x) for name, x in data.items()}
    keep_B = (torch.rand(batch) >= self.drop_condition).float()
    t_B = torch.sigmoid(self.time_mean + self.time_std * torch.randn(batch))

    loss = self.model.loss(cond, data, noise, t_B, self.weights, keep_B)
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
    self.optimizer.step()

    # the average moves towards the new parameters, all of them in one kernel
    averages = list(self.average.parameters())
    parameters = list(self.model.parameters())
    with torch.no_grad():
      torch._foreach_lerp_(averages, parameters, 1 - self.decay)
    return loss.item()


def tensors(batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
  """A batch of the loader (batch.GeometryBatch) as conditioning, stream -> (B, C, H, W) in 0..1,
  and latents.
  """
  cond = {}
  for stream in STREAMS:
    x_BHWC = getattr(batch.cond, stream)
    if x_BHWC is None:
      continue
    x_BCHW = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)
    if stream in MASK_STREAMS:
      cond[stream] = (x_BCHW != 0).float()
    else:
      cond[stream] = x_BCHW.float() / 255
  latents = {name: torch.from_numpy(x).float() for name, x in batch.latents.items()}
  return cond, latents

"""Published names of the condition encoder (EmbedderFuser) and of original DINOv2 checkpoints."""

from collections.abc import Sequence

from sam3d_jax.models.conditioning import GROUPS, STREAMS, ConditionConfig
from sam3d_jax.models.dinov2 import DinoConfig
from sam3d_jax.models.pointmap import PointmapConfig
from sam3d_jax.torch_bridge.keys import Rule, Size, prefixed
from sam3d_jax.torch_bridge.names_geometry import affine_rules, layer_norm_rules

DINO_MODULES = ("image_encoder", "mask_encoder")  # module_list.0 and module_list.1
# projection_nets.0, 1, 2
PROJECTIONS = ("image_projection", "mask_projection", "pointmap_projection")
GROUP_ROWS = {"cropped": 0, "full": 1}  # published group -> row of our table
SAME_GROUP = "_too"  # ends a second name of a group


def condition_encoder_rules(cfg: ConditionConfig) -> list[Rule]:
  """Names of `ss_condition_embedder`, without the checkpoint's prefix."""
  rules = [Rule("idx_emb", "group_embed", rows=table_rows(cfg.streams))]

  # Encoders are numbered in module_list, whether their streams are in use or not.
  dino = dinov2_rules(cfg.dino)
  for number, name in enumerate(DINO_MODULES):
    rules += prefixed(dino, f"module_list.{number}.backbone.", f"{name}/")
  if cfg.pointmap is not None:
    pointmap = pointmap_rules(cfg.pointmap)
    rules += prefixed(pointmap, "module_list.2.", "pointmap_encoder/")

  # A projection for each.
  names = PROJECTIONS if cfg.pointmap is not None else PROJECTIONS[:2]
  projection = projection_rules()
  for number, name in enumerate(names):
    rules += prefixed(projection, f"projection_nets.{number}.", f"{name}/")
  return rules


def condition_encoder_sizes(cfg: ConditionConfig, prefix: str = "") -> list[Size]:
  """The keys that shapes of `ss_condition_embedder` tell. prefix: of the checkpoint."""
  sizes = [
    Size("model.condition.width", cfg.width, f"{prefix}idx_emb", axis=1),
    *dinov2_sizes(cfg.dino, f"{prefix}module_list.0.backbone."),
  ]
  if cfg.pointmap is not None:
    token = f"{prefix}module_list.2.cls_token"
    sizes.append(Size("model.condition.pointmap.width", cfg.pointmap.width, token, axis=2))
  return sizes


def stream_groups(streams: Sequence[str]) -> dict[str, str]:
  """Stream -> name of its group in the published yaml, in the order of the tokens.

  The published module gives its table one row for every group that is named, numbered by first
  appearance, and one more. A model that looks at the crop only (or the photo only) would so have
  two rows, its checkpoint three. So all its streams but the first name a second group, whose row
  holds the same embedding (`table_rows`).
  """
  groups = {}
  for stream in STREAMS:
    if stream in streams:
      groups[stream] = "full" if stream.startswith("rgb_") else "cropped"

  # one group alone: a second name for it
  if len(set(groups.values())) == 1:
    _, *others = groups
    for stream in others:
      groups[stream] += SAME_GROUP
  return groups


def table_rows(streams: Sequence[str]) -> tuple[int, ...]:
  """Which row of our table each row of the published one holds, so that every stream finds its
  group's where the module looks for it.
  """
  # groups in order of first appearance, which numbers their rows
  named = dict.fromkeys(stream_groups(streams).values())
  rows = [GROUP_ROWS[group.removesuffix(SAME_GROUP)] for group in named]

  # what is left of our table fills the rest of theirs
  for row in range(GROUPS + 1):
    if row not in rows:
      rows.append(row)
  return tuple(rows[: GROUPS + 1])


def dinov2_rules(cfg: DinoConfig, prefix: str = "") -> list[Rule]:
  """Names of an original DINOv2 checkpoint (with `prefix` before each) and the paths inside a
  `Dino` module.
  """
  width = cfg.width
  positions = 1 + (cfg.image_size // cfg.patch) ** 2

  # tokens and patches
  rules = [
    Rule("cls_token", "cls_token", torch_shape=(1, 1, width)),
    Rule("pos_embed", "pos_embed", torch_shape=(1, positions, width)),
  ]
  if cfg.registers:
    shape = (1, cfg.registers, width)
    rules.append(Rule("register_tokens", "register_tokens", torch_shape=shape))
  rules += [
    Rule("mask_token", "mask_token", torch_shape=(1, width)),
    Rule("patch_embed.proj.weight", "patch_embed/kernel", layout="conv"),
    Rule("patch_embed.proj.bias", "patch_embed/bias"),
    *layer_norm_rules("norm", "norm"),
  ]

  # the stack of blocks, with their layer scales
  block = _block_rules(width, stacked=True)
  block.append(Rule("{n}.ls1.gamma", "ls1", stacked=True))
  block.append(Rule("{n}.ls2.gamma", "ls2", stacked=True))
  rules += prefixed(block, "blocks.", "blocks/layer/")
  return prefixed(rules, prefix)


def dinov2_sizes(cfg: DinoConfig, prefix: str = "") -> list[Size]:
  """The keys that shapes of a DINOv2 checkpoint tell. Its heads are in no shape."""
  key = "model.condition.dino"
  return [
    Size(f"{key}.width", cfg.width, f"{prefix}cls_token", axis=2),
    Size(f"{key}.depth", cfg.depth, f"{prefix}blocks."),
    Size(f"{key}.patch", cfg.patch, f"{prefix}patch_embed.proj.weight", axis=2),
    Size(f"{key}.registers", cfg.registers, f"{prefix}register_tokens", axis=1),
  ]


def pointmap_rules(cfg: PointmapConfig) -> list[Rule]:
  """Names inside PointPatchEmbed."""
  width = cfg.width
  side = cfg.input_size // cfg.patch
  rules = [Rule("invalid_xyz_token", "invalid_token")]
  if cfg.drop_token:
    rules.append(Rule("dropped_xyz_token", "dropped_token"))
  return [
    *rules,
    Rule("pos_embed", "pos_embed", torch_shape=(1, width, side, side)),
    Rule("pos_embed_window", "pos_embed_window", torch_shape=(1, 1 + cfg.patch**2, width)),
    Rule("cls_token", "cls_token", torch_shape=(1, 1, width)),
    Rule("point_proj.weight", "point_proj/kernel", layout="linear"),
    Rule("point_proj.bias", "point_proj/bias"),
    *prefixed(_block_rules(width, stacked=False), "blocks.0.", "block/"),
  ]


def projection_rules() -> list[Rule]:
  """Names inside one projection net: LayerNorm, then SwiGLU."""
  rules = layer_norm_rules("0", "norm")
  for name in ("w1", "w2", "w3"):
    rules.append(Rule(f"1.{name}.weight", f"mlp/{name}/kernel", layout="linear"))
  return rules


def _block_rules(width: int, *, stacked: bool) -> list[Rule]:
  """One vision transformer block, without layer scales."""
  n = "{n}." if stacked else ""
  qkv_width = 3 * width  # ours is (3, H, K)
  return [
    *layer_norm_rules(f"{n}norm1", "norm1", stacked=stacked),
    *layer_norm_rules(f"{n}norm2", "norm2", stacked=stacked),
    *affine_rules(f"{n}attn.qkv", "attn/qkv", out=qkv_width, stacked=stacked),
    *affine_rules(f"{n}attn.proj", "attn/out", dims_in=2, stacked=stacked),
    *affine_rules(f"{n}mlp.fc1", "mlp/fc1", stacked=stacked),
    *affine_rules(f"{n}mlp.fc2", "mlp/fc2", stacked=stacked),
  ]

"""Published names of the condition encoder (EmbedderFuser) and of original DINOv2 checkpoints."""

from collections.abc import Sequence

from sam3d_jax.models.conditioning import GROUPS, STREAMS, ConditionConfig
from sam3d_jax.models.dinov2 import DinoConfig
from sam3d_jax.models.pointmap import PointmapConfig
from sam3d_jax.torch_bridge.keys import Rule, prefixed

DINO_MODULES = ("image_encoder", "mask_encoder")  # module_list.0 and module_list.1
# projection_nets.0, 1, 2
PROJECTIONS = ("image_projection", "mask_projection", "pointmap_projection")
GROUP_ROWS = {"cropped": 0, "full": 1}  # published group -> row of our table


def condition_encoder_rules(cfg: ConditionConfig) -> list[Rule]:
  """Names of `ss_condition_embedder`, without the checkpoint's prefix."""
  rules = [Rule("idx_emb", "group_embed", rows=table_rows(cfg.streams))]
  for i, name in enumerate(DINO_MODULES):
    rules += prefixed(dinov2_rules(cfg.dino), f"module_list.{i}.backbone.", f"{name}/")
  if cfg.pointmap is not None:
    rules += prefixed(pointmap_rules(cfg.pointmap), "module_list.2.", "pointmap_encoder/")
  for i, name in enumerate(PROJECTIONS if cfg.pointmap is not None else PROJECTIONS[:2]):
    rules += prefixed(projection_rules(), f"projection_nets.{i}.", f"{name}/")
  return rules


def stream_groups(streams: Sequence[str]) -> dict[str, str]:
  """Stream -> name of its group in the published yaml, in the order of the tokens.

  The published module gives its table one row for every group that is named, numbered by first
  appearance, and one more. A model that looks at the crop only (or the photo only) would so have
  two rows, its checkpoint three. So all its streams but the first name a second group, whose row
  holds the same embedding (`table_rows`).
  """
  groups = {s: "full" if s.startswith("rgb_") else "cropped" for s in STREAMS if s in streams}
  if len(set(groups.values())) == 1:
    groups |= {s: f"{groups[s]}_too" for s in list(groups)[1:]}
  return groups


def table_rows(streams: Sequence[str]) -> tuple[int, ...]:
  """Which row of our table each row of the published one holds, so that every stream finds its
  group's where the module looks for it.
  """
  named = dict.fromkeys(stream_groups(streams).values())  # in order of first appearance
  used = [GROUP_ROWS[group.removesuffix("_too")] for group in named]
  return tuple(used + [row for row in range(GROUPS + 1) if row not in used])[: GROUPS + 1]


def dinov2_rules(cfg: DinoConfig, prefix: str = "") -> list[Rule]:
  """Names of an original DINOv2 checkpoint (with `prefix` before each) and the paths inside a
  `Dino` module.
  """
  width = cfg.width
  rules = [
    Rule("cls_token", "cls_token", torch_shape=(1, 1, width)),
    Rule("pos_embed", "pos_embed", torch_shape=(1, 1 + (cfg.image_size // cfg.patch) ** 2, width)),
    *(
      [Rule("register_tokens", "register_tokens", torch_shape=(1, cfg.registers, width))]
      if cfg.registers
      else []
    ),
    Rule("mask_token", "mask_token", torch_shape=(1, width)),
    Rule("patch_embed.proj.weight", "patch_embed/kernel", layout="conv"),
    Rule("patch_embed.proj.bias", "patch_embed/bias"),
    *_layer_norm("norm", "norm"),
  ]
  block = [
    *_block_rules(width, stacked=True),
    Rule("{n}.ls1.gamma", "ls1", stacked=True),
    Rule("{n}.ls2.gamma", "ls2", stacked=True),
  ]
  return prefixed(rules + prefixed(block, "blocks.", "blocks/layer/"), prefix)


def pointmap_rules(cfg: PointmapConfig) -> list[Rule]:
  """Names inside PointPatchEmbed."""
  width, side = cfg.width, cfg.input_size // cfg.patch
  return [
    Rule("invalid_xyz_token", "invalid_token"),
    *([Rule("dropped_xyz_token", "dropped_token")] if cfg.drop_token else []),
    Rule("pos_embed", "pos_embed", torch_shape=(1, width, side, side)),
    Rule("pos_embed_window", "pos_embed_window", torch_shape=(1, 1 + cfg.patch**2, width)),
    Rule("cls_token", "cls_token", torch_shape=(1, 1, width)),
    Rule("point_proj.weight", "point_proj/kernel", layout="linear"),
    Rule("point_proj.bias", "point_proj/bias"),
    *prefixed(_block_rules(width, stacked=False), "blocks.0.", "block/"),
  ]


def projection_rules() -> list[Rule]:
  """Names inside one projection net: LayerNorm, then SwiGLU."""
  return [
    *_layer_norm("0", "norm"),
    *(Rule(f"1.{w}.weight", f"mlp/{w}/kernel", layout="linear") for w in ("w1", "w2", "w3")),
  ]


def _block_rules(width: int, *, stacked: bool) -> list[Rule]:
  n = "{n}." if stacked else ""
  rules = []
  for name in ("norm1", "norm2"):
    rules += _layer_norm(n + name, name, stacked=stacked)
  for torch, ours, dims_in in (
    ("attn.qkv", "attn/qkv", 1),
    ("attn.proj", "attn/out", 2),
    ("mlp.fc1", "mlp/fc1", 1),
    ("mlp.fc2", "mlp/fc2", 1),
  ):
    rules.append(
      Rule(
        f"{n}{torch}.weight", f"{ours}/kernel", layout="linear", dims_in=dims_in, stacked=stacked
      )
    )
    flat = (3 * width,) if torch == "attn.qkv" else None  # ours is (3, H, K)
    rules.append(Rule(f"{n}{torch}.bias", f"{ours}/bias", torch_shape=flat, stacked=stacked))
  return rules


def _layer_norm(torch: str, ours: str, *, stacked: bool = False) -> list[Rule]:
  return [
    Rule(f"{torch}.weight", f"{ours}/scale", stacked=stacked),
    Rule(f"{torch}.bias", f"{ours}/bias", stacked=stacked),
  ]

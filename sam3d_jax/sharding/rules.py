"""Which mesh axes split which parameter: one table, data rather than code.

A rule is a regular expression over the parameter's path and the mesh axes of its LAST dimensions.
Counting from the back, a rule holds for a single layer and for a scanned stack (one more leading
axis) alike. Exactly one rule must match every parameter.
"""

from collections.abc import Mapping
import math
import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sam3d_jax.sharding.mesh import path_of

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  # attention; kernels are (D, 3 | 2, H, K), (D, H, K) and (H, K, D)
  (r".*/(qkv|kv)/kernel", ("fsdp", None, "tensor", None)),
  (r".*/(qkv|kv)/bias", (None, "tensor", None)),
  (r".*_attn/q/kernel", ("fsdp", "tensor", None)),
  (r".*_attn/q/bias", ("tensor", None)),
  (r".*attn/(projections/)?out/kernel", ("tensor", None, "fsdp")),
  (r".*_attn/[qk]_norm/scale", ("tensor", None)),
  # feed-forward; kernels are (D, F) and (F, D)
  (r".*/mlp/(up|fc1|w1|w3)/kernel", ("fsdp", "tensor")),
  (r".*/mlp/(up|fc1|w1|w3)/bias", ("tensor",)),
  (r".*/mlp/(down|fc2|w2)/kernel", ("tensor", "fsdp")),
  # modulation (D, 6, D), time embedding (D, D)
  (r".*/adaln/kernel", ("fsdp", None, None)),
  (r".*/(time|step)/(hidden|out)/kernel", ("fsdp", None)),
  # 3-D convolutions (x, y, z, I, O)
  (r"(encoder|decoder)/(conv_in|conv_out|(levels|middle)/.*)/kernel", ("fsdp",)),
  # sparse residual blocks: convolutions (x, y, z, I, O), modulation (D, 2, C), way around (I, O)
  (r"flow/(in|out)_blocks/\d+/conv\d/kernel", ("fsdp", None)),
  (r"flow/(in|out)_blocks/\d+/mod/kernel", ("fsdp", None, None)),
  (r"flow/(in|out)_blocks/\d+/skip/kernel", ("fsdp", None)),
  # blocks of the mesh decoder that subdivide
  (r"mesh/up_blocks/\d+/conv\d/kernel", ("fsdp", None)),
  (r"mesh/up_blocks/\d+/skip/kernel", ("fsdp", None)),
  # small: replicated
  (r".*/lora_[ab]", ()),
  (r".*/(adaln|hidden|out|fc2|down|patch_embed|proj_in|proj_out|point_proj)/bias", ()),
  (r"(encoder|decoder)/.*(conv\d?|conv_in|conv_out|skip|upsample|downsample)/bias", ()),
  (r"flow/(in|out)_blocks/\d+/(conv\d|mod|skip)/bias", ()),
  (r"mesh/up_blocks/\d+/(conv\d|skip)/bias", ()),
  (r".*(?<!attn/q_)(?<!attn/k_)norm(\d|_out)?/(scale|bias)", ()),
  (
    r".*/(ls1|ls2|cls_token|mask_token|register_tokens|invalid_token|dropped_token|pos_embed|pos_embed_window|position)",
    (),
  ),
  (r".*/group_embed", ()),
  (r".*/(patch_embed|proj_in|proj_out|point_proj)/kernel", ()),
)

# share of all parameters above which a replicated leaf is named in the plan
REPLICATED_LIMIT = 0.02


def rule_of(path: str) -> tuple[str | None, ...]:
  """The axes of a parameter's last dimensions. Raises ValueError unless one rule matches."""
  # All rules are tried: two that match are a mistake in the table.
  patterns = []
  found = []
  for pattern, axes in RULES:
    if re.fullmatch(pattern, path):
      patterns.append(pattern)
      found.append(axes)
  if len(found) != 1:
    hits = ", ".join(patterns) or "none"
    raise ValueError(
      f"{path}: {len(found)} sharding rules match ({hits}), "
      "exactly one must; "
      "see sam3d_jax/sharding/rules.py"
    )
  return found[0]


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  """Partition of one parameter. A dimension that its axis does not divide stays whole."""
  # the rule names the last dimensions
  last = rule_of(path)
  leading = len(shape) - len(last)
  axes = (None,) * leading + last
  # an axis that does not divide its dimension is left out
  spec = []
  for axis, size in zip(axes, shape, strict=True):
    if axis is not None and size % mesh.shape[axis]:
      axis = None
    spec.append(axis)
  return P(*spec)


def state_shardings(mesh: Mesh, abstract_state, param_shapes: Mapping[str, jax.ShapeDtypeStruct]):
  """Shardings of a whole training state: every copy of a parameter (average, moment, reference)
  lies as the parameter does.

  Leaves that are not a parameter's (counters) are replicated.
  """
  # of the parameters
  specs = {}
  for path, x in param_shapes.items():
    specs[path] = param_spec(path, tuple(x.shape), mesh)

  # of every leaf, by the parameter that it belongs to
  def sharding(key_path, leaf):
    whole = path_of(key_path)
    spec = spec_within(whole, specs)
    if spec is None:
      if math.prod(leaf.shape) > 1:
        raise ValueError(f"{whole} {leaf.shape} belongs to no parameter: how should it be split?")
      spec = P()
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def spec_within(path: str, specs: Mapping[str, P]) -> P | None:
  """Of the parameter that a path of the state ends in, as in opt/mu/PARAMETER; None without one."""
  # Longest first: a parameter's path may end in another's.
  parts = path.split("/")
  for i in range(len(parts)):
    end = "/".join(parts[i:])
    if end in specs:
      return specs[end]
  return None


def shard_bytes(x) -> int:
  """Bytes of one device's part of an array (or shape struct) with a sharding."""
  shape = tuple(x.shape)
  part = x.sharding.shard_shape(shape)
  return math.prod(part) * x.dtype.itemsize


def replicated(mesh: Mesh, param_shapes: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
  """Parameters above REPLICATED_LIMIT of the model that every device holds whole although the mesh
  could split them.
  """
  ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
  if ways == 1:
    return []
  sizes = {}
  for path, x in param_shapes.items():
    sizes[path] = math.prod(x.shape)
  limit = REPLICATED_LIMIT * sum(sizes.values())

  found = []
  for path, x in param_shapes.items():
    spec = param_spec(path, tuple(x.shape), mesh)
    whole = all(axis is None for axis in spec)
    if whole and sizes[path] > limit:
      found.append(path)
  return found

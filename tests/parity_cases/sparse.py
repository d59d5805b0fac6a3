"""Parity of the sparse layers (f1-f3) and of voxel pruning (g4). The fixtures' joined lists are
packed into rows, and unpacked again to be compared.
"""

import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.geometry import packing
from sam3d_jax.models import parameters, sparse
from sam3d_jax.models.layers import MLP, Dense, LayerNorm, layer_norm
from sam3d_jax.models.packed_attention import Segments, attend_packed_cross
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.models.sparse_layers import (
  BLOCK_EPS,
  SparseGroupNorm,
  SparseResBlock,
  SparseSelfAttention,
  SubmanifoldConv,
  WindowBlock,
)
from sam3d_jax.sampling import voxels
from sam3d_jax.torch_bridge import keys, names_sparse
from sam3d_jax.torch_bridge import names_geometry as names
from tests.parity import Fixture, case
from tests.parity_cases.flow_and_vae import loaded, run


def packed(fixture: Fixture, **tables) -> packing.Packed:
  """The fixture's objects in rows: the first two in one row, so that neighbours take part."""
  coords_N4 = fixture.inputs["coords"]
  resolution = 2 * -(-int(coords_N4[:, 1:].max() + 1) // 2)
  needed = packing.Tables(resolution, **tables)
  objects = []
  for coords_V3 in by_object(fixture, coords_N4[:, 1:]):
    objects.append(packing.object_tables(coords_V3, needed))
  return packing.pack(objects)


def by_object(fixture: Fixture, rows_NC) -> list[np.ndarray]:
  """The rows of the fixture's joined list, object by object."""
  number_N = fixture.inputs["coords"][:, 0]
  return [np.asarray(rows_NC)[number_N == b] for b in range(number_N.max() + 1)]


def tensor(fixture: Fixture, found: packing.Packed, name: str = "feats") -> SparseTensor:
  """An array of the fixture at the packed voxels."""
  filled = found.fill(by_object(fixture, fixture.inputs[name]))
  return SparseTensor(jnp.asarray(filled), jax.tree.map(jnp.asarray, found.voxels.fine))


def coarse_tensor(x: SparseTensor, found: packing.Packed) -> SparseTensor:
  """The voxels at half the resolution."""
  feats_RTC = sparse.pooled(x.feats_RVC, found.voxels.pooling)
  return SparseTensor(feats_RTC, jax.tree.map(jnp.asarray, found.voxels.coarse))


def listed(found: packing.Packed, x) -> np.ndarray:
  """Features (R, V, C), or a sparse tensor's, in the fixture's order."""
  feats = x.feats_RVC if isinstance(x, SparseTensor) else x
  return np.concatenate(found.split(feats))


def listed_coarse(found: packing.Packed, x: SparseTensor) -> tuple[np.ndarray, np.ndarray]:
  """Features and (object, x, y, z) of the voxels at half the resolution."""
  feats_RTC, coords_RT3 = np.asarray(x.feats_RVC), np.asarray(x.level.coords_RV3)
  feats, coords = [], []
  for n, place in enumerate(found.places):
    slots = slice(place.coarse_start, place.coarse_start + place.coarse_count)
    feats.append(feats_RTC[place.row, slots])
    coords.append(np.insert(coords_RT3[place.row, slots], 0, n, axis=1))
  return np.concatenate(feats), np.concatenate(coords)


def per_object(values_BC) -> jnp.ndarray:
  """A value of each object, as the one row that `packed` makes has them."""
  return jnp.asarray(values_BC)[None]


def params_of(fixture: Fixture, module: str) -> dict[str, np.ndarray]:
  prefix = f"{module}."
  found = {}
  for name, array in fixture.params.items():
    if name.startswith(prefix):
      found[name.removeprefix(prefix)] = array
  return found


@case("f1_sparse_primitives")
def primitives(fixture: Fixture):
  k = fixture.kwargs
  found = packed(fixture, neighbours=True, pooled=True)
  x = tensor(fixture, found)
  channels, out_channels = k["in_channels"], k["out_channels"]
  if k["factor"] != 2:
    raise ValueError(f"factor = {k['factor']}: voxels are halved, nothing else")
  groups = int(re.match(r"(\d+) groups", k["group_norm"])[1])

  def make(rngs):
    return nnx.Dict(
      {
        "linear": Dense(channels, out_channels, rngs=rngs),
        "conv1": Dense(channels, out_channels, rngs=rngs),
        "conv3": SubmanifoldConv(channels, out_channels, rngs=rngs),
        "conv3_nobias": SubmanifoldConv(channels, out_channels, rngs=rngs, bias=False),
        "gn": SparseGroupNorm(groups, channels),
      }
    )

  rules = names.affine_rules("linear", "linear") + names.layer_norm_rules("gn", "gn")
  rules += names_sparse.pointwise_conv_rules("conv1.conv", "conv1", channels, out_channels)
  rules += names_sparse.submanifold_conv_rules("conv3.conv", "conv3")
  rules += names_sparse.submanifold_conv_rules("conv3_nobias.conv", "conv3_nobias", bias=False)
  modules = loaded(make, rules, fixture.params)

  # voxel by voxel, by neighbours, by object
  out = {}
  for name in ("linear", "conv1"):
    out[f"out/{name}"] = listed(found, modules[name](x.feats_RVC))
  for name in ("conv3", "conv3_nobias", "gn"):
    out[f"out/{name}"] = listed(found, run(modules[name], x))
  g_BC = jnp.arange(len(found.places) * channels, dtype=jnp.float32).reshape(-1, channels) / 8
  g_RVC = sparse.per_slot(per_object(g_BC), x.level)
  out["out/batch_broadcast_mul_add"] = listed(found, x.feats_RVC * (1 + g_RVC) + g_RVC)

  # resolutions
  coarse = coarse_tensor(x, found)
  out["out/down/feats"], out["out/down/coords"] = listed_coarse(found, coarse)
  doubled_RTC = 2 * coarse.feats_RVC + 1
  up_RVC = sparse.spread(doubled_RTC, found.voxels.pooling)
  out["out/down_then_2x+1_then_up/feats"] = listed(found, up_RVC)
  halves = sparse.subdivided_level(x.level)
  out["out/subdivide/feats"] = np.repeat(fixture.inputs["feats"], 8, axis=0)
  coords = []
  for n, place in enumerate(found.places):
    slots = slice(8 * place.start, 8 * (place.start + place.count))
    coords.append(np.insert(np.asarray(halves.coords_RV3)[place.row, slots], 0, n, axis=1))
  out["out/subdivide/coords"] = np.concatenate(coords)
  return out


@case("f2_sparse_attention")
def attention(fixture: Fixture):
  k = fixture.kwargs
  width, heads, window = k["channels"], k["num_heads"], k["window_size"]
  found = packed(fixture, window=window)
  x = tensor(fixture, found)
  straight, shifted = x.level.windows
  out = {}
  for name in k["modules"]:
    params, rms = params_of(fixture, name), name.endswith("_rms")
    if name.startswith("cross"):
      make = functools.partial(_Cross, width, k["ctx_channels"], heads)
      module = loaded(make, names.cross_attention_rules(width, qk_rms_norm=rms), params)
      out[f"out/{name}"] = listed(found, run(module, x, per_object(fixture.inputs["ctx"])))
      continue
    make = functools.partial(SparseSelfAttention, width, heads, qk_rms_norm=rms)
    module = loaded(make, names.self_attention_rules(width, rms, ours="projections/"), params)
    order = None
    if name.startswith("win"):
      order = shifted if "shift" in name else straight
    out[f"out/{name}"] = listed(found, run(module, x, order))

  # windows, as the published code lists them
  for order, shift in ((straight, 0), (shifted, window // 2)):
    if f"out/window_rank_shift{shift}" in fixture.expected:
      for what, values in window_table(found, order).items():
        out[f"out/window_{what}_shift{shift}"] = values
  return out


def window_table(found: packing.Packed, order: packing.WindowOrder) -> dict[str, np.ndarray]:
  """Window of each voxel in the fixture's order, numbered through the batch; voxels and object of
  each window.
  """
  window_RV, inverse_RV = np.asarray(order.window_RV), np.asarray(order.inverse_RV)
  of_slot_RV1 = np.take_along_axis(window_RV, inverse_RV, 1)[..., None]
  rank = listed(found, of_slot_RV1)[:, 0]
  number = np.repeat(np.arange(len(found.places)), [place.count for place in found.places])
  _, first = np.unique(rank, return_index=True)
  return {"rank": rank, "sizes": np.bincount(rank), "batch": number[first]}


class _Cross(nnx.Module):
  """Attention of voxels to the tokens of their own object."""

  def __init__(self, width: int, cond_width: int, heads: int, *, rngs: nnx.Rngs):
    head_dim = width // heads
    self.q = Dense(width, (heads, head_dim), rngs=rngs)
    self.kv = Dense(cond_width, (2, heads, head_dim), rngs=rngs)
    self.out = Dense((heads, head_dim), width, rngs=rngs)

  def __call__(self, x: SparseTensor, tokens_RKSD):
    k, v = self.kv.parts(tokens_RKSD)
    own = Segments(x.level.object_RV, x.level.valid_RV)
    return self.out(attend_packed_cross(self.q(x.feats_RVC), k, v, own))


class _CrossBlock(nnx.Module):
  """A block of the Texture & Refinement flow model, over voxels."""

  def __init__(self, width: int, cond_width: int, heads: int, qk_rms_norm: bool, *, rngs: nnx.Rngs):
    self.adaln = Dense(width, (6, width), rngs=rngs)
    self.attn = SparseSelfAttention(width, heads, qk_rms_norm=qk_rms_norm, rngs=rngs)
    self.cross_norm = LayerNorm(width, eps=BLOCK_EPS)
    self.cross = _Cross(width, cond_width, heads, rngs=rngs)
    self.mlp = MLP(width, 4 * width, rngs=rngs)

  def __call__(self, x: SparseTensor, mod_RKD, tokens_RKSD) -> SparseTensor:
    of_slot = []
    for part in jnp.unstack(self.adaln(jax.nn.silu(mod_RKD)), axis=2):
      of_slot.append(sparse.per_slot(part, x.level))
    attn_shift, attn_scale, attn_gate, mlp_shift, mlp_scale, mlp_gate = of_slot
    h = x.of(layer_norm(x.feats_RVC, BLOCK_EPS) * (1 + attn_scale) + attn_shift)
    x = x.of(x.feats_RVC + attn_gate * self.attn(h))
    h = x.of(self.cross_norm(x.feats_RVC))
    x = x.of(x.feats_RVC + self.cross(h, tokens_RKSD))
    h = layer_norm(x.feats_RVC, BLOCK_EPS) * (1 + mlp_scale) + mlp_shift
    return x.of(x.feats_RVC + mlp_gate * self.mlp(h))


@case("f3_sparse_blocks")
def blocks(fixture: Fixture):
  k = fixture.kwargs
  width, out_width = k["channels"], k["res_out_channels"]
  # the shifted order is all that is used, whatever the shift: windows that are `2 shift` wide
  if k["shift_window"] * 2 != k["window_size"]:
    raise ValueError(f"shift_window = {k['shift_window']} is not half of the window")
  found = packed(fixture, neighbours=True, pooled=True, window=k["window_size"])
  x = tensor(fixture, found)
  r = tensor(fixture, found, "r").feats_RVC
  mod, context = per_object(fixture.inputs["mod"]), per_object(fixture.inputs["ctx"])

  # the modules with the fixture's parameters
  rms = "mod_cross.self_attn.q_rms_norm.gamma" in fixture.params
  cross_rules = _cross_block_rules(width, rms)
  res_rules = names_sparse.res_block_rules(width, out_width)
  make_cross = functools.partial(_CrossBlock, width, k["ctx_channels"], k["num_heads"], rms)
  make_res = functools.partial(SparseResBlock, width, out_width, mod.shape[-1])
  make_window = functools.partial(WindowBlock, width, k["num_heads"])
  cross = loaded(make_cross, cross_rules, params_of(fixture, "mod_cross"))
  res = loaded(make_res, res_rules, params_of(fixture, "res_block"))
  res_down = loaded(make_res, res_rules, params_of(fixture, "res_down"))
  window_rules = names_sparse.window_block_rules(width)
  window = loaded(make_window, window_rules, params_of(fixture, "win_block"))

  # what they give
  out = {
    "out/mod_cross": listed(found, run(cross, x, mod, context)),
    "out/res_block": listed(found, run(res, x, mod)),
    "out/win_block": listed(found, run(window, x, x.level.windows[1])),
  }
  down = run(res_down, coarse_tensor(x, found), mod)
  out["out/res_down/feats"], out["out/res_down/coords"] = listed_coarse(found, down)

  # and their gradients
  for name, module, rules, args in (
    ("mod_cross", cross, cross_rules, (x, mod, context)),
    ("res_block", res, res_rules, (x, mod)),
  ):
    for param, gradient in _gradients(module, rules, r, args).items():
      key = f"grad/{name}.{param}"
      if key in fixture.expected:
        out[key] = gradient
  return out


def _cross_block_rules(width: int, qk_rms_norm: bool) -> list[keys.Rule]:
  """Published names of `_CrossBlock`."""
  return [
    *names.adaln_rules(width),
    *names.layer_norm_rules("norm2", "cross_norm"),
    *names.self_attention_rules(width, qk_rms_norm, "self_attn.", "attn/projections/"),
    *names.cross_attention_rules(width, torch="cross_attn.", ours="cross/"),
    *names.affine_rules("mlp.mlp.0", "mlp/up"),
    *names.affine_rules("mlp.mlp.2", "mlp/down"),
  ]


def _gradients(module, rules, r_RVC, args) -> dict[str, np.ndarray]:
  """Gradients of sum(module(*args) * r), r cut to its width, under their published names."""
  graph, params = nnx.split(module)

  @jax.jit
  @jax.grad
  def gradient(params):
    y = nnx.merge(graph, params)(*args).feats_RVC
    return (y * r_RVC[..., : y.shape[-1]]).sum()

  merged = nnx.merge(graph, gradient(params))
  ours = {path: np.asarray(value) for path, value in parameters.flat_params(merged).items()}
  return keys.to_torch(rules, ours)


@case("g4")
def voxel_pruning(fixture: Fixture):
  coords_N4 = fixture.inputs["coords"]
  factor = fixture.kwargs["downsample_factor"]
  if factor != 2:
    raise ValueError(f"downsample_factor = {factor}: voxels are halved, nothing else")
  sample_N = coords_N4[:, 0]
  xyz_N3 = coords_N4[:, 1:]

  # ours takes one object, the published code all of a batch in one list
  def per_object(prune):
    parts = []
    for b in np.unique(sample_N):
      kept_V3 = prune(xyz_N3[sample_N == b])
      parts.append(np.insert(kept_V3, 0, b, axis=1))
    return np.concatenate(parts)

  def thick_surface(coords_V3):
    return voxels.surface(coords_V3, 2)

  # the factor that is reported, with one voxel too many and without
  _, halved_factor = voxels.limit(xyz_N3, max_voxels=len(xyz_N3) - 1)
  _, whole_factor = voxels.limit(xyz_N3)
  return {
    "out/prune_dist1": per_object(voxels.surface),
    "out/prune_dist2": per_object(thick_surface),
    "out/downsampled": per_object(voxels.halve),
    "out/downsample_factor": halved_factor,
    "out/no_downsample_factor": whole_factor,
  }

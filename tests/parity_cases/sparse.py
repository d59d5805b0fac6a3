"""Parity of the sparse layers (f1-f3) and of voxel pruning (g4). The fixtures' joined lists are
packed into padded rows, and unpacked again to be compared.
"""

import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models import parameters, sparse, sparse_windows
from sam3d_jax.models.attention import attend
from sam3d_jax.models.attention_layers import CrossAttention
from sam3d_jax.models.geometry_flow import (
  GeometryFlowConfig,
  StreamBlock,
  modulations,
)
from sam3d_jax.models.layers import Dense
from sam3d_jax.models.sparse_layers import (
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

PADDING = 3  # rows beyond the largest sample, so that padding takes part in every case


def packed(fixture: Fixture) -> sparse.SparseTensor:
  """The fixture's voxels as padded rows."""
  feats = fixture.inputs["feats"]
  coords = fixture.inputs["coords"]
  counts = np.bincount(coords[:, 0])
  size = int(counts.max()) + PADDING
  return sparse.pack(feats, coords, len(counts), size)


def listed(x: sparse.SparseTensor, feats=None) -> np.ndarray:
  """Features in the fixture's order."""
  if feats is not None:
    x = x.of(feats)
  listed_feats, _ = sparse.unpack(x)
  return listed_feats


def params_of(fixture: Fixture, module: str) -> dict[str, np.ndarray]:
  prefix = f"{module}."
  found = {}
  for name, array in fixture.params.items():
    if name.startswith(prefix):
      found[name.removeprefix(prefix)] = array
  return found


@case("f1_sparse_primitives")
def primitives(fixture: Fixture):
  k, x = fixture.kwargs, packed(fixture)
  channels, out_channels, factor = k["in_channels"], k["out_channels"], k["factor"]
  groups = int(re.match(r"(\d+) groups", k["group_norm"])[1])
  make = lambda rngs: nnx.Dict(
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
  near = jax.jit(sparse.neighbours)(x)
  out = {f"out/{name}": listed(x, modules[name](x.feats_BVC)) for name in ("linear", "conv1")}
  out |= {f"out/{name}": listed(modules[name](x, near)) for name in ("conv3", "conv3_nobias")}
  out["out/gn"] = listed(modules["gn"](x))
  coarse, parent = jax.jit(sparse.downsample, static_argnames="factor")(x, factor=factor)
  out["out/down/feats"], out["out/down/coords"] = sparse.unpack(coarse)
  doubled = coarse.of(2 * coarse.feats_BVC + 1)
  out["out/down_then_2x+1_then_up/feats"] = listed(sparse.upsample(doubled, parent, x))
  out["out/subdivide/feats"], out["out/subdivide/coords"] = sparse.unpack(sparse.subdivide(x))
  g_B1C = (
    jnp.arange(x.feats_BVC.shape[0] * channels, dtype=jnp.float32).reshape(-1, 1, channels) / 8
  )
  out["out/batch_broadcast_mul_add"] = listed(x, x.feats_BVC * (1 + g_B1C) + g_B1C)
  return out


@case("f2_sparse_attention")
def attention(fixture: Fixture):
  k, x = fixture.kwargs, packed(fixture)
  width, heads, window = k["channels"], k["num_heads"], k["window_size"]
  out = {}
  for name in k["modules"]:
    params, rms = params_of(fixture, name), name.endswith("_rms")
    if name.startswith("cross"):
      make = functools.partial(
        CrossAttention,
        width,
        k["ctx_channels"],
        heads,
        absorb_kv=False,
        qk_rms_norm=rms,
        dtype=jnp.float32,
        attention="auto",
      )
      module = loaded(make, names.cross_attention_rules(width, qk_rms_norm=rms), params)
      feats = run(module, x.feats_BVC, jnp.asarray(fixture.inputs["ctx"]))
    else:
      make = functools.partial(SparseSelfAttention, width, heads, qk_rms_norm=rms)
      module = loaded(make, names.self_attention_rules(width, rms, ours="projections/"), params)
      groups = (
        sparse_windows.windows(x, window, window // 2 if "shift" in name else 0)
        if name.startswith("win")
        else None
      )
      feats = _attended(module, x, groups, window)
    out[f"out/{name}"] = listed(x, feats)
  for key in fixture.expected:
    if key.startswith("out/window_rank_shift"):
      shift = int(key.removeprefix("out/window_rank_shift"))
      out |= {f"out/window_{n}_shift{shift}": v for n, v in window_table(x, window, shift).items()}
  return out


def _attended(module, x, groups, window):
  graph, params = nnx.split(module)
  return jax.jit(lambda params, x, groups: nnx.merge(graph, params)(x, groups, window))(
    params, x, groups
  )


def window_table(x: sparse.SparseTensor, window: int, shift: int) -> dict[str, np.ndarray]:
  """Window of each voxel in the fixture's order, numbered through the batch; voxels and sample of
  each window.
  """
  groups = jax.tree.map(np.asarray, sparse_windows.windows(x, window, shift))
  first = np.cumsum(groups.count_B) - groups.count_B
  rank = np.take_along_axis(groups.rank_BV, groups.inverse_BV, 1) + first[:, None]
  rank = np.concatenate([rank[b, :n] for b, n in enumerate(np.asarray(x.count_B))])
  return {
    "rank": rank,
    "sizes": np.bincount(rank),
    "batch": np.repeat(np.arange(len(first)), groups.count_B),
  }


class _CrossBlock(nnx.Module):
  """A block of the Texture & Refinement flow model: one stream of the Geometry model's, over
  voxels.
  """

  def __init__(self, cfg: GeometryFlowConfig, *, rngs: nnx.Rngs):
    self.adaln = Dense(cfg.width, (6, cfg.width), rngs=rngs)
    self.stream = StreamBlock(cfg, absorb_kv=False, rngs=rngs)

  def __call__(self, x: sparse.SparseTensor, mod_BD, tokens_BSD) -> sparse.SparseTensor:
    modulation = modulations(self.adaln, mod_BD)
    attended = attend(*self.stream.project(x.feats_BVC, modulation), key_count_B=x.count_B)
    return x.of(self.stream.finish(x.feats_BVC, attended, tokens_BSD, modulation))


@case("f3_sparse_blocks")
def blocks(fixture: Fixture):
  k, x = fixture.kwargs, packed(fixture)
  width, out_width = k["channels"], k["res_out_channels"]
  mod, context = jnp.asarray(fixture.inputs["mod"]), jnp.asarray(fixture.inputs["ctx"])
  r = sparse.pack(fixture.inputs["r"], fixture.inputs["coords"], *x.feats_BVC.shape[:2]).feats_BVC
  near = sparse.neighbours(x)
  cfg = GeometryFlowConfig(
    width=width,
    heads=k["num_heads"],
    cond_width=k["ctx_channels"],
    dtype="float32",
    qk_rms_norm="mod_cross.self_attn.q_rms_norm.gamma" in fixture.params,
  )
  cross_rules = names.adaln_rules(width) + names.stream_rules(
    width, cfg.qk_rms_norm, ours="stream/"
  )
  res_rules = names_sparse.res_block_rules(width, out_width)
  make_res = functools.partial(SparseResBlock, width, out_width, mod.shape[-1])
  cross = loaded(functools.partial(_CrossBlock, cfg), cross_rules, params_of(fixture, "mod_cross"))
  res = loaded(make_res, res_rules, params_of(fixture, "res_block"))
  out = {
    "out/mod_cross": listed(run(cross, x, mod, context)),
    "out/res_block": listed(run(res, x, near, mod)),
  }
  window = loaded(
    functools.partial(WindowBlock, width, k["num_heads"], k["window_size"]),
    names_sparse.window_block_rules(width),
    params_of(fixture, "win_block"),
  )
  out["out/win_block"] = listed(
    run(window, x, sparse_windows.windows(x, k["window_size"], k["shift_window"]))
  )
  res_down = loaded(make_res, res_rules, params_of(fixture, "res_down"))
  coarse, _ = sparse.downsample(x)
  out["out/res_down/feats"], out["out/res_down/coords"] = sparse.unpack(
    run(res_down, coarse, sparse.neighbours(coarse), mod)
  )
  for name, module, rules, args in (
    ("mod_cross", cross, cross_rules, (x, mod, context)),
    ("res_block", res, res_rules, (x, near, mod)),
  ):
    grads = {f"grad/{name}.{p}": v for p, v in _gradients(module, rules, r, args).items()}
    out |= {key: v for key, v in grads.items() if key in fixture.expected}
  return out


def _gradients(module, rules, r, args) -> dict[str, np.ndarray]:
  """Gradients of sum(module(*args) * r), r cut to its width, under their published names."""
  graph, params = nnx.split(module)

  @jax.jit
  @jax.grad
  def gradient(params):
    y = nnx.merge(graph, params)(*args).feats_BVC
    return (y * r[..., : y.shape[-1]]).sum()

  return keys.to_torch(
    rules,
    {
      p: np.asarray(v)
      for p, v in parameters.flat_params(nnx.merge(graph, gradient(params))).items()
    },
  )


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

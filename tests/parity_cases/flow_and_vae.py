"""Parity of the flow model's parts (a*), attention and blocks (b*) and the structure VAE (e*)."""

from collections.abc import Callable
import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models import parameters, volumes
from sam3d_jax.models import structure_vae as vae
from sam3d_jax.models.attention import attend
from sam3d_jax.models.attention_layers import CrossAttention, SelfAttention
from sam3d_jax.models.geometry_flow import (
  GeometryFlow,
  GeometryFlowConfig,
  LatentProjection,
  MoTBlock,
  StreamBlock,
  modulations,
  mot_attend,
)
from sam3d_jax.models.layers import (
  Dense,
  HeadRMSNorm,
  TimestepEmbedder,
  grid_positions,
  position_sincos,
  sinusoid,
)
from sam3d_jax.torch_bridge import keys
from sam3d_jax.torch_bridge import names_geometry as names
from tests.parity import Fixture, case

LATENTS = {torch: ours for ours, torch in names.LATENT_NAMES.items()}
STREAMS = {torch: ours for ours, torch in names.STREAM_NAMES.items()}


def loaded(
  make: Callable[..., nnx.Module], rules: list[keys.Rule], params: dict[str, np.ndarray]
) -> nnx.Module:
  """The module `make(rngs=...)` with the fixture's parameters, every one of which must be used;
  nothing is initialised.
  """
  module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
  parameters.load_params(module, keys.to_ours(rules, params, parameters.flat_shapes(module)))
  return module


def run(module: nnx.Module, *args):
  """The module's answer, compiled as a whole."""
  graph, params = nnx.split(module)
  return jax.jit(lambda params, *args: nnx.merge(graph, params)(*args))(params, *args)


def ours(arrays: dict[str, np.ndarray], renamed: dict[str, str]) -> dict[str, np.ndarray]:
  return {renamed[k]: v for k, v in arrays.items()}


def named(prefix: str, arrays: dict, renamed: dict[str, str]) -> dict:
  """Arrays under our names as fixture entries `prefix/<published name>`."""
  return {f"{prefix}/{torch}": arrays[mine] for torch, mine in renamed.items() if mine in arrays}


def expected_grads(
  fixture: Fixture, group: str, params: dict[str, jax.Array], inputs: dict, rules: list[keys.Rule]
) -> dict:
  """The gradients that the fixture lists under grad/<group>, from gradients of our parameters and
  of named inputs.
  """
  every = {}
  for name, gradient in keys.to_torch(rules, params).items():
    every[f"grad/{group}/{name}"] = gradient
  for name, gradient in inputs.items():
    every[f"grad/{group}/in:{name}"] = gradient
  return {k: v for k, v in every.items() if k in fixture.expected}


def channels_last(x):
  return jnp.moveaxis(jnp.asarray(x), 1, -1)


def channels_first(x):
  return jnp.moveaxis(x, -1, 1)


@case("a1_timestep_embedder")
def timestep_embedder(fixture: Fixture):
  k = fixture.kwargs
  make = functools.partial(
    TimestepEmbedder, k["hidden_size"], frequencies=k["frequency_embedding_size"]
  )
  module = loaded(make, names.timestep_embedder_rules(), fixture.params)
  t = jnp.asarray(fixture.inputs["t"])
  return {
    "out/sinusoid": sinusoid(t, k["frequency_embedding_size"]),
    "out/emb": module(t),
    "out/emb_scalar": module(t[3:4]),
  }


@case("a2_multihead_rmsnorm")
def head_rms_norm(fixture: Fixture):
  make = lambda rngs: HeadRMSNorm(fixture.kwargs["heads"], fixture.kwargs["dim"])
  module = loaded(make, [keys.Rule("gamma", "scale")], fixture.params)
  return {"out/y": module(jnp.asarray(fixture.inputs["x"]))}


@case("a3_absolute_position_embedder")
def absolute_positions(fixture: Fixture):
  coords = jnp.asarray(fixture.inputs["coords"])
  width = fixture.kwargs["channels"]
  halved = coords.astype(jnp.float32) * 0.5
  return {
    "out/emb": position_sincos(coords, width),
    "out/emb_from_float": position_sincos(halved, width),
  }


@case("a4_latent_mappings")
def latent_projections(fixture: Fixture):
  k = fixture.kwargs
  cfg = GeometryFlowConfig(
    width=k["model_channels"],
    heads=1,
    shape_resolution=k["shape_resolution"],
    latent_channels=k["in_channels"]["shape"],
  )
  table = position_sincos(grid_positions(cfg.shape_resolution), cfg.width)
  out = {}
  for torch, channels in k["in_channels"].items():
    name = LATENTS[torch]
    positions = 0 if name == "shape" else k["token_len"]
    make = functools.partial(LatentProjection, channels, cfg.width, learned_positions=positions)
    params = {
      n.removeprefix(f"{torch}."): v for n, v in fixture.params.items() if n.startswith(f"{torch}.")
    }
    module = loaded(make, names.latent_rules(cfg, name, "", ""), params)
    out[f"out/{torch}/to_input"] = module.embed(jnp.asarray(fixture.inputs[f"{torch}/x"]), table)
    out[f"out/{torch}/to_output"] = module.readout(jnp.asarray(fixture.inputs[f"{torch}/h"]))
    if name == "shape":
      np.testing.assert_allclose(table, params["pos_emb"], atol=fixture.tol)
  return out


@case("b0_dense_attention")
def dense_attention(fixture: Fixture):
  k = fixture.kwargs
  width, heads = k["channels"], k["num_heads"]
  x, pose, context = (jnp.asarray(fixture.inputs[n]) for n in ("x", "pose", "ctx"))
  out = {}
  for name, spec in k["modules"].items():
    rms = "qk_rms_norm" in spec
    params = {
      n.removeprefix(f"{name}."): v for n, v in fixture.params.items() if n.startswith(f"{name}.")
    }
    if name == "mot":
      attended = _mot(width, heads, rms, {"shape": x, "layout": pose}, params)
      out |= {"out/mot_shape": attended["shape"], "out/mot_pose": attended["layout"]}
    elif "type=cross" in spec:
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
      out[f"out/{name}"] = loaded(
        make, names.cross_attention_rules(width, qk_rms_norm=rms), params
      )(x, context)
    else:
      make = functools.partial(SelfAttention, width, heads, qk_rms_norm=rms, dtype=jnp.float32)
      module = loaded(make, names.self_attention_rules(width, rms), params)
      out[f"out/{name}"] = module.out(attend(*module.project(x)))
  return out


def _mot(width, heads, rms, x, params):
  # one projection a stream
  rules = []
  for torch, s in STREAMS.items():
    rules += names.self_attention_rules(
      width,
      rms,
      ours=f"{s}/",
      stream=f".{torch}",
    )
  make = functools.partial(
    SelfAttention,
    width,
    heads,
    qk_rms_norm=rms,
    dtype=jnp.float32,
  )

  def streams(rngs):
    return nnx.Dict({s: make(rngs=rngs) for s in x})

  modules = loaded(streams, rules, params)

  # they meet in the attention
  q, k, v = {}, {}, {}
  for s in x:
    q[s], k[s], v[s] = modules[s].project(x[s])
  attended = mot_attend(q, k, v, backend="auto")
  return {s: modules[s].out(attended[s]) for s in x}


def _block_config(k: dict) -> GeometryFlowConfig:
  return GeometryFlowConfig(
    width=k["channels"],
    heads=k["num_heads"],
    cond_width=k["ctx_channels"],
    mlp_ratio=k.get("mlp_ratio", 4.0),
    qk_rms_norm=k["qk_rms_norm"],
    dtype="float32",
  )


@case("b1_mot_block")
def mot_block(fixture: Fixture):
  cfg = _block_config(fixture.kwargs)
  rules = names.mot_block_rules(cfg.width, cfg.qk_rms_norm)
  graph, params = nnx.split(loaded(functools.partial(MoTBlock, cfg), rules, fixture.params))
  x, r = (ours(fixture.group(f"in/{n}"), STREAMS) for n in ("x", "r"))

  @jax.jit
  def forward(params, x, mod, context):
    return nnx.merge(graph, params)(x, mod, context)

  def loss(params, x, mod, context, streams):
    y = forward(params, x, mod, context)
    return sum((y[s] * r[s]).sum() for s in streams)

  args = (params, x, fixture.inputs["mod"], fixture.inputs["ctx"])
  out = named("out", forward(*args), STREAMS)
  for group, streams in (("all", ("shape", "layout")), ("pose_only", ("layout",))):
    grads, x_bar, mod_bar, context_bar = jax.grad(loss, argnums=(0, 1, 2, 3))(*args, streams)
    inputs = {torch: x_bar[s] for torch, s in STREAMS.items()} | {
      "mod": mod_bar,
      "ctx": context_bar,
    }
    out |= expected_grads(
      fixture, group, parameters.flat_params(nnx.merge(graph, grads)), inputs, rules
    )
  return out


def flow_config(k: dict) -> GeometryFlowConfig:
  """From the published constructor's arguments; times come in the sinusoid's units, so nothing is
  left to scale.
  """
  shape = re.fullmatch(
    r"Latent\((\d+), *\d+, *ShapePositionEmbedder\(\d+, *(\d+), *1\)\)",
    k["latent_mapping"]["shape"],
  )
  return GeometryFlowConfig(
    width=k["model_channels"],
    depth=k["num_blocks"],
    heads=k["num_heads"],
    mlp_ratio=k["mlp_ratio"],
    cond_width=k["cond_channels"],
    shape_resolution=int(shape[2]),
    latent_channels=int(shape[1]),
    qk_rms_norm=k["qk_rms_norm"],
    shortcut=k["is_shortcut_model"],
    time_scale=1.0,
    dtype="float32",
  )


@case("b2_ss_flow_wrapper")
def flow_model(fixture: Fixture):
  cfg = flow_config(fixture.kwargs)
  rules = names.backbone_rules(cfg)
  graph, params = nnx.split(loaded(functools.partial(GeometryFlow, cfg), rules, fixture.params))
  x, r = (ours(fixture.group(f"in/{n}"), LATENTS) for n in ("x", "r"))
  t, d, tokens = (fixture.inputs[n] for n in ("t", "d", "cond"))

  @jax.jit
  def forward(params, x, tokens, t, d=None):
    return nnx.merge(graph, params)(x, t, tokens, d)

  def loss(params, x, tokens, latents):
    y = forward(params, x, tokens, t, d)
    return sum((y[m] * r[m]).sum() for m in latents)

  out = named("out/td", forward(params, x, tokens, t, d), LATENTS)
  out |= named("out/t_only", forward(params, x, tokens, t), LATENTS)
  out |= named("out/cfg_flag", forward(params, x, tokens * 0, t, d), LATENTS)
  out |= named("out/t1_broadcast", forward(params, x, tokens, t[1:2], d[1:2]), LATENTS)
  for group, latents in (("all", tuple(r)), ("layout_only", tuple(m for m in r if m != "shape"))):
    grads, x_bar, tokens_bar = jax.grad(loss, argnums=(0, 1, 2))(params, x, tokens, latents)
    inputs = {f"x.{torch}": x_bar[m] for torch, m in LATENTS.items()} | {"cond": tokens_bar}
    out |= expected_grads(
      fixture, group, parameters.flat_params(nnx.merge(graph, grads)), inputs, rules
    )
  return out


class _ModulatedBlock(nnx.Module):
  """One stream on its own, with its own modulation."""

  def __init__(self, cfg: GeometryFlowConfig, *, rngs: nnx.Rngs):
    self.adaln = Dense(cfg.width, (6, cfg.width), rngs=rngs)
    self.stream = StreamBlock(cfg, absorb_kv=False, rngs=rngs)

  def __call__(self, x_BLD, mod_BD, tokens_BSD):
    modulation = modulations(self.adaln, mod_BD)
    return self.stream.finish(
      x_BLD, attend(*self.stream.project(x_BLD, modulation)), tokens_BSD, modulation
    )


@case("b3_modulated_cross_block")
def modulated_block(fixture: Fixture):
  cfg = _block_config(fixture.kwargs)
  rules = names.adaln_rules(cfg.width) + names.stream_rules(
    cfg.width, cfg.qk_rms_norm, ours="stream/"
  )
  module = loaded(functools.partial(_ModulatedBlock, cfg), rules, fixture.params)
  return {"out/y": run(module, *(fixture.inputs[n] for n in ("x", "mod", "ctx")))}


@case("e0_vae_blocks")
def vae_blocks(fixture: Fixture):
  c, out_c = fixture.kwargs["channels"], fixture.kwargs["out_channels"]
  make = lambda rngs: nnx.Dict(
    {
      "res": vae.ResBlock3D(c, out_c, rngs=rngs),
      "res_same": vae.ResBlock3D(c, c, rngs=rngs),
      "down": volumes.Downsample3D(c, out_c, rngs=rngs),
      "up": volumes.Upsample3D(c, out_c, rngs=rngs),
    }
  )
  rules = names.resblock_rules("res.", "res/", skip=c != out_c) + names.resblock_rules(
    "res_same.", "res_same/"
  )
  rules += names.conv_rules("down.conv", "down") + names.conv_rules("up.conv", "up")
  modules = loaded(make, rules, fixture.params)
  x = channels_last(fixture.inputs["x"])
  out = {name: module(x) for name, module in modules.items()}
  shuffle = lambda x: volumes.depth_to_space(volumes.channels_fastest(x, 2), 2)
  out["pixel_shuffle_3d"] = shuffle(channels_last(fixture.inputs["ps"]))
  patches = volumes.space_to_depth(channels_last(fixture.inputs["pa"]), 2)
  # published: channel slowest
  out["patchify2"] = (
    patches.reshape(*patches.shape[:-1], 8, -1).swapaxes(-1, -2).reshape(patches.shape)
  )
  out["unpatchify2"] = shuffle(out["patchify2"])
  return {f"out/{name}": channels_first(y) for name, y in out.items()}


def vae_config(k: dict, channels: list[int], resolution: int) -> vae.StructureVAEConfig:
  return vae.StructureVAEConfig(
    resolution=resolution,
    latent_channels=k["latent_channels"],
    channels=tuple(channels),
    res_blocks=k["num_res_blocks"],
    middle_blocks=k["num_res_blocks_middle"],
  )


@case("e1_ss_encoder")
def structure_encoder(fixture: Fixture):
  occupancy = jnp.asarray(fixture.inputs["occupancy"])[:, 0]
  side = occupancy.shape[-1]
  cfg = vae_config(fixture.kwargs, fixture.kwargs["channels"], side)
  encoder = loaded(
    functools.partial(vae.StructureEncoder, cfg),
    names.structure_encoder_rules(cfg),
    fixture.params,
  )
  mean, logvar = map(channels_first, run(encoder, occupancy))
  std = jnp.exp(0.5 * logvar)
  return {
    "out/mean": mean,
    "out/logvar": logvar,
    "out/mode_z": mean,
    "out/sampled_z": mean + std * fixture.inputs["noise"],
  }


@case("e2_ss_decoder")
def structure_decoder(fixture: Fixture):
  z = channels_last(fixture.inputs["z"])
  tokens = jnp.asarray(fixture.inputs["tokens"])
  # ours lists the finest level first
  channels = fixture.kwargs["channels"][::-1]
  side = z.shape[1] * 2 ** (len(channels) - 1)
  cfg = vae_config(fixture.kwargs, channels, side)
  decoder = loaded(
    functools.partial(vae.StructureDecoder, cfg),
    names.structure_decoder_rules(cfg),
    fixture.params,
  )
  logits = run(decoder, z)
  from_tokens = run(decoder, volumes.tokens_to_grid(tokens))[:, None]
  return {
    "out/logits": logits[:, None],
    "out/logits_from_tokens_pipeline": from_tokens,
    "out/logits_reshape_input_to_cube": from_tokens,
    "out/coords": np.argwhere(np.asarray(logits) > 0),
  }

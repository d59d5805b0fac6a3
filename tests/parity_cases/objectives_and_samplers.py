"""Parity cases of objectives (d1, d4), samplers and guidance (d2, d3, d5, d6)."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models import parameters
from sam3d_jax.models.geometry_flow import GeometryFlow, GeometryFlowConfig
from sam3d_jax.objectives import flow_matching, paths, shortcut
from sam3d_jax.sampling import generate, guidance, solvers
from sam3d_jax.torch_bridge import keys
from sam3d_jax.torch_bridge.names_geometry import LATENT_NAMES, backbone_rules
from tests.parity import Fixture, case

TIME_SCALE = 1000.0  # the published models take t and d times this
P_UNCONDITIONAL = 0.1  # of the generator that made d4
# for programs that run once
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
OURS = {torch: ours for ours, torch in LATENT_NAMES.items()}


def tiny_velocity(params):
  """The fixtures' analytic network: v = tanh(x A + t b + d e + c C) D with c the mean token, or
  `null` without tokens.
  """

  def velocity(x, t_B, tokens_BSD, d_B=None):
    def one(k, x_BNC):
      c_BD = params["null"][None] if tokens_BSD is None else tokens_BSD.mean(1)
      hidden = (
        x_BNC @ params[f"A_{k}"]
        + t_B[:, None, None] * params[f"b_{k}"]
        + (c_BD @ params[f"C_{k}"])[:, None]
      )
      if d_B is not None:
        hidden = hidden + d_B[:, None, None] * params[f"e_{k}"]
      return jnp.tanh(hidden) @ params[f"D_{k}"]

    return {k: one(k, v) for k, v in x.items()}

  return velocity


def everywhere(latents):
  """`present` of a batch that lacks nothing."""
  return {k: np.ones(len(v), bool) for k, v in latents.items()}


def flow_matching_pass(params, noise, data, tokens, t_B, weights, sigma_min):
  x_t, target = flow_matching.masked_inputs(noise, data, everywhere(data), t_B, sigma_min)
  prediction = tiny_velocity(params)(x_t, t_B, tokens)
  loss, parts, _ = flow_matching.weighted_errors(prediction, target, everywhere(data), weights)
  return loss, (x_t, target, prediction, parts)


@case("d1")
def flow_matching_loss(fixture: Fixture):
  data, noise, cond = (
    fixture.group("in/x1"),
    fixture.group("in/x0"),
    jnp.asarray(fixture.inputs["cond"]),
  )
  weights, sigma_min = fixture.kwargs["loss_weights"], fixture.kwargs["sigma_min"]
  t_B = paths.lognormal_time(jnp.asarray(fixture.inputs["randn_for_t"]), mean=-1.0, std=1.0)
  params = {k: jnp.asarray(v) for k, v in fixture.params.items() if not k.startswith("single/")}
  one_pass = lambda p: flow_matching_pass(p, noise, data, cond, t_B, weights, sigma_min)
  run = jax.jit(jax.value_and_grad(one_pass, has_aux=True), compiler_options=QUICK)
  (loss, (x_t, target, prediction, parts)), grads = run(params)
  out = {"out/t": t_B, "out/loss": loss, "out/detail/flow_matching_loss": loss}
  for k in data:
    out |= {
      f"out/x_t/{k}": x_t[k],
      f"out/target/{k}": target[k],
      f"out/pred/{k}": prediction[k],
      f"out/detail/{k}": weights[k] * parts[k],
    }
  single = fixture.group("in/single")
  loss, _ = flow_matching_pass(
    fixture.group("param/single"),
    {"x": single["x0"]},
    {"x": single["x1"]},
    cond,
    t_B,
    {"x": 1.0},
    sigma_min,
  )
  return (
    out
    | {"out/single/loss": loss}
    | {f"grad/loss/{k}": grads[k] for k in fixture.group("grad/loss")}
  )


@case("d2")
def solver_trajectories(fixture: Fixture):
  noise, cond = fixture.group("in/x0"), jnp.asarray(fixture.inputs["cond"])
  velocity = tiny_velocity({k: jnp.asarray(v) for k, v in fixture.params.items()})
  field = solvers.constant(lambda x, t: velocity(x, t[None], cond))
  steps = fixture.kwargs["inference_steps"]

  def trajectory(grid, solver, fixed=None):
    return jax.jit(
      lambda x: solvers.integrate(field, x, grid, solver=solver, fixed=fixed, trajectory=True)[1],
      compiler_options=QUICK,
    )(noise)

  out = {}
  for name, how in fixture.kwargs["cases"].items():
    grid = paths.time_grid(steps, how["rescale_t"], reverse=how["reversed_timestamp"])
    out |= {f"out/{name}/t_seq": grid, f"out/{name}/t_yield": grid[:-1]}
    out |= {f"out/{name}/traj/{k}": v for k, v in trajectory(grid, how["solver_method"]).items()}
  override = trajectory(paths.time_grid(steps, 3.0), "euler", fixture.group("in/noise_override"))
  return out | {f"out/conditional_override/traj/{k}": v for k, v in override.items()}


@case("d3")
def classifier_free_guidance(fixture: Fixture):
  x, cond = fixture.group("in/x"), jnp.asarray(fixture.inputs["cond"])
  pointmap = jnp.asarray(fixture.inputs["cond_pointmap"])
  velocity = tiny_velocity({k: jnp.asarray(v) for k, v in fixture.params.items()})
  with_pointmap = jnp.concatenate([cond, pointmap], 1)
  without_pointmap = jnp.concatenate([cond, jnp.zeros_like(pointmap)], 1)

  def sampled(how, t):
    """Guidance of the sampler. Without tokens the stand-in uses its own null condition; with the
    flag it zeroes them, as ours
    does.
    """
    interval = rescaled(how["interval"])
    strengths = guidance.strengths_at(t, how["strength"], interval, tuple(x))
    if how.get("cls") == "PointmapCFG":
      return generate.guided_velocity(
        velocity,
        with_pointmap,
        None,
        strengths,
        pointmap_guidance=how["strength_pm"],
        tokens_without_pointmap_BSD=without_pointmap,
      )
    if how["unconditional_handling"] in ("discard", "drop_tensors"):

      def field(x, t):
        c = velocity(x, t[None], cond)
        return (
          c
          if strengths is None
          else guidance.combine(c, velocity(x, t[None], None), dict(strengths))
        )

      return field
    return generate.guided_velocity(velocity, cond, None, strengths)

  def trained(how):
    """The condition drop of training."""
    p = (
      how["self_p_unconditional"]
      if how["p_unconditional_arg"] is None
      else how["p_unconditional_arg"]
    )
    tokens = flow_matching.drop_tokens(cond, jnp.full(len(cond), how["coin"]), p)
    return lambda x, t: velocity(x, t[None], tokens)

  out = {}
  for name, how in fixture.kwargs.items():
    t = how["t"] / TIME_SCALE
    field = (
      trained(how) if how.get("cls") == "WithExternalUnconditionalProbability" else sampled(how, t)
    )
    out |= {
      f"out/{name}/{k}": v
      for k, v in jax.jit(field, compiler_options=QUICK)(x, jnp.float32(t)).items()
    }
  return out


def rescaled(interval):
  """An interval of 1000 t, or one a latent, as an interval of t."""
  if isinstance(interval, dict):
    return {k: rescaled(v) for k, v in interval.items()}
  return None if interval is None else tuple(v / TIME_SCALE for v in interval)


def flow_model(fixture: Fixture):
  """The tiny flow model of a fixture with its parameters, and the rules that name them."""
  w, params = fixture.kwargs["wrapper"], fixture.params
  cfg = GeometryFlowConfig(
    width=w["model_channels"],
    depth=w["num_blocks"],
    heads=w["num_heads"],
    mlp_ratio=w.get("mlp_ratio", 4.0),
    cond_width=w["cond_channels"],
    shape_resolution=w["shape_resolution"],
    qk_rms_norm=w.get("qk_rms_norm", True),
    latent_channels=params["latent_mapping.shape.input_layer.weight"].shape[1],
    shortcut=any(k.startswith("d_embedder.") for k in params),
    time_scale=TIME_SCALE,
    dtype="float32",
  )
  model, rules = nnx.eval_shape(lambda: GeometryFlow(cfg, rngs=nnx.Rngs(0))), backbone_rules(cfg)
  parameters.load_params(model, keys.to_ours(rules, params, parameters.flat_shapes(model)))
  return model, rules


def ours(latents):
  """Latents under our names."""
  return {OURS[k]: jnp.asarray(v) for k, v in latents.items()}


class Draws:
  """The scripted draws of one d4 case, in the order in which the published loss makes them."""

  def __init__(self, how, given):
    coins, batch = iter(given["random_random"].tolist()), how["batch"]
    whole = how["batch_mode"]
    count = (
      (batch if next(coins) < how["self_consistency_prob"] else 0)
      if whole
      else int(batch * how["self_consistency_prob"])
    )
    half_steps_B = np.zeros(batch, np.float32)
    half_steps_B[:count] = given["choices"]
    self.d_B = half_steps_B[given["randperm"]]
    self.rows = np.flatnonzero(self.d_B > 0)
    self.main_coin = next(coins)
    ratio = how["ratio_cfg_samples_in_self_consistency_target"]
    self.guided_rows, self.fed_d_B, latents = 0, None, None
    if count:
      if whole:
        self.guided_rows, latents = (
          (count if next(coins) < ratio else 0),
          tuple(OURS[k] for k in how["cfg_modalities"]),
        )
      else:
        self.guided_rows = int(count * ratio)
      if next(coins) < how.get("fm_in_shortcut_target_prob", 0.0):
        self.fed_d_B = jnp.zeros(count)
    self.target = shortcut.ConsistencyTarget(
      how["self_consistency_cfg_strength"], latents, self.guided_rows
    )


def shortcut_case(how, given, forward, graph, params, rules, wanted):
  """All arrays of one d4 case, without the case's name. forward: the compiled model, which the
  cases share; the rest runs as it is.
  """
  data, noise = ours(given["x1"]), ours(given["x0"])
  weights = {OURS[k]: v for k, v in how["loss_weights"].items()}
  drawn, cond = Draws(how, given), jnp.asarray(given["cond"])
  t_B = paths.lognormal_time(jnp.asarray(given["randn_for_t"]), mean=-1.0, std=1.0)
  main_tokens = flow_matching.drop_tokens(
    cond, jnp.full(how["batch"], drawn.main_coin), P_UNCONDITIONAL
  )
  calls = []

  def total(params):
    calls.clear()
    velocity = functools.partial(forward, params)

    def target_velocity(x, t, tokens, d):
      calls.append((t, d, (tokens == 0).all()))
      return velocity(x, t, tokens, d)

    terms = shortcut.shortcut_terms(
      velocity,
      target_velocity,
      noise,
      data,
      everywhere(data),
      t_B,
      jnp.asarray(drawn.d_B),
      cond,
      main_tokens_BSD=main_tokens,
      consistency_rows=drawn.rows,
      weights=weights,
      how=drawn.target,
      fed_d_B=drawn.fed_d_B,
      sigma_min=how["sigma_min"],
    )
    return terms.flow + how.get("shortcut_loss_weight", 1.0) * terms.consistency, (
      terms,
      tuple(calls),
    )

  (loss, (terms, made)), grads = jax.value_and_grad(total, has_aux=True)(params)
  torch_grads = keys.to_torch(
    rules, {k: np.asarray(v) for k, v in parameters.flat_params(nnx.merge(graph, grads)).items()}
  )
  out = {
    "t": t_B,
    "d": drawn.d_B,
    "loss": loss,
    "pred_d_fed": 2 * drawn.d_B * TIME_SCALE,
    "detail/flow_matching_loss": terms.flow,
    "detail/self_consistency_loss": terms.consistency,
  }
  out |= {f"pred/{LATENT_NAMES[k]}": v for k, v in terms.prediction.items()}
  if len(drawn.rows):
    padded = lambda a: np.pad(
      np.asarray(a) * TIME_SCALE, (0, how["batch"] - len(a)), constant_values=-1
    )
    out |= {f"sc_target/{LATENT_NAMES[k]}": v for k, v in terms.target.items()}
    out |= {
      "sc_t": t_B[drawn.rows],
      "sc_d": drawn.d_B[drawn.rows],
      "target_calls_t": np.stack([padded(t) for t, _, _ in made]),
      "target_calls_d": np.stack([padded(d) for _, d, _ in made]),
      "target_calls_p_uncond": np.asarray([float(empty) for _, _, empty in made]),
    }
  return {f"out/{k}": v for k, v in out.items()}, {k: torch_grads[k] for k in wanted}


@case("d4")
def shortcut_loss(fixture: Fixture):
  model, rules = flow_model(fixture)
  graph, params = nnx.split(model)
  compiled = jax.jit(lambda params, x, t, tokens, d: nnx.merge(graph, params)(x, t, tokens, d))
  most = max(how["batch"] for how in fixture.kwargs["cases"].values())
  widen = jax.jit(lambda rows, arrays: jax.tree.map(lambda a: a[rows], arrays))
  narrow = jax.jit(lambda count, y: {k: v[:count] for k, v in y.items()}, static_argnums=0)

  def forward(params, x, t, tokens, d):
    """All batches in the rows of the largest, the last row repeated: one program for them all."""
    rows = np.minimum(np.arange(most), len(t) - 1)
    return narrow(len(t), compiled(params, *widen(rows, (x, t, tokens, d))))

  out = {}
  for name, how in fixture.kwargs["cases"].items():
    given = fixture.group(f"in/{name}")
    given |= {end: fixture.group(f"in/{name}/{end}") for end in ("x0", "x1")}
    arrays, grads = shortcut_case(
      how, given, forward, graph, params, rules, fixture.group(f"grad/{name}")
    )
    out |= {k.replace("out/", f"out/{name}/", 1): v for k, v in arrays.items()}
    out |= {f"grad/{name}/{k}": v for k, v in grads.items()}
  return out


@case("d5")
def time_grids(fixture: Fixture):
  out = {}
  for n in fixture.kwargs["steps"]:
    for off in (0, 1):
      cfg = generate.SamplerConfig(steps=n, shortcut=not off)
      out[f"out/shortcut/steps{n}_d_no_shortcut{off}"] = np.float32(cfg.step_size())
    for r in fixture.kwargs["rescale_t"]:
      for reverse in (0, 1):
        grid = paths.time_grid(n, r, reverse=bool(reverse))
        out |= {
          f"out/flow/steps{n}_r{r:g}_rev{reverse}": grid,
          f"out/shortcut/steps{n}_r{r:g}_rev{reverse}_t": grid,
        }
  return out


@case("d6")
def stage1_sampling(fixture: Fixture):
  graph, params = nnx.split(flow_model(fixture)[0])
  noise, cond = ours(fixture.group("in/x0")), jnp.asarray(fixture.inputs["cond"])
  out = {}
  for name, how in fixture.kwargs["cases"].items():
    cfg = generate.SamplerConfig(
      steps=how["inference_steps"],
      method=how["solver"],
      rescale_t=how["rescale_t"],
      guidance=how["strength"],
      interval=rescaled(how["interval"]),
      shortcut=not how["no_shortcut"],
    )

    def run(params, cfg=cfg):
      d = jnp.full(1, cfg.step_size())
      return generate.integrate_noise(
        nnx.merge(graph, params), noise, cond, cfg, d=d, trajectory=True
      )[1]

    out[f"out/{name}/t_yield"] = cfg.grid()[:-1]
    out |= {
      f"out/{name}/traj/{LATENT_NAMES[k]}": v
      for k, v in jax.jit(run, compiler_options=QUICK)(params).items()
    }
  return out

"""Laws of the solvers, of guidance and of the voxel step."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.batch import Conditioning
from sam3d_jax.models.geometry_flow import GeometryFlow, GeometryFlowConfig
from sam3d_jax.objectives import draws, paths
from sam3d_jax.sampling import generate, guidance, solvers, voxels
from sam3d_jax.sampling.generate import SamplerConfig
from tests.support.counting_model import SHAPES, CountingModel, condition, keys, quick_jit, sample


def solve(field, x0, steps, solver):
  grid = paths.time_grid(steps)
  velocity_at = solvers.constant(field)

  def run(x):
    end = solvers.integrate(velocity_at, {"x": x}, grid, solver=solver)
    return end["x"]

  start = jnp.asarray(x0, jnp.float32)
  return np.asarray(quick_jit(run)(start))


# ---- grids and solvers


def test_grid_runs_from_zero_to_one_and_rescaling_crowds_the_noise_end():
  grid = paths.time_grid(25, 3.0)
  assert grid[0] == 0.0 and grid[-1] == 1.0 and np.all(np.diff(grid) > 0)
  assert np.all(np.diff(np.diff(grid)) > 0) and grid[12] < 0.3
  np.testing.assert_array_equal(paths.time_grid(4, 1.0), [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_array_equal(paths.time_grid(4, 0.0), paths.time_grid(4, 1.0))
  np.testing.assert_allclose(paths.time_grid(4, 3.0, reverse=True), 1 - paths.time_grid(4, 3.0))
  with pytest.raises(ValueError, match="at least one step"):
    paths.time_grid(0)


def test_euler_on_a_linear_field_has_its_closed_form():
  got = solve(lambda x, t: {"x": -2.0 * x["x"]}, [1.0, 3.0], 10, "euler")
  np.testing.assert_allclose(got, np.asarray([1.0, 3.0]) * 0.8**10, rtol=1e-5)


@pytest.mark.parametrize("solver, order", [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(solver, order):
  def field(x, t):
    # logistic growth
    return {"x": 4.0 * x["x"] * (1.0 - x["x"])}

  def error(steps):
    found = solve(field, 0.1, steps, solver)
    return abs(float(found) - exact)

  exact = 0.1 / (0.1 + 0.9 * np.exp(-4.0))
  ratio = error(4) / error(8)
  assert 2 ** (order - 0.75) < ratio < 2 ** (order + 0.75)


def test_trajectory_ends_in_the_result_and_fixed_latents_never_move():
  fixed = {"b": jnp.full((2,), 7.0)}
  field = solvers.constant(lambda x, t: {"a": x["b"], "b": x["b"]})
  grid = paths.time_grid(4)

  def run(x):
    return solvers.integrate(
      field,
      x,
      grid,
      fixed=fixed,
      trajectory=True,
    )

  start = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
  x, history = quick_jit(run)(start)
  np.testing.assert_array_equal(history["a"][-1], x["a"])
  np.testing.assert_array_equal(history["b"], np.full((4, 2), 7.0))
  # had b not been fixed from the start, a would have lagged
  np.testing.assert_allclose(x["a"], [7.0, 7.0])


def test_unknown_solver_names_the_known_ones():
  with pytest.raises(ValueError, match="euler, midpoint, rk4"):
    SamplerConfig(method="heun")


# ---- guidance


def test_strength_and_interval_may_differ_by_latent():
  got = guidance.strengths_at(
    0.4, {"a": 2.0, "b": 3.0}, {"a": (0.0, 1.0), "b": (0.0, 0.3)}, ("b", "a")
  )
  assert got == (("a", 2.0), ("b", 0.0))
  mixed = guidance.combine({"a": 1.0, "b": 1.0}, {"a": 0.5, "b": 0.5}, dict(got))
  assert mixed == {"a": 2.0, "b": 1.0}  # 3 * 1 - 2 * 0.5


def test_sampling_with_guidance_zero_equals_unguided():
  model = CountingModel()
  zero = sample(model, SamplerConfig(steps=4, guidance=0.0))
  off = sample(model, SamplerConfig(steps=4, interval=None))
  guided = sample(model, SamplerConfig(steps=4, guidance=2.0))
  for name in SHAPES:
    np.testing.assert_array_equal(zero[name], off[name])
  # guidance does something where it is on
  difference = np.asarray(guided["shape"] - off["shape"])
  assert np.abs(difference).max() > 0.1


@pytest.mark.parametrize(
  "method, steps, expected", [("euler", 4, 4 + 4), ("midpoint", 4, 8 + 7), ("euler", 1, 2)]
)
def test_unguided_steps_cost_one_forward_pass(method, steps, expected):
  """With r = 3 and 4 steps the times are 0, .1, .25, .5, 1: every start lies in [0, .5]; so do all
  midpoints but the last.
  """
  model = CountingModel()
  sample(model, SamplerConfig(steps=steps, method=method))
  assert model.calls == expected


def test_unconditional_branch_sees_one_zero_token_with_the_result_of_all():
  cfg = GeometryFlowConfig(
    width=16,
    depth=2,
    heads=2,
    cond_width=12,
    shape_resolution=2,
    latent_channels=2,
    dtype="float32",
  )
  graph, params = nnx.split(nnx.eval_shape(lambda: GeometryFlow(cfg, rngs=nnx.Rngs(0))))
  leaves, tree = jax.tree.flatten(params)
  # the initial modulation is zero, which would hide the condition's path
  rng = np.random.default_rng(0)
  params = jax.tree.unflatten(
    tree, [jnp.asarray(rng.normal(0, 0.3, a.shape), jnp.float32) for a in leaves]
  )
  x = draws.noise(draws.wrap_keys(keys(2)), cfg.latent_shapes())
  run = quick_jit(lambda p, tokens: nnx.merge(graph, p)(x, jnp.full(1, 0.3), tokens, jnp.zeros(1)))
  one, many = run(params, jnp.zeros((2, 1, 12))), run(params, jnp.zeros((2, 9, 12)))
  other = run(params, jnp.ones((2, 9, 12)))
  for k in x:
    np.testing.assert_allclose(one[k], many[k], atol=2e-5)
    assert np.abs(np.asarray(one[k] - other[k])).max() > 1e-3


def test_pointmap_guidance_adds_its_own_difference_inside_the_interval_only():
  c, n, u = {"a": 3.0}, {"a": 2.0}, {"a": 0.5}
  assert guidance.combine_pointmap(c, n, u, {"a": 7.0}, 2.0) == {"a": 3.0 + 2.0 * 1.0 + 7.0 * 1.5}
  assert guidance.combine_pointmap(c, n, u, {"a": 0.0}, 2.0) == c
  model = CountingModel()
  sample(model, SamplerConfig(steps=4, pointmap_guidance=0.5, interval=(0.0, 0.1)))
  assert model.calls == 2 * 3 + 2


def test_pointmap_weight_equal_to_guidance_needs_no_third_condition():
  """p = s gives v_c + s (v_c - v_0), plain guidance."""
  two = sample(CountingModel(), SamplerConfig(steps=3, guidance=2.0, pointmap_guidance=2.0))
  one = sample(CountingModel(), SamplerConfig(steps=3, guidance=2.0))
  np.testing.assert_allclose(two["shape"], one["shape"], rtol=1e-4, atol=1e-5)


# ---- sampling


def test_shortcut_feeds_one_over_steps_and_takes_one_pass_a_step():
  model = CountingModel()
  sample(model, SamplerConfig(steps=4, shortcut=True))
  assert model.steps == {0.25} and model.calls == 4
  with pytest.raises(ValueError, match="step embedder"):
    sample(CountingModel(step_conditioned=False), SamplerConfig(steps=4, shortcut=True))
  with pytest.raises(ValueError, match="no guidance"):
    SamplerConfig(shortcut=True, pointmap_guidance=1.0)


def test_sample_depends_on_its_key_and_condition_alone():
  cfg = SamplerConfig(steps=3)
  order = np.asarray([2, 0])
  whole = sample(CountingModel(), cfg)

  # two of the three, in another order
  some = Conditioning(image=condition().image[order])
  part = sample(CountingModel(), cfg, some, keys()[order])
  for name in SHAPES:
    np.testing.assert_allclose(part[name], whole[name][order], rtol=1e-6)

  # the same conditions with the keys of others
  other = sample(CountingModel(), cfg, key_B2=keys()[::-1])
  difference = np.asarray(other["shape"] - whole["shape"])
  assert np.abs(difference).max() > 0.1


def test_fixed_latents_come_back_as_given_and_must_be_sampled_ones():
  fixed = {"scale": jnp.full((3, 1, 3), 0.25)}
  np.testing.assert_array_equal(
    sample(CountingModel(), SamplerConfig(steps=3), fixed=fixed)["scale"], fixed["scale"]
  )
  with pytest.raises(ValueError, match="colour"):
    sample(CountingModel(), SamplerConfig(steps=3), fixed={"colour": jnp.zeros(3)})


def test_guidance_by_latent_reaches_the_sampler_and_the_config_stays_hashable():
  strengths = {"shape": 2.0, "scale": 0.0}
  cfg = SamplerConfig(steps=3, guidance=strengths, interval=[0.0, 0.5])
  mixed = sample(CountingModel(), cfg)
  plain = sample(CountingModel(), SamplerConfig(steps=3, interval=None))
  full = sample(CountingModel(), SamplerConfig(steps=3, guidance=2.0))
  np.testing.assert_allclose(mixed["scale"], plain["scale"], rtol=1e-6)
  np.testing.assert_allclose(mixed["shape"], full["shape"], rtol=1e-6)

  # the order in which strengths are stated is no part of them
  same = SamplerConfig(steps=3, guidance={"scale": 0.0, "shape": 2.0})
  assert hash(cfg) == hash(same)
  with pytest.raises(ValueError, match="interval"):
    SamplerConfig(interval=(0.0, 500.0))


def test_integrated_noise_matches_sampling_from_the_same_noise():
  model = CountingModel()
  cfg = SamplerConfig(steps=3)
  own_keys = draws.wrap_keys(keys())
  noise = draws.noise(own_keys, SHAPES)

  def run(noise):
    tokens = model.encode(condition())
    return generate.integrate_noise(
      model.velocity,
      noise,
      tokens,
      cfg,
      d=jnp.zeros(1),
    )

  x = quick_jit(run)(noise)
  np.testing.assert_allclose(x["shape"], sample(model, cfg)["shape"], rtol=1e-6)


# ---- voxels


def block(n, offset=0):
  return np.argwhere(np.ones((n, n, n))) + offset


def test_interior_voxels_are_dropped_and_the_order_is_kept():
  coords = np.random.default_rng(0).permutation(block(5, 3))
  kept = voxels.surface(coords)
  assert len(kept) == 5**3 - 3**3 and len(voxels.surface(coords, 2)) == 5**3 - 1
  index = [int((coords == c).all(1).argmax()) for c in kept]
  assert index == sorted(index)


def test_voxels_at_the_border_of_the_grid_are_surface():
  assert len(voxels.surface(block(4))) == 4**3 - 2**3
  assert voxels.surface(np.zeros((0, 3), np.int32)).shape == (0, 3)


def test_halving_scales_the_span_of_a_box_and_cuts_off_what_lies_beyond_half_of_it():
  coords = np.asarray([[0, 0, 0], [1, 0, 0], [5, 0, 0], [8, 0, 0]])
  # 9 voxels: 3.5 / 8 about the centre 4 gives 2.25, 2.69, 4.44, 5.75; half the box is 2.25 to 5.75
  np.testing.assert_array_equal(voxels.halve(coords)[:, 0], [2, 3, 4, 5])


@pytest.mark.parametrize("first", (0, 1, 5))
def test_halving_a_box_of_a_multiple_of_four_is_scaling_by_a_half(first):
  for count in (4, 12, 16, 32):
    coords = np.stack([np.arange(first, first + count)] * 3, axis=1)
    centre = first + (count - 1) / 2
    plain = np.unique(np.round((coords - centre) / 2 + centre).astype(int), axis=0)
    np.testing.assert_array_equal(voxels.halve(coords), plain)


def test_a_single_voxel_stays_where_it_is():
  np.testing.assert_array_equal(voxels.halve(np.array([[3, 0, 7]])), [[3, 0, 7]])


def test_too_many_voxels_are_halved_once_and_the_factor_tells():
  logits = np.full((8, 8, 8), -1.0)
  logits[1:7, 1:7, 1:7] = 0.5
  coords, factor = voxels.active_voxels(logits)
  assert factor == 1 and len(coords) == 6**3 - 4**3
  fewer, factor = voxels.active_voxels(logits, max_voxels=len(coords) - 1)
  assert factor == 2 and len(fewer) < len(coords)
  logits[:] = 0.0
  assert voxels.active_voxels(logits)[0].shape == (0, 3)  # a logit of exactly 0 is empty

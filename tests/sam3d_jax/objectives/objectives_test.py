"""Laws of the objectives, on models small enough to check by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.batch import StructureBatch
from sam3d_jax.objectives import autoencoder, draws, flow_matching, paths, shortcut
from sam3d_jax.objectives.dpo import dpo, preference_terms
from sam3d_jax.training import step
from tests.support.tiny_objectives import (
  KEY,
  SHAPES,
  WEIGHTS,
  TinyModel,
  flow_loss,
  geometry_batch,
  latents,
  preference_batch,
  quick_jit,
  rows,
  run_dpo,
  run_flow,
  run_shortcut,
  tiny_model,
)

# ---- paths


def test_path_starts_at_noise_ends_at_data_and_its_slope_is_the_target():
  rng = np.random.default_rng(0)
  noise, data = latents(rng, 2), latents(rng, 2)
  at = lambda t: paths.interpolate(noise, data, jnp.asarray([t, t]), sigma_min=0.1)["shape"]
  np.testing.assert_allclose(at(0.0), noise["shape"], rtol=1e-6)
  np.testing.assert_allclose(at(1.0), data["shape"] + 0.1 * noise["shape"], rtol=1e-5, atol=1e-6)
  slope = (at(0.75) - at(0.25)) / 0.5
  np.testing.assert_allclose(
    slope, paths.target_velocity(noise, data, sigma_min=0.1)["shape"], rtol=1e-5, atol=1e-5
  )


def test_lognormal_time_is_the_sigmoid_of_a_shifted_normal():
  t = paths.lognormal_time(jnp.asarray([0.0, 1.0]), mean=-1.0, std=2.0)
  np.testing.assert_allclose(t, [1 / (1 + np.e), 1 / (1 + np.exp(-1.0))], rtol=1e-6)


def test_time_buckets_add_up_to_the_mean_and_empty_ones_are_left_out():
  values, t = jnp.asarray([1.0, 3.0, 8.0]), jnp.asarray([0.05, 0.1, 1.0])
  metrics = paths.bucketed("loss", values, t, buckets=5)
  assert float(sum(v for k, v in metrics.items() if k.startswith("loss_sum/"))) == pytest.approx(
    4.0
  )
  assert paths.bucket_means(metrics, "loss") == pytest.approx({"loss/0": 2.0, "loss/4": 8.0})


def test_unknown_time_weight_names_the_known_ones():
  with pytest.raises(ValueError, match="uniform, noisy, clean"):
    paths.time_weight("late", jnp.zeros(2))


@pytest.mark.parametrize("name", paths.TIME_WEIGHTS)
def test_time_weights_average_to_one_over_uniform_time(name):
  t = (np.arange(1000) + 0.5) / 1000
  assert float(paths.time_weight(name, jnp.asarray(t)).mean()) == pytest.approx(1.0, abs=1e-5)


# ---- draws


def test_noise_depends_on_key_and_name_but_not_on_order_position_or_other_latents():
  content = geometry_batch().key
  noise = lambda content, shapes: quick_jit(
    lambda c: draws.noise(draws.example_keys(KEY, c), shapes)
  )(content)
  whole, turned = noise(content, SHAPES), noise(content[::-1], dict(reversed(SHAPES.items())))
  alone = noise(content[2:3], {"scale": SHAPES["scale"]})
  for k in SHAPES:
    np.testing.assert_array_equal(whole[k], turned[k][::-1])
  np.testing.assert_array_equal(whole["scale"][2:3], alone["scale"])


def test_noise_differs_between_steps_examples_halves_of_the_key_and_names():
  content = np.asarray([[1, 2], [2, 1], [1, 3]], np.uint32)
  step = lambda key: [draws.normal(draws.example_keys(key, content), name, (4,)) for name in "ab"]
  every = np.concatenate(sum((quick_jit(step)(jax.random.fold_in(KEY, i)) for i in (1, 2)), []))
  assert len(np.unique(every.round(6), axis=0)) == len(every)


def test_raw_keys_round_trip():
  keys_B = draws.example_keys(KEY, geometry_batch().key)
  np.testing.assert_array_equal(
    draws.uniform(draws.wrap_keys(draws.raw_keys(keys_B)), "t"), draws.uniform(keys_B, "t")
  )


# ---- flow matching


def test_loss_of_a_sample_depends_neither_on_its_position_nor_on_its_neighbours():
  model, batch = tiny_model(), geometry_batch(4)
  alone = [float(flow_loss(model, rows(batch, [i]))[0]) for i in range(4)]
  assert len({round(a, 4) for a in alone}) == 4
  assert float(flow_loss(model, batch)[0]) == pytest.approx(np.mean(alone), rel=1e-5)
  mixed = rows(batch, [3, 1, 1, 3])
  assert float(flow_loss(model, mixed)[0]) == pytest.approx((alone[3] + alone[1]) / 2, rel=1e-5)


def test_absent_latents_get_exactly_zero_gradient_even_where_their_data_is_nan():
  batch = geometry_batch(4, present={"rotation": np.zeros(4, bool)})
  batch.latents["rotation"][:] = np.nan
  (loss, metrics), grads = run_flow(tiny_model(), batch)
  assert (
    np.isfinite(loss)
    and float(metrics["flow/rotation"]) == 0.0
    and float(metrics["present/rotation"]) == 0.0
  )
  assert all(not np.any(np.asarray(g)) for g in jax.tree.leaves(grads.params["rotation"]))
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
  assert np.any(np.asarray(grads.params["scale"]["A"]))


def test_each_latent_is_averaged_over_the_samples_that_have_it():
  model, batch = (
    tiny_model(),
    geometry_batch(4, present={"scale": np.asarray([True, False, True, False])}),
  )
  alone = [float(flow_loss(model, rows(batch, [i]))[1]["flow/scale"]) for i in (0, 2)]
  assert float(flow_loss(model, batch)[1]["flow/scale"]) == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("objective", ["flow_matching", "dpo"])
def test_parts_that_lack_a_latent_add_up_to_the_whole_batch(objective):
  """Presence is spread unevenly over the parts, one of them has no rotation at all."""
  present = {"rotation": np.arange(8) % 2 == 0, "scale": np.arange(8) < 3}
  model, batch = tiny_model(), geometry_batch(8, present=present)
  if objective == "dpo":
    batch = preference_batch(8)._replace(present=batch.present)
    loss = functools.partial(dpo, beta=2.0, T=1.0, latents=("rotation",))
  else:
    loss = functools.partial(flow_matching.flow_matching, weights=WEIGHTS, drop_condition=0.5)

  def loss_and_grad(m, part, key, **whole):
    (value, metrics), grads = jax.value_and_grad(
      lambda m: loss(m, tiny_model(seed=5), part, key, **whole), has_aux=True
    )(m)
    return metrics | {"loss": value}, grads

  at_once, in_parts = (
    quick_jit(lambda parts=parts: step.accumulated(loss_and_grad, model, batch, KEY, parts))()
    for parts in (1, 2)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), at_once, in_parts
  )


def test_what_an_absent_latent_holds_changes_nothing():
  has = np.asarray([True, True, False, True])
  batch = geometry_batch(4, present={"scale": has})
  scale = np.where(has[:, None, None], batch.latents["scale"], np.float32(9.0))
  other = batch._replace(latents={**batch.latents, "scale": scale})
  assert float(flow_loss(tiny_model(), batch)[0]) == float(flow_loss(tiny_model(), other)[0])


def test_weight_of_a_latent_that_the_batch_lacks_is_an_error():
  with pytest.raises(ValueError, match="translation"):
    flow_loss(tiny_model(), geometry_batch(), weights={"shape": 1.0, "translation": 1.0})


def test_latent_without_weight_is_not_trained():
  _, grads = run_flow(tiny_model(), geometry_batch(), weights={"shape": 1.0})
  assert not np.any(np.asarray(grads.params["scale"]["A"])) and np.any(
    np.asarray(grads.params["shape"]["A"])
  )


@pytest.mark.parametrize("kind", ["drop_condition", "drop_pointmap"])
def test_dropping_every_condition_leaves_no_gradient_in_the_encoder(kind):
  grad = lambda p: run_flow(tiny_model(), geometry_batch(), **{"drop_condition": 0.0, kind: p})[
    1
  ].params["gain"]
  assert float(grad(1.0)) == 0.0 and float(grad(0.0)) != 0.0


def test_condition_is_dropped_with_the_stated_frequency_and_per_example():
  uniform_B = draws.uniform(
    draws.example_keys(KEY, np.stack([np.arange(2000), np.zeros(2000)], 1)), "drop_condition"
  )
  kept = flow_matching.drop_tokens(jnp.ones((2000, 1, 1)), uniform_B, 0.1).sum()
  assert 0.87 < float(kept) / 2000 < 0.93


def test_training_feeds_d_zero_where_the_model_has_a_step_embedder_and_nothing_elsewhere():
  # TinyModel asserts that d is fed if and only if it can be
  with_d, without = tiny_model(), tiny_model(step_conditioned=False)
  assert float(flow_loss(with_d, geometry_batch())[0]) == float(
    flow_loss(without, geometry_batch())[0]
  )


# ---- preference alignment


def swapped(batch):
  return batch._replace(win=batch.lose, lose=batch.win)


def test_at_the_reference_the_loss_is_log_two_and_the_margin_exactly_zero():
  (loss, metrics), _ = run_dpo(tiny_model(), tiny_model(), preference_batch())
  assert float(loss) == pytest.approx(np.log(2.0), rel=1e-7)
  assert float(metrics["dpo/margin"]) == 0.0 and float(metrics["dpo/reward_win"]) == 0.0


def test_swapping_winner_and_loser_at_the_reference_flips_the_gradient():
  (_, _), grads = run_dpo(tiny_model(), tiny_model(), preference_batch())
  (_, _), flipped = run_dpo(tiny_model(), tiny_model(), swapped(preference_batch()))
  a, b = np.asarray(grads.params["shape"]["A"]), np.asarray(flipped.params["shape"]["A"])
  assert np.abs(a).max() > 1e-3
  np.testing.assert_allclose(a, -b, rtol=1e-4, atol=1e-6)


def test_a_gradient_step_raises_the_margin():
  model, batch = tiny_model(), preference_batch()
  (_, _), grads = run_dpo(model, tiny_model(), batch)
  (loss, metrics), _ = run_dpo(
    jax.tree.map(lambda p, g: p - 0.01 * g, model, grads), tiny_model(), batch
  )
  assert float(metrics["dpo/margin"]) > 0.0 and float(loss) < np.log(2.0)


def test_preference_loss_equals_the_hand_computed_value():
  ones = jnp.ones(1)
  loss, win, lose = preference_terms(0.5 * ones, 0.8 * ones, 0.7 * ones, 0.6 * ones, 10.0 * ones)
  # -10 (0.5 - 0.7), -10 (0.8 - 0.6)
  assert float(win[0]) == pytest.approx(2.0) and float(lose[0]) == pytest.approx(-2.0)
  assert float(loss[0]) == pytest.approx(np.log1p(np.exp(-4.0)), rel=1e-5)


def test_equal_candidates_have_zero_margin_because_they_share_time_and_noise():
  batch = preference_batch()
  (_, metrics), _ = run_dpo(tiny_model(3), tiny_model(), batch._replace(lose=batch.win))
  assert float(metrics["dpo/margin"]) == 0.0 and float(metrics["dpo/reward_win"]) != 0.0


def test_only_the_chosen_latents_are_aligned_and_the_reference_gets_no_gradient():
  (_, _), grads = run_dpo(tiny_model(), tiny_model(), preference_batch(), latents=("shape",))
  assert not np.any(np.asarray(grads.params["rotation"]["A"]))
  shared = quick_jit(jax.grad(lambda m: dpo(m, m, preference_batch(), KEY, beta=0.01)[0]))(
    tiny_model()
  )
  np.testing.assert_allclose(shared.params["shape"]["A"], grads.params["shape"]["A"], rtol=1e-5)


def test_pairs_without_the_latent_do_not_count():
  model, batch = tiny_model(3), preference_batch(3)
  alone = [float(run_dpo(model, tiny_model(), rows(batch, [i, i, i]))[0][0]) for i in (0, 1)]
  batch.present["shape"] = np.asarray([True, True, False])
  batch.win["shape"][2] = np.nan
  assert float(run_dpo(model, tiny_model(), batch)[0][0]) == pytest.approx(np.mean(alone), rel=1e-5)


def test_beta_and_time_weight_scale_the_margin():
  margin = lambda **c: float(
    run_dpo(tiny_model(3), tiny_model(), rows(preference_batch(), [0, 0, 0]), **c)[0][1][
      "dpo/margin"
    ]
  )
  assert margin(beta=0.02) == pytest.approx(2 * margin(beta=0.01), rel=1e-5)
  t = float(draws.uniform(draws.example_keys(KEY, preference_batch().key[:1]), "time")[0])
  assert margin(time_weight="clean") == pytest.approx(2 * t * margin(), rel=1e-5)


def test_alignment_without_reference_is_an_error():
  with pytest.raises(ValueError, match="reference"):
    dpo(tiny_model(), None, preference_batch(), KEY, beta=1.0)


# ---- shortcut distillation


def linear_field(x, t_B, tokens_BSD, d_B):
  """v = x + 10 d where there is a condition, x where it is zeroed."""
  on = (jnp.abs(tokens_BSD).sum((1, 2)) > 0).astype(jnp.float32)
  return {k: v + paths.per_sample(10.0 * d_B * on, v) for k, v in x.items()}


def test_consistency_target_is_the_mean_of_two_consecutive_steps():
  x, d, t = {"a": jnp.asarray([[[2.0]]])}, jnp.asarray([0.25]), jnp.asarray([0.1])
  how = shortcut.ConsistencyTarget(guidance=0.0, guided_rows=0)
  got = shortcut.consistency_target(linear_field, x, t, d, jnp.ones((1, 2, 3)), how)["a"]
  first = 2.0 + 2.5
  second = (2.0 + 0.25 * first) + 2.5
  assert float(got[0, 0, 0]) == pytest.approx((first + second) / 2)


def test_consistency_target_can_step_along_the_plain_flow():
  x, d, t = {"a": jnp.asarray([[[2.0]]])}, jnp.asarray([0.25]), jnp.asarray([0.1])
  how = shortcut.ConsistencyTarget(guidance=0.0, guided_rows=0)
  got = shortcut.consistency_target(
    linear_field, x, t, d, jnp.ones((1, 2, 3)), how, fed_d_B=jnp.zeros(1)
  )["a"]
  assert float(got[0, 0, 0]) == pytest.approx((2.0 + 2.5) / 2)  # x, then x + d x


def test_guided_target_applies_to_the_leading_rows_and_the_chosen_latents():
  x = {"a": jnp.zeros((2, 1, 1)), "b": jnp.zeros((2, 1, 1))}
  how = shortcut.ConsistencyTarget(guidance=2.0, guided_latents=("a",), guided_rows=1)
  got = shortcut.guided(linear_field, x, jnp.zeros(2), jnp.ones((2, 2, 3)), jnp.full(2, 0.1), how)
  # conditional 1, unconditional 0: (1 + 2) 1 - 2 * 0
  np.testing.assert_allclose(got["a"][:, 0, 0], [3.0, 1.0])
  np.testing.assert_allclose(got["b"][:, 0, 0], [1.0, 1.0])


@pytest.mark.parametrize("levels", ["flow", "all"])
def test_guidance_enters_where_targets_step_along_the_flow_and_is_inherited_from_there(
  monkeypatch, levels
):
  seen = {}
  whole = shortcut.consistency_target
  monkeypatch.setattr(
    shortcut,
    "consistency_target",
    lambda *args: seen.update(how=args[-2], fed=args[-1]) or whole(*args),
  )
  model, batch = tiny_model(), geometry_batch(16)
  shortcut.shortcut(
    model,
    None,
    batch,
    KEY,
    weights=WEIGHTS,
    consistency_fraction=1.0,
    step_sizes=(0.25, 0.5),
    guidance=2.0,
    guided_levels=levels,
  )
  fed = np.asarray(seen["fed"])
  assert set(fed) == {0.0, 0.5}
  expected = np.where(fed == 0.0, 2.0, 0.0) if levels == "flow" else 2.0
  np.testing.assert_array_equal(
    np.broadcast_to(seen["how"].guidance, fed.shape), np.broadcast_to(expected, fed.shape)
  )


def test_no_gradient_flows_through_the_target():
  x = {"a": jnp.ones((1, 1, 1))}
  how = shortcut.ConsistencyTarget(guidance=1.0)
  grad = jax.grad(
    lambda s: shortcut.consistency_target(
      lambda *a: jax.tree.map(lambda v: s * v, linear_field(*a)),
      x,
      jnp.zeros(1),
      jnp.ones(1) / 4,
      jnp.ones((1, 1, 3)),
      how,
    )["a"].sum()
  )(1.0)
  assert float(grad) == 0.0


def test_without_consistency_rows_distillation_is_flow_matching():
  model, batch = tiny_model(), geometry_batch()
  (loss, _), _ = run_shortcut(model, batch, consistency_fraction=0.0, drop_condition=0.5)
  expected, _ = flow_loss(model, batch, drop_condition=0.5)
  assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_consistency_rows_are_a_static_share_spread_over_the_batch():
  np.testing.assert_array_equal(shortcut.spread_rows(8, 0.25), [3, 7])
  assert len(shortcut.spread_rows(384, 0.25)) == 96 and len(shortcut.spread_rows(6, 0.25)) == 1
  np.testing.assert_array_equal(shortcut.take(jnp.arange(8), np.asarray([1, 4, 7])), [1, 4, 7])
  np.testing.assert_array_equal(shortcut.take(jnp.arange(8), np.asarray([1, 2, 7])), [1, 2, 7])
  np.testing.assert_array_equal(
    shortcut.take(jnp.arange(8), np.asarray([0, 1, 2, 4, 5, 6])), [0, 1, 2, 4, 5, 6]
  )
  assert shortcut.take(jnp.arange(8), np.asarray([], int)).shape == (0,)


def test_step_embedding_is_trained_by_consistency_rows_only():
  _, flow_only = run_shortcut(
    tiny_model(), geometry_batch(), consistency_fraction=0.0, drop_condition=0.5
  )
  _, mixed = run_shortcut(tiny_model(), geometry_batch(), consistency_fraction=0.5)
  assert not np.any(np.asarray(flow_only.params["shape"]["e"])) and np.any(
    np.asarray(mixed.params["shape"]["e"])
  )


def test_consistency_steps_stay_on_the_path():
  seen = {}

  class Spy(TinyModel):
    def velocity(self, x, t_B, tokens_BSD, d_B=None):
      seen.setdefault("main", (t_B, d_B))
      return super().velocity(x, t_B, tokens_BSD, d_B)

  model = Spy(tiny_model().params)

  def feed(batch):
    shortcut.shortcut(
      model,
      None,
      batch,
      KEY,
      weights=WEIGHTS,
      consistency_fraction=1.0,
      time_mean=3.0,
      step_sizes=(0.5, 0.25, 0.125),
    )
    return seen["main"]

  t_B, double_d_B = (np.asarray(a) for a in quick_jit(feed)(geometry_batch(8)))
  assert np.all(t_B + double_d_B <= 1.0 + 1e-6) and len(np.unique(double_d_B)) > 1


def test_distillation_refuses_models_without_step_embedder_and_batches_without_a_consistency_row():
  with pytest.raises(ValueError, match="step embedder"):
    run_shortcut(tiny_model(step_conditioned=False), geometry_batch())
  with pytest.raises(ValueError, match="consistency row"):
    run_shortcut(tiny_model(), geometry_batch(2))


# ---- autoencoder


def test_dice_is_zero_for_a_perfect_and_near_one_for_a_disjoint_guess():
  occupancy = jnp.zeros((1, 4, 4, 4)).at[:, :2].set(1.0)
  sure = 50.0 * (2 * occupancy - 1)
  assert float(autoencoder.dice_loss(sure, occupancy)[0]) == pytest.approx(0.0, abs=1e-6)
  # 32 + 32 voxels, none shared
  assert float(autoencoder.dice_loss(-sure, occupancy)[0]) == pytest.approx(1 - 1 / 65)


def test_binary_cross_entropy_equals_its_definition_and_stays_finite():
  logits, y = (
    jnp.asarray([[-2.0, 0.5, 3.0]]).reshape(1, 1, 1, 3),
    jnp.asarray([[0.0, 1.0, 0.0]]).reshape(1, 1, 1, 3),
  )
  p = 1 / (1 + np.exp(-np.asarray(logits)))
  expected = -(np.asarray(y) * np.log(p) + (1 - np.asarray(y)) * np.log(1 - p)).mean()
  assert float(autoencoder.binary_cross_entropy(logits, y)[0]) == pytest.approx(expected, rel=1e-5)
  assert (
    float(
      autoencoder.binary_cross_entropy(1000.0 * jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)))[0]
    )
    == 1000.0
  )


def test_divergence_from_the_standard_normal_is_zero_at_it_and_half_the_squared_mean_beside_it():
  zero, two = jnp.zeros((1, 3)), jnp.full((1, 3), 2.0)
  assert float(autoencoder.kl_divergence(zero, zero)[0]) == 0.0
  assert float(autoencoder.kl_divergence(two, zero)[0]) == pytest.approx(2.0)


def test_occupancy_metrics_count_voxels():
  truth = jnp.zeros((2, 1, 1, 4)).at[0, 0, 0, :2].set(1.0)
  guess = jnp.where(jnp.zeros((2, 1, 1, 4)).at[0, 0, 0, 1:3].set(1.0) > 0, 1.0, -1.0)
  metrics = autoencoder.occupancy_metrics(guess, truth)
  # the second grid is empty on both sides
  assert float(metrics["iou"]) == pytest.approx((1 / 3 + 1) / 2)
  assert float(metrics["accuracy"]) == pytest.approx(6 / 8)


def test_autoencoder_loss_adds_weighted_kl_and_draws_per_example():
  class Halves:
    encoder = staticmethod(lambda x: (jnp.ones((len(x), 2)), jnp.zeros((len(x), 2))))
    decoder = staticmethod(lambda z: z[:, :1].reshape(-1, 1, 1, 1) * jnp.ones((1, 2, 2, 2)))

  batch = StructureBatch(geometry_batch(2).key, np.ones((2, 2, 2, 2), np.uint8))
  run = quick_jit(lambda b: autoencoder.structure_autoencoder(Halves, None, b, KEY, kl_weight=0.5))
  loss, metrics = run(batch)
  assert float(metrics["vae/kl"]) == pytest.approx(0.5)
  assert float(loss) == pytest.approx(float(metrics["vae/reconstruction"]) + 0.25, rel=1e-6)
  alone = np.mean([float(run(rows(batch, [i]))[1]["vae/reconstruction"]) for i in (0, 1)])
  assert float(metrics["vae/reconstruction"]) == pytest.approx(alone, rel=1e-5)
  with pytest.raises(ValueError, match="dice, bce"):
    autoencoder.structure_autoencoder(Halves, None, batch, KEY, reconstruction="l1")

"""Laws of the structure VAE."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.errors import InputError
from sam3d_jax.models import parameters, volumes
from sam3d_jax.models import structure_vae as vae
from sam3d_jax.torch_bridge import names_geometry, parts
from tests import parity
from tests.parity_cases import flow_and_vae
from tests.support.programs import equations

TINY = vae.StructureVAEConfig(
  resolution=8, latent_channels=3, channels=(4, 6), res_blocks=1, middle_blocks=1
)
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _filled(make):
  """Graph and parameters of a module, all drawn at random."""
  module = nnx.eval_shape(make)
  parameters.load_params(
    module,
    {k: _random(*s, seed=i) / 3 for i, (k, s) in enumerate(parameters.flat_shapes(module).items())},
  )
  return nnx.split(module)


@pytest.mark.parametrize("size", [1, 3])
def test_convolution_by_planes_equals_the_three_dimensional_one_with_gradients(monkeypatch, size):
  x, kernel = _random(2, 4, 5, 6, 3), _random(size, size, size, 3, 4, seed=1)
  run = lambda: _jit(
    lambda x, kernel: jax.vjp(volumes.conv3d, x, kernel)[1](_random(2, 4, 5, 6, 4, seed=2))
  )(x, kernel)
  by_planes = run()
  # what is compiled for, not what this process runs on
  monkeypatch.setattr(volumes, "target_platform", lambda: "tpu")
  for a, b in zip(by_planes, run(), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  traced = equations(jax.make_jaxpr(volumes.conv3d)(x, kernel).jaxpr)
  # one three-dimensional convolution
  assert [e.outvars[0].aval.ndim for e in traced if e.primitive.name == "conv_general_dilated"] == [
    5
  ]


def test_downsampling_equals_a_strided_convolution():
  graph, params = _filled(lambda: volumes.Downsample3D(3, 5, rngs=nnx.Rngs(0)))
  x = _random(2, 4, 6, 8, 3)
  got = _jit(lambda params: nnx.merge(graph, params)(x))(params)
  module = nnx.merge(graph, params)
  plain = jax.lax.conv_general_dilated(
    x, module.kernel[...], (2, 2, 2), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
  )
  np.testing.assert_allclose(got, plain + module.bias[...], atol=2e-5)


def test_depth_to_space_undoes_space_to_depth_and_keeps_the_channel_fastest():
  x = _random(1, 4, 6, 2, 3)
  patches = volumes.space_to_depth(x, 2)
  np.testing.assert_array_equal(volumes.depth_to_space(patches, 2), x)
  # x slowest, then y, z, channel
  np.testing.assert_array_equal(patches[0, 0, 0, 0, ::3], x[0, :2, :2, :2, 0].reshape(8))


def test_tokens_run_through_the_grid_with_x_slowest_and_z_fastest():
  grid = jnp.arange(8.0).reshape(1, 2, 2, 2, 1)
  np.testing.assert_array_equal(volumes.grid_to_tokens(grid)[0, :, 0], np.arange(8))
  np.testing.assert_array_equal(volumes.tokens_to_grid(volumes.grid_to_tokens(grid)), grid)


def test_tokens_that_fill_no_cube_are_refused():
  with pytest.raises(ValueError, match="9 tokens"):
    volumes.tokens_to_grid(jnp.zeros((1, 9, 2)))


def test_encoder_and_decoder_fit_together_and_answer_in_fp32():
  cfg = dataclasses.replace(TINY, dtype="bfloat16")
  model = nnx.eval_shape(lambda: vae.StructureVAE(cfg, rngs=nnx.Rngs(0)))
  graph, params = nnx.split(model)
  run = lambda params, occupancy: (
    lambda m: (m.encoder(occupancy), m.decoder(m.encoder(occupancy)[0]))
  )(nnx.merge(graph, params))
  (mean, logvar), logits = jax.eval_shape(
    run, params, jax.ShapeDtypeStruct((2, 8, 8, 8), jnp.uint8)
  )
  assert mean.shape == logvar.shape == (2, 4, 4, 4, 3) and cfg.latent_resolution == 4
  assert logits.shape == (2, 8, 8, 8)
  assert mean.dtype == logvar.dtype == logits.dtype == jnp.float32


def test_a_model_on_patches_answers_every_voxel_at_its_place():
  cfg = dataclasses.replace(TINY, patch=2)
  assert cfg.latent_resolution == TINY.latent_resolution // 2
  decoder = vae.StructureDecoder(cfg, rngs=nnx.Rngs(0))
  # logits that say nothing but where in its patch a voxel lies
  decoder.conv_out.kernel[...] = jnp.zeros_like(decoder.conv_out.kernel[...])
  decoder.conv_out.bias[...] = jnp.arange(8.0)
  logits = decoder(_random(1, 2, 2, 2, 3))
  assert logits.shape == (1, 8, 8, 8)
  x, y, z = np.indices((8, 8, 8)) % 2
  np.testing.assert_array_equal(logits[0], 4 * x + 2 * y + z)


def test_an_encoder_on_patches_sees_every_voxel_of_them():
  cfg = dataclasses.replace(TINY, patch=2)
  graph, params = _filled(lambda: vae.StructureEncoder(cfg, rngs=nnx.Rngs(0)))
  gradient = _jit(
    jax.grad(lambda occupancy: nnx.merge(graph, params)(occupancy)[0].sum()),
  )(_random(1, 8, 8, 8))
  assert np.all(np.asarray(gradient) != 0)


def test_a_model_on_patches_has_no_published_form():
  with pytest.raises(InputError, match="model.patch = 2"):
    parts.structure_vae_parts(dataclasses.replace(TINY, patch=2))


def test_untrained_residual_block_is_the_identity():
  block = vae.ResBlock3D(4, 4, rngs=nnx.Rngs(0))
  x = _random(1, 2, 2, 2, 4)
  np.testing.assert_array_equal(block(x), x)


@pytest.mark.parametrize(
  "name, module, rules",
  [
    ("e1_ss_encoder", vae.StructureEncoder, names_geometry.structure_encoder_rules),
    ("e2_ss_decoder", vae.StructureDecoder, names_geometry.structure_decoder_rules),
  ],
)
def test_bf16_stays_within_two_percent_of_fp32_on_the_fixture(golden_dir, name, module, rules):
  [fixture] = parity.fixtures(golden_dir, f"{name}.npz")
  given = fixture.inputs
  x = (
    jnp.asarray(given["occupancy"][:, 0])
    if "occupancy" in given
    else jnp.moveaxis(jnp.asarray(given["z"]), 1, -1)
  )
  channels = sorted(fixture.kwargs["channels"])
  exact, rounded = [], []
  for dtype, answer in (("float32", exact), ("bfloat16", rounded)):
    cfg = dataclasses.replace(flow_and_vae.vae_config(fixture.kwargs, channels, 16), dtype=dtype)
    graph, params = nnx.split(
      flow_and_vae.loaded(functools.partial(module, cfg), rules(cfg), fixture.params)
    )
    answer += jax.tree.leaves(_jit(lambda params, graph=graph: nnx.merge(graph, params)(x))(params))
  for a, b in zip(exact, rounded, strict=True):
    assert 0 < jnp.linalg.norm(a - b) < 0.02 * jnp.linalg.norm(a)


def test_gradients_reach_every_parameter():
  graph, params = _filled(lambda: vae.StructureVAE(TINY, rngs=nnx.Rngs(0)))
  occupancy = (_random(1, 8, 8, 8) > 0.5).astype(jnp.float32)

  def loss(params):
    model = nnx.merge(graph, params)
    mean, logvar = model.encoder(occupancy)
    return jnp.square(model.decoder(mean)).sum() + jnp.square(logvar).sum()

  grads = parameters.flat_params(nnx.merge(graph, _jit(jax.grad(loss))(params)))
  assert not [path for path, g in grads.items() if not float(jnp.abs(g).max()) > 0]


def test_resolution_that_the_levels_do_not_divide_is_refused():
  with pytest.raises(ValueError, match="resolution = 10 is not a multiple of 4"):
    vae.StructureVAEConfig(resolution=10)


def test_channels_may_come_as_a_list():
  assert vae.StructureVAEConfig(channels=[4, 8]) == vae.StructureVAEConfig(channels=(4, 8))


@pytest.mark.parametrize(
  "rules, module",
  [
    (names_geometry.structure_encoder_rules, vae.StructureEncoder),
    (names_geometry.structure_decoder_rules, vae.StructureDecoder),
  ],
)
def test_every_parameter_has_one_published_name(rules, module):
  shapes = parameters.flat_shapes(nnx.eval_shape(lambda: module(TINY, rngs=nnx.Rngs(0))))
  assert sorted(r.ours for r in rules(TINY)) == sorted(shapes)


@pytest.mark.parametrize("channels", [(1, 4), (4, 1), (2, 3)])
def test_packed_convolution_is_the_convolution_with_its_gradients(channels):
  x = jax.random.normal(jax.random.key(0), (2, 4, 6, 8, channels[0]))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, *channels))
  reference = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
  )
  outcome = lambda conv: jax.jit(
    lambda x, k: (conv(x, k), jax.grad(lambda x, k: jnp.sin(conv(x, k)).sum(), (0, 1))(x, k))
  )(x, kernel)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    outcome(volumes.conv3d),
    outcome(reference),
  )

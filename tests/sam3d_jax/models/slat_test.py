"""Laws of the SLAT autoencoder: objects do not see each other, Gaussians mean what files say."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.files import splat_files
from sam3d_jax.geometry import packing
from sam3d_jax.models import gaussians
from sam3d_jax.models.slat_encoder import SlatEncoder, SlatEncoderConfig
from sam3d_jax.models.slat_gaussian import SlatGaussianConfig, SlatGaussianDecoder
from sam3d_jax.models.slat_trunk import TrunkConfig
from sam3d_jax.models.slat_vae import SlatVAEConfig
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.sections import FieldError
from tests.support.random_module import random_module
from tests.support.sparse_tensors import voxels

SIDE, COUNT = 16, 3
TRUNK = TrunkConfig(width=24, depth=3, heads=2, window=4, dtype="float32", attention="xla")
ENCODER = SlatEncoderConfig(trunk=TRUNK, features=5, latent_channels=2, resolution=SIDE)
DECODER = SlatGaussianConfig(trunk=TRUNK, gaussians=COUNT, latent_channels=2, resolution=SIDE)
ROW = packing.RowShape(voxels=512, coarse=0, objects=3)
TABLES = packing.Tables(resolution=SIDE, window=TRUNK.window)
# compiling is all that takes time here
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def thing(seed: int, count: int, channels: int):
  """An object: its tables and features."""
  rng = np.random.default_rng(seed)
  tables = packing.object_tables(voxels(rng, count, SIDE), TABLES)
  return tables, rng.standard_normal((count, channels)).astype(np.float32)


def row(*things) -> tuple[packing.Packed, SparseTensor]:
  """Objects in one row."""
  order = [list(range(len(things)))]
  packed = packing.pack([tables for tables, _ in things], ROW, order)
  feats = packed.fill([feats for _, feats in things])
  return packed, SparseTensor(jnp.asarray(feats), jax.tree.map(jnp.asarray, packed.voxels.fine))


@functools.cache
def compiled(make, cfg):
  """(sparse tensor) -> what the module gives, with random parameters."""
  graph, params = nnx.split(random_module(lambda rngs: make(cfg, rngs=rngs)))
  run = jit(lambda params, x: nnx.merge(graph, params)(x))
  return functools.partial(run, params)


def test_neighbours_in_a_row_never_change_an_object():
  run = compiled(SlatEncoder, ENCODER)
  small, large, other = (thing(seed, n, 5) for seed, n in enumerate((40, 130, 77)))
  packed, x = row(small)
  alone = packed.split(run(x).mean_RVC)[0]
  rows = {0: (small, large), 1: (large, small), 2: (other, large, small)}
  for place, beside in rows.items():
    packed, x = row(*beside)
    posterior = run(x)
    np.testing.assert_array_equal(packed.split(posterior.mean_RVC)[place], alone)
    # padding stays clear
    padding = ~np.asarray(packed.voxels.fine.valid_RV)
    assert not np.asarray(posterior.logvar_RVC)[padding].any()


def test_every_second_block_moves_its_windows():
  # a voxel at a border of windows sees the one behind it only from the second block on
  feats = np.zeros((2, 5), np.float32)
  tables = packing.object_tables(np.array([[3, 3, 3], [4, 3, 3]]), TABLES)
  changed = feats.copy()
  changed[1] = 1.0
  differs = []
  for depth in (1, 2):
    cfg = dataclasses.replace(ENCODER, trunk=dataclasses.replace(TRUNK, depth=depth))
    run = compiled(SlatEncoder, cfg)
    means = []
    for values in (feats, changed):
      _, x = row((tables, values))
      means.append(np.asarray(run(x).mean_RVC)[0, 0])
    differs.append(bool((means[0] != means[1]).any()))
  assert differs == [False, True]


def test_a_sample_of_a_posterior_has_its_mean_and_spread():
  run = compiled(SlatEncoder, ENCODER)
  _, x = row(thing(0, 40, 5))
  posterior = run(x)
  noise = jnp.ones_like(posterior.mean_RVC)
  spread = posterior.sample(noise) - posterior.sample(0 * noise)
  np.testing.assert_allclose(spread, np.exp(0.5 * posterior.logvar_RVC), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(posterior.sample(0 * noise), posterior.mean_RVC)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_large_activations_stay_finite_in_half_precision(dtype):
  cfg = dataclasses.replace(DECODER, trunk=dataclasses.replace(TRUNK, dtype=dtype))
  run = compiled(SlatGaussianDecoder, cfg)
  tables, feats = thing(1, 60, 2)
  _, x = row((tables, 1e6 * feats))
  assert np.isfinite(run(x).feats_RVC).all()


def decoded(offset: float = 0.0):
  """A decoder's numbers for one object, and its activations."""
  run = compiled(SlatGaussianDecoder, DECODER)
  packed, x = row(thing(2, 50, 2))
  out = run(x)
  module = nnx.eval_shape(lambda: SlatGaussianDecoder(DECODER, rngs=nnx.Rngs(0)))
  return packed, module.gaussians(out.of(out.feats_RVC + offset))


def test_gaussians_stay_within_reach_of_their_voxel():
  for offset in (-1e4, 0.0, 1e4):
    packed, raw = decoded(offset)
    (positions,) = packed.split(raw.position)
    (coords,) = packed.split(packed.voxels.fine.coords_RV3)
    away = positions - (coords[:, None] + 0.5) / SIDE
    assert np.abs(away).max() <= 0.5 * DECODER.activations.reach / SIDE + 1e-6


def test_a_raw_zero_has_the_scale_and_opacity_of_its_biases():
  zero = gaussians.RawGaussians(*(jnp.zeros((1, n)) for n in (3, 3, 3, 4, 1)))
  activations = DECODER.activations
  active = gaussians.activate(zero, activations)
  scale = np.hypot(activations.scale_bias, activations.smallest_scale)
  np.testing.assert_allclose(active.scale, scale, rtol=1e-5)
  np.testing.assert_allclose(active.opacity, activations.opacity_bias, rtol=1e-5)
  np.testing.assert_array_equal(active.rotation, [gaussians.IDENTITY])


def test_splats_of_an_object_are_the_same_in_a_file(tmp_path):
  packed, raw = decoded()
  active = gaussians.activate(raw, DECODER.activations)
  made = gaussians.splats(active, packed.voxels.fine.valid_RV)
  assert np.count_nonzero(made.opacities_N) == 50 * COUNT
  splat_files.write(tmp_path / "x.ply", made)
  read = splat_files.read(tmp_path / "x.ply")
  used = np.asarray(made.opacities_N) != 0
  for name, array in read._asdict().items():
    expected = np.asarray(getattr(made, name))[used]
    np.testing.assert_allclose(array, expected, rtol=2e-4, atol=2e-5, err_msg=name)


def test_gradients_of_a_decoder_reach_every_parameter_and_no_padding():
  graph, params = nnx.split(random_module(lambda rngs: SlatGaussianDecoder(DECODER, rngs=rngs)))
  packed, x = row(thing(3, 45, 2))

  @jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradient(params, feats):
    return jnp.square(nnx.merge(graph, params)(x._replace(feats_RVC=feats)).feats_RVC).sum()

  of_params, of_feats = gradient(params, x.feats_RVC)
  for path, leaf in nnx.to_flat_state(of_params):
    assert np.isfinite(leaf.get_value()).all() and np.any(leaf.get_value()), path
  assert not np.asarray(of_feats)[~np.asarray(packed.voxels.fine.valid_RV)].any()


def test_wrong_sizes_are_refused_by_their_key():
  with pytest.raises(FieldError, match="gaussian.latent_channels = 4 is not encoder"):
    SlatVAEConfig(ENCODER, dataclasses.replace(DECODER, latent_channels=4))
  with pytest.raises(FieldError, match="window = 5 is odd"):
    TrunkConfig(window=5)
  with pytest.raises(FieldError, match="reach = 0.5"):
    gaussians.Activations(reach=0.5)
  _, x = row(thing(4, 30, 2))
  without = x._replace(level=x.level._replace(windows=None))
  module = random_module(lambda rngs: SlatGaussianDecoder(DECODER, rngs=rngs))
  with pytest.raises(ValueError, match="pack with Tables\\(window=4\\)"):
    module(without)

"""The mesh decoder: convolutions over bricks, precision, and that objects do not touch."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.geometry import packing, voxel_tables
from sam3d_jax.models import brick_layers, slat_flops, slat_mesh, sparse
from sam3d_jax.models.slat_mesh import SlatMeshConfig, SlatMeshDecoder
from sam3d_jax.models.slat_trunk import TrunkConfig
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.models.sparse_layers import SparseGroupNorm
from sam3d_jax.models.stack import unrolled
from sam3d_jax.sections import FieldError

RESOLUTION = 8
VOXELS = packing.BLOCK


def coords_of(seed: int, count: int) -> np.ndarray:
  """Distinct voxels in a corner of the grid, so that most have neighbours."""
  cells = np.argwhere(np.ones((5, 5, 5)))
  return np.random.default_rng(seed).permutation(cells)[:count]


def listed_table(coords_V3, side: int) -> np.ndarray:
  """(1, 27, V side^3) neighbours of all cells of bricks, as a list of voxels of their own."""
  axis = np.arange(side)
  cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
  fine_N3 = (coords_V3[:, None, None, None] * side + cells).reshape(-1, 3)
  return voxel_tables.neighbours(fine_N3, RESOLUTION * side)[None]


@pytest.fixture(scope="module")
def voxels():
  coords_V3 = coords_of(0, VOXELS // 2)
  near = np.full((1, 27, VOXELS), VOXELS, np.int32)
  table = voxel_tables.neighbours(coords_V3, RESOLUTION)
  near[0, :, : len(coords_V3)] = np.where(table == len(coords_V3), VOXELS, table)
  return coords_V3, near


@pytest.mark.parametrize("kind", ["plain", "subdividing"])
def test_convolutions_of_bricks_and_their_gradients_are_those_of_listed_voxels(voxels, kind):
  coords_V3, near = voxels
  own = len(coords_V3)
  side = 2
  out_side = side if kind == "plain" else 2 * side
  rng = np.random.default_rng(1)
  x = rng.normal(size=(1, VOXELS, side, side, side, 5)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, 3, 5, 3)).astype(np.float32)
  cotangent = rng.normal(size=(own, *(out_side,) * 3, 3)).astype(np.float32)
  table = listed_table(coords_V3, out_side)

  @jax.jit
  def bricks(x, kernel):
    if kind == "plain":
      y = brick_layers.brick_conv(x, kernel, near)
    else:
      kernels = brick_layers.merged_kernels(kernel)
      y = brick_layers.children_in_place(brick_layers.subdividing_conv(x, kernels, near))
    y = y[0, :own]
    return (y * cotangent).sum(), y

  @jax.jit
  def listed(x, kernel):
    if kind == "subdividing":
      x = brick_layers.copied(x)
    feats = x[:, :own].reshape(1, -1, 5)
    y = sparse.submanifold_conv(feats, kernel.reshape(27, 5, 3), table).reshape(cotangent.shape)
    return (y * cotangent).sum(), y

  got, expected = [
    jax.value_and_grad(fn, argnums=(0, 1), has_aux=True)(x, kernel) for fn in (bricks, listed)
  ]
  (_, y), (x_bar, kernel_bar) = got
  (_, y_ref), (x_bar_ref, kernel_bar_ref) = expected
  np.testing.assert_allclose(y, y_ref, atol=2e-5)
  np.testing.assert_allclose(x_bar, x_bar_ref, atol=2e-5)
  np.testing.assert_allclose(kernel_bar, kernel_bar_ref, atol=5e-4)


def test_norm_of_bricks_is_that_of_listed_voxels_of_each_object():
  objects = [
    packing.object_tables(coords_of(seed, count), packing.Tables(RESOLUTION))
    for seed, count in ((0, 30), (1, 100))
  ]
  level = packing.pack(objects).voxels.fine
  x = np.random.default_rng(2).normal(size=(1, 2 * VOXELS, 2, 2, 2, 8)).astype(np.float32) * 3 + 1
  y = jax.jit(brick_layers.BrickGroupNorm(4, 8))(x, level)
  fine = jax.tree.map(jnp.asarray, sparse.subdivided_level(level))
  listed = jax.jit(SparseGroupNorm(4, 8))(SparseTensor(x.reshape(1, -1, 8), fine))
  valid_V = level.valid_RV[0]
  expected = np.asarray(listed.feats_RVC).reshape(x.shape)
  np.testing.assert_allclose(np.asarray(y)[0, valid_V], expected[0, valid_V], atol=2e-6)


def tiny(dtype: str) -> SlatMeshConfig:
  trunk = TrunkConfig(width=32, depth=2, heads=2, mlp_ratio=2.0, window=4, dtype=dtype)
  return SlatMeshConfig(trunk=trunk, up_channels=(64, 32), resolution=RESOLUTION)


@functools.cache
def decoder(dtype: str):
  """A decoder of random parameters, none zero: (graph, params), and its compiled function."""
  module = SlatMeshDecoder(tiny(dtype), rngs=nnx.Rngs(0))
  graph, params = nnx.split(module)
  rng = np.random.default_rng(3)

  def drawn(leaf):
    scale = 1 / np.sqrt(max(leaf.size / leaf.shape[-1], 1))
    return leaf + rng.normal(size=leaf.shape).astype(np.float32) * scale

  params = jax.tree.map(drawn, params)
  return params, jax.jit(lambda params, x: nnx.merge(graph, params)(x))


def packed(*coords, shape=None) -> packing.Packed:
  tables = packing.Tables(RESOLUTION, neighbours=True, window=4)
  objects = [packing.object_tables(coords_V3, tables) for coords_V3 in coords]
  return packing.pack(objects, shape)


def latents_of(seed: int, count: int, scale: float = 1.0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32) * scale


def test_a_neighbour_or_padding_never_changes_an_object_in_any_bit():
  params, forward = decoder("float32")
  one, other = coords_of(0, 60), coords_of(1, 90)
  latents = [latents_of(0, 60), latents_of(1, 90)]
  shape = packing.RowShape(voxels=2 * VOXELS, coarse=0, objects=2)
  together = packed(other, one, shape=shape)
  x = SparseTensor(together.fill(latents[::-1]), together.voxels.fine)
  alone = packed(one, shape=shape)
  x_alone = SparseTensor(alone.fill(latents[:1]), alone.voxels.fine)
  got = np.asarray(forward(params, x))[0, VOXELS : VOXELS + 60]
  expected = np.asarray(forward(params, x_alone))[0, :60]
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_of_large_activations_gives_the_mesh_of_float32(dtype):
  # residual streams beyond what float16 can hold
  coords_V3 = coords_of(0, 60)
  row = packed(coords_V3, shape=packing.RowShape(voxels=2 * VOXELS, coarse=0, objects=2))
  x = SparseTensor(row.fill([latents_of(0, 60, scale=1e5)]), row.voxels.fine)
  found = {}
  for name in ("float32", dtype):
    params, forward = decoder(name)
    feats = np.array(forward(params, x))
    assert np.isfinite(feats).all()
    assert np.abs(feats).max() > 7e4
    ((mesh,),) = slat_mesh.meshes(feats, row.voxels.fine, RESOLUTION)
    assert np.isfinite(mesh.vertices_M3).all()
    found[name] = feats, mesh
  reference, mesh_ref = found["float32"]
  feats, mesh = found[dtype]
  assert len(mesh.faces_F3) == pytest.approx(len(mesh_ref.faces_F3), rel=0.1)
  assert len(mesh.faces_F3) > 1000
  assert np.abs(feats - reference).max() < 0.05 * np.abs(reference).max()


def test_attention_whose_logits_overflow_float16_gives_a_mesh():
  params, forward = decoder("float16")

  def sharpened(path, leaf):
    return 100 * leaf if "qkv" in jax.tree_util.keystr(path) else leaf

  params = jax.tree.map_with_path(sharpened, params)
  row = packed(coords_of(0, 60), shape=packing.RowShape(voxels=2 * VOXELS, coarse=0, objects=2))
  x = SparseTensor(row.fill([latents_of(0, 60)]), row.voxels.fine)
  feats = np.array(forward(params, x))
  assert np.isfinite(feats).all()
  ((mesh,),) = slat_mesh.meshes(feats, row.voxels.fine, RESOLUTION)
  assert len(mesh.faces_F3) > 1000


def test_gradients_reach_every_parameter_of_a_subdivision_and_are_finite():
  level = packed(coords_of(0, 60)).voxels.fine
  block = slat_mesh.SubdivideBlock(64, 32, dtype=jnp.float32, rngs=nnx.Rngs(0))
  graph, params = nnx.split(block)
  # the last convolution starts at zero
  params = jax.tree.map(lambda leaf: leaf + 0.01, params)
  feats = np.random.default_rng(0).normal(size=(1, VOXELS, 1, 1, 1, 64)).astype(np.float32)

  @jax.jit
  @jax.grad
  def gradient(params):
    out = nnx.merge(graph, params)(feats, level)
    valid = level.valid_RV[..., None, None, None, None]
    return jnp.where(valid, jnp.square(out), 0).mean()

  for path, leaf in jax.tree.leaves_with_path(gradient(params)):
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 0, path


def test_flops_of_the_subdivisions_in_closed_form_are_those_that_xla_counts():
  cfg = SlatMeshConfig(trunk=TrunkConfig(width=64, heads=2), up_channels=(64, 32))
  abstract = nnx.eval_shape(lambda: SlatMeshDecoder(cfg, rngs=nnx.Rngs(0)))
  graph, params = nnx.split(abstract)
  level = packed(coords_of(0, 60)).voxels.fine

  def subdivided(params, feats):
    decoder = nnx.merge(graph, params)
    for block in decoder.up_blocks:
      feats = block(feats, level)
    return decoder.proj_out(feats)

  def loss(params, feats):
    return jnp.square(subdivided(params, feats)).mean()

  feats = jax.ShapeDtypeStruct((1, VOXELS, 1, 1, 1, 64), jnp.float32)
  of_trunk = slat_flops.trunk(cfg.latent_channels, cfg.trunk).weights
  of_all = slat_flops.mesh(cfg, plain=False).weights
  expected = (of_all - of_trunk) * VOXELS / slat_flops.SAMPLE_VOXELS
  # backward: as much again for the features and for the kernels
  for program, times in ((subdivided, 1), (jax.grad(loss, argnums=(0, 1)), 3)):
    with unrolled():
      lowered = jax.jit(program).lower(params, feats)
    counted = lowered.cost_analysis()["flops"]
    assert counted == pytest.approx(times * expected, rel=0.05)


def test_what_is_missing_or_does_not_fit_is_an_error():
  with pytest.raises(FieldError, match="2 subdivisions"):
    SlatMeshConfig(up_channels=(192,))
  with pytest.raises(FieldError, match="not a multiple of 32"):
    SlatMeshConfig(up_channels=(192, 100))
  params, forward = decoder("float32")
  objects = [packing.object_tables(coords_of(0, 60), packing.Tables(RESOLUTION, window=4))]
  row = packing.pack(objects)
  x = SparseTensor(row.fill([latents_of(0, 60)]), row.voxels.fine)
  with pytest.raises(ValueError, match="needs neighbours"):
    forward(params, x)

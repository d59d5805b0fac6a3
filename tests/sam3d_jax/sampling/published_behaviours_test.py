"""The sixteen behaviours of the published model that are easy to get wrong, one test each.

The fixtures of `python -m tests.parity` pin all of them numerically; here each is a law of its own,
which needs no fixture and says what broke. Helpers and tiny models are those of the part's own
tests (tests/support).
"""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from sam3d_jax.batch import LAYOUT_LATENTS
from sam3d_jax.geometry import normalisers, packing, pose_targets, resizing, voxel_tables
from sam3d_jax.models import (
  conditioning,
  dinov2,
  geometry_flow,
  parameters,
  sparse,
  structure_vae,
)
from sam3d_jax.models.layers import MLP, Dense, LayerNorm, layer_norm
from sam3d_jax.models.sparse_layers import SparseGroupNorm, SparseResBlock
from sam3d_jax.objectives import draws, shortcut
from sam3d_jax.sampling import generate, guidance
from sam3d_jax.sampling.generate import SamplerConfig
from sam3d_jax.torch_bridge import keys, names_sparse
from tests.support import (
  counting_model,
  poses,
  tiny_condition,
  tiny_dino,
  tiny_flow,
  tiny_objectives,
)
from tests.support.random_module import random_module
from tests.support.sparse_tensors import SIDE, brute_force_conv, packed, tensor, voxels

RNG = np.random.default_rng(3)
FAINT = 1e-3 * np.asarray([[1.0, -1.0, 1.0, -1.0]], np.float32)  # mean 0, variance 1e-6


def test_01_sparse_downsampling_divides_by_the_count_plus_one():
  coords = np.asarray([[0, 0, 0], [1, 1, 1], [2, 0, 0]])
  found = packing.pack([packing.object_tables(coords, packing.Tables(SIDE, pooled=True))])
  feats = found.fill([np.asarray([[4.0], [8.0], [5.0]], np.float32)])
  coarse = sparse.pooled(jnp.asarray(feats), found.voxels.pooling)
  np.testing.assert_allclose(coarse[0, :2, 0], [12 / 3, 5 / 2])
  assert found.voxels.coarse.coords_RV3[0, :2].tolist() == [[0, 0, 0], [1, 0, 0]]


def test_02_kernel_one_convolution_reads_its_buffer_as_in_by_out():
  channels, out_channels = 3, 2
  buffer = np.arange(6, dtype=np.float32).reshape(out_channels, 1, 1, 1, channels)
  dense = nnx.eval_shape(
    lambda: nnx.Dict({"conv": Dense(channels, out_channels, rngs=nnx.Rngs(0))})
  )
  rules = names_sparse.pointwise_conv_rules("conv", "conv", channels, out_channels)
  state = {"conv.weight": buffer, "conv.bias": np.zeros(out_channels, np.float32)}
  params = keys.to_ours(rules, state, parameters.flat_shapes(dense))
  parameters.load_params(dense, params)
  x = np.asarray([[1.0, 10.0, 100.0]], np.float32)
  np.testing.assert_allclose(dense["conv"](x), x @ np.asarray([[0, 1], [2, 3], [4, 5]], np.float32))
  np.testing.assert_array_equal(keys.to_torch(rules, params)["conv.weight"], buffer)


def test_03_sparse_convolution_weights_are_out_x_y_z_in_and_correlate():
  found = packed(RNG, (60,), packing.Tables(SIDE, neighbours=True))
  x = tensor(RNG, found)
  weight = RNG.standard_normal((3, 3, 3, 3, 2)).astype(np.float32)
  (rule,) = names_sparse.submanifold_conv_rules("conv", "conv", bias=False)
  kernel = rule.to_ours(weight, (3, 3, 3, 2, 3)).reshape(27, 2, 3)
  near_R27V = x.level.neighbours_R27V
  y = jax.jit(sparse.submanifold_conv)(x.feats_RVC, jnp.asarray(kernel), near_R27V)
  coords_V3 = np.asarray(x.level.coords_RV3)[0, :60]
  (feats_VI,), (y_VO,) = found.split(x.feats_RVC), found.split(y)
  np.testing.assert_allclose(y_VO, brute_force_conv(feats_VI, coords_V3, weight), atol=1e-5)


def test_04_shape_attends_to_itself_and_layout_sends_it_no_gradient():
  flow = tiny_flow
  x, t, tokens = flow.inputs()
  graph_params = flow.model()
  (params_bar, x_bar, _), velocity = flow.grad(flow.TINY, LAYOUT_LATENTS)(
    graph_params[1], x, tokens, t, t
  )
  norms = flow.norms(params_bar)
  assert all(v == 0.0 for k, v in norms.items() if "/shape/" in k), (
    "layout losses moved parameters of the shape stream"
  )
  assert (
    float(jnp.abs(x_bar["shape"]).max()) == 0.0
    and norms["blocks/layer/layout/self_attn/qkv/kernel"] > 0
  )
  moved = {k: v if k == "shape" else v + 1.0 for k, v in x.items()}
  _, other = flow.grad(flow.TINY, LAYOUT_LATENTS)(graph_params[1], moved, tokens, t, t)
  np.testing.assert_array_equal(other["shape"], velocity["shape"])
  model = nnx.merge(*graph_params)
  assert [p for p in parameters.flat_shapes(model) if "adaln" in p] == [
    "blocks/layer/adaln/bias",
    "blocks/layer/adaln/kernel",
  ]
  for i, name in enumerate(("rotation", "translation", "scale", "translation_scale")):
    np.testing.assert_array_equal(
      model.embed(x)["layout"][:, i : i + 1], model.latents[name].embed(x[name])
    )


def test_05_the_sampler_feeds_d_zero_which_is_not_the_same_as_no_d():
  flow, sampling = tiny_flow, counting_model
  (x, t, tokens), params = flow.inputs(), flow.model()[1]
  skipped, zero = (
    flow.forward()(params, x, t, tokens),
    flow.forward()(params, x, t, tokens, jnp.zeros(len(t))),
  )
  assert float(jnp.abs(skipped["shape"] - zero["shape"]).max()) > 1e-3
  model = sampling.CountingModel()
  sampling.sample(model, SamplerConfig(steps=3))
  assert model.steps == {0.0}
  # CountingModel asserts that it is fed no d
  sampling.sample(sampling.CountingModel(step_conditioned=False), SamplerConfig(steps=3))
  assert _steps_of_the_main_call((0.25,)) == {0.5}  # the shortcut's own prediction is made at 2 d


def _steps_of_the_main_call(step_sizes) -> set[float]:
  seen = []

  class Spy(tiny_objectives.TinyModel):
    def velocity(self, x, t_B, tokens_BSD, d_B=None):
      seen.append(d_B)
      return super().velocity(x, t_B, tokens_BSD, d_B)

  def feed(batch):
    model = Spy(tiny_objectives.tiny_model().params)
    shortcut.shortcut(
      model,
      None,
      batch,
      tiny_objectives.KEY,
      weights=tiny_objectives.WEIGHTS,
      consistency_fraction=1.0,
      step_sizes=step_sizes,
    )
    return seen[0]

  return set(
    np.asarray(tiny_objectives.quick_jit(feed)(tiny_objectives.geometry_batch(4))).tolist()
  )


def test_06_guidance_is_on_at_both_ends_of_its_interval_and_off_without_one():
  at = lambda t, interval=(0.25, 0.5), s=7.0: guidance.strengths_at(t, s, interval, ("shape",))
  assert at(0.25) == at(0.5) == (("shape", 7.0),)
  assert at(np.nextafter(0.5, 1.0)) is None and at(np.nextafter(0.25, 0.0)) is None
  assert at(0.3, interval=None) is None and at(0.3, s=-0.5) is None and at(0.3, s=0.0) is None
  # its velocity is the mean token - 0.1 x
  model, x = counting_model.CountingModel(), {"a": jnp.full((1, 1, 1), 10.0)}
  field = generate.guided_velocity(
    model.velocity, jnp.full((1, 4, 3), 2.0), jnp.zeros(1), (("a", 7.0),)
  )
  guided = counting_model.quick_jit(field)(x, jnp.float32(0.1))["a"][0, 0, 0]
  # unconditional: tokens times zero
  assert float(guided) == pytest.approx((1 + 7) * (2.0 - 1.0) - 7 * (0.0 - 1.0))


def test_07_group_embedding_has_three_rows_and_dropped_point_maps_are_zero_after_it():
  parts = tiny_condition
  module, points = (
    parts.encoder(),
    slice(parts.spans(parts.TINY)["pointmap"].start, parts.TINY.tokens),
  )
  kept, dropped = (
    np.asarray(parts.encode(module, parts.COND, jnp.array(d)))
    for d in ([False, False], [True, False])
  )
  assert not dropped[0, points].any() and kept[0, points].any(-1).all()
  np.testing.assert_array_equal(dropped[1], kept[1])
  np.testing.assert_array_equal(dropped[0, : points.start], kept[0, : points.start])
  assert module.group_embed[...].shape == (conditioning.GROUPS + 1, parts.TINY.width) == (3, 16)
  for projection in (module.image_projection, module.mask_projection, module.pointmap_projection):
    projection.mlp.w2.kernel[...] = jnp.zeros_like(projection.mlp.w2.kernel[...])
  tokens, table = (
    np.asarray(parts.encode(module, parts.COND, jnp.zeros(2, bool))),
    np.asarray(module.group_embed[...]),
  )
  for stream, span in parts.spans(parts.TINY).items():
    row = table[1 if stream.startswith("rgb_") else 0]
    np.testing.assert_array_equal(
      tokens[:, span], np.broadcast_to(row, tokens[:, span].shape), err_msg=stream
    )
  grad = parts.gradients(module, lambda m: m(parts.COND).sum())["group_embed"]
  assert grad[:2].all() and not grad[2].any()


def test_08_only_the_prenorm_tokens_of_dino_keep_the_registers():
  dino = tiny_dino
  assert dinov2.DinoConfig().tokens == 1370 and dinov2.DinoConfig(prenorm=True).tokens == 1374
  module = dino.model()
  x = dino.prenorm(module, dinov2.preprocess(dino.IMAGE, dino.TINY.input_size))
  normed = module.norm(x)
  np.testing.assert_allclose(
    dino.call(module, dino.IMAGE),
    jnp.concatenate([normed[:, :1], normed[:, 5:]], axis=1),
    atol=1e-5,
  )
  module = dino.model(dataclasses.replace(dino.TINY, prenorm=True))
  module.norm.scale[...] = 7.0 * module.norm.scale[...]  # which nothing may read
  np.testing.assert_allclose(dino.call(module, dino.IMAGE), layer_norm(x, 1e-5), atol=2e-5)


def _readout(x):
  latent = random_module(
    lambda rngs: geometry_flow.LatentProjection(4, 4, learned_positions=0, rngs=rngs)
  )
  latent.proj_out.kernel[...], latent.proj_out.bias[...] = jnp.eye(4), jnp.zeros(4)
  return latent.readout(x[:, None])[:, 0]


def _group_norm(x):
  one = packing.object_tables(np.zeros((1, 3), int), packing.Tables(SIDE))
  found = packing.pack([one])
  packed_x = sparse.SparseTensor(jnp.asarray(found.fill([x])), found.voxels.fine)
  return SparseGroupNorm(1, 4)(packed_x).feats_RVC[0, :1]


def test_09_layer_norm_eps_differs_by_layer():
  """Variance 1e-6 is scaled by sqrt(1/2) under eps = 1e-6 and by sqrt(1/11) under 1e-5."""
  dino = tiny_dino.model()
  points = tiny_condition.point_encoder()
  abstract = lambda make: nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
  voxels = abstract(functools.partial(SparseResBlock, 4, 4, 4))
  volume = abstract(functools.partial(structure_vae.ResBlock3D, 4, 4))
  fuser = abstract(
    functools.partial(
      conditioning.Projection, 4, conditioning.ConditionConfig(width=4, dtype="float32")
    )
  )
  of = lambda norm: lambda x: layer_norm(x, norm.eps)
  narrow = {  # 1e-6
    "layer": LayerNorm(4, eps=1e-6),
    "flow block": lambda x: geometry_flow.modulate(x, 0.0, 0.0),
    "sparse block": of(voxels.norm1),
    "dino final": of(dino.norm),
    "dino 1": of(dino.blocks.layer.norm1),
    "dino 2": of(dino.blocks.layer.norm2),
    "points 1": of(points.block.norm1),
    "points 2": of(points.block.norm2),
  }
  wide = {  # 1e-5
    "layer": LayerNorm(4, eps=1e-5),
    "latent output": _readout,
    "fuser": of(fuser.norm),
    "group norm": _group_norm,
    "structure VAE 1": of(volume.norm1),
    "structure VAE 2": of(volume.norm2),
  }
  for layers, factor in ((narrow, np.sqrt(1 / 2)), (wide, np.sqrt(1 / 11))):
    for name, norm in layers.items():
      np.testing.assert_allclose(np.abs(norm(FAINT)), factor, rtol=1e-4, err_msg=name)


def test_10_gelu_form_and_the_order_of_the_modulation_follow_the_layer():
  x = np.linspace(-3, 3, 13, dtype=np.float32)[:, None]
  tanh, exact = (np.asarray(jax.nn.gelu(x, approximate=a)) for a in (True, False))
  mlp = random_module(lambda rngs: MLP(1, 1, rngs=rngs))
  of_dino = random_module(lambda rngs: dinov2.Mlp(1, 1, rngs=rngs, dtype=jnp.float32))
  for dense in (mlp.up, mlp.down, of_dino.fc1, of_dino.fc2):
    dense.kernel[...], dense.bias[...] = jnp.eye(1), jnp.zeros(1)
  np.testing.assert_allclose(mlp(x), tanh, atol=1e-6)
  np.testing.assert_allclose(of_dino(x), exact, atol=1e-6)
  assert np.abs(tanh - exact).max() > 1e-4  # so that a mix-up shows
  adaln = Dense(2, (6, 2), zero=True, rngs=nnx.Rngs(0))
  adaln.bias[...] = jnp.arange(6.0)[:, None] * jnp.ones(2)
  shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
    float(c[0, 0, 0]) for c in geometry_flow.modulations(adaln, jnp.ones((1, 2)))
  )
  assert (shift, scale, gate, mlp_shift, mlp_scale, mlp_gate) == (0, 1, 2, 3, 4, 5)
  _check_res_block_order()


def _check_res_block_order():
  """The residual block of sparse models takes scale first: with scale -1 what its second
  convolution sees is silu(shift).
  """
  block = random_module(lambda rngs: SparseResBlock(2, 2, 2, rngs=rngs))
  block.mod.bias[...] = jnp.asarray([[-1.0, -1.0], [3.0, 3.0]])
  block.mod.kernel[...] = jnp.zeros_like(block.mod.kernel[...])
  block.conv2.kernel[...], block.conv2.bias[...] = (
    np.eye(2) * (np.arange(27) == 13).reshape(3, 3, 3, 1, 1),
    jnp.zeros(2),
  )
  x = tensor(RNG, packed(RNG, (3,), packing.Tables(SIDE, neighbours=True)))
  y = nnx.jit(lambda block, x: block(x, jnp.ones((1, 1, 2))).feats_RVC)(block, x)
  added = (y - x.feats_RVC)[0, :3]
  np.testing.assert_allclose(added, jax.nn.silu(3.0), rtol=1e-5)


def test_11_windows_are_coordinate_plus_shift_over_window_within_an_object():
  line = np.asarray([[0, 0, z] for z in range(6)])

  def members(window, shift):
    """The z coordinates of each window's voxels."""
    found = voxel_tables.windows(line, SIDE, window, shift)
    z_V = line[found.order_V, 2]
    return [z_V[found.window_V == w].tolist() for w in range(found.window_V[-1] + 1)]

  assert members(4, 0) == [[0, 1, 2, 3], [4, 5]]
  assert members(4, 2) == [[0, 1], [2, 3, 4, 5]]
  assert members(3, 1) == [[0, 1], [2, 3, 4], [5]]  # the shift is added: (z + 1) // 3
  # two objects at the same places share no window
  one = packing.object_tables(line, packing.Tables(SIDE, window=4))
  (order, _) = packing.pack([one, one]).voxels.fine.windows
  numbers = [set(order.window_RV[0, start : start + 6]) for start in (0, packing.BLOCK)]
  assert numbers == [{0, 1}, {2, 3}]


def test_12_median_is_the_lower_one_and_resizing_is_antialiased():
  assert normalisers.lower_median(np.array([4.0, 1.0, 3.0, 2.0])) == 2.0
  assert normalisers.lower_median(np.array([np.nan, 7.0, 5.0, np.nan, 6.0])) == 6.0
  image = RNG.random((12, 12, 1)).astype(np.float32)
  # Pillow's widens its support when shrinking
  bilinear = Image.fromarray(image[..., 0]).resize((5, 5), Image.Resampling.BILINEAR)
  np.testing.assert_allclose(
    resizing.resize_float(image, (5, 5))[..., 0], np.asarray(bilinear), atol=1e-5
  )
  table = RNG.standard_normal((1 + 49, 1)).astype(np.float32)
  # a = -0.5
  bicubic = Image.fromarray(table[1:, 0].reshape(7, 7)).resize((5, 3), Image.Resampling.BICUBIC)
  resized = np.asarray(dinov2.position_embedding(table, 3, 5))
  np.testing.assert_allclose(resized[1:, 0].reshape(3, 5), np.asarray(bicubic), atol=1e-5)


def test_13_noise_does_not_depend_on_the_order_of_the_latents():
  """The published draws follow the sorted names; here every latent has its own stream, so that no
  order exists to get wrong.
  """
  tests, content = tiny_objectives, tiny_objectives.geometry_batch().key
  draw = lambda shapes: tests.quick_jit(
    lambda c: draws.noise(draws.example_keys(tests.KEY, c), shapes)
  )(content)
  forward, backward = draw(tests.SHAPES), draw(dict(reversed(tests.SHAPES.items())))
  assert list(tests.SHAPES) != sorted(tests.SHAPES) or len(tests.SHAPES) > 1
  for name in tests.SHAPES:
    np.testing.assert_array_equal(forward[name], backward[name])


def test_14_published_tiling_pairs_objects_with_the_wrong_scenes_and_is_off_by_default():
  given = poses.scene_poses(2, 2)
  scene_of = {False: lambda b, k: b, True: lambda b, k: (2 * b + k) % 2}
  for tiling, scene in scene_of.items():
    encoded = pose_targets.encode(
      given, "ScaleShiftInvariant", **({"published_tiling": True} if tiling else {})
    )
    for b, k in np.ndindex(2, 2):
      s = scene(b, k)
      expected = (given.translation[b, k] - given.scene_shift[s]) / given.scene_scale[s]
      np.testing.assert_allclose(encoded.translation[b, k], expected)


def test_15_two_levels_of_downsampling_each_keep_their_own_parents():
  """Where the published code cannot: its two levels share one cache entry, so that it runs with one
  level only.
  """
  coords = voxels(RNG, 60)
  middle = voxel_tables.halved(coords, SIDE)
  coarse = voxel_tables.halved(middle.coords_T3, SIDE // 2)
  ancestor_V = coarse.parent_V[middle.parent_V]
  np.testing.assert_array_equal(coarse.coords_T3[ancestor_V], coords // 4)


def test_16_unknown_points_do_not_poison_gradients_under_a_logarithmic_remap():
  parts = tiny_condition
  module = parts.point_encoder(dataclasses.replace(parts.POINTS, remap="exp_disparity"))
  grads = parts.gradients(module, lambda m: m(parts.points_with_gaps()).sum())
  assert all(np.isfinite(g).all() for g in grads.values())
  assert grads["point_proj/kernel"].any()

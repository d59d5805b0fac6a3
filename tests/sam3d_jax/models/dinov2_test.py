"""DINOv2: tokens, position embedding, preprocessing, names."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from sam3d_jax.models import dinov2, parameters
from sam3d_jax.torch_bridge import keys, names_conditioning
from tests.support.tiny_dino import IMAGE, RNG, TINY, call, model, prenorm


@pytest.mark.parametrize("rows, columns", [(2, 2), (3, 5), (9, 6)])
def test_position_embedding_is_resized_bicubically_with_antialiasing(rows, columns):
  pos = RNG.standard_normal((1 + 49, 3)).astype(np.float32)
  resize = jax.jit(dinov2.position_embedding, static_argnums=(1, 2))
  got = np.asarray(resize(pos, rows, columns))
  np.testing.assert_array_equal(got[0], pos[0])

  # Pillow's bicubic: a = -0.5, support widened when shrinking
  for channel in range(3):
    plane = Image.fromarray(pos[1:, channel].reshape(7, 7))
    expected = plane.resize((columns, rows), Image.Resampling.BICUBIC)
    found = got[1:, channel].reshape(rows, columns)
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-5)


def test_position_embedding_at_its_own_grid_is_used_as_it_is():
  pos = jnp.asarray(RNG.standard_normal((17, 3)), jnp.float32)
  assert dinov2.position_embedding(pos, 4, 4) is pos


def test_input_is_resized_bilinearly_without_antialiasing():
  image = RNG.random((1, 12, 12, 1)).astype(np.float32)
  normalised = np.asarray(dinov2.preprocess(jnp.asarray(image), 4))
  red = normalised[0, ..., 0]
  got = red * dinov2.IMAGENET_STD[0] + dinov2.IMAGENET_MEAN[0]
  # Output i samples position 3 i + 1 exactly; antialiasing would average neighbours.
  np.testing.assert_allclose(got, image[0, 1::3, 1::3, 0], atol=1e-6)


def test_masks_are_normalised_like_images():
  mask = np.ones((1, 16, 16, 1), np.float32)
  got = np.asarray(dinov2.preprocess(mask, 16))
  mean = np.array(dinov2.IMAGENET_MEAN)
  std = np.array(dinov2.IMAGENET_STD)
  white = (1 - mean) / std
  expected = np.broadcast_to(white, (1, 16, 16, 3))
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_patches_are_ordered_row_by_row():
  # Without attention and feed-forward the block is the identity.
  module = model(dataclasses.replace(TINY, depth=1))
  module.blocks.layer.ls1[...] = jnp.zeros((1, 16))
  module.blocks.layer.ls2[...] = jnp.zeros((1, 16))

  # Row 1, column 2 of the 4 x 4 grid.
  image = np.zeros((1, 16, 16, 3), np.float32)
  changed = image.copy()
  changed[:, 4:8, 8:12] = 1.0
  difference = prenorm(module, changed) - prenorm(module, image)
  by_token = np.abs(np.asarray(difference)).sum((0, 2))
  first_patch = 1 + TINY.registers
  assert np.flatnonzero(by_token).tolist() == [first_patch + 1 * 4 + 2]


def test_mask_token_is_a_parameter_that_nothing_reads():
  graph, params = nnx.split(model())

  def energy(params):
    tokens = nnx.merge(graph, params)(IMAGE)
    return jnp.square(tokens).sum()

  grads = jax.jit(jax.grad(energy))(params)
  flat = parameters.flat_params(nnx.merge(graph, grads))
  unread = [path for path, grad in flat.items() if not np.abs(grad).max()]
  assert unread == ["mask_token"]


def test_bf16_stays_close_to_fp32():
  half = dataclasses.replace(TINY, dtype="bfloat16")
  rounded = call(model(half), IMAGE).astype(np.float32)
  exact = call(model(), IMAGE)
  error = np.linalg.norm(rounded - exact)
  assert error < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("registers", [0, 4])
def test_original_checkpoint_names_round_trip(registers):
  cfg = dataclasses.replace(TINY, registers=registers)
  own = parameters.flat_params(model(cfg))
  params = {path: np.asarray(x) for path, x in own.items()}
  rules = names_conditioning.dinov2_rules(cfg)

  # there: the names and shapes of the original
  published = keys.to_torch(rules, params)
  assert published["blocks.1.attn.qkv.weight"].shape == (48, 16)
  assert published["patch_embed.proj.weight"].shape == (16, 3, 4, 4)
  assert ("register_tokens" in published) == bool(registers)

  # and back
  shapes = {path: x.shape for path, x in params.items()}
  back = keys.to_ours(rules, published, shapes)
  for path, x in params.items():
    np.testing.assert_array_equal(back[path], x, err_msg=path)


def test_sizes_that_do_not_fit_the_patch_are_refused():
  with pytest.raises(ValueError, match="patch = 4 does not divide input_size = 15"):
    dataclasses.replace(TINY, input_size=15)

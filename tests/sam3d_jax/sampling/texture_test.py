"""From photos and voxels to structured latents, for packed objects."""

import functools

from flax import nnx
import jax
import numpy as np
import pytest

from sam3d_jax.batch import Conditioning
from sam3d_jax.models import latent_statistics
from sam3d_jax.models.conditioning import ConditionConfig
from sam3d_jax.models.dinov2 import DinoConfig
from sam3d_jax.models.latent_statistics import LatentStatistics
from sam3d_jax.models.texture import RowConfig, TextureConfig, TextureModel
from sam3d_jax.models.texture_flow import TextureFlowConfig
from sam3d_jax.sampling import texture
from sam3d_jax.sampling.generate import SamplerConfig
from tests.support import tiny_texture
from tests.support.random_module import random_module
from tests.support.tiny_texture import SHAPE, SIDE, Object, Row

CONFIG = TextureConfig(
  flow=TextureFlowConfig(
    width=12,
    depth=1,
    heads=2,
    cond_width=16,
    resolution=SIDE,
    latent_channels=3,
    io_width=4,
    io_blocks=1,
    dtype="float32",
  ),
  condition=ConditionConfig(
    dino=DinoConfig(
      width=16,
      depth=1,
      heads=2,
      patch=4,
      image_size=8,
      input_size=8,
      prenorm=True,
      dtype="float32",
    ),
    pointmap=None,
    width=16,
    streams=("image", "mask"),
    dtype="float32",
  ),
  row=RowConfig(SHAPE.voxels, SHAPE.coarse, SHAPE.objects),
  statistics=LatentStatistics(mean=(1.0, -2.0, 3.0), std=(2.0, 0.5, 1.0)),
)
SAMPLER = SamplerConfig(steps=2, rescale_t=1.0, guidance=1.0, interval=(0.0, 1.0))
A, B = Object(1, 200), Object(2, 300)


def photo(seed: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {
    "image": rng.random((8, 8, 3)).astype(np.float32),
    "mask": rng.integers(0, 2, (8, 8, 1)).astype(np.float32),
  }


PHOTOS = {id(A): photo(10), id(B): photo(11)}


def conditioning(*objects: Object) -> Conditioning:
  """Photos of the objects of one row, zeros in the places that none takes."""
  streams = {}
  for name, image in PHOTOS[id(A)].items():
    stream = np.zeros((1, SHAPE.objects, *image.shape), np.float32)
    for place, one in enumerate(objects):
      stream[0, place] = PHOTOS[id(one)][name]
    streams[name] = stream
  return Conditioning(**streams)


@functools.cache
def model():
  return nnx.split(random_module(lambda rngs: TextureModel(CONFIG, rngs=rngs)))


@functools.cache
def compiled():
  graph, params = model()

  @tiny_texture.jit
  def sample(params, cond, voxels, key_RK2):
    built = nnx.merge(graph, params)
    return texture.sample_normalised(built, cond, voxels, key_RK2, SAMPLER)["slat"]

  return functools.partial(sample, params)


def sampled(*objects: Object):
  row = Row(*objects)
  return row, compiled()(conditioning(*objects), row.packed.voxels, row.key_RK2)


def test_an_object_is_sampled_alike_wherever_it_lies():
  alone, latents = sampled(A)
  row, among_others = sampled(B, A)
  expected = alone.of(0, latents)
  np.testing.assert_array_equal(row.of(1, among_others), expected)
  assert np.abs(row.of(0, among_others)).max() > 0.1


def test_latents_come_out_as_the_decoders_read_them(monkeypatch):
  row, normalised = sampled(A)
  monkeypatch.setattr(texture, "sample_normalised", lambda *given: {"slat": normalised})
  graph, params = model()
  built = nnx.merge(graph, params)
  latents = texture.sample_texture(
    built,
    conditioning(A),
    row.packed.voxels,
    row.key_RK2,
    SAMPLER,
  )
  expected = latent_statistics.denormalise(row.of(0, normalised), CONFIG.statistics)
  np.testing.assert_array_equal(row.of(0, latents), expected)
  padding_RV = ~row.packed.voxels.fine.valid_RV
  assert not np.asarray(latents)[padding_RV].any()


def test_each_object_is_told_what_its_own_photo_says():
  graph, params = model()

  @tiny_texture.jit
  def encode(params, cond):
    return nnx.merge(graph, params).encode(cond)

  together = encode(params, conditioning(A, B))
  swapped = encode(params, conditioning(B, A))
  assert together.shape == (1, SHAPE.objects, CONFIG.condition.tokens, 16)
  np.testing.assert_array_equal(together[0, 0], swapped[0, 1])
  np.testing.assert_array_equal(together[0, 1], swapped[0, 0])
  assert np.abs(together[0, 0] - together[0, 1]).max() > 1e-3


def test_few_step_sampling_needs_a_step_embedder():
  graph, params = model()
  built = nnx.merge(graph, params)
  row = Row(A)
  few_steps = SamplerConfig(steps=4, shortcut=True)
  with pytest.raises(ValueError, match="shortcut"):
    jax.eval_shape(
      lambda: texture.sample_texture(
        built, conditioning(A), row.packed.voxels, row.key_RK2, few_steps
      )
    )

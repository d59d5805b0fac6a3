"""A DINOv2 of one narrow block or two with random parameters, and an image for it."""

import functools

from flax import nnx
import numpy as np

from sam3d_jax.models import dinov2
from tests.support.random_module import random_module

TINY = dinov2.DinoConfig(
  width=16,
  depth=2,
  heads=2,
  patch=4,
  image_size=16,
  input_size=16,
  dtype="float32",
)

RNG = np.random.default_rng(0)
IMAGE = RNG.random((2, 20, 12, 3)).astype(np.float32)


@functools.cache
def built(cfg):
  return random_module(lambda rngs: dinov2.Dino(cfg, rngs=rngs))


def model(cfg=TINY):
  return nnx.clone(built(cfg))


@nnx.jit
def prenorm(module, image):
  return module.prenorm(image)


@nnx.jit
def _called(module, *args):
  return module(*args)


def call(module, *args):
  return np.asarray(_called(module, *args))

"""A condition encoder of narrow parts with random parameters, its inputs and compiled answers."""

import functools

from flax import nnx
import jax
import numpy as np

from sam3d_jax.batch import Conditioning
from sam3d_jax.models import parameters, pointmap
from sam3d_jax.models.conditioning import STREAMS, ConditionConfig, ConditionEncoder
from sam3d_jax.models.dinov2 import DinoConfig
from tests.support.random_module import random_module

DINO = DinoConfig(width=16, depth=1, heads=2, patch=4, image_size=8, input_size=8, dtype="float32")
POINTS = pointmap.PointmapConfig(width=32, input_size=8, patch=4, heads=4, dtype="float32")
TINY = ConditionConfig(dino=DINO, pointmap=POINTS, width=16, dtype="float32")
RNG = np.random.default_rng(1)


def conditioning_of(size=8, batch=2):
  def draw(channels):
    return RNG.random((batch, size, size, channels)).astype(np.float32)

  streams = {}
  for name in ("mask", "rgb_image_mask"):
    streams[name] = np.round(draw(1))
  for name in ("image", "rgb_image", "pointmap", "rgb_pointmap"):
    streams[name] = draw(3)
  return Conditioning(**streams)


COND = conditioning_of()


@functools.cache
def built(make, cfg):
  return random_module(lambda rngs: make(cfg, rngs=rngs))


def encoder(cfg=TINY):
  return nnx.clone(built(ConditionEncoder, cfg))


def point_encoder(cfg=POINTS):
  return nnx.clone(built(pointmap.PointmapEncoder, cfg))


@nnx.jit
def encode(module, cond, drop=None):
  return module(cond, drop)


def gradients(module, loss):
  """Path -> gradient of `loss(module)`."""
  graph, params = nnx.split(module)

  @jax.jit
  @jax.grad
  def grad(params):
    return loss(nnx.merge(graph, params))

  as_module = nnx.merge(graph, grad(params))
  flat = parameters.flat_params(as_module)
  return {path: np.asarray(gradient) for path, gradient in flat.items()}


def spans(cfg):
  """Stream -> slice of the token axis."""
  out, start = {}, 0
  for stream in STREAMS:
    if stream in cfg.streams:
      length = cfg.pointmap.tokens if "pointmap" in stream else cfg.dino.tokens
      out[stream] = slice(start, start + length)
      start += length
  return out


def points_with_gaps(size=8):
  """Two point maps with unknown points: a corner that is NaN, one coordinate that is infinite."""
  points = RNG.standard_normal((2, size, size, 3)).astype(np.float32)
  points[..., 2] = 1 + np.abs(points[..., 2])
  points[0, :3, :3] = np.nan
  points[1, 4, 5, 1] = np.inf
  return points

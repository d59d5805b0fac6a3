"""Checkpoints of random parameters, small enough to sample from in a test."""

import pathlib

import numpy as np

from launch.console import cli
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import stream

VAE = ("--config.model.resolution=8", "--config.model.channels=(4,8)")
GEOMETRY = ("--config.model.flow.shape_resolution=4",)


def save_random(
  config: str,
  overrides: tuple[str, ...],
  folder: pathlib.Path,
  learned=("shape", "rotation"),
  **lineage,
) -> str:
  """A checkpoint of random parameters; the folder's name. lineage: what it says beside the usual.

  They are drawn on the host: initialising operation by operation takes long.
  """
  c = cli.load_config(config, list(overrides))
  shapes = parameters.flat_shapes(registry.abstract_model(c.model))
  rng = np.random.default_rng(0)
  arrays = {}
  for path in sorted(shapes):
    drawn = rng.normal(0, 0.1, shapes[path])
    arrays[path] = drawn.astype(np.float32)
  lineage |= {
    "stage": "test",
    "parents": [],
    "datasets": {},
    "learned": list(learned),
  }
  stream.write_params(folder, arrays, {"config": c.to_dict(), "lineage": lineage})
  return str(folder)


def save_vae(folder: pathlib.Path) -> str:
  """A structure VAE of 8^3 voxels."""
  return save_random("configs/vae_structure.py:fake", VAE, folder)


def save_with_pointmap(folder: pathlib.Path) -> str:
  """A Geometry model that reads point maps and has learned where objects are."""
  learned = ("shape", "rotation", "translation", "scale")
  return save_random("configs/midtrain_os_geometry.py:fake", GEOMETRY, folder, learned)

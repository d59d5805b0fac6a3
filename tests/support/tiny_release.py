"""The smallest models that a release can hold, their checkpoints, and the commands on them."""

import pathlib

from ml_collections import ConfigDict
import numpy as np

from configs import base
from launch import export_torch, import_torch
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import parts, release_writer, stream
from sam3d_jax.training import checkpoint_steps

SAFETENSORS = release_writer.Storage(suffix=".safetensors")
STAGE_2 = [file.name for file in parts.FILES if file.name.startswith("slat_")]


def tiny_model() -> ConfigDict:
  """A Geometry model with every kind of part, small."""
  flow = dict(width=16, depth=2, heads=2, cond_width=16, shape_resolution=2)
  dino = dict(width=16, depth=2, heads=2, patch=4, image_size=8, input_size=8)
  pointmap = dict(width=16, input_size=8, patch=4)
  condition = dict(width=16, hidden_multiplier=2.0, dino=dino, pointmap=pointmap)
  model = base.geometry_model()
  model.update(dict(flow=flow, condition=condition))
  return model


def tiny_config(name: str) -> ConfigDict:
  """A run's configuration with a tiny model of this name, geometry or structure_vae."""
  config = base.training("test")
  if name == "geometry":
    config.model = tiny_model()
    config.sampler = base.sampler()
    config.sampler.steps = 7  # not the default, so that one can see where it comes from
  else:
    sizes = dict(resolution=4, channels=(8, 16), res_blocks=1, middle_blocks=1)
    config.model = base.structure_vae_model()
    config.model.update(sizes)
  return config


def config_file(folder: pathlib.Path, config: ConfigDict) -> str:
  """The configuration as a file for --config; its name."""
  file = folder / "config.py"
  file.write_text(
    "from ml_collections import ConfigDict\n\n\n"
    "def get_config():\n"
    f"  return ConfigDict({config.to_dict()!r})\n"
  )
  return str(file)


def random_params(config: ConfigDict, seed: int) -> dict[str, np.ndarray]:
  """Random parameters of the configured model, path -> fp32 array."""
  shapes = parameters.flat_shapes(registry.abstract_model(config.model))
  return normal_arrays(shapes, seed)


def normal_arrays(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
  """Normally distributed fp32 arrays of these shapes."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for path, shape in shapes.items():
    arrays[path] = rng.standard_normal(shape, dtype=np.float32)
  return arrays


def save_run(folder: pathlib.Path, config: ConfigDict, params: dict, lineage: dict) -> None:
  """Writes a checkpoint of step 0."""
  meta = {"config": config.to_dict(), "lineage": lineage}
  stream.write_params(folder, params, meta)


def in_memory(name: str, seed: int, lineage: dict | None = None, **model) -> release_writer.Model:
  """A random model to release that never was a checkpoint; `model` overrides its section."""
  config = tiny_config(name)
  config.model.update(model)
  params = random_params(config, seed)
  autoencoder = None
  if name == "structure_vae":
    autoencoder = parameters.params_digest(params)
  return release_writer.Model(
    config=config,
    params=params,
    shapes=parameters.shapes_of(params),
    lineage=lineage or {},
    digest=f"{name} {seed}",
    autoencoder=autoencoder,
  )


def export(run: pathlib.Path, out: pathlib.Path, *extra: str, **flags) -> int:
  """Runs `launch.export_torch`; its exit code."""
  argv = ["--checkpoint", str(run), "--out", str(out), *extra]
  for name, value in flags.items():
    argv += [f"--{name}", str(value)]
  return export_torch.main(argv)


def import_(source: pathlib.Path, workdir: pathlib.Path, *extra: str) -> int:
  """Runs `launch.import_torch`; its exit code."""
  argv = ["--from", str(source), "--workdir", str(workdir), *extra]
  return import_torch.main(argv)


def assert_same_arrays(a: pathlib.Path, b: pathlib.Path) -> None:
  """Two checkpoints hold the same arrays, bit for bit."""
  one = checkpoint_steps.read_meta(a)
  other = checkpoint_steps.read_meta(b)
  assert one["checksums"] == other["checksums"]

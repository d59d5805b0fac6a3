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
  """A run's configuration with a tiny model of this name."""
  config = base.training("test")
  config.model = TINY[name]()
  if name in ("geometry", "texture"):
    config.sampler = base.sampler()
    config.sampler.steps = 7  # not the default, so that one can see where it comes from
  return config


def tiny_structure_vae() -> ConfigDict:
  """A structure VAE of the Geometry model's latents."""
  model = base.structure_vae_model()
  model.update(dict(resolution=4, channels=(8, 16), res_blocks=1, middle_blocks=1))
  return model


def tiny_texture() -> ConfigDict:
  """A texture model of voxels in 8^3."""
  model = base.texture_model()
  condition = tiny_model().condition.to_dict()
  model.update(
    dict(
      flow=dict(width=16, depth=2, heads=2, cond_width=16, io_width=8, resolution=8),
      condition=dict(
        width=16,
        hidden_multiplier=2.0,
        dino={**condition["dino"], "prenorm": True},
      ),
    )
  )
  return model


TINY_TRUNK = dict(width=16, depth=2, heads=2, window=4)


def tiny_gaussian(count: int) -> dict:
  """A Gaussian decoder of voxels in 8^3."""
  return dict(trunk=TINY_TRUNK, resolution=8, gaussians=count)


def tiny_slat_vae() -> ConfigDict:
  """A SLAT autoencoder of the texture model's latents."""
  model = base.slat_vae_model()
  encoder = dict(trunk=TINY_TRUNK, resolution=8, features=12)
  model.update(dict(encoder=encoder, gaussian=tiny_gaussian(32)))
  return model


def tiny_slat_gaussian() -> ConfigDict:
  """The small Gaussian decoder of the same latents."""
  model = base.slat_gaussian_model()
  model.update(dict(gaussian=tiny_gaussian(4)))
  return model


def tiny_slat_mesh() -> ConfigDict:
  """A mesh decoder of the same latents: the narrowest that its norms allow."""
  model = base.slat_mesh_model()
  trunk = dict(width=256, depth=1, heads=4, mlp_ratio=0.25, window=4)
  model.update(dict(mesh=dict(trunk=trunk, up_channels=(64, 32), resolution=8)))
  return model


TINY = {
  "geometry": tiny_model,
  "structure_vae": tiny_structure_vae,
  "texture": tiny_texture,
  "slat_vae": tiny_slat_vae,
  "slat_gaussian": tiny_slat_gaussian,
  "slat_mesh": tiny_slat_mesh,
}


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
  shapes = registry.parameter_shapes(config.model)
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
  return release_writer.Model(
    config=config,
    params=params,
    shapes=parameters.shapes_of(params),
    lineage=lineage or {},
    digest=f"{name} {seed}",
    autoencoder=parts.latents_name(config.model, params),
  )


def export(run: pathlib.Path, out: pathlib.Path, *extra: str, **flags) -> int:
  """Runs `launch.export_torch`; its exit code."""
  argv = ["--checkpoint", str(run), "--out", str(out), *extra]
  for name, value in flags.items():
    values = value if isinstance(value, (list, tuple)) else [value]
    argv += [f"--{name}", *[str(one) for one in values]]
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

"""Objects whose pose is known, for writing datasets as other projects do, and what ours makes of
them.
"""

import io
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.format import records, schema
from data_pipelines.synth import assets, lighting, procedural, render
from data_pipelines.synth.camera import ViewConfig, Viewpoint, random_view
from launch import build_data
from launch.console import cli

ROOT = pathlib.Path(__file__).parents[2]
SIZE = 96  # pixels a side
VIEWS = 2  # of an object


def make_object(index: int) -> assets.Asset:
  """A mug or a chair."""
  scene = procedural.make_scene(5, index, ("mug", "chair"))
  return assets.from_scene(scene, source=str(index), up="z", license="CC0-1.0")


def make_view(asset: assets.Asset, rng, *, scale: float) -> tuple[Viewpoint, render.View]:
  """A random view of an object and its picture."""
  views = ViewConfig(elevation_deg=(0, 50), fill=(0.7, 0.8))
  viewpoint, azimuth = random_view(
    rng,
    views,
    image_size=SIZE,
    radius=asset.radius,
    scale=scale,
  )
  lights = lighting.random_lights(rng, lighting.LightConfig(), azimuth)
  shown = render.render(render.Scene(asset.mesh), viewpoint, lights, samples=1)
  return viewpoint, shown


def latent_of(voxels: np.ndarray) -> np.ndarray:
  """(8, 16, 16, 16) as TRELLIS lays it out: channel 0 is the mean occupancy of 4^3 voxels of a grid
  filled as [x, y, z].
  """
  grid = np.zeros((64, 64, 64), np.float32)
  grid[voxels[:, 0], voxels[:, 1], voxels[:, 2]] = 1
  mean = grid.reshape(16, 4, 16, 4, 16, 4).mean((1, 3, 5))
  return np.stack([mean * (c + 1) for c in range(8)])


def slat_of(voxels: np.ndarray) -> np.ndarray:
  """(N, 8) features that tell which voxel they belong to."""
  repeated = voxels.repeat(3, 1)
  return repeated[:, :8] / np.float32(64)


def check_latent(example: schema.Example) -> None:
  """The record's latent is that of the record's voxels: axis order and frame agree."""
  expected = latent_of(example["voxels"])
  for channel in range(8):
    np.testing.assert_allclose(
      example["structure_latent"][..., channel], expected[channel], atol=1e-6
    )


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
  """An image file of an array."""
  stream = io.BytesIO()
  Image.fromarray(array).save(stream, kind)
  return stream.getvalue()


def convert(name: str, source: pathlib.Path, out: pathlib.Path, *overrides: str) -> int:
  """Converts a dataset; returns the exit code."""
  argv = [
    "--config",
    f"{ROOT}/configs/data/{name}.py",
    f"--config.source={source}",
    f"--config.out={out}",
    "--config.workers=1",
    "--config.test_fraction=0.0",
    *(f"--config.{o}" for o in overrides),
  ]
  return cli.run_command(build_data.run, description="d", flags=build_data.flags, argv=argv)


def examples(folder: pathlib.Path) -> list[schema.Example]:
  """All records of a dataset by object and view."""
  split = records.open_split(folder)
  found = [split[i] for i in range(len(split))]
  return sorted(found, key=lambda example: (example["mesh_key"], example["view"]))

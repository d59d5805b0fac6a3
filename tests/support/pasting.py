"""Small datasets of the render-and-paste builders, and their records as arrays."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.build import shard_jobs
from data_pipelines.format import records
from launch import build_data
from launch.console import cli
from launch.planners import builders

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
  "procedural.count=6",
  "procedural.families=('mug','crate','chair')",
  "photos.count=4",
  "objects_per_shard=3",
  "workers=1",
  "test_fraction=0.0",
  "image_size=64",
  "samples=1",
)
FEW = {
  "rp_3do_fo": (*SMALL, "delit=True"),
  "rp_3do_osr": (*SMALL, "views=2", "image_size=96"),
  "rp_3do_osa": (*SMALL, "photos.count=3", "image_size=96", "objects_per_shard=2"),
}


def flags(builder: str, overrides: tuple[str, ...]) -> list[str]:
  """The overrides of a builder's few examples, and more, as flags."""
  return [f"--config.{override}" for override in (*FEW[builder], *overrides)]


def run(builder: str, *overrides: str) -> int:
  """Builds a few examples; returns the exit code."""
  argv = [
    "--config",
    f"{ROOT}/configs/data/{builder}.py:tiny",
    *flags(builder, overrides),
  ]
  return cli.run_command(build_data.run, description="test", flags=build_data.flags, argv=argv)


def plan(builder: str, *overrides: str) -> shard_jobs.Plan:
  """What `run` would build."""
  file = f"{ROOT}/configs/data/{builder}.py:tiny"
  config = cli.load_config(file, flags(builder, overrides))
  return builders.PLANNERS[config.builder](config)


def examples(folder: pathlib.Path) -> list[dict]:
  """The training records of a built dataset."""
  split = records.open_split(folder, "train")
  return [split[i] for i in range(len(split))]


def quarantine(folder: pathlib.Path) -> list[dict]:
  """What a build set aside, one entry an input."""
  text = (folder / "quarantine.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def image(example: dict, field: str = "image") -> np.ndarray:
  """A record's image, (H, W, 3) uint8."""
  return np.asarray(Image.open(io.BytesIO(example[field])))


def mask(example: dict, field: str = "mask") -> np.ndarray:
  """A record's mask, (H, W) bool."""
  return image(example, field) > 0


def points(example: dict) -> np.ndarray:
  """A record's point map, (H, W, 3) float32."""
  return example["pointmap"].astype(np.float32)


def lineage(example: dict) -> dict:
  """What a record says of its making."""
  return json.loads(example["lineage"])

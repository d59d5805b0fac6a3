"""A tiny random model for launch.sample, and photos to give it."""

import argparse
from collections.abc import Iterator
import contextlib
import functools
import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from launch import sample
from sam3d_jax.inference import weights as weights_lib
from sam3d_jax.inference.predictor import Predictor
from tests.support import tiny_weights


@contextlib.contextmanager
def tiny_model(folder: pathlib.Path) -> Iterator[list[str]]:
  """Flags that name the weights. They are loaded once: every further load would compile the sampler
  again.
  """
  vae = tiny_weights.save_vae(folder / "vae")
  geometry = tiny_weights.save_random(
    "configs/pretrain_geometry.py:fake",
    tiny_weights.GEOMETRY,
    folder / "geometry",
  )
  load = weights_lib.load

  @functools.cache
  def loaded() -> Predictor:
    return weights_lib.from_checkpoint(geometry, vae, steps=2)

  def load_once(config: weights_lib.WeightsConfig, *tell) -> Predictor:
    is_tiny = (config.checkpoint, config.decoder) == (geometry, vae)
    return loaded() if is_tiny else load(config, *tell)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(weights_lib, "load", load_once)
    yield ["--checkpoint", geometry, "--decoder", vae, "--steps", "2", "--batch_size", "4"]


def loaded_by(args: list[str]) -> Predictor:
  """The model that the command loads for these flags."""
  parser = argparse.ArgumentParser()
  sample.flags(parser)
  parsed = parser.parse_args(args)
  return weights_lib.load(sample.weights_config(parsed))


def noise_image(height: int, width: int, seed=0) -> np.ndarray:
  """(height, width, 3) uint8."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 255, (height, width, 3), dtype=np.uint8)


def write_cup_photo(folder: pathlib.Path) -> None:
  """photo.png, 60 x 40, with the masks cup.png and plate.png."""
  mask = np.zeros((40, 60), np.uint8)
  mask[10:30, 20:45] = 255
  lower = np.roll(mask, 10, 0)
  Image.fromarray(noise_image(40, 60)).save(folder / "photo.png")
  Image.fromarray(mask).save(folder / "cup.png")
  Image.fromarray(lower).save(folder / "plate.png")


def write_photo(folder: pathlib.Path, height: int, width: int, objects: int) -> None:
  """folder/image.png with masks 0.png, 1.png, ... side by side."""
  folder.mkdir(parents=True)
  image = noise_image(height, width, [height, width])
  Image.fromarray(image).save(folder / "image.png")
  for i in range(objects):
    mask = np.zeros((height, width), np.uint8)
    left = 3 + 12 * i
    mask[5 : height - 5, left : left + 9] = 255
    Image.fromarray(mask).save(folder / f"{i}.png")


def photo_flags(folder: pathlib.Path, *masks: str, image: str = "photo.png") -> list[str]:
  """--image and one --mask for each name, of files of a folder."""
  flags = ["--image", str(folder / image)]
  for name in masks:
    flags += ["--mask", str(folder / f"{name}.png")]
  return flags


def layout_of(folder: pathlib.Path) -> dict:
  """layout.json of a folder of results."""
  text = (folder / "layout.json").read_text()
  return json.loads(text)

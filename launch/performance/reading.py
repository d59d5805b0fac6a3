"""How fast records are read: a made-up dataset, read through the loader on one core, in samples per
CPU second.

CPU seconds of all threads of the process count, so that other work on the machine disturbs little.
The photos are noise of all scales, which compresses somewhat worse than photographs do.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import tempfile
import time

import numpy as np
from PIL import Image

from data_pipelines.format import records, schema
from data_pipelines.read import loader

STREAMS = {
  "crop": ("image", "mask"),
  "crop and photo": ("image", "mask", "rgb_image", "rgb_image_mask"),
  "all streams": ("image", "mask", "rgb_image", "rgb_image_mask", "pointmap", "rgb_pointmap"),
}
# as builders write photos
ENCODING = {
  "jpeg": {"quality": 95, "subsampling": 0},
  "png": {"compress_level": 3},
}
WARM_UP = 16  # samples read before the clock starts


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """(H, W, 3) uint8 of noise whose amplitude falls with frequency."""
  total = np.zeros((height, width, 3), np.float32)
  for octave in range(9):
    # a coarse grid of noise, stretched over the photo
    side = 2 + 2**octave
    grid = rng.standard_normal((side, side, 3)).astype(np.float32) * 40 * 0.75**octave
    layers = []
    for channel in range(3):
      coarse = Image.fromarray(grid[..., channel])
      fine = coarse.resize((width, height), Image.Resampling.BICUBIC)
      layers.append(np.asarray(fine))
    total += np.stack(layers, -1)
  return np.clip(128 + total, 0, 255).astype(np.uint8)


def encode(image: np.ndarray, kind: str) -> bytes:
  """The file of an image. kind: jpeg or png."""
  stream = io.BytesIO()
  Image.fromarray(image).save(stream, kind, **ENCODING[kind])
  return stream.getvalue()


def example(index: int, *, kind: str, size: int, fill: float = 0.6) -> schema.Example:
  """A record with a photo of `size` x `size` pixels, the mask of an ellipse over `fill` of it, a
  structure latent, voxels, a pose, and a point map of half the photo's size.
  """
  rng = np.random.default_rng([7, index])
  row, column = np.mgrid[:size, :size]

  # an ellipse somewhere near the middle
  centre = rng.uniform(0.4, 0.6, 2) * size
  down = (row - centre[0]) / (fill * size / 2)
  across = (column - centre[1]) / (fill * size / 2.4)
  mask = down**2 + across**2 < 1
  mask_png = encode(mask.astype(np.uint8) * 255, "png")

  # a plane before the camera, at half the size, with relief
  rays = np.stack([(size / 2 - column) / size, (size / 2 - row) / size, np.ones((size, size))], -1)
  plane = rays * rng.uniform(1, 3)
  relief = 1 + 0.3 * photo(rng, size // 2, size // 2)[..., :1] / 255
  points = (plane[::2, ::2] * relief).astype(np.float16)

  image = encode(photo(rng, size, size), kind)
  voxels = rng.integers(0, 64, (9000, 3)).astype(np.uint8)
  out = schema.empty_example()
  out |= {
    "key": schema.example_key("measure", index),
    "image": image,
    "mask": mask_png,
    "mask_full": mask_png,
    "voxels": np.unique(voxels, axis=0),
    "structure_latent": rng.standard_normal((16, 16, 16, 8), np.float32),
    "structure_latent_autoencoder": "measure",
    "pointmap": points,
    "rotation": np.eye(3, dtype=np.float32),
    "translation": np.array([0, 0, 2], np.float32),
    "scale": np.ones(3, np.float32),
  }
  return out


def write_dataset(folder: pathlib.Path, *, kind: str, size: int, count: int = 64) -> None:
  """A dataset of `count` made-up records in one shard."""
  shard = records.shard_path(folder, "measure", "train", 0, 1)
  examples = (example(i, kind=kind, size=size) for i in range(count))
  records.write_shard(shard, examples)
  records.write_metadata(folder, name="measure")


def rate(
  data: pathlib.Path,
  *,
  streams: tuple[str, ...],
  image_size: int = 518,
  samples: int = 256,
  batch_size: int = 16,
  threads: int = 1,
) -> float:
  """Samples per CPU second that the loader delivers as batches, shape and rotation among them."""
  # one batch ahead: what is measured is the work, not how much of it can wait
  config = loader.DataConfig(
    mixture={"measured": (str(data), 1.0)},
    streams=streams,
    latents=("shape", "rotation"),
    image_size=image_size,
    threads=threads,
    prefetch=1,
  )
  reading = loader.make_loader(config, kind="geometry", batch_size=batch_size, seed=0)
  with contextlib.closing(reading.iterate()) as batches:
    # queues fill before the clock starts
    for _ in range(max(1, WARM_UP // batch_size)):
      next(batches)
    start = time.process_time()
    for _ in range(samples // batch_size):
      next(batches)
    seconds = time.process_time() - start
  return samples / seconds


@dataclasses.dataclass(frozen=True)
class ReadingSpec:
  """data: dataset to read, None for made-up ones. size: side of the made-up photos, pixels.
  image_size: pixels of what is delivered. samples: read in each of `repeat` runs, of which the best
  is printed.
  """

  data: pathlib.Path | None = None
  size: int = 518
  image_size: int = 518
  samples: int = 256
  repeat: int = 3


def measure(spec: ReadingSpec) -> None:
  """Prints samples per CPU second of one core, for each dataset and set of streams."""
  with one_core(), tempfile.TemporaryDirectory() as scratch:
    for name, folder in datasets(spec, pathlib.Path(scratch)).items():
      # bytes of a photo, which decide what decoding it costs
      size = len(records.open_split(folder)[0]["image"])
      for title, streams in STREAMS.items():
        # the best of several, which other work disturbed least
        best = 0.0
        for _ in range(spec.repeat):
          one = rate(folder, streams=streams, image_size=spec.image_size, samples=spec.samples)
          best = max(best, one)
        print(
          f"{name:8} {size / 1000:6.0f} kB  {title:15} {best:6.0f} samples per CPU second",
          flush=True,
        )


@contextlib.contextmanager
def one_core():
  """Keeps this process on one core, where the system lets it."""
  if not hasattr(os, "sched_setaffinity"):
    yield
    return
  allowed = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {min(allowed)})
  try:
    yield
  finally:
    os.sched_setaffinity(0, allowed)


def datasets(spec: ReadingSpec, scratch: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name -> folder of what is read; made-up ones are written into `scratch`."""
  if spec.data is not None:
    return {spec.data.name: spec.data}
  # photos as cameras write them, and as renderers do
  folders = {}
  for kind in ("jpeg", "png"):
    folders[kind] = scratch / kind
    write_dataset(folders[kind], kind=kind, size=spec.size)
  return folders

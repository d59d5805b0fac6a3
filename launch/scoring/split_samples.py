"""Samples the examples of a dataset split: launch.sample --data."""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import pathlib
import re

import numpy as np

from data_pipelines.format import records
from data_pipelines.read import rows
from launch.console.findings import Findings
from launch.console.progress import Progress, say
from sam3d_jax.content_keys import key_words
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic, folders, names
from sam3d_jax.geometry import pose
from sam3d_jax.inference import weights
from sam3d_jax.inference.candidates import object_colour
from sam3d_jax.inference.predictor import Predictor, Request
from sam3d_jax.inference.weights import WeightsConfig
from sam3d_jax.render import mesh

SAMPLES_FILE = "samples.npz"
PART = re.compile(r"\d{7,}\.npz")  # a finished batch


@dataclasses.dataclass(frozen=True)
class SplitConfig:
  """What launch.sample does with a dataset.

  most: examples at most, evenly spaced; 0: all. glb: how many of the samples are written as GLB.
  shuffle_images: take each image from another object. batch_size: objects sampled at once.
  dry_run: print the plan and stop.
  """

  data: str
  split: str
  weights: WeightsConfig
  most: int = 0
  glb: int = 12
  shuffle_images: bool = False
  seed: int = 0
  batch_size: int = 32
  dry_run: bool = False


@dataclasses.dataclass(frozen=True)
class Samples:
  """Contents of samples.npz.

  key: (N,) str, keys of the examples. occupancy: (N, X, Y, Z) bool. rotation: (N, 4) float32,
  quaternions (w, x, y, z) object -> camera in the release's form (pose.release_quaternion).
  """

  key: np.ndarray
  occupancy: np.ndarray
  rotation: np.ndarray
  settings: dict


def run(config: SplitConfig, out: pathlib.Path) -> None:
  """Samples what is not sampled yet, then writes samples.npz and the meshes."""
  # Without the dataset the weights can be looked at all the same.
  found = Findings()
  with found.looking("--data"):
    source = records.open_split(config.data, config.split)
  if found.wrong:
    with found.looking():
      weights.check(config.weights)
    found.tell()

  # Which examples of it.
  chosen = choose(len(source), config.most)
  if config.shuffle_images and len(chosen) < 2:
    raise InputError("--shuffle_images needs at least 2 examples")
  size = config.batch_size
  print(
    f"plan: {len(chosen)} of {len(source)} examples of {config.data} {config.split}, batches of "
    f"{size}, into {out}"
  )
  if config.dry_run:
    weights.check(config.weights)
    return

  # Finished batches of the same settings are kept.
  predictor = weights.load(config.weights, say)
  settings = {
    "weights": dict(predictor.identity),
    "sampler": dataclasses.asdict(predictor.sampler),
    "seed": config.seed,
    "data": records.dataset_identity(config.data),
    "split": config.split,
    "examples": len(chosen),
    "shuffle_images": config.shuffle_images,
    "batch_size": size,
  }
  parts = prepare_parts(out, settings)
  starts = range(0, len(chosen), size)
  todo = [start for start in starts if not part_file(parts, start).exists()]
  left = sum(len(chosen[start : start + size]) for start in todo)

  # Whose image each example is shown.
  images = shuffled(source, chosen) if config.shuffle_images else chosen
  with Progress(len(chosen), "sampling", "objects", done=len(chosen) - left) as bar:
    for start in todo:
      part = slice(start, start + size)
      keys, occupancy, rotation = sample_batch(
        predictor,
        source,
        chosen[part],
        images[part],
        config,
      )
      write_part(part_file(parts, start), keys, occupancy, rotation)
      bar.update(len(keys))

  # All of them as one file, some of them as meshes.
  files = [part_file(parts, start) for start in starts]
  result = join_parts(out, files, predictor.resolution, settings)
  written = write_meshes(out, source, chosen, result, config.glb)
  filled = result.occupancy.any((1, 2, 3))
  empty = int((~filled).sum())
  print(
    f"{out / SAMPLES_FILE}: {len(result.key)} samples, {empty} of them empty; {written} GLB files"
  )


def choose(count: int, most: int) -> list[int]:
  """Indices of the examples to sample: all, or `most` evenly spaced ones."""
  if not most or most >= count:
    return list(range(count))
  return [i * count // most for i in range(most)]


def shuffled(source, chosen: list[int]) -> list[int]:
  """For each chosen example one of another mesh to take the image from: half a turn of the order by
  mesh.

  Raises InputError if more than half of the examples are of one mesh.
  """
  mesh_of = {}
  for i in chosen:
    example = source[i]
    mesh_of[i] = example["mesh_key"] or example["key"]

  # Half a turn on, the partner is of another mesh unless one mesh has more than half.
  order = sorted(chosen, key=lambda i: (mesh_of[i], i))
  half = len(order) // 2
  turned = order[half:] + order[:half]
  partner = dict(zip(order, turned, strict=True))
  same_mesh = [i for i in chosen if mesh_of[i] == mesh_of[partner[i]]]
  if same_mesh:
    raise InputError("--shuffle_images: more than half of the examples are of one mesh")
  return [partner[i] for i in chosen]


def sample_batch(
  predictor: Predictor, source, chosen: list[int], images: list[int], config: SplitConfig
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """(keys, occupancy, rotation quaternions) of some examples, each with the image of another's."""
  # The noise is that of the example, whoever's image it is shown.
  keys = []
  for i in chosen:
    with naming(source, i):
      keys.append(source[i]["key"])
  requests = []
  for i, key in zip(images, keys, strict=True):
    with naming(source, i):
      condition = rows.condition(source[i], predictor.form, None)
    requests.append(Request(condition.streams, key_words(key)))
  found = predictor(requests, config.batch_size, config.seed)
  rotation = pose.release_quaternion(found.rotation)
  return keys, found.occupancy, np.asarray(rotation, np.float32)


@contextlib.contextmanager
def naming(source, index: int) -> Iterator[None]:
  """Says which record it is that cannot be used. Raises InputError."""
  try:
    yield
  except records.CorruptRecord as error:
    file, place = source.locate(index)
    raise InputError(
      f"--data: record {place} of {file} cannot be sampled: {error}; build the dataset again"
    ) from error


def prepare_parts(out: pathlib.Path, settings: dict) -> pathlib.Path:
  """The folder of finished batches; those of other settings are dropped.

  Raises InputError for a folder of that name that this command has not made.
  """
  parts = out / "parts"
  record = parts / "settings.json"
  text = json.dumps(settings, sort_keys=True, indent=1)
  if record.is_file() and record.read_bytes() == text.encode():
    return parts
  folders.check_own(parts, record, "seed", "--out")

  # Other settings: their batches do not fit these.
  parts.mkdir(exist_ok=True)
  for stale in parts.glob("*.npz"):
    if PART.fullmatch(stale.name):
      stale.unlink()
  atomic.write_text(record, text)
  return parts


def part_file(parts: pathlib.Path, start: int) -> pathlib.Path:
  return parts / f"{start:07d}.npz"


def write_npz(path: pathlib.Path, **arrays: np.ndarray) -> None:
  """Writes arrays so that the file is whole or absent."""
  with atomic.write(path) as temporary:
    np.savez_compressed(temporary, **arrays)


def write_part(
  path: pathlib.Path, keys: list[str], occupancy: np.ndarray, rotation: np.ndarray
) -> None:
  flat = occupancy.reshape(len(keys), -1)
  write_npz(
    path,
    key=np.array(keys),
    occupancy=np.packbits(flat, axis=-1),
    rotation=rotation,
  )


def join_parts(
  out: pathlib.Path, files: list[pathlib.Path], resolution: int, settings: dict
) -> Samples:
  """Writes samples.npz from the finished batches."""
  # The columns of all batches.
  columns: dict[str, list] = {"key": [], "occupancy": [], "rotation": []}
  for file in files:
    with np.load(file) as part:
      for name, column in columns.items():
        column.append(part[name])

  text = json.dumps(settings, sort_keys=True)
  write_npz(
    out / SAMPLES_FILE,
    key=np.concatenate(columns["key"]),
    occupancy=np.concatenate(columns["occupancy"]),
    rotation=np.concatenate(columns["rotation"]),
    resolution=np.array(resolution),
    settings=np.array(text),
  )
  return load_samples(out)


def load_samples(folder: str | pathlib.Path) -> Samples:
  """Reads samples.npz of a folder. Raises InputError if there is none."""
  path = pathlib.Path(folder) / SAMPLES_FILE
  if not path.is_file():
    raise InputError(f"{path} does not exist; make it with launch.sample --data DIR --out {folder}")
  with np.load(path) as file:
    # Grids are stored as bits, the last byte filled up.
    resolution = int(file["resolution"])
    bits = np.unpackbits(file["occupancy"], axis=-1, count=resolution**3)
    grids = bits.reshape(-1, resolution, resolution, resolution)
    settings = json.loads(str(file["settings"]))
    return Samples(
      key=file["key"],
      occupancy=grids.astype(bool),
      rotation=file["rotation"],
      settings=settings,
    )


def mesh_file(out: pathlib.Path, key: str) -> pathlib.Path:
  """Where the mesh of an example goes, in `out` whatever its key is."""
  return out / f"{names.file_name(key)}.glb"


def write_meshes(out: pathlib.Path, source, chosen: list[int], result: Samples, count: int) -> int:
  """Writes evenly spaced samples as <key>.glb and returns how many are not empty."""
  if not count:
    return 0
  # In the colour of the photo's object; an empty sample has no mesh.
  written = 0
  for position in choose(len(chosen), count):
    example = source[chosen[position]]
    image = rows.decode_image(example["image"], "image", mode="RGB")
    mask = rows.decode_image(example["mask"], "mask", mode="L")
    colour = object_colour(image, mask)
    shape = mesh.from_occupancy(result.occupancy[position], colour=colour)
    if shape is not None:
      mesh.write_glb(mesh_file(out, result.key[position]), {"object": shape})
      written += 1
  return written

"""Samples the examples of a dataset split: launch.sample --data."""

import argparse
import dataclasses
import json
import pathlib

import numpy as np

from data_pipelines.format import records, schema
from data_pipelines.read import rows
from launch import sample
from launch.console.progress import Progress
from sam3d_jax.batch import Conditioning
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic
from sam3d_jax.geometry import pose
from sam3d_jax.inference.candidates import object_colour
from sam3d_jax.inference.predictor import Predictor
from sam3d_jax.render import mesh

SAMPLES_FILE = "samples.npz"


@dataclasses.dataclass(frozen=True)
class Samples:
  """Contents of rows.npz. `rotation` are quaternions (w, x, y, z) object -> camera in the
  release's form (pose.release_quaternion).
  """

  key: np.ndarray  # (N,) str, keys of the examples
  occupancy: np.ndarray  # (N, X, Y, Z) bool
  rotation: np.ndarray  # (N, 4) float32
  settings: dict


def run(args: argparse.Namespace, out: pathlib.Path) -> None:
  """Samples what is not sampled yet, then writes rows.npz and the meshes."""
  source = records.open_split(args.data, args.split)
  chosen = choose(len(source), args.max)
  if args.shuffle_images and len(chosen) < 2:
    raise InputError("--shuffle_images needs at least 2 examples")
  print(
    f"plan: {len(chosen)} of {len(source)} examples of {args.data} {args.split}, batches of "
    f"{args.batch_size}, into {out}"
  )
  if args.dry_run:
    return
  predictor = sample.load_predictor(args)
  settings = {
    "weights": dict(predictor.identity),
    "sampler": dataclasses.asdict(predictor.sampler),
    "seed": args.seed,
    "data": records.dataset_identity(args.data),
    "split": args.split,
    "examples": len(chosen),
    "shuffle_images": args.shuffle_images,
    "batch_size": args.batch_size,
  }
  parts = prepare_parts(out, settings)
  images = shuffled(source, chosen) if args.shuffle_images else chosen
  starts = range(0, len(chosen), args.batch_size)
  todo = [s for s in starts if not part_file(parts, s).exists()]
  done = len(chosen) - sum(min(args.batch_size, len(chosen) - s) for s in todo)
  with Progress(len(chosen), "sampling", "objects", done=done) as bar:
    for start in todo:
      rows = chosen[start : start + args.batch_size]
      write_part(
        part_file(parts, start),
        *sample_batch(predictor, source, rows, images[start : start + args.batch_size], args),
      )
      bar.update(len(rows))
  result = join_parts(out, [part_file(parts, s) for s in starts], predictor.resolution, settings)
  written = write_meshes(out, source, chosen, result, args.glb)
  empty = int((~result.occupancy.any((1, 2, 3))).sum())
  print(
    f"{out / SAMPLES_FILE}: {len(result.key)} samples, {empty} of them empty; {written} GLB files"
  )


def choose(count: int, most: int) -> list[int]:
  """Indices of the examples to sample: all, or `most` evenly spaced ones."""
  return (
    list(range(count)) if not most or most >= count else [i * count // most for i in range(most)]
  )


def shuffled(source, chosen: list[int]) -> list[int]:
  """For each chosen example one of another mesh to take the image from: half a turn of the order by
  mesh.

  Raises InputError if more than half of the examples are of one mesh.
  """
  mesh_of = {i: source[i]["mesh_key"] or source[i]["key"] for i in chosen}
  order = sorted(chosen, key=lambda i: (mesh_of[i], i))
  partner = dict(zip(order, order[len(order) // 2 :] + order[: len(order) // 2], strict=True))
  if any(mesh_of[i] == mesh_of[partner[i]] for i in chosen):
    raise InputError("--shuffle_images: more than half of the examples are of one mesh")
  return [partner[i] for i in chosen]


def sample_batch(
  predictor: Predictor, source, chosen: list[int], images: list[int], args: argparse.Namespace
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """(keys, occupancy, rotation quaternions) of some examples. Short batches are padded, so there is
  one compilation.
  """
  keys = [source[i]["key"] for i in chosen]
  conditions = [rows.condition(source[i], predictor.row, None)[0] for i in images]
  padded = conditions + [conditions[0]] * (args.batch_size - len(chosen))
  content = np.stack(
    [schema.key_words(k) for k in keys] + [np.zeros(2, np.uint32)] * (args.batch_size - len(chosen))
  )
  found = predictor(Conditioning(*rows.stack(padded)), content, args.seed)
  rotation = pose.release_quaternion(found.rotation)
  return keys, found.occupancy[: len(chosen)], np.asarray(rotation[: len(chosen)], np.float32)


def prepare_parts(out: pathlib.Path, settings: dict) -> pathlib.Path:
  """The folder of finished batches; those of other settings are dropped."""
  parts = out / "parts"
  parts.mkdir(exist_ok=True)
  record, text = parts / "settings.json", json.dumps(settings, sort_keys=True, indent=1)
  if not record.exists() or record.read_text() != text:
    for stale in parts.glob("*.npz"):
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
  write_npz(
    path,
    key=np.array(keys),
    occupancy=np.packbits(occupancy.reshape(len(keys), -1), axis=-1),
    rotation=rotation,
  )


def join_parts(
  out: pathlib.Path, files: list[pathlib.Path], resolution: int, settings: dict
) -> Samples:
  """Writes rows.npz from the finished batches."""
  columns: dict[str, list] = {"key": [], "occupancy": [], "rotation": []}
  for file in files:
    with np.load(file) as part:
      for name, column in columns.items():
        column.append(part[name])
  arrays = {name: np.concatenate(column) for name, column in columns.items()}
  text = json.dumps(settings, sort_keys=True)
  write_npz(out / SAMPLES_FILE, **arrays, resolution=np.array(resolution), settings=np.array(text))
  return load_samples(out)


def load_samples(folder: str | pathlib.Path) -> Samples:
  """Reads rows.npz of a folder. Raises InputError if there is none."""
  path = pathlib.Path(folder) / SAMPLES_FILE
  if not path.is_file():
    raise InputError(f"{path} does not exist; make it with launch.sample --data DIR --out {folder}")
  with np.load(path) as file:
    resolution = int(file["resolution"])
    bits = np.unpackbits(file["occupancy"], axis=-1, count=resolution**3)
    return Samples(
      key=file["key"],
      occupancy=bits.reshape(-1, *(resolution,) * 3).astype(bool),
      rotation=file["rotation"],
      settings=json.loads(str(file["settings"])),
    )


def write_meshes(out: pathlib.Path, source, chosen: list[int], result: Samples, count: int) -> int:
  """Writes evenly spaced samples as <key>.glb and returns how many are not empty."""
  written = 0
  for position in choose(len(chosen), count) if count else []:
    example = source[chosen[position]]
    colour = object_colour(
      rows.decode_image(example["image"], "image", mode="RGB"),
      rows.decode_image(example["mask"], "mask", mode="L"),
    )
    shape = mesh.from_occupancy(result.occupancy[position], colour=colour)
    if shape is not None:
      mesh.write_glb(out / f"{result.key[position]}.glb", {"object": shape})
      written += 1
  return written

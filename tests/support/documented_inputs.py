"""What the commands of pages read, small and real, so that their dry runs can look at it."""

import json
import pathlib

import numpy as np
from PIL import Image
import trimesh

from data_pipelines.engine import project
from launch import make_examples
from launch.performance import rendering
from sam3d_jax.files import splat_files
from sam3d_jax.torch_bridge import release_writer
from tests.support import sampling, tiny_dataset, tiny_release, tiny_weights

# Flag -> what lies where its value points.
INPUTS = {
  "--config.source": "meshes",
  "--config.photos.source": "rooms",
  "--against": "meshes",
  "--data": "data",
  "--checkpoint": "run",
  "--compare": "run",
  "--goodput": "run",
  "--decoder": "vae",
  "--vae": "vae",
  "--release": "release",
  "--take_from": "release",
  "--from": "release",
  "--image": "photo/photo.png",
  "--mask": "photo/cup.png",
  "--labels": "photo/labels.png",
  "--pointmap": "photo/points.npz",
  "--images": "photos",
  "--pairs": "pairs",
  "--photos": "set",
  "--mesh": "meshes/box_0.glb",
  "--project": "engine",
  "--input": "object.ply",
  "--camera": "camera.json",
  "--encoder": "release/ss_encoder.safetensors",
}
# ... where a command or a configuration means something else.
OTHERWISE = {
  ("launch.encode_latents", "--checkpoint"): "vae",
  ("rp_3do_osa", "--config.source"): "items",
  ("mitl_3do", "--config.source"): "items",
  ("art_3do", "--config.source"): "items",
  ("preferences", "--config.source"): "items",
}
# Models of the second stage: what pages call them, and which kind they are.
SECOND = {
  "texture": "texture",
  "slat_vae": "slat_vae",
  "slat_small": "slat_gaussian",
  "slat_mesh": "slat_mesh",
}
OUTPUTS = ("--out", "--workdir", "--config.out", "--html", "--json", "--depth")


def write(folder: pathlib.Path) -> None:
  """All of it."""
  # meshes, photos and what people chose
  (folder / "meshes").mkdir()
  for number in range(3):
    box = trimesh.creation.box(extents=(1, 1 + number, 2))
    box.export(folder / "meshes" / f"box_{number}.glb")
  for kind in ("rooms", "items"):
    make = ["--out", str(folder / kind), "--count", "2", "--image_size", "64"]
    assert make_examples.main([kind, *make]) == 0

  # a project of the data engine
  project.create(folder / "engine", project.Settings()).close()

  # photos of objects
  (folder / "photo").mkdir()
  sampling.write_cup_photo(folder / "photo")
  labels = np.zeros((40, 60), np.uint8)
  labels[5:20, 5:20] = 1
  labels[25:35, 30:50] = 5
  Image.fromarray(labels).save(folder / "photo" / "labels.png")
  points = np.random.default_rng(0).uniform(1, 2, (40, 60, 3))
  np.savez(folder / "photo" / "points.npz", points=points.astype(np.float32))
  sampling.write_photo(folder / "photos" / "one", 40, 60, objects=2)

  # splats, and a camera that looks at them
  splat_files.write(folder / "object.ply", rendering.made_up(8))
  matrix = np.eye(4)
  matrix[2, 3] = 2
  size = {"width": 16, "height": 12, "fx": 20, "fy": 20, "cx": 8, "cy": 6}
  view = json.dumps(size | {"world_to_camera": matrix.tolist()})
  (folder / "camera.json").write_text(view)

  # pairs of meshes
  (folder / "pairs" / "box").mkdir(parents=True)
  for name in ("pred", "truth"):
    trimesh.creation.box().export(folder / "pairs" / "box" / f"{name}.glb")

  # an object of an evaluation set
  write_object(folder / "set" / "box")

  # a dataset, models of its latents, and a release
  for split, first in (("train", 0), ("test", 2)):
    tiny_dataset.write_dataset(folder / "data", 2, split=split, first=first, latent=False)
  tiny_dataset.write_dataset(folder / "data", 2, split="test", first=2, latent=False)
  vae = tiny_weights.save_vae(folder / "vae")
  tiny_weights.save_random(
    "configs/pretrain_geometry.py:fake",
    tiny_weights.GEOMETRY,
    folder / "run",
    latents={"path": vae},
  )
  row = {"event": "begin", "unix_time": 1.0, "wall": 1.0, "step": None, "seconds": {"init": 1.0}}
  (folder / "run" / "goodput.jsonl").write_text(json.dumps(row) + "\n")
  second = {name: tiny_release.in_memory(kind, 2) for name, kind in SECOND.items()}
  for name, model in second.items():
    tiny_release.save_run(folder / name, model.config, model.params, {})
  release_writer.write_release(
    folder / "release",
    tiny_release.in_memory("geometry", 0),
    tiny_release.in_memory("structure_vae", 1),
    list(second.values()),
    storage=tiny_release.SAFETENSORS,
  )


def write_object(folder: pathlib.Path) -> None:
  """image, mask and mesh of one object of an evaluation set."""
  folder.mkdir(parents=True)
  sampling.write_cup_photo(folder)
  (folder / "photo.png").rename(folder / "image.png")
  (folder / "cup.png").rename(folder / "mask.png")
  (folder / "plate.png").unlink()
  trimesh.creation.box().export(folder / "mesh.glb")


def given(module: str, words: list[str], inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
  """The words with what is there in place of what the page calls it, and new outputs."""
  config = ""
  changed = []
  flag = ""
  # of a new project, a new folder
  makes_project = "create" in words
  for word in words:
    name, equals, value = word.partition("=")
    if word.startswith("--"):
      flag = name
      if flag == "--config":
        config = pathlib.Path(value).stem
      if not equals:
        changed.append(word)
        continue
      changed.append(f"{name}={_value(module, config, name, value, inputs, out)}")
      continue
    if flag == "--config":
      config = pathlib.Path(word).stem
    if makes_project and flag == "--project":
      changed.append(str(out / word))
    else:
      changed.append(_value(module, config, flag, word, inputs, out))
  return changed


def _value(
  module: str, config: str, flag: str, value: str, inputs: pathlib.Path, out: pathlib.Path
) -> str:
  """What stands behind a flag."""
  # several models, each by its name
  if flag == "--second":
    return str(inputs / pathlib.Path(value).name)
  if flag in OUTPUTS:
    return str(out / pathlib.Path(value).name)
  if flag == "--generator":
    # NAME=KIND:PATH
    return value.rpartition(":")[0] + f":{inputs / 'meshes'}"
  asset = INPUTS.get(flag)
  for about in (module, config):
    asset = OTHERWISE.get((about, flag), asset)
  if flag == "--mask" and "spoon" in value:
    asset = "photo/plate.png"
  return str(inputs / asset) if asset else value

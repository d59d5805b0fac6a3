"""The Python API as a user calls it, and the one road of every caller, with a tiny random model."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

from flax import nnx
import jax
import numpy as np
from PIL import Image
import pytest

from data_pipelines.eval_sets.item import Item
from data_pipelines.read import rows
from launch import sample
from launch.scoring import eval_set, held_out, split_samples
from sam3d_jax.content_keys import key_words
from sam3d_jax.errors import InputError
from sam3d_jax.geometry import conditions
from sam3d_jax.inference import Reconstructor, Scene, predictor
from sam3d_jax.inference import weights as weights_lib
from sam3d_jax.inference.predictor import Request
from sam3d_jax.inference.weights import WeightsConfig
from tests.support import tiny_dataset, tiny_weights

ROOT = pathlib.Path(__file__).parents[3]
BUCKET = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """(geometry, decoder) work folders."""
  folder = tmp_path_factory.mktemp("weights")
  geometry = tiny_weights.save_with_pointmap(folder / "geometry")
  return geometry, tiny_weights.save_vae(folder / "vae")


@pytest.fixture(scope="module")
def model(folders):
  geometry, decoder = folders
  return Reconstructor.from_checkpoint(geometry, decoder=decoder, steps=1, batch_size=BUCKET)


@pytest.fixture(scope="module")
def photo():
  """image, masks and point map of two objects before a wall, as arrays."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
  left = np.zeros((40, 60), bool)
  left[10:30, 5:25] = True
  right = np.zeros((40, 60), bool)
  right[12:36, 35:55] = True

  v, u = np.mgrid[:40, :60] + 0.5
  depth = np.where(left | right, 2.0, 3.0)
  x = (30 - u) * depth / 60
  y = (20 - v) * depth / 60
  points = np.stack([x, y, depth], -1)
  return image, [left, right], points.astype(np.float32)


@pytest.fixture(scope="module")
def scene(model, photo):
  image, masks, pointmap = photo
  return model(image, masks, pointmap=pointmap, seed=3)


def grids(scene: Scene) -> list[np.ndarray]:
  return [found.candidate.prediction.occupancy for found in scene.objects]


def test_a_photo_gives_a_scene_of_its_objects_in_the_camera_frame(scene):
  assert [found.name for found in scene.objects] == ["object_1", "object_2"]
  assert scene.frame == "camera"
  assert scene.photo.camera.fx == pytest.approx(60, rel=1e-3)
  for found in scene.objects:
    assert found.splats is None
    assert found.mesh.vertices.shape[1] == 3
    rotation = found.pose.rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
  with pytest.raises(dataclasses.FrozenInstanceError):
    scene.objects = ()


def test_a_saved_scene_is_what_launch_sample_writes(scene, model, folders, photo, tmp_path):
  image, masks, pointmap = photo
  api = tmp_path / "api"
  cli = tmp_path / "cli"
  scene.save(api)

  # the same inputs as files
  Image.fromarray(image).save(tmp_path / "photo.png")
  np.save(tmp_path / "points.npy", pointmap)
  argv = ["--checkpoint", folders[0], "--decoder", folders[1], "--steps", "1"]
  argv += ["--batch_size", str(BUCKET), "--seed", "3", "--out", str(cli)]
  argv += ["--image", str(tmp_path / "photo.png"), "--pointmap", str(tmp_path / "points.npy")]
  for name, mask in zip(("object_1", "object_2"), masks, strict=True):
    file = tmp_path / f"{name}.png"
    Image.fromarray(mask.astype(np.uint8) * 255).save(file)
    argv += ["--mask", str(file)]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(weights_lib, "load", lambda config, tell: model.predictor)  # compiled already
    assert sample.main(argv) == 0

  of_api = json.loads((api / "layout.json").read_text())
  of_cli = json.loads((cli / "layout.json").read_text())
  assert of_api["objects"] == of_cli["objects"]
  assert of_api["files"] == of_cli["files"]
  for name in of_api["files"]:
    assert (api / name).read_bytes() == (cli / name).read_bytes(), name


def test_a_list_of_photos_is_one_batch_and_nobody_depends_on_it(model, scene, photo):
  image, masks, pointmap = photo
  mirrored = image[:, ::-1]
  mirrored_mask = masks[0][:, ::-1]
  before = len(model.predictor.programs)
  first, second = model(
    [image, mirrored],
    [masks, mirrored_mask],
    [pointmap, None],
    seed=3,
  )
  assert len(model.predictor.programs) == before  # the same bucket
  for one, other in zip(grids(first), grids(scene), strict=True):
    np.testing.assert_array_equal(one, other)
  assert second.frame == "normalised"
  assert len(second.objects) == 1


def test_files_are_taken_as_arrays_are(model, scene, photo, tmp_path):
  image, masks, pointmap = photo
  alpha = masks[0][..., None] * np.uint8(255)
  rgba = np.concatenate([image, alpha], -1)
  Image.fromarray(rgba).save(tmp_path / "cup.png")
  np.save(tmp_path / "points.npy", pointmap)
  found = model(tmp_path / "cup.png", pointmap=tmp_path / "points.npy", seed=3)
  assert [o.name for o in found.objects] == ["object"]
  np.testing.assert_array_equal(grids(found)[0], grids(scene)[0])


@pytest.mark.parametrize(
  "change, message",
  [
    ({"image": np.zeros((40, 60), np.uint8)}, "give H x W x 3"),
    ({"image": np.zeros((40, 60, 3), np.float32)}, "give uint8"),
    ({"masks": []}, "one mask for each object"),
    ({"masks": np.zeros((40, 60), bool)}, "is empty"),
    ({"masks": np.eye(30, dtype=bool)}, "the photo is 60 x 40"),
    ({"pointmap": np.ones((40, 40, 3), np.float32)}, "differ in aspect"),
    ({"masks": None}, "no alpha channel"),
    ({"samples": 0}, "samples = 0"),
    ({"image": []}, "at least one photo"),
  ],
)
def test_unusable_inputs_are_refused_with_the_remedy(model, photo, change, message):
  image, masks, pointmap = photo
  arguments = {"image": image, "masks": masks, "pointmap": pointmap} | change
  with pytest.raises(InputError, match=message):
    model(**arguments)


def test_a_texture_model_is_refused_until_there_is_one(folders):
  with pytest.raises(InputError, match="no texture model yet"):
    Reconstructor.from_checkpoint(folders[0], texture="somewhere")


@pytest.mark.parametrize("pointmap", (True, False))
def test_every_road_draws_the_same_bits_for_the_same_object(model, folders, pointmap):
  """Photos, datasets, evaluation sets, held-out objects, and previews traced over parameters."""
  drawer = model.predictor
  example = tiny_dataset.make_example(5, pointmap=pointmap)
  image = rows.decode_image(example["image"], "image", mode="RGB")
  mask = rows.decode_image(example["mask"], "mask", mode="L") > 0
  points = example["pointmap"].astype(np.float32) if pointmap else None
  key = key_words(example["key"])

  # photos, by the function that Reconstructor calls
  condition = conditions.condition(image, mask, points, drawer.form)
  photo = Request(condition.streams, key)
  expected = drawer([photo], BUCKET, 0).occupancy[0]

  # a dataset
  config = split_samples.SplitConfig("", "test", WeightsConfig(), batch_size=BUCKET)
  _, dataset, _ = split_samples.sample_batch(drawer, [example], [0], [0], config)
  np.testing.assert_array_equal(dataset[0], expected)

  # an evaluation set
  item = Item("thing", image, mask, None, None, pointmap_HW3=points)
  evaluated = Request(eval_set.condition(drawer, item).streams, key)
  np.testing.assert_array_equal(drawer([evaluated], BUCKET, 0).occupancy[0], expected)

  # the ladder
  found = held_out.object_of(example, drawer.form, drawer.resolution)
  held = held_out.requests([found])
  np.testing.assert_array_equal(drawer(held, BUCKET, 0).occupancy[0], expected)

  # previews, which trace the same function over parameters
  model_graph, model_params = nnx.split(drawer.model)
  decoder_graph, decoder_params = nnx.split(drawer.decoder)

  @jax.jit
  def preview(params, cond, key_B2):
    model = nnx.merge(model_graph, params[0])
    decoder = nnx.merge(decoder_graph, params[1])
    return predictor.sample_objects(
      model,
      decoder,
      cond,
      key_B2,
      drawer.sampler,
      drawer.latent_shapes,
    )

  cond, key_B2 = predictor.batch(held, BUCKET, 0)
  _, previewed = preview((model_params, decoder_params), cond, key_B2)
  np.testing.assert_array_equal(previewed[0], expected)


def test_tokens_of_a_missing_point_map_are_dropped_not_those_of_unknown_points(model, photo):
  image, masks, pointmap = photo
  form = model.predictor.form
  without = conditions.condition(image, masks[0], None, form).streams
  given = conditions.condition(image, masks[0], pointmap, form).streams
  cond = jax.tree.map(lambda *x: np.stack(x), without, given)
  encoder = model.predictor.model.condition
  graph, params = nnx.split(encoder)

  @jax.jit
  def tokens(params, cond, drop_B):
    encoder = nnx.merge(graph, params)
    return encoder(cond, drop_B)

  kept = np.asarray(tokens(params, cond, np.full(2, False)))
  dropped = np.asarray(tokens(params, cond, np.full(2, True)))
  np.testing.assert_array_equal(kept[0], dropped[0])  # dropped, whatever is asked for
  assert not np.array_equal(kept[1], dropped[1])
  count = 2 * encoder.cfg.pointmap.tokens
  assert not kept[0, -count:].any()
  assert kept[1, -count:].any()


def test_the_example_of_the_page_runs(folders, photo, tmp_path):
  image, masks, _ = photo
  run_example("docs/inference.md", folders, image, masks, tmp_path)
  assert (tmp_path / "out" / "layout.json").is_file()


def test_the_notebook_runs(folders, photo, tmp_path):
  image, masks, _ = photo
  run_example("examples/reconstruct.ipynb", folders, image, masks, tmp_path)
  assert (tmp_path / "out" / "layout.json").is_file()


def run_example(path: str, folders, image, masks, folder: pathlib.Path) -> None:
  """Runs the code of a page or notebook on the tiny model, in a process of its own."""
  text = (ROOT / path).read_text()
  if path.endswith(".ipynb"):
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
  else:
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
  # the tiny model stands in for a release
  loading = 'Reconstructor.from_release("checkpoints")'
  assert loading in code
  tiny = f"Reconstructor.from_checkpoint({folders[0]!r}, decoder={folders[1]!r}, steps=1)"
  Image.fromarray(image).save(folder / "photo.png")
  Image.fromarray(masks[0].astype(np.uint8) * 255).save(folder / "cup.png")
  Image.fromarray(masks[1].astype(np.uint8) * 255).save(folder / "spoon.png")
  environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
  done = subprocess.run(
    [sys.executable, "-c", code.replace(loading, tiny)],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr

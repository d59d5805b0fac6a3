"""The layout of an annotated item: what is read, and what is wrong is named with its remedy."""

import dataclasses
import json

import numpy as np
import pytest
import trimesh

from data_pipelines.annotations import choices, dataset, items, layout, write
from data_pipelines.build import checks
from data_pipelines.format import schema
from data_pipelines.read import rows
from data_pipelines.synth import assets
from sam3d_jax.errors import Refused
from sam3d_jax.geometry import cameras, pose, rotations
from tests.support import tiny_dataset
from tests.support.annotated import built, copy


@pytest.mark.parametrize(
  "changes, key, words",
  [
    ({"format": 2}, "format", "format 1"),
    ({"photo": "x.jpg"}, "photo", "no such key"),
    ({"mask": "gone.png"}, "mask", "there is no file"),
    ({"frame": "blender"}, "frame", "pytorch3d, opencv, gltf"),
    ({"rating": "good"}, "rating", "finite number"),
    ({"camera": {"fx": 1}}, "camera", "pixels of the photo"),
    ({"candidates": {}, "choices": []}, "candidates", "at least one"),
    (
      {"candidates": {"c0": {"generator": "a", "mesh": "c0.stl", "latents": "c1.npz"}}},
      "candidates.c0",
      "exactly one of",
    ),
    (
      {"candidates": {"c0": {"generator": "a,b", "mesh": "c0.stl"}}},
      "candidates.c0.generator",
      "without commas",
    ),
    (
      {
        "artist": {
          "mesh": "c0.stl",
          "pose": {"rotation": [2, 0, 0, 0], "translation": [0, 0, 1], "scale": 1},
        }
      },
      "artist.pose.rotation",
      "unit quaternion",
    ),
    (
      {
        "artist": {
          "mesh": "c0.stl",
          "pose": {"rotation": [1, 0, 0, 0], "translation": [0, 0, 1], "scale": -1},
        }
      },
      "artist.pose.scale",
      "positive",
    ),
    (
      {"artist": {"latents": "c1.npz", "pose": {"matrix": np.eye(4).tolist()}}},
      "artist.pose",
      "no coordinates of their own",
    ),
  ],
)
def test_a_wrong_value_is_reported_with_file_key_value_and_remedy(
  folder, tmp_path, changes, key, words
):
  path = copy(folder, 0, tmp_path, **changes)
  with pytest.raises(layout.AnnotationError) as caught:
    layout.read(path)
  assert str(caught.value).startswith(f"{path}: {key} = ") and words in str(caught.value)


def test_what_is_no_json_is_reported(tmp_path):
  (tmp_path / layout.FILE).write_text('{"format": 1,')
  with pytest.raises(layout.AnnotationError, match="cannot be read as JSON"):
    layout.read(tmp_path / layout.FILE)


def test_an_item_written_from_a_record_gives_back_the_record(tmp_path):
  example = tiny_dataset.make_example(5)
  truth = schema.example_pose(example)
  rng = np.random.default_rng(0)
  other = write.Proposal("model/v1", voxels=tiny_dataset.ellipsoid_voxels(rng))
  same = write.Proposal(
    "model/v2",
    voxels=example["voxels"],
    structure_latent=example["structure_latent"],
    structure_latent_autoencoder=example["structure_latent_autoencoder"],
    pose=truth,
  )
  write.from_example(
    tmp_path / "item",
    example,
    {"x": other, "y": same},
    choices.from_scores({"x": 0.2, "y": 0.9}),
    rating=4.5,
  )
  (got,), refused = built(tmp_path, "preferences", tmp_path / "out", families=("model",))
  assert not refused and checks.check_example(got, "preference").findings == []
  for field in (
    "image",
    "pointmap",
    "camera",
    "voxels",
    "structure_latent",
    "structure_latent_autoencoder",
    "license",
  ):
    assert tiny_dataset.equal(got[field], example[field]), field
  for field in ("mask", "mask_full"):  # encoded anew
    assert np.array_equal(
      *(rows.decode_image(x[field], field, mode="L") > 0 for x in (got, example))
    )
  for name, value in schema.example_pose(got)._asdict().items():
    np.testing.assert_allclose(value, getattr(truth, name), atol=1e-6)
  assert (got["rating"], got["generator"], [x["generator"] for x in got["losers"]]) == (
    4.5,
    "model/v2",
    ["model/v1"],
  )
  np.testing.assert_array_equal(got["losers"][0]["voxels"], other.voxels)


@pytest.mark.parametrize("suffix", [".glb", ".stl"])
def test_a_matrix_of_the_files_own_coordinates_places_the_same_points(tmp_path, suffix):
  """A mesh in free units, far from the origin, y up (GLB) or z up (STL)."""
  path = tmp_path / f"a{suffix}"
  mesh = trimesh.creation.box((2, 3, 5))
  mesh.apply_translation((7, -4, 11))
  mesh.export(path)

  # where the file's own coordinates go
  quaternion = np.array([0.5, 0.1, -0.7, 0.5])
  quaternion /= np.linalg.norm(quaternion)
  matrix = np.eye(4)
  matrix[:3, :3] = 0.3 * rotations.quaternion_to_matrix(quaternion)
  matrix[:3, 3] = 0.1, 0.2, 9.0
  expected = mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]

  # the pose of the unit cube takes its mesh there
  recipe = items.Recipe("m", "mitl_3do")
  candidate = layout.Candidate("a", "x", mesh=path, file_matrix_44=matrix)
  fields, _, _ = items.shape_fields(candidate, recipe)
  unit = assets.load(path).mesh.vertices
  placed = pose.transform_points(unit, schema.example_pose(fields))
  distances = np.linalg.norm(placed[:, None] - expected[None], axis=-1)
  assert distances.min(1).max() < 1e-5
  corners = np.unique(np.round(placed, 4), axis=0)
  assert len(corners) == 8

  # a matrix that shears is no pose
  sheared = matrix * [[1], [2], [1], [1]]
  candidate = dataclasses.replace(candidate, file_matrix_44=sheared)
  with pytest.raises(Refused, match="bad_pose"):
    items.shape_fields(candidate, recipe)


def test_poses_in_another_frame_are_converted(folder, tmp_path):
  ours = layout.read(folder / "0" / layout.FILE)
  stated = json.loads((folder / "0" / layout.FILE).read_text())
  flip = np.array(cameras.AXES["opencv"])
  for candidate in stated["candidates"].values():
    if "pose" in candidate:
      matrix = rotations.quaternion_to_matrix(np.array(candidate["pose"]["rotation"]))
      moved = candidate["pose"]["translation"] * flip
      candidate["pose"] |= {
        "rotation": (matrix * flip[:, None]).tolist(),
        "translation": moved.tolist(),
      }
  theirs = layout.read(copy(folder, 0, tmp_path, frame="opencv", candidates=stated["candidates"]))
  np.testing.assert_allclose(theirs.best.pose.rotation, ours.best.pose.rotation, atol=1e-6)
  np.testing.assert_allclose(theirs.best.pose.translation, ours.best.pose.translation)


@pytest.mark.parametrize(
  "content",
  [
    b"[" * 100_000,
    b'{"format": 1, "image": "' + b"a" * 5000 + b'", "candidates": {"a": {"generator": "g", '
    b'"latents": "x"}}}',
    b'{"format": 1, "frame": []}',
    b'{"format": 1, "frame": {}, "candidates": []}',
    b'{"format": 1, "candidates": {"a": {"generator": "\\ud800", "mesh": "a"}}}',
    b'{"format": 1, "candidates": {"a": {"generator": "g", "mesh": ["a"]}}}',
    b'{"format": 1, "candidates": {"a": null}}',
    b"null",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"format": NaN,}',
  ],
)
def test_a_broken_item_is_one_input_that_is_refused(tmp_path, content):
  (tmp_path / "x").mkdir()
  (tmp_path / "x" / layout.FILE).write_bytes(content)
  inputs, _ = dataset.list_folder(str(tmp_path))
  assert [entry.name for entry in inputs] == [f"x/{layout.FILE}"]
  with pytest.raises(layout.AnnotationError) as refused:
    layout.read(tmp_path / "x" / layout.FILE)
  assert layout.FILE in str(refused.value) and len(str(refused.value)) < 2000


def test_a_choice_of_anything_but_texts_is_named():
  for wrong in (None, 3, ["a"], {}):
    with pytest.raises(choices.ChoiceError, match="are texts"):
      choices.judge(["a", "b"], [choices.Choice("a", wrong, "left")])


def test_hostile_items_end_no_planning(shared_dir):
  hostile = shared_dir / "hostile" / "annotation_json"
  if not hostile.is_dir():
    pytest.skip(f"{hostile} does not exist")
  inputs, _ = dataset.list_folder(str(hostile))
  assert len(inputs) == 3
  for entry in inputs:
    with pytest.raises(layout.AnnotationError):
      layout.read(hostile / entry.name)


@pytest.mark.parametrize("key", ["image", "mask", "pointmap", "mesh"])
@pytest.mark.parametrize("way", ["dots", "absolute", "link"])
def test_files_lie_below_the_source_unless_it_is_said_otherwise(folder, tmp_path, key, way):
  private = tmp_path / "private.png"
  private.write_bytes(b"secret")
  source = tmp_path / "source"
  path = copy(folder, 0, source / "item")
  link = path.parent / "link.png"
  link.symlink_to(private)
  value = {"dots": "../../private.png", "absolute": str(private), "link": "link.png"}[way]
  stated = json.loads(path.read_text())
  if key == "mesh":
    first = next(iter(stated["candidates"].values()))
    first.pop("latents", None)
    first["mesh"] = value
  else:
    stated[key] = value
  path.write_text(json.dumps(stated))

  with pytest.raises(layout.AnnotationError, match="leads out of .*files_outside"):
    layout.read(path, root=source)
  files = layout.read(path, root=source, files_outside=True).files
  assert private.resolve() in [file.resolve() for file in files]
  if way == "dots":
    layout.read(path, root=tmp_path)  # from elsewhere below the source


def test_no_annotation_needs_so_many_bytes(tmp_path):
  path = tmp_path / layout.FILE
  with path.open("wb") as file:
    file.truncate(layout.MAX_BYTES + 1)
  with pytest.raises(layout.AnnotationError, match="more than"):
    layout.read(path)

"""Annotated photos: the layout, the chain of choices, and the three builders made from them."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest
import trimesh

from data_pipelines.annotations import choices, dataset, items, layout, synthetic, write
from data_pipelines.annotations.choices import Choice, judge
from data_pipelines.build import checks, shard_jobs
from data_pipelines.format import records, schema
from data_pipelines.read import loader, rows
from data_pipelines.synth import assets
from launch import build_data
from launch.console import cli
from sam3d_jax.errors import ConfigError, Refused
from sam3d_jax.geometry import cameras, pose, rotations
from tests.support import tiny_dataset

ROOT = pathlib.Path(__file__).parents[3]
SMALL = synthetic.SyntheticConfig(
  seed=3, count=6, families=("crate", "mug"), image_size=64, candidates=3
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  """Six synthetic items: the fourth is for an artist, the best of the fifth comes from another
  generator.
  """
  root = tmp_path_factory.mktemp("annotated")
  for index in range(SMALL.count):
    synthetic.write_item(root / str(index), index, SMALL)
  return root


def _edit(path: pathlib.Path, **changes) -> pathlib.Path:
  stated = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(stated))
  return path


def _copy(folder: pathlib.Path, index: int, to: pathlib.Path, **changes) -> pathlib.Path:
  shutil.copytree(folder / str(index), to, dirs_exist_ok=True)
  return _edit(to / layout.FILE, **changes)


def _plan(source, builder: str, **changes) -> shard_jobs.Plan:
  settings = {"min_rating": 3.0, "families": ("sam3d",)} | changes
  config = dataset.AnnotationConfig(str(source), items.Recipe(builder, builder, **settings), SMALL)
  return dataset.plan(config, test_fraction=0.0, items_per_shard=4)


def _built(
  source, builder: str, out: pathlib.Path, *, budget: float = 0.0, **changes
) -> tuple[list[dict], dict[str, int]]:
  """(examples, refused by reason)."""
  result = shard_jobs.build(
    _plan(source, builder, **changes), out, workers=1, quarantine_budget=budget
  )
  split = records.open_split(out)
  return [split[i] for i in range(len(split))], result.refused


# Choices.


@pytest.mark.parametrize("seed", range(8))
def test_the_chain_ends_with_the_best_and_every_loser_scored_less_than_its_winner(seed):
  rng = np.random.default_rng(seed)
  scores = dict(zip("abcdefgh", rng.integers(0, 5, 8).tolist(), strict=True))
  verdict = judge(list(scores), choices.from_scores(scores))
  assert scores[verdict.best] == max(scores.values())
  assert all(
    scores[winner] > scores[loser] for winner, losers in verdict.beaten.items() for loser in losers
  )
  alike = sum(score == scores[verdict.best] for score in scores.values())
  # everything else lost to the best
  assert len(verdict.beaten.get(verdict.best, ())) == len(scores) - alike


def test_equal_candidates_share_their_fate_and_never_lose_to_each_other():
  verdict = judge(
    "abcd", [Choice("a", "b", "left"), Choice("a", "c", "equal"), Choice("c", "d", "right")]
  )
  assert verdict == choices.Verdict(
    "d", {"a": ("b",), "c": ("b",), "d": ("b", "a", "c")}, ("a", "b", "c", "d")
  )
  assert judge("ab", [Choice("a", "b", "equal", kept="b")]) == choices.Verdict("b", {}, ("a", "b"))


@pytest.mark.parametrize(
  "made, words",
  [
    ([Choice("a", "b", "up")], r"choices\[0\].answer = 'up': write one of left, right, equal"),
    ([Choice("a", "x", "left")], r"choices\[0\].right = 'x': no such candidate; there are a, b, c"),
    (
      [Choice("a", "b", "left"), Choice("b", "c", "left")],
      r"choices\[1\] compares 'b' with 'c': in a chain the one that stays \('a'\)",
    ),
    ([Choice("a", "b", "left"), Choice("a", "b", "right")], r"choices\[1\]"),
    ([], "3 candidates need a chain"),
    ([Choice("a", "b", "left", kept="a")], "kept"),
  ],
)
def test_what_is_no_chain_is_named(made, words):
  with pytest.raises(choices.ChoiceError, match=words):
    judge("abc", made)


# The layout.


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
  path = _copy(folder, 0, tmp_path, **changes)
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
  (got,), refused = _built(tmp_path, "preferences", tmp_path / "out", families=("model",))
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
  mesh = trimesh.creation.box((2, 3, 5))
  mesh.apply_translation((7, -4, 11))
  mesh.export(tmp_path / f"a{suffix}")
  turn = rotations.quaternion_to_matrix(
    np.array([0.5, 0.1, -0.7, 0.5]) / np.linalg.norm([0.5, 0.1, -0.7, 0.5])
  )
  matrix = np.eye(4)
  matrix[:3, :3], matrix[:3, 3] = 0.3 * turn, (0.1, 0.2, 9.0)
  candidate = layout.Candidate("a", "x", mesh=tmp_path / f"a{suffix}", file_matrix_44=matrix)
  fields, _ = items.shape_fields(candidate, items.Recipe("m", "mitl_3do"))
  unit = assets.load(tmp_path / f"a{suffix}").mesh.vertices
  placed = pose.transform_points(unit, schema.example_pose(fields))
  expected = mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]
  nearest = np.linalg.norm(placed[:, None] - expected[None], axis=-1).min(1)
  assert nearest.max() < 1e-5 and len(np.unique(np.round(placed, 4), axis=0)) == 8
  candidate = dataclasses.replace(candidate, file_matrix_44=matrix * [[1], [2], [1], [1]])
  with pytest.raises(Refused, match="bad_pose"):
    items.shape_fields(candidate, items.Recipe("m", "mitl_3do"))


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
  theirs = layout.read(_copy(folder, 0, tmp_path, frame="opencv", candidates=stated["candidates"]))
  np.testing.assert_allclose(theirs.best.pose.rotation, ours.best.pose.rotation, atol=1e-6)
  np.testing.assert_allclose(theirs.best.pose.translation, ours.best.pose.translation)


# The builders.


def test_accepted_shapes_stand_on_their_photos(folder, tmp_path):
  examples, refused = _built(folder, "mitl_3do", tmp_path)
  assert (len(examples), refused) == (5, {"low_rating": 1})
  for example in examples:
    report = checks.check_example(example)
    assert report.findings == [] and report.silhouette_iou > 0.75
    assert (
      example["rating"] >= 3
      and example["license"] == "CC0-1.0"
      and schema.is_present(example, "pointmap")
    )


def test_artists_meshes_have_a_builder_of_their_own(folder, tmp_path):
  (example,), refused = _built(folder, "art_3do", tmp_path)
  assert refused == {"no_artist_mesh": 5} and checks.check_example(example).findings == []
  assert json.loads(example["lineage"])["generator"] == "artist" and not schema.is_present(
    example, "rating"
  )


def test_pairs_come_from_the_named_families_only(folder, tmp_path):
  examples, refused = _built(folder, "preferences", tmp_path / "own")
  assert refused == {"low_rating": 1, "other_generator": 1} and len(examples) == 4
  for example in examples:
    assert checks.check_example(example, "preference").findings == []
    assert example["losers"] and {x["generator"] for x in (example, *example["losers"])} == {
      synthetic.OWN
    }
  everyone, refused = _built(folder, "preferences", tmp_path / "all", families=())
  # the best from elsewhere, and the artist's mesh where all candidates were rejected
  assert len(everyone) == 6 and refused == {}
  assert {x["generator"] for x in everyone} == {synthetic.OWN, synthetic.OTHER, "artist"}
  by_artist = next(x for x in everyone if x["generator"] == "artist")
  assert len(by_artist["losers"]) == SMALL.candidates and not schema.is_present(by_artist, "rating")


def test_pairs_below_the_best_and_a_limit_on_losers(folder, tmp_path):
  chain = [
    {"left": "c2", "right": "c1", "answer": "right"},
    {"left": "c1", "right": "c0", "answer": "right"},
  ]
  item = layout.read(_copy(folder, 4, tmp_path, choices=chain))  # c0, the best, is not ours
  pairs = lambda **recipe: [
    (w.name, [x.name for x in losers])
    for w, losers in dataset.preferences.pairs(item, items.Recipe("p", "preferences", **recipe))
  ]
  # c1 was the harder one to beat
  assert pairs() == [("c0", ["c1", "c2"])] and pairs(max_losers=1) == [("c0", ["c1"])]
  assert pairs(pairs="all", families=("sam3d",)) == [("c1", ["c2"])]
  assert dict(pairs(pairs="all")) == {"c0": ["c1", "c2"], "c1": ["c2"]}


def test_bad_items_are_quarantined_by_reason_and_the_job_survives(folder, tmp_path):
  source = tmp_path / "in"
  shutil.copytree(folder / "0", source / "good")
  Image.fromarray(np.zeros((64, 64), np.uint8)).save(
    _copy(folder, 1, source / "mask").parent / "mask.png"
  )
  (_copy(folder, 2, source / "photo").parent / "image.png").write_bytes(b"not a photo")
  _copy(folder, 1, source / "annotation", rating="good")
  np.savez(
    _copy(
      folder,
      1,
      source / "latents",
      candidates={"a": {"generator": "g", "latents": "c9.npz"}},
      choices=[],
    ).parent
    / "x.npz"
  )
  np.savez(source / "latents" / "c9.npz", voxels=np.array([[64, 0, 0]]))
  examples, refused = _built(source, "mitl_3do", tmp_path / "out", budget=1.0)
  assert len(examples) == 1
  assert refused == {"bad_annotation": 1, "bad_image": 1, "bad_mask": 1, "bad_latents": 1}
  lines = [
    json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
  ]
  # the same wherever the folder lies
  assert all(str(tmp_path) not in line["detail"] and line["path"] for line in lines)


def test_items_that_share_a_photo_or_a_shape_fall_into_one_split(folder, tmp_path):
  for index in range(6):
    _copy(folder, index, tmp_path / str(index))
  shutil.copy(tmp_path / "0" / "image.png", tmp_path / "1" / "image.png")
  shutil.copy(tmp_path / "1" / "c0.stl", tmp_path / "2" / "c0.stl")
  config = dataset.AnnotationConfig(str(tmp_path), items.Recipe("m", "mitl_3do"), SMALL)
  identity = {entry.name.split("/")[0]: entry.identity for entry in dataset.list_items(config)[0]}
  assert identity["0"] == identity["1"] == identity["2"] and len(set(identity.values())) == 4


def test_the_build_depends_on_every_file_but_not_on_where_they_lie(folder, tmp_path):
  shutil.copytree(folder, tmp_path / "moved")
  digest = _plan(folder, "mitl_3do").digest
  assert _plan(tmp_path / "moved", "mitl_3do").digest == digest
  Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "moved" / "5" / "mask.png")
  assert _plan(tmp_path / "moved", "mitl_3do").digest != digest
  assert _plan(folder, "mitl_3do", min_rating=2.0).digest != digest


def test_photos_are_reduced_with_masks_and_camera(folder, tmp_path):
  examples, _ = _built(folder, "mitl_3do", tmp_path, max_side=40)
  for example in examples:
    assert example["camera"]["width"] == 40 and checks.check_example(example).findings == []


def test_a_folder_without_annotations_is_a_configuration_error(tmp_path):
  with pytest.raises(ConfigError, match="holds no annotation.json"):
    _plan(tmp_path, "mitl_3do")
  with pytest.raises(ConfigError, match="is not a folder"):
    _plan(tmp_path / "gone", "mitl_3do")


def test_the_tiny_preferences_are_built_and_read_as_pairs(tmp_path):
  argv = [
    "--config",
    f"{ROOT}/configs/data/preferences.py:tiny",
    f"--config.out={tmp_path}",
    "--config.workers=1",
    "--config.synthetic.count=4",
    "--config.synthetic.image_size=64",
    "--config.test_fraction=0.0",
  ]
  assert cli.run_command(build_data.run, description="d", flags=build_data.flags, argv=argv) == 0
  config = loader.DataConfig(
    mixture={"p": (str(tmp_path), 1.0)},
    image_size=28,
    pointmap_size=16,
    latents=("rotation",),
    threads=1,
  )
  batch = loader.make_loader(config, kind="preference", batch_size=2, seed=0).batch(0)
  # losers have no pose here
  assert batch.cond.image.shape == (2, 28, 28, 3) and not batch.present["rotation"].any()

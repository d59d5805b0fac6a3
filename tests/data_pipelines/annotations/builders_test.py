"""Datasets of annotated items."""

import json
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from data_pipelines.annotations import dataset, items, layout, synthetic
from data_pipelines.build import checks
from data_pipelines.format import schema
from data_pipelines.read import loader
from launch import build_data
from launch.console import cli
from sam3d_jax.errors import ConfigError
from tests.support.annotated import SMALL, built, copy, plan

ROOT = pathlib.Path(__file__).parents[3]


def test_accepted_shapes_stand_on_their_photos(folder, tmp_path):
  examples, refused = built(folder, "mitl_3do", tmp_path)
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
  (example,), refused = built(folder, "art_3do", tmp_path)
  assert refused == {"no_artist_mesh": 5} and checks.check_example(example).findings == []
  assert json.loads(example["lineage"])["generator"] == "artist" and not schema.is_present(
    example, "rating"
  )


def test_pairs_come_from_the_named_families_only(folder, tmp_path):
  examples, refused = built(folder, "preferences", tmp_path / "own")
  assert refused == {"low_rating": 1, "other_generator": 1} and len(examples) == 4
  for example in examples:
    assert checks.check_example(example, "preference").findings == []
    assert example["losers"] and {x["generator"] for x in (example, *example["losers"])} == {
      synthetic.OWN
    }
  everyone, refused = built(folder, "preferences", tmp_path / "all", families=())
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
  item = layout.read(copy(folder, 4, tmp_path, choices=chain))  # c0, the best, is not ours
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
    copy(folder, 1, source / "mask").parent / "mask.png"
  )
  (copy(folder, 2, source / "photo").parent / "image.png").write_bytes(b"not a photo")
  copy(folder, 1, source / "annotation", rating="good")
  np.savez(
    copy(
      folder,
      1,
      source / "latents",
      candidates={"a": {"generator": "g", "latents": "c9.npz"}},
      choices=[],
    ).parent
    / "x.npz"
  )
  np.savez(source / "latents" / "c9.npz", voxels=np.array([[64, 0, 0]]))
  examples, refused = built(source, "mitl_3do", tmp_path / "out", budget=1.0)
  assert len(examples) == 1
  assert refused == {"bad_annotation": 1, "bad_image": 1, "bad_mask": 1, "bad_latents": 1}
  lines = [
    json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
  ]
  # the same wherever the folder lies
  assert all(str(tmp_path) not in line["detail"] and line["path"] for line in lines)


def test_items_that_share_a_photo_or_a_shape_fall_into_one_split(folder, tmp_path):
  for index in range(6):
    copy(folder, index, tmp_path / str(index))
  shutil.copy(tmp_path / "0" / "image.png", tmp_path / "1" / "image.png")
  shutil.copy(tmp_path / "1" / "c0.stl", tmp_path / "2" / "c0.stl")
  config = dataset.AnnotationConfig(str(tmp_path), items.Recipe("m", "mitl_3do"), SMALL)
  identity = {entry.name.split("/")[0]: entry.identity for entry in dataset.list_items(config)[0]}
  assert identity["0"] == identity["1"] == identity["2"] and len(set(identity.values())) == 4


def test_the_build_depends_on_every_file_but_not_on_where_they_lie(folder, tmp_path):
  shutil.copytree(folder, tmp_path / "moved")
  digest = plan(folder, "mitl_3do").digest
  assert plan(tmp_path / "moved", "mitl_3do").digest == digest
  Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "moved" / "5" / "mask.png")
  assert plan(tmp_path / "moved", "mitl_3do").digest != digest
  assert plan(folder, "mitl_3do", min_rating=2.0).digest != digest


def test_photos_are_reduced_with_masks_and_camera(folder, tmp_path):
  examples, _ = built(folder, "mitl_3do", tmp_path, max_side=40)
  for example in examples:
    assert example["camera"]["width"] == 40 and checks.check_example(example).findings == []


def test_a_folder_without_annotations_is_a_configuration_error(tmp_path):
  with pytest.raises(ConfigError, match="holds no annotation.json"):
    plan(tmp_path, "mitl_3do")
  with pytest.raises(ConfigError, match="is not a folder"):
    plan(tmp_path / "gone", "mitl_3do")


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

"""A dataset built from meshes: a pure function of its configuration, resumable to the byte."""

import io
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
import trimesh

from data_pipelines.build import shard_jobs
from data_pipelines.format import records, schema
from data_pipelines.synth import sources
from data_pipelines.synth.camera import viewpoint
from launch import build_data
from launch.console import cli
from launch.planners import builders, building
from sam3d_jax.errors import ConfigError
from sam3d_jax.geometry.cameras import Camera
from tests.support.tiny_build import CONFIG, ROOT, SMALL


def _command(*overrides: str) -> list[str]:
  return ["--config", CONFIG, *(f"--config.{o}" for o in (*SMALL, *overrides))]


def _run(*overrides: str) -> int:
  return cli.run_command(
    build_data.run, description="test", flags=build_data.flags, argv=_command(*overrides)
  )


def _plan(*overrides: str) -> shard_jobs.Plan:
  config = cli.load_config(CONFIG, [f"--config.{o}" for o in (*SMALL, *overrides)])
  return builders.PLANNERS[config.builder](config)


def _bytes(folder: pathlib.Path) -> dict[str, bytes]:
  files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp("built") / "iso"
  assert _run(f"out={out}") == 0
  return out


def _times(folder: pathlib.Path) -> dict[str, int]:
  """When each whole shard was written."""
  shards = [path for path in folder.glob("*.array_record-*") if path.name[0] != "."]
  return {path.name: path.stat().st_mtime_ns for path in shards}


def _examples(folder: pathlib.Path, split: str) -> list[dict]:
  if not records.open_dataset(folder).info.splits[split].num_examples:
    return []
  opened = records.open_split(folder, split)
  return [opened[index] for index in range(len(opened))]


def _meshes(examples: list[dict]) -> set[str]:
  return {example["mesh_key"] for example in examples}


def test_the_bytes_do_not_depend_on_the_number_of_workers(dataset, tmp_path):
  assert _run(f"out={tmp_path / 'two'}", "workers=2") == 0
  one, two = _bytes(dataset), _bytes(tmp_path / "two")
  assert one.keys() == two.keys()
  assert [name for name in one if one[name] != two[name]] == []


def test_another_seed_gives_other_images_of_other_objects(dataset, tmp_path):
  assert _run(f"out={tmp_path}", "seed=1") == 0
  one = _examples(dataset, "train")
  other = _examples(tmp_path, "train")
  assert _meshes(one).isdisjoint(_meshes(other))
  assert one[0]["image"] != other[0]["image"]


def test_a_killed_build_continues_to_the_same_bytes(dataset, tmp_path):
  # killed with its first shard on disk
  out = tmp_path / "iso"
  command = [sys.executable, "-m", "launch.build_data", *_command(f"out={out}")]
  process = subprocess.Popen(
    command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
  )
  deadline = time.monotonic() + 120
  while not (out.is_dir() and _times(out)):
    assert process.poll() is None and time.monotonic() < deadline, "the build ended or made nothing"
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()

  # continued, with what the killed process left half written
  finished = _times(out)
  (out / ".iso_3do-train.999.part.array_record-00001-of-00002").write_bytes(b"half")
  assert _run(f"out={out}") == 0
  assert finished.items() <= _times(out).items()  # never rewritten
  assert _bytes(out) == _bytes(dataset)


def test_building_a_finished_dataset_again_changes_nothing(dataset):
  times, content = _times(dataset), _bytes(dataset)
  assert "DATA_CARD.md" in content
  assert _run(f"out={dataset}") == 0
  assert _times(dataset) == times
  assert _bytes(dataset) == content


def test_train_and_test_objects_are_disjoint_and_equal_files_stay_together(dataset, tmp_path):
  # objects
  train, test = _examples(dataset, "train"), _examples(dataset, "test")
  assert (len(train), len(test)) == (8, 4)
  assert _meshes(train).isdisjoint(_meshes(test))

  # eight files, each twice
  for i in range(8):
    mesh = trimesh.creation.icosphere(1, radius=i + 1)
    for copy in "ab":
      mesh.export(tmp_path / f"{copy}{i}.ply")
  inputs = sources.list_inputs(sources.SourceConfig(source=str(tmp_path)))
  splits = sources.split_inputs(inputs, 0.25)
  assert len(splits["test"]) == 4
  for items in splits.values():
    names = {item.name for item in items}
    assert names == {copy + name[1:] for name in names for copy in "ab"}


def test_voxels_projected_with_the_pose_cover_the_mask(tmp_path):
  overrides = ("image_size=160", "procedural.families=('crate','bottle','house')")
  assert _run(f"out={tmp_path}", *overrides) == 0
  inner = np.stack(np.meshgrid(*[[0.3, 0.5, 0.7]] * 3), -1).reshape(-1, 3)
  ious = []
  for example in _examples(tmp_path, "train"):
    # the view
    stated = {key: float(value) for key, value in example["camera"].items()}
    width, height = int(stated.pop("width")), int(stated.pop("height"))
    camera = Camera(**stated, width=width, height=height)
    rotation = example["rotation"].astype(float)
    translation = example["translation"].astype(float)
    scale = float(example["scale"][0])
    seen = viewpoint(camera, rotation, translation, scale)

    # several points of every voxel, drawn
    points = ((example["voxels"][:, None] + inner) / 64 - 0.5).reshape(-1, 3)
    column, row = np.floor(seen.project(points)).astype(int).T
    drawn = np.zeros((160, 160), bool)
    drawn[row, column] = True
    mask = np.asarray(Image.open(io.BytesIO(example["mask"]))) > 0
    ious.append((drawn & mask).sum() / (drawn | mask).sum())

    # points of the point map lie in the unit cube
    on_object = (example["pointmap"][mask].astype(float) - translation) @ rotation / scale
    assert np.abs(on_object).max() < 0.51
  assert np.mean(ious) > 0.9, ious
  assert min(ious) > 0.8, ious


def test_records_carry_what_the_schema_promises(dataset):
  examples = _examples(dataset, "train")
  assert len({example["key"] for example in examples}) == len(examples)
  promised = (
    "image",
    "mask",
    "mask_full",
    "pointmap",
    "camera",
    "voxels",
    "rotation",
    "translation",
    "scale",
    "mesh_key",
    "license",
  )
  for example in examples:
    # what is there, and what is not
    for field in promised:
      assert schema.is_present(example, field)
    for field in ("structure_latent", "slat", "rating"):
      assert not schema.is_present(example, field)

    # sizes, pose, lineage
    assert Image.open(io.BytesIO(example["image"])).size == (40, 40)
    assert example["pointmap"].shape == (40, 40, 3)
    rotation = example["rotation"]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert json.loads(example["lineage"])["mesh"].startswith("procedural/0/")


def test_a_folder_of_meshes_builds_and_its_bad_files_are_quarantined(shared_dir, tmp_path):
  source = tmp_path / "meshes"
  (source / "sub").mkdir(parents=True)
  for name in ("spot.glb", "wing_nut.stl", "milk_truck.glb"):
    shutil.copy(shared_dir / "data" / "meshes" / name, source / "sub" / name)
  shutil.copy(shared_dir / "data" / "bad" / "truncated.glb", source)
  (source / "sub" / "spot.glb.license").write_text("CC0-1.0")
  common = ("source=" + str(source), f"out={tmp_path / 'out'}", "views=1", "license=unknown")
  assert _run(*common) == 2
  assert _run(*common, "quarantine_budget=0.3") == 0
  assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())["reason"] == "unreadable"
  kept = _examples(tmp_path / "out", "train") + _examples(tmp_path / "out", "test")
  found = {(json.loads(example["lineage"])["mesh"], example["license"]) for example in kept}
  assert found == {
    ("sub/spot.glb", "CC0-1.0"),
    ("sub/wing_nut.stl", "unknown"),
    ("sub/milk_truck.glb", "unknown"),
  }


def test_a_build_is_identified_by_what_changes_its_bytes():
  base = _plan().digest
  for override in (
    "seed=1",
    "views=3",
    "image_size=41",
    "samples=1",
    "image_format=jpeg",
    "background=(0,9)",
    "pointmap=False",
    "delit=True",
    "name=x",
    "test_fraction=0.4",
    "objects_per_shard=3",
    "procedural.count=7",
    "procedural.families=('mug',)",
    "license=MIT",
    "camera.fill=(0.5,0.6)",
    "light.tint=0.0",
    "filters.max_normal_share=0.9",
    "mesh.max_coordinate=9.0",
  ):
    assert _plan(override).digest != base, override
  for override in ("workers=2", "out=elsewhere", "quarantine_budget=0.5"):
    assert _plan(override).digest == base, override


def test_where_the_meshes_lie_does_not_matter_but_what_they_are_does(tmp_path):
  for folder in "ab":
    (tmp_path / folder).mkdir()
    trimesh.creation.box().export(tmp_path / folder / "box.ply")
  here, there = (_plan(f"source={tmp_path / folder}") for folder in "ab")
  assert here.digest == there.digest
  trimesh.creation.box((1, 2, 3)).export(tmp_path / "b" / "box.ply")
  assert _plan(f"source={tmp_path / 'b'}").digest != here.digest


def test_more_shards_than_names_can_count_is_a_configuration_error(monkeypatch):
  monkeypatch.setattr(sources, "MAX_SHARDS", 3)
  with pytest.raises(ConfigError, match="objects_per_shard = 1: .* use at least 2"):
    _plan("objects_per_shard=1")


@pytest.mark.parametrize(
  "objects, shards, largest",
  [(1, 1, 1), (19, 19, 1), (64, 64, 1), (65, 33, 2), (1000, 63, 16), (10_000, 313, 32)],
)
def test_the_number_of_objects_decides_the_size_of_shards_if_nobody_else_does(
  objects, shards, largest
):
  inputs = [sources.Input(str(i), f"{i:08d}") for i in range(objects)]
  cut = sources.deal(inputs, sources.per_shard(0, objects))
  assert len(cut) == shards
  assert max(map(len, cut)) == largest
  assert sources.per_shard(7, objects) == 7


def test_a_build_that_was_begun_keeps_the_size_of_its_shards(tmp_path):
  small = ("procedural.count=4", "views=1", f"out={tmp_path}")
  assert _run(*small, "objects_per_shard=3") == 0
  content = _bytes(tmp_path)
  assert _run(*small, "objects_per_shard=0") == 0
  assert _bytes(tmp_path) == content


def test_what_to_know_of_a_source_is_said_before_anything_is_written(tmp_path, capsys):
  # licences, of all and of some
  source = tmp_path / "meshes"
  source.mkdir()
  for name in "abc":
    trimesh.creation.box((1, 2, 3)).export(source / f"{name}.ply")
  (source / "a.ply.license").write_text("MIT")
  (source / "sources.json").write_text(json.dumps({"b.ply": {"license": "MIT"}}))
  out = f"out={tmp_path / 'out'}"
  found = ("--dry_run", *_command(f"source={source}", out, "license=unknown"))
  assert build_data.main([*found]) == 0
  said = capsys.readouterr().out
  assert "WARNING no_license: 1 of 3 meshes state no licence (c.ply)" in said
  assert "--config.license=" in said

  # equal files are one object: nothing can be held out
  assert "WARNING no test split (it takes two different meshes)" in said
  assert not (tmp_path / "out").exists()

  # in order
  (source / "c.ply.license").write_text("MIT")
  trimesh.creation.icosphere(1).export(source / "c.ply")
  assert build_data.main([*found]) == 0
  assert "WARNING" not in capsys.readouterr().out

  # nothing is to be held out
  assert build_data.main(["--dry_run", *_command("test_fraction=0.0", out)]) == 0
  assert "WARNING no test split (test_fraction = 0)" in capsys.readouterr().out


def test_a_split_that_lost_all_of_its_inputs_is_named():
  result = shard_jobs.BuildResult({"train": 3, "test": 0}, 4, {"unreadable": 1})
  said = building.describe_result(result, "DATA")
  assert "WARNING split 'test' is empty" in said
  assert "DATA/quarantine.jsonl" in said and "--config.test_fraction" in said
  result = shard_jobs.BuildResult({"train": 3, "test": 1}, 4, {})
  assert "WARNING" not in building.describe_result(result, "DATA")


@pytest.mark.parametrize(
  "kind, override, message",
  [
    ("iso_3do", "light.tint=-1", "light.tint = -1.0 is not a share"),
    ("iso_3do", "camera.scale=(0,1)", r"camera.scale = \(0, 1\) is no range"),
    ("iso_3do", "filters.min_core_extent=2", "filters.min_core_extent = 2.0 is not a share"),
    ("rp_3do_fo", "photos.frame=blender", "photos.frame = 'blender' is not one of pytorch3d"),
    ("rp_3do_fo", "photos.depth_unit=0", "photos.depth_unit = 0.0 is not a positive number"),
    ("mitl_3do", "synthetic.candidates=0", "synthetic.candidates = 0 is not a positive number"),
  ],
)
def test_a_section_that_cannot_work_ends_with_code_2_and_its_key(
  tmp_path, capsys, kind, override, message
):
  argv = [f"--config=configs/data/{kind}.py:tiny", f"--config.out={tmp_path / 'out'}"]
  assert build_data.main([*argv, f"--config.{override}"]) == cli.EXIT_BAD_INPUT
  assert re.search(message, capsys.readouterr().err)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "override, message",
  [
    ("source=nowhere", "source = 'nowhere' is not a folder"),
    ("procedural.families=('muk',)", "unknown.*muk.*known are"),
    ("test_fraction=1.5", "test_fraction = 1.5"),
    ("objects_per_shard=-1", "objects_per_shard = -1"),
  ],
)
def test_wrong_sources_are_configuration_errors(override, message):
  with pytest.raises(ConfigError, match=message):
    _plan(override)


@pytest.mark.parametrize(
  "override, message",
  [
    ("views=0", "views = 0"),
    ("image_format=webp", "image_format = 'webp'"),
    ("workers=-1", "workers = -1"),
    ("camera.fov_deg=(60.0,30.0)", r"camera.fov_deg = \(60.0, 30.0\)"),
    ("builder=rp", "builder = 'rp'"),
    ("out=", "out is empty"),
    ("quarantine_budget=2.0", "quarantine_budget = 2.0"),
    ("name=iso-3do", "name = 'iso-3do'"),
    ("seed=-1", "seed = -1 is not a whole number"),
    ("background=(5,)", r"background = \(5,\): it must be a range"),
  ],
)
def test_values_no_builder_can_use_end_with_code_2(tmp_path, capsys, override, message):
  assert _run(f"out={tmp_path}", override) == 2
  assert capsys.readouterr().err.startswith("error: ") and not list(tmp_path.iterdir())
  config = cli.load_config(CONFIG, [f"--config.out={tmp_path}", f"--config.{override}"])
  with pytest.raises(ConfigError, match=message):
    building.check(config)

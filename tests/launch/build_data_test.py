"""The build of a dataset: pure shards, resumable, whole or absent, honest about what it refuses."""

import errno
import io
import json
import os
import pathlib
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
from sam3d_jax.errors import ConfigError, InputError, JobFailed
from sam3d_jax.files import atomic
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
  return {
    p.relative_to(folder).as_posix(): p.read_bytes()
    for p in sorted(folder.rglob("*"))
    if p.is_file()
  }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp("built") / "iso"
  assert _run(f"out={out}") == 0
  return out


# A toy builder: the executor knows nothing of meshes. Specifications are (key, action) lists.


def toy_shard(spec, refuse):
  for key, action in spec:
    if action == "refuse":
      refuse(shard_jobs.Quarantined(path=key, reason="odd", detail=f"{key} is odd"))
    elif action == "unwanted":
      refuse(shard_jobs.Quarantined(path=key, reason="dull", detail=f"{key} is dull", fault=False))
    elif action == "reject":
      refuse.draw("hidden")
    elif action == "full":
      raise OSError(errno.ENOSPC, "No space left on device")
    elif action == "interrupt":
      raise KeyboardInterrupt
    elif action == "die":
      os._exit(3)
    else:
      yield schema.empty_example() | {"key": key, "view": np.int32(0)}


def _toy(*shards, identity=0) -> shard_jobs.Plan:
  jobs = tuple(
    shard_jobs.ShardJob("train", i, len(shards), len(s), s) for i, s in enumerate(shards)
  )
  return shard_jobs.Plan(
    name="toy", jobs=jobs, make=toy_shard, identity={"number": identity}, lineage={}
  )


def _shard_names(folder: pathlib.Path) -> list[str]:
  return sorted(p.name for p in folder.iterdir() if "array_record" in p.name and p.name[0] != ".")


def test_the_bytes_do_not_depend_on_the_number_of_workers(dataset, tmp_path):
  assert _run(f"out={tmp_path / 'two'}", "workers=2") == 0
  one, two = _bytes(dataset), _bytes(tmp_path / "two")
  assert one.keys() == two.keys()
  assert [name for name in one if one[name] != two[name]] == []


def test_another_seed_gives_other_images_of_other_objects(dataset, tmp_path):
  assert _run(f"out={tmp_path}", "seed=1") == 0
  a, b = (records.open_split(folder, "train") for folder in (dataset, tmp_path))
  assert {e["mesh_key"] for e in a}.isdisjoint(e["mesh_key"] for e in b)
  assert a[0]["image"] != b[0]["image"]


def test_a_killed_build_continues_to_the_same_bytes(dataset, tmp_path):
  out = tmp_path / "iso"
  command = [sys.executable, "-m", "launch.build_data", *_command(f"out={out}")]
  process = subprocess.Popen(
    command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
  )
  deadline = time.monotonic() + 120
  while not (out.is_dir() and _shard_names(out)):
    assert process.poll() is None and time.monotonic() < deadline, "the build ended or made nothing"
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  finished = {name: (out / name).stat().st_mtime_ns for name in _shard_names(out)}
  (out / ".iso_3do-train.999.part.array_record-00001-of-00002").write_bytes(b"half")
  assert _run(f"out={out}") == 0
  assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished  # never rewritten
  assert _bytes(out) == _bytes(dataset)


def test_building_a_finished_dataset_again_changes_nothing(dataset):
  before = {p: p.stat().st_mtime_ns for p in dataset.rglob("*array_record*")}
  content = _bytes(dataset)
  assert _run(f"out={dataset}") == 0
  assert {p: p.stat().st_mtime_ns for p in before} == before and _bytes(dataset) == content


def test_ctrl_c_leaves_whole_shards_only(tmp_path):
  plan = _toy([("a", ""), ("b", "")], [("c", ""), ("d", "interrupt")])
  with pytest.raises(KeyboardInterrupt):
    shard_jobs.build(plan, tmp_path, workers=1, quarantine_budget=0.0)
  assert _shard_names(tmp_path) == ["toy-train.array_record-00000-of-00002"]
  assert not list(tmp_path.rglob(atomic.LEFTOVERS))
  with pytest.raises(records.DatasetError, match="did not finish|not a finished"):
    records.open_split(tmp_path, "train")


def test_refused_inputs_are_listed_and_counted(tmp_path):
  plan = _toy([("a", ""), ("b", "refuse")], [("c", "refuse"), ("d", "refuse")], [("e", "")])
  seen = []
  result = shard_jobs.build(
    plan,
    tmp_path,
    workers=1,
    quarantine_budget=0.6,
    progress=lambda n, refused: seen.append((n, dict(refused))),
  )
  assert result == shard_jobs.BuildResult({"train": 2}, 5, {"odd": 3})
  lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
  assert lines == [
    {"path": p, "reason": "odd", "detail": f"{p} is odd", "fault": True} for p in "bcd"
  ]
  counts = json.loads((tmp_path / "build.json").read_text())["counts"]
  assert counts == {
    "inputs": 5,
    "records": {"train": 2},
    "refused": {"odd": 3},
    "rejected_draws": {},
  }
  assert seen == [(2, {"odd": 1}), (2, {"odd": 3}), (1, {"odd": 3})]
  assert shard_jobs.finished_inputs(plan, tmp_path) == 5
  split = records.open_split(tmp_path, "train")
  # the shard that lost everything is in the way of nothing
  assert [split[i]["key"] for i in range(len(split))] == ["a", "e"]


def test_rejected_draws_are_counted_by_reason_and_cost_no_budget(tmp_path):
  plan = _toy([("a", ""), ("b", "reject")], [("c", "reject"), ("d", "")])
  result = shard_jobs.build(plan, tmp_path, workers=1, quarantine_budget=0)
  assert result == shard_jobs.BuildResult({"train": 2}, 4, {}, {"hidden": 2})
  assert json.loads((tmp_path / "build.json").read_text())["counts"]["rejected_draws"] == {
    "hidden": 2
  }


def test_more_refusals_than_the_budget_fail_the_build_with_the_counts(tmp_path):
  plan = _toy([("a", ""), ("b", "refuse")], [("c", "refuse"), ("d", "")], [("e", "")])
  with pytest.raises(
    InputError, match=r"2 of 5 inputs were refused \(odd 2\), more than quarantine_budget = 0.2"
  ):
    shard_jobs.build(plan, tmp_path, workers=1, quarantine_budget=0.2)
  assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
  assert len(_shard_names(tmp_path)) == 2  # the third is not begun
  assert not (tmp_path / records.INFO_FILE).exists()
  shard_jobs.build(plan, tmp_path, workers=1, quarantine_budget=0.4)  # raising the budget continues
  assert len(records.open_split(tmp_path, "train")) == 3


def test_inputs_that_the_recipe_does_not_want_are_counted_but_not_against_the_budget(tmp_path):
  plan = _toy([("a", ""), ("b", "unwanted")], [("c", "unwanted"), ("d", "unwanted")])
  result = shard_jobs.build(plan, tmp_path / "some", workers=1, quarantine_budget=0)
  assert result == shard_jobs.BuildResult({"train": 1}, 4, {"dull": 3})
  with pytest.raises(InputError, match=r"none of 1 inputs became an example \(dull 1\)"):
    shard_jobs.build(_toy([("a", "unwanted")]), tmp_path / "all", workers=1, quarantine_budget=1)


def test_a_folder_of_another_build_is_named_with_the_difference(tmp_path):
  shard_jobs.build(_toy([("a", "")]), tmp_path, workers=1, quarantine_budget=0)
  with pytest.raises(InputError, match="number: 0 there, 1 here.*--config.out=DIR.*delete"):
    shard_jobs.build(_toy([("a", "")], identity=1), tmp_path, workers=1, quarantine_budget=0)
  (tmp_path / "build.json").unlink()
  with pytest.raises(InputError, match="not made by this command"):
    shard_jobs.build(_toy([("a", "")]), tmp_path, workers=1, quarantine_budget=0)


def test_a_full_disk_and_an_unwritable_folder_say_what_to_do(tmp_path):
  with pytest.raises(InputError, match="disk is full.*--config.out=DIR"):
    shard_jobs.build(
      _toy([("a", ""), ("b", "full")]), tmp_path / "full", workers=1, quarantine_budget=0
    )
  assert not _shard_names(tmp_path / "full") and not list(
    (tmp_path / "full").rglob(atomic.LEFTOVERS)
  )
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot be written"):
    shard_jobs.build(_toy([("a", "")]), tmp_path / "file" / "out", workers=1, quarantine_budget=0)


def test_a_dead_worker_is_reported_and_finished_shards_are_kept(tmp_path):
  plan = _toy([("a", "")], [("b", "die")], [("c", "")])
  with pytest.raises(JobFailed, match="worker process died.*same command"):
    shard_jobs.build(plan, tmp_path, workers=2, quarantine_budget=0)
  assert not list(tmp_path.rglob(atomic.LEFTOVERS))


def test_train_and_test_objects_are_disjoint_and_equal_files_stay_together(dataset, tmp_path):
  train, test = (records.open_split(dataset, split) for split in ("train", "test"))
  assert (len(train), len(test)) == (8, 4)
  assert {e["mesh_key"] for e in train}.isdisjoint(e["mesh_key"] for e in test)
  for i in range(8):
    mesh = trimesh.creation.icosphere(1, radius=i + 1)
    for copy in "ab":
      mesh.export(tmp_path / f"{copy}{i}.ply")
  splits = sources.split_inputs(
    sources.list_inputs(sources.SourceConfig(source=str(tmp_path))), 0.25
  )
  assert len(splits["test"]) == 4
  for items in splits.values():
    assert {i.name for i in items} == {copy + i.name[1:] for i in items for copy in "ab"}


def test_voxels_projected_with_the_pose_cover_the_mask(tmp_path):
  assert (
    _run(f"out={tmp_path}", "image_size=160", "procedural.families=('crate','bottle','house')") == 0
  )
  split = records.open_split(tmp_path, "train")
  ious = []
  for i in range(len(split)):
    e = split[i]
    c = {k: float(v) for k, v in e["camera"].items()}
    camera = Camera(c["fx"], c["fy"], c["cx"], c["cy"], int(c["width"]), int(c["height"]))
    rotation, translation = e["rotation"].astype(float), e["translation"].astype(float)
    scale = float(e["scale"][0])
    seen = viewpoint(camera, rotation, translation, scale)
    inner = np.stack(np.meshgrid(*[[0.3, 0.5, 0.7]] * 3), -1).reshape(-1, 3)
    points = ((e["voxels"][:, None] + inner) / 64 - 0.5).reshape(-1, 3)
    column, row = np.floor(seen.project(points)).astype(int).T
    drawn = np.zeros((160, 160), bool)
    drawn[row, column] = True
    mask = np.asarray(Image.open(io.BytesIO(e["mask"]))) > 0
    ious.append((drawn & mask).sum() / (drawn | mask).sum())
    on_object = (e["pointmap"][mask].astype(float) - translation) @ rotation / scale
    assert np.abs(on_object).max() < 0.51
  assert np.mean(ious) > 0.9 and min(ious) > 0.8, ious


def test_records_carry_what_the_schema_promises(dataset):
  split = records.open_split(dataset, "train")
  assert len({split[i]["key"] for i in range(len(split))}) == len(split)
  for i in range(len(split)):
    e = split[i]
    present = (
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
    assert all(schema.is_present(e, field) for field in present)
    assert not any(schema.is_present(e, field) for field in ("structure_latent", "slat", "rating"))
    assert Image.open(io.BytesIO(e["image"])).size == (40, 40) and e["pointmap"].shape == (
      40,
      40,
      3,
    )
    np.testing.assert_allclose(e["rotation"] @ e["rotation"].T, np.eye(3), atol=1e-6)
    assert json.loads(e["lineage"])["mesh"].startswith("procedural/0/")


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
  kept = [
    e
    for s in ("train", "test")
    if (tmp_path / "out").glob(f"*{s}*")
    for e in _examples(tmp_path / "out", s)
  ]
  assert {(json.loads(e["lineage"])["mesh"], e["license"]) for e in kept} == {
    ("sub/spot.glb", "CC0-1.0"),
    ("sub/wing_nut.stl", "unknown"),
    ("sub/milk_truck.glb", "unknown"),
  }


def _examples(folder: pathlib.Path, split: str) -> list[dict]:
  if not records.open_dataset(folder).info.splits[split].num_examples:
    return []
  opened = records.open_split(folder, split)
  return [opened[i] for i in range(len(opened))]


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
  "override, message",
  [
    ("source=nowhere", "source = 'nowhere' is not a folder"),
    ("procedural.families=('muk',)", "unknown.*muk.*known are"),
    ("test_fraction=1.5", "test_fraction = 1.5"),
    ("objects_per_shard=0", "objects_per_shard = 0"),
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
  ],
)
def test_values_no_builder_can_use_end_with_code_2(tmp_path, capsys, override, message):
  assert _run(f"out={tmp_path}", override) == 2
  assert capsys.readouterr().err.startswith("error: ") and not list(tmp_path.iterdir())
  config = cli.load_config(CONFIG, [f"--config.out={tmp_path}", f"--config.{override}"])
  with pytest.raises(ConfigError, match=message):
    building.check(config)

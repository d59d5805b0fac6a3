"""Running a plan of shards: resumable, whole or absent, honest about what is refused.

The builder is a toy, since running a plan knows nothing of meshes. Its specifications are lists of
(key, action).
"""

import dataclasses
import errno
import json
import os
import pathlib

import numpy as np
import pytest

from data_pipelines.build import shard_jobs, unfinished
from data_pipelines.format import records, schema
from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import atomic


def toy_shard(spec, refuse):
  for key, action in spec:
    if action == "refuse":
      refuse(shard_jobs.Quarantined(key, "odd", f"{key} is odd"))
    elif action == "unwanted":
      refuse(shard_jobs.Quarantined(key, "dull", f"{key} is dull", fault=False))
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


MADE: list[str] = []  # keys that careful_shard has worked on, in this process


def careful_shard(spec, refuse):
  """A toy that goes through its inputs one by one; two records an input."""
  for key, action in refuse.each(spec):
    MADE.append(key)
    if action == "refuse":
      refuse(shard_jobs.Quarantined(key, "odd", f"{key} is odd"))
      refuse.draw("hidden")
      continue
    if action == "interrupt":
      raise KeyboardInterrupt
    for view in range(2):
      yield schema.empty_example() | {"key": f"{key}{view}", "view": np.int32(view)}


def careful_plan(*shards) -> shard_jobs.Plan:
  return dataclasses.replace(toy_plan(*shards), make=careful_shard)


def toy_plan(*shards, identity=0) -> shard_jobs.Plan:
  jobs = []
  for index, spec in enumerate(shards):
    jobs.append(shard_jobs.ShardJob("train", index, len(shards), len(spec), spec))
  return shard_jobs.Plan(
    name="toy",
    jobs=tuple(jobs),
    make=toy_shard,
    identity={"number": identity},
    lineage={},
  )


def build(plan: shard_jobs.Plan, out: pathlib.Path, budget: float = 0.0, **how):
  settings = {"workers": 1, **how}
  return shard_jobs.build(plan, out, quarantine_budget=budget, **settings)


def shard_names(folder: pathlib.Path) -> list[str]:
  names = [path.name for path in folder.iterdir()]
  return sorted(name for name in names if "array_record" in name and name[0] != ".")


def quarantine(folder: pathlib.Path) -> list[dict]:
  lines = (folder / "quarantine.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def counts(folder: pathlib.Path) -> dict:
  return json.loads((folder / "build.json").read_text())["counts"]


def test_ctrl_c_leaves_whole_shards_only(tmp_path):
  plan = toy_plan([("a", ""), ("b", "")], [("c", ""), ("d", "interrupt")])
  with pytest.raises(KeyboardInterrupt):
    build(plan, tmp_path)
  assert shard_names(tmp_path) == ["toy-train.array_record-00000-of-00002"]
  assert not list(tmp_path.rglob(atomic.LEFTOVERS))
  with pytest.raises(records.DatasetError, match="did not finish|not a finished"):
    records.open_split(tmp_path, "train")


def test_refused_inputs_are_listed_and_counted(tmp_path):
  plan = toy_plan([("a", ""), ("b", "refuse")], [("c", "refuse"), ("d", "refuse")], [("e", "")])
  seen = []

  def progress(inputs: int, refused: dict[str, int]) -> None:
    seen.append((inputs, dict(refused)))

  # said while it runs, and at the end
  result = build(plan, tmp_path, budget=0.6, progress=progress)
  assert result == shard_jobs.BuildResult({"train": 2}, 5, {"odd": 3})
  assert seen == [(2, {"odd": 1}), (2, {"odd": 3}), (1, {"odd": 3})]

  # on disk
  expected = []
  for key in "bcd":
    expected.append({"path": key, "reason": "odd", "detail": f"{key} is odd", "fault": True})
  assert quarantine(tmp_path) == expected
  assert counts(tmp_path) == {
    "inputs": 5,
    "records": {"train": 2},
    "refused": {"odd": 3},
    "rejected_draws": {},
  }

  # the shard that lost everything is in the way of nothing
  assert shard_jobs.finished_inputs(plan, tmp_path) == 5
  split = records.open_split(tmp_path, "train")
  assert [split[index]["key"] for index in range(len(split))] == ["a", "e"]


def test_rejected_draws_are_counted_by_reason_and_cost_no_budget(tmp_path):
  plan = toy_plan([("a", ""), ("b", "reject")], [("c", "reject"), ("d", "")])
  result = build(plan, tmp_path)
  assert result == shard_jobs.BuildResult({"train": 2}, 4, {}, {"hidden": 2})
  assert counts(tmp_path)["rejected_draws"] == {"hidden": 2}


def test_more_refusals_than_the_budget_fail_the_build_with_the_counts(tmp_path):
  plan = toy_plan([("a", ""), ("b", "refuse")], [("c", "refuse"), ("d", "")], [("e", "")])
  message = r"2 of 5 inputs were refused \(odd 2\), more than quarantine_budget = 0.2"
  with pytest.raises(InputError, match=message):
    build(plan, tmp_path, budget=0.2)
  assert len(quarantine(tmp_path)) == 2
  assert len(shard_names(tmp_path)) == 2  # the third is not begun
  assert not (tmp_path / records.INFO_FILE).exists()

  # raising the budget continues
  build(plan, tmp_path, budget=0.4)
  assert len(records.open_split(tmp_path, "train")) == 3


def test_inputs_that_the_recipe_does_not_want_are_counted_but_not_against_the_budget(tmp_path):
  plan = toy_plan([("a", ""), ("b", "unwanted")], [("c", "unwanted"), ("d", "unwanted")])
  result = build(plan, tmp_path / "some")
  assert result == shard_jobs.BuildResult({"train": 1}, 4, {"dull": 3})

  # nothing is left
  unwanted = toy_plan([("a", "unwanted")])
  with pytest.raises(InputError, match=r"none of 1 inputs became an example \(dull 1\)"):
    build(unwanted, tmp_path / "all", budget=1)


def test_a_folder_of_another_build_is_named_with_the_difference(tmp_path):
  build(toy_plan([("a", "")]), tmp_path)
  other = toy_plan([("a", "")], identity=1)
  with pytest.raises(InputError, match="number: 0 there, 1 here.*--config.out=DIR.*delete"):
    build(other, tmp_path)
  (tmp_path / "build.json").unlink()
  with pytest.raises(InputError, match="not made by this command"):
    build(other, tmp_path)


def test_a_full_disk_and_an_unwritable_folder_say_what_to_do(tmp_path):
  # full
  plan = toy_plan([("a", ""), ("b", "full")])
  full = tmp_path / "full"
  with pytest.raises(JobFailed, match="disk is full.*--config.out=DIR"):
    build(plan, full)
  assert not shard_names(full)
  assert not list(full.rglob(atomic.LEFTOVERS))

  # a file where a folder should be
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot be written"):
    build(toy_plan([("a", "")]), tmp_path / "file" / "out")


class FullDisk:
  """A writer at whose end the disk is full, as ArrayRecord words it."""

  def __init__(self, path: str, options: str):
    pathlib.Path(path).write_bytes(b"half a shard")

  def write(self, record: bytes) -> None:
    pass

  def close(self) -> None:
    raise RuntimeError("write() failed: No space left on device; writing x; at byte 65536")


def test_a_disk_that_fills_up_under_a_shard_leaves_nothing_and_the_same_command_continues(
  tmp_path, monkeypatch
):
  plan = toy_plan([("a", "")], [("b", "")])
  with monkeypatch.context() as full:
    full.setattr(records.array_record_module, "ArrayRecordWriter", FullDisk)
    with pytest.raises(JobFailed, match="disk is full"):
      build(plan, tmp_path)
  assert not shard_names(tmp_path)
  assert not list(tmp_path.rglob(atomic.LEFTOVERS))
  assert build(plan, tmp_path).records == {"train": 2}


def test_a_shard_whose_report_is_cut_off_or_gone_is_made_again_to_the_same_bytes(tmp_path, capfd):
  plan = toy_plan([("a", "")], [("b", "")], [("c", "")])
  build(plan, tmp_path)
  before = content(tmp_path)
  cut, gone, _ = sorted((tmp_path / "reports").iterdir())
  cut.write_text('{"records": 1, "refus')
  gone.unlink()
  build(plan, tmp_path)
  assert content(tmp_path) == before
  assert capfd.readouterr().err.count("is made again") == 2


def test_versions_of_packages_are_part_of_a_build(tmp_path):
  plan = dataclasses.replace(toy_plan([("a", "")]), lineage={"numpy": "1.0"})
  build(plan, tmp_path)
  other = dataclasses.replace(plan, lineage={"numpy": "2.0"})
  assert other.digest != plan.digest
  with pytest.raises(InputError, match="versions.numpy: 1.0 there, 2.0 here"):
    build(other, tmp_path)


def test_a_build_from_before_versions_counted_continues_with_the_same_ones(tmp_path):
  plan = dataclasses.replace(toy_plan([("a", "")]), lineage={"numpy": "1.0"})
  build(plan, tmp_path)
  old = {"name": "toy", "digest": "of then", "identity": plan.identity, "lineage": plan.lineage}
  records.write_json(tmp_path / "build.json", old)
  build(plan, tmp_path)
  records.write_json(tmp_path / "build.json", old)
  with pytest.raises(InputError, match="versions.numpy"):
    build(dataclasses.replace(plan, lineage={"numpy": "2.0"}), tmp_path)


def test_a_record_that_was_cut_off_before_the_first_shard_counts_as_absent(tmp_path):
  (tmp_path / "build.json").write_text('{"name": "t')
  assert build(toy_plan([("a", "")]), tmp_path).records == {"train": 1}


def test_a_dead_worker_is_reported_and_finished_shards_are_kept(tmp_path):
  plan = toy_plan([("a", "")], [("b", "die")], [("c", "")])
  with pytest.raises(JobFailed, match="worker process died.*same command"):
    build(plan, tmp_path, workers=2)
  assert not list(tmp_path.rglob(atomic.LEFTOVERS))


def content(folder: pathlib.Path) -> dict[str, bytes]:
  files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_build_that_is_killed_within_a_shard_goes_on_within_it_to_the_same_bytes(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(unfinished, "PART_SECONDS", 0.0)
  inputs = [("a", ""), ("b", "refuse"), ("c", ""), ("d", "")]
  killed = [*inputs[:3], ("d", "interrupt")]
  build(careful_plan(inputs), tmp_path / "whole", budget=1)

  # the same build: what interrupts is no part of its identity
  with pytest.raises(KeyboardInterrupt):
    build(careful_plan(killed), tmp_path / "killed", budget=1)
  assert shard_jobs.finished_inputs(careful_plan(inputs), tmp_path / "killed") == 3

  # only what is left is made, and it shows as that much progress
  MADE.clear()
  seen = []
  build(
    careful_plan(inputs),
    tmp_path / "killed",
    budget=1,
    progress=lambda fresh, refused: seen.append(fresh),
  )
  assert MADE == ["d"]
  assert sum(seen) == 1
  assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_what_was_made_behind_a_damaged_part_is_made_again(tmp_path, monkeypatch):
  monkeypatch.setattr(unfinished, "PART_SECONDS", 0.0)
  inputs = [("a", ""), ("b", ""), ("c", "")]
  build(careful_plan(inputs), tmp_path / "whole")
  with pytest.raises(KeyboardInterrupt):
    build(careful_plan([*inputs[:2], ("c", "interrupt")]), tmp_path / "killed")
  first, second = sorted((tmp_path / "killed" / unfinished.PARTS).rglob("*.array_record"))
  assert second.name == "1-2.array_record"
  second.write_bytes(second.read_bytes()[:100])

  MADE.clear()
  build(careful_plan(inputs), tmp_path / "killed")
  assert MADE == ["b", "c"]
  assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_told_by_input_from_whatever_process_makes_it(tmp_path, workers):
  seen = []
  plan = careful_plan([("a", ""), ("b", ""), ("c", "")], [("d", ""), ("e", "refuse")])
  build(
    plan,
    tmp_path,
    budget=1,
    workers=workers,
    progress=lambda fresh, refused: seen.append((fresh, refused)),
  )
  assert sum(fresh for fresh, _ in seen) == 5
  assert seen[-1][1] == {"odd": 1}
  if workers == 1:
    assert [fresh for fresh, _ in seen if fresh] == [1] * 5


def test_short_shards_leave_no_parts(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    build(careful_plan([("a", ""), ("b", "interrupt")]), tmp_path)
  assert not (tmp_path / unfinished.PARTS).exists()

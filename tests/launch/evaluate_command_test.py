"""launch.evaluate on folders of pairs: contract of metrics.json, resuming, broken inputs."""

import csv
import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import trimesh

from launch import evaluate
from launch.scoring import pairs as scoring_pairs

NAMES = (
  "f1",
  "viou",
  "viou_fixed",
  "chamfer",
  "emd",
  "iou_3d",
  "icp_rot_deg",
  "add_s",
  "add_s_01",
)


def write_pair(folder, pred, truth, *, pred_pose=None, truth_pose=None, suffix="ply"):
  folder.mkdir(parents=True)
  for name, mesh in (("pred", pred), ("truth", truth)):
    if mesh is not None:
      mesh.export(folder / f"{name}.{suffix}")
  for name, pose in (("pred_pose", pred_pose), ("truth_pose", truth_pose)):
    if pose is not None:
      rotation = Rotation.from_euler("z", pose, degrees=True).as_quat(scalar_first=True).tolist()
      (folder / f"{name}.json").write_text(
        json.dumps({"rotation": rotation, "translation": [0, 0, 0], "scale": 1})
      )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Four objects: a perfect one with poses, a poor one without, one without prediction, one whose
  truth is unusable.
  """
  folder = tmp_path_factory.mktemp("pairs")
  bar, ball = trimesh.creation.box((2, 1, 0.5)), trimesh.creation.icosphere(subdivisions=2)
  write_pair(folder / "perfect", bar, bar, pred_pose=20, truth_pose=20, suffix="glb")
  write_pair(folder / "poor", ball, bar, suffix="obj")
  write_pair(folder / "absent", None, bar, pred_pose=0, truth_pose=0)
  write_pair(folder / "broken_truth", bar, None, suffix="stl")
  (folder / "broken_truth" / "truth.stl").write_bytes(b"")
  return folder


@pytest.fixture(scope="module")
def results(pairs, tmp_path_factory):
  out = tmp_path_factory.mktemp("results")
  assert (
    evaluate.main(["--pairs", str(pairs), "--out", str(out), "--points", "5000", "--workers", "1"])
    == 0
  )
  return out, json.loads((out / "metrics.json").read_text())


def test_metrics_json_keeps_its_contract(results):
  _, metrics = results
  assert set(metrics["objects"]) == {"perfect", "poor", "absent", "broken_truth"}
  assert set(NAMES) <= set(metrics["aggregate"]) and all(
    set(NAMES) <= set(row) for row in metrics["objects"].values()
  )
  assert metrics["aggregate"]["objects"] == 4 and metrics["aggregate"]["scored"] == 3


def test_a_perfect_prediction_scores_perfectly(results):
  row = results[1]["objects"]["perfect"]
  assert (row["f1"], row["viou"], row["iou_3d"], row["add_s_01"], row["problem"]) == (
    1,
    1,
    1,
    1,
    "",
  )
  assert row["icp_rot_deg"] < 1 and row["chamfer"] < 1e-6


def test_a_missing_prediction_scores_worst_and_says_why(results):
  row = results[1]["objects"]["absent"]
  assert (
    row["f1"] == 0
    and row["iou_3d"] == 0
    and row["icp_rot_deg"] == 180
    and "pred.* is missing" in row["problem"]
  )


def test_an_object_without_usable_truth_stays_out_of_the_means(results):
  _, metrics = results
  row = metrics["objects"]["broken_truth"]
  assert not row["scored"] and "truth.stl" in row["problem"]
  scored = [r["f1"] for r in metrics["objects"].values() if r["scored"]]
  assert metrics["aggregate"]["f1"] == pytest.approx(np.mean(scored))


def test_layout_is_scored_only_where_there_are_poses(results):
  _, metrics = results
  assert metrics["objects"]["poor"]["add_s"] is None and metrics["aggregate"]["with_pose"] == 2


def test_the_table_and_the_report_hold_every_object(results):
  out, metrics = results
  with (out / "metrics.csv").open() as file:
    assert [row["object"] for row in csv.DictReader(file)] == sorted(metrics["objects"])
  page = (out / "report.html").read_text()
  assert all(name in page for name in metrics["objects"]) and page.count("data:image/png") == 3
  # names no machine's path
  assert (
    page.count("not scored: truth")
    == sum(not row["scored"] for row in metrics["objects"].values())
    > 0
  )


def test_a_second_run_scores_only_what_changed(pairs, results, monkeypatch):
  out, before = results
  scored = []
  changed = {
    "scores": dict(before["objects"]["poor"], f1=0.25),
    "seconds": dict.fromkeys(scoring_pairs.PHASES, 0.0),
  }
  monkeypatch.setattr(
    scoring_pairs, "score_pair", lambda folder, protocol: scored.append(folder.name) or changed
  )
  monkeypatch.setattr(scoring_pairs.report, "html", lambda *args: "")
  (pairs / "poor" / "note.txt").write_text("the folder is another one now")
  assert (
    evaluate.main(["--pairs", str(pairs), "--out", str(out), "--points", "5000", "--workers", "1"])
    == 0
  )
  assert scored == ["poor"]
  after = json.loads((out / "metrics.json").read_text())
  assert (
    after["objects"]["poor"]["f1"] == 0.25
    and after["objects"]["perfect"] == before["objects"]["perfect"]
  )


def test_a_truth_pose_without_predicted_pose_scores_worst(pairs):
  pose = pairs / "poor" / "truth_pose.json"
  pose.write_text(json.dumps({"rotation": [1, 0, 0, 0], "translation": [0, 0, 0], "scale": 1}))
  truth, _ = scoring_pairs.read(pairs / "poor", "truth")
  scores, problem = scoring_pairs.layout_scores(
    pairs / "poor", truth, truth, scoring_pairs.shape.ShapeProtocol()
  )
  pose.unlink()
  assert scores["iou_3d"] == 0 and scores["icp_rot_deg"] == 180 and "pred_pose.json" in problem


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--pairs", "{tmp}/none"], "not a folder"),
    (["--pairs", "{tmp}"], "no folder with a file"),
    ([], "give one of"),
    (["--samples", "{tmp}"], "needs --data"),
    (["--pairs", "{tmp}", "--points", "3"], "--points 3"),
  ],
)
def test_wrong_flags_exit_with_2_and_name_the_flag(tmp_path, capsys, argv, message):
  code = evaluate.main([a.format(tmp=tmp_path) for a in argv] + ["--out", str(tmp_path / "out")])
  assert code == 2 and message in capsys.readouterr().err


def test_a_mesh_with_vertices_that_are_not_finite_is_scored_and_the_row_says_so(tmp_path):
  box = trimesh.creation.box()
  box.vertices[0] = np.nan
  lines = [f"v {x} {y} {z}" for x, y, z in box.vertices] + [
    f"f {a} {b} {c}" for a, b, c in box.faces + 1
  ]
  (tmp_path / "pred.obj").write_text("\n".join(lines) + "\n")
  found, problem = scoring_pairs.read(tmp_path, "pred")
  touched = int((box.faces == 0).any(1).sum())
  assert len(found.faces) == 12 - touched and f"{touched} faces or points are not finite" in problem

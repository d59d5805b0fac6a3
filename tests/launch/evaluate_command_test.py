"""launch.evaluate on folders of pairs: contract of metrics.json, resuming, broken inputs."""

import csv
import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import trimesh

from launch import evaluate
from launch.scoring import pairs as scoring_pairs
from sam3d_jax.evaluation import shape

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
  for name, degrees in (("pred_pose", pred_pose), ("truth_pose", truth_pose)):
    if degrees is not None:
      write_pose(folder / f"{name}.json", degrees)


def write_pose(path, degrees: float) -> None:
  """A pose at the origin, turned about z."""
  turn = Rotation.from_euler("z", degrees, degrees=True)
  stated = {
    "rotation": turn.as_quat(scalar_first=True).tolist(),
    "translation": [0, 0, 0],
    "scale": 1,
  }
  path.write_text(json.dumps(stated))


def score(pairs, out) -> dict:
  """metrics.json of the command."""
  flags = ["--pairs", str(pairs), "--points", "5000", "--workers", "1"]
  assert evaluate.main([*flags, "--out", str(out)]) == 0
  return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Four objects: a perfect one with poses, a poor one without, one without prediction, one whose
  truth is unusable.
  """
  folder = tmp_path_factory.mktemp("pairs")
  bar = trimesh.creation.box((2, 1, 0.5))
  ball = trimesh.creation.icosphere(subdivisions=2)
  write_pair(folder / "perfect", bar, bar, pred_pose=20, truth_pose=20, suffix="glb")
  write_pair(folder / "poor", ball, bar, suffix="obj")
  write_pair(folder / "absent", None, bar, pred_pose=0, truth_pose=0)
  write_pair(folder / "broken_truth", bar, None, suffix="stl")
  (folder / "broken_truth" / "truth.stl").write_bytes(b"")
  return folder


@pytest.fixture(scope="module")
def results(pairs, tmp_path_factory):
  out = tmp_path_factory.mktemp("results")
  return out, score(pairs, out)


def test_metrics_json_keeps_its_contract(results):
  _, metrics = results
  objects = metrics["objects"]
  assert set(objects) == {"perfect", "poor", "absent", "broken_truth"}
  for row in (metrics["aggregate"], *objects.values()):
    assert set(NAMES) <= set(row)
  assert metrics["aggregate"]["objects"] == 4
  assert metrics["aggregate"]["scored"] == 3


def test_a_perfect_prediction_scores_perfectly(results):
  _, metrics = results
  row = metrics["objects"]["perfect"]
  for name in ("f1", "viou", "viou_fixed", "iou_3d", "add_s_01"):
    assert row[name] == 1, name
  assert row["problem"] == ""
  assert row["icp_rot_deg"] < 1
  assert row["chamfer"] < 1e-6


def test_a_missing_prediction_scores_worst_and_says_why(results):
  _, metrics = results
  row = metrics["objects"]["absent"]
  assert row["f1"] == 0
  assert row["iou_3d"] == 0
  assert row["icp_rot_deg"] == 180
  assert "pred.* is missing" in row["problem"]


def test_an_object_without_usable_truth_stays_out_of_the_means(results):
  _, metrics = results
  row = metrics["objects"]["broken_truth"]
  assert not row["scored"]
  assert "truth.stl" in row["problem"]
  scored = [row["f1"] for row in metrics["objects"].values() if row["scored"]]
  assert metrics["aggregate"]["f1"] == pytest.approx(np.mean(scored))


def test_layout_is_scored_only_where_there_are_poses(results):
  _, metrics = results
  assert metrics["objects"]["poor"]["add_s"] is None
  assert metrics["aggregate"]["with_pose"] == 2


def test_the_table_and_the_report_hold_every_object(results):
  out, metrics = results
  objects = metrics["objects"]
  with (out / "metrics.csv").open() as file:
    names = [row["object"] for row in csv.DictReader(file)]
  assert names == sorted(objects)

  page = (out / "report.html").read_text()
  for name in objects:
    assert name in page
  assert page.count("data:image/png") == 3
  # names no machine's path
  unscored = sum(not row["scored"] for row in objects.values())
  assert page.count("not scored: truth") == unscored > 0


def test_a_second_run_scores_only_what_changed(pairs, results, monkeypatch):
  out, before = results
  scored = []

  def score_pair(folder, protocol, limits):
    scored.append(folder.name)
    return {
      "scores": before["objects"]["poor"] | {"f1": 0.25},
      "seconds": dict.fromkeys(scoring_pairs.PHASES, 0.0),
    }

  monkeypatch.setattr(scoring_pairs, "score_pair", score_pair)
  monkeypatch.setattr(scoring_pairs.report, "html", lambda *args: "")
  (pairs / "poor" / "note.txt").write_text("the folder is another one now")
  after = score(pairs, out)
  assert scored == ["poor"]
  assert after["objects"]["poor"]["f1"] == 0.25
  assert after["objects"]["perfect"] == before["objects"]["perfect"]


def test_a_truth_pose_without_predicted_pose_scores_worst(pairs):
  folder = pairs / "poor"
  pose = folder / "truth_pose.json"
  write_pose(pose, 0)
  truth, _ = scoring_pairs.read(folder, "truth")
  protocol = shape.ShapeProtocol()
  scores, problem = scoring_pairs.layout_scores(folder, truth, truth, protocol)
  pose.unlink()
  assert scores["iou_3d"] == 0
  assert scores["icp_rot_deg"] == 180
  assert "pred_pose.json" in problem


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
  flags = [flag.format(tmp=tmp_path) for flag in argv]
  assert evaluate.main([*flags, "--out", str(tmp_path / "out")]) == 2
  assert message in capsys.readouterr().err


def test_a_mesh_with_vertices_that_are_not_finite_is_scored_and_the_row_says_so(tmp_path):
  box = trimesh.creation.box()
  box.vertices[0] = np.nan
  lines = [f"v {x} {y} {z}" for x, y, z in box.vertices]
  lines += [f"f {a} {b} {c}" for a, b, c in box.faces + 1]
  (tmp_path / "pred.obj").write_text("\n".join(lines) + "\n")

  found, problem = scoring_pairs.read(tmp_path, "pred")
  touched = int((box.faces == 0).any(1).sum())
  assert len(found.faces) == 12 - touched
  assert f"{touched} faces or points are not finite" in problem

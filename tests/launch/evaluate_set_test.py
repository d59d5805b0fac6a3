"""launch.evaluate --benchmark: from a model to scores, with models whose answers are known."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.build import shard_jobs
from data_pipelines.eval_sets.procedural import ProceduralSet
from data_pipelines.read import rows
from data_pipelines.synth import benchmark
from launch import evaluate
from launch.scoring import eval_set
from sam3d_jax.geometry import conditions, pose
from sam3d_jax.geometry.conditions import InputConfig
from sam3d_jax.inference import predictor, weights
from sam3d_jax.sampling.generate import SamplerConfig
from tests.support.solids import FAST


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("benchmark")
  plan = benchmark.plan(benchmark.load("procedural_1:1"))
  shard_jobs.build(plan, folder, workers=1, quarantine_budget=0.0)
  return folder


@pytest.fixture
def command(data, monkeypatch):
  """Runs the command on the first object of the benchmark; returns its metrics."""
  monkeypatch.setattr(evaluate, "protocol_of", lambda args: FAST)

  def run(out, *flags):
    argv = ["--benchmark", "procedural_1:1", "--benchmark_data", str(data), "--workers", "1"]
    assert evaluate.main([*argv, *flags, "--out", str(out)]) == 0
    return json.loads((out / "metrics.json").read_text())

  return run


class KnowsTruth(predictor.Predictor):
  """A trained model's stand-in: its latents are the truth of the unoccluded photo, or only its
  rotation.
  """

  def __init__(self, data: str, trained: tuple = ("shape", "rotation", "translation", "scale")):
    form = InputConfig(
      image_size=32,
      pointmap_size=32,
      streams=("image", "rgb_image_mask", "pointmap"),
    )
    super().__init__(
      model=None,
      decoder=None,
      sampler=SamplerConfig(),
      form=form,
      latent_shapes={},
      trained=trained,
      convention="ScaleShiftInvariant",
      resolution=32,
      identity={"checkpoint": "truth"},
    )
    object.__setattr__(self, "data", data)
    object.__setattr__(self, "batches", [])

  def start(self, requests, bucket, seed):
    assert bucket == 2
    self.batches.append(seed)
    for request in requests:
      assert request.streams.image.shape == (32, 32, 3)
      assert np.isfinite(request.streams.pointmap).any()

    # the first photo's truth, for each
    item = ProceduralSet(benchmark.load("procedural_1:1"), self.data)[0]
    told = conditions.condition(item.image_HW3, item.mask_HW, item.pointmap_HW3, self.form)
    truth = pose.Pose(item.pose.rotation, item.pose.translation, item.pose.scale)
    latents = pose.encode_latents(truth, told.scale, told.shift)
    grid = rows.occupancy(item.voxels_N3, 32).astype(bool)

    def repeated(x):
      return np.stack([x] * len(requests))

    return predictor.Prediction(
      occupancy=repeated(grid),
      latents={name: repeated(x) for name, x in latents.items()},
      rotation=repeated(truth.rotation),
    )

  def finish(self, started):
    return started


def test_the_truth_in_place_of_a_model_scores_as_high_as_voxels_can(command, tmp_path):
  metrics = command(tmp_path, "--oracle")
  assert list(metrics["groups"]) == ["none", "light", "heavy"]
  assert set(metrics["objects"]) == {"000-0-none", "000-1-light", "000-2-heavy"}
  for row in metrics["objects"].values():
    assert row["voxel_iou"] == 1
    assert row["icp_rot_deg"] < 1
    assert row["iou_3d"] > 0.9
    assert row["add_s"] < 0.02
    assert row["chamfer"] < 0.03
  assert metrics["run"]["digest"] == benchmark.load("procedural_1:1").digest

  page = (tmp_path / "report.html").read_text()
  assert "heavy" in page
  assert page.count("data:image/png") == 3


def test_a_model_that_knows_the_truth_is_scored_as_the_truth(command, data, tmp_path, monkeypatch):
  """Of the unoccluded photo, whose point map gives the scale and shift that the model's latents
  refer to.
  """
  model = KnowsTruth(data)
  monkeypatch.setattr(weights, "load", lambda config, tell: model)
  flags = ["--checkpoint", "anything", "--batch_size", "2"]
  metrics = command(tmp_path, *flags)
  row = metrics["objects"]["000-0-none"]
  assert row["voxel_iou"] == 1
  assert row["icp_rot_deg"] < 1
  assert row["iou_3d"] > 0.85
  assert row["add_s_01"] == 1

  # three photos in batches of two, the last one padded; nothing is sampled twice
  assert len(model.batches) == 2
  command(tmp_path, *flags)
  assert len(model.batches) == 2
  command(tmp_path, *flags, "--seed", "1")
  assert model.batches == [0, 0, 1, 1]


def test_a_model_without_places_is_scored_by_its_rotation_alone(
  command, data, tmp_path, monkeypatch
):
  model = KnowsTruth(data, trained=("shape", "rotation"))
  monkeypatch.setattr(weights, "load", lambda config, tell: model)
  metrics = command(tmp_path, "--checkpoint", "anything", "--batch_size", "2")
  row = metrics["objects"]["000-2-heavy"]
  assert row["icp_rot_deg"] < 1
  assert row["add_s"] is None
  assert row["iou_3d"] is None
  assert row["problem"] == ""
  assert metrics["aggregate"]["add_s"] is None
  assert metrics["aggregate"]["add_s_count"] == 0


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--benchmark", "procedural_1"], "needs one of --checkpoint"),
    (["--benchmark", "none_such", "--oracle"], "there is procedural_1"),
    (["--benchmark", "procedural_1", "--oracle", "--release", "x"], "needs one of"),
    (["--benchmark", "a", "--pairs", "b"], "not 2 of them"),
    (["--benchmark", "procedural_1", "--oracle", "--batch_size", "0"], "--batch_size 0"),
  ],
)
def test_wrong_flags_exit_with_2_and_say_why(tmp_path, capsys, flags, message):
  assert evaluate.main([*flags, "--out", str(tmp_path / "out")]) == 2
  assert message in capsys.readouterr().err


class Failing(ProceduralSet):
  """A set of which one item cannot be read, and one not be drawn."""

  def __getitem__(self, index):
    if index == 0:
      raise MemoryError
    item = super().__getitem__(index)
    return dataclasses.replace(item, voxels_N3=None) if index == 1 else item


def test_items_that_cannot_be_used_cost_themselves_alone(command, data, tmp_path, monkeypatch):
  monkeypatch.setattr(eval_set, "ProceduralSet", Failing)
  argv = ["--benchmark", "procedural_1:1", "--benchmark_data", str(data), "--workers", "1"]
  argv += ["--oracle", "--out", str(tmp_path)]
  assert evaluate.main(argv) == 2
  metrics = json.loads((tmp_path / "metrics.json").read_text())
  assert set(metrics["objects"]) == {"000-2-heavy"} and metrics["aggregate"]["refused"] == 2
  reasons = {one["path"]: one["reason"] for one in metrics["refused"]}
  assert reasons == {"000-0-none": "too_large", "000-1-light": "unusable"}
  assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
  assert evaluate.main([*argv, "--quarantine_budget", "0.9"]) == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"1": [3]}', '{"\u00b2": []}', "[" * 50_000])
def test_tables_of_a_set_that_are_none_are_named(tmp_path, capsys, text):
  scene = tmp_path / "bop" / "test" / "000001"
  scene.mkdir(parents=True)
  (tmp_path / "bop" / "models").mkdir()
  (scene / "scene_gt.json").write_text(text)
  (scene / "scene_camera.json").write_text("{}")
  argv = ["--bop", str(tmp_path / "bop"), "--oracle", "--out", str(tmp_path / "out")]
  assert evaluate.main(argv) == 2
  assert "bop" in capsys.readouterr().err

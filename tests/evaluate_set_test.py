"""launch.evaluate --benchmark: from a model to scores, with models whose answers are known."""

import dataclasses
import json
import types

import numpy as np
import pytest

from data_pipelines import build, samples
from data_pipelines.eval_sets.procedural import ProceduralSet
from data_pipelines.synth import benchmark
from launch import evaluate, evaluate_pairs, predictor, sample
from sam3d_jax.geometry import pose
from sam3d_jax.sampling.generate import SamplerConfig
from tests.evaluation_shape_test import FAST


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("benchmark")
  build.build(benchmark.plan(benchmark.load("procedural_1:1")), folder, workers=1, quarantine_budget=0.0)
  return folder


@pytest.fixture
def command(data, monkeypatch):
  """Runs the command on the first object of the benchmark; returns its metrics."""
  monkeypatch.setattr(evaluate_pairs, "protocol_of", lambda args: FAST)

  def run(out, *flags):
    argv = ["--benchmark", "procedural_1:1", "--benchmark_data", str(data), "--out", str(out), "--workers", "1", *flags]
    assert evaluate.main(argv) == 0
    return json.loads((out / "metrics.json").read_text())
  return run


@dataclasses.dataclass
class KnowsTruth:
  """Stands for a trained model: its latents are the truth of the item whose point map it is shown, or only the rotation."""

  data: str
  trained: tuple = ("shape", "rotation", "translation", "scale")
  calls: int = 0
  convention = "ScaleShiftInvariant"
  sampler = SamplerConfig()
  row = samples.SampleConfig(image_size=32, pointmap_size=32, streams=("image", "rgb_image_mask", "pointmap"))
  identity = types.MappingProxyType({"checkpoint": "truth"})

  def __call__(self, cond, content_B2, seed, *, without_pointmap):
    assert cond.image.shape == (2, 32, 32, 3) and cond.pointmap.shape == (2, 32, 32, 3) and not without_pointmap
    self.calls += 1
    item = ProceduralSet(benchmark.load("procedural_1:1"), self.data)[0]
    points = item.pointmap_HW3
    inputs = [samples.transforms.preprocess(item.image_HW3, i.mask_HW, points, image_size=32, pointmap_size=32, streams=("pointmap",))
              for i in (item, item)]
    truth = pose.Pose(item.pose.matrix.T, item.pose.translation, item.pose.scale)
    latents = pose.encode_latents(truth, inputs[0]["pointmap_scale"], inputs[0]["pointmap_shift"])
    grid = samples.occupancy(item.voxels_N3, 32).astype(bool)
    return predictor.Prediction(np.stack([grid] * 2), {n: np.stack([x] * 2) for n, x in latents.items()}, np.stack([truth.rotation] * 2))


def test_the_truth_in_place_of_a_model_scores_as_high_as_voxels_can(command, tmp_path):
  metrics = command(tmp_path, "--oracle")
  assert list(metrics["groups"]) == ["none", "light", "heavy"] and set(metrics["objects"]) == {"000-0-none", "000-1-light", "000-2-heavy"}
  for row in metrics["objects"].values():
    assert row["voxel_iou"] == 1 and row["icp_rot_deg"] < 1 and row["iou_3d"] > 0.9 and row["add_s"] < 0.02 and row["chamfer"] < 0.03
  assert metrics["run"]["digest"] == benchmark.load("procedural_1:1").digest
  page = (tmp_path / "report.html").read_text()
  assert "heavy" in page and page.count("data:image/png") == 3


def test_a_model_that_knows_the_truth_is_scored_as_the_truth(command, data, tmp_path, monkeypatch):
  """Of the unoccluded photo, whose point map gives the scale and shift that the model's latents refer to."""
  model = KnowsTruth(data)
  monkeypatch.setattr(sample, "load_predictor", lambda args: model)
  flags = ["--checkpoint", "anything", "--batch_size", "2"]
  metrics = command(tmp_path, *flags)
  row = metrics["objects"]["000-0-none"]
  assert row["voxel_iou"] == 1 and row["icp_rot_deg"] < 1 and row["iou_3d"] > 0.85 and row["add_s_01"] == 1
  assert model.calls == 2  # three photos in batches of two, the last one padded
  command(tmp_path, *flags)
  assert model.calls == 2  # nothing is sampled twice
  command(tmp_path, *flags, "--seed", "1")
  assert model.calls == 4


def test_a_model_without_places_is_scored_by_its_rotation_alone(command, data, tmp_path, monkeypatch):
  monkeypatch.setattr(sample, "load_predictor", lambda args: KnowsTruth(data, trained=("shape", "rotation")))
  metrics = command(tmp_path, "--checkpoint", "anything", "--batch_size", "2")
  row = metrics["objects"]["000-2-heavy"]
  assert row["icp_rot_deg"] < 1 and row["add_s"] is None and row["iou_3d"] is None and row["problem"] == ""
  assert metrics["aggregate"]["add_s"] is None and metrics["aggregate"]["add_s_count"] == 0


@pytest.mark.parametrize("flags, message", [
    (["--benchmark", "procedural_1"], "needs one of --checkpoint"), (["--benchmark", "none_such", "--oracle"], "there is procedural_1"),
    (["--benchmark", "procedural_1", "--oracle", "--release", "x"], "needs one of"),
    (["--benchmark", "a", "--pairs", "b"], "not 2 of them"),
    (["--benchmark", "procedural_1", "--oracle", "--batch_size", "0"], "--batch_size 0"),
])
def test_wrong_flags_exit_with_2_and_say_why(tmp_path, capsys, flags, message):
  assert evaluate.main([*flags, "--out", str(tmp_path / "out")]) == 2 and message in capsys.readouterr().err

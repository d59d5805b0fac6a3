"""Scores of samples during training and on the ladder: what is perfect, what each fault costs, what
cannot be scored.
"""

import numpy as np
import pytest

from data_pipelines.format import schema
from data_pipelines.read import rows
from launch.ladders import data, report
from launch.scoring import held_out
from sam3d_jax.geometry import pose
from sam3d_jax.geometry.conditions import InputConfig
from tests.support import tiny_dataset

FORM = InputConfig(image_size=16, pointmap_size=16)
LEARNED = ("shape", "rotation", "translation", "scale")


@pytest.fixture(scope="module")
def found():
  return held_out.object_of(tiny_dataset.make_example(3), FORM, 32)


def latents(found):
  return pose.encode_latents(found.pose, found.scene_scale, found.scene_shift)


def score(found, grid, learned=LEARNED, **changes):
  said = latents(found) | changes
  return held_out.score(found, grid, said, learned, f1_threshold=0.05)


def test_the_truth_scores_perfectly(found):
  row = score(found, found.occupancy)
  for name in ("viou", "f1", "iou_3d"):
    assert row[name] == pytest.approx(1.0, abs=1e-5), name
  for name in ("chamfer", "floaters", "missing"):
    assert row[name] == pytest.approx(0.0, abs=1e-6), name
  assert row["rotation_deg"] < 0.1


def test_floaters_and_missing_parts_are_told_apart(found):
  floating = found.occupancy.copy()
  floating[:3, :3, :3] = True
  row = score(found, floating)
  assert row["floaters"] > 0.01
  assert row["missing"] == 0

  cut = found.occupancy.copy()
  cut[:16] = False
  row = score(found, cut)
  assert row["missing"] > 0.3
  assert row["floaters"] == 0


def test_an_empty_sample_scores_worst_and_not_at_all_better(found):
  empty = np.zeros_like(found.occupancy)
  row = score(found, empty)
  worst = {"viou": 0, "f1": 0, "iou_3d": 0, "missing": 1, "chamfer": 1}
  assert {name: row[name] for name in worst} == worst


def test_a_turned_object_is_off_by_its_angle(found):
  angle = 0.5
  c, s = np.cos(angle), np.sin(angle)
  turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
  turned = found.pose._replace(rotation=found.pose.rotation @ turn)
  said = pose.encode_latents(turned, found.scene_scale, found.scene_shift)
  row = score(found, found.occupancy, **said)
  assert row["rotation_deg"] == pytest.approx(np.degrees(angle), abs=0.1)


def test_what_the_model_never_learned_is_not_scored(found):
  row = score(found, found.occupancy, learned=("shape", "rotation"))
  assert np.isnan(row["iou_3d"])
  assert "iou_3d" not in held_out.mean_scores([row])


def test_the_same_objects_come_every_time(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 7, split="test", shards=1)
  keys = []
  for _ in range(2):
    objects = held_out.read([str(tmp_path)], "test", FORM, 32, 3)
    keys.append([found.key for found in objects])
  first, again = keys
  assert first == again
  assert len(set(first)) == 3


def test_faults_change_the_shape_as_their_names_say():
  voxels = tiny_dataset.make_example(3)["voxels"]
  rng = np.random.default_rng(0)
  more = data.add_floaters(voxels, rng)
  fewer = data.remove_part(voxels, rng)

  def as_set(voxels_N3) -> set[tuple]:
    return {tuple(voxel) for voxel in voxels_N3.tolist()}

  assert as_set(fewer) < as_set(voxels) < as_set(more)
  assert 0.3 < len(fewer) / len(voxels) < 0.75


def test_ratings_tell_faulty_shapes_but_not_always():
  examples = [tiny_dataset.make_example(i) for i in range(3)]
  source = []
  for i in range(300):
    key = schema.example_key("photo", i)
    source.append(examples[i % 3] | {"key": key})
  made = list(data.rated(source, 0, faulty=True))

  # a shape with a fault has another key than the same one without
  bad = []
  for given, rated in zip(source, made, strict=True):
    unchanged = schema.example_key(given["key"], "rated", 0)
    bad.append(rated["key"] != unchanged)
  bad = np.array(bad)
  assert 0.4 < bad.mean() < 0.6

  ratings = np.array([rated["rating"] for rated in made])
  accepted = ratings >= 3.0
  assert 0.02 < bad[accepted].mean() < 0.25
  assert not bad[~accepted].all()


def test_a_pair_is_the_best_and_the_worst_sample_if_they_differ(found):
  truth = found.occupancy
  cut = truth.copy()
  cut[:16] = False
  floating = truth.copy()
  floating[:6, :6, :6] = True
  assert data.chosen(truth, [floating, truth, cut]) == (1, 2)
  assert data.chosen(truth, [truth, truth]) is None


def test_fine_voxels_are_the_same_shape_on_the_records_grid(found):
  fine = data.fine_voxels(found.occupancy)
  coarse = rows.occupancy(fine, 32).astype(bool)
  np.testing.assert_array_equal(coarse, found.occupancy)


def test_the_table_gives_mean_and_spread_over_seeds():
  def scores(value: float) -> dict:
    row = dict.fromkeys(held_out.HIGHER_IS_BETTER, value)
    return {"photos": row | {"objects": 10, "constant": 0.2}}

  seeds = [{"sft": scores(0.2)}, {"sft": scores(0.4)}]
  (row,) = report.table(seeds, ["sft"])
  assert row["viou"] == pytest.approx(0.3)
  assert row["viou_std"] == pytest.approx(0.1414, abs=1e-4)
  assert row["objects"] == 20
  assert "0.300 ± 0.141" in report.page([row], {"photos": 0.2}, 2)

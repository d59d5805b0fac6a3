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
  return held_out.score(found, grid, latents(found) | changes, learned, f1_threshold=0.05)


def test_the_truth_scores_perfectly(found):
  row = score(found, found.occupancy)
  np.testing.assert_allclose([row[k] for k in ("viou", "f1", "iou_3d")], 1.0, atol=1e-5)
  np.testing.assert_allclose([row[k] for k in ("chamfer", "floaters", "missing")], 0.0, atol=1e-6)
  assert row["rotation_deg"] < 0.1


def test_floaters_and_missing_parts_are_told_apart(found):
  floating, cut = found.occupancy.copy(), found.occupancy.copy()
  floating[:3, :3, :3] = True
  cut[:16] = False
  assert score(found, floating)["floaters"] > 0.01 and score(found, floating)["missing"] == 0
  assert score(found, cut)["missing"] > 0.3 and score(found, cut)["floaters"] == 0


def test_an_empty_sample_scores_worst_and_not_at_all_better(found):
  row = score(found, np.zeros_like(found.occupancy))
  assert (row["viou"], row["f1"], row["iou_3d"], row["missing"], row["chamfer"]) == (0, 0, 0, 1, 1)


def test_a_turned_object_is_off_by_its_angle(found):
  c, s = np.cos(0.5), np.sin(0.5)
  turned = found.pose._replace(
    rotation=found.pose.rotation @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
  )
  row = score(
    found, found.occupancy, **pose.encode_latents(turned, found.scene_scale, found.scene_shift)
  )
  np.testing.assert_allclose(row["rotation_deg"], np.degrees(0.5), atol=0.1)


def test_what_the_model_never_learned_is_not_scored(found):
  row = score(found, found.occupancy, learned=("shape", "rotation"))
  assert np.isnan(row["iou_3d"]) and "iou_3d" not in held_out.mean_scores([row])


def test_the_same_objects_come_every_time(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 7, split="test", shards=1)
  first, again = (held_out.read([str(tmp_path)], "test", FORM, 32, 3) for _ in range(2))
  assert [o.key for o in first] == [o.key for o in again] and len({o.key for o in first}) == 3


def test_faults_change_the_shape_as_their_names_say():
  voxels = tiny_dataset.make_example(3)["voxels"]
  whole = {tuple(v) for v in voxels.tolist()}
  rng = np.random.default_rng(0)
  more, fewer = data.add_floaters(voxels, rng), data.remove_part(voxels, rng)
  assert whole < {tuple(v) for v in more.tolist()}
  assert {tuple(v) for v in fewer.tolist()} < whole and 0.3 < len(fewer) / len(voxels) < 0.75


def test_ratings_tell_faulty_shapes_but_not_always():
  examples = [tiny_dataset.make_example(i) for i in range(3)]
  source = [examples[i % 3] | {"key": schema.example_key("photo", i)} for i in range(300)]
  made = list(data.rated(source, 0, faulty=True))
  bad = np.array(
    [
      m["key"] != schema.example_key(s["key"], "rated", 0)
      for m, s in zip(made, source, strict=True)
    ]
  )
  ratings = np.array([m["rating"] for m in made])
  assert 0.4 < bad.mean() < 0.6
  accepted = ratings >= 3.0
  assert 0.02 < bad[accepted].mean() < 0.25 and (~bad[~accepted]).any()


def test_a_pair_is_the_best_and_the_worst_sample_if_they_differ(found):
  cut, floating = found.occupancy.copy(), found.occupancy.copy()
  cut[:16], floating[:6, :6, :6] = False, True
  assert data.chosen(found.occupancy, [floating, found.occupancy, cut]) == (1, 2)
  assert data.chosen(found.occupancy, [found.occupancy, found.occupancy]) is None


def test_fine_voxels_are_the_same_shape_on_the_records_grid(found):
  np.testing.assert_array_equal(
    rows.occupancy(data.fine_voxels(found.occupancy), 32).astype(bool), found.occupancy
  )


def test_the_table_gives_mean_and_spread_over_seeds():
  scores = lambda v: {
    "photos": {k: v for k in held_out.HIGHER_IS_BETTER} | {"objects": 10, "constant": 0.2}
  }
  (row,) = report.table([{"sft": scores(0.2)}, {"sft": scores(0.4)}], ["sft"])
  assert (
    row["viou"] == pytest.approx(0.3)
    and row["viou_std"] == pytest.approx(0.1414, abs=1e-4)
    and row["objects"] == 20
  )
  assert "0.300 ± 0.141" in report.page([row], {"photos": 0.2}, 2)

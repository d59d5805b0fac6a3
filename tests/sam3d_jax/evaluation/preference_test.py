"""Votes to win rates and ratings; image metrics; their commands."""

import json

import numpy as np
from PIL import Image
import pytest

from launch import evaluate
from sam3d_jax.evaluation import aggregate, views
from sam3d_jax.evaluation.preference import Vote, elo, elo_intervals, wilson_interval, win_rate


def test_ties_count_half_and_sides_do_not_matter():
  votes = [
    Vote("a", "b", "left"),
    Vote("b", "a", "right"),
    Vote("a", "b", "equal"),
    Vote("b", "a", "left"),
    Vote("a", "c", "right"),
  ]
  of_a = win_rate(votes, "a", "b")
  of_b = win_rate(votes, "b", "a")
  assert of_a.votes == 4
  assert of_a.rate == 2.5 / 4
  assert of_b.rate == 1 - of_a.rate


def test_wilson_interval_matches_the_published_formula():
  # 8 of 10 at 95 %: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96
  assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
  assert wilson_interval(0, 0) == (0, 1)
  assert wilson_interval(5, 5)[1] == 1.0


def test_elo_difference_of_odds_10_to_1_is_400():
  votes = [Vote("a", "b", "left")] * 1000 + [Vote("a", "b", "right")] * 100
  ratings = elo(votes, prior=0.0)
  assert ratings["a"] - ratings["b"] == pytest.approx(400, abs=0.1)
  assert sum(ratings.values()) / 2 == pytest.approx(1000)


def test_elo_does_not_depend_on_the_order_of_votes():
  rng = np.random.default_rng(0)
  votes = []
  for _ in range(60):
    left, right, _ = rng.permutation(["a", "b", "c"])
    outcome = rng.choice(["left", "right", "equal"])
    votes.append(Vote(left, right, outcome))
  shuffled = [votes[i] for i in rng.permutation(60)]
  assert elo(votes) == pytest.approx(elo(shuffled), abs=1e-4)


def test_a_model_that_never_lost_has_a_finite_rating():
  ratings = elo([Vote("a", "b", "left")] * 5)
  assert np.isfinite(list(ratings.values())).all()
  assert ratings["a"] > ratings["b"]


def test_elo_intervals_hold_the_rating():
  won = [Vote("a", "b", "left")] * 30
  lost = [Vote("a", "b", "right")] * 20
  votes = won + lost
  low, high = elo_intervals(votes, draws=50)["a"]
  assert low < elo(votes)["a"] < high


def test_bootstrap_interval_has_the_width_of_the_standard_error():
  values = np.random.default_rng(0).standard_normal(400)
  low, high = aggregate.bootstrap_interval(values)
  assert low < values.mean() < high
  assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
  assert np.isnan(aggregate.bootstrap_interval([])).all()


def test_summary_counts_only_objects_that_have_the_metric():
  rows = {
    "x": {"f1": 1.0, "add_s": None},
    "y": {"f1": 0.0, "add_s": None},
  }
  total = aggregate.summarise(rows, ("f1", "add_s"))
  assert total["f1"] == 0.5
  assert total["add_s"] is None
  assert total["add_s_interval"] is None


def test_psnr_of_a_constant_error_is_its_closed_form():
  picture = np.full((16, 16, 3), 0.5)
  assert views.psnr(picture + 0.1, picture) == pytest.approx(20.0)
  assert views.psnr(picture, picture) == np.inf


def test_ssim_is_one_for_equal_pictures_and_lower_for_noise():
  rng = np.random.default_rng(0)
  picture = rng.random((32, 32, 3))
  noise = 0.3 * rng.standard_normal(picture.shape)
  noisy = np.clip(picture + noise, 0, 1)
  assert views.ssim(picture, picture) == pytest.approx(1)
  assert views.ssim(noisy, picture) < 0.9
  with pytest.raises(ValueError, match="11 x 11"):
    views.ssim(picture[:8], picture[:8])


def test_views_are_averaged_and_what_is_missing_scores_worst(tmp_path, capsys):
  rng = np.random.default_rng(0)
  truth = rng.integers(60, 196, (20, 24, 3), np.uint8)
  predictions = {"same": truth, "off": truth + 51, "absent": None, "small": truth[:12]}
  for name, pred in predictions.items():
    folder = tmp_path / name
    folder.mkdir()
    Image.fromarray(truth).save(folder / "truth_0.png")
    if pred is not None:
      Image.fromarray(pred).save(folder / "pred_0.png")

  out = tmp_path / "out"
  assert evaluate.main(["--views", str(tmp_path), "--out", str(out)]) == 0
  rows = json.loads((out / "metrics.json").read_text())["objects"]
  assert rows["same"]["psnr"] == 100
  assert rows["same"]["ssim"] == pytest.approx(1)
  # a constant error of 51 / 255
  assert rows["off"]["psnr"] == pytest.approx(-20 * np.log10(0.2), abs=1e-3)
  assert rows["absent"]["psnr"] == 0
  assert rows["small"]["ssim"] == 0
  assert "pred_0 is missing" in rows["absent"]["problem"]
  assert "24 x 12" in rows["small"]["problem"]


def test_votes_become_ratings_and_win_rates(tmp_path, capsys):
  path = tmp_path / "votes.csv"
  out = tmp_path / "out"
  flags = ["--votes", str(path), "--out", str(out)]
  rows = ["a,b,left"] * 6 + ["b,a,equal"] * 2 + ["b,c,left"] * 4
  path.write_text("\n".join(["left,right,outcome", *rows]) + "\n")
  assert evaluate.main(flags) == 0
  found = json.loads((out / "votes.json").read_text())
  assert list(found["elo"]) == ["a", "b", "c"]
  rates_of_a = found["win_rate"]["a"]
  assert rates_of_a["b"]["rate"] == 7 / 8
  assert "c" not in rates_of_a  # they never met

  path.write_text("left,right,outcome\na,b,left\na,a,left\n")
  assert evaluate.main(flags) == 2
  assert "line 3" in capsys.readouterr().err

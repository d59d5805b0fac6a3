"""What a sweep's report shows: every trial can be told from the others, in every plot."""

import html
import json
import re

import pytest

from launch.sweeps import plots, report, space
from launch.sweeps.plots import Line

SWEEP = {
  "command": "pretrain",
  "config": "configs/pretrain_geometry.py:fake",
  "metric": "eval/loss",
}


def load(folder, blocks: list[dict]) -> space.Sweep:
  file = folder / "sweep_file.py"
  spec = {**SWEEP, "space": blocks}
  file.write_text(f"def get_sweep():\n  return {spec!r}\n")
  return space.load(str(file))


def page_of(folder, blocks: list[dict], losses: dict[str, list[float]]) -> str:
  """The report of trials with these losses at steps 10, 20, ...; value of the swept key -> losses.

  The metric is the loss.
  """
  sweep = load(folder, blocks)
  for trial in sweep.trials:
    (value,) = trial.swept.values()
    (folder / trial.id).mkdir()
    rows = []
    for number, loss in enumerate(losses[str(value)], start=1):
      row = {"step": 10 * number, "loss": loss, "eval/loss": loss}
      rows.append(json.dumps(row) + "\n")
    (folder / trial.id / "metrics.jsonl").write_text("".join(rows))
  report.write(sweep, folder)
  return (folder / "report.html").read_text()


def line(number: int, *points: tuple[float, float]) -> Line:
  return Line(plots.mark_of(number, 4), f"trial {number}", points)


@pytest.mark.parametrize(
  "block, logarithmic",
  [
    ({"product": {"optim.lr": (1e-3, 2e-3, 4e-3)}}, True),
    ({"product": {"optim.lr": (1e-3, 3e-3, 1e-2, 3e-2)}}, True),
    ({"product": {"optim.lr": (1e-3, 2e-3, 3e-3)}}, False),
    ({"product": {"optim.lr": (1e-3, 2e-3)}}, False),
    ({"product": {"optim.schedule": ("constant", "cosine")}}, False),
    ({"random": {"optim.lr": {"log_uniform": (1e-3, 2e-3)}}, "trials": 3}, True),
    ({"random": {"optim.lr": {"uniform": (1e-3, 2e-3)}}, "trials": 3}, False),
  ],
)
def test_an_axis_is_logarithmic_where_the_space_of_its_key_is(tmp_path, block, logarithmic):
  sweep = load(tmp_path, [block])
  assert bool(sweep.log_keys) == logarithmic
  rows = report.collect(sweep, tmp_path)
  for number, row in enumerate(rows):
    row |= {"rank": number + 1, "value": float(number)}
  (key,) = rows[0]["swept"]
  assert ("logarithmic" in report.scatter(sweep, key, rows)) == logarithmic


def test_equal_ratios_are_equally_far_apart_on_a_logarithmic_axis():
  x = plots.Scale([1, 2, 4], 0, 100, log=True)
  assert [x(1), x(2), x(4)] == pytest.approx([0, 50, 100])
  assert x.ticks() == [1, 2, 4]


def test_the_legend_has_number_colour_and_values_of_every_trial(tmp_path):
  losses = {"0.1": [3.0, 2.0], "0.2": [3.0, 1.0], "0.4": []}
  page = page_of(tmp_path, [{"product": {"optim.lr": (0.1, 0.2, 0.4)}}], losses)
  legend = re.search(r"<ul class=legend>(.*?)</ul>", page)[1]
  items = re.findall(r'background:([^"]*)">(.*?)</span>(.*?)</li>', legend)
  assert items == [
    (plots.COLOURS[0], "1", "optim.lr 0.2"),
    (plots.COLOURS[1], "2", "optim.lr 0.1"),
    (plots.GREY, "–", "optim.lr 0.4"),
  ]
  # the colours of the curves
  strokes = re.findall(r'<polyline [^>]*stroke="([^"]*)"[^>]*><title>(.*?)</title>', page)
  assert (plots.COLOURS[0], strokes[1][1]) == strokes[1]
  assert html.unescape(strokes[1][1]).startswith("1. ")
  assert strokes[0][0] == plots.COLOURS[1]


@pytest.mark.parametrize("trials", [8, 30])
def test_no_two_trials_look_alike(trials):
  marks = [plots.mark_of(rank + 1, trials) for rank in range(trials)]
  assert len({mark.colour for mark in marks}) == trials
  assert len({mark.number for mark in marks}) == trials


def test_curves_that_lie_upon_each_other_are_seen_in_turn(tmp_path):
  losses = {"0.1": [3.0, 2.0, 1.5], "0.2": [3.0, 2.0, 1.5], "0.4": [3.0, 2.5, 2.4]}
  page = page_of(tmp_path, [{"product": {"optim.lr": (0.1, 0.2, 0.4)}}], losses)
  drawn = re.findall(r"<polyline ([^>]*)>", page)
  # of three curves in either plot two are the same
  striped = [attributes for attributes in drawn if "dasharray" in attributes]
  assert len(drawn) == 6 and len(striped) == 4
  first, second = striped[:2]
  assert 'dasharray="9 9"' in first and 'dasharray="9 9"' in second
  offsets = {re.search(r'dashoffset="(.*?)"', attributes)[1] for attributes in striped[:2]}
  assert offsets == {"0", "-9"}


def test_a_single_point_is_drawn(tmp_path):
  page = page_of(tmp_path, [{"product": {"optim.lr": (0.1,)}}], {"0.1": [3.0]})
  assert page.count('stroke-linecap="round"') == 2


def test_numbers_at_the_ends_of_curves_do_not_cover_each_other():
  bottom = float(plots.HEIGHT - plots.BOTTOM)
  ends = [200.0, 201.0, 202.0, bottom, bottom - 1, bottom, 10.0]
  lines = [line(index % 4 + 1, (0, 0)) for index in range(len(ends))]
  drawn = plots.numbers(lines, [[(0, end)] for end in ends])
  heights = sorted(float(re.search(r' y="(.*?)"', text)[1]) for text in drawn)
  gaps = [b - a for a, b in zip(heights, heights[1:], strict=False)]
  assert min(gaps) >= plots.LABEL - 0.1
  assert heights[0] >= plots.TOP and heights[-1] <= plots.HEIGHT - plots.BOTTOM + 4


def test_dots_of_equal_trials_stand_side_by_side():
  lines = [line(number, (0.5, 1.0)) for number in (1, 2, 3)] + [line(4, (0.6, 1.0))]
  drawn = plots.dots("caption", "key", lines, log=False, names=None)
  places = [float(x) for x in re.findall(r'cx="(.*?)"', drawn)]
  places.sort()
  assert len(places) == 4
  gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
  assert min(gaps) >= 2 * plots.DOT - 0.1

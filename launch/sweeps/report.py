"""What came out of a sweep: a ranked table (CSV) and one self-contained page with curves (HTML)."""

import csv
import html
import io
import math
import pathlib
import shlex
from typing import Any

from launch.sweeps.space import Sweep, text_of
from launch.sweeps.trials import command_of, metric_rows, read_status
from sam3d_jax.files import atomic

Point = tuple[int, float]  # step, value of a metric

WIDTH, HEIGHT, MARGIN = 560, 300, 56  # of a plot, in pixels
STYLE = (
  "body{font:14px sans-serif;margin:1.5em;color:#222}"
  "table{border-collapse:collapse}"
  "td,th{padding:.25em .7em;text-align:left;border-bottom:1px solid #ddd;"
  "font-variant-numeric:tabular-nums}"
  "th{background:#f4f4f4}"
  "code{font-size:11px;color:#555}"
  "figure{display:inline-block;margin:0 1em 1em 0;vertical-align:top}"
  "figcaption{font-weight:bold}"
  ".failed{color:#b00}"
  "polyline{fill:none;stroke-width:1.6}"
  "polyline:hover{stroke-width:4}"
  "circle:hover{r:7}"
  ".axis{stroke:#999}"
  ".tick{font-size:11px;fill:#555}"
  ".swatch{display:inline-block;width:1em;height:.7em;margin-right:.4em}"
  "details{margin:.2em 0}"
)


def collect(sweep: Sweep, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """One row a trial, the best first; trials without a finite value of the metric come last, in
  their order.
  """
  sign = 1 if sweep.goal == "min" else -1
  rows = []
  for trial in sweep.trials:
    # what the trial has written so far, whether it runs or has ended
    folder = workdir / trial.id
    curve = series(folder, sweep.metric)
    status = read_status(folder)
    rows.append(
      {
        "id": trial.id,
        "swept": trial.swept,
        "value": picked(curve, sweep.pick, sign),
        "step": curve[-1][0] if curve else None,
        "curve": curve,
        "loss": series(folder, "loss"),
        "status": status["state"],
        "exit_code": status["exit_code"],
        "seconds": status["seconds"],
        "command": shlex.join(command_of(sweep, trial, workdir)),
      }
    )

  def place(row: dict[str, Any]) -> tuple[bool, float]:
    return row["value"] is None, sign * (row["value"] or 0)

  # Only a trial with a value has a rank.
  rows.sort(key=place)
  ranked = []
  for number, row in enumerate(rows, start=1):
    rank = None if row["value"] is None else number
    ranked.append({"rank": rank, **row})
  return ranked


def picked(curve: list[Point], pick: str, sign: int) -> float | None:
  """The value that a trial is ranked by, None without any. sign: 1 where the least is best."""
  if not curve:
    return None
  values = [value for _, value in curve]
  if pick == "last":
    return values[-1]
  return min(values, key=lambda value: sign * value)


def series(folder: pathlib.Path, name: str) -> list[Point]:
  """(step, value) of a metric wherever it was written and finite."""
  rows = metric_rows(folder)
  return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def write(sweep: Sweep, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Renews table.csv and report.html; returns the ranked rows."""
  rows = collect(sweep, workdir)
  atomic.write_text(workdir / "table.csv", table(sweep, rows))
  atomic.write_text(workdir / "report.html", page(sweep, rows, workdir.name))
  return rows


def table(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
  """The ranking as CSV: one column for every swept key."""
  # what tells trials apart, then what came of them
  keys = swept_keys(rows)
  after = ("step", "status", "exit_code", "seconds", "command")
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(["rank", "id", *keys, sweep.metric, *after])
  for row in rows:
    swept = [text_of(row["swept"][key]) for key in keys]
    rest = [row[name] for name in after]
    writer.writerow([row["rank"], row["id"], *swept, row["value"], *rest])
  return out.getvalue()


def swept_keys(rows: list[dict[str, Any]]) -> list[str]:
  """Every key that some trial sweeps, in the order in which they are met."""
  keys: dict[str, None] = {}
  for row in rows:
    keys |= dict.fromkeys(row["swept"])
  return list(keys)


def swept_text(row: dict[str, Any]) -> str:
  """What tells a trial from the others: key and value, one after the other."""
  return ", ".join(f"{key} {text_of(value)}" for key, value in row["swept"].items())


def text(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
  """The ranking for the terminal."""
  lines = []
  for row in rows:
    rank = row["rank"] or "-"
    value = "-" if row["value"] is None else f"{row['value']:.4g}"
    lines.append(
      f"{rank:>3}  {sweep.metric} {value:>9}  {row['status']:8} {row['id']}  {swept_text(row)}"
    )
  return "\n".join(lines)


def colour(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
  """By rank: the best blue, the worst orange."""
  ranked = [other for other in rows if other["rank"] is not None]
  steps = max(1, len(ranked) - 1)
  rank = row["rank"] or 1
  # 0 for the best, 1 for the worst
  place = (rank - 1) / steps
  hue = 225 - 195 * place
  lightness = 42 + 8 * place
  return f"hsl({hue:.0f},70%,{lightness:.0f}%)"


def page(sweep: Sweep, rows: list[dict[str, Any]], name: str) -> str:
  """The whole report as one page without scripts or links."""
  title = html.escape(name)
  metric = html.escape(sweep.metric)
  config = html.escape(sweep.config)
  first = "lowest" if sweep.goal == "min" else "highest"
  done = sum(row["status"] == "done" for row in rows)

  # Curves of all trials, then the ranking value over each swept key.
  plots = [
    curves(f"{sweep.metric} over steps", [(row, row["curve"]) for row in rows], rows),
    curves("training loss over steps", [(row, row["loss"]) for row in rows], rows),
  ]
  for key in swept_keys(rows):
    plots.append(scatter(sweep.metric, key, rows))

  return (
    f"<!doctype html><meta charset=utf-8><title>Sweep {title}</title><style>{STYLE}</style>"
    f"<h1>Sweep {title}</h1><p>launch.{sweep.command} {config}: "
    f"{done} of {len(rows)} trials done; "
    f"ranked by the {sweep.pick} {metric}, {first} first. "
    "The best is blue; point at a curve to see which it "
    f"is.</p>{''.join(plots)}{html_table(sweep, rows)}"
  )


def html_table(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
  """The ranking as a table, and the command of every trial."""
  keys = swept_keys(rows)
  titles = ("rank", "trial", *keys, sweep.metric, "step", "status", "seconds")
  head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)

  lines, commands = [], []
  for row in rows:
    trial, status = row["id"], row["status"]
    cells = [
      row["rank"] or "–",
      f'<span class=swatch style="background:{colour(row, rows)}"></span>{trial}',
      *[html.escape(text_of(row["swept"][key])) for key in keys],
      "–" if row["value"] is None else f"{row['value']:.5g}",
      row["step"] or "–",
      f'<span class="{status}">{status}</span>',
      f"{row['seconds']:.0f}",
    ]
    line = "".join(f"<td>{cell}</td>" for cell in cells)
    lines.append(f"<tr>{line}</tr>")
    # below the table, folded up
    command = html.escape(row["command"])
    commands.append(f"<details><summary>{trial}</summary><code>{command}</code></details>")
  return f"<table><tr>{head}</tr>{''.join(lines)}</table><h2>Commands</h2>{''.join(commands)}"


class Scale:
  """Values to pixels along one axis, logarithmic where all are positive and span more than a
  decade.
  """

  def __init__(self, values: list[float], first: float, last: float, *, log: bool | None = None):
    """first, last: pixels of the least and of the greatest value. log: None: by the values."""
    low, high = min(values), max(values)
    if log is None:
      log = low > 0 and high > 10 * low
    if log:
      low, high = math.log10(low), math.log10(high)
    # one value alone lies in the middle
    if low == high:
      low, high = low - 0.5, high + 0.5
    self.log = log
    self.low, self.high = low, high
    self.first, self.last = first, last

  def __call__(self, value: float) -> float:
    """The pixel of a value."""
    if self.log:
      value = math.log10(value)
    # 0 at the least value, 1 at the greatest
    share = (value - self.low) / (self.high - self.low)
    length = self.last - self.first
    return self.first + share * length

  def ticks(self) -> list[float]:
    """Five values, evenly spaced on the axis."""
    values = [self.low + i / 4 * (self.high - self.low) for i in range(5)]
    return [10**value for value in values] if self.log else values


def frame(
  caption: str, x: Scale, y: Scale, x_label: str, content: str, names: list[str] | None = None
) -> str:
  """A plot: axes with ticks around drawn content. names: of the values 0, 1, 2, ... of a horizontal
  axis that has no numbers.
  """
  left, right, bottom = MARGIN, WIDTH - 10, HEIGHT - MARGIN

  # Ticks of the horizontal axis, then of the vertical one.
  if names:
    marks = [(i, html.escape(name)) for i, name in enumerate(names)]
  else:
    marks = [(value, f"{value:.3g}") for value in x.ticks()]
  ticks = []
  for value, said in marks:
    ticks.append(
      f'<text class=tick x="{x(value):.0f}" y="{bottom + 16}" text-anchor="middle">{said}</text>'
    )
  for value in y.ticks():
    ticks.append(
      f'<text class=tick x="{left - 6}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.3g}</text>'
    )

  axes = (
    f'<line class=axis x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
    f'<line class=axis x1="{left}" y1="10" x2="{left}" y2="{bottom}"/>'
  )
  label = (
    f'<text class=tick x="{WIDTH / 2}" y="{HEIGHT - 16}" '
    f'text-anchor="middle">{html.escape(x_label)}</text>'
  )
  return (
    f'<figure><figcaption>{html.escape(caption)}</figcaption><svg width="{WIDTH}" '
    f'height="{HEIGHT}">{axes}{"".join(ticks)}{label}{content}'
    "</svg></figure>"
  )


def curves(
  caption: str,
  lines: list[tuple[dict[str, Any], list[Point]]],
  rows: list[dict[str, Any]],
) -> str:
  """One line a trial, the best drawn last; nothing if there is no point."""
  points = [point for _, line in lines for point in line]
  if not points:
    return ""
  # one frame for all of them
  steps, values = zip(*points, strict=True)
  x = Scale(steps, MARGIN, WIDTH - 10, log=False)
  y = Scale(values, HEIGHT - MARGIN, 10)
  drawn = []
  for row, line in reversed(lines):
    if not line:
      continue
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line)
    rank = row["rank"] or "–"
    name = html.escape(f"{rank}. {row['id']}: {swept_text(row)}")
    drawn.append(
      f'<polyline points="{path}" stroke="{colour(row, rows)}"><title>{name}</title></polyline>'
    )
  return frame(caption, x, y, "step", "".join(drawn))


def scatter(metric: str, key: str, rows: list[dict[str, Any]]) -> str:
  """The ranking value over one swept key; values that are no numbers stand side by side."""
  shown = [row for row in rows if row["value"] is not None]
  if not shown:
    return ""

  # Where each value of the key stands along the axis.
  chosen = [row["swept"][key] for row in shown]
  numeric = all(isinstance(value, (int, float)) for value in chosen)
  if numeric:
    kinds, places = None, chosen
  else:
    texts = [text_of(value) for value in chosen]
    kinds = sorted(set(texts))
    places = [kinds.index(text) for text in texts]

  # the best dot is drawn last, over the others
  x = Scale(places, MARGIN + 20, WIDTH - 30, log=None if numeric else False)
  y = Scale([row["value"] for row in shown], HEIGHT - MARGIN, 10)
  dots = []
  for row, place in reversed(list(zip(shown, places, strict=True))):
    swept = text_of(row["swept"][key])
    name = html.escape(f"{row['rank']}. {row['id']}: {swept}, {row['value']:.5g}")
    dots.append(
      f'<circle cx="{x(place):.1f}" cy="{y(row["value"]):.1f}" r="5" '
      f'fill="{colour(row, rows)}" fill-opacity=".8">'
      f"<title>{name}</title></circle>"
    )
  return frame(f"{metric} by {key}", x, y, key, "".join(dots), kinds)

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
    curve = series(workdir / trial.id, sweep.metric)
    value = None
    if curve:
      value = (
        curve[-1][1] if sweep.pick == "last" else min(curve, key=lambda point: sign * point[1])[1]
      )
    status = read_status(workdir / trial.id)
    rows.append(
      {
        "id": trial.id,
        "swept": trial.swept,
        "value": value,
        "step": curve[-1][0] if curve else None,
        "curve": curve,
        "loss": series(workdir / trial.id, "loss"),
        "status": status["state"],
        "exit_code": status["exit_code"],
        "seconds": status["seconds"],
        "command": shlex.join(command_of(sweep, trial, workdir)),
      }
    )
  rows.sort(key=lambda row: (row["value"] is None, sign * (row["value"] or 0)))
  return [
    {"rank": i + 1 if row["value"] is not None else None, **row} for i, row in enumerate(rows)
  ]


def series(folder: pathlib.Path, name: str) -> list[tuple[int, float]]:
  """(step, value) of a metric wherever it was written and finite."""
  return [(row["step"], row[name]) for row in metric_rows(folder) if row.get(name) is not None]


def write(sweep: Sweep, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Renews table.csv and report.html; returns the ranked rows."""
  rows = collect(sweep, workdir)
  atomic.write_text(workdir / "table.csv", table(sweep, rows))
  atomic.write_text(workdir / "report.html", page(sweep, rows, workdir.name))
  return rows


def table(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
  """The ranking as CSV: one column for every swept key."""
  keys = swept_keys(rows)
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(
    ["rank", "id", *keys, sweep.metric, "step", "status", "exit_code", "seconds", "command"]
  )
  for row in rows:
    writer.writerow(
      [
        row["rank"],
        row["id"],
        *(text_of(row["swept"][key]) for key in keys),
        row["value"],
        row["step"],
        row["status"],
        row["exit_code"],
        row["seconds"],
        row["command"],
      ]
    )
  return out.getvalue()


def swept_keys(rows: list[dict[str, Any]]) -> list[str]:
  return list(dict.fromkeys(key for row in rows for key in row["swept"]))


def text(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
  """The ranking for the terminal."""
  lines = []
  for row in rows:
    value = f"{row['value']:.4g}" if row["value"] is not None else "-"
    swept = ", ".join(f"{key} {text_of(value)}" for key, value in row["swept"].items())
    lines.append(
      f"{row['rank'] or '-':>3}  {sweep.metric} {value:>9}  {row['status']:8} {row['id']}  {swept}"
    )
  return "\n".join(lines)


def colour(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
  """By rank: the best blue, the worst orange."""
  ranked = max(1, sum(r["rank"] is not None for r in rows) - 1)
  place = ((row["rank"] or 1) - 1) / ranked
  return f"hsl({225 - 195 * place:.0f},70%,{42 + 8 * place:.0f}%)"


def page(sweep: Sweep, rows: list[dict[str, Any]], name: str) -> str:
  """The whole report as one page without scripts or links."""
  plots = [
    curves(f"{sweep.metric} over steps", [(row, row["curve"]) for row in rows], rows),
    curves("training loss over steps", [(row, row["loss"]) for row in rows], rows),
  ]
  plots += [scatter(sweep.metric, key, rows) for key in swept_keys(rows)]
  done = sum(row["status"] == "done" for row in rows)
  return (
    "<!doctype html><meta charset=utf-8><title>Sweep "
    f"{html.escape(name)}</title><style>{STYLE}</style>"
    f"<h1>Sweep {html.escape(name)}</h1><p>launch.{sweep.command} {html.escape(sweep.config)}: "
    f"{done} of {len(rows)} trials done; "
    f"ranked by the {sweep.pick} {html.escape(sweep.metric)}, "
    f"{'lowest' if sweep.goal == 'min' else 'highest'} first. "
    "The best is blue; point at a curve to see which it "
    f"is.</p>{''.join(plots)}{html_table(sweep, rows)}"
  )


def html_table(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
  keys = swept_keys(rows)
  head = "".join(
    f"<th>{html.escape(h)}</th>"
    for h in ("rank", "trial", *keys, sweep.metric, "step", "status", "seconds")
  )
  body = []
  for row in rows:
    value = f"{row['value']:.5g}" if row["value"] is not None else "–"
    cells = [
      row["rank"] or "–",
      f'<span class=swatch style="background:{colour(row, rows)}"></span>{row["id"]}',
      *(html.escape(text_of(row["swept"][key])) for key in keys),
      value,
      row["step"] or "–",
      f'<span class="{row["status"]}">{row["status"]}</span>',
      f"{row['seconds']:.0f}",
    ]
    body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
  commands = "".join(
    f"<details><summary>{row['id']}</summary><code>{html.escape(row['command'])}</code></details>"
    for row in rows
  )
  return f"<table><tr>{head}</tr>{''.join(body)}</table><h2>Commands</h2>{commands}"


class Scale:
  """Values to pixels along one axis, logarithmic where all are positive and span more than a
  decade.
  """

  def __init__(self, values: list[float], first: float, last: float, *, log: bool | None = None):
    low, high = min(values), max(values)
    self.log = (low > 0 and high > 10 * low) if log is None else log
    self.low, self.high = (math.log10(low), math.log10(high)) if self.log else (low, high)
    if self.low == self.high:
      self.low, self.high = self.low - 0.5, self.high + 0.5
    self.first, self.last = first, last

  def __call__(self, value: float) -> float:
    value = math.log10(value) if self.log else value
    return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

  def ticks(self) -> list[float]:
    values = [self.low + i / 4 * (self.high - self.low) for i in range(5)]
    return [10**v if self.log else v for v in values]


def frame(
  caption: str, x: Scale, y: Scale, x_label: str, content: str, names: list[str] | None = None
) -> str:
  """A plot: axes with ticks around drawn content. names: of the values 0, 1, 2, ... of a horizontal
  axis that has no numbers.
  """
  marks = (
    [(i, html.escape(name)) for i, name in enumerate(names)]
    if names
    else [(t, f"{t:.3g}") for t in x.ticks()]
  )
  ticks = "".join(
    f'<text class=tick x="{x(t):.0f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{text}</text>'
    for t, text in marks
  )
  ticks += "".join(
    f'<text class=tick x="{MARGIN - 6}" y="{y(t) + 4:.0f}" text-anchor="end">{t:.3g}</text>'
    for t in y.ticks()
  )
  axes = (
    f'<line class=axis x1="{MARGIN}" y1="{HEIGHT - MARGIN}" x2="{WIDTH - 10}" '
    f'y2="{HEIGHT - MARGIN}"/>'
    f'<line class=axis x1="{MARGIN}" y1="10" x2="{MARGIN}" y2="{HEIGHT - MARGIN}"/>'
  )
  label = (
    f'<text class=tick x="{WIDTH / 2}" y="{HEIGHT - 16}" '
    f'text-anchor="middle">{html.escape(x_label)}</text>'
  )
  return (
    f'<figure><figcaption>{html.escape(caption)}</figcaption><svg width="{WIDTH}" '
    f'height="{HEIGHT}">{axes}{ticks}{label}{content}'
    "</svg></figure>"
  )


def curves(
  caption: str,
  lines: list[tuple[dict[str, Any], list[tuple[int, float]]]],
  rows: list[dict[str, Any]],
) -> str:
  """One line a trial, the best drawn last; nothing if there is no point."""
  points = [point for _, line in lines for point in line]
  if not points:
    return ""
  x = Scale([p[0] for p in points], MARGIN, WIDTH - 10, log=False)
  y = Scale([p[1] for p in points], HEIGHT - MARGIN, 10)
  drawn = []
  for row, line in reversed(lines):
    if line:
      path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line)
      swept = ", ".join(f"{key} {text_of(value)}" for key, value in row["swept"].items())
      name = html.escape(f"{row['rank'] or '–'}. {row['id']}: {swept}")
      drawn.append(
        f'<polyline points="{path}" stroke="{colour(row, rows)}"><title>{name}</title></polyline>'
      )
  return frame(caption, x, y, "step", "".join(drawn))


def scatter(metric: str, key: str, rows: list[dict[str, Any]]) -> str:
  """The ranking value over one swept key; values that are no numbers stand side by side."""
  shown = [row for row in rows if row["value"] is not None]
  if not shown:
    return ""
  kinds = sorted({text_of(row["swept"][key]) for row in shown})
  numeric = all(isinstance(row["swept"][key], (int, float)) for row in shown)
  place = lambda row: row["swept"][key] if numeric else kinds.index(text_of(row["swept"][key]))
  x = Scale([place(row) for row in shown], MARGIN + 20, WIDTH - 30, log=None if numeric else False)
  y = Scale([row["value"] for row in shown], HEIGHT - MARGIN, 10)
  dots = ""
  for row in reversed(shown):
    name = html.escape(
      f"{row['rank']}. {row['id']}: {text_of(row['swept'][key])}, {row['value']:.5g}"
    )
    dots += (
      f'<circle cx="{x(place(row)):.1f}" cy="{y(row["value"]):.1f}" r="5" '
      f'fill="{colour(row, rows)}" fill-opacity=".8">'
      f"<title>{name}</title></circle>"
    )
  return frame(f"{metric} by {key}", x, y, key, dots, None if numeric else kinds)

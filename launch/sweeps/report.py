"""What came out of a sweep: a ranked table (CSV) and one self-contained page with curves (HTML)."""

import csv
import html
import io
import pathlib
import shlex
from typing import Any

from launch.sweeps import plots
from launch.sweeps.plots import Line, Mark, Point
from launch.sweeps.space import Sweep, text_of
from launch.sweeps.trials import command_of, metric_rows, read_status
from sam3d_jax.files import atomic, texts

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
  "polyline{fill:none;stroke-width:1.8}"
  "polyline:hover{stroke-width:4}"
  ".axis{stroke:#999}"
  ".grid{stroke:#eee}"
  ".tick{font-size:11px;fill:#555}"
  ".number{font-size:11px;font-weight:bold}"
  ".inside{font-size:9px;fill:#fff;text-anchor:middle}"
  ".mark{display:inline-block;min-width:1.5em;margin-right:.5em;border-radius:.7em;"
  "text-align:center;font-size:11px;color:#fff}"
  ".legend{columns:24em;padding:0;list-style:none;max-width:90em}"
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
  headings = ["rank", "id", *keys, sweep.metric, *after]
  writer.writerow(map(texts.cell, headings))
  for row in rows:
    swept = [text_of(row["swept"][key]) for key in keys]
    rest = [row[name] for name in after]
    cells = [row["rank"], row["id"], *swept, row["value"], *rest]
    writer.writerow(map(texts.cell, cells))
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


def mark(row: dict[str, Any], rows: list[dict[str, Any]]) -> Mark:
  """Number and colour of a trial, the same in every plot."""
  return plots.mark_of(row["rank"], len(rows))


def badge(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
  """The number on its colour."""
  shown = mark(row, rows)
  return f'<span class=mark style="background:{shown.colour}">{shown.number}</span>'


def page(sweep: Sweep, rows: list[dict[str, Any]], name: str) -> str:
  """The whole report as one page without scripts or links."""
  title = html.escape(name)
  metric = html.escape(sweep.metric)
  config = html.escape(sweep.config)
  first = "lowest" if sweep.goal == "min" else "highest"
  done = sum(row["status"] == "done" for row in rows)

  # Curves of all trials, then the ranking value over each swept key.
  drawn = [
    curves(f"{sweep.metric} over steps", "curve", rows),
    curves("training loss over steps", "loss", rows),
  ]
  for key in swept_keys(rows):
    drawn.append(scatter(sweep, key, rows))

  return (
    f"<!doctype html><meta charset=utf-8><title>Sweep {title}</title><style>{STYLE}</style>"
    f"<h1>Sweep {title}</h1><p>launch.{sweep.command} {config}: "
    f"{done} of {len(rows)} trials done; "
    f"ranked by the {sweep.pick} {metric}, {first} first. "
    "Numbers are ranks. Curves that lie upon each other are one line in stripes of their colours; "
    "point at a curve or dot to read which trial it is.</p>"
    f"{legend(rows)}{''.join(drawn)}{html_table(sweep, rows)}"
  )


def legend(rows: list[dict[str, Any]]) -> str:
  """Number, colour and what was swept of every trial."""
  items = []
  for row in rows:
    said = html.escape(swept_text(row))
    items.append(f"<li>{badge(row, rows)}{said}</li>")
  return f"<ul class=legend>{''.join(items)}</ul>"


def curves(caption: str, series_name: str, rows: list[dict[str, Any]]) -> str:
  """A curve for each trial. series_name: `curve` or `loss` of a row."""
  lines = []
  for row in rows:
    rank = row["rank"] or "–"
    said = f"{rank}. {row['id']}: {swept_text(row)}"
    lines.append(Line(mark(row, rows), said, row[series_name]))
  return plots.curves(caption, lines)


def scatter(sweep: Sweep, key: str, rows: list[dict[str, Any]]) -> str:
  """The ranking value over one swept key; values that are no numbers stand side by side."""
  shown = [row for row in rows if row["value"] is not None]
  if not shown:
    return ""

  # Where each value of the key stands along the axis.
  chosen = [row["swept"][key] for row in shown]
  if all(isinstance(value, (int, float)) for value in chosen):
    names, places = None, chosen
  else:
    texts = [text_of(value) for value in chosen]
    names = sorted(set(texts))
    places = [names.index(text) for text in texts]

  lines = []
  for row, place in zip(shown, places, strict=True):
    swept = text_of(row["swept"][key])
    said = f"{row['rank']}. {row['id']}: {swept}, {row['value']:.5g}"
    lines.append(Line(mark(row, rows), said, [(place, row["value"])]))
  caption = f"{sweep.metric} by {key}"
  return plots.dots(caption, key, lines, log=key in sweep.log_keys, names=names)


def html_table(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
  """The ranking as a table, and the command of every trial."""
  keys = swept_keys(rows)
  titles = ("rank", "trial", *keys, sweep.metric, "step", "status", "seconds")
  head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)

  lines, commands = [], []
  for row in rows:
    trial, status = row["id"], row["status"]
    cells = [
      badge(row, rows),
      trial,
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

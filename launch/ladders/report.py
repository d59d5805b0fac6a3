"""The ladder's results as a table (CSV and HTML) and a curve, over one or several seeds."""

from collections.abc import Sequence
import csv
import html
import json
import pathlib

import numpy as np

from launch.scoring.held_out import HIGHER_IS_BETTER
from launch.scoring.steps_curve import chart
from sam3d_jax.errors import InputError
from sam3d_jax.files import texts

STYLE = (
  "body{font:15px system-ui;margin:2em;color:#222}"
  "table{border-collapse:collapse}"
  "td,th{padding:.35em .8em;text-align:right}"
  "th{border-bottom:2px solid #888}"
  "td:first-child,th:first-child{text-align:left}"
  "tr:nth-child(even){background:#f4f5f8}"
)


def read(folder: pathlib.Path, stages: Sequence[str]) -> dict[str, dict]:
  """stage -> set of photos -> scores of one seed. Raises InputError for a stage without scores."""
  files = {stage: folder / "scores" / f"{stage}.json" for stage in stages}
  missing = [stage for stage, file in files.items() if not file.is_file()]
  if missing:
    raise InputError(
      f"{folder} holds no scores of {', '.join(missing)}: let launch.ladder finish there first"
    )
  return {stage: json.loads(file.read_text()) for stage, file in files.items()}


def table(seeds: Sequence[dict], stages: Sequence[str]) -> list[dict]:
  """A row for each stage and set of photos: mean over the seeds and, of several, the standard
  deviation of each score.
  """
  rows = []
  for photos in seeds[0][stages[0]]:
    for stage in stages:
      found = [seed[stage][photos] for seed in seeds]
      row = {
        "photos": photos,
        "stage": stage,
        "seeds": len(seeds),
        "objects": sum(scores["objects"] for scores in found),
      }
      for name in HIGHER_IS_BETTER:
        # a score that no object of a seed has is None
        values = [scores[name] for scores in found if scores[name] is not None]
        row[name] = rounded(np.mean(values)) if values else None
        if len(seeds) > 1:
          spread = rounded(np.std(values, ddof=1)) if len(values) > 1 else None
          row[f"{name}_std"] = spread
      rows.append(row)
  return rows


def rounded(value: np.floating) -> float:
  """To the digits that the table keeps."""
  return round(float(value), 4)


def write(out: pathlib.Path, folders: Sequence[pathlib.Path], stages: Sequence[str]) -> None:
  """ladder.csv, ladder.html and ladder.png in `out`, and the table on the screen."""
  # The table.
  seeds = [read(folder, stages) for folder in folders]
  rows = table(seeds, stages)
  with (out / "ladder.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    for row in rows:
      writer.writerow({name: texts.cell(value) for name, value in row.items()})

  # One curve for each set of photos.
  series: dict[str, list[tuple[str, float]]] = {}
  for row in rows:
    stage = row["stage"].removesuffix("_steps")
    series.setdefault(row["photos"], []).append((stage, row["viou"]))
  title = f"voxel IoU after each stage, {counted(len(seeds))}"
  chart(series, title=title, axis="stage").save(out / "ladder.png")

  # The best shape that ignores the photo is that of the objects, whichever stage is scored.
  constant = {}
  for photos in series:
    each = [seed[stages[0]][photos]["constant"] for seed in seeds]
    constant[photos] = float(np.mean(each))
  (out / "ladder.html").write_text(page(rows, constant, len(seeds)))

  # The same on the screen.
  for row in rows:
    shown = []
    for name in HIGHER_IS_BETTER:
      value = "-" if row[name] is None else f"{row[name]:.3f}"
      shown.append(f"{name} {value}")
    print(f"{row['photos']:10} {row['stage']:16} {'  '.join(shown)}")
  best = ", ".join(f"{photos} viou {value:.3f}" for photos, value in constant.items())
  print(f"best shape that ignores the photo: {best}")
  print(f"wrote {out / 'ladder.csv'}, ladder.html, ladder.png")


def page(rows: list[dict], constant: dict[str, float], seeds: int) -> str:
  """The table as a web page. constant: set of photos -> score of the best constant shape."""
  titles = []
  for name, higher in HIGHER_IS_BETTER.items():
    arrow = "↑" if higher else "↓"
    titles.append(f"<th>{html.escape(name)} {arrow}</th>")
  head = "".join(titles)

  parts = [
    f"<!doctype html><meta charset=utf-8><title>ladder</title><style>{STYLE}</style><h1>The "
    f"ladder, {counted(seeds)}</h1>"
  ]
  for photos, value in constant.items():
    lines = [html_row(row) for row in rows if row["photos"] == photos]
    parts.append(
      f"<h2>{html.escape(photos)}: held-out photos (best constant shape: voxel IoU "
      f"{value:.3f})</h2>"
      f"<table><tr><th>after</th>{head}</tr>{''.join(lines)}</table>"
    )
  parts.append("<p><img src=ladder.png alt='voxel IoU after each stage'></p>")
  return "".join(parts)


def html_row(row: dict) -> str:
  """The scores after one stage."""
  cells = "".join(f"<td>{cell(row, name)}</td>" for name in HIGHER_IS_BETTER)
  return f"<tr><td>{html.escape(row['stage'])}</td>{cells}</tr>"


def counted(seeds: int) -> str:
  """1 -> '1 seed', 3 -> '3 seeds'."""
  return f"{seeds} seed" + "s" * (seeds > 1)


def cell(row: dict, name: str) -> str:
  """A score, with its spread over the seeds if there are several."""
  if row[name] is None:
    return "–"
  spread = row.get(f"{name}_std")
  if spread is None:
    return f"{row[name]:.3f}"
  return f"{row[name]:.3f} ± {spread:.3f}"

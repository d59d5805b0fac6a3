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

STYLE = (
  "body{font:15px "
  "system-ui;margin:2em;color:#222}table{border-collapse:collapse}td,th{padding:.35em "
  ".8em;text-align:right}"
  "th{border-bottom:2px solid "
  "#888}td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f4f5f8}"
)


def read(folder: pathlib.Path, stages: Sequence[str]) -> dict[str, dict]:
  """stage -> set of photos -> scores of one seed. Raises InputError for a stage without scores."""
  missing = [s for s in stages if not (folder / "scores" / f"{s}.json").is_file()]
  if missing:
    raise InputError(
      f"{folder} holds no scores of {', '.join(missing)}: let launch.ladder finish there first"
    )
  return {s: json.loads((folder / "scores" / f"{s}.json").read_text()) for s in stages}


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
        "objects": sum(f["objects"] for f in found),
      }
      for name in HIGHER_IS_BETTER:
        values = [f[name] for f in found if f[name] is not None]
        row[name] = round(float(np.mean(values)), 4) if values else None
        if len(seeds) > 1:
          row[f"{name}_std"] = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None
      rows.append(row)
  return rows


def write(out: pathlib.Path, folders: Sequence[pathlib.Path], stages: Sequence[str]) -> None:
  """ladder.csv, ladder.html and ladder.png in `out`, and the table on the screen."""
  seeds = [read(folder, stages) for folder in folders]
  rows = table(seeds, stages)
  with (out / "ladder.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  sets = list(dict.fromkeys(row["photos"] for row in rows))
  series = {
    photos: [
      (row["stage"].removesuffix("_steps"), row["viou"]) for row in rows if row["photos"] == photos
    ]
    for photos in sets
  }
  chart(series, title=f"voxel IoU after each stage, {counted(len(seeds))}", axis="stage").save(
    out / "ladder.png"
  )
  constant = {p: float(np.mean([seed[stages[0]][p]["constant"] for seed in seeds])) for p in sets}
  (out / "ladder.html").write_text(page(rows, constant, len(seeds)))
  for row in rows:
    shown = (
      f"{name} {'-' if row[name] is None else format(row[name], '.3f')}"
      for name in HIGHER_IS_BETTER
    )
    print(f"{row['photos']:10} {row['stage']:16} {'  '.join(shown)}")
  print(
    "best shape that ignores the photo: "
    + ", ".join(f"{p} viou {v:.3f}" for p, v in constant.items())
  )
  print(f"wrote {out / 'ladder.csv'}, ladder.html, ladder.png")


def page(rows: list[dict], constant: dict[str, float], seeds: int) -> str:
  """The table as a web page."""
  head = "".join(
    f"<th>{html.escape(name)} {'↑' if up else '↓'}</th>" for name, up in HIGHER_IS_BETTER.items()
  )
  parts = [
    f"<!doctype html><meta charset=utf-8><title>ladder</title><style>{STYLE}</style><h1>The "
    f"ladder, {counted(seeds)}</h1>"
  ]
  for photos, value in constant.items():
    body = "".join(
      "<tr><td>"
      + html.escape(row["stage"])
      + "</td>"
      + "".join(f"<td>{cell(row, name)}</td>" for name in HIGHER_IS_BETTER)
      + "</tr>"
      for row in rows
      if row["photos"] == photos
    )
    parts.append(
      f"<h2>{html.escape(photos)}: held-out photos (best constant shape: voxel IoU "
      f"{value:.3f})</h2>"
      f"<table><tr><th>after</th>{head}</tr>{body}</table>"
    )
  return "".join([*parts, "<p><img src=ladder.png alt='voxel IoU after each stage'></p>"])


def counted(seeds: int) -> str:
  return f"{seeds} seed" + "s" * (seeds > 1)


def cell(row: dict, name: str) -> str:
  """A score, with its spread over the seeds if there are several."""
  if row[name] is None:
    return "–"
  spread = row.get(f"{name}_std")
  return f"{row[name]:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")

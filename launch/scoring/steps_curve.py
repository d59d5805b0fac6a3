"""Quality over the number of sampling steps, as a table and a picture: what distillation is judged
by.
"""

from collections.abc import Mapping, Sequence
import csv
import pathlib
from typing import Any

from PIL import Image, ImageDraw, ImageFont

INK, GRID = (40, 42, 48), (225, 227, 232)
COLOURS = ((196, 78, 60), (62, 110, 180), (80, 150, 90), (150, 100, 170))
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 420, 70, 46, 30, 60


def write(folder: pathlib.Path, rows: Sequence[Mapping]) -> None:
  """steps_quality.csv and steps_quality.png. A row has `sampler`, `steps` and scores, among them
  `viou`.
  """
  columns = list(dict.fromkeys(name for row in rows for name in row))
  with (folder / "steps_quality.csv").open("w", newline="") as file:
    table = csv.DictWriter(file, columns)
    table.writeheader()
    table.writerows(rows)
  series = {
    name: [(row["steps"], row["viou"]) for row in rows if row["sampler"] == name]
    for name in ("shortcut", "plain")
  }
  series = {k: v for k, v in series.items() if v}
  chart(series, title="voxel IoU over sampling steps", axis="sampling steps").save(
    folder / "steps_quality.png"
  )


def chart(
  series: Mapping[str, Sequence[tuple[Any, float]]], *, title: str, axis: str
) -> Image.Image:
  """Lines with points: series name -> (position, value). Positions are equally spaced in the order
  in which they come; values from 0 up.
  """
  steps = list(dict.fromkeys(x for points in series.values() for x, _ in points))
  top = max(y for points in series.values() for _, y in points) * 1.1 or 1.0
  across = lambda x: LEFT + (WIDTH - LEFT - RIGHT) * (steps.index(x) + 0.5) / len(steps)
  up = lambda y: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top
  picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
  draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
  draw.text((LEFT, 14), title, fill=INK, font=ImageFont.load_default(16))
  for k in range(6):
    value = top * k / 5
    draw.line([(LEFT, up(value)), (WIDTH - RIGHT, up(value))], fill=GRID)
    draw.text((LEFT - 44, up(value) - 8), f"{value:.2f}", fill=INK, font=font)
  for x in steps:
    draw.text((across(x) - 3.5 * len(str(x)), HEIGHT - BOTTOM + 8), str(x), fill=INK, font=font)
  draw.text((WIDTH / 2 - 3.5 * len(axis), HEIGHT - 28), axis, fill=INK, font=font)
  for number, (name, points) in enumerate(series.items()):
    colour = COLOURS[number % len(COLOURS)]
    path = [(across(x), up(y)) for x, y in points]
    draw.line(path, fill=colour, width=3)
    for (px, py), (_, value) in zip(path, points, strict=True):
      draw.ellipse([px - 4, py - 4, px + 4, py + 4], fill=colour)
      draw.text(
        (px - 14, py - 20 if number == 0 else py + 6), f"{value:.3f}", fill=colour, font=font
      )
    draw.text(
      (WIDTH - RIGHT - 90, 12 + 16 * number), name, fill=colour, font=ImageFont.load_default(14)
    )
  return picture

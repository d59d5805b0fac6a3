"""Quality over the number of sampling steps, as a table and a picture: what distillation is judged
by.
"""

from collections.abc import Mapping, Sequence
import csv
import pathlib
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sam3d_jax.files import texts

INK, GRID = (40, 42, 48), (225, 227, 232)
COLOURS = ((196, 78, 60), (62, 110, 180), (80, 150, 90), (150, 100, 170))
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 420, 70, 46, 30, 60


def write(folder: pathlib.Path, rows: Sequence[Mapping]) -> None:
  """steps_quality.csv and steps_quality.png. A row has `sampler`, `steps` and scores, among them
  `viou`.
  """
  # The table: whatever any row has is a column.
  columns: dict[str, None] = {}
  for row in rows:
    columns |= dict.fromkeys(row)
  with (folder / "steps_quality.csv").open("w", newline="") as file:
    table = csv.DictWriter(file, list(columns))
    table.writeheader()
    for row in rows:
      table.writerow({name: texts.cell(value) for name, value in row.items()})

  # The picture: a line for each sampler that was used.
  series: dict[str, list] = {}
  for name in ("shortcut", "plain"):
    points = [(row["steps"], row["viou"]) for row in rows if row["sampler"] == name]
    if points:
      series[name] = points
  picture = chart(series, title="voxel IoU over sampling steps", axis="sampling steps")
  picture.save(folder / "steps_quality.png")


def chart(
  series: Mapping[str, Sequence[tuple[Any, float]]], *, title: str, axis: str
) -> Image.Image:
  """Lines with points: series name -> (position, value). Positions are equally spaced in the order
  in which they come; values from 0 up.
  """
  every = [point for points in series.values() for point in points]
  steps = list(dict.fromkeys(x for x, _ in every))
  top = max(y for _, y in every) * 1.1 or 1.0
  right = WIDTH - RIGHT
  bottom = HEIGHT - BOTTOM

  def across(x: Any) -> float:
    """Pixel column of a position: the middle of its share of the axis."""
    share = (steps.index(x) + 0.5) / len(steps)
    return LEFT + (right - LEFT) * share

  def up(y: float) -> float:
    """Pixel row of a value."""
    return bottom - (bottom - TOP) * y / top

  picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
  draw = ImageDraw.Draw(picture)
  small = ImageFont.load_default(13)
  medium = ImageFont.load_default(14)
  large = ImageFont.load_default(16)
  draw.text((LEFT, 14), title, fill=INK, font=large)

  # Five lines above zero, with their values.
  for k in range(6):
    value = top * k / 5
    y = up(value)
    draw.line([(LEFT, y), (right, y)], fill=GRID)
    draw.text((LEFT - 44, y - 8), f"{value:.2f}", fill=INK, font=small)

  # Positions and the axis' name, centred: a character is about 7 pixels wide.
  for step in steps:
    text = str(step)
    x = across(step) - 3.5 * len(text)
    draw.text((x, bottom + 8), text, fill=INK, font=small)
  x = WIDTH / 2 - 3.5 * len(axis)
  draw.text((x, HEIGHT - 28), axis, fill=INK, font=small)

  # The lines; the first has its values above, the others below.
  for number, (name, points) in enumerate(series.items()):
    colour = COLOURS[number % len(COLOURS)]
    path = [(across(x), up(y)) for x, y in points]
    draw.line(path, fill=colour, width=3)
    beside = -20 if number == 0 else 6
    for (x, y), (_, value) in zip(path, points, strict=True):
      draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
      draw.text((x - 14, y + beside), f"{value:.3f}", fill=colour, font=small)
    draw.text((right - 90, 12 + 16 * number), name, fill=colour, font=medium)
  return picture

"""Quality over the number of sampling steps, as a table and a picture: what distillation is judged by."""

from collections.abc import Mapping, Sequence
import csv
import pathlib

from PIL import Image, ImageDraw, ImageFont

INK, GRID = (40, 42, 48), (225, 227, 232)
COLOURS = {"shortcut": (196, 78, 60), "plain": (62, 110, 180)}
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 420, 70, 46, 30, 60


def write(folder: pathlib.Path, rows: Sequence[Mapping]) -> None:
  """steps_quality.csv and steps_quality.png. A row has `sampler`, `steps` and scores, among them `viou`."""
  columns = list(dict.fromkeys(name for row in rows for name in row))
  with (folder / "steps_quality.csv").open("w", newline="") as file:
    table = csv.DictWriter(file, columns)
    table.writeheader()
    table.writerows(rows)
  series = {name: [(row["steps"], row["viou"]) for row in rows if row["sampler"] == name] for name in COLOURS}
  chart({k: v for k, v in series.items() if v}, title="voxel IoU over sampling steps").save(folder / "steps_quality.png")


def chart(series: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> Image.Image:
  """Lines with points, one step count a position (equally spaced), values from 0 up."""
  steps = sorted({x for points in series.values() for x, _ in points})
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
    draw.text((across(x) - 6, HEIGHT - BOTTOM + 8), str(x), fill=INK, font=font)
  draw.text((WIDTH / 2 - 40, HEIGHT - 28), "sampling steps", fill=INK, font=font)
  for number, (name, points) in enumerate(series.items()):
    colour = COLOURS.get(name, INK)
    path = [(across(x), up(y)) for x, y in sorted(points)]
    draw.line(path, fill=colour, width=3)
    for (px, py), (_, value) in zip(path, sorted(points), strict=True):
      draw.ellipse([px - 4, py - 4, px + 4, py + 4], fill=colour)
      draw.text((px - 14, py - 20 if number == 0 else py + 6), f"{value:.3f}", fill=colour, font=font)
    draw.text((WIDTH - RIGHT - 90, 12 + 16 * number), name, fill=colour, font=ImageFont.load_default(14))
  return picture

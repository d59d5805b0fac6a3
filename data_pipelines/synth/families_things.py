"""Parametric tools and signs. A family maps a random generator to parts; z is up, the front faces
-y, units are free.
"""

import numpy as np

from data_pipelines.synth import primitives as solid
from data_pipelines.synth.palette import Palette, Part


def crate(rng: np.random.Generator, paint: Palette) -> list[Part]:
  """A box with a lid that stands open to some degree."""
  width = rng.uniform(0.5, 1.4)
  depth = rng.uniform(0.4, 1.0)
  height = rng.uniform(0.25, 1.0)
  thick = 0.05

  # The bottom and four walls.
  bottom = solid.box(
    size=(width, depth, thick),
    center=(0, 0, thick / 2),
  )
  parts = [Part(bottom, paint.main)]
  for side in (-1, 1):
    x = side * (width - thick) / 2
    wall = solid.box(
      size=(thick, depth, height),
      center=(x, 0, height / 2),
    )
    parts.append(Part(wall, paint.main))
  for side in (-1, 1):
    y = side * (depth - thick) / 2
    wall = solid.box(
      size=(width, thick, height),
      center=(0, y, height / 2),
    )
    parts.append(Part(wall, paint.main))

  # The lid turns about its edge at the back; the lock is at the front.
  closed = solid.box(
    size=(width * 1.03, depth, thick),
    center=(0, 0, height + thick / 2),
  )
  opening = rng.uniform(0, 110)
  lid = solid.rotated(
    mesh=closed,
    degrees=-opening,
    axis=(1, 0, 0),
    point=(0, depth / 2, height),
  )
  parts.append(Part(lid, paint.second))
  lock = solid.box(
    size=(0.2 * width, 0.06, 0.15 * height),
    center=(0, -depth / 2, height * 0.75),
  )
  parts.append(Part(lock, paint.accent))
  return parts


def arrow(rng: np.random.Generator, paint: Palette) -> list[Part]:
  length = rng.uniform(0.4, 1.3)
  thick = rng.uniform(0.1, 0.35)
  width = rng.uniform(0.12, 0.35)
  point = rng.uniform(0.3, 0.7)
  wing = rng.uniform(1.6, 3.2)
  # The head is some times as wide as the shaft.
  half = width * wing / 2
  shaft = solid.box(
    size=(width, thick, length),
    center=(0, 0, length / 2),
  )
  outline = [
    (-half, length),
    (half, length),
    (0, length + point),
  ]
  head = solid.prism(outline, thick)
  parts = [
    Part(shaft, paint.main),
    Part(head, paint.accent),
  ]
  # Some have a bent tail.
  if rng.random() < 0.5:
    tail = solid.box(
      size=(rng.uniform(0.3, 0.8), thick, width),
      center=(0.25, 0, width / 2),
    )
    parts.append(Part(tail, paint.second))

  # It points up, down or sideways.
  tilt = rng.choice([0, 90, 180, 270])
  tilted = []
  for part in parts:
    turned = solid.rotated(part.mesh, tilt, (0, 1, 0))
    tilted.append(Part(turned, part.colour))
  return tilted


# Strokes of block letters as (x, z, width, height) boxes on a 4 x 6 raster; only letters without a
# mirror symmetry.
_LETTERS = {
  "F": [(0, 0, 1, 6), (1, 5, 3, 1), (1, 2.5, 2, 1)],
  "E": [(0, 0, 1, 6), (1, 5, 3, 1), (1, 2.5, 2, 1), (1, 0, 3, 1)],
  "L": [(0, 0, 1, 6), (1, 0, 3, 1)],
  "P": [(0, 0, 1, 6), (1, 5, 2, 1), (3, 3, 1, 3), (1, 2, 3, 1)],
  "G": [(0, 0, 1, 6), (1, 5, 3, 1), (1, 0, 3, 1), (3, 1, 1, 2), (2, 2.4, 2, 1)],
  "J": [(3, 0, 1, 6), (1, 0, 2, 1), (0, 0, 1, 2), (2, 5, 1, 1)],
  "S": [(0, 5, 4, 1), (0, 3, 1, 2), (0, 2.5, 4, 1), (3, 0.5, 1, 2), (0, 0, 4, 1)],
  "T": [(1.5, 0, 1, 5), (0, 5, 4, 1)],
}


def letter(rng: np.random.Generator, paint: Palette) -> list[Part]:
  names = sorted(_LETTERS)
  chosen = int(rng.integers(len(names)))
  strokes = _LETTERS[names[chosen]]
  # Letters are wide, narrow, high or low.
  across = rng.uniform(0.12, 0.28)  # a step of the raster
  up = rng.uniform(0.12, 0.25)
  depth = rng.uniform(0.15, 0.6)
  parts = []
  for x, z, width, height in strokes:
    stroke = solid.box(
      size=(width * across, depth, height * up),
      center=((x + width / 2 - 2) * across, 0, (z + height / 2) * up),
    )
    parts.append(Part(stroke, paint.main))

  # Most stand on a plinth.
  if rng.random() < 0.6:
    plinth = solid.box(
      size=(5 * across, depth * rng.uniform(1.2, 2.0), 0.1),
      center=(0, 0, -0.05),
    )
    parts.append(Part(plinth, paint.second))

  # A knob on the front, at the side of the first stroke.
  is_left = strokes[0][0] == 0
  x = -1.5 * across if is_left else 1.5 * across
  knob = solid.ellipsoid(
    radii=(0.09, 0.09, 0.09),
    center=(x, -depth / 2, 5.5 * up),
    segments=12,
  )
  parts.append(Part(knob, paint.accent))
  return parts


def dumbbell(rng: np.random.Generator, paint: Palette) -> list[Part]:
  radius = rng.uniform(0.04, 0.08)
  length = rng.uniform(0.7, 1.8)
  bar = solid.rod(
    start=(-length / 2, 0, 0),
    end=(length / 2, 0, 0),
    radius=radius,
  )
  parts = [Part(bar, paint.second)]

  # Radius and thickness of the plates of one end.
  plates = []
  for _ in range(int(rng.integers(1, 4))):
    plate_radius = rng.uniform(0.2, 0.5)
    thick = rng.uniform(0.06, 0.2)
    plates.append((plate_radius, thick))

  for side in (-1, 1):
    # Sometimes it is loaded unevenly.
    loaded = plates if side < 0 or rng.random() < 0.6 else plates[:1]
    # Plates lie one beside another, from the end inwards.
    x = length / 2 * 0.95
    for plate_radius, thick in loaded:
      outer = (side * x, 0, 0)
      inner = (side * (x - thick), 0, 0)
      plate = solid.rod(outer, inner, plate_radius, segments=24)
      parts.append(Part(plate, paint.main))
      x -= thick * 1.15
    # A knob keeps the plates on the bar.
    end = solid.rod(
      start=(side * length / 2, 0, 0),
      end=(side * (length / 2 + 0.06), 0, 0),
      radius=radius * 1.6,
    )
    parts.append(Part(end, paint.accent))
  return parts


def hammer(rng: np.random.Generator, paint: Palette) -> list[Part]:
  height = rng.uniform(0.7, 1.5)
  grip = rng.uniform(0.035, 0.07)
  head = rng.uniform(0.35, 0.8)
  radius = rng.uniform(0.08, 0.18)
  bite = rng.uniform(0.35, 0.65)

  # The handle, thicker where it is held.
  handle = solid.cylinder(
    grip,
    height,
    (0, 0, height / 2),
    segments=16,
  )
  sleeve = solid.cylinder(
    radius=grip * 1.4,
    height=height * 0.35,
    center=(0, 0, height * 0.2),
    segments=16,
  )
  parts = [
    Part(handle, paint.second),
    Part(sleeve, paint.accent),
  ]

  # The head: a block with a round face on the right and a claw on the left.
  block = solid.box(
    size=(head * 0.5, 1.6 * radius, 1.6 * radius),
    center=(0, 0, height),
  )
  parts.append(Part(block, paint.main))
  face = solid.rod(
    start=(head * 0.2, 0, height),
    end=(head * bite + 0.1, 0, height),
    radius=radius,
    segments=20,
  )
  parts.append(Part(face, paint.main))
  outline = [
    (-head * 0.2, height - 0.8 * radius),
    (-head * 0.2, height + 0.8 * radius),
    (-head * 0.75, height - radius * rng.uniform(0.2, 1.6)),
  ]
  claw = solid.prism(outline, 1.4 * radius)
  parts.append(Part(claw, paint.main))
  return parts

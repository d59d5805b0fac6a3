"""Parametric furniture. A family maps a random generator to parts; z is up, the front faces -y,
units are free.
"""

import itertools

import numpy as np

from data_pipelines.synth import primitives as solid
from data_pipelines.synth.palette import Palette, Part


def table(rng: np.random.Generator, paint: Palette) -> list[Part]:
  # Proportions, in free units: the object is scaled to the unit cube later.
  width = rng.uniform(0.7, 1.8)
  depth = rng.uniform(0.45, 1.0)
  height = rng.uniform(0.35, 1.1)
  thick = rng.uniform(0.04, 0.1)
  leg = rng.uniform(0.05, 0.12)
  top = solid.box((width, depth, thick), (0, 0, height))
  parts = [Part(top, paint.main)]

  # It stands on a pedestal or on four legs.
  if rng.random() < 0.3:
    column = solid.cylinder(leg, height, (0, 0, height / 2))
    parts.append(Part(column, paint.second))
    plate = solid.cylinder(rng.uniform(0.18, 0.35), 0.06, (0, 0, 0.03))
    parts.append(Part(plate, paint.second))
  else:
    x = width / 2 - leg
    y = depth / 2 - leg
    for side, end in itertools.product((-x, x), (-y, y)):
      post = solid.box(
        size=(leg, leg, height),
        center=(side, end, height / 2),
      )
      parts.append(Part(post, paint.second))

  # A drawer block on the right makes left and right distinguishable.
  if rng.random() < 0.6:
    block_width = width * rng.uniform(0.25, 0.4)
    block_height = height * rng.uniform(0.25, 0.6)
    drawers = solid.box(
      size=(block_width, depth * 0.8, block_height),
      center=(width / 2 - block_width / 2 - leg, 0, height - block_height / 2),
    )
    parts.append(Part(drawers, paint.accent))
  return parts


def chair(rng: np.random.Generator, paint: Palette) -> list[Part]:
  width = rng.uniform(0.4, 0.8)
  depth = rng.uniform(0.4, 0.65)
  seat = rng.uniform(0.25, 0.65)
  back = rng.uniform(0.35, 0.95)
  leg = rng.uniform(0.04, 0.09)
  pad = rng.uniform(0.05, 0.14)
  cushion = solid.box((width, depth, pad), (0, 0, seat))
  parts = [Part(cushion, paint.main)]
  # Four legs under the corners.
  x = width / 2 - leg / 2
  y = depth / 2 - leg / 2
  for side, end in itertools.product((-x, x), (-y, y)):
    post = solid.box(
      size=(leg, leg, seat),
      center=(side, end, seat / 2),
    )
    parts.append(Part(post, paint.second))

  # The back is a panel, or slats between two posts.
  top = seat + back
  if rng.random() < 0.5:
    panel = solid.box(
      size=(width, leg, back),
      center=(0, y, seat + back / 2),
    )
    parts.append(Part(panel, paint.accent))
  else:
    slats = int(rng.integers(2, 5))
    for side in (-x, x):
      post = solid.box(
        size=(leg, leg, back),
        center=(side, y, seat + back / 2),
      )
      parts.append(Part(post, paint.second))
    for z in np.linspace(seat + 0.3 * back, top - leg / 2, slats):
      slat = solid.box(
        size=(width, leg * 0.8, back / (2.2 * slats)),
        center=(0, y, z),
      )
      parts.append(Part(slat, paint.accent))

  # Some have armrests, each with a post at the front.
  if rng.random() < 0.4:
    arm = seat + back * rng.uniform(0.3, 0.5)
    for side in (-x, x):
      rest = solid.box((leg, depth, leg), (side, 0, arm))
      parts.append(Part(rest, paint.second))
      post = solid.box(
        size=(leg, leg, arm - seat),
        center=(side, -y, (arm + seat) / 2),
      )
      parts.append(Part(post, paint.second))
  return parts


def stool(rng: np.random.Generator, paint: Palette) -> list[Part]:
  radius = rng.uniform(0.2, 0.5)
  height = rng.uniform(0.4, 1.3)
  legs = int(rng.integers(3, 6))
  pad = rng.uniform(0.05, 0.15)
  spread = rng.uniform(0.9, 1.4)
  leg = rng.uniform(0.025, 0.055)
  # A round seat, as high as a bar's or a child's.
  seat = solid.cylinder(radius, pad, (0, 0, height))
  parts = [Part(seat, paint.main)]

  # Legs lean inwards, or outwards where they spread less than the seat.
  feet = []
  for angle in np.arange(legs) * 2 * np.pi / legs:
    c = np.cos(angle)
    s = np.sin(angle)
    foot = np.array([c * radius * spread, s * radius * spread, 0.0])
    under_seat = (c * radius * 0.75, s * radius * 0.75, height)
    feet.append(foot)
    post = solid.rod(foot, under_seat, leg)
    parts.append(Part(post, paint.second))

  # One rung only: the side to climb from.
  z = height * rng.uniform(0.2, 0.5)
  inwards = 1 + (0.75 / spread - 1) * z / height
  first, second = feet[:2]
  rung = solid.rod(
    start=first * inwards + [0, 0, z],
    end=second * inwards + [0, 0, z],
    radius=leg * 0.8,
  )
  parts.append(Part(rung, paint.accent))
  return parts


def shelf(rng: np.random.Generator, paint: Palette) -> list[Part]:
  width = rng.uniform(0.5, 1.5)
  depth = rng.uniform(0.25, 0.5)
  height = rng.uniform(0.6, 1.9)
  thick = rng.uniform(0.03, 0.07)
  boards = int(rng.integers(3, 6))

  # The case: two sides, the boards and a back.
  parts = []
  for side in (-1, 1):
    panel = solid.box(
      size=(thick, depth, height),
      center=(side * (width - thick) / 2, 0, height / 2),
    )
    parts.append(Part(panel, paint.main))
  # From the lowest board to the top.
  levels = np.linspace(thick / 2, height - thick / 2, boards)
  for z in levels:
    board = solid.box((width, depth, thick), (0, 0, z))
    parts.append(Part(board, paint.second))
  back = solid.box(
    size=(width, thick * 0.6, height),
    center=(0, depth / 2 - thick * 0.3, height / 2),
  )
  parts.append(Part(back, paint.second))

  # A block of books at the left or right end of each board.
  gap = levels[1] - levels[0] - thick
  for z in levels[:-1]:
    books_width = width * rng.uniform(0.2, 0.55)
    books_height = gap * rng.uniform(0.5, 0.9)
    side = rng.choice([-1, 1])
    x = side * (width / 2 - thick - books_width / 2)
    books = solid.box(
      size=(books_width, depth * 0.7, books_height),
      center=(x, -0.05 * depth, z + thick / 2 + books_height / 2),
    )
    parts.append(Part(books, paint.any(rng)))
  return parts


def bed(rng: np.random.Generator, paint: Palette) -> list[Part]:
  width = rng.uniform(0.7, 1.5)
  depth = rng.uniform(1.5, 2.0)
  leg = rng.uniform(0.1, 0.35)
  thick = rng.uniform(0.12, 0.3)
  head = rng.uniform(0.4, 1.0)
  foot = rng.uniform(0.0, 0.4)
  # The mattress lies on the boards at either end.
  z = leg + thick / 2
  mattress = solid.box((width, depth, thick), (0, 0, z))
  parts = [Part(mattress, paint.main)]

  # A high board at the head, a lower one at the foot.
  for above, y in ((head, depth / 2), (foot, -depth / 2)):
    board = solid.box(
      size=(width * 1.05, 0.08, leg + above),
      center=(0, y, (leg + above) / 2),
    )
    parts.append(Part(board, paint.second))

  # Wide beds have two pillows; the blanket covers the lower part.
  pillows = 1 if width < 1.0 else 2
  for i in range(pillows):
    x = (i - (pillows - 1) / 2) * width / pillows
    pillow = solid.ellipsoid(
      radii=(width / pillows * 0.4, 0.2, 0.1),
      center=(x, depth * 0.36, z + thick / 2 + 0.05),
    )
    parts.append(Part(pillow, paint.accent))
  blanket = solid.box(
    size=(width * 1.02, depth * rng.uniform(0.35, 0.6), 0.05),
    center=(0, -depth * 0.18, z + thick / 2),
  )
  parts.append(Part(blanket, paint.accent))
  return parts


def stairs(rng: np.random.Generator, paint: Palette) -> list[Part]:
  steps = int(rng.integers(3, 8))
  run = rng.uniform(0.2, 0.4)
  rise = rng.uniform(0.12, 0.35)
  width = rng.uniform(0.4, 1.4)
  massive = rng.random() < 0.6

  # Steps in two colours by turns: blocks down to the floor, or boards.
  parts = []
  for i in range(steps):
    top = (i + 1) * rise
    thick = top if massive else min(rise, 0.12)
    step = solid.box(
      size=(width, run, thick),
      center=(0, i * run, top - thick / 2),
    )
    colour = paint.main if i % 2 else paint.second
    parts.append(Part(step, colour))

  # Boards lie on two stringers.
  last = (steps - 1) * run
  if not massive:
    for side in (-1, 1):
      x = side * width / 2
      stringer = solid.rod(
        start=(x, 0, 0),
        end=(x, last, steps * rise),
        radius=0.05,
      )
      parts.append(Part(stringer, paint.accent))

  # A railing on one side, with a post at either end.
  if rng.random() < 0.7:
    up = rng.uniform(0.4, 0.8)
    x = width / 2 - 0.04
    railing = solid.rod(
      start=(x, 0, rise + up),
      end=(x, last, steps * rise + up),
      radius=0.035,
    )
    parts.append(Part(railing, paint.accent))
    for y, z in ((0, rise), (last, steps * rise)):
      post = solid.rod(
        start=(x, y, z),
        end=(x, y, z + up),
        radius=0.03,
      )
      parts.append(Part(post, paint.accent))
  return parts


def lamp(rng: np.random.Generator, paint: Palette) -> list[Part]:
  height = rng.uniform(0.7, 1.7)
  base = rng.uniform(0.2, 0.4)
  pole = rng.uniform(0.02, 0.05)
  radius = rng.uniform(0.2, 0.45)
  shade = rng.uniform(0.2, 0.5)
  # A foot, as wide as a lamp of that height needs.
  plate = solid.cylinder(base, 0.07, (0, 0, 0.035))
  parts = [Part(plate, paint.second)]

  # A standing lamp with a pull cord, or a desk lamp whose arm reaches forward.
  if rng.random() < 0.5:
    stand = solid.cylinder(
      pole,
      height,
      (0, 0, height / 2),
      segments=12,
    )
    parts.append(Part(stand, paint.second))
    head = np.array([0.0, 0.0, height])
    x = radius * 0.6
    cord = solid.rod(
      start=(x, 0, height),
      end=(x, 0, height - shade * 1.2),
      radius=0.02,
    )
    parts.append(Part(cord, paint.accent))
  else:
    reach = rng.uniform(0.4, 0.8)
    path = [
      (0, 0, 0.05),
      (0, 0.25 * reach, height * 0.55),
      (0, -0.3 * reach, height * 0.95),
      (0, -reach, height),
    ]
    arm = solid.tube(path, pole)
    parts.append(Part(arm, paint.second))
    head = np.array([0.0, -reach, height])

  # The shade with a bulb in it.
  neck = radius * rng.uniform(0.3, 0.8)
  profile = [
    (0, 0.8 * shade),
    (0.9 * neck, 0.8 * shade),
    (0.92 * radius, 0),
    (radius, 0),
    (neck, shade),
    (0, shade),
  ]
  cone = solid.lathe(profile, center=head - [0, 0, 0.7 * shade])
  parts.append(Part(cone, paint.main))
  bulb = solid.ellipsoid(
    radii=(0.3 * radius, 0.3 * radius, 0.3 * radius),
    center=head - [0, 0, 0.25 * shade],
    segments=12,
  )
  parts.append(Part(bulb, paint.accent))
  return parts

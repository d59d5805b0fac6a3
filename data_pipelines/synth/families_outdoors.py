"""Parametric vehicles, plants and buildings. A family maps a random generator to parts; z is up,
the front faces -y, units are free.
"""

import numpy as np

from data_pipelines.synth import primitives as solid
from data_pipelines.synth.palette import Palette, Part

TYRE = (40, 40, 44)
HUB = (190, 190, 195)
HEADLIGHT = (250, 240, 180)
BARK = (110, 75, 45)
WINDOW = (170, 205, 235)
COCKPIT = (120, 170, 210)


def car(rng: np.random.Generator, paint: Palette) -> list[Part]:
  length = rng.uniform(1.2, 2.4)
  width = rng.uniform(0.6, 0.95)
  height = rng.uniform(0.25, 0.45)  # of the body
  wheel = rng.uniform(0.14, 0.28)
  # The body hangs between the wheels.
  z = wheel + height * 0.4
  body = solid.box((width, length, height), (0, 0, z))
  parts = [Part(body, paint.main)]

  # The cabin, whose middle lies behind the car's.
  cabin_length = length * rng.uniform(0.25, 0.6)
  cabin_height = rng.uniform(0.2, 0.5)
  middle = length / 2 - cabin_length * rng.uniform(0.5, 0.75) - 0.05
  half = cabin_length / 2
  roof = cabin_length / 2 * rng.uniform(0.6, 0.95)
  base = z + height / 2
  outline = [
    (middle - half, base),
    (middle + half, base),
    (middle + roof, base + cabin_height),
    (middle - roof, base + cabin_height),
  ]
  cabin = solid.prism(outline, width * 0.9, plane="yz")
  parts.append(Part(cabin, paint.second))

  # On either side two wheels and a headlight.
  for side in (-1, 1):
    for y in (-0.32 * length, 0.32 * length):
      tyre = solid.rod(
        start=(side * width * 0.4, y, wheel),
        end=(side * width * 0.56, y, wheel),
        radius=wheel,
        segments=20,
      )
      parts.append(Part(tyre, TYRE))
      hub = solid.rod(
        start=(side * width * 0.5, y, wheel),
        end=(side * width * 0.58, y, wheel),
        radius=wheel * 0.5,
        segments=12,
      )
      parts.append(Part(hub, HUB))
    headlight = solid.box(
      size=(0.2 * width, 0.04, 0.4 * height),
      center=(side * 0.35 * width, -length / 2, z + 0.1 * height),
    )
    parts.append(Part(headlight, HEADLIGHT))

  # Some have a sign on the roof.
  if rng.random() < 0.35:
    sign = solid.box(
      size=(width * 0.3, 0.15, 0.12),
      center=(0, middle, base + cabin_height + 0.06),
    )
    parts.append(Part(sign, paint.accent))
  return parts


def tree(rng: np.random.Generator, paint: Palette) -> list[Part]:
  height = rng.uniform(0.5, 1.2)
  thick = rng.uniform(0.05, 0.14)
  red = int(rng.integers(40, 130))
  green = int(rng.integers(110, 190))
  blue = int(rng.integers(30, 90))
  leaf = (red, green, blue)
  # Thinner towards the top.
  trunk = solid.rod(
    start=(0, 0, 0),
    end=(0, 0, height),
    radius=(thick * 1.3, thick * 0.7),
  )
  parts = [Part(trunk, BARK)]

  # A fir of stacked cones, or a round crown.
  if rng.random() < 0.4:
    tiers = int(rng.integers(2, 5))
    radius = rng.uniform(0.3, 0.6)
    for i in range(tiers):
      share = 1 - 0.6 * i / tiers
      cone = solid.cylinder(
        radius=radius * share,
        height=0.55,
        center=(0, 0, height * 0.6 + i * 0.33),
        top_radius=radius * share * 0.15,
      )
      parts.append(Part(cone, leaf))
  else:
    radius = rng.uniform(0.25, 0.5)
    crown = solid.ellipsoid(
      radii=(radius, radius, radius * rng.uniform(0.7, 1.4)),
      center=(0, 0, height + radius * 0.4),
    )
    parts.append(Part(crown, leaf))

  # Side branches, each with its own tuft.
  for _ in range(int(rng.integers(1, 3))):
    angle = rng.uniform(0, 2 * np.pi)
    z = height * rng.uniform(0.4, 0.7)
    reach = rng.uniform(0.35, 0.65)
    tip_z = z + rng.uniform(0.1, 0.35)
    tip = np.array([np.cos(angle) * reach, np.sin(angle) * reach, tip_z])
    branch = solid.rod(
      start=(0, 0, z),
      end=tip,
      radius=(thick * 0.6, thick * 0.3),
    )
    parts.append(Part(branch, BARK))
    radius = rng.uniform(0.1, 0.22)
    tuft = solid.ellipsoid((radius, radius, radius), tip, segments=14)
    parts.append(Part(tuft, leaf))
  return parts


def house(rng: np.random.Generator, paint: Palette) -> list[Part]:
  width = rng.uniform(0.6, 1.4)
  depth = rng.uniform(0.6, 1.4)
  height = rng.uniform(0.4, 1.2)
  rise = rng.uniform(0.2, 0.7)  # of the roof
  eave = rng.uniform(0.0, 0.12)
  # A cuboid under a gabled roof, which may reach over the walls.
  walls = solid.box(
    size=(width, depth, height),
    center=(0, 0, height / 2),
  )
  gable = [
    (-width / 2 - eave, height),
    (width / 2 + eave, height),
    (0, height + rise),
  ]
  roof = solid.prism(gable, depth + 2 * eave)
  parts = [
    Part(walls, paint.main),
    Part(roof, paint.accent),
  ]

  # A chimney on the right; door and window in the front.
  chimney = solid.box(
    size=(0.14, 0.14, rise),
    center=(width * 0.28, depth * 0.2, height + rise * 0.6),
  )
  parts.append(Part(chimney, paint.second))
  door = solid.box(
    size=(0.2 * width, 0.06, 0.5 * height),
    center=(-0.18 * width, -depth / 2, 0.25 * height),
  )
  parts.append(Part(door, paint.second))
  window = solid.box(
    size=(0.22 * width, 0.06, 0.22 * height),
    center=(0.22 * width, -depth / 2, 0.6 * height),
  )
  parts.append(Part(window, WINDOW))

  # Some have a lower wing on the left.
  if rng.random() < 0.4:
    wing_width = width * rng.uniform(0.3, 0.6)
    wing_height = height * rng.uniform(0.35, 0.7)
    wing = solid.box(
      size=(wing_width, depth * 0.7, wing_height),
      center=(-width / 2 - wing_width / 2, 0, wing_height / 2),
    )
    parts.append(Part(wing, paint.second))
  return parts


def aeroplane(rng: np.random.Generator, paint: Palette) -> list[Part]:
  length = rng.uniform(1.1, 1.9)
  radius = rng.uniform(0.09, 0.2)
  span = rng.uniform(0.9, 2.0)
  chord = rng.uniform(0.2, 0.45)
  sweep = rng.uniform(0.0, 0.5)
  # A spindle along y, its nose towards the viewer.
  fuselage = solid.ellipsoid((radius, length / 2, radius))
  parts = [Part(fuselage, paint.main)]

  # On either side a wing, high or low, and a tailplane.
  tail = length * 0.42
  for side in (-1, 1):
    wing_outline = [
      (0, -chord / 2),
      (0, chord / 2),
      (side * span / 2, sweep + chord * 0.35),
      (side * span / 2, sweep),
    ]
    wing_z = rng.choice([-0.5, 0.5]) * radius
    wing = solid.prism(
      wing_outline,
      0.05,
      plane="xy",
      center=(0, -0.1, wing_z),
    )
    parts.append(Part(wing, paint.second))
    fin_outline = [
      (0, 0),
      (0, 0.2),
      (side * span * 0.18, 0.28),
      (side * span * 0.18, 0.18),
    ]
    fin = solid.prism(
      fin_outline,
      0.04,
      plane="xy",
      center=(0, tail - 0.18, 0),
    )
    parts.append(Part(fin, paint.second))

  # The rudder at the back, the cockpit on top in front.
  up = rng.uniform(0.25, 0.5)
  rudder_outline = [
    (tail - 0.25, 0),
    (tail, 0),
    (tail + 0.12, up),
    (tail - 0.02, up),
  ]
  rudder = solid.prism(rudder_outline, 0.05, plane="yz")
  parts.append(Part(rudder, paint.accent))
  cockpit = solid.ellipsoid(
    radii=(radius * 0.6, length * 0.12, radius * 0.5),
    center=(0, -length * 0.25, radius * 0.8),
    segments=14,
  )
  parts.append(Part(cockpit, COCKPIT))
  return parts

"""Parametric tools, vehicles, signs, plants and buildings. z is up, the front faces -y, units are
free.
"""

import numpy as np

from data_pipelines.synth import primitives as solid
from data_pipelines.synth.palette import Palette, Part


def crate(rng: np.random.Generator, paint: Palette) -> list[Part]:
  """A box with a lid that stands open to some degree."""
  w, d, h, t = rng.uniform(0.5, 1.4), rng.uniform(0.4, 1.0), rng.uniform(0.25, 1.0), 0.05
  parts = [Part(solid.box((w, d, t), (0, 0, t / 2)), paint.main)]
  parts += [Part(solid.box((t, d, h), (sx * (w - t) / 2, 0, h / 2)), paint.main) for sx in (-1, 1)]
  parts += [Part(solid.box((w, t, h), (0, sy * (d - t) / 2, h / 2)), paint.main) for sy in (-1, 1)]
  lid = solid.box((w * 1.03, d, t), (0, 0, h + t / 2))
  parts.append(
    Part(solid.rotated(lid, -rng.uniform(0, 110), (1, 0, 0), (0, d / 2, h)), paint.second)
  )
  parts.append(Part(solid.box((0.2 * w, 0.06, 0.15 * h), (0, -d / 2, h * 0.75)), paint.accent))
  return parts


def arrow(rng: np.random.Generator, paint: Palette) -> list[Part]:
  shaft, thick = rng.uniform(0.4, 1.3), rng.uniform(0.1, 0.35)
  width, head, wing = rng.uniform(0.12, 0.35), rng.uniform(0.3, 0.7), rng.uniform(1.6, 3.2)
  half = width * wing / 2
  parts = [
    Part(solid.box((width, thick, shaft), (0, 0, shaft / 2)), paint.main),
    Part(solid.prism([(-half, shaft), (half, shaft), (0, shaft + head)], thick), paint.accent),
  ]
  if rng.random() < 0.5:  # a bent tail
    parts.append(
      Part(solid.box((rng.uniform(0.3, 0.8), thick, width), (0.25, 0, width / 2)), paint.second)
    )
  tilt = rng.choice([0, 90, 180, 270])
  return [Part(solid.rotated(p.mesh, tilt, (0, 1, 0)), p.colour) for p in parts]


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
  strokes = _LETTERS[sorted(_LETTERS)[int(rng.integers(len(_LETTERS)))]]
  sx, sz, depth = rng.uniform(0.12, 0.28), rng.uniform(0.12, 0.25), rng.uniform(0.15, 0.6)
  parts = [
    Part(
      solid.box((w * sx, depth, h * sz), ((x + w / 2 - 2) * sx, 0, (z + h / 2) * sz)), paint.main
    )
    for x, z, w, h in strokes
  ]
  if rng.random() < 0.6:  # a plinth
    parts.append(
      Part(solid.box((5 * sx, depth * rng.uniform(1.2, 2.0), 0.1), (0, 0, -0.05)), paint.second)
    )
  parts.append(
    Part(
      solid.ellipsoid(
        (0.09, 0.09, 0.09),
        (-1.5 * sx if strokes[0][0] == 0 else 1.5 * sx, -depth / 2, 5.5 * sz),
        segments=12,
      ),
      paint.accent,
    )
  )
  return parts


def dumbbell(rng: np.random.Generator, paint: Palette) -> list[Part]:
  bar, length = rng.uniform(0.04, 0.08), rng.uniform(0.7, 1.8)
  parts = [Part(solid.rod((-length / 2, 0, 0), (length / 2, 0, 0), bar), paint.second)]
  pattern = [
    (rng.uniform(0.2, 0.5), rng.uniform(0.06, 0.2)) for _ in range(int(rng.integers(1, 4)))
  ]
  for side in (-1, 1):
    x = length / 2 * 0.95
    # sometimes loaded unevenly
    for r, t in pattern if side < 0 or rng.random() < 0.6 else pattern[:1]:
      parts.append(
        Part(solid.rod((side * x, 0, 0), (side * (x - t), 0, 0), r, segments=24), paint.main)
      )
      x -= t * 1.15
    parts.append(
      Part(
        solid.rod((side * length / 2, 0, 0), (side * (length / 2 + 0.06), 0, 0), bar * 1.6),
        paint.accent,
      )
    )
  return parts


def hammer(rng: np.random.Generator, paint: Palette) -> list[Part]:
  h, grip, head = rng.uniform(0.7, 1.5), rng.uniform(0.035, 0.07), rng.uniform(0.35, 0.8)
  r, bite = rng.uniform(0.08, 0.18), rng.uniform(0.35, 0.65)
  parts = [
    Part(solid.cylinder(grip, h, (0, 0, h / 2), segments=16), paint.second),
    Part(solid.cylinder(grip * 1.4, h * 0.35, (0, 0, h * 0.2), segments=16), paint.accent),
  ]
  parts.append(Part(solid.box((head * 0.5, 1.6 * r, 1.6 * r), (0, 0, h)), paint.main))
  parts.append(
    Part(solid.rod((head * 0.2, 0, h), (head * bite + 0.1, 0, h), r, segments=20), paint.main)
  )
  claw = [
    (-head * 0.2, h - 0.8 * r),
    (-head * 0.2, h + 0.8 * r),
    (-head * 0.75, h - r * rng.uniform(0.2, 1.6)),
  ]
  parts.append(Part(solid.prism(claw, 1.4 * r), paint.main))
  return parts


def car(rng: np.random.Generator, paint: Palette) -> list[Part]:
  length, w, body = rng.uniform(1.2, 2.4), rng.uniform(0.6, 0.95), rng.uniform(0.25, 0.45)
  wheel = rng.uniform(0.14, 0.28)
  z = wheel + body * 0.4
  parts = [Part(solid.box((w, length, body), (0, 0, z)), paint.main)]
  cab, cab_h = length * rng.uniform(0.25, 0.6), rng.uniform(0.2, 0.5)
  # the cabin's middle lies behind the car's
  back = length / 2 - cab * rng.uniform(0.5, 0.75) - 0.05
  half, roof = cab / 2, cab / 2 * rng.uniform(0.6, 0.95)
  base = z + body / 2
  outline = [
    (back - half, base),
    (back + half, base),
    (back + roof, base + cab_h),
    (back - roof, base + cab_h),
  ]
  parts.append(Part(solid.prism(outline, w * 0.9, plane="yz"), paint.second))
  for sx in (-1, 1):
    for y in (-0.32 * length, 0.32 * length):
      parts.append(
        Part(
          solid.rod((sx * w * 0.4, y, wheel), (sx * w * 0.56, y, wheel), wheel, segments=20),
          (40, 40, 44),
        )
      )
      hub = solid.rod((sx * w * 0.5, y, wheel), (sx * w * 0.58, y, wheel), wheel * 0.5, segments=12)
      parts.append(Part(hub, (190, 190, 195)))
    parts.append(
      Part(
        solid.box((0.2 * w, 0.04, 0.4 * body), (sx * 0.35 * w, -length / 2, z + 0.1 * body)),
        (250, 240, 180),
      )
    )
  if rng.random() < 0.35:
    parts.append(
      Part(solid.box((w * 0.3, 0.15, 0.12), (0, back, base + cab_h + 0.06)), paint.accent)
    )
  return parts


def tree(rng: np.random.Generator, paint: Palette) -> list[Part]:
  h, trunk = rng.uniform(0.5, 1.2), rng.uniform(0.05, 0.14)
  bark, leaf = (
    (110, 75, 45),
    (int(rng.integers(40, 130)), int(rng.integers(110, 190)), int(rng.integers(30, 90))),
  )
  parts = [Part(solid.rod((0, 0, 0), (0, 0, h), (trunk * 1.3, trunk * 0.7)), bark)]
  if rng.random() < 0.4:  # a fir: stacked cones
    tiers, r = int(rng.integers(2, 5)), rng.uniform(0.3, 0.6)
    for i in range(tiers):
      s = 1 - 0.6 * i / tiers
      parts.append(
        Part(solid.cylinder(r * s, 0.55, (0, 0, h * 0.6 + i * 0.33), top_radius=r * s * 0.15), leaf)
      )
  else:
    crown = rng.uniform(0.25, 0.5)
    parts.append(
      Part(
        solid.ellipsoid((crown, crown, crown * rng.uniform(0.7, 1.4)), (0, 0, h + crown * 0.4)),
        leaf,
      )
    )
  for _ in range(int(rng.integers(1, 3))):  # side branches, each with its own tuft
    a, z, reach = rng.uniform(0, 2 * np.pi), h * rng.uniform(0.4, 0.7), rng.uniform(0.35, 0.65)
    tip = np.array([np.cos(a) * reach, np.sin(a) * reach, z + rng.uniform(0.1, 0.35)])
    parts.append(Part(solid.rod((0, 0, z), tip, (trunk * 0.6, trunk * 0.3)), bark))
    tuft = rng.uniform(0.1, 0.22)
    parts.append(Part(solid.ellipsoid((tuft, tuft, tuft), tip, segments=14), leaf))
  return parts


def house(rng: np.random.Generator, paint: Palette) -> list[Part]:
  w, d, h, roof = (
    rng.uniform(0.6, 1.4),
    rng.uniform(0.6, 1.4),
    rng.uniform(0.4, 1.2),
    rng.uniform(0.2, 0.7),
  )
  eave = rng.uniform(0.0, 0.12)
  parts = [
    Part(solid.box((w, d, h), (0, 0, h / 2)), paint.main),
    Part(
      solid.prism([(-w / 2 - eave, h), (w / 2 + eave, h), (0, h + roof)], d + 2 * eave),
      paint.accent,
    ),
  ]
  parts.append(
    Part(solid.box((0.14, 0.14, roof), (w * 0.28, d * 0.2, h + roof * 0.6)), paint.second)
  )
  parts.append(
    Part(solid.box((0.2 * w, 0.06, 0.5 * h), (-0.18 * w, -d / 2, 0.25 * h)), paint.second)
  )
  parts.append(
    Part(solid.box((0.22 * w, 0.06, 0.22 * h), (0.22 * w, -d / 2, 0.6 * h)), (170, 205, 235))
  )
  if rng.random() < 0.4:  # a lower wing on one side
    ww, wh = w * rng.uniform(0.3, 0.6), h * rng.uniform(0.35, 0.7)
    parts.append(Part(solid.box((ww, d * 0.7, wh), (-w / 2 - ww / 2, 0, wh / 2)), paint.second))
  return parts


def aeroplane(rng: np.random.Generator, paint: Palette) -> list[Part]:
  length, r, span = rng.uniform(1.1, 1.9), rng.uniform(0.09, 0.2), rng.uniform(0.9, 2.0)
  chord, sweep = rng.uniform(0.2, 0.45), rng.uniform(0.0, 0.5)
  fuselage = solid.ellipsoid((r, length / 2, r))
  parts = [Part(fuselage, paint.main)]
  tail = length * 0.42
  for side in (-1, 1):
    wing = [
      (0, -chord / 2),
      (0, chord / 2),
      (side * span / 2, sweep + chord * 0.35),
      (side * span / 2, sweep),
    ]
    parts.append(
      Part(
        solid.prism(wing, 0.05, plane="xy", center=(0, -0.1, rng.choice([-0.5, 0.5]) * r)),
        paint.second,
      )
    )
    fin = [(0, 0), (0, 0.2), (side * span * 0.18, 0.28), (side * span * 0.18, 0.18)]
    parts.append(Part(solid.prism(fin, 0.04, plane="xy", center=(0, tail - 0.18, 0)), paint.second))
  up = rng.uniform(0.25, 0.5)
  rudder = [(tail - 0.25, 0), (tail, 0), (tail + 0.12, up), (tail - 0.02, up)]
  parts.append(Part(solid.prism(rudder, 0.05, plane="yz"), paint.accent))
  cockpit = solid.ellipsoid(
    (r * 0.6, length * 0.12, r * 0.5), (0, -length * 0.25, r * 0.8), segments=14
  )
  parts.append(Part(cockpit, (120, 170, 210)))
  return parts

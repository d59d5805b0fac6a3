"""Parametric furniture and vessels. A family maps a random generator to parts; z is up, the front
faces -y, units are free.
"""

import numpy as np

from data_pipelines.synth import primitives as solid
from data_pipelines.synth.palette import Palette, Part


def table(rng: np.random.Generator, paint: Palette) -> list[Part]:
  w, d, h = rng.uniform(0.7, 1.8), rng.uniform(0.45, 1.0), rng.uniform(0.35, 1.1)
  top, leg = rng.uniform(0.04, 0.1), rng.uniform(0.05, 0.12)
  parts = [Part(solid.box((w, d, top), (0, 0, h)), paint.main)]
  if rng.random() < 0.3:  # pedestal
    parts.append(Part(solid.cylinder(leg, h, (0, 0, h / 2)), paint.second))
    parts.append(Part(solid.cylinder(rng.uniform(0.18, 0.35), 0.06, (0, 0, 0.03)), paint.second))
  else:
    x, y = w / 2 - leg, d / 2 - leg
    parts += [
      Part(solid.box((leg, leg, h), (sx * x, sy * y, h / 2)), paint.second)
      for sx in (-1, 1)
      for sy in (-1, 1)
    ]
  if rng.random() < 0.6:  # a drawer block on the right makes left and right distinguishable
    dw, dh = w * rng.uniform(0.25, 0.4), h * rng.uniform(0.25, 0.6)
    parts.append(
      Part(solid.box((dw, d * 0.8, dh), (w / 2 - dw / 2 - leg, 0, h - dh / 2)), paint.accent)
    )
  return parts


def chair(rng: np.random.Generator, paint: Palette) -> list[Part]:
  w, d, seat = rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.65), rng.uniform(0.25, 0.65)
  back, leg, pad = rng.uniform(0.35, 0.95), rng.uniform(0.04, 0.09), rng.uniform(0.05, 0.14)
  parts = [Part(solid.box((w, d, pad), (0, 0, seat)), paint.main)]
  x, y = w / 2 - leg / 2, d / 2 - leg / 2
  parts += [
    Part(solid.box((leg, leg, seat), (sx * x, sy * y, seat / 2)), paint.second)
    for sx in (-1, 1)
    for sy in (-1, 1)
  ]
  top = seat + back
  if rng.random() < 0.5:
    parts.append(Part(solid.box((w, leg, back), (0, y, seat + back / 2)), paint.accent))
  else:
    slats = int(rng.integers(2, 5))
    parts += [
      Part(solid.box((leg, leg, back), (sx * x, y, seat + back / 2)), paint.second)
      for sx in (-1, 1)
    ]
    for z in np.linspace(seat + 0.3 * back, top - leg / 2, slats):
      parts.append(Part(solid.box((w, leg * 0.8, back / (2.2 * slats)), (0, y, z)), paint.accent))
  if rng.random() < 0.4:
    arm = seat + back * rng.uniform(0.3, 0.5)
    for sx in (-1, 1):
      parts.append(Part(solid.box((leg, d, leg), (sx * x, 0, arm)), paint.second))
      parts.append(
        Part(solid.box((leg, leg, arm - seat), (sx * x, -y, (arm + seat) / 2)), paint.second)
      )
  return parts


def stool(rng: np.random.Generator, paint: Palette) -> list[Part]:
  r, h, legs = rng.uniform(0.2, 0.5), rng.uniform(0.4, 1.3), int(rng.integers(3, 6))
  pad, spread, leg = rng.uniform(0.05, 0.15), rng.uniform(0.9, 1.4), rng.uniform(0.025, 0.055)
  parts = [Part(solid.cylinder(r, pad, (0, 0, h)), paint.main)]
  feet = []
  for a in np.arange(legs) * 2 * np.pi / legs:
    foot = np.array([np.cos(a) * r * spread, np.sin(a) * r * spread, 0.0])
    feet.append(foot)
    parts.append(
      Part(solid.rod(foot, (np.cos(a) * r * 0.75, np.sin(a) * r * 0.75, h), leg), paint.second)
    )
  z = h * rng.uniform(0.2, 0.5)  # one rung only: the side to climb from
  rung = [foot * (1 + (0.75 / spread - 1) * z / h) + [0, 0, z] for foot in feet[:2]]
  parts.append(Part(solid.rod(*rung, leg * 0.8), paint.accent))
  return parts


def shelf(rng: np.random.Generator, paint: Palette) -> list[Part]:
  w, d, h, t = (
    rng.uniform(0.5, 1.5),
    rng.uniform(0.25, 0.5),
    rng.uniform(0.6, 1.9),
    rng.uniform(0.03, 0.07),
  )
  boards = int(rng.integers(3, 6))
  parts = [Part(solid.box((t, d, h), (sx * (w - t) / 2, 0, h / 2)), paint.main) for sx in (-1, 1)]
  levels = np.linspace(t / 2, h - t / 2, boards)
  parts += [Part(solid.box((w, d, t), (0, 0, z)), paint.second) for z in levels]
  parts.append(Part(solid.box((w, t * 0.6, h), (0, d / 2 - t * 0.3, h / 2)), paint.second))
  gap = levels[1] - levels[0] - t
  for z in levels[:-1]:  # a block of books at the left or right end of each board
    bw, bh, side = w * rng.uniform(0.2, 0.55), gap * rng.uniform(0.5, 0.9), rng.choice([-1, 1])
    parts.append(
      Part(
        solid.box((bw, d * 0.7, bh), (side * (w / 2 - t - bw / 2), -0.05 * d, z + t / 2 + bh / 2)),
        paint.any(rng),
      )
    )
  return parts


def bed(rng: np.random.Generator, paint: Palette) -> list[Part]:
  w, d, leg = rng.uniform(0.7, 1.5), rng.uniform(1.5, 2.0), rng.uniform(0.1, 0.35)
  mattress, head, foot = rng.uniform(0.12, 0.3), rng.uniform(0.4, 1.0), rng.uniform(0.0, 0.4)
  z = leg + mattress / 2
  parts = [Part(solid.box((w, d, mattress), (0, 0, z)), paint.main)]
  parts.append(
    Part(solid.box((w * 1.05, 0.08, leg + head), (0, d / 2, (leg + head) / 2)), paint.second)
  )
  parts.append(
    Part(solid.box((w * 1.05, 0.08, leg + foot), (0, -d / 2, (leg + foot) / 2)), paint.second)
  )
  pillows = 1 if w < 1.0 else 2
  for i in range(pillows):
    x = (i - (pillows - 1) / 2) * w / pillows
    parts.append(
      Part(
        solid.ellipsoid((w / pillows * 0.4, 0.2, 0.1), (x, d * 0.36, z + mattress / 2 + 0.05)),
        paint.accent,
      )
    )
  parts.append(
    Part(
      solid.box((w * 1.02, d * rng.uniform(0.35, 0.6), 0.05), (0, -d * 0.18, z + mattress / 2)),
      paint.accent,
    )
  )
  return parts


def stairs(rng: np.random.Generator, paint: Palette) -> list[Part]:
  steps, run, rise, w = (
    int(rng.integers(3, 8)),
    rng.uniform(0.2, 0.4),
    rng.uniform(0.12, 0.35),
    rng.uniform(0.4, 1.4),
  )
  solid_steps = rng.random() < 0.6
  parts = []
  for i in range(steps):
    top = (i + 1) * rise
    height = top if solid_steps else min(rise, 0.12)
    parts.append(
      Part(
        solid.box((w, run, height), (0, i * run, top - height / 2)),
        paint.main if i % 2 else paint.second,
      )
    )
  if not solid_steps:
    top = ((steps - 1) * run, steps * rise)
    parts += [
      Part(solid.rod((sx * w / 2, 0, 0), (sx * w / 2, *top), 0.05), paint.accent) for sx in (-1, 1)
    ]
  if rng.random() < 0.7:  # a railing on one side
    up, x, last = rng.uniform(0.4, 0.8), w / 2 - 0.04, (steps - 1) * run
    parts.append(
      Part(solid.rod((x, 0, rise + up), (x, last, steps * rise + up), 0.035), paint.accent)
    )
    parts += [
      Part(solid.rod((x, y, z), (x, y, z + up), 0.03), paint.accent)
      for y, z in ((0, rise), (last, steps * rise))
    ]
  return parts


def lamp(rng: np.random.Generator, paint: Palette) -> list[Part]:
  h, base, pole = rng.uniform(0.7, 1.7), rng.uniform(0.2, 0.4), rng.uniform(0.02, 0.05)
  r, shade = rng.uniform(0.2, 0.45), rng.uniform(0.2, 0.5)
  parts = [Part(solid.cylinder(base, 0.07, (0, 0, 0.035)), paint.second)]
  if rng.random() < 0.5:  # standing lamp with a pull cord
    parts.append(Part(solid.cylinder(pole, h, (0, 0, h / 2), segments=12), paint.second))
    head = np.array([0.0, 0.0, h])
    parts.append(
      Part(solid.rod((r * 0.6, 0, h), (r * 0.6, 0, h - shade * 1.2), 0.02), paint.accent)
    )
  else:  # desk lamp: an arm that reaches forward
    reach = rng.uniform(0.4, 0.8)
    parts.append(
      Part(
        solid.tube(
          [(0, 0, 0.05), (0, 0.25 * reach, h * 0.55), (0, -0.3 * reach, h * 0.95), (0, -reach, h)],
          pole,
        ),
        paint.second,
      )
    )
    head = np.array([0.0, -reach, h])
  neck = r * rng.uniform(0.3, 0.8)
  profile = [
    (0, 0.8 * shade),
    (0.9 * neck, 0.8 * shade),
    (0.92 * r, 0),
    (r, 0),
    (neck, shade),
    (0, shade),
  ]
  parts.append(Part(solid.lathe(profile, center=head - [0, 0, 0.7 * shade]), paint.main))
  parts.append(
    Part(
      solid.ellipsoid((0.3 * r, 0.3 * r, 0.3 * r), head - [0, 0, 0.25 * shade], segments=12),
      paint.accent,
    )
  )
  return parts


def mug(rng: np.random.Generator, paint: Palette) -> list[Part]:
  r, h, t = rng.uniform(0.25, 0.5), rng.uniform(0.5, 1.2), rng.uniform(0.03, 0.06)
  flare = rng.uniform(0.8, 1.25)
  top = r * flare
  profile = [(0, 0), (r, 0), (top, h), (top - t, h), (r - t, 2 * t), (0, 2 * t)]
  at, reach = rng.uniform(0.45, 0.6) * h, rng.uniform(0.2, 0.4)
  size, wall = h * rng.uniform(0.2, 0.35), (r + top) / 2 - t
  angle = np.linspace(-np.pi / 2, np.pi / 2, 11)
  loop = np.stack([wall + reach * np.cos(angle), np.zeros(11), at + size * np.sin(angle)], -1)
  band = h * rng.uniform(0.15, 0.4)
  radius_at = lambda z: r + (top - r) * z / h
  lo, hi = 0.35 * h, 0.35 * h + band
  stripe = [
    (0, lo),
    (radius_at(lo) + 0.012, lo),
    (radius_at(hi) + 0.012, hi),
    (radius_at(hi) - t, hi),
    (radius_at(lo) - t, lo + 1e-4),
    (0, lo + 1e-4),
  ]
  return [
    Part(solid.lathe(profile, segments=32), paint.main),
    Part(solid.tube(loop, rng.uniform(0.035, 0.07)), paint.second),
    Part(solid.lathe(stripe, segments=32), paint.accent),
  ]


def bottle(rng: np.random.Generator, paint: Palette) -> list[Part]:
  r, h = rng.uniform(0.18, 0.42), rng.uniform(0.7, 1.4)
  shoulder, neck, mouth = rng.uniform(0.4, 0.75) * h, r * rng.uniform(0.25, 0.5), 0.85 * h
  profile = [
    (0, 0),
    (r * 0.92, 0),
    (r, 0.04 * h),
    (r, shoulder),
    (0.75 * r + 0.25 * neck, 0.6 * shoulder + 0.4 * mouth),
    (neck, mouth),
    (neck, h),
    (0, h),
  ]
  parts = [Part(solid.lathe(profile, segments=28), paint.main)]
  parts.append(Part(solid.cylinder(neck * 1.25, 0.1 * h, (0, 0, h)), paint.accent))
  label = shoulder * rng.uniform(0.4, 0.8)  # a label on the front half only
  parts.append(
    Part(solid.box((r * 1.2, 0.1 * r, label), (0, -r * 0.97, shoulder / 2)), paint.second)
  )
  if rng.random() < 0.4:  # a jug's handle
    angle = np.linspace(-np.pi / 2, np.pi / 2, 9)
    loop = np.stack(
      [np.zeros(9), 0.8 * r + 0.5 * r * np.cos(angle), 0.6 * h + 0.22 * h * np.sin(angle)], -1
    )
    parts.append(Part(solid.tube(loop, 0.05), paint.accent))
  return parts


def bowl(rng: np.random.Generator, paint: Palette) -> list[Part]:
  r, depth, t, foot = (
    rng.uniform(0.4, 0.8),
    rng.uniform(0.15, 0.7),
    rng.uniform(0.03, 0.07),
    rng.uniform(0.15, 0.35),
  )
  phi = np.linspace(0.1, np.pi / 2, 7)
  outer = np.stack([r * np.sin(phi), depth * (1 - np.cos(phi))], -1)
  inner = np.stack([(r - t) * np.sin(phi), t + (depth - t) * (1 - np.cos(phi))], -1)[::-1]
  parts = [Part(solid.lathe([(0, 0), *outer, *inner, (0, t)], segments=32), paint.main)]
  parts.append(Part(solid.cylinder(foot * r * 1.4, 0.1, (0, 0, 0.0)), paint.second))
  if rng.random() < 0.7:  # a ladle leans on the rim
    a = rng.uniform(0, 2 * np.pi)
    tip = np.array([np.cos(a), np.sin(a), 0.0])
    start, end = -0.2 * r * tip + [0, 0, t + 0.06], r * 1.5 * tip + [0, 0, depth * 1.5 + 0.15]
    parts.append(Part(solid.rod(start, end, 0.035), paint.accent))
  for a in (0, np.pi) if rng.random() < 0.5 else ():  # ears
    parts.append(
      Part(
        solid.box((0.25 * r, 0.35 * r, 0.06), (r * 1.05 * np.cos(a), 0, depth - 0.05)), paint.second
      )
    )
  return parts

"""Parametric vessels. A family maps a random generator to parts; z is up, the front faces -y, units
are free.
"""

import numpy as np

from data_pipelines.synth import primitives as solid
from data_pipelines.synth.palette import Palette, Part


def mug(rng: np.random.Generator, paint: Palette) -> list[Part]:
  radius = rng.uniform(0.25, 0.5)
  height = rng.uniform(0.5, 1.2)
  thick = rng.uniform(0.03, 0.06)
  flare = rng.uniform(0.8, 1.25)
  # Some widen upwards, some narrow.
  top = radius * flare

  # The cup: up the outside, over the rim, down the inside.
  profile = [
    (0, 0),
    (radius, 0),
    (top, height),
    (top - thick, height),
    (radius - thick, 2 * thick),
    (0, 2 * thick),
  ]
  cup = solid.lathe(profile, segments=32)

  # The handle: half an ellipse from wall to wall, on the right.
  middle = rng.uniform(0.45, 0.6) * height
  reach = rng.uniform(0.2, 0.4)
  size = height * rng.uniform(0.2, 0.35)
  wall = (radius + top) / 2 - thick
  angle = np.linspace(-np.pi / 2, np.pi / 2, 11)
  x = wall + reach * np.cos(angle)
  z = middle + size * np.sin(angle)
  loop = np.stack([x, np.zeros(11), z], -1)

  # A stripe around the outside.
  band = height * rng.uniform(0.15, 0.4)
  low = 0.35 * height
  high = 0.35 * height + band
  low_radius = radius + (top - radius) * low / height
  high_radius = radius + (top - radius) * high / height
  stripe_profile = [
    (0, low),
    (low_radius + 0.012, low),
    (high_radius + 0.012, high),
    (high_radius - thick, high),
    (low_radius - thick, low + 1e-4),
    (0, low + 1e-4),
  ]
  handle = solid.tube(loop, rng.uniform(0.035, 0.07))
  stripe = solid.lathe(stripe_profile, segments=32)
  return [
    Part(cup, paint.main),
    Part(handle, paint.second),
    Part(stripe, paint.accent),
  ]


def bottle(rng: np.random.Generator, paint: Palette) -> list[Part]:
  radius = rng.uniform(0.18, 0.42)
  height = rng.uniform(0.7, 1.4)
  shoulder = rng.uniform(0.4, 0.75) * height
  neck = radius * rng.uniform(0.25, 0.5)
  # The neck begins where the shoulder ends.
  mouth = 0.85 * height

  # The body with its neck, and a cap.
  profile = [
    (0, 0),
    (radius * 0.92, 0),
    (radius, 0.04 * height),
    (radius, shoulder),
    (0.75 * radius + 0.25 * neck, 0.6 * shoulder + 0.4 * mouth),
    (neck, mouth),
    (neck, height),
    (0, height),
  ]
  body = solid.lathe(profile, segments=28)
  parts = [Part(body, paint.main)]
  cap = solid.cylinder(
    radius=neck * 1.25,
    height=0.1 * height,
    center=(0, 0, height),
  )
  parts.append(Part(cap, paint.accent))

  # A label on the front half only.
  label_height = shoulder * rng.uniform(0.4, 0.8)
  label = solid.box(
    size=(radius * 1.2, 0.1 * radius, label_height),
    center=(0, -radius * 0.97, shoulder / 2),
  )
  parts.append(Part(label, paint.second))

  # Some are jugs, with a handle at the back.
  if rng.random() < 0.4:
    angle = np.linspace(-np.pi / 2, np.pi / 2, 9)
    out = 0.5 * radius * np.cos(angle)
    up = 0.22 * height * np.sin(angle)
    y = 0.8 * radius + out
    z = 0.6 * height + up
    loop = np.stack([np.zeros(9), y, z], -1)
    handle = solid.tube(loop, 0.05)
    parts.append(Part(handle, paint.accent))
  return parts


def bowl(rng: np.random.Generator, paint: Palette) -> list[Part]:
  radius = rng.uniform(0.4, 0.8)
  depth = rng.uniform(0.15, 0.7)
  thick = rng.uniform(0.03, 0.07)
  foot = rng.uniform(0.15, 0.35)

  # A quarter of an ellipse outside, a smaller one back inside.
  phi = np.linspace(0.1, np.pi / 2, 7)
  rise = 1 - np.cos(phi)
  reach = np.sin(phi)
  outer_r = radius * reach
  outer_z = depth * rise
  inner_r = (radius - thick) * reach
  inner_z = thick + (depth - thick) * rise
  outer = np.stack([outer_r, outer_z], -1)
  inner = np.stack([inner_r, inner_z], -1)
  profile = [
    (0, 0),
    *outer,
    *inner[::-1],
    (0, thick),
  ]
  shell = solid.lathe(profile, segments=32)
  parts = [Part(shell, paint.main)]
  # A low foot under the shell.
  base = solid.cylinder(foot * radius * 1.4, 0.1, (0, 0, 0.0))
  parts.append(Part(base, paint.second))

  # A ladle leans on the rim.
  if rng.random() < 0.7:
    angle = rng.uniform(0, 2 * np.pi)
    tip = np.array([np.cos(angle), np.sin(angle), 0.0])
    ladle = solid.rod(
      start=-0.2 * radius * tip + [0, 0, thick + 0.06],
      end=radius * 1.5 * tip + [0, 0, depth * 1.5 + 0.15],
      radius=0.035,
    )
    parts.append(Part(ladle, paint.accent))

  # Two ears, left and right.
  if rng.random() < 0.5:
    for angle in (0, np.pi):
      ear = solid.box(
        size=(0.25 * radius, 0.35 * radius, 0.06),
        center=(radius * 1.05 * np.cos(angle), 0, depth - 0.05),
      )
      parts.append(Part(ear, paint.second))
  return parts

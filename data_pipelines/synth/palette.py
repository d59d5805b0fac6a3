"""Colours and parts of procedural objects."""

import colorsys
from typing import NamedTuple

import numpy as np
import trimesh

Colour = tuple[int, int, int]  # sRGB, 0..255


class Part(NamedTuple):
  """One solid and its sRGB colour."""

  mesh: trimesh.Trimesh
  colour: Colour


class Palette(NamedTuple):
  """The colours one object is painted with."""

  main: Colour
  second: Colour
  accent: Colour

  def any(self, rng: np.random.Generator) -> Colour:
    """A colour outside the palette, for contents (books, windows)."""
    return _colour(rng.uniform(), rng.uniform(0.3, 0.9), rng.uniform(0.4, 0.95))


def draw_palette(rng: np.random.Generator) -> Palette:
  """Three colours: a main hue, a duller second and a contrasting accent."""
  hue = rng.uniform()
  main = _colour(hue, rng.uniform(0.25, 0.85), rng.uniform(0.55, 0.95))
  second = _colour(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.05, 0.5), rng.uniform(0.3, 0.85))
  accent = _colour(hue + rng.uniform(0.35, 0.65), rng.uniform(0.4, 0.95), rng.uniform(0.5, 0.95))
  return Palette(main, second, accent)


def _colour(hue: float, saturation: float, value: float) -> Colour:
  rgb = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
  return tuple(int(round(255 * channel)) for channel in rgb)

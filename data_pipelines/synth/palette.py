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
    hue = rng.uniform()
    return _draw_colour(
      rng,
      hue,
      saturation=(0.3, 0.9),
      value=(0.4, 0.95),
    )


def draw_palette(rng: np.random.Generator) -> Palette:
  """Three colours: a main hue, a duller second and a contrasting accent."""
  hue = rng.uniform()
  main = _draw_colour(
    rng,
    hue,
    saturation=(0.25, 0.85),
    value=(0.55, 0.95),
  )
  # A neighbour on the colour circle, duller.
  near = hue + rng.uniform(-0.15, 0.15)
  second = _draw_colour(
    rng,
    near,
    saturation=(0.05, 0.5),
    value=(0.3, 0.85),
  )
  # About half the circle away, so that it stands out.
  opposite = hue + rng.uniform(0.35, 0.65)
  accent = _draw_colour(
    rng,
    opposite,
    saturation=(0.4, 0.95),
    value=(0.5, 0.95),
  )
  return Palette(main, second, accent)


def _draw_colour(
  rng: np.random.Generator,
  hue: float,
  *,
  saturation: tuple[float, float],
  value: tuple[float, float],
) -> Colour:
  """An sRGB colour of a hue (turns); saturation and value are drawn from ranges in 0..1."""
  # The saturation is drawn before the value: the order decides every colour after it.
  drawn_saturation = rng.uniform(*saturation)
  drawn_value = rng.uniform(*value)
  turns = hue % 1.0
  rgb = colorsys.hsv_to_rgb(turns, drawn_saturation, drawn_value)
  red, green, blue = (int(round(255 * channel)) for channel in rgb)
  return red, green, blue

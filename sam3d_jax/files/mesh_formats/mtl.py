"""Material libraries of OBJ files (.mtl): diffuse colour, its picture, and a picture of opacity.

Written by many tools: options before a picture's name, names with spaces, backslashes, tabs, any
case of the keywords. What `d` and `Tr` say of a whole material is not used: as many tools write one
as the other.
"""

import dataclasses
import pathlib
import re
from typing import NamedTuple

import numpy as np

from sam3d_jax.files import texts
from sam3d_jax.files.mesh_formats import alpha, beside, textures
from sam3d_jax.files.mesh_formats.surfaces import GREY
from sam3d_jax.render.colour import srgb_to_linear
from sam3d_jax.render.mesh import WHITE, Material

# Options of a picture and how many words follow each; -o, -s and -t take one to three numbers.
OPTIONS = {
  "-blendu": 1,
  "-blendv": 1,
  "-bm": 1,
  "-boost": 1,
  "-cc": 1,
  "-clamp": 1,
  "-colorspace": 1,
  "-imfchan": 1,
  "-mm": 2,
  "-texres": 1,
  "-type": 1,
}
UP_TO_THREE = ("-o", "-s", "-t")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
COMMENT = re.compile(r"(?:^|\s)#")


@dataclasses.dataclass
class Entry:
  """What a library says of a material, and from where it names pictures."""

  folders: tuple[pathlib.Path, ...]  # the library's, then the mesh's
  diffuse: tuple[float, float, float] | None = None  # sRGB, 0..1
  picture: str | None = None
  opacity: str | None = None


@dataclasses.dataclass(frozen=True)
class Placing:
  """What the options of a picture do to texture coordinates: scaled, then moved."""

  scale: tuple[float, float] = (1.0, 1.0)
  offset: tuple[float, float] = (0.0, 0.0)

  def applied(self, uv_V2: np.ndarray) -> np.ndarray:
    if self == Placing():
      return uv_V2
    return uv_V2 * np.float32(self.scale) + np.float32(self.offset)


def read(path: pathlib.Path, mesh_folder: pathlib.Path) -> dict[str, Entry]:
  """The materials of a library by name; of two with one name the last."""
  found: dict[str, Entry] = {}
  entry = None  # the material that is being told of
  for line in texts.decode(path.read_bytes()).splitlines():
    words = line.split(None, 1)
    if not words:
      continue
    keyword = words[0].lower()
    rest = ""
    if len(words) > 1:
      rest = uncommented(words[1])

    # what of it counts here
    if keyword == "newmtl":
      entry = Entry((path.parent, mesh_folder))
      found[rest] = entry
    elif entry is None or not rest:
      continue
    elif keyword == "kd":
      entry.diffuse = _diffuse(rest)
    elif keyword == "map_kd":
      entry.picture = rest
    elif keyword in ("map_d", "map_opacity"):
      entry.opacity = rest
  return found


def uncommented(rest: str) -> str:
  """What follows a keyword; a '#' begins a comment only behind a space."""
  return COMMENT.split(rest, maxsplit=1)[0].strip()


def _diffuse(rest: str) -> tuple[float, float, float] | None:
  """Three numbers, or one for all; None of a spectral curve."""
  words = rest.split()
  if not NUMBER.match(words[0]):
    return None
  values = [float(word) for word in words[:3]]
  if len(values) < 3:
    return (values[0],) * 3
  return tuple(values)


# --- Options --------------------------------------------------------------------------------------


def split_options(statement: str) -> tuple[str, Placing]:
  """The name of a picture without the options before it, and what these do to coordinates."""
  words = statement.split()
  last = len(words) - 1  # the last word is the name, whatever it looks like
  placing = Placing()
  at = 0
  while at < last:
    option = words[at].lower()
    if option in OPTIONS:
      at += 1 + OPTIONS[option]
    elif option in UP_TO_THREE:
      numbers = _leading_numbers(words[at + 1 : last])
      placing = _placed(placing, option, numbers)
      at += 1 + len(numbers)
    else:
      break

  # The name as it stands, with its spaces.
  rest = statement
  for word in words[:at]:
    rest = rest.lstrip()[len(word) :]
  return rest.strip().strip('"'), placing


def _leading_numbers(words: list[str]) -> list[float]:
  """Up to three numbers that stand at the beginning."""
  numbers = []
  for word in words[:3]:
    if not NUMBER.match(word):
      break
    numbers.append(float(word))
  return numbers


def _placed(placing: Placing, option: str, numbers: list[float]) -> Placing:
  if option == "-s":
    scale = (*numbers, 1.0, 1.0)[:2]
    return dataclasses.replace(placing, scale=scale)
  if option == "-o":
    offset = (*numbers, 0.0, 0.0)[:2]
    return dataclasses.replace(placing, offset=offset)
  return placing  # turbulence moves nothing


# --- Materials ------------------------------------------------------------------------------------


class Pictures:
  """Pictures of one mesh, each read once however many materials name it."""

  def __init__(self):
    self._read: dict[pathlib.Path, textures.Texture] = {}
    self._cut: dict[pathlib.Path, Cutting] = {}

  def at(self, path: pathlib.Path) -> textures.Texture:
    """The picture of a file. Raises Refused (unreadable)."""
    if path not in self._read:
      self._read[path] = textures.decode(path.read_bytes(), path.name)
    return self._read[path]

  def cutting(self, path: pathlib.Path) -> "Cutting":
    """What a picture of opacity takes away. Raises Refused (unreadable)."""
    if path not in self._cut:
      opacity = self.at(path)
      shown = opacity.alpha_HW
      if shown is None:
        shown = opacity.rgb_HW3.max(-1)
      cutout = alpha.cutout(shown, 1.0, alpha.BLEND_CUTOFF)
      self._cut[path] = Cutting(cutout, alpha.holes(cutout))
    return self._cut[path]


class Cutting(NamedTuple):
  """Which texels opacity takes away, as `alpha` and as a material have it; None: none of them."""

  cutout: np.ndarray | None
  holes: np.ndarray | None


def material(
  entry: Entry, pictures: Pictures, *, of: str
) -> tuple[Material, Placing, np.ndarray | None]:
  """A material, where its picture lies on coordinates, and which texels opacity takes away.

  `of` is the mesh that uses it. Raises Refused (missing_texture, unreadable).
  """
  plain = without_pictures(entry)
  colour = plain.colour
  rgb = None
  placing = Placing()
  if entry.picture is not None:
    name, placing = split_options(entry.picture)
    rgb = pictures.at(_found(entry, name, of)).rgb_HW3
    # a picture says it all, whatever the colour is that tools write beside it
    colour = WHITE.colour
  if entry.opacity is None:
    return Material(colour, rgb), placing, None

  # Opacity lies on the surface as the picture does; alone it has a placing of its own.
  name, own_placing = split_options(entry.opacity)
  if entry.picture is None:
    placing = own_placing
  cutting = pictures.cutting(_found(entry, name, of))
  return Material(colour, rgb, cutting.holes), placing, cutting.cutout


def without_pictures(entry: Entry) -> Material:
  """The colour of a material alone; grey if it states none."""
  if entry.diffuse is None:
    return GREY
  linear = srgb_to_linear(np.clip(entry.diffuse, 0, 1))
  return Material(tuple(map(float, linear)))


def _found(entry: Entry, name: str, of: str) -> pathlib.Path:
  """The file of a picture. Raises Refused (missing_texture)."""
  for folder in entry.folders:
    found = beside.find(folder, name)
    if found is not None:
      return found
  raise beside.missing(name, of=of)

"""Material libraries of OBJ files (.mtl): diffuse colour, its picture, and a picture of opacity.

Written by many tools: options before a picture's name, names with spaces, backslashes, tabs, any
case of the keywords. What `d` and `Tr` say of a whole material is not used: as many tools write one
as the other.
"""

import dataclasses
import pathlib
import re

import numpy as np

from sam3d_jax.files.mesh_formats import alpha, beside, textures
from sam3d_jax.files.mesh_formats.surfaces import GREY
from sam3d_jax.render.colour import srgb_to_linear
from sam3d_jax.render.mesh import Material

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


def read(path: pathlib.Path, mesh_folder: pathlib.Path) -> dict[str, Entry]:
  """The materials of a library by name; of two with one name the last."""
  found: dict[str, Entry] = {}
  entry = None
  text = path.read_bytes().decode("utf-8-sig", errors="replace")
  for line in text.splitlines():
    words = line.split(None, 1)
    if not words:
      continue
    keyword = words[0].lower()
    rest = uncommented(words[1]) if len(words) > 1 else ""
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
  return tuple(values) if len(values) == 3 else (values[0],) * 3


def split_options(statement: str) -> tuple[str, Placing]:
  """The name of a picture without the options before it, and what these do to coordinates."""
  words = statement.split()
  at, scale, offset = 0, (1.0, 1.0), (0.0, 0.0)
  while at < len(words) - 1 and words[at].lower() in (*OPTIONS, *UP_TO_THREE):
    option = words[at].lower()
    if option in OPTIONS:
      at += 1 + OPTIONS[option]
      continue
    numbers = []
    at += 1
    # the last word is the name, even if it is a number
    while len(numbers) < 3 and at < len(words) - 1 and NUMBER.match(words[at]):
      numbers.append(float(words[at]))
      at += 1
    default = 1.0 if option == "-s" else 0.0
    pair = (*numbers, default, default)[:2]
    if option == "-s":
      scale = pair
    elif option == "-o":
      offset = pair
  # the name as it stands, with its spaces
  rest = statement
  for word in words[:at]:
    rest = rest.lstrip()[len(word) :]
  return rest.strip().strip('"'), Placing(scale, offset)


def material(entry: Entry, *, of: str) -> tuple[Material, Placing, np.ndarray | None]:
  """A material, where its picture lies on coordinates, and which texels opacity takes away.

  `of` is the mesh that uses it. Raises Refused (missing_texture, unreadable).
  """
  if entry.picture is None and entry.opacity is None:
    return Material(_linear(entry)), Placing(), None
  picture, placing, rgb = None, Placing(), None
  if entry.picture is not None:
    name, placing = split_options(entry.picture)
    picture = _decoded(entry.folders, name, of)
    rgb = picture.rgb_HW3
  cutout = None
  if entry.opacity is not None:
    name, own_placing = split_options(entry.opacity)
    placing = placing if picture is not None else own_placing
    opacity = _decoded(entry.folders, name, of)
    shown = opacity.alpha_HW
    if shown is None:
      shown = opacity.rgb_HW3.max(-1)
    cutout = alpha.cutout(shown, 1.0, alpha.BLEND_CUTOFF)
  # a picture says it all, whatever the colour is that tools write beside it
  colour = _linear(entry) if picture is None else (1.0, 1.0, 1.0)
  holes = cutout if cutout is not None and not cutout.all() else None
  return Material(colour, rgb, holes), placing, cutout


def _linear(entry: Entry) -> tuple[float, float, float]:
  """The colour of a material; grey if it states none."""
  if entry.diffuse is None:
    return GREY.colour
  linear = srgb_to_linear(np.clip(entry.diffuse, 0, 1))
  return tuple(map(float, linear))


def _decoded(folders: tuple[pathlib.Path, ...], name: str, of: str) -> textures.Texture:
  found = [beside.find(folder, name) for folder in folders]
  present = next((path for path in found if path is not None), None)
  if present is None:
    raise beside.missing(name, of=of)
  return textures.decode(present.read_bytes(), present.name)

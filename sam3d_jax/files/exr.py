"""OpenEXR files: which of their channels are a point map or a depth map.

A channel's name is LAYER.CHANNEL, as in ViewLayer.Depth.Z, or CHANNEL alone. Taken are

- X Y Z of a layer: points, unless the layer's name says directions or colours;
- Z (or DEPTH), or the only channel of a layer named so: depth, unless X and Y are beside it;
- of a file that has nothing else but perhaps alpha: its only channel, or R G B that are equal, as
  depth; R G B that differ, as points.

Where this leaves none, or several, the file is refused with the list of its channels, and
`channels` says which are meant.
"""

from collections.abc import Mapping, Sequence
import pathlib
import re
from typing import NamedTuple

import numpy as np

from sam3d_jax.errors import InputError

MAGIC = b"\x76\x2f\x31\x01"
MAX_PIXELS = 200_000_000
MAX_VALUES = 800_000_000  # of all channels of all parts
DEPTH_NAMES = (["depth"], ["z"], ["zdepth"])  # last words of the names of layers of depth
# words in the names of layers whose X Y Z or Z are neither points nor depth
OTHER_WORDS = frozenset(
  "normal normals n ng ns nrm tangent bitangent vector vectors motion velocity speed flow rotation "
  "scale uv st mist combined rgb rgba color colour albedo diffuse specular glossy emission shadow "
  "denoising noise variance".split()
)
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class Chosen(NamedTuple):
  """(H, W) depth or (H, W, 3) points as stored. channels: their names. is_told: whether names or
  the user say so beyond doubt; else they may be colours, or points of the world.
  """

  values: np.ndarray
  channels: tuple[str, ...]
  is_told: bool


def read(path: pathlib.Path, name: str, channels: Sequence[str] = ()) -> Chosen:
  """The depth or the points of an OpenEXR file of one or several parts.

  Args:
    path: the file.
    name: how messages name it.
    channels: those to take, one of depth or three of points, by their whole names; empty: as above.

  Raises:
    InputError: damage, or no channels, or several, that could be meant.
  """
  # What the user says.
  pixels = load(path, name)
  if not pixels:
    raise InputError(f"{name}: cannot be decoded as OpenEXR (no channel of it is whole)")
  if channels:
    wanted = tuple(channels)
    unknown = [channel for channel in wanted if channel not in pixels]
    if unknown:
      raise refusal(pixels, name, f"none is named {', '.join(unknown)}")
    if len(wanted) not in (1, 3):
      raise refusal(pixels, name, f"{len(wanted)} were chosen")
    return Chosen(stacked(pixels, wanted, name), wanted, True)

  # What the names say.
  candidates = named_candidates(pixels)
  if len(candidates) == 1:
    (only,) = candidates
    is_told = len(only) == 1 or not layer_of(only[0])
    return Chosen(stacked(pixels, only, name), only, is_told)
  if candidates:
    listed = " and ".join(" ".join(candidate) for candidate in candidates)
    raise refusal(pixels, name, f"{listed} may be meant")

  # Nothing but one channel, whatever its name.
  opaque = [channel for channel in pixels if last_part(channel) != "A"]
  whole = opaque or list(pixels)
  first = whole[0]
  if len(whole) == 1 and not is_other(layer_of(first)):
    return Chosen(pixels[first], (first,), True)

  # Nothing but R G B: three times the depth, or points, or colours, which their values tell.
  by_letter = {last_part(channel): channel for channel in whole}
  is_rgb = len(whole) == 3 and set(by_letter) == set("RGB")
  if not is_rgb or is_other(layer_of(first)):
    raise refusal(pixels, name, "none is known as depth or as points")
  rgb = [by_letter[letter] for letter in "RGB"]
  if are_equal(pixels, rgb):
    return Chosen(pixels[rgb[0]], tuple(rgb[:1]), True)
  return Chosen(stacked(pixels, rgb, name), tuple(rgb), False)


def load(path: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  """Pixels of all channels of all parts, by whole name. Raises InputError."""
  import OpenEXR  # needed for this one format

  try:
    # Sizes, before memory is taken for them.
    total = 0
    with OpenEXR.File(str(path), header_only=True) as file:
      for part in file.parts:
        low, high = part.header["dataWindow"]
        width, height = (high.astype(int) - low + 1).tolist()
        if width * height > MAX_PIXELS:
          raise InputError(f"{name} has {width} x {height} pixels; at most {MAX_PIXELS:,} are read")
        total += max(0, width) * max(0, height) * len(part.header.get("channels", ()))
        if total > MAX_VALUES:
          raise InputError(f"{name} has more than {MAX_VALUES:,} numbers in its channels")

    # Channels by layer and name; of several parts, each is a layer unless its channels say so.
    pixels = {}
    with OpenEXR.File(str(path), separate_channels=True) as file:
      for part in file.parts:
        prefix = f"{part.name()}." if len(file.parts) > 1 else ""
        for channel, held in part.channels.items():
          whole = channel if channel.startswith(prefix) else prefix + channel
          pixels[whole] = np.array(held.pixels)
    return pixels
  except InputError:
    raise
  # the library raises RuntimeError, TypeError or ValueError with its own text
  except Exception as error:
    raise InputError(f"{name}: cannot be decoded as OpenEXR ({error})") from error


def named_candidates(pixels: Mapping[str, np.ndarray]) -> list[tuple[str, ...]]:
  """The channels that are points or depth by their names, one tuple for each choice."""
  # layer -> last part of the name -> whole name
  layers: dict[str, dict[str, str]] = {}
  for channel in pixels:
    layer = layers.setdefault(layer_of(channel), {})
    layer[last_part(channel)] = channel

  candidates = []
  for name, held in layers.items():
    if is_other(name):
      continue
    colours = [held[letter] for letter in "RGB" if letter in held]
    is_depth_layer = words(name)[-1:] in DEPTH_NAMES
    if {"X", "Y", "Z"} <= set(held):
      candidates.append((held["X"], held["Y"], held["Z"]))
    elif "Z" in held:
      candidates.append((held["Z"],))
    elif "DEPTH" in held:
      candidates.append((held["DEPTH"],))
    elif is_depth_layer and len(held) == 1:
      candidates.append(tuple(held.values()))
    elif is_depth_layer and len(colours) == 3 and are_equal(pixels, colours):
      candidates.append((colours[0],))
  return candidates


def layer_of(channel: str) -> str:
  """The layer of a channel; empty if its name has none."""
  return channel.rpartition(".")[0]


def last_part(channel: str) -> str:
  """The channel's name within its layer, in capitals."""
  return channel.rpartition(".")[2].upper()


def words(layer: str) -> list[str]:
  """The words of a layer's name: ViewLayer.Depth -> view, layer, depth."""
  return [word.lower() for word in WORD.findall(layer)]


def is_other(layer: str) -> bool:
  """Whether a layer's name says that it holds neither points nor depth."""
  return not OTHER_WORDS.isdisjoint(words(layer))


def are_equal(pixels: Mapping[str, np.ndarray], channels: Sequence[str]) -> bool:
  """Whether channels hold the same."""
  first, *others = (pixels[channel] for channel in channels)
  return all(np.array_equal(first, other, equal_nan=True) for other in others)


def stacked(pixels: Mapping[str, np.ndarray], channels: Sequence[str], name: str) -> np.ndarray:
  """(H, W) of one channel, (H, W, 3) of three. Raises InputError if they differ in size."""
  shapes = {pixels[channel].shape for channel in channels}
  if len(shapes) > 1:
    raise InputError(f"{name}: its channels {', '.join(channels)} differ in size")
  if len(channels) == 1:
    return pixels[channels[0]]
  return np.stack([pixels[channel] for channel in channels], -1)


def refusal(pixels: Mapping[str, np.ndarray], name: str, problem: str) -> InputError:
  """The error for a file of which it is not clear what is meant."""
  return InputError(
    f"{name} has channels {', '.join(pixels)}: {problem}; X Y Z for points, or Z for depth, are "
    "needed. Choose with --pointmap_channels: one channel of depth, or three of points, such as "
    "Layer.Depth.Z or P.X,P.Y,P.Z"
  )

"""A segmenter of the user's, given as `CMD {image} {points} {out}`.

`{image}` becomes the name of the photo as PNG, `{points}` of a JSON list of [x, y, inside] in
pixels (inside: 1 for the object, 0 for what is not of it), `{out}` of the mask to write, a PNG. No
shell is involved.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import tempfile

from sam3d_jax.errors import InputError
from sam3d_jax.files import commands

OPTION = "--segmenter"
PLACEHOLDERS = ("{image}", "{points}", "{out}")
SECONDS = 60.0  # that the program may take
MAX_POINTS = 100


@dataclasses.dataclass(frozen=True)
class Segmenter:
  """The words of the command."""

  words: tuple[str, ...]

  def mask(self, image: bytes, points: Sequence[tuple[float, float, int]], photo: str) -> bytes:
    """The file that the program writes for points of a photo.

    photo: names it in messages. Raises InputError for a program that fails, or writes nothing.
    """
    with tempfile.TemporaryDirectory() as scratch:
      folder = pathlib.Path(scratch)
      picture, clicks, mask = folder / "image.png", folder / "points.json", folder / "out.png"
      picture.write_bytes(image)
      clicks.write_text(json.dumps(points))
      files = dict(zip(PLACEHOLDERS, (picture, clicks, mask), strict=True))
      commands.run(self.words, files, option=OPTION, about=photo, seconds=SECONDS)
      if not mask.is_file():
        raise InputError(f"{OPTION} wrote no mask to {{out}} for {photo}")
      return mask.read_bytes()


def parse(template: str) -> Segmenter | None:
  """The segmenter of a flag, None for an empty one. Raises ConfigError."""
  if not template:
    return None
  return Segmenter(commands.words_of(template, OPTION, PLACEHOLDERS))

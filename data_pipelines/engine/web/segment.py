"""A segmenter of the user's, given as `CMD {image} {points} {out}`.

`{image}` becomes the name of the photo as PNG, `{points}` of a JSON list of [x, y, inside] in
pixels (inside: 1 for the object, 0 for what is not of it), `{out}` of the mask to write, a PNG. No
shell is involved.
"""

import dataclasses
import json
import pathlib
import shlex
import subprocess
import tempfile

from sam3d_jax.errors import ConfigError

PLACEHOLDERS = ("{image}", "{points}", "{out}")
SECONDS = 60  # that the program may take
SHOWN_LINES = 5  # of what a failed program said
MAX_POINTS = 100


class SegmenterFailed(Exception):
  """The program failed; the message says how."""


@dataclasses.dataclass(frozen=True)
class Segmenter:
  """The words of the command."""

  words: tuple[str, ...]

  def mask(self, image: bytes, points: list[tuple[float, float, int]]) -> bytes:
    """The PNG that the program writes for points of a photo. Raises SegmenterFailed."""
    with tempfile.TemporaryDirectory() as scratch:
      folder = pathlib.Path(scratch)
      files = {name: folder / name.strip("{}") for name in PLACEHOLDERS}
      files["{image}"] = folder / "image.png"
      files["{out}"] = folder / "out.png"
      files["{image}"].write_bytes(image)
      files["{points}"].write_text(json.dumps(points))
      self._run(files)
      try:
        return files["{out}"].read_bytes()
      except FileNotFoundError as error:
        raise SegmenterFailed(f"{self.words[0]} wrote no mask to {{out}}") from error

  def _run(self, files: dict[str, pathlib.Path]) -> None:
    filled = []
    for word in self.words:
      for name, path in files.items():
        word = word.replace(name, str(path))
      filled.append(word)
    try:
      result = subprocess.run(
        filled, capture_output=True, text=True, errors="replace", timeout=SECONDS
      )
    except OSError as error:
      raise SegmenterFailed(f"{filled[0]} cannot be started ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
      raise SegmenterFailed(f"{filled[0]} took more than {SECONDS} s") from error
    if result.returncode:
      said = (result.stderr or result.stdout).strip().splitlines()
      tail = " / ".join(said[-SHOWN_LINES:])
      raise SegmenterFailed(f"{filled[0]} failed with code {result.returncode}: {tail}")


def parse(template: str) -> Segmenter | None:
  """The segmenter of a flag, None for an empty one. Raises ConfigError."""
  if not template:
    return None
  try:
    words = tuple(shlex.split(template))
  except ValueError as error:
    raise ConfigError(f"--segmenter {template!r}: cannot be split into words ({error})") from error
  for placeholder in PLACEHOLDERS:
    if not any(placeholder in word for word in words):
      needed = ", ".join(PLACEHOLDERS)
      raise ConfigError(f"--segmenter {template!r} must contain {needed}, which become file names")
  return Segmenter(words)

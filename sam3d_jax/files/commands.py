"""Programs of the user's that make a file from a photo, given as `CMD {image} {out}`.

`{image}` becomes the name of the photo, upright, as an RGB PNG, `{out}` the name of the file to
write; a suffix that the program adds to it is fine. No shell is involved: the words are split as a
shell would split them and handed to the program. A result is kept and made once.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import shlex
import subprocess
import tempfile

import numpy as np
from PIL import Image

from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.files import atomic

PLACEHOLDERS = ("{image}", "{out}")
SHOWN_LINES = 5  # of what a failed program said, the last ones


@dataclasses.dataclass(frozen=True)
class PhotoCommand:
  """A command with its placeholders; `option` names the flag or key that it was given by."""

  option: str
  words: tuple[str, ...]

  def make_once(
    self, image_HW3: np.ndarray, folder: pathlib.Path, stem: str, *, suffix: str, photo: str
  ) -> pathlib.Path:
    """The file `folder/stem<suffix>...` that the program makes of a photo, or made earlier.

    Args:
      image_HW3: uint8, upright.
      folder: where results are kept; made if it is not there.
      stem: what tells this photo and this command from all others.
      suffix: of `{out}`; what the program appends to that name is kept.
      photo: names the photo in messages.

    Raises:
      InputError: the program cannot be started, fails, or writes no file or several.
    """
    earlier = sorted(folder.glob(f"{stem}.*"))
    if earlier:
      return earlier[0]
    with tempfile.TemporaryDirectory() as scratch:
      picture = pathlib.Path(scratch) / "photo.png"
      target = pathlib.Path(scratch) / f"out{suffix}"
      Image.fromarray(image_HW3).save(picture, compress_level=1)
      files = {"{image}": picture, "{out}": target}
      run(self.words, files, option=self.option, about=photo)
      made = sorted(pathlib.Path(scratch).glob("out*"))
      if len(made) != 1:
        raise InputError(
          f"{self.option} for {photo}: {shlex.join(self.words)} wrote {len(made)} files {{out}}*; "
          "one is needed"
        )
      kept = folder / (stem + "".join(made[0].suffixes))
      atomic.write_bytes(kept, made[0].read_bytes())
    return kept


def run(
  words: Sequence[str],
  files: Mapping[str, pathlib.Path],
  *,
  option: str,
  about: str,
  seconds: float | None = None,
) -> None:
  """Runs a program with its placeholders filled.

  Args:
    words: of the command.
    files: placeholder -> file.
    option: names the flag or key that the command was given by, in messages.
    about: what it was run for, in messages.
    seconds: that it may take; None: as long as it wants.

  Raises:
    InputError: it cannot be started, takes too long or fails; with what it said.
  """
  filled = []
  for word in words:
    for placeholder, path in files.items():
      word = word.replace(placeholder, str(path))
    filled.append(word)
  try:
    result = subprocess.run(
      filled,
      capture_output=True,
      text=True,
      errors="replace",
      timeout=seconds,
    )
  except OSError as error:
    raise InputError(f"{option}: {filled[0]} cannot be started ({error.strerror})") from error
  except subprocess.TimeoutExpired as error:
    raise InputError(f"{option} took more than {seconds:g} s for {about}") from error
  if result.returncode:
    said = (result.stderr or result.stdout).strip().splitlines()
    tail = "\n".join(said[-SHOWN_LINES:])
    raise InputError(
      f"{option} failed with code {result.returncode} for {about}: {shlex.join(filled)}:\n{tail}"
    )


def parse(template: str, option: str) -> PhotoCommand:
  """The command of a template. Raises ConfigError if a placeholder is missing."""
  return PhotoCommand(option, words_of(template, option, PLACEHOLDERS))


def words_of(template: str, option: str, placeholders: Sequence[str]) -> tuple[str, ...]:
  """The words of a command that has all of the placeholders. Raises ConfigError."""
  try:
    words = tuple(shlex.split(template))
  except ValueError as error:
    raise ConfigError(f"{option} = {template!r}: cannot be split into words ({error})") from error
  for placeholder in placeholders:
    if not any(placeholder in word for word in words):
      raise ConfigError(
        f"{option} = {template!r} must contain {' and '.join(placeholders)}, which are replaced by "
        "file names"
      )
  return words

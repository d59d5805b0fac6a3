"""Programs of the user's that make a file from a photo."""

import shlex
import sys

import numpy as np
from PIL import Image
import pytest

from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.files import commands

IMAGE = np.random.default_rng(0).integers(0, 255, (12, 16, 3)).astype(np.uint8)


def python(code: str, *more: str) -> commands.PhotoCommand:
  words = (sys.executable, "-c", code, "{image}", "{out}", *more)
  return commands.parse(shlex.join(words), "--make")


def make(command, folder):
  return command.make_once(IMAGE, folder, "key", suffix=".npz", photo="cup.jpg")


def test_the_program_sees_the_photo_and_its_file_is_kept(tmp_path):
  command = python("import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])")
  made = make(command, tmp_path / "kept")
  assert made == tmp_path / "kept" / "key.npz"
  with Image.open(made) as seen:
    np.testing.assert_array_equal(np.asarray(seen), IMAGE)
  assert [path.name for path in made.parent.iterdir()] == ["key.npz"]


def test_a_result_is_made_once_whatever_suffix_the_program_added(tmp_path):
  code = "import sys; open(sys.argv[3], 'a').write('x'); open(sys.argv[2] + '.npy', 'w').write('1')"
  command = python(code, str(tmp_path / "calls"))
  assert make(command, tmp_path / "kept") == make(command, tmp_path / "kept")
  assert make(command, tmp_path / "kept").name == "key.npz.npy"
  assert (tmp_path / "calls").read_text() == "x"


@pytest.mark.parametrize(
  "template", ["make {image}", "make {out}", "make image out", "make {image} '{out}"]
)
def test_a_template_without_both_placeholders_is_refused_with_its_option(template):
  with pytest.raises(ConfigError, match="--make = "):
    commands.parse(template, "--make")


@pytest.mark.parametrize(
  "code, message",
  [
    (
      "import sys; sys.exit('no weights')",
      "(?s)--make failed with code 1 for cup.jpg: .*no weights",
    ),
    ("pass", "wrote 0 files"),
    ("import sys; [open(sys.argv[2] + s, 'w') for s in ('', '.a')]", "wrote 2 files"),
  ],
)
def test_a_program_that_makes_no_file_is_named_with_what_it_said(tmp_path, code, message):
  with pytest.raises(InputError, match=message):
    make(python(code), tmp_path / "kept")
  assert not list(tmp_path.glob("kept/*"))


def test_a_program_that_is_not_there_is_named(tmp_path):
  command = commands.parse("no_such_program {image} {out}", "--make")
  with pytest.raises(InputError, match="--make: no_such_program cannot be started"):
    make(command, tmp_path)


def test_no_shell_reads_the_words(tmp_path):
  command = python("import sys; open(sys.argv[2], 'w').write(sys.argv[3])", "$HOME; touch x {image")
  assert make(command, tmp_path).read_text() == "$HOME; touch x {image"

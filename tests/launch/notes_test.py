"""Notes on inputs are lines of the console's own, of every command that reads them."""

import json
import warnings

import pytest

from launch import evaluate
from launch.console.notes import noted
from sam3d_jax.errors import InputNote
from tests.support import documented_inputs


def test_a_note_is_said_once_and_as_it_comes_and_other_warnings_stay(capsys):
  with pytest.warns(DeprecationWarning, match="old"):
    with noted():
      for _ in range(2):
        warnings.warn("the mask is turned", InputNote, stacklevel=1)
        assert capsys.readouterr().err in ("note: the mask is turned\n", "")
      warnings.warn("old", DeprecationWarning, stacklevel=1)


def test_evaluate_says_what_is_odd_about_a_set_as_a_note(tmp_path, capsys, recwarn):
  # a camera far from the centre of the photo
  folder = tmp_path / "set" / "box"
  documented_inputs.write_object(folder)
  (folder / "camera.json").write_text(json.dumps({"fx": 50, "fy": 50, "cx": 58, "cy": 2}))
  out = str(tmp_path / "out")
  flags = ["--photos", str(folder.parent), "--oracle", "--out", out, "--dry_run"]
  assert evaluate.main(flags) == 0
  said = capsys.readouterr().err
  assert "note: " in said
  assert "lies far from the centre" in said
  assert [one for one in recwarn if one.category is InputNote] == []

"""The parity runner, and every published fixture that has a case."""

import json
import os

import numpy as np
import pytest

from tests import parity
from tests.conftest import SHARED

GOLDEN = SHARED / "golden" / "dev"


def fixture_names() -> list[str]:
  """All fixtures; one entry that skips where the folder is absent."""
  if not (GOLDEN / "manifest.json").is_file():
    return ["absent"]
  manifest = json.loads((GOLDEN / "manifest.json").read_text())
  return sorted(manifest)


@pytest.mark.parametrize("name", fixture_names())
def test_published_fixture(golden_dir, name):
  parity.load_cases()
  (fixture,) = parity.fixtures(golden_dir, name)
  row = parity.run_fixture(fixture)
  assert not row.problem, row
  assert row.error <= row.tol


def write_folder(folder, fixture, arrays):
  """A folder with one fixture, its arrays replaced."""
  file = f"{fixture.name}.npz"
  np.savez(folder / file, **arrays)
  manifest = {file: {"kwargs": fixture.kwargs, "tol": fixture.tol}}
  (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def small(golden_dir):
  parity.load_cases()
  (fixture,) = parity.fixtures(golden_dir, "a2_*")
  return fixture


def test_an_output_disturbed_in_one_element_beyond_tolerance_fails(small, tmp_path, capsys):
  (name,) = [name for name in small.expected if name.startswith("out/")]
  # in units of the tolerance
  for disturbance, code in ((0.0, 0), (0.5, 0), (3.0, 1)):
    arrays = {name: array.copy() for name, array in small.arrays.items()}
    largest = max(1.0, np.abs(arrays[name]).max())
    arrays[name].flat[7] += disturbance * small.tol * largest
    write_folder(tmp_path, small, arrays)
    assert parity.main([os.fspath(tmp_path)]) == code
  assert "FAIL" in capsys.readouterr().out


def test_an_array_that_no_case_computes_fails(small, tmp_path):
  write_folder(tmp_path, small, {**small.arrays, "out/another": np.zeros(3, np.float32)})
  assert parity.main([os.fspath(tmp_path)]) == 1


def test_a_run_in_which_nothing_ran_fails(small, tmp_path, capsys):
  assert parity.main([os.fspath(tmp_path)]) == 1
  write_folder(tmp_path, small, small.arrays)
  assert parity.main([os.fspath(tmp_path), "--only", "zz*"]) == 1
  assert "0 passed, 0 failed" in capsys.readouterr().out


def test_comparison_agrees_on_nan_and_is_relative_to_the_largest_value():
  nan = np.array([np.nan, 100.0])
  off_by_one = np.array([np.nan, 101.0])
  number = np.array([0.0, 100.0])
  assert parity.relative_error(nan, nan) == 0.0
  assert parity.relative_error(off_by_one, nan) == pytest.approx(0.01)
  assert parity.relative_error(number, nan) == np.inf
  assert parity.relative_error(np.zeros(3), nan) == np.inf

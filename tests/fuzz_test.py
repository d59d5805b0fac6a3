"""Files of every input format, changed at random: refused or read, within limits of memory and
time, and never the end of a process. docs/security.md has the last long run.
"""

import pytest

from tests.support import fuzzing

FEW = 20  # of each format
MANY = 1000


@pytest.mark.parametrize("name", fuzzing.FORMATS)
def test_a_few_changed_files_of_every_format_are_read_or_refused(name):
  assert fuzzing.run(name, FEW)["failures"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzzing.FORMATS)
def test_a_thousand_changed_files_of_every_format_are_read_or_refused(name):
  assert fuzzing.run(name, MANY, first=FEW)["failures"] == []


def test_a_change_is_a_function_of_format_and_number(tmp_path):
  one = fuzzing.write("obj", 7, tmp_path / "one").read_bytes()
  assert fuzzing.write("obj", 7, tmp_path / "two").read_bytes() == one
  assert fuzzing.write("obj", 8, tmp_path / "three").read_bytes() != one


def test_changes_leave_some_files_readable():
  assert fuzzing.run("obj", 100)["refused"] < 100

"""Inputs that a command cannot use are named and counted; what is not their fault is raised."""

import errno
import json

import pytest

from launch.console.refusals import FILE, Refusals
from sam3d_jax.errors import InputError, JobFailed, Preempted, Refused


@pytest.mark.parametrize(
  "error, reason",
  [
    (Refused("too_slow", "x"), "too_slow"),
    (InputError("mask a.png is empty"), "unusable"),
    (MemoryError(), "too_large"),
    (RecursionError("deep"), "unreadable"),
    (IndexError("list index"), "unreadable"),
    (OSError(errno.ENOENT, "gone"), "unreadable"),
  ],
)
def test_whatever_an_input_leads_to_is_a_refusal(error, reason):
  refusals = Refusals("photos")
  with refusals.input("a.png"):
    raise error
  (found,) = refusals.found
  assert (found.path, found.reason) == ("a.png", reason)
  assert "a.png" in refusals.said(2) and "1 of 2 photos cannot be used" in refusals.said(2)


@pytest.mark.parametrize(
  "error",
  [JobFailed("disk"), Preempted("told"), OSError(errno.EIO, "bad"), KeyboardInterrupt()],
)
def test_what_is_no_fault_of_an_input_is_raised(error):
  refusals = Refusals("photos")
  with pytest.raises(type(error)), refusals.input("a.png"):
    raise error
  assert not refusals.found


def test_the_budget_is_a_share_and_the_file_is_of_the_last_run(tmp_path):
  refusals = Refusals("photos")
  for number in range(30):
    refusals.add(f"{number}.png", "unusable", "empty")
    refusals.add(f"{number}.png", "unusable", "empty")
  refusals.check(60, 0.5)
  with pytest.raises(InputError, match=r"(?s)0\.png: empty\n.*and 10 more\n\(30 of 60"):
    refusals.check(60, 0.4)
  refusals.write(tmp_path)
  lines = (tmp_path / FILE).read_text().splitlines()
  assert json.loads(lines[0]) == {"path": "0.png", "reason": "unusable", "detail": "empty"}
  Refusals("photos").write(tmp_path)
  assert (tmp_path / FILE).read_text() == ""

"""What reading an input may take: memory and time have limits, and who dies of it is replaced."""

import ctypes
import os
import time
import warnings

import numpy as np
import pytest

from data_pipelines.annotations.items import SetAside
from data_pipelines.build import limited, shard_jobs
from sam3d_jax.errors import ConfigError, InputNote, Refused

LIMITS = limited.Limits(memory_gb=0.5, seconds=20.0)


def zeros(count: int) -> np.ndarray:
  return np.zeros(count, np.uint8)


def nested(depth: int) -> int:
  return nested(depth + 1)


def set_aside() -> None:
  raise SetAside("low_rating", "3 of 5")


def noting(text: str) -> str:
  warnings.warn(text, InputNote, stacklevel=1)
  return text


def length(kept: list, more: int) -> int:
  return len(kept) + more


def refused(function, *args, limits=LIMITS) -> Refused:
  with pytest.raises(Refused) as caught:
    limited.call(limits, function, *args)
  return caught.value


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(3, 5), (1 << 20, 3)])
def test_what_is_read_comes_back_as_it_is(shape, order):
  made = limited.call(LIMITS, np.ones, shape, np.float32, order)
  assert made.dtype == np.float32 and made.flags.f_contiguous == (order == "F")
  np.testing.assert_array_equal(made, 1)
  made[0] = 2  # it is the caller's own


def test_one_worker_reads_all_inputs():
  assert limited.call(LIMITS, os.getpid) == limited.call(LIMITS, os.getpid) != os.getpid()


def test_memory_beyond_the_limit_is_a_refusal_that_states_it():
  error = refused(zeros, 1 << 30)
  assert error.reason == "too_large" and "0.5 GB (limits.memory_gb)" in error.detail
  assert len(limited.call(LIMITS, zeros, 1 << 22)) == 1 << 22


def test_time_beyond_the_limit_is_a_refusal_that_states_it():
  error = refused(time.sleep, 60, limits=limited.Limits(0.5, 0.2))
  assert error.reason == "too_slow" and "0.2 s (limits.seconds)" in error.detail
  assert limited.call(LIMITS, len, "abc") == 3


def test_a_reader_that_ends_its_process_costs_its_own_input():
  error = refused(ctypes.string_at, 0)
  assert error.reason == "crashed" and "SIGSEGV" in error.detail
  assert refused(os._exit, 3).detail.endswith("(exit code 3)")
  assert limited.call(LIMITS, len, "abc") == 3


def test_what_a_reader_raises_is_raised_as_it_is():
  with pytest.raises(ValueError, match="invalid literal"):
    limited.call(LIMITS, int, "x")
  with pytest.raises(FileNotFoundError):
    limited.call(LIMITS, os.stat, "/nothing/here")
  with pytest.raises(RecursionError):
    limited.call(LIMITS, nested, 0)
  with pytest.raises(SetAside, match="3 of 5"):
    limited.call(LIMITS, set_aside)


def test_notes_of_a_reader_are_notes_here():
  with pytest.warns(InputNote, match="turned upright"):
    limited.call(LIMITS, noting, "turned upright")


def test_what_is_kept_is_sent_once():
  kept = list(range(1000))
  assert limited.call(LIMITS, length, 1, kept=kept) == 1001
  kept.append(None)
  assert limited.call(LIMITS, length, 1, kept=kept) == 1001  # of the one that was sent
  limited._current.stop()
  assert limited.call(LIMITS, length, 1, kept=kept) == 1002


def test_without_limits_inputs_are_read_here():
  assert limited.call(limited.NONE, os.getpid) == os.getpid()
  with pytest.raises(Refused, match="too_large"):
    limited.call(limited.NONE, np.zeros, 1 << 50)


@pytest.mark.parametrize("values", [(-1.0, 1.0), (1.0, float("nan"))])
def test_limits_are_numbers_that_can_be_kept(values):
  with pytest.raises(ConfigError, match="limits"):
    limited.Limits(*values)


def test_a_build_reads_within_its_limits_and_refuses_whatever_goes_wrong():
  refuse = shard_jobs.Refusals(limits=LIMITS)
  with pytest.raises(Refused, match="too_large"):
    refuse.read(zeros, 1 << 30)
  with pytest.raises(Refused, match="RecursionError"):
    refuse.read(nested, 0)
  assert refuse.read(os.getpid, foreign=False) == os.getpid()

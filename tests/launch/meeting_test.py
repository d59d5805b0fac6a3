"""Processes that meet: all of them, or words about who is missing."""

import concurrent.futures
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from launch.trainer import hosts, meeting
from sam3d_jax.errors import JobFailed
from tests.support import another_writer, jobs


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(meeting, "MEET_SECONDS", 3.0)
  monkeypatch.setattr(meeting, "PAUSE_SECONDS", 0.02)


@pytest.fixture
def coordinator():
  return f"localhost:{jobs.free_port()}"


def outcome(coordinator: str, count: int, index: int) -> str:
  """'' if the process met the others, else what it says."""
  try:
    meeting.meet(coordinator, count, index)
  except JobFailed as error:
    return str(error)
  return ""


def outcomes(coordinator: str, count: int, *indices: int) -> list[str]:
  """Of processes that come one after the other."""
  with concurrent.futures.ThreadPoolExecutor(len(indices)) as pool:
    futures = []
    for index in indices:
      futures.append(pool.submit(outcome, coordinator, count, index))
      time.sleep(0.05)
    return [future.result() for future in futures]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_processes_meet_in_whatever_order_they_come(coordinator, order):
  assert outcomes(coordinator, 3, *order) == [""] * 3
  # the address is free again, for JAX
  assert outcomes(coordinator, 3, *order) == [""] * 3


def test_all_that_came_hear_who_is_missing(coordinator, monkeypatch):
  monkeypatch.setattr(meeting, "MEET_SECONDS", 0.5)
  said = outcomes(coordinator, 4, 0, 2)
  assert "(this is 0 of 4): processes 1, 3 did not come within" in said[0]
  assert "(this is 2 of 4): processes 1, 3 did not come within" in said[1]


def test_without_process_0_the_others_say_so(coordinator, monkeypatch):
  monkeypatch.setattr(meeting, "MEET_SECONDS", 0.3)
  (said,) = outcomes(coordinator, 2, 1)
  assert "did not find each other at localhost" in said
  assert "process 0 did not come within" in said and "refused" in said


def test_a_process_that_comes_twice_is_not_let_in(coordinator):
  first, once, second, last = outcomes(coordinator, 3, 0, 1, 1, 2)
  assert first == once == last == ""
  assert "process 1 has come already: was the job started twice?" in second


def test_one_of_another_job_is_told_so(coordinator):
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    first = pool.submit(outcome, coordinator, 2, 0)
    time.sleep(0.05)
    stranger = pool.submit(outcome, coordinator, 5, 1)
    assert "this job has 2 processes, not 5" in stranger.result()
    second = pool.submit(outcome, coordinator, 2, 1)
    assert first.result() == second.result() == ""


def test_strangers_that_send_nothing_or_too_much_hold_nobody_up(coordinator):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(outcome, coordinator, 2, 0)
    time.sleep(0.1)
    host, port = coordinator.split(":")
    with (
      socket.create_connection((host, int(port))),
      socket.create_connection((host, int(port))) as loud,
    ):
      loud.sendall(b"GET / HTTP/1.1 " * 1000)
      assert outcome(coordinator, 2, 1) == first.result() == ""


def test_one_that_dies_while_it_waits_is_missing_and_its_next_start_is_let_in(coordinator):
  host, port = coordinator.split(":")
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(outcome, coordinator, 3, 0)
    time.sleep(0.1)
    with socket.create_connection((host, int(port))) as dying:
      dying.sendall(b'{"index": 1, "count": 3}\n')
      time.sleep(0.1)
    again = threading.Timer(0.2, outcome, (coordinator, 3, 1))
    again.start()
    assert outcome(coordinator, 3, 2) == first.result() == ""
    again.join()


def test_a_machine_without_the_newer_protocol_listens_with_the_older_one(monkeypatch):
  real = meeting._server

  def server(host, port):
    if host == "::":
      raise OSError(97, "Address family not supported by protocol")
    return real(host, port)

  monkeypatch.setattr(meeting, "_server", server)
  with meeting._listen(f"[::]:{jobs.free_port()}", time.monotonic()) as listening:
    assert listening.family == socket.AF_INET


def test_an_address_that_is_taken_is_named(monkeypatch):
  with socket.create_server(("localhost", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(JobFailed, match=f"cannot listen at localhost:{port} .Address already in"):
      meeting._listen(f"localhost:{port}", time.monotonic())


def test_slurm_says_where_the_processes_meet(monkeypatch):
  monkeypatch.setenv("SLURM_JOB_ID", "1234")
  monkeypatch.setenv("SLURM_STEP_NODELIST", "node[3-5]")
  monkeypatch.setenv("SLURM_NTASKS", "3")
  monkeypatch.setenv("SLURM_PROCID", "2")
  monkeypatch.setenv("SLURM_LOCALID", "0")
  coordinator, count, index = hosts.place_by_jax()
  assert coordinator.startswith("node3:") and (count, index) == (3, 2)


PROGRAM = """
import sys
from launch.trainer import hosts, meeting
from launch.trainer.specs import HostsSpec
from sam3d_jax.errors import JobFailed
meeting.MEET_SECONDS = 1.0
try:
  hosts.connect(HostsSpec(sys.argv[1], "2", sys.argv[2]), {})
except JobFailed as error:
  sys.exit(str(error))
"""


def test_a_missing_process_ends_the_others_with_words_and_no_abort(coordinator):
  index = 1
  process = subprocess.run(
    [sys.executable, "-c", PROGRAM, coordinator, str(index)],
    cwd=another_writer.ROOT,
    env={**os.environ, "PYTHONPATH": str(another_writer.ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert process.returncode == 1
  assert f"did not find each other at {coordinator}" in process.stderr
  assert f"process {1 - index} did not come within 1 s" in process.stderr

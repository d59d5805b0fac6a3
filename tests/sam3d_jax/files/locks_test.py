"""One writer a folder, among real processes, machines and disks."""

import errno
import json
import os
import pathlib
import time

import pytest

from sam3d_jax.files import locks
from tests.support import another_writer

# takes the folder again and again; a line when it has it, one when it lets go
CROWD = """
import random, sys, time
from sam3d_jax.files import locks
folder, log, name = sys.argv[1:]
got = 0
while got < 5:
  try:
    with locks.hold(folder, name):
      with open(log, "a") as file:
        file.write(f"begin {name}\\n")
        file.flush()
        time.sleep(random.uniform(0, 0.01))
        file.write(f"end {name}\\n")
      got += 1
  except locks.InUse:
    pass
  time.sleep(random.uniform(0, 0.01))
"""


@pytest.fixture
def other(tmp_path):
  """Another process that holds the folder."""
  with another_writer.holding(tmp_path) as process:
    yield process


def test_a_second_process_is_refused_and_told_who_has_the_folder(tmp_path, other):
  words = rf"in use by launch.other \(process {other.pid} on .* sign of life .* end it there"
  with pytest.raises(locks.InUse, match=words):
    locks.take(tmp_path, "launch.mine")


def test_the_folder_of_a_killed_process_is_taken_over_at_once(tmp_path, other):
  other.kill()
  other.wait()
  with locks.hold(tmp_path, "launch.mine") as lock:
    assert lock.fence == 2
    lock.check()
  assert not (tmp_path / locks.FOLDER).exists()


def test_a_folder_is_never_held_twice_however_many_come(tmp_path):
  log = tmp_path / "log"
  crowd = [another_writer.start(CROWD, tmp_path / "folder", log, name) for name in "abc"]
  assert [process.wait(60) for process in crowd] == [0] * 3
  lines = log.read_text().split()
  # every begin is followed by the end of the same process
  for index in range(0, len(lines), 4):
    begin, name, end, same = lines[index : index + 4]
    assert (begin, end) == ("begin", "end") and name == same
  assert len(lines) == 4 * 3 * 5


def elsewhere(folder: pathlib.Path, age: float) -> pathlib.Path:
  """A lock as a process of another machine would have left it so many seconds ago."""
  path = folder / locks.FOLDER / "0.7.json"
  path.parent.mkdir(parents=True)
  record = {"host": "far", "boot": "x", "processes": "y", "pid": os.getpid(), "what": "launch.far"}
  path.write_text(json.dumps(record))
  then = time.time() - age
  os.utime(path, (then, then))
  return path


def test_an_owner_on_another_machine_without_a_sign_of_life_is_taken_over(tmp_path):
  path = elsewhere(tmp_path, age=locks.LEASE_SECONDS + 60)
  with locks.hold(tmp_path, "launch.mine") as lock:
    assert lock.fence == 8
    assert not path.exists()


def test_an_owner_on_another_machine_that_lives_is_waited_for_and_named(tmp_path, monkeypatch):
  path = elsewhere(tmp_path, age=5.0)
  told = []
  monkeypatch.setattr(locks.time, "sleep", lambda seconds: os.utime(path))
  with pytest.raises(locks.InUse, match="launch.far .process .* on far"):
    locks.take(tmp_path, "launch.mine", tell=told.append)
  assert len(told) == 1 and "waiting for a sign of life" in told[0]


def test_a_lease_that_runs_out_while_it_is_waited_for_is_taken_over(tmp_path, monkeypatch):
  elsewhere(tmp_path, age=locks.LEASE_SECONDS - 0.2)
  monkeypatch.setattr(locks, "POLL_SECONDS", 0.3)
  with locks.hold(tmp_path, "launch.mine", tell=lambda line: None) as lock:
    assert lock.fence == 8


def test_a_lock_that_cannot_be_read_counts_by_its_age(tmp_path):
  path = elsewhere(tmp_path, age=0)
  path.write_text("")
  old = time.time() - locks.LEASE_SECONDS - 1
  os.utime(path, (old, old))
  with locks.hold(tmp_path, "launch.mine") as lock:
    assert lock.fence == 8


@pytest.mark.parametrize("how", ["followed", "removed"])
def test_an_owner_that_was_asleep_finds_out_before_it_writes(tmp_path, how):
  lock = locks.take(tmp_path, "launch.mine")
  if how == "followed":
    lock.path.with_name("0.2.json").write_text("{}")
  else:
    lock.path.unlink()
  with pytest.raises(locks.Lost, match="nothing more is written"):
    locks.check(tmp_path / "deep" / "file")
  lock.release()


def test_writers_of_one_group_share_a_folder_and_nobody_else_does(tmp_path):
  with (
    locks.hold(tmp_path, "encoder", slot="task-0", group="2 tasks"),
    locks.hold(tmp_path, "encoder", slot="task-1", group="2 tasks"),
  ):
    with pytest.raises(locks.InUse):
      locks.take(tmp_path, "encoder", slot="task-2", group="3 tasks")
    with pytest.raises(locks.InUse):
      locks.take(tmp_path, "builder")
  locks.take(tmp_path, "builder").release()


def test_a_process_that_holds_a_folder_gets_it_again(tmp_path):
  with locks.hold(tmp_path, "outer") as lock:
    with locks.hold(tmp_path, "inner") as inner:
      assert inner is lock
    lock.check()
  assert not (tmp_path / locks.FOLDER).exists()


def test_a_disk_without_hard_links_has_locks_too(tmp_path, monkeypatch):
  def no_links(*unused):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))

  monkeypatch.setattr(os, "link", no_links)
  with locks.hold(tmp_path, "launch.mine") as lock:
    lock.check()
    assert not list(lock.path.parent.glob(".*"))


def test_a_living_owner_gives_signs_of_life(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
  with locks.hold(tmp_path, "launch.mine") as lock:
    os.utime(lock.path, (0, 0))
    deadline = time.monotonic() + 30
    while lock.path.stat().st_mtime == 0:
      assert time.monotonic() < deadline
      time.sleep(0.01)

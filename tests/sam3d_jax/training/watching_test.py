"""Watchdog and ledger where disks take nothing, requests are odd and clocks are set."""

import json
import time

import pytest

from sam3d_jax.training import ledger, watchdog

CFG = watchdog.WatchdogConfig()


def dog(tmp_path, host: int = 0) -> watchdog.Watchdog:
  book = ledger.Ledger(tmp_path / "goodput.jsonl")
  return watchdog.Watchdog(book, tmp_path, CFG, host=host)


def stacks(tmp_path) -> set[str]:
  return {path.name for path in (tmp_path / "stacks").glob("*.txt")}


def test_odd_requests_are_answered_once_and_those_from_before_are_not(tmp_path):
  folder = tmp_path / "stacks"
  folder.mkdir()
  (folder / "old.request").write_text("")
  watching = dog(tmp_path)
  watching._look()
  assert not stacks(tmp_path)
  (folder / "x y.request").write_text("")
  (folder / "1e999.request").mkdir()
  watching._look()
  watching._look()
  assert stacks(tmp_path) == {"x y_host0.txt", "1e999_host0.txt"}
  assert (folder / "x y_host0.txt").read_text().count("another host asked") == 1


@pytest.mark.parametrize("hours", [-1, 1])
def test_hosts_whose_clocks_are_an_hour_apart_answer_each_other(tmp_path, monkeypatch, hours):
  asked, asks = dog(tmp_path, host=0), dog(tmp_path, host=1)
  real = time.time
  with monkeypatch.context() as other_clock:
    other_clock.setattr(time, "time", lambda: real() + 3600 * hours)
    asks._stuck("it hangs")
  asked._look()
  (request,) = (tmp_path / "stacks").glob("*.request")
  assert stacks(tmp_path) == {f"{request.stem}_host0.txt", f"{request.stem}_host1.txt"}
  # stuck at the same collective, it asks for nothing else
  asked._stuck("it hangs too")
  assert len(list((tmp_path / "stacks").glob("*.request"))) == 1


def test_a_watchdog_goes_on_where_it_cannot_write(tmp_path, capfd):
  (tmp_path / "stacks").write_text("a file in the place of the folder")
  watching = dog(tmp_path)
  watching.ledger.path = tmp_path / "nowhere" / "goodput.jsonl"
  watching._stuck("it hangs")
  watching._stuck("it hangs")
  said = capfd.readouterr().err
  assert said.count("cannot be asked for their stacks") == 1
  assert "test_a_watchdog_goes_on_where_it_cannot_write" in said  # its stack
  assert said.count("goodput.jsonl cannot be written") == 1


def test_whatever_a_look_raises_the_watchdog_looks_again(tmp_path, monkeypatch, capfd):
  looks = []

  def look(self):
    looks.append(1)
    raise RuntimeError("odd")

  monkeypatch.setattr(watchdog.Watchdog, "_look", look)
  watching = dog(tmp_path)
  watching.poll = 0.001
  with watching:
    deadline = time.monotonic() + 30
    while len(looks) < 5:
      assert time.monotonic() < deadline
      time.sleep(0.001)
  assert capfd.readouterr().err.count("RuntimeError: odd") == 1


def rows_of(unix_time: float, wall: float, step: int) -> list[dict]:
  """Those of one process: its begin and its end, so many seconds later."""
  begin = {"event": "begin", "unix_time": unix_time, "wall": 0.0, "step": None, "seconds": {}}
  seconds = {"step": wall}
  end = {"event": "end", "unix_time": unix_time + wall, "wall": wall, "step": step}
  return [begin, end | {"seconds": seconds}]


def test_a_clock_that_was_set_back_between_two_starts_costs_no_time():
  summary = ledger.summarize([rows_of(10_000.0, 100.0, 5), rows_of(6_500.0, 50.0, 9)])
  assert summary["wall"] == 150.0
  assert summary["goodput"] == 1.0
  assert sum(summary["seconds"].values()) == summary["wall"]
  assert all(value >= 0 for value in summary["seconds"].values())


def test_a_clock_that_was_set_back_while_a_process_ran_changes_nothing_of_its_time():
  first, second = rows_of(10_000.0, 100.0, 5), rows_of(6_600.0, 50.0, 9)
  first[-1]["unix_time"] -= 3_600
  summary = ledger.summarize([first, second])
  assert summary["wall"] == 150.0 and summary["goodput"] == 1.0


def test_rows_that_a_crash_cut_off_or_filled_with_zeros_are_left_out(tmp_path):
  path = tmp_path / "goodput.jsonl"
  ledger.Ledger(path).record("begin")
  with path.open("ab") as file:
    file.write(b"\0" * 40 + b"\n7\n[]\n" + b'{"event": "ali')
  # the next process begins a line of its own
  ledger.Ledger(path).record("begin")
  processes = ledger.read(path)
  assert [len(rows) for rows in processes] == [1, 1]
  assert json.loads(path.read_text().splitlines()[-1])["event"] == "begin"

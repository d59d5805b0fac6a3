"""Sweeps: what they try, how trials are run, retried and resumed, and the ranking. Trials are
stand-ins started through --launcher.
"""

import csv
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from launch import sweep
from launch.console import cli
from launch.sweeps import report, space, trials
from sam3d_jax.files import atomic

# Stands where `srun` would: reads the trial's command line, plays a run of it, ends with a scripted
# exit code.
LAUNCHER = """
import json, pathlib, re, signal, sys, time
text = " ".join(sys.argv[1:])
value = lambda pattern: re.search(pattern, text)[1]
folder, lr = pathlib.Path(value(r"--workdir=(\\\\S+)")), float(value(r"optim.lr=(\\\\S+)"))
scripts = json.loads((folder.parent / "script.json").read_text())
script = scripts.get(value(r"optim.lr=(\\\\S+)"), [0])
events = (folder.parent / "events.txt").open("a")
tries = len((folder / "tries.txt").read_text()) if (folder / "tries.txt").exists() else 0
(folder / "tries.txt").write_text("x" * (tries + 1))
print("start", lr, file=events, flush=True)
code = script[min(tries, len(script) - 1)]
if code == "wait":
  signal.signal(signal.SIGTERM, lambda *a: sys.exit(75))
  time.sleep(60)
(folder.parent / "compile_cache").mkdir(exist_ok=True)
print("compiled", lr, file=events, flush=True)
if code in (0, 75):
  with (folder / "metrics.jsonl").open("a") as file:
    for step in (10 * tries + 5, 10 * tries + 10):
      row = {"step": step, "loss": lr * 2, "eval/loss": None if lr == 0.5 else lr + 1 / step}
      file.write(json.dumps(row) + chr(10))
sys.exit(code)
""".replace("\\\\", "\\")


def sweep_file(folder: pathlib.Path, **changes) -> str:
  spec = {
    "command": "pretrain",
    "config": "configs/pretrain_geometry.py:fake",
    "space": [{"product": {"optim.lr": (0.1, 0.2, 0.3)}}],
    "metric": "eval/loss",
  } | changes
  (folder / "sweep_file.py").write_text(f"def get_sweep():\n  return {spec!r}\n")
  return str(folder / "sweep_file.py")


def arguments(tmp_path, script=None, **changes) -> list[str]:
  out = tmp_path / "out"
  out.mkdir(exist_ok=True)
  (out / "script.json").write_text(json.dumps(script or {}))
  (tmp_path / "launcher.py").write_text(LAUNCHER)
  return [
    "--sweep",
    sweep_file(tmp_path, **changes),
    "--workdir",
    str(out),
    "--launcher",
    f"{sys.executable} {tmp_path}/launcher.py",
  ]


def table(tmp_path) -> list[dict[str, str]]:
  with (tmp_path / "out" / "table.csv").open() as file:
    return list(csv.DictReader(file))


def starts(tmp_path) -> list[str]:
  return (tmp_path / "out" / "events.txt").read_text().splitlines()


def test_blocks_multiply_and_zipped_values_move_together():
  blocks = [{"product": {"a": (1, 2), "b": (3, 4)}}, {"zip": {"c": (5, 6), "d": (7, 8)}}]
  trials = space.expand(blocks, "x")
  assert (
    len(trials) == 8
    and trials[0] == {"a": 1, "b": 3, "c": 5, "d": 7}
    and trials[1] == {"a": 1, "b": 3, "c": 6, "d": 8}
  )
  assert {(t["c"], t["d"]) for t in trials} == {(5, 7), (6, 8)}


def test_random_draws_stay_in_range_and_do_not_depend_on_the_other_keys_or_the_number_of_trials():
  draws = {"lr": {"log_uniform": (1e-5, 1e-2)}, "n": {"integer": (1, 3)}}
  some = space.expand([{"random": draws, "trials": 20, "seed": 1}], "x")
  more = space.expand(
    [{"random": {"w": {"uniform": (0, 1)}} | draws, "trials": 30, "seed": 1}], "x"
  )
  assert [t["lr"] for t in some] == [t["lr"] for t in more[:20]]
  assert all(1e-5 <= t["lr"] <= 1e-2 for t in some) and {t["n"] for t in some} == {1, 2, 3}
  assert some != space.expand([{"random": draws, "trials": 20, "seed": 2}], "x")
  assert min(t["lr"] for t in some) < 1e-4  # as many draws in every decade


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"space": [{"product": {"optim.lrr": (1.0,)}}]}, "the nearest key is 'optim.lr'"),
    ({"space": [{"product": {"optim.lr": ("fast",)}}]}, "optim.lr = 'fast' is not of type float"),
    ({"space": [{"zip": {"optim.lr": (1.0,), "seed": (0, 1)}}]}, "zipped values differ in number"),
    (
      {"space": [{"product": {"seed": (0,)}}, {"zip": {"seed": (1,)}}]},
      "seed is swept by more than one block",
    ),
    ({"space": [{"grid": {"seed": (0,)}}]}, "not one of product, zip, random"),
    ({"space": [{"product": {"seed": 3}}]}, "seed = 3 is not a list of values"),
    ({"space": [{"product": {"seed": (1, 1)}}]}, "are the same"),
    (
      {"space": [{"random": {"seed": {"normal": (0, 1)}}, "trials": 2}]},
      "is not one of uniform, log_uniform, integer, choice",
    ),
    ({"space": []}, "space is empty"),
    ({"metrik": "loss"}, "the nearest is 'metric'"),
    ({"goal": "low"}, "goal = 'low' is not one of min, max"),
    ({"command": "train"}, "command = 'train' is not one of pretrain"),
  ],
)
def test_a_wrong_sweep_is_refused_before_anything_starts(tmp_path, capsys, changes, words):
  assert (
    sweep.main(["--sweep", sweep_file(tmp_path, **changes), "--workdir", str(tmp_path / "out")])
    == cli.EXIT_BAD_INPUT
  )
  assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "path", sorted(pathlib.Path("configs/sweeps").glob("[!_]*.py")), ids=lambda p: p.stem
)
def test_every_sweep_of_the_repository_is_valid(path, tmp_path, capsys):
  assert sweep.main(["--sweep", str(path), "--workdir", str(tmp_path / "out"), "--dry_run"]) == 0
  count = int(capsys.readouterr().out.split()[0])
  assert count >= 6 and not (tmp_path / "out").exists()


def test_trials_are_ranked_and_those_without_a_finite_metric_come_last(tmp_path):
  space = [{"product": {"optim.lr": (0.3, 0.5, 0.1, 0.2)}}]
  assert sweep.main(arguments(tmp_path, space=space)) == 0
  rows = table(tmp_path)
  assert [(row["rank"], row["optim.lr"]) for row in rows] == [
    ("1", "0.1"),
    ("2", "0.2"),
    ("3", "0.3"),
    ("", "0.5"),
  ]
  assert float(rows[0]["eval/loss"]) == pytest.approx(0.1 + 1 / 10) and rows[0]["step"] == "10"
  assert sweep.main([*arguments(tmp_path, space=space, goal="max"), "--report"]) == 0
  assert [row["optim.lr"] for row in table(tmp_path)] == ["0.3", "0.2", "0.1", "0.5"]
  assert sweep.main([*arguments(tmp_path, space=space, goal="max", pick="best"), "--report"]) == 0
  assert float(table(tmp_path)[0]["eval/loss"]) == pytest.approx(0.3 + 1 / 5)


def test_the_command_in_the_table_is_that_of_the_trial(tmp_path):
  assert sweep.main(arguments(tmp_path, overrides={"steps": 3, "optim.ema": (0.9,)})) == 0
  for row in table(tmp_path):
    assert row["command"].startswith(
      f"{sys.executable} -m launch.pretrain --config=configs/pretrain_geometry.py:fake --workdir="
    )
    assert (
      f"/{row['id']} " in row["command"]
      and f"--config.optim.lr={row['optim.lr']}" in row["command"]
    )
    assert "'--config.optim.ema=(0.9,)'" in row["command"] and "/compile_cache " in row["command"]
  assert len({row["id"] for row in table(tmp_path)}) == 3


def test_the_dead_are_tried_again_the_misconfigured_are_not_and_the_preempted_go_on(
  tmp_path, capsys
):
  script = {"0.1": [1, 0], "0.2": [1], "0.3": [2], "0.4": [75, 75, 75, 0]}
  assert (
    sweep.main(arguments(tmp_path, script, space=[{"product": {"optim.lr": (0.1, 0.2, 0.3, 0.4)}}]))
    == 1
  )
  rows = {row["optim.lr"]: row for row in table(tmp_path)}
  tries = {
    lr: len((tmp_path / "out" / row["id"] / "tries.txt").read_text()) for lr, row in rows.items()
  }
  assert {lr: row["status"] for lr, row in rows.items()} == {
    "0.1": "done",
    "0.2": "failed",
    "0.3": "failed",
    "0.4": "done",
  }
  assert tries == {"0.1": 2, "0.2": 2, "0.3": 1, "0.4": 4} and rows["0.2"]["exit_code"] == "1"
  assert "2 of 4 trials failed" in capsys.readouterr().err


def test_finished_trials_are_not_run_again_and_more_of_them_may_be_added_but_not_others(
  tmp_path, capsys
):
  assert sweep.main(arguments(tmp_path, space=[{"product": {"optim.lr": (0.1, 0.2)}}])) == 0
  assert sweep.main(arguments(tmp_path, space=[{"product": {"optim.lr": (0.1, 0.2, 0.3)}}])) == 0
  assert sorted(e for e in starts(tmp_path) if e.startswith("start")) == [
    "start 0.1",
    "start 0.2",
    "start 0.3",
  ]
  assert (
    sweep.main(arguments(tmp_path, space=[{"product": {"optim.lr": (0.1, 0.7)}}]))
    == cli.EXIT_BAD_INPUT
  )
  assert "give another --workdir" in capsys.readouterr().err


def test_the_others_wait_until_the_first_trial_has_compiled(tmp_path):
  assert sweep.main([*arguments(tmp_path), "--parallel", "3"]) == 0
  assert starts(tmp_path)[:2] == ["start 0.1", "compiled 0.1"]


def test_a_stopped_sweep_stops_its_trials_exits_75_and_goes_on_where_it_was(tmp_path):
  script = {"0.2": ["wait", 0]}
  command = [sys.executable, "-m", "launch.sweep", *arguments(tmp_path, script)]
  child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  deadline = time.monotonic() + 120
  while not ((tmp_path / "out" / "events.txt").exists() and "start 0.2" in starts(tmp_path)):
    assert child.poll() is None and time.monotonic() < deadline, child.stdout.read().decode()
    time.sleep(0.02)
  # a second sweep in the same folder
  assert sweep.main(arguments(tmp_path, script)) == cli.EXIT_BAD_INPUT
  child.send_signal(signal.SIGTERM)
  output = child.communicate()[0].decode()
  assert child.returncode == cli.EXIT_RETRY and "2 trials are left" in output, output
  assert sweep.main(arguments(tmp_path, script)) == 0
  assert {row["status"] for row in table(tmp_path)} == {"done"} and starts(tmp_path).count(
    "start 0.1"
  ) == 1


def test_the_report_is_one_page_with_a_curve_for_every_trial_and_nothing_to_fetch(tmp_path):
  space = [{"product": {"optim.lr": (0.1, 0.2), "optim.schedule": ("constant", "cosine")}}]
  assert sweep.main(arguments(tmp_path, space=space)) == 0
  page = (tmp_path / "out" / "report.html").read_text()
  # metric and loss; one scatter for each swept key
  assert page.count("<polyline") == 2 * 4 and page.count("<circle") == 2 * 4
  assert not re.search(r"https?:|src=|href=|<script", page) and "cosine" in page
  assert page.index(table(tmp_path)[0]["id"]) >= 0 and not list(
    (tmp_path / "out").glob(atomic.LEFTOVERS)
  )


def test_a_report_without_any_metric_yet_is_still_a_table(tmp_path):
  loaded = space.load(sweep_file(tmp_path))
  rows = report.write(loaded, tmp_path)
  assert [row["status"] for row in rows] == ["waiting"] * 3 and "<svg" not in (
    tmp_path / "report.html"
  ).read_text()
  assert trials.read_status(tmp_path / rows[0]["id"])["state"] == "waiting"

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
if code == 2:
  print("error: lr is wrong")
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
  """The file of a sweep over three learning rates, with some keys changed."""
  spec = {
    "command": "pretrain",
    "config": "configs/pretrain_geometry.py:fake",
    "space": over_lr(0.1, 0.2, 0.3),
    "metric": "eval/loss",
  }
  spec |= changes
  file = folder / "sweep_file.py"
  file.write_text(f"def get_sweep():\n  return {spec!r}\n")
  return str(file)


def over_lr(*rates: float) -> list[dict]:
  """The space of these learning rates."""
  return [{"product": {"optim.lr": rates}}]


def arguments(tmp_path, script=None, **changes) -> list[str]:
  """Of a sweep in tmp_path/out. script: learning rate -> exit code of each start of its trial."""
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
  """The ranking, row by row."""
  with (tmp_path / "out" / "table.csv").open() as file:
    return list(csv.DictReader(file))


def events(tmp_path) -> list[str]:
  """What the stand-ins did, in order: "start LR", "compiled LR"."""
  return (tmp_path / "out" / "events.txt").read_text().splitlines()


def test_blocks_multiply_and_zipped_values_move_together():
  blocks = [{"product": {"a": (1, 2), "b": (3, 4)}}, {"zip": {"c": (5, 6), "d": (7, 8)}}]
  trials = space.expand(blocks, "x")
  assert len(trials) == 8
  assert trials[0] == {"a": 1, "b": 3, "c": 5, "d": 7}
  assert trials[1] == {"a": 1, "b": 3, "c": 6, "d": 8}
  together = {(trial["c"], trial["d"]) for trial in trials}
  assert together == {(5, 7), (6, 8)}


def test_random_draws_stay_in_range_and_do_not_depend_on_the_other_keys_or_the_number_of_trials():
  draws = {"lr": {"log_uniform": (1e-5, 1e-2)}, "n": {"integer": (1, 3)}}
  with_another = {"w": {"uniform": (0, 1)}, **draws}

  def drawn(keys: dict, trials: int, seed: int) -> list[dict]:
    return space.expand([{"random": keys, "trials": trials, "seed": seed}], "x")

  some = drawn(draws, 20, seed=1)
  rates = [trial["lr"] for trial in some]
  assert all(1e-5 <= rate <= 1e-2 for rate in rates)
  assert min(rates) < 1e-4  # as many draws in every decade
  assert {trial["n"] for trial in some} == {1, 2, 3}

  more = drawn(with_another, 30, seed=1)
  assert [trial["lr"] for trial in more[:20]] == rates
  assert drawn(draws, 20, seed=2) != some


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
    ({"command": "sft"}, "this command runs sft: use launch.pretrain"),
    (
      {"space": [{"product": {"model.flow.heads": (2, 7)}}]},
      "{'model.flow.heads': 7}: model.flow.heads = 7 does not divide width = 16",
    ),
  ],
)
def test_a_wrong_sweep_is_refused_before_anything_starts(tmp_path, capsys, changes, words):
  file = sweep_file(tmp_path, **changes)
  out = tmp_path / "out"
  assert sweep.main(["--sweep", file, "--workdir", str(out)]) == cli.EXIT_BAD_INPUT
  assert words in capsys.readouterr().err
  assert not out.exists()


@pytest.mark.parametrize(
  "path", sorted(pathlib.Path("configs/sweeps").glob("[!_]*.py")), ids=lambda p: p.stem
)
def test_every_sweep_of_the_repository_is_valid(path, tmp_path, capsys):
  out = tmp_path / "out"
  assert sweep.main(["--sweep", str(path), "--workdir", str(out), "--dry_run"]) == 0
  count, *_ = capsys.readouterr().out.split()
  assert int(count) >= 6
  assert not out.exists()


def test_trials_are_ranked_and_those_without_a_finite_metric_come_last(tmp_path):
  # the stand-in gives lr + 1 / step at steps 5 and 10, and nothing for 0.5
  space = over_lr(0.3, 0.5, 0.1, 0.2)
  assert sweep.main(arguments(tmp_path, space=space)) == 0
  rows = table(tmp_path)
  assert [row["rank"] for row in rows] == ["1", "2", "3", ""]
  assert [row["optim.lr"] for row in rows] == ["0.1", "0.2", "0.3", "0.5"]
  assert float(rows[0]["eval/loss"]) == pytest.approx(0.1 + 1 / 10)
  assert rows[0]["step"] == "10"

  # the highest first
  highest = arguments(tmp_path, space=space, goal="max")
  assert sweep.main([*highest, "--report"]) == 0
  assert [row["optim.lr"] for row in table(tmp_path)] == ["0.3", "0.2", "0.1", "0.5"]

  # by the best value in place of the last
  best = arguments(tmp_path, space=space, goal="max", pick="best")
  assert sweep.main([*best, "--report"]) == 0
  assert float(table(tmp_path)[0]["eval/loss"]) == pytest.approx(0.3 + 1 / 5)


def test_the_command_in_the_table_is_that_of_the_trial(tmp_path):
  assert sweep.main(arguments(tmp_path, overrides={"steps": 3, "optim.ema": (0.9,)})) == 0
  rows = table(tmp_path)
  for row in rows:
    command = row["command"]
    assert command.startswith(
      f"{sys.executable} -m launch.pretrain --config=configs/pretrain_geometry.py:fake --workdir="
    )
    assert f"/{row['id']} " in command
    assert f"--config.optim.lr={row['optim.lr']}" in command
    assert "'--config.optim.ema=(0.9,)'" in command
    assert "/compile_cache " in command
  assert len({row["id"] for row in rows}) == 3


def test_the_dead_are_tried_again_the_misconfigured_are_not_and_the_preempted_go_on(
  tmp_path, capsys
):
  script = {"0.1": [1, 0], "0.2": [1], "0.3": [2], "0.4": [75, 75, 75, 0]}
  assert sweep.main(arguments(tmp_path, script, space=over_lr(0.1, 0.2, 0.3, 0.4))) == 1
  assert "2 of 4 trials failed" in capsys.readouterr().err

  rows = {row["optim.lr"]: row for row in table(tmp_path)}
  status = {lr: row["status"] for lr, row in rows.items()}
  assert status == {"0.1": "done", "0.2": "failed", "0.3": "failed", "0.4": "done"}
  assert rows["0.2"]["exit_code"] == "1"
  tries = {}
  for lr, row in rows.items():
    marks = (tmp_path / "out" / row["id"] / "tries.txt").read_text()
    tries[lr] = len(marks)
  assert tries == {"0.1": 2, "0.2": 2, "0.3": 1, "0.4": 4}


def test_the_first_cause_of_a_trial_that_fails_is_on_the_console(tmp_path, capsys):
  argv = arguments(tmp_path, {"0.2": [2]}, space=over_lr(0.1, 0.2))
  assert sweep.main(argv) == 1
  (failed,) = [row["id"] for row in table(tmp_path) if row["status"] == "failed"]
  log = tmp_path / "out" / failed / "log.txt"
  said = capsys.readouterr().err
  assert f"{failed} ended with code 2: error: lr is wrong (all of it is in {log})" in said


def test_the_cause_is_what_a_command_says_else_the_end_of_its_traceback():
  told = "plan\nerror: optim.lr = 0.0 is not a positive number\nclosed\n"
  assert trials.first_cause(told) == "error: optim.lr = 0.0 is not a positive number"
  traceback = "Traceback (most recent call last):\n  File x\nValueError: odd\n\n"
  assert trials.first_cause(traceback) == "ValueError: odd"
  assert trials.first_cause("") == "it said nothing"


def test_a_misspelt_metric_ends_the_sweep_with_those_that_there_are(tmp_path, capsys):
  argv = arguments(tmp_path, metric="eval/los")
  assert sweep.main(argv) == cli.EXIT_BAD_INPUT
  said = capsys.readouterr().err
  assert "metric = 'eval/los' is written by no trial; the nearest is 'eval/loss'" in said
  assert "there are eval/loss, loss" in said
  # the others were not tried, and go on once it is mended
  assert [event for event in events(tmp_path) if event.startswith("start")] == ["start 0.1"]
  assert sweep.main(arguments(tmp_path)) == 0
  assert {row["status"] for row in table(tmp_path)} == {"done"}
  # nor is a report of nothing made of those that are done
  argv = arguments(tmp_path, metric="eval/los")
  assert sweep.main([*argv, "--report"]) == cli.EXIT_BAD_INPUT
  assert "there are eval/loss, loss" in capsys.readouterr().err


def test_a_metric_may_come_later_than_others():
  steps = [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 1.0}]
  assert trials.missing_metric(steps, "eval/f1", done=False) == ""
  evaluated = [*steps, {"step": 10, "eval/loss": 1.0}]
  assert trials.missing_metric(evaluated, "eval/f1", done=False) == ""
  twice = [*evaluated, {"step": 20, "eval/loss": 1.0}]
  assert "there are eval/loss, loss" in trials.missing_metric(twice, "eval/f1", done=False)
  assert trials.missing_metric([*twice, {"step": 10, "eval/f1": 0.5}], "eval/f1", done=False) == ""


def test_finished_trials_are_not_run_again_and_more_of_them_may_be_added_but_not_others(
  tmp_path, capsys
):
  assert sweep.main(arguments(tmp_path, space=over_lr(0.1, 0.2))) == 0
  assert sweep.main(arguments(tmp_path, space=over_lr(0.1, 0.2, 0.3))) == 0
  starts = [event for event in events(tmp_path) if event.startswith("start")]
  assert sorted(starts) == ["start 0.1", "start 0.2", "start 0.3"]

  others = arguments(tmp_path, space=over_lr(0.1, 0.7))
  assert sweep.main(others) == cli.EXIT_BAD_INPUT
  assert "give another --workdir" in capsys.readouterr().err


def test_the_others_wait_until_the_first_trial_has_compiled(tmp_path):
  assert sweep.main([*arguments(tmp_path), "--parallel", "3"]) == 0
  assert events(tmp_path)[:2] == ["start 0.1", "compiled 0.1"]


def test_a_stopped_sweep_stops_its_trials_exits_75_and_goes_on_where_it_was(tmp_path):
  argv = arguments(tmp_path, {"0.2": ["wait", 0]})
  command = [sys.executable, "-m", "launch.sweep", *argv]
  child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  record = tmp_path / "out" / "events.txt"
  deadline = time.monotonic() + 120
  while not (record.exists() and "start 0.2" in events(tmp_path)):
    alive = child.poll() is None
    assert alive and time.monotonic() < deadline, child.stdout.read().decode()
    time.sleep(0.02)

  # a second sweep in the same folder
  assert sweep.main(argv) == cli.EXIT_BAD_INPUT
  child.send_signal(signal.SIGTERM)
  output, _ = child.communicate()
  said = output.decode()
  assert child.returncode == cli.EXIT_RETRY, said
  assert "2 trials are left" in said

  assert sweep.main(argv) == 0
  assert {row["status"] for row in table(tmp_path)} == {"done"}
  assert events(tmp_path).count("start 0.1") == 1


def test_the_report_is_one_page_with_a_curve_for_every_trial_and_nothing_to_fetch(tmp_path):
  space = [{"product": {"optim.lr": (0.1, 0.2), "optim.schedule": ("constant", "cosine")}}]
  assert sweep.main(arguments(tmp_path, space=space)) == 0
  out = tmp_path / "out"
  page = (out / "report.html").read_text()
  assert page.count("<polyline") == 2 * 4  # metric and loss of every trial
  assert page.count("<circle") == 2 * 4  # one scatter for each swept key
  assert not re.search(r"https?:|src=|href=|<script", page)
  assert "cosine" in page
  best, *_ = table(tmp_path)
  assert best["id"] in page
  assert not list(out.glob(atomic.LEFTOVERS))


def test_a_report_without_any_metric_yet_is_still_a_table(tmp_path):
  loaded = space.load(sweep_file(tmp_path))
  rows = report.write(loaded, tmp_path)
  assert [row["status"] for row in rows] == ["waiting"] * 3
  page = (tmp_path / "report.html").read_text()
  assert "<svg" not in page
  assert trials.read_status(tmp_path / rows[0]["id"])["state"] == "waiting"

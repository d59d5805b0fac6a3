"""What was acknowledged is stored, once, whatever happens to the server."""

import json
import pathlib
import random
import threading
import time

import pytest

from data_pipelines.engine import export, project, reports, simulate
from launch import build_data, engine, validate_data
from tests.support import engine_projects
from tests.support.jobs import free_port


@pytest.fixture(autouse=True)
def own_tokens(tmp_path, monkeypatch):
  """Servers and annotators of a test share their tokens, with nobody else."""
  monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))


def compared(folder: pathlib.Path, log: pathlib.Path) -> tuple[list, list]:
  """Keys that were acknowledged and are missing; keys that are stored twice."""
  made = project.read(folder)
  stored = [line["key"] for line in reports.decisions(made)]
  made.close()
  acknowledged = [json.loads(line)["key"] for line in log.read_text().splitlines()]
  lost = sorted(set(acknowledged) - set(stored))
  double = sorted(key for key in set(stored) if stored.count(key) > 1)
  assert len(set(acknowledged)) == len(acknowledged)
  return lost, double


def kill_at_random(folder: pathlib.Path, log: pathlib.Path, kills: int, decisions: int) -> int:
  """Simulated annotators against a server that is killed again and again."""
  port = free_port()
  # slow enough that the server is killed in the middle
  script = simulate.Script(f"http://127.0.0.1:{port}", 4, decisions, seed=3, think=0.15)
  servers = [engine_projects.start(folder, port)]
  done = threading.Event()
  rng = random.Random(0)

  def killer():
    for _ in range(kills):
      if done.wait(rng.uniform(0.1, 0.4)):
        return
      servers[-1].kill()
      servers[-1].wait()
      servers.append(engine_projects.start(folder, port))

  thread = threading.Thread(target=killer)
  thread.start()
  try:
    acknowledged = simulate.run(script, log).acknowledged
  finally:
    done.set()
    thread.join()
    servers[-1].kill()
    servers[-1].wait()
  assert len(servers) > 1, "the server was never killed"
  return acknowledged


def test_killing_the_server_loses_no_acknowledged_decision_and_stores_none_twice(tmp_path):
  made = engine_projects.make(tmp_path, objects=4, candidates=8)
  made.close()
  log = tmp_path / "log.jsonl"
  acknowledged = kill_at_random(tmp_path / "project", log, kills=2, decisions=30)
  assert acknowledged == 30
  assert compared(tmp_path / "project", log) == ([], [])


@pytest.mark.slow
def test_a_thousand_acknowledged_decisions_survive_many_kills(tmp_path):
  made = engine_projects.make(tmp_path, objects=4, candidates=260)
  made.close()
  log = tmp_path / "log.jsonl"
  started = time.monotonic()
  acknowledged = kill_at_random(tmp_path / "project", log, kills=40, decisions=1000)
  assert acknowledged == 1000
  assert compared(tmp_path / "project", log) == ([], [])
  print(f"1000 decisions under kills in {time.monotonic() - started:.0f} s")


def test_simulated_annotators_by_the_command_and_what_is_exported_is_built(tmp_path, capsys):
  """From a project to shards, by the commands alone; the same database gives the same bytes."""
  made = engine_projects.make(tmp_path, objects=3, candidates=3)
  folder = tmp_path / "project"
  log = tmp_path / "log.jsonl"
  port = free_port()
  with engine_projects.served(folder, port):
    url = f"http://127.0.0.1:{port}"
    words = ["simulate", "--url", url, "--annotators", "2", "--decisions", "100"]
    assert engine.main([*words, "--log", str(log), "--noise", "0"]) == 0
  # three chains of two choices, a rating and, of those that are good enough, a pose each
  found = reports.status(made)
  assert found["decisions"]["shape"] == {"choice": 6, "rating": 3}
  assert compared(folder, log) == ([], [])
  made.close()

  capsys.readouterr()
  assert engine.main(["status", "--project", str(folder), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["decisions"] == found["decisions"]
  assert engine.main(["decisions", "--project", str(folder)]) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert len(lines) == len(log.read_text().splitlines())
  assert {"key", "task", "kind"} <= set(lines[0])

  outs = [tmp_path / "a", tmp_path / "b"]
  for out in outs:
    words = ["export", "--project", str(folder), "--out", str(out)]
    assert engine.main([*words, "--iteration", "0", "--alpha", "0.5"]) == 0
  files = [sorted(path.relative_to(out) for path in out.rglob("*.*")) for out in outs]
  assert files[0] == files[1]
  for name in files[0]:
    assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name
  # a folder that holds something is left alone
  assert engine.main(["export", "--project", str(folder), "--out", str(outs[0])]) == 2

  items = outs[0] / export.ITEMS
  for builder, extra in (("mitl_3do", ("--config.min_rating=0.5",)), ("preferences", ())):
    data = tmp_path / builder
    words = ["--config", f"configs/data/{builder}.py", f"--config.source={items}"]
    assert build_data.main([*words, f"--config.out={data}", *extra]) == 0
    assert validate_data.main(["--data", str(data)]) == 0

"""What a run does when numbers go bad or nothing moves any more, and where its time went."""

import json
import threading
import time

import jax
from jax.sharding import AxisType
import numpy as np
import pytest

from launch import inspect
from launch.console import cli
from launch.console.progress import Progress, say
from sam3d_jax.errors import JobFailed
from sam3d_jax.training import ledger, loop, watchdog
from sam3d_jax.training.checkpointer import Checkpointer
from sam3d_jax.training.preemption import StopFlag
from sam3d_jax.training.step import GuardConfig
from tests.support.tiny_training import OPTIM, make, make_batch

GOOD_STEPS, IN_A_ROW = 4, 3


def batches_that_go_bad(first: int):
  """One pixel of every batch from GOOD_STEPS on is not a number."""
  for step in range(first, 100):
    batch = make_batch(step)
    if step >= GOOD_STEPS:
      batch.x[1, 2] = np.nan
    yield batch


def test_non_finite_inputs_stop_the_run_and_leave_the_last_good_checkpoint_and_the_examples_names(
  tmp_path,
):
  state, step_fn = make(guard=GuardConfig(max_in_a_row=IN_A_ROW))
  good = state
  for step in range(GOOD_STEPS):
    good, _ = step_fn(good, make_batch(step), np.float32(OPTIM.lr))
  mesh = jax.make_mesh(
    (1, 1, 1, 1), ("data", "fsdp", "tensor", "context"), axis_types=(AxisType.Auto,) * 4
  )
  job = loop.Job(
    cfg=loop.LoopConfig(steps=50, batch_size=8, log_every=1, checkpoint_every=2, eval_every=0),
    optim=OPTIM,
    guard=GuardConfig(max_in_a_row=IN_A_ROW),
    workdir=tmp_path,
    mesh=mesh,
    step_fn=step_fn,
    batches=batches_that_go_bad,
    counters=lambda: {"data/corrupt_records": 2.0, "data/read_retries": 1.0},
    evaluation=None,
    meta={"config": {"model": {}}, "lineage": {}},
    flops_per_sample=1.0,
    progress=Progress,
    tell=say,
  )
  checkpointer = Checkpointer(tmp_path, keep=3)
  with pytest.raises(JobFailed, match="3 steps in a row up to step 7"):
    loop.train(job, state, checkpointer, ledger.Ledger(tmp_path / "goodput.jsonl"), StopFlag())
  checkpointer.close()
  restored, meta = Checkpointer(tmp_path, keep=3).restore(jax.eval_shape(lambda: state))
  assert meta["step"] >= GOOD_STEPS and int(restored.skipped) == meta["step"] - GOOD_STEPS
  for kept, expected in (
    (restored.params, good.params),
    (restored.ema, good.ema),
    (restored.opt, good.opt),
  ):
    jax.tree.map(np.testing.assert_array_equal, kept, expected)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  for row in rows:
    assert row["data/corrupt_records"] == 2 and row["data/read_retries"] == 1
  skipped = [json.loads(line) for line in (tmp_path / "skipped_0.jsonl").read_text().splitlines()]
  keys = lambda step: [f"{a:08x}{b:08x}" for a, b in make_batch(step).key.tolist()]
  assert [(row["step"], row["keys"]) for row in skipped] == [
    (step + 1, keys(step)) for step in range(GOOD_STEPS, GOOD_STEPS + IN_A_ROW)
  ]


def wait_for(condition) -> None:
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_when_one_host_hangs_all_hosts_write_the_stacks_of_their_threads(tmp_path):
  release = threading.Event()

  def never_gets_its_data():
    release.wait()

  stuck, fine = (
    ledger.Ledger(tmp_path / "goodput.jsonl"),
    ledger.Ledger(tmp_path / "other.jsonl", write=False),
  )
  stuck.steps.extend([0.001] * 5)
  cfg = watchdog.WatchdogConfig(factor=2.0, seconds=0.05)
  reader = threading.Thread(target=never_gets_its_data)
  reader.start()
  stacks = lambda host: [p.read_text() for p in (tmp_path / "stacks").glob(f"*_host{host}.txt")]
  with (
    watchdog.Watchdog(fine, tmp_path, cfg, host=1, poll_seconds=0.01),
    watchdog.Watchdog(stuck, tmp_path, cfg, poll_seconds=0.01),
  ):
    with stuck.phase("step"):
      wait_for(
        lambda: (
          stacks(0)
          and stacks(1)
          and all("never_gets_its_data" in text for text in stacks(0) + stacks(1))
        )
      )
  release.set()
  reader.join()
  assert (
    "host 0 has been in phase step" in stacks(0)[0]
    and "another host asked; host 1 is in phase init" in stacks(1)[0]
  )
  assert [row["event"] for row in ledger.read(tmp_path / "goodput.jsonl")[0]] == ["stuck"]


def row(event: str, created: float, wall: float, step: int | None, **fields) -> dict:
  """A row of a ledger; the process was created at `created` and spends 10 s in init, 10 in compile
  and the rest in steps.
  """
  seconds = {
    "init": min(wall, 10),
    "compile": min(max(wall - 10, 0), 10),
    "step": max(wall - 20, 0),
  }
  return {
    "event": event,
    "unix_time": created + wall,
    "wall": wall,
    "step": step,
    "phase": "step",
    "seconds": seconds,
  } | fields


def test_goodput_counts_what_a_kill_made_undone_as_lost_and_sums_to_the_wall_time(tmp_path, capsys):
  first = [
    row("begin", 1000, 10, None, environment={"XLA_FLAGS": "--a=1"}),
    row("start", 1000, 20, 0),
    row("checkpoint", 1000, 60, 4),
    row("alive", 1000, 100, 8),
  ]
  second = [
    row("begin", 1110, 10, None, hosts=2, environment={"XLA_FLAGS": "--b=1"}),
    row("start", 1110, 20, 4),
    row("end", 1110, 60, 8, outcome="done"),
  ]
  (tmp_path / "goodput.jsonl").write_text(
    "".join(json.dumps(r) + "\n" for r in first + second) + '{"event": "al'
  )
  summary = ledger.summarize(ledger.read(tmp_path / "goodput.jsonl"))
  assert (
    summary["seconds"] == {"init": 20, "compile": 20, "step": 80, "lost": 40, "down": 10}
    and summary["wall"] == 170
  )
  assert inspect.main(["--goodput", str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert "2 starts" in out and "goodput 47.1%" in out and "lost" in out and "23.5%" in out
  assert "start 1: steps 0 to 8, 100.0 s, no end recorded (killed, or still running)" in out
  assert "start 2: steps 4 to 8, 60.0 s, done" in out and "XLA_FLAGS=--b=1" in out


def test_goodput_of_a_folder_without_a_ledger_is_refused(tmp_path, capsys):
  assert inspect.main(["--goodput", str(tmp_path)]) == cli.EXIT_BAD_INPUT
  assert "goodput.jsonl" in capsys.readouterr().err

"""Where the wall time of a run went, as lines of text."""

from collections.abc import Iterator
import pathlib
from typing import Any

from sam3d_jax.errors import InputError
from sam3d_jax.training import ledger


def phases(workdir: str) -> Iterator[str]:
  """Seconds by phase over all starts of a run, one line a start, the last one's environment."""
  path = pathlib.Path(workdir) / "goodput.jsonl"
  processes = ledger.read(path) if path.is_file() else []
  if not processes:
    raise InputError(f"{path} holds no ledger: give the work folder of a run that was started")
  yield from ledger.table(ledger.summarize(processes))
  for number, rows in enumerate(processes, 1):
    yield f"start {number}: {_start(rows)}"
  for name, value in processes[-1][0].get("environment", {}).items():
    yield f"  {name}={value}"


def _start(rows: list[dict[str, Any]]) -> str:
  """Steps, duration and end of one process."""
  last = rows[-1]
  started = [row["step"] for row in rows if row["event"] == "start"]
  steps = "no step"
  if started and started[0] is not None:
    steps = f"steps {started[0]} to {last['step']}"
  end = last.get("outcome", "no end recorded (killed, or still running)")
  stuck = sum(row["event"] == "stuck" for row in rows)
  said = f", stuck {stuck} times" if stuck else ""
  return f"{steps}, {last['wall']:.1f} s, {end}{said}"

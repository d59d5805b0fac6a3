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

  # the whole run
  summary = ledger.summarize(processes)
  yield from ledger.table(summary)

  # every start of it, and where the last one ran
  for number, rows in enumerate(processes, 1):
    yield f"start {number}: {_start(rows)}"
  started = processes[-1][0]
  for name, value in started.get("environment", {}).items():
    yield f"  {name}={value}"


def _start(rows: list[dict[str, Any]]) -> str:
  """Steps, duration and end of one process."""
  last = rows[-1]

  # from which step to which
  steps = "no step"
  for row in rows:
    if row["event"] == "start":
      if row["step"] is not None:
        steps = f"steps {row['step']} to {last['step']}"
      break

  # how it ended, and how often it hung
  end = last.get("outcome", "no end recorded (killed, or still running)")
  stuck = sum(row["event"] == "stuck" for row in rows)
  if stuck:
    end += f", stuck {stuck} times"
  seconds = last["wall"]
  return f"{steps}, {seconds:.1f} s, {end}"

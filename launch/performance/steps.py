"""Training steps as configured, measured: time, rate, utilisation, input wait, memory; and the
table of docs/benchmarks.md that the figures are written into.
"""

import dataclasses
import datetime
import pathlib
import platform
import time

import jax
import numpy as np

from launch.performance import kernels
from launch.trainer import lowering, plan, starting
from launch.trainer.setup import prepare
from sam3d_jax.sharding import mesh as mesh_lib
from sam3d_jax.training import hardware
from sam3d_jax.training.state import init_state

WARM_UP = 2  # steps that are not counted: the first ones load kernels and fill queues
TRACED = 2  # steps under the profiler
SECTION = "## Measured steps"
COLUMNS = (
  "date",
  "configuration",
  "device, versions",
  "batch",
  "step ms, median / p90",
  "samples/s a chip",
  "MFU",
  "input wait",
  "CPU s a step",
  "start-up s",
  "memory a device",
  "input alone, samples/s; command",
)
HEADER = f"""
{SECTION}
One row a run of `launch.benchmark --write`; ms are wall time, CPU s those of the whole process.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
"""


@dataclasses.dataclass
class Times:
  """Of one step, in seconds: getting a batch (beside the computation, where devices compute on
  their own), wall time in all, CPU time of the process.
  """

  wait: float
  whole: float
  cpu: float


class Side:
  """One configuration, ready to step."""

  def __init__(self, config):
    begin = time.monotonic()
    self.setup = setup = prepare(config)
    self.startup = {"init": time.monotonic() - begin}
    begin = time.monotonic()
    start = lambda: init_state(
      setup.optim, setup.random_params(), keep_reference=setup.keeps_reference
    )
    self.state = jax.block_until_ready(starting.run_once(start, setup.shardings))
    self.startup["parameters"] = time.monotonic() - begin
    begin = time.monotonic()
    self.compiled = lowering.step(setup).compile()
    self.step_fn = lowering.bind(self.compiled, config)
    self.startup["compile"] = time.monotonic() - begin
    begin = time.monotonic()
    self.batches = setup.train_loader.iterate(0)
    self.batch = self.next_batch()
    self.startup["first batch"] = time.monotonic() - begin
    self.times: list[Times] = []
    self.pending, self.mark = (), clocks()

  def next_batch(self):
    """The next batch, on its way to the devices."""
    self.rows = next(self.batches)
    return mesh_lib.place_batch(self.setup.mesh, self.rows)

  def step(self, *, counted: bool, ahead: bool = False) -> None:
    """One step. Waits until it is done or, with `ahead`, until the one before it is: then a step's
    time is that from end to end.
    """
    begin = self.mark if ahead else clocks()
    self.state, metrics = self.step_fn(self.state, self.batch, np.float32(1e-6))
    dispatched = time.monotonic()
    self.batch = self.next_batch()
    read = time.monotonic() - dispatched
    jax.block_until_ready(self.pending if ahead else metrics)
    self.pending, self.mark = metrics, clocks()
    if counted:
      self.times.append(
        Times(read, *(end - start for start, end in zip(begin, self.mark, strict=True)))
      )

  def report(self, batches: int) -> dict:
    """All figures. Reads `batches` batches more, without training, for the rate of the input
    pipeline alone.
    """
    jax.block_until_ready(self.state)
    config, mesh = self.setup.config, self.setup.mesh
    kind = mesh.devices.flat[0].device_kind
    times = timing(self.times, config.batch_size / mesh.size)
    full, each = (
      hardware.full_rate(kind, plan.model_flops(self.setup)),
      times["samples_per_second_per_chip"],
    )
    begin = time.monotonic()
    for _ in range(batches):
      self.rows = next(self.batches)
    alone = batches * len(self.rows.key) / (time.monotonic() - begin)
    return {
      **times,
      "config": f"{config.stage} {config.model.name}",
      "device": f"{mesh.size} x {kind}",
      "batch_size": config.batch_size,
      "versions": f"jax {jax.__version__}",
      "mfu": None if full is None else each / full,
      "model_flops_per_sample": plan.model_flops(self.setup),
      "input_samples_per_second": alone,
      "startup_seconds": self.startup,
      "memory_bytes": memory(self.compiled, mesh.devices.flat[0]),
    }


def trace(side: Side, folder: pathlib.Path) -> None:
  """Profiles two steps and prints the time of a GPU by kind of kernel and by kernel, as far as the
  trace has any.
  """
  with jax.profiler.trace(folder):
    for _ in range(TRACED):
      side.step(counted=False)
  print(f"{TRACED} steps are traced in {folder}")
  found = kernels.read(folder)
  if found:
    print(
      "a GPU was busy "
      f"with\n{kernels.text(found, kernels.sources(side.compiled.as_text()), steps=TRACED)}"
    )


def clocks() -> tuple[float, float]:
  """Wall time and CPU time of this process."""
  return time.monotonic(), time.process_time()


def timing(times: list[Times], samples_per_chip: float) -> dict:
  """What both kinds of sides measure alike."""
  whole = np.array([t.whole for t in times])
  return {
    "python": platform.python_version(),
    "date": datetime.date.today().isoformat(),
    "steps": len(times),
    "step_seconds": {"median": float(np.median(whole)), "p90": float(np.quantile(whole, 0.9))},
    "cpu_seconds_per_step": float(np.median([t.cpu for t in times])),
    "samples_per_second_per_chip": samples_per_chip / float(np.median(whole)),
    "input_wait_share": sum(t.wait for t in times) / float(whole.sum()),
  }


def memory(compiled, device) -> int:
  """Most bytes in use on a device so far; where it does not count them, what the compiler planned
  for the step.
  """
  counted = device.memory_stats() or {}
  planned = compiled.memory_analysis()
  return counted.get("peak_bytes_in_use") or (
    planned.argument_size_in_bytes
    + planned.output_size_in_bytes
    - planned.alias_size_in_bytes
    + planned.temp_size_in_bytes
  )


def known(value, form: str) -> str:
  """A figure in a format, a dash where there is none."""
  return "–" if value is None else format(value, form)


def memory_text(report: dict) -> str:
  return "–" if report["memory_bytes"] is None else plan.size(report["memory_bytes"])


def text(report: dict) -> str:
  """The report for people."""
  step, startup = (
    report["step_seconds"],
    ", ".join(f"{k} {s:.1f}" for k, s in report["startup_seconds"].items()),
  )
  return (
    f"{report['config']} on {report['device']}, batch {report['batch_size']}, {report['steps']} "
    "steps\n"
    f"  step {step['median'] * 1e3:.4g} ms median, {step['p90'] * 1e3:.4g} ms p90, "
    f"{report['cpu_seconds_per_step']:.3g} CPU s\n"
    f"  {report['samples_per_second_per_chip']:.4g} samples/s a chip, MFU "
    f"{known(report['mfu'], '.1%')}, waiting for input "
    f"{report['input_wait_share']:.1%}; input alone "
    f"{known(report['input_samples_per_second'], '.4g')} samples/s\n"
    f"  start-up {startup} s; memory {memory_text(report)} a device"
  )


def row(report: dict) -> str:
  """The report as a row of the document's table."""
  step = report["step_seconds"]
  machine = f"{report['device']}, {report['versions']}, Python {report['python']}"
  cells = (
    report["date"],
    report["config"],
    machine,
    report["batch_size"],
    f"{step['median'] * 1e3:.4g} / {step['p90'] * 1e3:.4g}",
    f"{report['samples_per_second_per_chip']:.4g}",
    known(report["mfu"], ".1%"),
    f"{report['input_wait_share']:.1%}",
    f"{report['cpu_seconds_per_step']:.3g}",
    f"{sum(report['startup_seconds'].values()):.3g}",
    memory_text(report),
    known(report["input_samples_per_second"], ".4g"),
  )
  return f"| {' | '.join(map(str, cells))} |"


def write(document: pathlib.Path, rows: list[str], command: str) -> None:
  """Appends rows to the table of measured steps, made at the end of the document if it is not
  there; the last cell ends in the command.
  """
  old = document.read_text().rstrip("\n") + "\n" if document.exists() else ""
  if SECTION not in old:
    old += HEADER
  before, section, after = old.partition(SECTION)
  lines = after.splitlines()
  last = max(i for i, line in enumerate(lines) if line.startswith("|"))
  lines[last + 1 : last + 1] = [f"{r[:-2]} <br> `{command}` |" for r in rows]
  document.write_text(before + section + "\n".join(lines) + "\n")

"""Training steps as configured, measured: time, rate, utilisation, input wait, memory; and the
table of docs/benchmarks.md that the figures are written into.
"""

import contextlib
import dataclasses
import datetime
import pathlib
import platform
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from launch.performance import kernels
from launch.trainer import lowering, plan, starting
from launch.trainer.setup import prepare
from sam3d_jax.sharding import mesh as mesh_lib
from sam3d_jax.training import hardware
from sam3d_jax.training.state import TrainState, init_state

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

  def __init__(self, config: ConfigDict):
    """Prepares a run as launch.trainer.train does, and keeps how long each part of it took."""
    self.startup: dict[str, float] = {}
    with self._timed("init"):
      self.setup = setup = prepare(config)

    def start() -> TrainState:
      params = setup.random_params()
      return init_state(setup.optim, params, keep_reference=setup.keeps_reference)

    with self._timed("parameters"):
      self.state = jax.block_until_ready(starting.run_once(start, setup.shardings))
    with self._timed("compile"):
      self.compiled = lowering.step(setup).compile()
      self.step_fn = lowering.bind(self.compiled, config)
    with self._timed("first batch"):
      self.batches = setup.train_loader.iterate(0)
      self.batch = self.next_batch()

    self.times: list[Times] = []
    self.pending = ()  # what the devices may still be computing
    self.mark = clocks()  # at the end of the last step

  @contextlib.contextmanager
  def _timed(self, part: str):
    """Keeps the wall time of a part of the start."""
    begin = time.monotonic()
    yield
    self.startup[part] = time.monotonic() - begin

  def next_batch(self):
    """The next batch, on its way to the devices."""
    self.rows = next(self.batches)
    return mesh_lib.place_batch(self.setup.mesh, self.rows)

  def step(self, *, counted: bool, ahead: bool = False) -> None:
    """One step. Waits until it is done or, with `ahead`, until the one before it is: then a step's
    time is that from end to end.
    """
    # dispatched: the devices may still be at the step before it
    begin = self.mark if ahead else clocks()
    self.state, metrics = self.step_fn(self.state, self.batch, np.float32(1e-6))
    # the next batch is read while the devices compute
    dispatched = time.monotonic()
    self.batch = self.next_batch()
    read = time.monotonic() - dispatched
    jax.block_until_ready(self.pending if ahead else metrics)
    self.pending = metrics
    self.mark = clocks()
    if counted:
      wall, cpu = (end - start for start, end in zip(begin, self.mark, strict=True))
      self.times.append(Times(read, wall, cpu))

  def report(self, batches: int) -> dict:
    """All figures. Reads `batches` batches more, without training, for the rate of the input
    pipeline alone.
    """
    jax.block_until_ready(self.state)
    config, mesh = self.setup.config, self.setup.mesh
    device = mesh.devices.flat[0]

    # The rate of the steps, and what share of the hardware's it is.
    times = timing(self.times, config.batch_size / mesh.size)
    model_flops = plan.model_flops(self.setup)
    full = hardware.full_rate(device.device_kind, model_flops)
    mfu = None
    if full is not None:
      mfu = times["samples_per_second_per_chip"] / full

    # The input pipeline alone.
    begin = time.monotonic()
    for _ in range(batches):
      self.rows = next(self.batches)
    seconds = time.monotonic() - begin

    return {
      **times,
      "config": f"{config.stage} {config.model.name}",
      "device": f"{mesh.size} x {device.device_kind}",
      "batch_size": config.batch_size,
      "versions": f"jax {jax.__version__}",
      "mfu": mfu,
      "model_flops_per_sample": model_flops,
      "input_samples_per_second": batches * len(self.rows.key) / seconds,
      "startup_seconds": self.startup,
      "memory_bytes": memory(self.compiled, device),
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
    sources = kernels.sources(side.compiled.as_text())
    print(f"a GPU was busy with\n{kernels.text(found, sources, steps=TRACED)}")


def clocks() -> tuple[float, float]:
  """Wall time and CPU time of this process."""
  return time.monotonic(), time.process_time()


def timing(times: list[Times], samples_per_chip: float) -> dict:
  """What both kinds of sides measure alike."""
  # medians: a step that something disturbed should not count
  whole = np.array([step.whole for step in times])
  cpu = np.array([step.cpu for step in times])
  waited = sum(step.wait for step in times)
  median = float(np.median(whole))
  return {
    "python": platform.python_version(),
    "date": datetime.date.today().isoformat(),
    "steps": len(times),
    "step_seconds": {"median": median, "p90": float(np.quantile(whole, 0.9))},
    "cpu_seconds_per_step": float(np.median(cpu)),
    "samples_per_second_per_chip": samples_per_chip / median,
    "input_wait_share": waited / float(whole.sum()),
  }


def memory(compiled, device) -> int:
  """Most bytes in use on a device so far; where it does not count them, what the compiler planned
  for the step.
  """
  counted = device.memory_stats() or {}
  most = counted.get("peak_bytes_in_use")
  if most:
    return most
  # donated arguments are not counted twice
  planned = compiled.memory_analysis()
  return (
    planned.argument_size_in_bytes
    + planned.output_size_in_bytes
    - planned.alias_size_in_bytes
    + planned.temp_size_in_bytes
  )


def known(value, form: str) -> str:
  """A figure in a format, a dash where there is none."""
  return "–" if value is None else format(value, form)


def memory_text(report: dict) -> str:
  """Memory of a device, a dash where it is not known."""
  taken = report["memory_bytes"]
  return "–" if taken is None else plan.size(taken)


def text(report: dict) -> str:
  """The report for people."""
  # milliseconds, and what may not be known
  step = report["step_seconds"]
  median, p90 = step["median"] * 1e3, step["p90"] * 1e3
  startup = ", ".join(f"{part} {s:.1f}" for part, s in report["startup_seconds"].items())
  mfu = known(report["mfu"], ".1%")
  alone = known(report["input_samples_per_second"], ".4g")
  return (
    f"{report['config']} on {report['device']}, batch {report['batch_size']}, {report['steps']} "
    "steps\n"
    f"  step {median:.4g} ms median, {p90:.4g} ms p90, "
    f"{report['cpu_seconds_per_step']:.3g} CPU s\n"
    f"  {report['samples_per_second_per_chip']:.4g} samples/s a chip, MFU {mfu}, "
    f"waiting for input {report['input_wait_share']:.1%}; input alone {alone} samples/s\n"
    f"  start-up {startup} s; memory {memory_text(report)} a device"
  )


def row(report: dict) -> str:
  """The report as a row of the document's table."""
  # in the order of COLUMNS; the last cell is completed by `write`
  step = report["step_seconds"]
  median, p90 = step["median"] * 1e3, step["p90"] * 1e3
  startup = sum(report["startup_seconds"].values())
  machine = f"{report['device']}, {report['versions']}, Python {report['python']}"
  cells = (
    report["date"],
    report["config"],
    machine,
    report["batch_size"],
    f"{median:.4g} / {p90:.4g}",
    f"{report['samples_per_second_per_chip']:.4g}",
    known(report["mfu"], ".1%"),
    f"{report['input_wait_share']:.1%}",
    f"{report['cpu_seconds_per_step']:.3g}",
    f"{startup:.3g}",
    memory_text(report),
    known(report["input_samples_per_second"], ".4g"),
  )
  return f"| {' | '.join(map(str, cells))} |"


def write(document: pathlib.Path, rows: list[str], command: str) -> None:
  """Appends rows to the table of measured steps, made at the end of the document if it is not
  there; the last cell ends in the command.
  """
  old = ""
  if document.exists():
    old = document.read_text().rstrip("\n") + "\n"
  if SECTION not in old:
    old += HEADER

  # behind the last row of the section's table
  before, section, after = old.partition(SECTION)
  lines = after.splitlines()
  last = max(number for number, line in enumerate(lines) if line.startswith("|"))
  added = [row.removesuffix(" |") + f" <br> `{command}` |" for row in rows]
  lines[last + 1 : last + 1] = added
  document.write_text(before + section + "\n".join(lines) + "\n")

"""Measures training as configured on the devices at hand: step time, samples/s a chip, MFU, waiting
for input, start-up, memory.

    python -m launch.benchmark --config configs/midtrain_os_geometry.py --config.data.kind=fake --steps 30 --write

`--vs FILE[:VARIANT]` measures a second configuration in the same run, taking turns step by step, so
that both see the same machine; `--config.KEY=VALUE` goes to the first, `--vs_set KEY=VALUE` to the
second. `--torch` takes turns with the same model, parameters and batches in eager PyTorch on this
CPU (launch/performance/torch_twin.py). `--write` appends a row for each to docs/benchmarks.md. Parameters are
random and nothing is saved. A configuration that is measured alone runs as in the training loop,
which hands a step to the devices before the one before it is finished, and reads the next batch
meanwhile; where two take turns, every step is waited for.

`--trace DIR` traces two further steps of the first configuration with JAX's profiler (for XProf or
Perfetto) and prints where the time of an NVIDIA GPU goes, kernel by kernel.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import pathlib
import platform
import shlex
import sys
import time

from launch.console import cli
from launch.console.progress import Progress
from launch.trainer import checks, plan
from sam3d_jax.errors import ConfigError

TWIN_NEEDS = {
  "model.flow.dtype": "float32",
  "model.condition.dtype": "float32",
  "model.condition.dino.dtype": "float32",
  "optim.trainable": ".*",
  "optim.frozen": "",
  "optim.weight_decay": 0.0,
  "lora.targets": "",
  "accumulate": 1,
}
WARM_UP = 2  # steps that are not counted: the first ones load kernels and fill queues
TRACED = 2  # steps under the profiler
DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks.md"
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


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--vs",
    metavar="FILE[:VARIANT]",
    help="a second configuration, measured in turns with the first",
  )
  parser.add_argument(
    "--vs_set",
    metavar="KEY=VALUE",
    action="append",
    default=[],
    help="sets a key of the second configuration",
  )
  parser.add_argument(
    "--torch",
    action="store_true",
    help="measured in turns with the same training step in eager PyTorch, fp32, on CPU",
  )
  parser.add_argument(
    "--steps", type=int, default=20, help="measured steps of each, after two that are not counted"
  )
  parser.add_argument(
    "--trace",
    metavar="DIR",
    help="profile two further steps into this folder; on a GPU prints its kernels by time",
  )
  parser.add_argument(
    "--write", action="store_true", help="append a row for each to docs/benchmarks.md"
  )
  parser.add_argument("--json", metavar="FILE", help="write the figures here")


def run(args: argparse.Namespace) -> int:
  if args.steps < 1:
    raise ConfigError(f"--steps {args.steps} is not a positive number")
  if args.vs_set and not args.vs:
    raise ConfigError("--vs_set needs --vs FILE")
  if args.write and not DOCUMENT.parent.is_dir():
    raise ConfigError("--write appends to docs/benchmarks.md of a checkout; use --json FILE here")
  configs = {"config": args.config}
  if args.vs:
    configs["vs"] = cli.load_config(args.vs, [f"--config.{pair}" for pair in args.vs_set])
  for config in configs.values():
    checks.check(config, (config.stage,))
  if args.torch:
    check_torch(args)
  sides = {name: Side(config) for name, config in configs.items()}
  if args.torch:
    sides["torch"] = TorchSide(sides["config"])
  try:
    with Progress((WARM_UP + args.steps) * len(sides), "measuring", "steps") as progress:
      for i in range(WARM_UP + args.steps):
        for side in sides.values():
          side.step(counted=i >= WARM_UP, ahead=len(sides) == 1)
          progress.update(1)
    if args.trace:
      trace(sides["config"], pathlib.Path(args.trace))
    reports = {name: side.report(args.steps) for name, side in sides.items()}
  finally:
    for side in sides.values():
      side.batches.close()
  for name, report in reports.items():
    print(f"{name}: {text(report)}")
  for other in set(sides) - {"config"}:
    ratio = reports[other]["step_seconds"]["median"] / reports["config"]["step_seconds"]["median"]
    print(f"a step of --{other} takes {ratio:.3f} times that of --config")
    reports["ratio"] = ratio
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(reports, indent=2) + "\n")
  if args.write:
    write(
      DOCUMENT,
      [row(reports[name]) for name in sides],
      shlex.join(["python", "-m", "launch.benchmark", *sys.argv[1:]]),
    )
  return 0


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
    import jax

    from launch.trainer import lowering, starting
    from launch.trainer.setup import prepare
    from sam3d_jax.training.state import init_state

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
    from sam3d_jax.sharding import mesh as mesh_lib

    self.rows = next(self.batches)
    return mesh_lib.place_batch(self.setup.mesh, self.rows)

  def step(self, *, counted: bool, ahead: bool = False) -> None:
    """One step. Waits until it is done or, with `ahead`, until the one before it is: then a step's
    time is that from end to end.
    """
    import jax
    import numpy as np

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
    import jax

    from sam3d_jax.training import hardware

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


class TorchSide:
  """The same model, parameters and batches as another side's, in eager PyTorch on CPU."""

  def __init__(self, side: Side):
    import numpy as np

    from launch.performance import torch_twin
    from sam3d_jax.models import registry

    begin, self.config, optim, objective = (
      time.monotonic(),
      side.setup.config,
      side.setup.optim,
      side.setup.config.objective,
    )
    model = torch_twin.Geometry(registry.typed_config(self.config.model))
    model.load({path: np.asarray(leaf) for path, leaf in side.state.params.items()})
    self.training = torch_twin.Training(
      model,
      weights=dict(objective.weights),
      lr=1e-6,
      betas=(optim.b1, optim.b2),
      eps=optim.eps,
      clip_norm=optim.clip_norm,
      decay=optim.ema[0],
      drop_condition=objective.drop_condition,
      time_mean=objective.time_mean,
      time_std=objective.time_std,
    )
    self.startup = {"parameters": time.monotonic() - begin}
    self.batches = side.setup.train_loader.iterate(0)
    self.times: list[Times] = []

  def step(self, *, counted: bool, ahead: bool = False) -> None:
    """One training step, until its loss is known."""
    del ahead  # takes turns
    from launch.performance import torch_twin

    begin, cpu = time.monotonic(), time.process_time()
    rows = next(self.batches)
    wait = time.monotonic() - begin
    self.training.step(*torch_twin.tensors(rows))
    if counted:
      self.times.append(Times(wait, time.monotonic() - begin, time.process_time() - cpu))

  def report(self, batches: int) -> dict:
    """The figures that Side.report gives, as far as they make sense here: the input pipeline is the
    other side's.
    """
    del batches
    import torch

    return {
      **timing(self.times, self.config.batch_size),
      "config": f"{self.config.stage} {self.config.model.name}, PyTorch eager",
      "device": "1 x cpu",
      "batch_size": self.config.batch_size,
      "versions": f"torch {torch.__version__}",
      "mfu": None,
      "startup_seconds": self.startup,
      "memory_bytes": None,
      "input_samples_per_second": None,
    }


def trace(side: Side, folder: pathlib.Path) -> None:
  """Profiles two steps and prints the time of a GPU by kind of kernel and by kernel, as far as the
  trace has any.
  """
  import jax

  from launch.performance import kernels

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


def check_torch(args: argparse.Namespace) -> None:
  """Raises ConfigError or InputError where the twin would not be the same computation on the same
  hardware.
  """
  import jax

  from sam3d_jax.models import registry
  from sam3d_jax.torch_bridge import load

  c = args.config
  if args.vs:
    raise ConfigError("--torch and --vs both name a second side: give one of them")
  if c.model.name != "geometry" or c.objective.name != "flow_matching":
    raise ConfigError(
      "--torch: PyTorch has a twin of flow matching with the Geometry model, not of stage "
      f"{c.stage}, model {c.model.name}"
    )
  settings = c.to_dict()
  value = lambda key: functools.reduce(
    lambda section, name: section[name], key.split("."), settings
  )
  others = [
    f"{key}={needed!r} (it is {value(key)!r})"
    for key, needed in TWIN_NEEDS.items()
    if value(key) != needed
  ]
  others += ["optim.clip_norm above 0"] * (c.optim.clip_norm == 0) + ["one decay in optim.ema"] * (
    len(c.optim.ema) != 1
  )
  if others:
    raise ConfigError(
      f"--torch: the PyTorch twin is one plain fp32 training step; set {', '.join(others)}"
    )
  load.require_torch("--torch")
  from launch.performance import torch_twin

  torch_twin.check(registry.typed_config(c.model).condition)
  torch_twin.check_flow(registry.typed_config(c.model).flow)
  if jax.default_backend() != "cpu" or jax.device_count() != 1:
    raise ConfigError(
      f"--torch runs on one CPU device, here are {jax.device_count()} x {jax.default_backend()}: "
      "set JAX_PLATFORMS=cpu"
    )


def clocks() -> tuple[float, float]:
  """Wall time and CPU time of this process."""
  return time.monotonic(), time.process_time()


def timing(times: list[Times], samples_per_chip: float) -> dict:
  """What both kinds of sides measure alike."""
  import numpy as np

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


if __name__ == "__main__":
  raise SystemExit(main())

"""One configuration measured, or two in turns, or one and its twin in PyTorch."""

import contextlib
import dataclasses
import functools
import json
import operator
import pathlib

import jax
from ml_collections import ConfigDict

from launch.console.progress import Progress
from launch.performance import steps
from launch.performance.compiled import without_data
from launch.trainer import plan
from launch.trainer.setup import prepare
from sam3d_jax.errors import ConfigError
from sam3d_jax.files import atomic
from sam3d_jax.models import registry
from sam3d_jax.torch_bridge import load

# what a configuration must say for its PyTorch twin to be the same computation
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
TWIN_OF = ("geometry", "flow_matching")  # model and objective that the PyTorch twin is written for


@dataclasses.dataclass(frozen=True)
class ComparisonSpec:
  """What is measured, and where the figures go.

  config: the first configuration. vs: the second, measured in turns with it, or None. torch: the
  second is the first in eager PyTorch. steps: that are counted. trace: folder for a profile of
  further steps. json: file for the figures. document: file with the table that gets a row for each,
  ending in `command`; None: none.
  """

  config: ConfigDict
  vs: ConfigDict | None
  torch: bool
  steps: int
  trace: pathlib.Path | None
  json: pathlib.Path | None
  document: pathlib.Path | None
  command: str


def measure(spec: ComparisonSpec) -> None:
  """Measures and prints. Raises ConfigError or InputError where that cannot be done."""
  if spec.torch:
    check_torch(spec)
  with contextlib.ExitStack() as opened:
    # One side or two, ready to step.
    first = steps.Side(spec.config)
    opened.callback(first.batches.close)
    sides = {"config": first}
    if spec.vs is not None:
      sides["vs"] = steps.Side(spec.vs)
      opened.callback(sides["vs"].batches.close)
    if spec.torch:
      # PyTorch is optional; check_torch has found it
      from launch.performance.torch_side import TorchSide

      sides["torch"] = TorchSide(first)
      opened.callback(sides["torch"].batches.close)

    take_turns(sides, spec.steps)
    if spec.trace is not None:
      steps.trace(first, spec.trace)
    reports = {name: side.report(spec.steps) for name, side in sides.items()}
  write(spec, reports)


def rehearse(spec: ComparisonSpec) -> None:
  """Prints the plan of every configuration; measures nothing. Raises ConfigError or InputError."""
  if spec.torch:
    check_torch(spec)
  for config in (spec.config, spec.vs):
    if config is not None:
      print(plan.text(prepare(without_data(config))))
  print(f"would measure {spec.steps} steps of each")


def take_turns(sides: dict, counted: int) -> None:
  """Steps of every side, one after the other, so that all see the same machine."""
  total = steps.WARM_UP + counted
  alone = len(sides) == 1
  with Progress(total * len(sides), "measuring", "steps") as progress:
    for number in range(total):
      counted_now = number >= steps.WARM_UP
      for side in sides.values():
        side.step(counted=counted_now, ahead=alone)
        progress.update(1)


def write(spec: ComparisonSpec, reports: dict[str, dict]) -> None:
  """Prints the figures of each side, and puts them where they were asked for."""
  rows = [steps.row(report) for report in reports.values()]
  for name, report in reports.items():
    print(f"{name}: {steps.text(report)}")

  # There is at most one other side.
  medians = {name: report["step_seconds"]["median"] for name, report in reports.items()}
  first = medians.pop("config")
  for other, median in medians.items():
    ratio = median / first
    print(f"a step of --{other} takes {ratio:.3f} times that of --config")
    reports = {**reports, "ratio": ratio}

  if spec.json is not None:
    atomic.write_text(spec.json, json.dumps(reports, indent=2) + "\n")
  if spec.document is not None:
    steps.write(spec.document, rows, spec.command)


def check_torch(spec: ComparisonSpec) -> None:
  """Raises ConfigError or InputError where the twin would not be the same computation on the same
  hardware.
  """
  # What is asked for: one more side, of the model and objective that have a twin.
  config = spec.config
  if spec.vs is not None:
    raise ConfigError("--torch and --vs both name a second side: give one of them")
  if (config.model.name, config.objective.name) != TWIN_OF:
    raise ConfigError(
      "--torch: PyTorch has a twin of flow matching with the Geometry model, not of stage "
      f"{config.stage}, model {config.model.name}"
    )

  # Settings that would make it another computation, all named at once.
  settings = config.to_dict()
  others = []
  for key, needed in TWIN_NEEDS.items():
    value = functools.reduce(operator.getitem, key.split("."), settings)
    if value != needed:
      others.append(f"{key}={needed!r} (it is {value!r})")
  if config.optim.clip_norm == 0:
    others.append("optim.clip_norm above 0")
  if len(config.optim.ema) != 1:
    others.append("one decay in optim.ema")
  if others:
    raise ConfigError(
      f"--torch: the PyTorch twin is one plain fp32 training step; set {', '.join(others)}"
    )

  # PyTorch is there, and both run on the same hardware.
  load.require_torch("--torch")
  # PyTorch is optional
  from launch.performance import torch_twin

  typed = registry.typed_config(config.model)
  torch_twin.check(typed.condition)
  torch_twin.check_flow(typed.flow)
  devices, backend = jax.device_count(), jax.default_backend()
  if (devices, backend) != (1, "cpu"):
    raise ConfigError(
      f"--torch runs on one CPU device, here are {devices} x {backend}: set JAX_PLATFORMS=cpu"
    )

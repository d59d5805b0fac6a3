"""A configuration's training step compiled for described devices: whether it fits, what it sends
between chips, and a bound on how fast it can be.
"""

from collections.abc import Sequence
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from launch.performance import hlo
from launch.performance.hlo import Collective
from launch.trainer import lowering, plan
from launch.trainer.setup import Setup, prepare
from sam3d_jax.models import registry
from sam3d_jax.training import compilation, hardware
from sam3d_jax.training.hardware import Chip

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def without_data(config: ConfigDict, **changes) -> ConfigDict:
  """A copy that reads no data and evaluates nothing, with dotted keys (`model__flow__remat` or
  `"model.flow.remat"`) changed; the step is the same.
  """
  # random batches of the same shapes; nothing that opens a folder
  copy = ConfigDict(config.to_dict(), convert_dict=True)
  copy.data.kind = "fake"
  copy.eval.every = 0
  copy.compile_cache = ""
  if "decoder" in copy.eval:
    copy.eval.decoder = ""
  for key, value in changes.items():
    dotted = key.replace("__", ".")
    copy.update_from_flattened_dict({dotted: value})
  copy.lock()
  return copy


def measure(config: ConfigDict, devices: Sequence[jax.Device]) -> dict[str, Any]:
  """The report of a configuration on described devices, as launch.aot writes it.

  A step that the compiler refuses for want of memory has `fits` False and no collectives. Bounds
  are there only for chips whose figures are known.
  """
  # What is known before anything is compiled.
  setup = prepare(config, devices=devices)
  chip = hardware.chip(devices[0].device_kind)
  report = described(setup, devices, chip)

  # Lower and compile. A compiler that lacks memory says how much, which is an answer.
  start = time.monotonic()
  lowered = lowering.step(setup)
  report["fingerprint"] = compilation.fingerprint(lowered)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    temporaries = out_of_memory(str(error))
    if temporaries is None:
      raise
    return report | {
      "fits": False,
      "hbm_bytes": temporaries + sum(report["state_bytes"].values()),
      "collectives": None,
      "compile_seconds": time.monotonic() - start,
    }
  report["compile_seconds"] = time.monotonic() - start

  # What the program needs and sends.
  memory = compiled.memory_analysis()
  used = bytes_used(memory)
  slices = [slice_of(device) for device in setup.mesh.devices.flat]
  found = hlo.collectives(compiled.as_text(), slices)
  report |= {
    "fits": chip is None or used <= chip.memory,
    "hbm_bytes": used,
    "temporary_bytes": memory.temp_size_in_bytes,
    "collectives": hlo.summary(found),
  }
  if chip is None:
    return report
  executed = plan.model_flops(setup, plain=False)
  return report | bounds(report, found, memory, executed, chip, devices)


def described(setup: Setup, devices: Sequence[jax.Device], chip: Chip | None) -> dict[str, Any]:
  """The part of the report that needs no program."""
  config = setup.config
  return {
    "chips": len(devices),
    "device_kind": devices[0].device_kind,
    "mesh": {axis: int(size) for axis, size in setup.mesh.shape.items()},
    "batch_size": config.batch_size,
    "batch_per_chip": config.batch_size / len(devices),
    "accumulate": config.accumulate,
    "remat": registry.remat_policy(config.model),
    "state_bytes": plan.bytes_per_device(setup.abstract_state),
    "hbm_capacity_bytes": chip.memory if chip else None,
    "model_flops_per_sample": plan.model_flops(setup),
  }


def bytes_used(memory) -> int:
  """Memory of a chip while the program runs; donated arguments are not counted twice."""
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )


def slice_of(device: jax.Device) -> int:
  """The slice that a device is part of; 0 where there are no slices."""
  return getattr(device, "slice_index", 0) or 0


def out_of_memory(message: str) -> int | None:
  """Bytes of temporaries that the compiler says it needs in an error about memory; None for any
  other error.
  """
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  # several may be named: all temporaries together are the most
  amounts = re.findall(r"(?:temporaries \(|[Uu]sed |requires? )([\d.]+)([KMGT])i?B?", message)
  sizes = [int(float(number) * UNITS[unit]) for number, unit in amounts]
  return max(sizes, default=0)


def bounds(
  report: dict[str, Any],
  found: Sequence[Collective],
  memory,
  executed: float,
  chip: Chip,
  devices: Sequence[jax.Device],
) -> dict[str, Any]:
  """Times that no implementation on the same mesh can beat: products at peak, memory traffic,
  links; and the utilisation they allow.

  Memory traffic counts state and batch read and written once and temporaries written and read once.
  Transfers are taken as perfectly hidden behind arithmetic, so the bound is the largest of the
  four, not their sum.

  Args:
    report: of the same step, so far.
    found: its collectives.
    memory: the compiler's analysis of the program.
    executed: FLOPs of a sample as the program does them.
    chip: what one device can do.
    devices: all of them.
  """
  # what a chip reads from its memory and writes to it
  samples = report["batch_per_chip"]
  traffic = (
    memory.argument_size_in_bytes + memory.output_size_in_bytes + 2 * memory.temp_size_in_bytes
  )

  # What a chip sends to others of its slice, and to other slices.
  within = sum(c.traffic for c in found if not c.crosses)
  crossing = sum(c.traffic for c in found if c.crosses)
  if not crossing:
    slices = len({slice_of(device) for device in devices})
    crossing = between_slices(report["state_bytes"]["params"], report["mesh"]["data"], slices)

  seconds = {
    "compute": executed * samples / chip.peak,
    "memory": traffic / chip.bandwidth,
    "link": within / chip.link,
    "network": crossing / chip.network,
  }
  bound = max(seconds.values())
  return {
    "bound_seconds": seconds,
    "step_seconds_lower_bound": bound,
    "samples_per_second_per_chip_upper_bound": samples / bound,
    "mfu_upper_bound": report["model_flops_per_sample"] * samples / (bound * chip.peak),
  }


def between_slices(params_bytes: int, data: int, slices: int) -> float:
  """Bytes that a chip must send to other slices in a step, where the program moves them outside its
  collectives (as TPU programs do).

  Gradients in 2 bytes, half of the chip's fp32 parameters, first summed and split among the chips
  of a slice that hold the same ones.
  """
  return 2 * (slices - 1) / slices * params_bytes / 2 / max(1, data // slices)

"""A configuration's training step, or the largest batch of it, for hardware that is not there."""

import dataclasses
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from launch.console import machines
from launch.performance import planning, search, topologies
from launch.performance.compiled import measure, without_data
from launch.performance.counting import xla_flops_per_sample
from launch.performance.estimate import MARGIN, Recipe
from launch.trainer import checks, plan, setup
from launch.trainer.plan import size
from sam3d_jax.files import atomic
from sam3d_jax.models import registry


@dataclasses.dataclass(frozen=True)
class AheadSpec:
  """What is compiled, and where the report goes.

  topology: as topologies.described_devices takes it, `slices` of them. policies: names of
  rematerialisation policies, comma-separated, for each of which the largest batch is searched, all
  of them if empty; None: the step is compiled as configured. json: file for the report.
  """

  config: ConfigDict
  topology: str
  slices: int = 1
  policies: str | None = None
  json: pathlib.Path | None = None


def run(spec: AheadSpec) -> bool:
  """Compiles and prints: whether the step, or any batch that was tried, fits.

  Raises ConfigError or InputError for what cannot be compiled.
  """
  # What to compile, and for what.
  config = without_data(spec.config)
  checks.check(config, (config.stage,))
  setup.read(config)
  policies = None if spec.policies is None else search.searched(spec.policies, config)
  if topologies.is_gpu(spec.topology):
    return estimated(spec)
  devices = topologies.described_devices(spec.topology, spec.slices)
  report = {
    "config": str(spec.config.stage),
    "topology": spec.topology,
    "slices": spec.slices,
  }

  # One program as configured, or as many as the search asks for.
  if policies is None:
    report |= measure(config, devices)
    report["xla_flops_per_step"] = xla_flops_per_sample(config) * config.batch_size
    report["gpus"] = on_gpus(config, report["mesh"])
    fits = report["fits"]
    print(text(report))
  else:
    report["search"] = search.search(config, devices, policies)
    fits = any(row["batch_per_chip"] for row in report["search"])
  if spec.json is not None:
    atomic.write_text(spec.json, json.dumps(report, indent=2) + "\n")
  return fits


def estimated(spec: AheadSpec) -> bool:
  """`run` for GPUs, of which nothing is compiled: the verdict of launch/performance/estimate.py."""
  machine = topologies.machine_of(spec.topology, spec.slices)
  recipe = Recipe(spec.config.stage, spec.config)
  prepared = setup.prepare(without_data(spec.config), devices=machine.devices())
  mesh = {axis: int(size) for axis, size in prepared.mesh.shape.items()}
  family = on_gpus(spec.config, mesh)[machine.family]
  report = {
    "config": str(spec.config.stage),
    "topology": spec.topology,
    "slices": spec.slices,
    "estimated": True,
    "chips": machine.chips,
    "device_kind": machine.kind,
    "mesh": mesh,
    "batch_size": spec.config.batch_size,
    "model_flops_per_sample": recipe.flops,
    "xla_flops_per_step": None,
    "collectives": None,
    "compile_seconds": 0.0,
    **family,
  }
  fits = family["fits"]
  print(f"{machine.name}: {gpu_verdict(machine.family, family)}")

  # The largest batch of every policy that was asked for.
  if spec.policies is not None:
    rows = []
    for policy in search.searched(spec.policies, spec.config):
      most = recipe.largest(
        machine.platform, family["hbm_capacity_bytes"], fsdp=mesh["fsdp"], policy=policy
      )
      rows.append({"remat": policy, "batch_per_shard": most})
      print(f"remat {policy or '-'}: {most} samples on a shard, estimated")
    report["search"] = rows
    fits = any(row["batch_per_shard"] for row in rows)
  print("Estimated, not compiled: docs/planning.md has the error.")
  if not fits:
    print(f"What does fit: python -m launch.plan --on {spec.topology}")
  if spec.json is not None:
    atomic.write_text(spec.json, json.dumps(report, indent=2) + "\n")
  return fits


def on_gpus(config: ConfigDict, mesh: dict[str, int]) -> dict[str, dict[str, Any]]:
  """GPU -> estimated bytes, capacity and verdict of a chip, for a run on such a mesh; {} for models
  whose memory is not estimated.
  """
  if registry.lookup(config.model.name).activations is None:
    return {}
  recipe = Recipe(config.stage, config)
  shards = mesh["data"] * mesh["fsdp"]
  needed = recipe.memory(
    "gpu",
    fsdp=mesh["fsdp"],
    policy=recipe.remat,
    at_once=config.batch_size / config.accumulate / shards,
    accumulate=config.accumulate,
  )
  verdicts = {}
  for name, family in machines.FAMILIES.items():
    if family.platform == "gpu":
      capacity = planning.usable(machines.Machine(name, 1))
      verdicts[name] = {
        "fits": needed.total * MARGIN <= capacity,
        "hbm_bytes": needed.total,
        "hbm_capacity_bytes": capacity,
      }
  return verdicts


def gpu_verdict(name: str, found: dict[str, Any]) -> str:
  """The verdict on one kind of GPU, for people."""
  verdict = "fits" if found["fits"] else "DOES NOT FIT"
  needed, capacity = size(found["hbm_bytes"]), size(found["hbm_capacity_bytes"])
  return f"{name} {verdict} ({needed} of {capacity})"


def rehearse(spec: AheadSpec) -> None:
  """Prints what would be compiled; needs no compiler. Raises ConfigError for what could not be."""
  config = without_data(spec.config)
  checks.check(config, (config.stage,))
  if spec.policies is not None:
    search.searched(spec.policies, config)

  # The devices are described here, not by their compiler.
  machine = topologies.machine_of(spec.topology, spec.slices)
  prepared = setup.prepare(config, devices=machine.devices())
  print(f"would compile for {machine.name}")
  print(plan.text(prepared))


def text(report: dict[str, Any]) -> str:
  """The report for people."""
  lines = [what(report), memory(report), arithmetic(report)]
  for kind, row in (report["collectives"] or {}).items():
    arrays = size(row["bytes"])
    sent = size(row["traffic"])
    lines.append(f"  {kind}: {row['count']} a step, arrays {arrays}, sent by a chip {sent}")
  if "bound_seconds" in report:
    lines.append(bound(report))
  if report["gpus"]:
    verdicts = [gpu_verdict(name, found) for name, found in report["gpus"].items()]
    listed = ", ".join(verdicts)
    lines.append(f"the same mesh and batch on GPUs, estimated: {listed}")
  return "\n".join(lines)


def what(report: dict[str, Any]) -> str:
  """What was compiled, on how much."""
  # the hardware
  topology = report["topology"]
  if report["slices"] > 1:
    topology += f" x {report['slices']}"
  axes = [f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1]
  mesh = " x ".join(axes) or "one device"

  # the program
  batch = f"{report['batch_size']} ({report['batch_per_chip']:g} a chip"
  parts = f"in {report['accumulate']} parts)"
  remat = report["remat"] or "-"
  seconds = report["compile_seconds"]
  return (
    f"{report['chips']} x {report['device_kind']} ({topology}), mesh {mesh}, "
    f"batch {batch}, {parts}, remat {remat}; "
    f"compiled in {seconds:.0f} s, program {report['fingerprint']}"
  )


def memory(report: dict[str, Any]) -> str:
  """How much of a chip's memory it takes."""
  needed, capacity = size(report["hbm_bytes"]), report["hbm_capacity_bytes"]
  there_is = "unknown" if capacity is None else size(capacity)
  verdict = "fits" if report["fits"] else "DOES NOT FIT"
  # the part of it that stays from step to step
  state = [f"{kind} {size(taken)}" for kind, taken in report["state_bytes"].items()]
  return f"memory a chip {needed} of {there_is}: {verdict} (state {', '.join(state)})"


def arithmetic(report: dict[str, Any]) -> str:
  """What a sample costs, counted in two ways."""
  closed = report["model_flops_per_sample"] / 1e12
  counted = report["xla_flops_per_step"] / report["batch_size"] / 1e12
  return (
    f"FLOPs a sample: model {closed:.2f} T in closed form, {counted:.2f} T counted by XLA "
    "as executed"
  )


def bound(report: dict[str, Any]) -> str:
  """How fast it can be at best."""
  parts = [f"{kind} {seconds * 1e3:.1f} ms" for kind, seconds in report["bound_seconds"].items()]
  rate = report["samples_per_second_per_chip_upper_bound"]
  return (
    f"at least {', '.join(parts)} a step: at most {rate:.2f} samples/s a chip, MFU "
    f"{report['mfu_upper_bound']:.0%}. A bound from shapes, not a measurement."
  )

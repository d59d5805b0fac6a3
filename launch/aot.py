r"""Compiles a configuration's training step for hardware that is not there; fit and cost.

    python -m launch.aot --config configs/pretrain_geometry.py --topology v5p:8x8x8 \
        --config.mesh.fsdp=8 --json report.json

The step is the one that `launch.trainer.train` runs: same code, shardings and donation.
`--topology` is a TPU slice as `v5p:4x4x4`, `v5e:16x16` or `v6e:16x16` (needs requirements-tpu.txt,
no TPU), several of them with `--slices N`, or `cpu:N` for N host devices. No data and no checkpoint
is read. Exit code 1 if the step does not fit the memory of a chip. `--search attention,full` finds
the largest batch a chip for each of these rematerialisation policies, in about five compilations
each.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import sys
import time

from ml_collections import ConfigDict

from launch.console import cli
from sam3d_jax.errors import ConfigError, InputError

SEARCHED_UP_TO = 64  # samples a chip
FIRST_GUESS = 4
# no probing for a real TPU
QUIET = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  # compiling holds no chip, so several may compile at once
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--topology", required=True, help="what to compile for: v5p:4x4x4, v5e:16x16, v6e:16x16, cpu:8"
  )
  parser.add_argument(
    "--slices", type=int, default=1, help="number of such slices, joined by the data-centre network"
  )
  parser.add_argument("--json", metavar="FILE", help="write the report here")
  parser.add_argument(
    "--search",
    nargs="?",
    const="",
    metavar="POLICY,...",
    help="find the largest batch per chip for each rematerialisation policy, or for those named",
  )


def run(args: argparse.Namespace) -> int:
  config = without_data(args.config)
  policies = None if args.search is None else searched(args.search, config)
  devices = described_devices(args.topology, args.slices)
  report = {"config": str(args.config.stage), "topology": args.topology, "slices": args.slices}
  if policies is not None:
    report["search"] = search(config, devices, policies)
    fits = any(row["batch_per_chip"] for row in report["search"])
  else:
    report |= measure(config, devices) | {
      "xla_flops_per_step": xla_flops_per_sample(config) * config.batch_size
    }
    fits = report["fits"]
    print(text(report))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(report, indent=2) + "\n")
  return 0 if fits else 1


def described_devices(topology: str, slices: int):
  """Devices of a topology. Raises ConfigError if there is no such topology, InputError without
  libtpu.
  """
  platform, _, size = topology.partition(":")
  if platform == "cpu" and size.isdigit():
    return host_devices(int(size))
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  for name, value in QUIET.items():
    os.environ.setdefault(name, value)
  import importlib.util

  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      f"--topology {topology} needs the TPU compiler: pip install -r requirements-tpu.txt (no TPU "
      "is needed)"
    )
  import jax
  from jax.experimental import topologies

  try:
    described = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **({"num_slices": slices} if slices > 1 else {})
    )
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise ConfigError(
      f"--topology {topology}: {str(error).splitlines()[0]} (examples: v5p:4x4x4, v5e:16x16, "
      "v6e:16x16)"
    ) from error
  return described.devices


def host_devices(count: int):
  """`count` devices of this host's CPU."""
  import jax

  # JAX is already running, as in tests: what there is must do
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", count)
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise ConfigError(f"--topology cpu:{count}: this process has {len(devices)} CPU devices")
  return devices[:count]


def without_data(config: ConfigDict, **changes) -> ConfigDict:
  """A copy that reads no data and evaluates nothing, with dotted keys (`model__flow__remat`)
  changed; the step is the same.
  """
  copy = ConfigDict(config.to_dict(), convert_dict=True)
  copy.data.kind, copy.eval.every, copy.compile_cache = "fake", 0, ""
  if "decoder" in copy.eval:
    copy.eval.decoder = ""
  for key, value in changes.items():
    copy.update_from_flattened_dict({key.replace("__", "."): value})
  copy.lock()
  return copy


def measure(config: ConfigDict, devices) -> dict:
  """The report of a configuration on described devices."""
  import jax

  from launch.performance import hlo
  from launch.trainer import lowering, plan
  from launch.trainer.setup import prepare
  from sam3d_jax.training import hardware

  setup = prepare(config, devices=devices)
  chips, chip = len(devices), hardware.chip(devices[0].device_kind)
  capacity = chip.memory if chip else None
  report = {
    "chips": chips,
    "device_kind": devices[0].device_kind,
    "mesh": {k: int(n) for k, n in setup.mesh.shape.items()},
    "batch_size": config.batch_size,
    "batch_per_chip": config.batch_size / chips,
    "accumulate": config.accumulate,
    "remat": config.model.get("flow", {}).get("remat", ""),
    "state_bytes": plan.bytes_per_device(setup.abstract_state),
    "hbm_capacity_bytes": capacity,
    "model_flops_per_sample": plan.model_flops(setup),
  }
  start = time.monotonic()
  lowered = lowering.step(setup)
  report["fingerprint"] = lowering.fingerprint(lowered)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = out_of_memory(str(error))
    if needed is None:
      raise
    return report | {
      "fits": False,
      "hbm_bytes": needed + sum(report["state_bytes"].values()),
      "collectives": None,
      "compile_seconds": time.monotonic() - start,
    }
  report["compile_seconds"] = time.monotonic() - start
  memory = compiled.memory_analysis()
  used = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  slices = [getattr(d, "slice_index", 0) or 0 for d in setup.mesh.devices.flat]
  found = hlo.collectives(compiled.as_text(), slices)
  report |= {
    "fits": capacity is None or used <= capacity,
    "hbm_bytes": used,
    "temporary_bytes": memory.temp_size_in_bytes,
    "collectives": hlo.summary(found),
  }
  return report | (
    bounds(report, found, memory, plan.model_flops(setup, plain=False), chip, devices)
    if chip
    else {}
  )


def between_slices(params_bytes: int, data: int, slices: int) -> float:
  """Bytes that a chip must send to other slices in a step, where the program moves them outside its
  collectives (as TPU programs do).

  Gradients in 2 bytes, half of the chip's fp32 parameters, first summed and split among the chips
  of a slice that hold the same ones.
  """
  return 2 * (slices - 1) / slices * params_bytes / 2 / max(1, data // slices)


def out_of_memory(message: str) -> int | None:
  """Bytes of temporaries that the compiler says it needs in an error about memory; None for any
  other error.
  """
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  amounts = re.findall(r"(?:temporaries \(|[Uu]sed |requires? )([\d.]+)([KMGT])i?B?", message)
  scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  return max((int(float(n) * scale[unit]) for n, unit in amounts), default=0)


def bounds(report: dict, found, memory, executed: float, chip, devices) -> dict:
  """Times that no implementation on the same mesh can beat: products at peak, memory traffic,
  links; and the utilisation they allow.

  Memory traffic counts state and batch read and written once and temporaries written and read once.
  Transfers are taken as perfectly hidden behind arithmetic, so the bound is the largest of the
  four, not their sum.
  """
  slices = len({getattr(d, "slice_index", 0) or 0 for d in devices})
  crossing = sum(c.traffic for c in found if c.crosses) or between_slices(
    report["state_bytes"]["params"], report["mesh"]["data"], slices
  )
  traffic = (
    memory.argument_size_in_bytes + memory.output_size_in_bytes + 2 * memory.temp_size_in_bytes
  )
  seconds = {
    "compute": executed * report["batch_per_chip"] / chip.peak,
    "memory": traffic / chip.bandwidth,
    "link": sum(c.traffic for c in found if not c.crosses) / chip.link,
    "network": crossing / chip.network,
  }
  bound = max(seconds.values())
  return {
    "bound_seconds": seconds,
    "step_seconds_lower_bound": bound,
    "samples_per_second_per_chip_upper_bound": report["batch_per_chip"] / bound,
    "mfu_upper_bound": report["model_flops_per_sample"]
    * report["batch_per_chip"]
    / (bound * chip.peak),
  }


def xla_flops_per_sample(config: ConfigDict) -> float:
  """XLA's own count of the step's FLOPs for one sample, element-wise operations and the optimiser's
  share included.

  Counted on programs of one device with XLA attention, no rematerialisation and stacks unrolled, at
  one and two layers of each stack, then scaled to the configured depths: its cost analysis counts
  the body of a loop once and a kernel as nothing.
  """
  import jax

  from launch.trainer import lowering
  from launch.trainer.setup import prepare
  from sam3d_jax.models import layers

  rows = 4  # enough for an objective that treats a quarter of its rows in another way
  plain = {"batch_size": rows, "accumulate": 1} | {
    f"mesh__{a}": 1 for a in ("data", "fsdp", "tensor", "context", "dcn_data")
  }
  stacks = {}
  if "flow" in config.model:
    stacks = {
      "model__flow": config.model.flow.depth,
      "model__condition__dino": config.model.condition.dino.depth,
    }
    plain |= {f"{s}__{k}": v for s in stacks for k, v in (("attention", "xla"), ("remat", "none"))}

  def count(depths: dict[str, int]) -> float:
    setup = prepare(
      without_data(config, **plain, **{f"{s}__depth": n for s, n in depths.items()}),
      devices=jax.devices("cpu")[:1],
    )
    with layers.unrolled():
      return lowering.step(setup).cost_analysis()["flops"]

  shallow = dict.fromkeys(stacks, 1)
  base = count(shallow)
  return (
    base + sum((depth - 1) * (count(shallow | {s: 2}) - base) for s, depth in stacks.items())
  ) / rows


def searched(names: str, config: ConfigDict) -> tuple[str, ...]:
  """The policies that --search names, all if it names none; one without a name if the model has
  none. Raises ConfigError.
  """
  from sam3d_jax.models.layers import REMAT_POLICIES

  if "flow" not in config.model:
    if names:
      raise ConfigError(
        f"--search {names}: this model has no rematerialisation policies; --search alone finds its "
        "largest batch"
      )
    return ("",)
  policies = tuple(names.split(",")) if names else REMAT_POLICIES
  for policy in policies:
    if policy not in REMAT_POLICIES:
      raise ConfigError(f"--search {names}: {policy!r} is not one of {', '.join(REMAT_POLICIES)}")
  return policies


def search(config: ConfigDict, devices, policies: tuple[str, ...]) -> list[dict]:
  """The largest batch a chip that fits, for each rematerialisation policy; it and the next larger
  one were both compiled.
  """
  from launch.trainer import plan
  from sam3d_jax.sharding.mesh import BATCH_AXES, MeshConfig, axis_sizes

  sizes = axis_sizes(MeshConfig(**config.mesh.to_dict()), len(devices))
  ways = sizes[BATCH_AXES[0]] * sizes[BATCH_AXES[1]]
  capacity, rows = capacity_of(devices), []
  for policy in policies:
    tried: dict[int, dict] = {}

    def compile_at(rows_per_way: int, policy=policy, tried=tried) -> dict:
      if rows_per_way not in tried:
        changes = {"batch_size": rows_per_way * ways, "accumulate": 1} | (
          {"model__flow__remat": policy} if policy else {}
        )
        report = tried[rows_per_way] = measure(without_data(config, **changes), devices)
        print(
          f"  remat {policy or '-'}, {rows_per_way} samples on each of {ways} shards: "
          f"{plan.size(report['hbm_bytes'])}, "
          f"{'fits' if report['fits'] else 'does not fit'}; compiled in "
          f"{report['compile_seconds']:.0f} s",
          file=sys.stderr,
          flush=True,
        )
      return tried[rows_per_way]

    # The compiler may refuse a program without saying how much it lacks.
    needed = lambda n, of=compile_at: (
      of(n)["hbm_bytes"] if of(n)["fits"] else max(of(n)["hbm_bytes"], capacity + 1)
    )
    best = largest(needed, capacity)
    rows.append(
      {
        "remat": policy,
        "batch_per_shard": best,
        "batch_per_chip": best * ways / len(devices),
        "hbm_bytes": tried[best]["hbm_bytes"] if best else None,
      }
    )
    print(f"remat {policy or '-'}: {rows[-1]['batch_per_chip']:g} samples a chip", flush=True)
  return rows


def capacity_of(devices) -> float:
  """Memory of a described chip. Raises ConfigError where it is not known."""
  from sam3d_jax.training import hardware

  chip = hardware.chip(devices[0].device_kind)
  if chip is None:
    raise ConfigError(f"--search: the memory of a {devices[0].device_kind} is not known")
  return chip.memory


def largest(bytes_at, capacity: float) -> int:
  """The largest n up to SEARCHED_UP_TO with bytes_at(n) <= capacity, 0 if not even one has.

  Every call is a compilation of minutes. bytes_at grows about evenly, so the next n to try is where
  a line meets the capacity: that through the largest n known to fit and the least known not to, as
  long as there is none of these through the two largest that fit.
  """
  used = {1: bytes_at(1)}
  if used[1] > capacity:
    return 0
  fits, too_many, n = 1, SEARCHED_UP_TO + 1, FIRST_GUESS
  while True:
    used[n] = bytes_at(n)
    fits, too_many = (n, too_many) if used[n] <= capacity else (fits, n)
    if too_many - fits == 1:
      return fits
    low, high = (fits, too_many) if too_many in used else sorted(m for m in used if m <= fits)[-2:]
    slope = max(1.0, (used[high] - used[low]) / (high - low))
    n = min(max(fits + int((capacity - used[fits]) / slope), fits + 1), too_many - 1)


def text(report: dict) -> str:
  """The report for people."""
  from launch.trainer.plan import size

  gib = lambda n: size(n) if n is not None else "unknown"
  mesh = " x ".join(f"{axis} {n}" for axis, n in report["mesh"].items() if n > 1) or "one device"
  lines = [
    f"{report['chips']} x {report['device_kind']} "
    f"({report['topology']}{' x ' + str(report['slices']) if report['slices'] > 1 else ''}), "
    f"mesh {mesh}, batch {report['batch_size']} ({report['batch_per_chip']:g} a chip, in "
    f"{report['accumulate']} parts), "
    f"remat {report['remat'] or '-'}; compiled in {report['compile_seconds']:.0f} s, program "
    f"{report['fingerprint']}",
    f"memory a chip {gib(report['hbm_bytes'])} of {gib(report['hbm_capacity_bytes'])}: "
    + ("fits" if report["fits"] else "DOES NOT FIT")
    + " (state "
    + ", ".join(f"{k} {size(n)}" for k, n in report["state_bytes"].items())
    + ")",
    f"FLOPs a sample: model {report['model_flops_per_sample'] / 1e12:.2f} T in closed form, "
    f"{report['xla_flops_per_step'] / report['batch_size'] / 1e12:.2f} T counted by XLA "
    "as executed",
  ]
  for kind, row in (report["collectives"] or {}).items():
    lines.append(
      f"  {kind}: {row['count']} a step, arrays {size(row['bytes'])}, sent by a chip "
      f"{size(row['traffic'])}"
    )
  if "bound_seconds" in report:
    lines.append(
      "at least "
      + ", ".join(f"{k} {s * 1e3:.1f} ms" for k, s in report["bound_seconds"].items())
      + f" a step: at most {report['samples_per_second_per_chip_upper_bound']:.2f} samples/s a "
      "chip, "
      f"MFU {report['mfu_upper_bound']:.0%}. A bound from shapes, not a measurement."
    )
  return "\n".join(lines)


if __name__ == "__main__":
  raise SystemExit(main())

"""What a decoder of the second stage takes of a chip that is not there: one row of voxels, forward,
and forward with backward.
"""

from collections.abc import Callable
import dataclasses
import pathlib
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from launch.performance import topologies
from launch.performance.compiled import bytes_used, out_of_memory
from launch.trainer.plan import size
from sam3d_jax.errors import ConfigError
from sam3d_jax.files import atomic
from sam3d_jax.geometry.packing import BLOCK, VoxelLevel, WindowOrder
from sam3d_jax.models import registry
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.training import hardware

# kind of model -> the module of it that decodes
DECODERS = {"slat_gaussian": "gaussian", "slat_mesh": "mesh"}
OBJECTS = 8  # that the row holds at most


@dataclasses.dataclass(frozen=True)
class DecodingSpec:
  """What is compiled. config: its model. voxels: slots of the row. json: file for the figures."""

  config: ConfigDict
  voxels: int = 32_768
  json: pathlib.Path | None = None

  def __post_init__(self):
    if self.voxels < 1 or self.voxels % BLOCK:
      raise ConfigError(f"--voxels {self.voxels} is not a positive multiple of {BLOCK}")
    name = self.config.model.name
    if name not in DECODERS:
      raise ConfigError(f"--voxels: model.name = {name!r} is not one of {', '.join(DECODERS)}")


def compile_for(spec: DecodingSpec, topology: str) -> bool:
  """Compiles for one chip of a topology, prints what it needs and returns whether it fits.

  Call topologies.prepare_environment first. Raises ConfigError or InputError as
  topologies.described_devices.
  """
  device = topologies.described_devices(topology, 1)[0]
  chip = hardware.chip(device.device_kind)
  capacity = chip.memory if chip else None
  report = {
    "model": spec.config.model.name,
    "topology": topology,
    "device_kind": device.device_kind,
    "voxels": spec.voxels,
    "remat": registry.remat_policy(spec.config.model),
    "hbm_capacity_bytes": capacity,
  }
  for name, differentiated in (("forward", False), ("both", True)):
    found = _compiled(spec, device, differentiated=differentiated)
    report[name] = found | {"fits": capacity is None or found["hbm_bytes"] <= capacity}
    print(text(name, report), flush=True)
  report["fits"] = report["forward"]["fits"] and report["both"]["fits"]
  if spec.json is not None:
    atomic.write_json(spec.json, report)
  return report["fits"]


def _compiled(spec: DecodingSpec, device, *, differentiated: bool) -> dict[str, Any]:
  """Bytes and seconds of a program."""
  axes = (AxisType.Auto,)
  mesh = jax.sharding.Mesh(np.array([device]), ("data",), axis_types=axes)
  sharding = NamedSharding(mesh, PartitionSpec())

  def shaped(shape, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  # shapes in the place of parameters and voxels
  model = registry.abstract_model(spec.config.model)
  decoder = getattr(model, DECODERS[spec.config.model.name])
  graph, params = nnx.split(decoder)
  params = jax.tree.map(lambda leaf: shaped(leaf.shape, leaf.dtype), params)
  level = level_of(spec.voxels, shaped)
  latents = shaped((1, spec.voxels, decoder.cfg.latent_channels))

  def forward(params, latents, level):
    out = nnx.merge(graph, params)(SparseTensor(latents, level))
    return out.feats_RVC if isinstance(out, SparseTensor) else out

  def loss(params, latents, level):
    return jnp.square(forward(params, latents, level)).mean()

  program: Callable = jax.grad(loss, argnums=(0, 1)) if differentiated else forward
  start = time.monotonic()
  try:
    with jax.set_mesh(mesh):
      compiled = jax.jit(program).lower(params, latents, level).compile()
  except jax.errors.JaxRuntimeError as error:
    # A compiler that lacks memory says how much, which is an answer.
    needed = out_of_memory(str(error))
    if needed is None:
      raise
    seconds = time.monotonic() - start
    return {"hbm_bytes": needed, "temporary_bytes": needed, "compile_seconds": seconds}
  memory = compiled.memory_analysis()
  return {
    "hbm_bytes": bytes_used(memory),
    "temporary_bytes": memory.temp_size_in_bytes,
    "compile_seconds": time.monotonic() - start,
  }


def level_of(voxels: int, shaped: Callable) -> VoxelLevel:
  """A row of voxels with all tables that decoders need; shaped: makes an array of a shape."""
  row = (1, voxels)
  order = WindowOrder(
    order_RV=shaped(row, jnp.int32),
    inverse_RV=shaped(row, jnp.int32),
    window_RV=shaped(row, jnp.int32),
    valid_RV=shaped(row, jnp.bool_),
  )
  return VoxelLevel(
    coords_RV3=shaped((*row, 3), jnp.int32),
    object_RV=shaped(row, jnp.int32),
    valid_RV=shaped(row, jnp.bool_),
    start_RK=shaped((1, OBJECTS), jnp.int32),
    count_RK=shaped((1, OBJECTS), jnp.int32),
    neighbours_R27V=shaped((1, 27, voxels), jnp.int32),
    windows=(order, order),
  )


def text(name: str, report: dict[str, Any]) -> str:
  """What a program needs, for people."""
  found = report[name]
  work = {"forward": "forward", "both": "forward and backward"}[name]
  what = f"{report['model']} at {report['voxels']} voxels, remat {report['remat']}, {work}"
  verdict = "fits" if found["fits"] else "DOES NOT FIT"
  capacity = report["hbm_capacity_bytes"]
  there_is = "unknown" if capacity is None else size(capacity)
  needed = size(found["hbm_bytes"])
  temporaries = size(found["temporary_bytes"])
  seconds = found["compile_seconds"]
  return (
    f"{what}: {needed} of {there_is} on one {report['device_kind']} ({temporaries} of it "
    f"temporary): {verdict}; compiled in {seconds:.0f} s"
  )

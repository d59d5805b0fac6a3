"""The device mesh and how batches lie on it."""

import dataclasses
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from sam3d_jax.batch import TOKEN_AXES
from sam3d_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "context")
# the batch dimension is split over both; fsdp additionally splits parameters
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one axis may be -1 and takes what is left.

  data: copies of the model. fsdp: parameters, optimiser state and EMA are split. tensor: heads and
  feed-forward width are split. context: the shape tokens of a sample are split. dcn_data: how many
  of the `data` copies lie across the slow network between slices.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  context: int = 1
  dcn_data: int = 1


def axis_sizes(cfg: MeshConfig, device_count: int) -> dict[str, int]:
  """Resolves -1 and checks that the axes multiply to the number of devices. Raises ConfigError
  naming the keys.
  """
  # In the order of AXES, as messages and the mesh have them.
  sizes = {axis: getattr(cfg, axis) for axis in AXES}
  given = tuple(sizes.values())
  keys = f"mesh.{{{','.join(AXES)}}}"

  # what a size may be
  bad = [n for n in given if n == 0 or n < -1]
  if bad or given.count(-1) > 1:
    raise ConfigError(
      f"mesh sizes {sizes}: every axis is a positive number, at most one is -1 (takes what is left)"
    )

  # -1 takes what is left; else all devices have to be used
  fixed = math.prod(n for n in given if n != -1)
  if -1 in given:
    if device_count % fixed:
      raise ConfigError(f"{keys} = {given} does not divide {device_count} devices")
    open_axis = AXES[given.index(-1)]
    sizes[open_axis] = device_count // fixed
  elif fixed != device_count:
    raise ConfigError(
      f"{keys} = {given} needs {fixed} devices, there are "
      f"{device_count}; "
      "set one axis to -1 to fill what is left"
    )

  if sizes["data"] % cfg.dcn_data:
    raise ConfigError(
      f"mesh.dcn_data = {cfg.dcn_data} does not divide the data axis of {sizes['data']}"
    )
  return sizes


def make_mesh(cfg: MeshConfig, devices=None) -> Mesh:
  """The mesh over all devices (or those given). Axes are Auto: the compiler partitions, rules give
  it the parameters' layout.
  """
  if devices is None:
    devices = jax.devices()
  sizes = axis_sizes(cfg, len(devices))
  shape = tuple(sizes[a] for a in AXES)

  if cfg.dcn_data > 1:
    # copies across the slow network, the rest within a slice
    copies = sizes["data"] // cfg.dcn_data
    array = mesh_utils.create_hybrid_device_mesh(
      (copies, *shape[1:]),
      (cfg.dcn_data, 1, 1, 1),
      devices,
      allow_split_physical_axes=True,
    )
  elif len(devices) == 1 or devices[0].platform == "cpu":
    # no network to follow
    array = np.asarray(devices).reshape(shape)
  else:
    # Neighbours in the mesh are neighbours in the torus.
    array = mesh_utils.create_device_mesh(
      shape,
      devices,
      allow_split_physical_axes=True,
    )

  auto = (AxisType.Auto,) * len(AXES)
  return Mesh(array, AXES, axis_types=auto)


def batch_spec(ndim: int, token_axis: int | None) -> P:
  """Partition of one batch array: axis 0 over data and fsdp, the tokens of an example, if the array
  holds any, over context.
  """
  # Everything but examples and tokens stays whole.
  others = (None,) * (ndim - 1)
  axes: list = [BATCH_AXES, *others]
  if token_axis is not None:
    axes[token_axis] = "context"
  return P(*axes)


def path_of(key_path) -> str:
  """A pytree key path as 'a/b/c'."""
  return jax.tree_util.keystr(key_path, simple=True, separator="/")


def batch_shardings(mesh: Mesh, batch):
  """A tree of shardings for a batch (arrays or shape structs); its type says where tokens lie."""
  token_axes = TOKEN_AXES.get(type(batch), {})

  def sharding(key_path, leaf):
    token_axis = token_axes.get(path_of(key_path))
    spec = batch_spec(len(leaf.shape), token_axis)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, batch)


def place_batch(mesh: Mesh, batch):
  """This host's rows of a batch as global arrays on the mesh; returns at once, the copy runs beside
  the device.
  """
  # The type of the batch says how each array lies.
  shardings = batch_shardings(mesh, batch)
  if jax.process_count() == 1:
    return jax.device_put(batch, shardings)
  return jax.tree.map(
    jax.make_array_from_process_local_data,
    shardings,
    batch,
  )


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
  """Raises ConfigError unless every part of the global batch divides over the batch axes of the
  mesh. accumulate: parts, which divide the batch.
  """
  # Every chip along these axes gets as many examples of a part.
  ways = math.prod(mesh.shape[a] for a in BATCH_AXES)
  if (batch_size // accumulate) % ways == 0:
    return
  unit = ways * accumulate
  nearest = max(unit, round(batch_size / unit) * unit)
  in_parts = f" in accumulate = {accumulate} parts" if accumulate > 1 else ""
  raise ConfigError(
    f"batch_size = {batch_size} is global and does not divide{in_parts} over data x fsdp = {ways}; "
    f"the nearest that does is {nearest}"
  )

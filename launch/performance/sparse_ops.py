"""How long the operations over sparse voxels take here, and in eager PyTorch in the same run.

The object is made up: of the voxels of 64^3 that a smooth field's zero level passes through, those
nearest to the middle, as many as asked for. Like the voxels of meshes they have 14 to 15 of the 27
neighbours, and 50 to 80 share a window. What is measured is what grows with voxels in Texture &
Refinement: a convolution of 128 channels at the voxels'
resolution, attention in windows of 8^3 with 12 heads, and attention among all voxels of half the
resolution with 16, each forward and with its gradients. Widths and heads are the published ones.
"""

from collections.abc import Callable, Sequence
import dataclasses
import importlib.util
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.performance.sparse_operation import Operation
from sam3d_jax.errors import ConfigError
from sam3d_jax.files import atomic
from sam3d_jax.geometry import packing
from sam3d_jax.geometry.voxel_tables import CHILDREN
from sam3d_jax.models import sparse
from sam3d_jax.models.packed_attention import Segments, attend_packed, attend_packed_windows

RESOLUTION = 64
WINDOW = 8
WAVES = 6  # that the field is made of
FREQUENCY = 10.0  # of a wave along an axis, standard deviation in radians a side
CHANNELS = 128
WINDOW_HEADS = 12
FULL_HEADS = 16
HEAD_DIM = 64
WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class SparseSpec:
  """What is measured. voxels: of each object. torch: in turns with eager PyTorch. repeat: the
  median of so many counts. json: file for the figures.
  """

  voxels: tuple[int, ...] = (4096, 8192, 16_384, 32_768)
  torch: bool = False
  repeat: int = 5
  json: pathlib.Path | None = None

  def __post_init__(self):
    for count in self.voxels:
      if count < 1:
        raise ConfigError(f"--counts {count} is not a positive number")
    if self.repeat < 1:
      raise ConfigError(f"--repeat {self.repeat} is not a positive number")
    if self.torch and importlib.util.find_spec("torch") is None:
      raise ConfigError("--torch needs PyTorch: pip install -r requirements-torch.txt")


def measure(spec: SparseSpec) -> list[dict[str, Any]]:
  """Prints and returns a row for each operation and number of voxels: seconds on this machine."""
  rows = []
  print(header(spec.torch))
  for count in spec.voxels:
    found = packing.pack([made_up(count)])
    for operation in operations(found):
      row = figures(operation, spec)
      rows.append({"voxels": count} | row)
      print(text(rows[-1]), flush=True)
  if spec.json is not None:
    atomic.write_json(spec.json, rows)
  return rows


def made_up(count: int) -> packing.ObjectTables:
  """An object of so many voxels, with all tables. Raises ConfigError where the field has fewer."""
  draw = np.random.default_rng(0)
  side = np.linspace(0, 1, RESOLUTION + 1)
  corners_XYZ3 = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1)
  field_XYZ = 0
  for _ in range(WAVES):
    wave = FREQUENCY * draw.standard_normal(3)
    field_XYZ = field_XYZ + np.sin(corners_XYZ3 @ wave + draw.uniform(0, 6))

  # the zero level passes through voxels whose corners have both signs
  positive_XYZ = (field_XYZ > 0).astype(np.int32)
  inside_XYZ = 0
  for x, y, z in CHILDREN:
    corner = positive_XYZ[x : x + RESOLUTION, y : y + RESOLUTION, z : z + RESOLUTION]
    inside_XYZ = inside_XYZ + corner
  coords_V3 = np.argwhere((inside_XYZ > 0) & (inside_XYZ < 8))
  if count > len(coords_V3):
    raise ConfigError(f"--counts {count}: the made-up object has {len(coords_V3)} voxels at most")

  # those nearest to the middle
  from_middle_V3 = coords_V3 - (RESOLUTION - 1) / 2
  nearest_V = np.argsort(np.square(from_middle_V3).sum(1), kind="stable")[:count]
  tables = packing.Tables(RESOLUTION, neighbours=True, pooled=True, window=WINDOW)
  return packing.object_tables(coords_V3[nearest_V].astype(np.int32), tables)


def operations(found: packing.Packed) -> list[Operation]:
  """The three operations on packed voxels."""
  draw = np.random.default_rng(1)
  fine, coarse = found.voxels.fine, found.voxels.coarse

  def numbers(valid_RV, *shape: int) -> np.ndarray:
    """Random features, zero in padding."""
    drawn = draw.standard_normal((*valid_RV.shape, *shape)).astype(np.float32)
    is_padding = np.logical_not(valid_RV)
    drawn[is_padding] = 0
    return drawn

  # 15 of the 27 taps or so have a neighbour
  kernel_TIO = draw.standard_normal((27, CHANNELS, CHANNELS)) / np.sqrt(15 * CHANNELS)
  convolution = Operation(
    "convolution",
    sparse.submanifold_conv,
    (numbers(fine.valid_RV, CHANNELS), kernel_TIO.astype(np.float32)),
    numbers(fine.valid_RV, CHANNELS),
    fine.valid_RV,
    fine.neighbours_R27V,
  )

  in_window = numbers(fine.valid_RV, 4, WINDOW_HEADS, HEAD_DIM)
  windows = Operation(
    "windows",
    attend_packed_windows,
    tuple(in_window[:, :, i] for i in range(3)),
    in_window[:, :, 3],
    fine.valid_RV,
    fine.windows[0],
  )

  def attend_within(q, k, v, own: Segments):
    return attend_packed(q, k, v, own, own)

  of_all = numbers(coarse.valid_RV, 4, FULL_HEADS, HEAD_DIM)
  full = Operation(
    "full attention",
    attend_within,
    tuple(of_all[:, :, i] for i in range(3)),
    of_all[:, :, 3],
    coarse.valid_RV,
    Segments(coarse.object_RV, coarse.valid_RV),
  )
  return [convolution, windows, full]


def compiled(operation: Operation) -> tuple[Callable, Callable]:
  """What computes the operation, and what its gradients, both until they are there."""
  function = operation.function

  def loss(operands, cotangent, tables):
    return (function(*operands, tables) * cotangent).sum()

  forward = jax.jit(lambda operands, tables: function(*operands, tables))
  backward = jax.jit(jax.grad(loss))
  operands = jax.tree.map(jnp.asarray, operation.operands)
  cotangent = jnp.asarray(operation.cotangent)
  tables = jax.tree.map(jnp.asarray, operation.tables)

  def run_forward():
    return jax.block_until_ready(forward(operands, tables))

  def run_backward():
    return jax.block_until_ready(backward(operands, cotangent, tables))

  return run_forward, run_backward


def figures(operation: Operation, spec: SparseSpec) -> dict[str, Any]:
  """Seconds forward and with gradients, of both sides in turns."""
  sides = {"ours": compiled(operation)}
  if spec.torch:
    # PyTorch is optional; SparseSpec has found it
    from launch.performance import torch_sparse

    sides["torch"] = torch_sparse.prepared(operation)

  row: dict[str, Any] = {"operation": operation.name}
  for pass_number, name in enumerate(("forward", "gradients")):
    functions = [both[pass_number] for both in sides.values()]
    times = in_turns(functions, spec.repeat)
    for side, (wall, cpu) in zip(sides, times, strict=True):
      row[f"{side}_{name}"] = wall
      row[f"{side}_{name}_cpu"] = cpu
  return row


def in_turns(functions: Sequence[Callable], repeat: int) -> list[tuple[float, float]]:
  """Median wall and CPU seconds of each function, one after the other, so that all see one
  machine.
  """
  # some without counting: programs are compiled, memory is asked for until there is enough
  for _ in range(WARM_UP):
    for function in functions:
      function()
  walls: list[list[float]] = [[] for _ in functions]
  cpus: list[list[float]] = [[] for _ in functions]
  for _ in range(repeat):
    for wall, cpu, function in zip(walls, cpus, functions, strict=True):
      wall_begin, cpu_begin = time.perf_counter(), time.process_time()
      function()
      wall.append(time.perf_counter() - wall_begin)
      cpu.append(time.process_time() - cpu_begin)
  medians = []
  for wall, cpu in zip(walls, cpus, strict=True):
    medians.append((statistics.median(wall), statistics.median(cpu)))
  return medians


def header(torch: bool) -> str:
  """Columns are seconds, forward and with gradients; with PyTorch also its own, and ratios."""
  columns = ["voxels", "operation", "forward, wall / CPU s", "with gradients"]
  if torch:
    columns += ["PyTorch forward", "with gradients", "ratio forward", "with gradients"]
  return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def text(row: dict[str, Any]) -> str:
  """A row of the table."""
  cells = [str(row["voxels"]), row["operation"]]
  sides = [side for side in ("ours", "torch") if f"{side}_forward" in row]
  for side in sides:
    for name in ("forward", "gradients"):
      wall, cpu = row[f"{side}_{name}"], row[f"{side}_{name}_cpu"]
      cells.append(f"{wall:.3f} / {cpu:.3f}")
  if "torch" in sides:
    for name in ("forward", "gradients"):
      wall = row[f"ours_{name}"] / row[f"torch_{name}"]
      cpu = row[f"ours_{name}_cpu"] / row[f"torch_{name}_cpu"]
      cells.append(f"{wall:.2f} / {cpu:.2f}")
  return f"| {' | '.join(cells)} |"

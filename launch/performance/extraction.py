"""How fast meshes are made of decoded cubes here: FlexiCubes on 256^3 cubes of a made-up object.

The object is a bumpy ball, its cubes all those of the voxels nearest to its surface, as decoders
give them; what moves corners and weights edges is noise.
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np

from sam3d_jax.errors import ConfigError
from sam3d_jax.files import atomic
from sam3d_jax.geometry import bricks as brick_grid
from sam3d_jax.geometry.bricks import SIDE
from sam3d_jax.models import flexicubes
from sam3d_jax.models.flexicubes_tables import CORNERS

RESOLUTION = 64  # voxels along a side of the grid
RADIUS = 0.4
BUMPS, WAVES = 0.06, 25.0  # their height, and their number of radians along an axis


@dataclasses.dataclass(frozen=True)
class ExtractionSpec:
  """What is measured. voxels: of the object. repeat: the best of so many counts. json: file for the
  figures.
  """

  voxels: int = 32_768
  repeat: int = 3
  json: pathlib.Path | None = None

  def __post_init__(self):
    for name in ("voxels", "repeat"):
      value = getattr(self, name)
      if value < 1:
        raise ConfigError(f"--{name} {value} is not a positive number")
    if self.voxels > RESOLUTION**3 // 4:
      raise ConfigError(f"--voxels {self.voxels}: a surface in {RESOLUTION}^3 has fewer")


def field(points):
  """Signed distance, nearly, of points (..., 3)."""
  waves = np.sin(WAVES * points)
  return np.linalg.norm(points, axis=-1) - RADIUS - BUMPS * waves.prod(-1)


def cells(side: int) -> np.ndarray:
  """Coordinates (side, side, side, 3) of a grid."""
  axis = np.arange(side)
  along = np.meshgrid(axis, axis, axis, indexing="ij")
  return np.stack(along, axis=-1)


def made_up(voxels: int) -> tuple[np.ndarray, np.ndarray]:
  """Coordinates (V, 3) of voxels and the features (V, 4, 4, 4, 101) of their cubes."""
  # the voxels nearest to the surface
  grid_N3 = cells(RESOLUTION).reshape(-1, 3)
  centre_N3 = (grid_N3 + 0.5) / RESOLUTION - 0.5
  distance_N = np.abs(field(centre_N3))
  by_distance_N = np.argsort(distance_N, kind="stable")
  nearest_V = np.sort(by_distance_N[:voxels])
  coords_V3 = grid_N3[nearest_V]

  # signed distances at the corners of their cubes, noise in all else
  draw = np.random.default_rng(0)
  shape = (voxels, SIDE, SIDE, SIDE, flexicubes.CHANNELS)
  feats = draw.standard_normal(shape, np.float32) * np.float32(0.3)
  first = coords_V3[:, None, None, None] * SIDE
  cubes = first + cells(SIDE)
  for i, corner in enumerate(CORNERS):
    points = (cubes + corner) / (RESOLUTION * SIDE)
    feats[..., i] = field(points - 0.5)
  return coords_V3, feats


def measure(spec: ExtractionSpec) -> dict[str, Any]:
  """Prints and returns the figures: seconds of a mesh on this machine."""
  coords_V3, feats = made_up(spec.voxels)
  feats = jax.block_until_ready(jax.device_put(feats))

  def extract():
    bricks = brick_grid.around(coords_V3, RESOLUTION)
    return flexicubes.extract(feats, bricks, RESOLUTION * SIDE)

  # the first compiles
  start = time.perf_counter()
  mesh = extract()
  first = time.perf_counter() - start
  wall = []
  cpu = []
  for _ in range(spec.repeat):
    start = time.perf_counter()
    start_cpu = time.process_time()
    extract()
    wall.append(time.perf_counter() - start)
    cpu.append(time.process_time() - start_cpu)

  report = {
    "device": jax.devices()[0].device_kind,
    "voxels": spec.voxels,
    "cubes": spec.voxels * SIDE**3,
    "vertices": len(mesh.vertices_M3),
    "faces": len(mesh.faces_F3),
    "first_s": first,
    "seconds": min(wall),
    "cpu_seconds": min(cpu),
  }
  print(text(report))
  if spec.json is not None:
    atomic.write_json(spec.json, report)
  return report


def text(report: dict[str, Any]) -> str:
  """The figures for people."""
  what = f"{report['voxels']} voxels, {report['cubes']} cubes of {RESOLUTION * SIDE}^3"
  mesh = f"{report['vertices']} vertices and {report['faces']} faces"
  seconds = f"{report['seconds']:.2f} s ({report['cpu_seconds']:.2f} CPU s)"
  return (
    f"{what} to {mesh} on {report['device']}: {seconds}, {report['first_s']:.1f} s the first time"
  )

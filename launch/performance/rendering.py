"""How fast pictures of splats and meshes are made here, and what memory they take on a chip.

The splats are made up: a shell of them, as decoders put them on the surface of an object, 0.8 of a
64th of the cube wide, half of the picture filled.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
import numpy as np
import trimesh

from launch.performance import topologies
from launch.performance.compiled import bytes_used, out_of_memory
from launch.trainer.plan import size
from sam3d_jax.errors import ConfigError
from sam3d_jax.files import atomic
from sam3d_jax.geometry import cameras
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render import mesh_picture, splats_picture
from sam3d_jax.render.mesh_picture import Shape
from sam3d_jax.render.splats import Splats
from sam3d_jax.training import hardware

WIDTH = 0.8 / 64  # of a splat, in cubes
RADIUS = 0.4  # of the mesh
FOV_DEG = 40.0
DISTANCE = 1.4
CUTS = 5  # subdivisions of the icosahedron: 20 480 triangles


@dataclasses.dataclass(frozen=True)
class RenderingSpec:
  """What is rendered. tile, block, lanes, slots: as in the settings of pictures. repeat: the best
  of so many counts. json: file for the figures.
  """

  splats: int = 20_000
  side: int = 128
  tile: int = 16
  block: int = 32
  lanes: int = 16
  slots: int | None = None
  repeat: int = 5
  json: pathlib.Path | None = None

  def __post_init__(self):
    for name in ("splats", "side", "tile", "block", "lanes", "repeat"):
      value = getattr(self, name)
      if value < 1:
        raise ConfigError(f"--{name} {value} is not a positive number")

  @property
  def settings(self) -> splats_picture.Settings:
    return splats_picture.Settings(
      self.side,
      self.side,
      tile=self.tile,
      block=self.block,
      lanes=self.lanes,
      slots=self.slots,
    )


def made_up(count: int) -> Splats:
  """Splats on a bumpy sphere, in the object frame."""
  draw = np.random.default_rng(0)
  direction = draw.standard_normal((count, 3))
  direction /= np.linalg.norm(direction, axis=1, keepdims=True)
  bumps = np.sin(6 * direction[:, :1]) * np.cos(5 * direction[:, 1:2])
  spread = np.exp(0.3 * draw.standard_normal((count, 3)))
  fields = Splats(
    centres_N3=direction * (0.35 + 0.08 * bumps),
    scales_N3=WIDTH * spread,
    rotations_N4=draw.standard_normal((count, 4)),
    opacities_N=draw.uniform(0.05, 0.95, count),
    colours_N3=draw.uniform(0, 1, (count, 3)),
  )
  return Splats(*(field.astype(np.float32) for field in fields))


def viewpoint() -> Pose:
  """From the side, the object in the middle."""
  return Pose(
    rotation=np.diag([-1.0, -1.0, 1.0]).astype(np.float32),
    translation=np.array([0, 0, DISTANCE], np.float32),
    scale=np.ones(3, np.float32),
  )


def splat_loss(splats: Splats, camera, where: Pose, settings) -> tuple[jax.Array, Any]:
  """A scalar of colour, alpha and depth, and what was counted."""
  picture = splats_picture.render(splats, camera, where, settings=settings)
  colour = jnp.square(picture.colour_HW3).sum()
  alpha = picture.alpha_HW.sum()
  depth = jnp.nansum(picture.depth_HW)
  counted = (picture.needed, picture.lost)
  return colour + alpha + depth, counted


def mesh_loss(vertices_V3, faces_F3, camera, where: Pose, settings) -> tuple[jax.Array, Any]:
  """A scalar of mask, colour, normals and depth, and what was counted."""
  shape = Shape(vertices_V3, faces_F3, vertices_V3)
  picture = mesh_picture.render(shape, camera, where, settings=settings)
  colour = jnp.square(picture.colour_HW3).sum()
  mask = picture.mask_HW.sum()
  normal = picture.normal_HW3[..., 2].sum()
  depth = jnp.nansum(picture.depth_HW)
  counted = (picture.needed, picture.lost)
  return colour + mask + normal + depth, counted


# --- Here -----------------------------------------------------------------------------------------


def measure(spec: RenderingSpec) -> list[dict[str, Any]]:
  """Prints and returns a row for splats and one for a mesh: seconds on this machine's device."""
  camera = cameras.camera_from_fov(spec.side, spec.side, np.radians(FOV_DEG))
  where = viewpoint()
  ball = trimesh.creation.icosphere(CUTS, radius=RADIUS)
  mesh_settings = mesh_picture.Settings(
    spec.side,
    spec.side,
    tile=spec.tile,
    block=spec.block,
    lanes=spec.lanes,
  )
  vertices = jnp.asarray(ball.vertices, jnp.float32)
  faces = jnp.asarray(ball.faces, jnp.int32)

  # Each as a function of its first argument, with the rest as it is.
  of_splats = functools.partial(
    splat_loss,
    camera=camera,
    where=where,
    settings=spec.settings,
  )
  of_mesh = functools.partial(
    mesh_loss,
    camera=camera,
    where=where,
    settings=mesh_settings,
  )
  splats = jax.device_put(made_up(spec.splats))
  rows = [
    figures("splats", spec.splats, of_splats, (splats,), spec),
    figures("triangles", len(faces), of_mesh, (vertices, faces), spec),
  ]
  for row in rows:
    print(row_text(row))
  if spec.json is not None:
    atomic.write_json(spec.json, rows)
  return rows


def figures(what: str, count: int, loss: Callable, arguments: tuple, spec) -> dict[str, Any]:
  """The figures of one kind of picture."""
  forward = jax.jit(loss)
  both = jax.jit(jax.value_and_grad(loss, has_aux=True))
  wall, cpu = _timed(forward, arguments, spec.repeat)
  both_wall, both_cpu = _timed(both, arguments, spec.repeat)
  _, (needed, lost) = forward(*arguments)
  return {
    "what": what,
    "count": count,
    "side": spec.side,
    "tile": spec.tile,
    "pairs": int(needed),
    "lost": int(lost),
    "forward_s": wall,
    "forward_cpu_s": cpu,
    "both_s": both_wall,
    "both_cpu_s": both_cpu,
  }


def _timed(program: Callable, arguments: tuple, repeat: int) -> tuple[float, float]:
  """Least wall seconds and least CPU seconds of a call, after one that compiles."""
  jax.block_until_ready(program(*arguments))
  wall = []
  cpu = []
  for _ in range(repeat):
    start = time.perf_counter()
    start_cpu = time.process_time()
    jax.block_until_ready(program(*arguments))
    wall.append(time.perf_counter() - start)
    cpu.append(time.process_time() - start_cpu)
  return min(wall), min(cpu)


def row_text(row: dict[str, Any]) -> str:
  """A row for people."""
  count, what, side = row["count"], row["what"], row["side"]
  forward = seconds_text("forward", row["forward_s"], row["forward_cpu_s"])
  both = seconds_text("forward and backward", row["both_s"], row["both_cpu_s"])
  pairs = f"{row['pairs']} pairs with tiles of {row['tile']}, {row['lost']} lost"
  what = f"{count} {what} at {side} x {side}"
  ratio = row["both_cpu_s"] / row["forward_cpu_s"]
  return f"{what}: {forward}, {both}, {ratio:.1f} x; {pairs}"


def seconds_text(what: str, wall: float, cpu: float) -> str:
  """Both clocks of a piece of work."""
  return f"{what} {wall:.3f} s ({cpu:.3f} CPU s)"


# --- On a described chip --------------------------------------------------------------------------


def compile_for(spec: RenderingSpec, topology: str) -> bool:
  """Compiles forward and backward of splats for one chip of a topology, prints what they need.

  Returns whether both fit. Call topologies.prepare_environment first. Raises ConfigError or
  InputError as topologies.described_devices.
  """
  device = topologies.described_devices(topology, 1)[0]
  chip = hardware.chip(device.device_kind)
  capacity = chip.memory if chip else None
  report = {
    "topology": topology,
    "device_kind": device.device_kind,
    "chips": 1,
    "splats": spec.splats,
    "side": spec.side,
    "hbm_capacity_bytes": capacity,
  }
  for name, program in (("forward", splat_loss), ("both", _both)):
    found = _compiled(program, spec, device)
    fits = capacity is None or found["hbm_bytes"] <= capacity
    report[name] = found | {"fits": fits}
    print(compiled_text(name, report))
  report["fits"] = report["forward"]["fits"] and report["both"]["fits"]
  if spec.json is not None:
    atomic.write_json(spec.json, report)
  return report["fits"]


def _both(splats: Splats, camera, where: Pose, settings):
  return jax.value_and_grad(splat_loss, has_aux=True)(splats, camera, where, settings)


def _compiled(program: Callable, spec: RenderingSpec, device) -> dict[str, Any]:
  """Bytes and seconds of a program, with shapes in the place of splats and pose."""
  sharding = SingleDeviceSharding(device)

  def shaped(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

  count = spec.splats
  splats = Splats(
    centres_N3=shaped(count, 3),
    scales_N3=shaped(count, 3),
    rotations_N4=shaped(count, 4),
    opacities_N=shaped(count),
    colours_N3=shaped(count, 3),
  )
  where = Pose(
    rotation=shaped(3, 3),
    translation=shaped(3),
    scale=shaped(3),
  )
  camera = cameras.camera_from_fov(spec.side, spec.side, np.radians(FOV_DEG))
  start = time.monotonic()
  function = functools.partial(program, settings=spec.settings)
  lowered = jax.jit(lambda splats, where: function(splats, camera, where)).lower(splats, where)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    # A compiler that lacks memory says how much, which is an answer.
    needed = out_of_memory(str(error))
    if needed is None:
      raise
    return {
      "hbm_bytes": needed,
      "temporary_bytes": needed,
      "compile_seconds": time.monotonic() - start,
    }
  memory = compiled.memory_analysis()
  return {
    "hbm_bytes": bytes_used(memory),
    "temporary_bytes": memory.temp_size_in_bytes,
    "compile_seconds": time.monotonic() - start,
  }


def compiled_text(name: str, report: dict[str, Any]) -> str:
  """What a program needs, for people."""
  found = report[name]
  work = {"forward": "forward", "both": "forward and backward"}[name]
  what = f"{report['splats']} splats at {report['side']} x {report['side']}, {work}"
  verdict = "fits" if found["fits"] else "DOES NOT FIT"
  capacity = report["hbm_capacity_bytes"]
  there_is = "unknown" if capacity is None else size(capacity)
  needed = size(found["hbm_bytes"])
  seconds = found["compile_seconds"]
  kind = report["device_kind"]
  return f"{what}: {needed} of {there_is} on one {kind}: {verdict}; compiled in {seconds:.0f} s"

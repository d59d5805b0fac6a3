"""Procedural photo scenes: a room with a few objects on its floor. Synthetic; everything about them
is known exactly.

They stand in for photographs where there are none: the point map is the true one, masks are the
visible parts, meshes and poses of the objects are known. A room is a pure function of (seed,
index).

`python -m launch.make_examples rooms` writes some in the layout of a photo folder (scenes.py).
"""

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.synth import assets, composite, procedural, render
from data_pipelines.synth.camera import Camera
from data_pipelines.synth.lighting import LightConfig, Lights, random_lights, turned
from data_pipelines.synth.scene import Annotated, Scene
from sam3d_jax.geometry import cameras
from sam3d_jax.render.colour import linear_to_srgb8, srgb_to_linear

LICENSE = "CC0-1.0"
ASPECT = 0.75  # height over width
NOISE = 1.5  # grey levels, standard deviation of the sensor's noise
MIN_VISIBLE = 0.004  # of the image, below which an object gets no mask
SAMPLES = 2  # colour rays a pixel along each axis
# procedural objects from this index on are furniture of rooms: others do not meet them as targets
FIRST_OBJECT = 1_000_000


@dataclasses.dataclass(frozen=True)
class Room:
  """`objects` are those of `scene.masks`, in the same order."""

  scene: Scene
  objects: tuple[Annotated, ...]


@dataclasses.dataclass(frozen=True)
class View:
  """The room's camera: intrinsics, world to camera (world: metres, z up, the floor at 0, the camera
  looks along +y).
  """

  camera: cameras.Camera
  rotation_33: np.ndarray  # acts on columns
  position_3: np.ndarray

  def of_object(self, yaw: float, place_3: np.ndarray, scale: float) -> tuple[Camera, np.ndarray]:
    """The render camera of an object that stands at `place_3` turned by `yaw`; the object's
    rotation in the world.
    """
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    return Camera(
      *self.camera, self.rotation_33 @ turn, self.rotation_33 @ (place_3 - self.position_3), scale
    ), turn


@dataclasses.dataclass(frozen=True)
class Shell:
  """Floor, ceiling and three walls; colours are linear. planes_P4 (n, d): n . p = d with n into the
  room.
  """

  planes_P4: np.ndarray
  colours_P3: np.ndarray
  plank: float  # width of a floor board, metres
  tones: np.ndarray  # brightness of each board

  def hit(self, origin_3: np.ndarray, rays_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ray parameter, index of the plane) where each ray leaves the room."""
    with np.errstate(divide="ignore"):
      along = (self.planes_P4[:, 3] - self.planes_P4[:, :3] @ origin_3) / (
        rays_N3 @ self.planes_P4[:, :3].T
      )
    along = np.where(along > 0, along, np.inf)
    return along.min(1), along.argmin(1)

  def albedo(self, points_N3: np.ndarray, plane_N: np.ndarray) -> np.ndarray:
    """Linear base colour of points on the shell: boards on the floor, a skirting on the walls."""
    colour = self.colours_P3[plane_N].copy()
    floor = plane_N == 0
    board = points_N3[floor, 0] / self.plank
    tone = self.tones[np.floor(board).astype(int) % len(self.tones)]
    colour[floor] *= np.where(board % 1 < 0.04, 0.5, tone)[:, None]
    colour[(plane_N > 1) & (points_N3[:, 2] < 0.09)] = 0.75
    return colour


def make_room(seed: int, index: int, image_size: int) -> Room:
  """Room `index`, `image_size` pixels wide."""
  rng = np.random.default_rng([seed, index, 11])
  view = _view(rng, image_size)
  shell = _shell(rng)
  lights = random_lights(
    rng, LightConfig(ambient=(0.3, 0.5), elevation_deg=(35.0, 70.0)), -np.pi / 2
  )
  objects, turns = _furnish(rng, seed, index, view)
  prepared = [render.Scene(o.asset.mesh, o.asset.source) for o in objects]
  shown = [
    render.render(s, o.camera, turned(lights, turn), samples=SAMPLES)
    for s, o, turn in zip(prepared, objects, turns, strict=True)
  ]
  u, v = np.meshgrid(np.arange(view.camera.width) + 0.5, np.arange(view.camera.height) + 0.5)
  depth, _ = shell.hit(view.position_3, _world_rays(view, u, v))
  depth = depth.reshape(u.shape).astype(np.float32)
  colour = _shell_colour(view, shell, lights, list(zip(prepared, objects, turns, strict=True)))
  nearest = np.min([depth, *(np.where(s.mask_HW, s.depth_HW, np.inf) for s in shown)], axis=0)
  far_first = sorted(range(len(objects)), key=lambda i: -objects[i].camera.translation[2])
  image = composite.paste(
    linear_to_srgb8(colour), [(shown[i].lit_HW3, shown[i].alpha_HW) for i in far_first]
  )
  image = np.clip(np.rint(image + rng.normal(0, NOISE, image.shape)), 0, 255).astype(np.uint8)
  masks = [s.mask_HW & (s.depth_HW <= nearest) for s in shown]
  kept = [i for i, mask in enumerate(masks) if mask.mean() >= MIN_VISIBLE]
  points = cameras.pointmap_from_depth(nearest, view.camera).astype(np.float32)
  scene = Scene(f"room-{index}", image, tuple(masks[i] for i in kept), points, view.camera, LICENSE)
  return Room(scene, tuple(objects[i] for i in kept))


def _view(rng: np.random.Generator, image_size: int) -> View:
  camera = cameras.camera_from_fov(
    image_size, round(image_size * ASPECT), np.radians(rng.uniform(50, 70))
  )
  pitch = np.radians(rng.uniform(12, 28))  # downwards
  rotation = np.array(
    [[-1.0, 0, 0], [0, np.sin(pitch), np.cos(pitch)], [0, np.cos(pitch), -np.sin(pitch)]]
  )
  return View(camera, rotation, np.array([0, 0, rng.uniform(1.2, 1.7)]))


def _shell(rng: np.random.Generator) -> Shell:
  depth, half_width, height = rng.uniform(4.5, 6.5), rng.uniform(2.2, 3.2), rng.uniform(2.4, 2.9)
  planes = np.array(
    [
      [0, 0, 1, 0],
      [0, 0, -1, -height],
      [0, -1, 0, -depth],
      [1, 0, 0, -half_width],
      [-1, 0, 0, -half_width],
    ],
    float,
  )
  paint = srgb_to_linear(rng.uniform(0.55, 0.95, 3))
  wood = srgb_to_linear(
    np.array([0.72, 0.55, 0.38]) * rng.uniform(0.6, 1.1) + rng.uniform(-0.06, 0.06, 3)
  )
  colours = np.stack([wood, np.full(3, 0.85), paint * rng.uniform(0.8, 1.0, 3), paint, paint])
  return Shell(planes, colours, rng.uniform(0.1, 0.22), rng.uniform(0.8, 1.15, 61))


def _furnish(
  rng: np.random.Generator, seed: int, index: int, view: View
) -> tuple[list[Annotated], list[np.ndarray]]:
  """Objects that stand on the floor in view, none inside another; their rotations in the world."""
  objects, turns, taken = [], [], []
  for slot in range(int(rng.integers(3, 6))):
    asset = assets.from_scene(
      procedural.make_scene(seed, FIRST_OBJECT + 8 * index + slot),
      source=f"room-{index}/{slot}",
      up="z",
      license=LICENSE,
    )
    scale, yaw = rng.uniform(0.45, 1.1), rng.uniform(0, 2 * np.pi)
    radius = scale * float(np.linalg.norm(asset.mesh.vertices[:, :2], axis=1).max())
    for _ in range(20):
      along = rng.uniform(2.0, 4.2)
      across = rng.uniform(-0.8, 0.8) * along * view.camera.width / (2 * view.camera.fx)
      if all(np.hypot(along - y, across - x) > radius + r for x, y, r in taken):
        taken.append((across, along, radius))
        camera, turn = view.of_object(
          yaw, np.array([across, along, -scale * asset.mesh.vertices[:, 2].min()]), scale
        )
        objects.append(Annotated(asset, camera))
        turns.append(turn)
        break
  return objects, turns


def _world_rays(view: View, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """World directions (N, 3) with camera depth 1 through pixel coordinates."""
  c = view.camera
  rays = np.stack([(c.cx - u) / c.fx, (c.cy - v) / c.fy, np.ones_like(u)], -1).reshape(-1, 3)
  return rays @ view.rotation_33


def _shell_colour(view: View, shell: Shell, lights: Lights, standing) -> np.ndarray:
  """Linear colours (H, W, 3) of the shell, with the shadow that the first light casts of every
  object in it.
  """
  height, width = view.camera.height, view.camera.width
  offset = (np.arange(SAMPLES) + 0.5) / SAMPLES
  v, u = np.meshgrid(
    (np.arange(height)[:, None] + offset).ravel(),
    (np.arange(width)[:, None] + offset).ravel(),
    indexing="ij",
  )
  rays = _world_rays(view, u, v)
  along, plane = shell.hit(view.position_3, rays)
  points = view.position_3 + along[:, None] * rays
  normals = shell.planes_P4[plane, :3]
  light = lights.ambient_3 * (0.75 + 0.25 * normals[:, 2:])
  shaded = np.zeros(len(points), bool)
  for scene, placed, turn in standing:
    shaded |= _blocked(scene, placed.camera, turn, view, points, lights.directions_L3[0])
  for number, (direction, radiance) in enumerate(
    zip(lights.directions_L3, lights.colours_L3, strict=True)
  ):
    cosine = np.maximum(normals @ direction, 0) * (~shaded if number == 0 else 1.0)
    light = light + cosine[:, None] * radiance
  colour = (shell.albedo(points, plane) * light).astype(np.float32)
  return colour.reshape(height, SAMPLES, width, SAMPLES, 3).mean((1, 3))


def _blocked(
  scene: render.Scene,
  camera: Camera,
  turn: np.ndarray,
  view: View,
  points_N3: np.ndarray,
  direction_3: np.ndarray,
):
  """Whether the object stands between each world point and a light in the given world direction."""
  place = view.position_3 + view.rotation_33.T @ camera.translation
  local = ((points_N3 - place) @ turn / camera.scale).astype(np.float32)
  towards = (direction_3 @ turn).astype(np.float32)
  # Only rays that pass the object's bounding sphere need to be cast.
  nearest = local - (local @ towards)[:, None] * towards
  near = np.flatnonzero((np.linalg.norm(nearest, axis=1) < 0.87) & (local @ towards < 0.87))
  blocked = np.zeros(len(local), bool)
  if len(near):
    start = local[near] + render.SHADOW_OFFSET * towards
    blocked[near] = scene.caster.blocked(start, np.broadcast_to(towards, start.shape))
  return blocked


def write_room(folder: pathlib.Path, room: Room) -> None:
  """Writes a room as a scene folder: image.png, masks, pointmap.npz, licence."""
  folder.mkdir(parents=True, exist_ok=True)
  Image.fromarray(room.scene.image_HW3).save(folder / "image.png")
  (folder / "image.png.license").write_text(LICENSE + "\n")
  for i, mask in enumerate(room.scene.masks):
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{i}.png")
  camera = room.scene.camera
  matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
  np.savez_compressed(folder / "pointmap.npz", pointmap=room.scene.pointmap_HW3, intrinsics=matrix)
  (folder / "scene.json").write_text(
    json.dumps({"synthetic": True, "made by": "data_pipelines.synth.procedural_scenes"}) + "\n"
  )

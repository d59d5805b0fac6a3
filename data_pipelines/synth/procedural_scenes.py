"""Procedural photo scenes: a room with a few objects on its floor, known exactly.

They stand in for photographs where there are none: the point map is the true one, masks are the
visible parts, meshes and poses of the objects are known. A room is a pure function of (seed,
index).

`python -m launch.make_examples rooms` writes some in the layout of a photo folder (scenes.py).
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.synth import assets, composite, procedural, render
from data_pipelines.synth.camera import Viewpoint, rays, sample_grid, viewpoint
from data_pipelines.synth.lighting import LightConfig, Lights, random_lights, turned
from data_pipelines.synth.scene import Annotated, Scene
from sam3d_jax.geometry import cameras
from sam3d_jax.render.colour import linear_to_srgb8, srgb_to_linear

LICENSE = "CC0-1.0"
ASPECT = 0.75  # height over width
NOISE = 1.5  # grey levels, standard deviation of the sensor's noise
MIN_VISIBLE = 0.004  # of the image, below which an object gets no mask
SAMPLES = 2  # colour rays a pixel along each axis
PLACES_TRIED = 20  # for an object, before it is left out
SPHERE = 0.87  # radius that holds the unit cube
LIGHT = LightConfig(ambient=(0.3, 0.5), elevation_deg=(35.0, 70.0))
# procedural objects from this index on are furniture of rooms: others do not meet them as targets
FIRST_OBJECT = 1_000_000


@dataclasses.dataclass(frozen=True)
class Room:
  """A photo of a room, and what stands in it."""

  scene: Scene
  objects: tuple[Annotated, ...]  # those of `scene.masks`, in the same order


@dataclasses.dataclass(frozen=True)
class Standing:
  """An object in the room."""

  asset: assets.Asset
  scene: render.Scene
  viewpoint: Viewpoint
  turn_33: np.ndarray  # its rotation in the world


@dataclasses.dataclass(frozen=True)
class View:
  """The room's camera: intrinsics, world to camera.

  World: metres, z up, the floor at 0, the camera looks along +y.
  """

  camera: cameras.Camera
  rotation_33: np.ndarray  # acts on columns
  position_3: np.ndarray

  def of_object(self, turn_33: np.ndarray, place_3: np.ndarray, scale: float) -> Viewpoint:
    """How an object is seen that stands at `place_3` turned by `turn_33`."""
    place = self.rotation_33 @ (place_3 - self.position_3)
    return viewpoint(
      self.camera,
      self.rotation_33 @ turn_33,
      place,
      scale,
    )

  def rays(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """World directions (N, 3) with camera depth 1 through pixel coordinates."""
    in_camera = rays(self.camera, u, v)
    # Rows times R are the columns turned back by its transpose.
    return in_camera.reshape(-1, 3) @ self.rotation_33


@dataclasses.dataclass(frozen=True)
class Shell:
  """Floor, ceiling and three walls."""

  planes_P4: np.ndarray  # (n, d): n . p = d with n into the room
  colours_P3: np.ndarray  # linear
  plank: float  # width of a floor board, metres
  tones: np.ndarray  # brightness of each board

  def hit(self, origin_3: np.ndarray, rays_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ray parameter, index of the plane) where each ray leaves the room."""
    normals = self.planes_P4[:, :3]
    offsets = self.planes_P4[:, 3]
    # n . (o + s r) = d, solved for s; a ray along a plane never meets it.
    to_plane = offsets - normals @ origin_3
    speed = rays_N3 @ normals.T
    with np.errstate(divide="ignore"):
      along = to_plane / speed
    along = np.where(along > 0, along, np.inf)
    return along.min(1), along.argmin(1)

  def albedo(self, points_N3: np.ndarray, plane_N: np.ndarray) -> np.ndarray:
    """Linear base colour of points on the shell: boards on the floor, a skirting on the walls."""
    colour = self.colours_P3[plane_N].copy()

    # Boards run away from the camera, with a dark joint between them.
    floor = plane_N == 0
    across = points_N3[floor, 0]
    board = across / self.plank
    number = np.floor(board).astype(int)
    tone = self.tones[number % len(self.tones)]
    is_joint = board % 1 < 0.04
    shade = np.where(is_joint, 0.5, tone)
    colour[floor] *= shade[:, None]

    # A skirting board along the walls' feet.
    is_wall = plane_N > 1
    height = points_N3[:, 2]
    skirting = is_wall & (height < 0.09)
    colour[skirting] = 0.75
    return colour


def make_room(seed: int, index: int, image_size: int) -> Room:
  """Room `index`, `image_size` pixels wide."""
  # The order of the draws decides every room: view, shell, lights, furniture, then the sensor.
  rng = np.random.default_rng([seed, index, 11])
  view = _view(rng, image_size)
  shell = _shell(rng)
  lights = random_lights(rng, LIGHT, -np.pi / 2)
  standing = _furnish(rng, seed, index, view)
  shown = []
  for one in standing:
    own_lights = turned(lights, one.turn_33)
    seen = render.render(
      one.scene,
      one.viewpoint,
      own_lights,
      samples=SAMPLES,
    )
    shown.append(seen)

  # The shell behind, then the objects, the farthest first.
  depth = _shell_depth(view, shell)
  colour = _shell_colour(view, shell, lights, standing)
  distances = [one.viewpoint.pose.translation[2] for one in standing]
  far_first = sorted(range(len(standing)), key=lambda i: -distances[i])
  layers = [(shown[i].lit_HW3, shown[i].alpha_HW) for i in far_first]
  background = linear_to_srgb8(colour)
  clean = composite.paste(background, layers)

  # The sensor's noise.
  noisy = clean + rng.normal(0, NOISE, clean.shape)
  rounded = np.rint(noisy)
  image = np.clip(rounded, 0, 255).astype(np.uint8)

  # The point map takes the nearest surface of each pixel.
  hits = [np.where(s.mask_HW, s.depth_HW, np.inf) for s in shown]
  nearest = np.min([depth, *hits], axis=0)
  points = cameras.pointmap_from_depth(nearest, view.camera)
  points = points.astype(np.float32)

  # Objects that are seen well enough have masks.
  masks = []
  objects = []
  for one, s in zip(standing, shown, strict=True):
    visible = s.mask_HW & (s.depth_HW <= nearest)
    if visible.mean() >= MIN_VISIBLE:
      masks.append(visible)
      objects.append(Annotated(one.asset, one.viewpoint))
  scene = Scene(
    name=f"room-{index}",
    image_HW3=image,
    masks=tuple(masks),
    pointmap_HW3=points,
    camera=view.camera,
    license=LICENSE,
  )
  return Room(scene, tuple(objects))


def _view(rng: np.random.Generator, image_size: int) -> View:
  """A camera at a person's height that looks a little down."""
  fov_x = np.radians(rng.uniform(50, 70))
  height = round(image_size * ASPECT)
  camera = cameras.camera_from_fov(image_size, height, fov_x)

  # World (x right, y ahead, z up) to the camera (x left, y up, z ahead), pitched downwards.
  pitch = np.radians(rng.uniform(12, 28))
  c = np.cos(pitch)
  s = np.sin(pitch)
  left = [-1.0, 0, 0]
  up = [0, s, c]
  ahead = [0, c, -s]
  rotation = np.array([left, up, ahead])
  eye_height = rng.uniform(1.2, 1.7)
  position = np.array([0, 0, eye_height])
  return View(camera, rotation, position)


def _shell(rng: np.random.Generator) -> Shell:
  """A room of random size with painted walls and a wooden floor."""
  depth = rng.uniform(4.5, 6.5)
  half_width = rng.uniform(2.2, 3.2)
  height = rng.uniform(2.4, 2.9)
  planes = [
    [0, 0, 1, 0],  # floor
    [0, 0, -1, -height],  # ceiling
    [0, -1, 0, -depth],  # back
    [1, 0, 0, -half_width],  # left
    [-1, 0, 0, -half_width],  # right
  ]

  # Side walls share a paint; the back wall's differs a little.
  paint = srgb_to_linear(rng.uniform(0.55, 0.95, 3))
  brown = np.array([0.72, 0.55, 0.38])
  brown = brown * rng.uniform(0.6, 1.1)
  grain = rng.uniform(-0.06, 0.06, 3)
  wood = srgb_to_linear(brown + grain)
  back_paint = paint * rng.uniform(0.8, 1.0, 3)
  ceiling = np.full(3, 0.85)

  # One colour a plane, in the order of the planes.
  colours = [wood, ceiling, back_paint, paint, paint]
  return Shell(
    planes_P4=np.array(planes, float),
    colours_P3=np.stack(colours),
    plank=rng.uniform(0.1, 0.22),
    tones=rng.uniform(0.8, 1.15, 61),
  )


def _furnish(rng: np.random.Generator, seed: int, index: int, view: View) -> list[Standing]:
  """Objects that stand on the floor in view, none inside another."""
  standing = []
  taken = []  # (across, along, radius) of what stands already
  camera = view.camera
  count = int(rng.integers(3, 6))
  for slot in range(count):
    # An object of a random size, turned at random.
    made = procedural.make_scene(seed, FIRST_OBJECT + 8 * index + slot)
    asset = assets.from_scene(
      made,
      source=f"room-{index}/{slot}",
      up="z",
      license=LICENSE,
    )
    vertices = asset.mesh.vertices
    scale = rng.uniform(0.45, 1.1)
    yaw = rng.uniform(0, 2 * np.pi)
    from_axis = np.linalg.norm(vertices[:, :2], axis=1)
    radius = scale * float(from_axis.max())

    # The first free place of those tried; where there is none the object is left out.
    for _ in range(PLACES_TRIED):
      along = rng.uniform(2.0, 4.2)
      share = rng.uniform(-0.8, 0.8)  # of half the picture's width, which grows with the depth
      across = share * along * camera.width / (2 * camera.fx)
      if any(np.hypot(along - y, across - x) <= radius + r for x, y, r in taken):
        continue
      taken.append((across, along, radius))

      # Turned about its axis, its lowest point on the floor.
      c = np.cos(yaw)
      s = np.sin(yaw)
      turn = np.array(
        [
          [c, -s, 0],
          [s, c, 0],
          [0, 0, 1.0],
        ]
      )
      lowest = vertices[:, 2].min()
      place = np.array([across, along, -scale * lowest])
      one = Standing(
        asset=asset,
        scene=render.Scene(asset.mesh, asset.source),
        viewpoint=view.of_object(turn, place, scale),
        turn_33=turn,
      )
      standing.append(one)
      break
  return standing


def _shell_depth(view: View, shell: Shell) -> np.ndarray:
  """Depth (H, W) float32 of the shell at the pixels' centres."""
  height = view.camera.height
  width = view.camera.width
  u, v = sample_grid((0, height), (0, width))
  world_rays = view.rays(u, v)
  # Rays of camera depth 1: the ray parameter is the depth.
  depth, _ = shell.hit(view.position_3, world_rays)
  picture = depth.reshape(height, width)
  return picture.astype(np.float32)


def _shell_colour(
  view: View, shell: Shell, lights: Lights, standing: Sequence[Standing]
) -> np.ndarray:
  """Linear colours (H, W, 3) of the shell, with the shadows of the first light."""
  # SAMPLES x SAMPLES rays a pixel meet the shell.
  height = view.camera.height
  width = view.camera.width
  u, v = sample_grid((0, height), (0, width), SAMPLES)
  world_rays = view.rays(u, v)
  along, plane = shell.hit(view.position_3, world_rays)
  points = view.position_3 + along[:, None] * world_rays
  normals = shell.planes_P4[plane, :3]

  # The first light is blocked by what stands in the room; the others cast no shadow.
  key_light = lights.directions_L3[0]
  shaded = np.zeros(len(points), bool)
  for one in standing:
    shaded |= _blocked(
      one,
      view,
      points,
      key_light,
    )

  # The ambient term falls off away from the sky, as in the renderer.
  sky = 0.75 + 0.25 * normals[:, 2:]
  light = lights.ambient_3 * sky
  for number, direction in enumerate(lights.directions_L3):
    # Lambert's cosine; a light behind a plane gives nothing.
    facing = np.maximum(normals @ direction, 0)
    lit = ~shaded if number == 0 else 1.0
    cosine = facing * lit
    light = light + cosine[:, None] * lights.colours_L3[number]

  # A pixel is the mean of its samples.
  albedo = shell.albedo(points, plane)
  colour = (albedo * light).astype(np.float32)
  samples = colour.reshape(
    height,
    SAMPLES,
    width,
    SAMPLES,
    3,
  )
  return samples.mean((1, 3))


def _blocked(
  one: Standing, view: View, points_N3: np.ndarray, direction_3: np.ndarray
) -> np.ndarray:
  """Whether the object stands between each world point and a light in the given direction."""
  # Points and direction in the object's frame.
  in_camera = one.viewpoint.pose.translation
  place = view.position_3 + view.rotation_33.T @ in_camera
  from_object = points_N3 - place
  local = from_object @ one.turn_33 / one.viewpoint.scale
  local = local.astype(np.float32)
  towards = direction_3 @ one.turn_33
  towards = towards.astype(np.float32)

  # Only rays that pass the object's bounding sphere need to be cast.
  ahead = local @ towards
  aside = local - ahead[:, None] * towards
  miss = np.linalg.norm(aside, axis=1)
  passes = (miss < SPHERE) & (ahead < SPHERE)
  near = np.flatnonzero(passes)

  # Shadow rays start a little way towards the light.
  start = local[near] + render.SHADOW_OFFSET * towards
  directions = np.broadcast_to(towards, start.shape)
  blocked = np.zeros(len(local), bool)
  blocked[near] = one.scene.caster.blocked(start, directions)
  return blocked


def write_room(folder: pathlib.Path, room: Room) -> None:
  """Writes a room as a scene folder: image.png, masks, pointmap.npz, licence."""
  folder.mkdir(parents=True, exist_ok=True)
  scene = room.scene
  photo = Image.fromarray(scene.image_HW3)
  photo.save(folder / "image.png")
  (folder / "image.png.license").write_text(LICENSE + "\n")

  # Masks are numbered pictures, as a photo folder has them.
  for i, mask in enumerate(scene.masks):
    grey = mask.astype(np.uint8) * 255
    picture = Image.fromarray(grey)
    picture.save(folder / f"{i}.png")

  # The point map with the matrix of its camera.
  camera = scene.camera
  matrix = np.array(
    [
      [camera.fx, 0, camera.cx],
      [0, camera.fy, camera.cy],
      [0, 0, 1],
    ]
  )
  np.savez_compressed(
    folder / "pointmap.npz",
    pointmap=scene.pointmap_HW3,
    intrinsics=matrix,
  )

  # Nobody should take it for a photo.
  about = {
    "synthetic": True,
    "made by": "data_pipelines.synth.procedural_scenes",
  }
  text = json.dumps(about) + "\n"
  (folder / "scene.json").write_text(text)

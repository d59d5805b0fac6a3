"""A room around an object: floor, wall and, in front of the object, another one.

Everything lies in the object's frame (z up, the object in its unit cube and standing on the floor),
so all of it can be joined to one mesh, the object's camera serves the whole scene and the point map
is complete.
"""

import dataclasses

import numpy as np
from PIL import Image

from data_pipelines.synth.camera import Viewpoint, rays
from sam3d_jax.render.mesh import Material, Mesh

MARGIN = 0.05  # of the image's side, by which floor and wall reach beyond the picture
PATTERNS = ("plain", "checks", "planks")
TEXTURE = 256  # pixels a side
STAINS = ((4, 24), (16, 12), (64, 8))  # patches a side, and their strength in grey levels


@dataclasses.dataclass(frozen=True)
class Spot:
  """Where an object stands."""

  x: float  # centre of its box
  y: float
  size: float  # times the unit cube
  yaw: float  # radians about z


def stand(mesh: Mesh, spot: Spot, floor: float) -> Mesh:
  """The mesh on the floor (a height z) at a spot."""
  c = np.cos(spot.yaw)
  s = np.sin(spot.yaw)
  # acts on rows
  turn = np.array(
    [
      [c, s, 0],
      [-s, c, 0],
      [0, 0, 1],
    ]
  )
  turned = mesh.vertices @ turn * spot.size

  # The middle of the underside of its box comes to lie at the spot.
  low = turned.min(0)
  high = turned.max(0)
  middle_x, middle_y, _ = (low + high) / 2
  underside = low[2]
  foot = np.array([middle_x, middle_y, underside])
  place = [spot.x, spot.y, floor]
  vertices = turned - foot + place
  return dataclasses.replace(mesh, vertices=vertices)


def backdrop(
  rng: np.random.Generator, viewpoint: Viewpoint, floor: float, far: float
) -> list[Mesh]:
  """Floor and wall that fill the picture: the floor up to depth `far`, the wall at that depth.

  The camera must look at the floor from above, at least through the lower edge of the picture.
  """
  floor_43, wall_43 = _corners(viewpoint, floor, far)
  # One scale for both, so that they seem of one room.
  tiles = float(rng.uniform(0.6, 2.0))  # repeats of the texture over the unit cube's side
  floor_uv = floor_43[:, :2] * tiles
  once = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
  wall_uv = once * tiles * 2
  return [
    _quad(floor_43, floor_uv, _texture(rng)),
    _quad(wall_43, wall_uv, _texture(rng)),
  ]


def _corners(viewpoint: Viewpoint, floor: float, far: float) -> tuple[np.ndarray, np.ndarray]:
  """Corners (4, 3) of the floor and of the wall in the object frame, each the way around."""
  camera = viewpoint.camera
  eye = viewpoint.eye
  left = -MARGIN * camera.width
  right = (1 + MARGIN) * camera.width
  top = -MARGIN * camera.height
  bottom = (1 + MARGIN) * camera.height

  def ray(u, v):
    in_camera = rays(camera, np.float64(u), np.float64(v))
    return in_camera @ viewpoint.to_object

  # The floor, on the left and on the right edge of the picture.
  near_corners = []
  far_corners = []
  drop = floor - eye[2]
  for u in (left, right):
    # How much a ray falls per unit of depth, at the lower and at the upper edge.
    lowest_ray = ray(u, bottom)
    steepest = lowest_ray[2]
    flattest = ray(u, top)[2]
    if steepest >= 0:
      raise ValueError("the camera does not see the floor through the lower edge of its picture")
    depth = drop / steepest
    near_corners.append(eye + depth * lowest_ray)

    # The ray that ends the floor: z per unit of depth is linear in v.
    slope = min(max(drop / far, steepest), flattest)
    share = (slope - steepest) / (flattest - steepest)
    v = bottom + share * (top - bottom)
    depth = drop / slope
    far_corners.append(eye + depth * ray(u, v))
  floor_corners = [*near_corners, *far_corners[::-1]]

  # The wall, through the corners of the picture.
  around = ((left, top), (right, top), (right, bottom), (left, bottom))
  wall_corners = [eye + far * ray(u, v) for u, v in around]
  return np.array(floor_corners), np.array(wall_corners)


def _texture(rng: np.random.Generator) -> np.ndarray:
  """A pattern with soft stains, (TEXTURE, TEXTURE, 3) uint8."""
  number = int(rng.integers(len(PATTERNS)))
  pattern = PATTERNS[number]
  base = rng.integers(90, 225, 3)
  change = rng.integers(-45, 46, 3)
  second = np.clip(base + change, 20, 245)

  # How much of the second colour each pixel has.
  size = (TEXTURE, TEXTURE)
  y, x = np.indices(size)
  if pattern == "checks":
    side = TEXTURE // 4
    mix = (x // side + y // side) % 2
  elif pattern == "planks":
    width = TEXTURE // 8
    tone = rng.integers(0, 256, 8)
    is_joint = y % width < 3
    of_plank = tone[y // width] / 255
    mix = np.where(is_joint, 1.5, of_plank)
  else:
    mix = np.zeros(size)

  # Stains: noise of a few sizes, blurred by enlarging it.
  stains = np.zeros(size)
  for side, strength in STAINS:
    drawn = rng.integers(0, 256, (side, side), np.uint8)
    noise = Image.fromarray(drawn)
    blurred = noise.resize(size, Image.Resampling.BICUBIC)
    share = np.asarray(blurred, np.float64) / 255
    stains += (share - 0.5) * strength
  mixed = mix[..., None] * (second - base)
  colour = base + mixed + stains[..., None]
  return np.clip(np.rint(colour), 0, 255).astype(np.uint8)


def _quad(corners_43: np.ndarray, uv_42: np.ndarray, texture_HW3: np.ndarray) -> Mesh:
  """Two triangles with a texture."""
  white = (1.0, 1.0, 1.0)
  return Mesh(
    vertices=corners_43,
    faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
    colours=np.ones((4, 3), np.float32),
    uv=uv_42.astype(np.float32),
    material=np.zeros(2, np.int32),
    materials=(Material(white, texture_HW3),),
  )

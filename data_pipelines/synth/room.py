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
  c, s = np.cos(spot.yaw), np.sin(spot.yaw)
  turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
  turned = mesh.vertices @ turn * spot.size
  low, high = turned.min(0), turned.max(0)
  foot = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
  return dataclasses.replace(mesh, vertices=turned - foot + [spot.x, spot.y, floor])


def backdrop(
  rng: np.random.Generator, viewpoint: Viewpoint, floor: float, far: float
) -> list[Mesh]:
  """Floor and wall that fill the picture: the floor up to depth `far`, the wall at that depth.

  The camera must look at the floor from above, at least through the lower edge of the picture.
  """
  floor_43, wall_43 = _corners(viewpoint, floor, far)
  tiles = float(rng.uniform(0.6, 2.0))  # repeats of the texture over the unit cube's side
  once = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
  return [
    _quad(floor_43, floor_43[:, :2] * tiles, _texture(rng)),
    _quad(wall_43, once * tiles * 2, _texture(rng)),
  ]


def _corners(viewpoint: Viewpoint, floor: float, far: float) -> tuple[np.ndarray, np.ndarray]:
  """Corners (4, 3) of the floor and of the wall in the object frame, each the way around."""
  camera, eye = viewpoint.camera, viewpoint.eye
  left, right = -MARGIN * camera.width, (1 + MARGIN) * camera.width
  top, bottom = -MARGIN * camera.height, (1 + MARGIN) * camera.height

  def ray(u, v):
    return rays(camera, np.float64(u), np.float64(v)) @ viewpoint.to_object

  near_corners, far_corners = [], []
  for u in (left, right):
    steepest, flattest = ray(u, bottom)[2], ray(u, top)[2]
    if steepest >= 0:
      raise ValueError("the camera does not see the floor through the lower edge of its picture")
    near_corners.append(eye + (floor - eye[2]) / steepest * ray(u, bottom))
    # z per unit of depth of the ray that ends the floor
    slope = min(max((floor - eye[2]) / far, steepest), flattest)
    v = bottom + (slope - steepest) / (flattest - steepest) * (top - bottom)
    far_corners.append(eye + (floor - eye[2]) / slope * ray(u, v))
  around = ((left, top), (right, top), (right, bottom), (left, bottom))
  wall = [eye + far * ray(u, v) for u, v in around]
  return np.array([*near_corners, *far_corners[::-1]]), np.array(wall)


def _texture(rng: np.random.Generator) -> np.ndarray:
  """A pattern with soft stains, (TEXTURE, TEXTURE, 3) uint8."""
  pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
  base = rng.integers(90, 225, 3)
  second = np.clip(base + rng.integers(-45, 46, 3), 20, 245)
  y, x = np.indices((TEXTURE, TEXTURE))
  if pattern == "checks":
    mix = (x // (TEXTURE // 4) + y // (TEXTURE // 4)) % 2
  elif pattern == "planks":
    width = TEXTURE // 8
    tone = rng.integers(0, 256, 8)
    mix = np.where(y % width < 3, 1.5, tone[y // width] / 255)
  else:
    mix = np.zeros((TEXTURE, TEXTURE))
  stains = np.zeros((TEXTURE, TEXTURE))
  for side, strength in STAINS:
    noise = Image.fromarray(rng.integers(0, 256, (side, side), np.uint8))
    blurred = noise.resize((TEXTURE, TEXTURE), Image.Resampling.BICUBIC)
    stains += (np.asarray(blurred, np.float64) / 255 - 0.5) * strength
  colour = base + mix[..., None] * (second - base) + stains[..., None]
  return np.clip(np.rint(colour), 0, 255).astype(np.uint8)


def _quad(corners_43: np.ndarray, uv_42: np.ndarray, texture_HW3: np.ndarray) -> Mesh:
  """Two triangles with a texture."""
  return Mesh(
    vertices=corners_43,
    faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
    colours=np.ones((4, 3), np.float32),
    uv=uv_42.astype(np.float32),
    material=np.zeros(2, np.int32),
    materials=(Material((1.0, 1.0, 1.0), texture_HW3),),
  )

"""Pictures to look at: shaded renders of meshes and labelled grids of them."""

from collections.abc import Sequence
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from sam3d_jax.geometry import cameras
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose, transform_points
from sam3d_jax.render.mesh import Mesh, stored_colours
from sam3d_jax.render.raycast import Caster

BACKGROUND = np.array([250, 250, 252], np.float64)
INK = (40, 42, 48)
# (direction to the light in the camera frame, strength)
LIGHTS = (((0.45, 0.75, -0.75), 0.70), ((-0.8, 0.1, -0.4), 0.22))
AMBIENT = 0.28
START = -4.0  # camera z of parallel rays, before anything in the unit cube
# Colours that tell objects apart (Okabe & Ito 2008, without black), in order and then again.
MARKS = np.array(
  [
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [240, 228, 66],
    [0, 114, 178],
    [213, 94, 0],
    [204, 121, 167],
  ],
  np.uint8,
)


def render(
  mesh: Mesh | None,
  view_33: np.ndarray,
  *,
  size: int = 192,
  extent: float = 1.4,
  supersample: int = 2,
) -> np.ndarray:
  """Orthographic render of a mesh: (size, size, 3) uint8; an empty mesh (None) is background.

  Vertex colours are shown as they are stored. Textures are not: pictures tell objects apart.

  view_33: object -> camera, acts on columns, as in Pose; the camera frame is x left, y up, z
    forward.
  extent: width of the picture in object units (the unit cube is 1 wide, 1.73 along its diagonal).
  """
  # More pixels than asked for, averaged in the end.
  fine = size * supersample
  plain = np.broadcast_to(BACKGROUND, (fine * fine, 3))
  shaded = plain.copy()
  if mesh is not None and len(mesh.faces):
    # Rays are cast in the camera's frame, so light directions need no turning.
    in_camera = mesh.vertices @ view_33.T
    ray, face, position = cast(
      in_camera,
      mesh.faces,
      fine,
      extent,
    )
    normal = shading_normals(in_camera, mesh.faces, face, position)
    # A face has the mean colour of its corners.
    corners = mesh.faces[face]
    corner_colours = stored_colours(mesh)[corners]
    colour = corner_colours.mean(1)
    lit = light(normal)
    shaded[ray] = colour * lit[:, None]

  # A picture of blocks of supersample x supersample pixels, averaged.
  blocks = shaded.reshape(
    size,
    supersample,
    size,
    supersample,
    3,
  )
  return to_uint8(blocks.mean((1, 3)))


def to_uint8(picture: np.ndarray) -> np.ndarray:
  """Colours in 0..255, rounded and cut."""
  rounded = np.round(picture)
  return np.clip(rounded, 0, 255).astype(np.uint8)


def cast(
  vertices_V3: np.ndarray, faces_F3: np.ndarray, size: int, extent: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """First hits of a grid of parallel rays along camera z: (ray index, face index, point) each."""
  # Camera x is left and y is up: columns and rows of the picture run against both.
  centres = np.arange(size) + 0.5
  places = centres / size - 0.5
  offset = places * extent
  across = -offset[None, :]
  upwards = -offset[:, None]
  grid = np.broadcast_arrays(across, upwards, START)
  origins = np.stack(grid, -1).reshape(-1, 3)

  # All rays look along z.
  forward = np.array([0.0, 0.0, 1.0])
  directions = np.broadcast_to(forward, origins.shape)
  caster = Caster(Mesh(vertices_V3, faces_F3))
  found = caster.nearest(origins, directions)

  # Rays that hit something.
  hit = found.face_N >= 0
  ray = np.flatnonzero(hit)
  face = found.face_N[ray]
  start = origins[ray]

  # Where the ray meets the face's plane, in float64; a plane along the ray has no slope.
  corners = vertices_V3[faces_F3[face]]
  a, b, c = corners.swapaxes(0, 1)
  plane = np.cross(b - a, c - a)
  along_ray = plane[:, 2]
  slope = np.where(along_ray == 0, 1e-12, along_ray)
  to_plane = (a - start) * plane
  depth = to_plane.sum(-1) / slope
  position = start + depth[:, None] * forward
  return ray, face, position


def shading_normals(vertices_V3, faces_F3, face_N, position_N3) -> np.ndarray:
  """Unit normals at hit points, interpolated between vertex normals, turned towards the camera."""
  # A vertex's normal is the area-weighted mean of its faces'.
  corners = vertices_V3[faces_F3]
  ab = corners[:, 1] - corners[:, 0]
  ac = corners[:, 2] - corners[:, 0]
  cross = np.cross(ab, ac)
  smooth = np.zeros_like(vertices_V3)
  for i in range(3):
    corner = faces_F3[:, i]
    np.add.at(smooth, corner, cross)
  unit = _unit(smooth)

  # Barycentric weights from the areas of the triangles that the point makes with the edges.
  a, b, c = corners[face_N].swapaxes(0, 1)
  here = cross[face_N]
  squared = np.square(here).sum(-1)
  area = np.maximum(squared, 1e-30)
  from_a = position_N3 - a
  part_b = np.cross(from_a, c - a)
  part_c = np.cross(b - a, from_a)
  along_b = (part_b * here).sum(-1)
  along_c = (part_c * here).sum(-1)
  weight_b = along_b / area
  weight_c = along_c / area
  weight_a = 1 - weight_b - weight_c
  weights = np.stack([weight_a, weight_b, weight_c], -1)

  # The weighted mean of the corners' normals; a face seen from behind turns its own round.
  corner_normals = unit[faces_F3[face_N]]
  weighted = corner_normals * weights[..., None]
  normal = _unit(weighted.sum(1))
  away = normal[:, 2:] > 0
  return np.where(away, -normal, normal)


def _unit(vectors_N3: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(
    vectors_N3,
    axis=-1,
    keepdims=True,
  )
  return vectors_N3 / np.maximum(length, 1e-30)


def light(normal_P3: np.ndarray) -> np.ndarray:
  """Lambertian shading under LIGHTS, (P,)."""
  total = np.full(len(normal_P3), AMBIENT)
  for direction, strength in LIGHTS:
    # A light behind the surface gives nothing.
    length = np.linalg.norm(direction)
    unit = np.array(direction) / length
    cosine = normal_P3 @ unit
    facing = np.clip(cosine, 0, None)
    total += strength * facing
  return total


def overlay(
  image_HW3: np.ndarray,
  camera: Camera,
  objects: Sequence[tuple[Caster, Pose, np.ndarray]],
  *,
  opacity: float = 0.85,
) -> np.ndarray:
  """A photo with posed objects over it as its camera sees them, the nearest in front.

  objects: (mesh, pose, colour in 0..255) each. Returns (H, W, 3) uint8.
  """
  # Objects are drawn in any order: a depth buffer decides.
  out = image_HW3.astype(np.float64)
  size = image_HW3.shape[:2]
  nearest = np.full(size, np.inf)
  for caster, where, colour in objects:
    # Pixels in which this object is the nearest so far.
    hits = caster.cast(where, camera)
    depth_HW = np.nan_to_num(hits.depth_HW, nan=np.inf)
    is_seen = hits.face_HW >= 0
    in_front = is_seen & (depth_HW < nearest)
    row, column = np.nonzero(in_front)
    face = hits.face_HW[row, column]
    depth = hits.depth_HW[row, column]
    depth = depth.astype(np.float64)
    nearest[row, column] = depth

    # Hit points, from pixel centres and depths.
    mesh = caster.mesh
    pixels = np.stack([column, row], -1) + 0.5
    position = cameras.unproject(pixels, depth, camera)

    # Shaded where they are hit.
    posed = transform_points(mesh.vertices, where)
    normal = shading_normals(posed, mesh.faces, face, position)
    lit = light(normal)
    full = np.asarray(colour, np.float64)
    shaded = full * lit[:, None]

    # Mixed with the photo, not with objects behind.
    behind = image_HW3[row, column]
    shining_through = (1 - opacity) * behind
    out[row, column] = shining_through + opacity * shaded
  return to_uint8(out)


def outline(
  image_HW3: np.ndarray,
  masks: Sequence[np.ndarray],
  colours: Sequence[np.ndarray],
  *,
  width: int = 2,
) -> np.ndarray:
  """A photo with the outlines of masks drawn just inside them."""
  out = image_HW3.copy()
  for mask, colour in zip(masks, colours, strict=True):
    # What erosion takes away is the rim.
    inner = ndimage.binary_erosion(mask, iterations=width)
    out[mask & ~inner] = colour
  return out


def mark(index: int) -> np.ndarray:
  """The colour of the object of this number, (3,) uint8."""
  return MARKS[index % len(MARKS)]


def turned(view_33: np.ndarray, degrees: float) -> np.ndarray:
  """The view of an object that has first been turned about its own vertical axis (z)."""
  # A turn about z before the view.
  angle = np.radians(degrees)
  c = np.cos(angle)
  s = np.sin(angle)
  turn = np.array(
    [
      [c, -s, 0.0],
      [s, c, 0.0],
      [0.0, 0.0, 1.0],
    ]
  )
  return view_33 @ turn


def orbit(azimuth: float, elevation: float) -> np.ndarray:
  """Object -> camera, as in Pose, of a camera that looks at the origin from these angles
  (degrees, object frame z up).
  """
  a = np.radians(azimuth)
  e = np.radians(elevation)
  # From the origin to the camera, and the camera's own axes.
  towards = [
    np.cos(e) * np.cos(a),
    np.cos(e) * np.sin(a),
    np.sin(e),
  ]
  forward = -np.array(towards)
  # Horizontal, at right angles to the view.
  left = np.array([np.sin(a), -np.cos(a), 0.0])
  up = np.cross(forward, left)
  return np.stack([left, up, forward])


def beside(pictures: Sequence[np.ndarray], titles: Sequence[str], *, gap: int = 8) -> Image.Image:
  """Pictures side by side in their own size, a title above each.

  No picture is too narrow for its title.
  """
  # A column is as wide as its picture or its title.
  top = 24
  font = ImageFont.load_default(13)
  widths = []
  for picture, title in zip(pictures, titles, strict=True):
    title_width = math.ceil(font.getlength(title))
    picture_width = picture.shape[1]
    widths.append(max(picture_width, title_width))

  # A gap on both sides of every picture, and below.
  gaps = gap * (len(widths) + 1)
  width = sum(widths) + gaps
  tallest = max(picture.shape[0] for picture in pictures)
  height = top + tallest + gap
  sheet = Image.new("RGB", (width, height), "white")
  draw = ImageDraw.Draw(sheet)

  # From left to right, flush at the top.
  left = gap
  for picture, title, column in zip(pictures, titles, widths, strict=True):
    draw.text(
      (left, 4),
      title,
      fill=INK,
      font=font,
    )
    sheet.paste(Image.fromarray(picture), (left, top))
    left += column + gap
  return sheet


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
  """Sheets one below the other, on white."""
  width = max(sheet.width for sheet in sheets)
  height = sum(sheet.height for sheet in sheets)
  out = Image.new("RGB", (width, height), "white")
  # Flush left; narrower ones leave white on the right.
  top = 0
  for sheet in sheets:
    out.paste(sheet, (0, top))
    top += sheet.height
  return out


def fit(image: np.ndarray, size: int) -> np.ndarray:
  """An image, grey or RGB, of any size as (size, size, 3) uint8: fitted in, on the background."""
  if image.ndim == 2:
    grey = image[..., None]
    image = np.repeat(grey, 3, -1)

  # The longer side becomes `size`; the shorter one is a pixel at least.
  picture = Image.fromarray(image)
  scale = size / max(picture.size)
  width = round(picture.width * scale)
  height = round(picture.height * scale)
  width = max(1, width)
  height = max(1, height)
  picture = picture.resize((width, height), Image.Resampling.LANCZOS)

  # In the middle of the canvas.
  background = tuple(int(v) for v in BACKGROUND)
  canvas = Image.new("RGB", (size, size), background)
  left = (size - width) // 2
  top = (size - height) // 2
  canvas.paste(picture, (left, top))
  return np.asarray(canvas)


def grid(
  rows: Sequence[Sequence[np.ndarray]],
  columns: Sequence[str],
  captions: Sequence[str],
  *,
  title: str = "",
  size: int = 192,
  gap: int = 8,
) -> Image.Image:
  """A labelled grid: a row of pictures an object, headers above columns, captions under rows."""
  # Sizes of the parts, in pixels.
  top = 30 if title else 0
  header = 22
  caption = 20
  across = size + gap
  down = size + caption + gap
  width = len(columns) * across + gap
  height = top + header + len(rows) * down + gap

  # The canvas, its title and a header above each column.
  sheet = Image.new("RGB", (width, height), "white")
  draw = ImageDraw.Draw(sheet)
  large = ImageFont.load_default(15)
  small = ImageFont.load_default(13)
  draw.text(
    (gap, 8),
    title,
    fill=INK,
    font=large,
  )
  for column, name in enumerate(columns):
    x = gap + column * across
    draw.text(
      (x, top + 2),
      name,
      fill=INK,
      font=small,
    )

  # A row: its pictures, and the caption below them.
  captioned = zip(rows, captions, strict=True)
  for row, (pictures, text) in enumerate(captioned):
    y = top + header + row * down
    for column, picture in enumerate(pictures):
      x = gap + column * across
      fitted = fit(picture, size)
      sheet.paste(Image.fromarray(fitted), (x, y))
    draw.text(
      (gap, y + size + 2),
      text,
      fill=(110, 112, 120),
      font=small,
    )
  return sheet

"""What the readers of all formats share: parts put together, colours as they are stored, words."""

import dataclasses

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.render.colour import srgb_to_linear
from sam3d_jax.render.mesh import Material, Mesh, join

GREY = Material((0.6, 0.6, 0.6))  # of surfaces that state no colour at all
SCALES = (1.0, 255.0, 65535.0)  # what colours go up to
FEW = 16  # times the corners of some faces that a mesh's vertices may be
MAX_UV = 1e4  # repeats of a texture; beyond it float32 no longer resolves a texel


@dataclasses.dataclass(frozen=True)
class Surfaces:
  """What a file holds: triangles as one mesh, or points if it has no triangles."""

  mesh: Mesh
  dropped: tuple[str, ...] = ()  # what it holds beside them, in words


# What readers leave out on purpose, in words; `count` of each.


def drawings_dropped(count: int) -> list[str]:
  """Lines, single corners, free forms."""
  return _words(count, "drawings that are neither triangles nor points")


def faces_dropped(count: int) -> list[str]:
  """Faces whose texels are all transparent."""
  return _words(count, "faces that alpha makes invisible")


def textures_dropped(count: int) -> list[str]:
  """Textures that nothing places on the surface."""
  return _words(count, "textures without texture coordinates")


def _words(count: int, what: str) -> list[str]:
  if not count:
    return []
  return [f"{count} {what}"]


def together(parts: list[Mesh]) -> Mesh:
  """Parts as one mesh, each material once in the order of first use; empty without parts."""
  empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
  mesh = join(parts or [empty])
  # Where each material stands once it is there but once.
  slots: dict[int, int] = {}
  once = []
  for material in mesh.materials:
    if id(material) not in slots:
      slots[id(material)] = len(once)
      once.append(material)
  if len(once) == len(mesh.materials):
    return mesh
  new_slots = [slots[id(material)] for material in mesh.materials]
  renumbered = np.array(new_slots, np.int32)[mesh.material]
  return dataclasses.replace(mesh, material=renumbered, materials=tuple(once))


def in_one(mesh: Mesh, look: Material) -> Mesh:
  """The mesh with one material for all of it."""
  material = np.zeros(len(mesh.faces), np.int32)
  dressed = dataclasses.replace(mesh, material=material, materials=(look,))
  return dressed.with_appearance()


def check_faces(faces: np.ndarray, count: int, name: str, *, first: int = 0) -> None:
  """Raises Refused (unreadable) for a face of a vertex that does not exist.

  first: the number of the first vertex in this format, for the message.
  """
  if not faces.size:
    return
  low = faces.min()
  high = faces.max()
  if low < 0:
    raise Refused("unreadable", f"{name}: a face names vertex {low + first} of {count}")
  if high >= count:
    raise Refused("unreadable", f"{name}: a face names vertex {high + first} of {count}")


def clipped_uv(stated: np.ndarray) -> np.ndarray:
  """float32 texture coordinates; 0 where they are not a number."""
  values = np.asarray(stated, np.float32)
  known = np.nan_to_num(values)
  return np.clip(known, -MAX_UV, MAX_UV)


def linear_of(values: np.ndarray, largest: float | None = None) -> np.ndarray:
  """Linear float32 colours (V, 3) of sRGB colours that go up to `largest`.

  None: to the smallest of 1, 255 and 65535 that holds them all, as tools write any.
  """
  # alpha, where there is one, says nothing here
  rgb = np.asarray(values)[:, :3]
  if largest is None:
    values = rgb.astype(np.float64)
    known = np.nan_to_num(values)
    highest = known.max(initial=0.0)
    holding = [scale for scale in SCALES if highest <= scale]
    largest = (*holding, SCALES[-1])[0]
  fractions = np.nan_to_num(rgb / largest)
  inside = np.clip(fractions, 0.0, 1.0)
  return srgb_to_linear(inside)


def longest_side(points_P3: np.ndarray) -> float:
  """Of the box of the points that are finite."""
  is_finite = np.isfinite(points_P3).all(1)
  if not is_finite.any():
    return 0.0
  sides = np.ptp(points_P3[is_finite], axis=0)
  return float(sides.max())


def corners_apart(mesh: Mesh, colours_F3: np.ndarray) -> Mesh:
  """The mesh with a colour a face: every corner becomes a vertex of its own."""
  corners = mesh.faces.reshape(-1)
  faces = np.arange(len(corners)).reshape(-1, 3)
  uv = None
  if mesh.uv is not None:
    uv = mesh.uv[corners]
  return dataclasses.replace(
    mesh,
    vertices=mesh.vertices[corners],
    faces=faces,
    colours=np.repeat(colours_F3, 3, axis=0),
    uv=uv,
  )


def used_by(faces_F3: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Which of `count` vertices faces use, in order, and the faces of these alone."""
  # of few faces of many, what is used is soon sorted
  if FEW * faces_F3.size < count:
    used, numbers = np.unique(faces_F3, return_inverse=True)
    return used, numbers.reshape(faces_F3.shape)
  is_used = np.zeros(count, bool)
  is_used[faces_F3] = True
  number = np.cumsum(is_used) - 1
  return np.flatnonzero(is_used), number[faces_F3]


def part_of(mesh: Mesh, faces_F3: np.ndarray) -> tuple[Mesh, np.ndarray]:
  """Some faces of a mesh with the vertices that they use, and which vertices these are."""
  used, corners = used_by(faces_F3, len(mesh.vertices))
  colours = mesh.colours
  uv = mesh.uv
  if colours is not None:
    colours = colours[used]
  if uv is not None:
    uv = uv[used]
  return Mesh(mesh.vertices[used], corners, colours, uv), used

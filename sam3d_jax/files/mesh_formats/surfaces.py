"""What the readers of all formats share: parts put together, colours as they are stored."""

import dataclasses

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.render.colour import srgb_to_linear
from sam3d_jax.render.mesh import Material, Mesh, join

GREY = Material((0.6, 0.6, 0.6))  # of surfaces that state no colour at all
SCALES = (1.0, 255.0, 65535.0)  # what colours go up to
MAX_UV = 1e4  # repeats of a texture; beyond it float32 no longer resolves a texel


@dataclasses.dataclass(frozen=True)
class Surfaces:
  """What a file holds: triangles as one mesh, or points if it has no triangles."""

  mesh: Mesh
  dropped: tuple[str, ...] = ()  # what it holds beside them, in words


def together(parts: list[Mesh]) -> Mesh:
  """Parts as one mesh, each material once in the order of first use; empty without parts."""
  mesh = join(parts or [Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))])
  once = tuple({id(m): m for m in mesh.materials}.values())
  slot = {id(m): i for i, m in enumerate(once)}
  if len(once) == len(mesh.materials):
    return mesh
  new_slot = np.array([slot[id(m)] for m in mesh.materials], np.int32)
  return dataclasses.replace(mesh, material=new_slot[mesh.material], materials=once)


def check_faces(faces_F3: np.ndarray, count: int, name: str) -> None:
  """Raises Refused (unreadable) for a face of a vertex that does not exist."""
  if not len(faces_F3):
    return
  if faces_F3.min() < 0 or faces_F3.max() >= count:
    worst = faces_F3.min() if faces_F3.min() < 0 else faces_F3.max()
    raise Refused("unreadable", f"{name}: a face names vertex {worst} of {count}")


def linear_of(values: np.ndarray, largest: float | None = None) -> np.ndarray:
  """Linear float32 colours (V, 3) of sRGB colours that go up to `largest`.

  None: to the smallest of 1, 255 and 65535 that holds them all, as tools write any.
  """
  rgb = np.asarray(values)[:, :3]
  if largest is None:
    highest = np.nan_to_num(rgb.astype(np.float64)).max(initial=0.0)
    largest = next((step for step in SCALES if highest <= step), SCALES[-1])
  fractions = np.clip(np.nan_to_num(rgb / largest), 0.0, 1.0)
  return srgb_to_linear(fractions)


def corners_apart(mesh: Mesh, colours_F3: np.ndarray) -> Mesh:
  """The mesh with a colour a face: every corner becomes a vertex of its own."""
  corners = mesh.faces.reshape(-1)
  uv = None if mesh.uv is None else mesh.uv[corners]
  return dataclasses.replace(
    mesh,
    vertices=mesh.vertices[corners],
    faces=np.arange(len(corners)).reshape(-1, 3),
    colours=np.repeat(colours_F3, 3, axis=0),
    uv=uv,
  )

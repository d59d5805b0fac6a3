"""What alpha cuts away of a surface: there is neither a face nor a voxel there.

A renderer can test every ray against a texture, a voxeliser looks at triangles alone. So faces
without a visible texel go, and a face that is part visible and part not is split until its parts
are either or are too small to matter. Nothing that is visible is ever cut.
"""

import dataclasses
import functools
import weakref

import numpy as np

from sam3d_jax.files.mesh_formats.surfaces import used_by
from sam3d_jax.render.mesh import Mesh

MASK_CUTOFF = 0.5  # of glTF, where a material states none
BLEND_CUTOFF = 0.5 / 255  # what is blended is gone only where nothing of it is left
FINEST = 256  # parts of the longest side of the whole; faces are split no further
BORDER = 1e-3  # of a texel, which a face may touch without covering any of it
MAX_SPLIT = 500_000  # faces that splitting may make of one part


@dataclasses.dataclass(frozen=True)
class Cut:
  """What of one part is transparent.

  `shown_V` is the alpha of vertices (and material); a surface with an alpha below `cutoff` is gone.
  """

  cutout_HW: np.ndarray | None  # bool, texels that are gone by themselves
  shown_V: np.ndarray | None  # (V,) float; None: 1 everywhere
  cutoff: float = MASK_CUTOFF


EVERYTHING = Cut(None, None, cutoff=2.0)  # above any alpha


def cutout(alpha_HW: np.ndarray | None, factor: float, cutoff: float) -> np.ndarray | None:
  """(H, W) bool of texels that are gone: uint8 alpha times `factor` is below `cutoff`.

  None if that is none of them.
  """
  if alpha_HW is None:
    return None
  gone = alpha_HW * factor < 255 * cutoff
  return gone if gone.any() else None


def holes(cutout_HW: np.ndarray | None) -> np.ndarray | None:
  """What of a cutout a renderer has to look for: where all is gone there is no face to hit."""
  if cutout_HW is None or cutout_HW.all():
    return None
  return cutout_HW


def apply(mesh: Mesh, cut: Cut, longest: float) -> tuple[Mesh, int]:
  """A mesh of one material without what is gone of it, and how many of its faces are wholly gone.

  Faces of which nothing is cut stay as they are. longest: the longest side of the whole that the
  mesh is part of, in its unit.
  """
  mesh = mesh.with_appearance()
  shown = cut.shown_V
  if shown is None:
    shown = np.ones(len(mesh.vertices), np.float32)
  attributes = [mesh.vertices, mesh.colours, mesh.uv, shown]
  texels = _texels_of(cut.cutout_HW)
  smallest = longest / FINEST

  # Round by round: what is wholly visible stays, what is wholly gone goes, the rest is split.
  whole = np.asarray(mesh.faces, np.int64)
  has_lost = np.zeros(len(whole), bool)
  faces = whole
  owner = np.arange(len(whole))
  kept = [whole[:0]]
  kept_owner = [owner[:0]]
  while len(faces):
    # texels and corners have to be visible both
    vertices, _, uv, shown = attributes
    some_seen, all_seen = texels.seen(uv[faces])
    corner_seen = shown[faces] >= cut.cutoff
    some_seen &= corner_seen.any(1)
    all_seen &= corner_seen.all(1)
    losers = owner[~some_seen]
    has_lost[losers] = True

    # what is split, unless that makes too many
    is_large = _longest_edges(vertices[faces]) > smallest
    partly = some_seen & ~all_seen & is_large
    made = sum(map(len, kept))
    made += 4 * np.count_nonzero(partly)
    if made > MAX_SPLIT:
      partly = np.zeros(len(faces), bool)
    done = some_seen & ~partly
    kept.append(faces[done])
    kept_owner.append(owner[done])
    faces, attributes = _split(faces[partly], attributes)
    owner = np.tile(owner[partly], 4)

  # What was split in vain is put together again.
  left = np.concatenate(kept)
  left_owner = np.concatenate(kept_owner)
  untouched = whole[~has_lost]
  pieces = left[has_lost[left_owner]]
  left = np.concatenate([untouched, pieces])
  gone = np.setdiff1d(np.flatnonzero(has_lost), left_owner)
  return _left_of(mesh, left, attributes), len(gone)


def _left_of(mesh: Mesh, faces: np.ndarray, attributes: list[np.ndarray]) -> Mesh:
  """The faces that are left, with the vertices that they use."""
  if not len(faces):
    # no vertex of it may count for the box
    return Mesh(np.zeros((0, 3)), faces)
  vertices, colours, uv, _ = attributes
  used, corners = used_by(faces, len(vertices))
  return Mesh(
    vertices[used],
    corners,
    colours[used],
    uv[used],
    material=np.zeros(len(faces), np.int32),
    materials=mesh.materials,
  )


def _longest_edges(corners_F33: np.ndarray) -> np.ndarray:
  following = np.roll(corners_F33, 1, axis=1)
  edges = corners_F33 - following
  squared = (edges**2).sum(-1)
  return np.sqrt(squared).max(1)


def _split(
  faces_F3: np.ndarray, attributes: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
  """Four faces for each, and per-vertex attributes with the middles of edges behind them."""
  a, b, c = faces_F3.T
  count = len(attributes[0])

  # Both ends of an edge in one number: faces that share an edge share its middle.
  starts = np.concatenate([a, b, c])
  ends = np.concatenate([b, c, a])
  lower = np.minimum(starts, ends)
  upper = np.maximum(starts, ends)
  edges, edge_of = np.unique(lower * count + upper, return_inverse=True)
  low, high = np.divmod(edges, count)
  middles = count + edge_of.reshape(3, -1)
  ab, bc, ca = middles

  # What lies in the middle of an edge is the mean of its ends.
  grown = []
  for values in attributes:
    between = (values[low] + values[high]) / 2
    between = between.astype(values.dtype)
    grown.append(np.concatenate([values, between]))

  quarters = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
  faces = [np.stack(quarter, axis=1) for quarter in quarters]
  return np.concatenate(faces), grown


class _Texels:
  """Counts of visible texels in rectangles of a repeating texture."""

  def __init__(self, cutout_HW: np.ndarray | None):
    self._sums = None
    if cutout_HW is None:
      # all of it is visible
      return
    height, width = cutout_HW.shape
    self._height, self._width = height, width
    # visible texels above and before each corner of the grid
    sums = np.zeros((height + 1, width + 1), np.int32)
    inner = sums[1:, 1:]
    np.cumsum(~cutout_HW, axis=0, dtype=np.int32, out=inner)
    np.cumsum(inner, axis=1, out=inner)
    self._sums = sums

  def seen(self, uv_F32: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether some, and whether all, of the texels around each face are visible; two (F,) bool."""
    count = len(uv_F32)
    if self._sums is None:
      return np.ones(count, bool), np.ones(count, bool)
    uv = uv_F32.astype(np.float64)
    left, right = _span(uv[..., 0] * self._width)
    top, bottom = _span((1 - uv[..., 1]) * self._height)

    # The rectangle from the four that begin at the picture's corner.
    visible = self._before(bottom, right)
    visible -= self._before(top, right)
    visible -= self._before(bottom, left)
    visible += self._before(top, left)
    area = (right - left) * (bottom - top)
    return visible > 0, visible == area

  def _before(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Visible texels of the repeated picture in rows < row and columns < column."""
    rows, row = np.divmod(row, self._height)
    columns, column = np.divmod(column, self._width)
    sums = self._sums
    # whole pictures, then those cut on the right, those cut below, and the one cut both ways
    visible = rows * columns * int(sums[-1, -1])
    cut_right = sums[-1, column].astype(np.int64)
    visible += rows * cut_right
    cut_below = sums[row, -1].astype(np.int64)
    visible += columns * cut_below
    visible += sums[row, column]
    return visible


# Counts of pictures that are in use: a mesh may have thousands of parts with one picture.
_counts: dict[int, tuple[weakref.ref, _Texels]] = {}


def _texels_of(cutout_HW: np.ndarray | None) -> _Texels:
  """The counts of a picture, made once while it is in use."""
  if cutout_HW is None:
    return _Texels(None)
  key = id(cutout_HW)
  if key in _counts:
    picture, texels = _counts[key]
    if picture() is cutout_HW:
      return texels
  texels = _Texels(cutout_HW)
  gone = functools.partial(_forget, key)
  _counts[key] = (weakref.ref(cutout_HW, gone), texels)
  return texels


def _forget(key: int, picture: weakref.ref) -> None:
  """A picture is no longer in use; its number may be another one's by now."""
  held = _counts.get(key)
  if held is not None and held[0] is picture:
    del _counts[key]


def _span(place_F3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """First texel that a face touches along one axis, and the one behind the last."""
  # a face that ends where a texel begins does not touch that texel, whatever rounding says
  low = place_F3.min(1) + BORDER
  high = place_F3.max(1) - BORDER
  first = np.floor(low).astype(np.int64)
  behind = np.ceil(high).astype(np.int64)
  return first, np.maximum(behind, first + 1)

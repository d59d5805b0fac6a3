"""What alpha cuts away of a surface: there is neither a face nor a voxel there.

A renderer can test every ray against a texture, a voxeliser looks at triangles alone. So faces
without a visible texel go, and a face that is part visible and part not is split until its parts
are either or are too small to matter. Nothing that is visible is ever cut.
"""

import dataclasses

import numpy as np

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


def cutout(alpha_HW: np.ndarray | None, factor: float, cutoff: float) -> np.ndarray | None:
  """(H, W) bool of texels that are gone: uint8 alpha times `factor` is below `cutoff`.

  None if that is none of them.
  """
  if alpha_HW is None:
    return None
  gone = alpha_HW * factor < 255 * cutoff
  return gone if gone.any() else None


def apply(mesh: Mesh, cut: Cut, longest: float) -> tuple[Mesh, int]:
  """A mesh of one material without what is gone of it, and how many of its faces are wholly gone.

  longest: the longest side of the whole that the mesh is part of, in its unit.
  """
  mesh = mesh.with_appearance()
  shown = cut.shown_V
  if shown is None:
    shown = np.ones(len(mesh.vertices), np.float32)
  texels = _Texels(cut.cutout_HW)
  faces = np.asarray(mesh.faces, np.int64)
  attributes = [mesh.vertices, mesh.colours, mesh.uv, shown]

  # Round by round: what is wholly visible stays, what is wholly gone goes, the rest is split.
  settled, gone = [], None
  smallest = longest / FINEST
  while len(faces):
    vertices, _, uv, shown = attributes
    some_seen, all_seen = texels.seen(uv[faces])
    some_seen &= (shown[faces] >= cut.cutoff).any(1)
    all_seen &= (shown[faces] >= cut.cutoff).all(1)
    if gone is None:
      gone = int(np.count_nonzero(~some_seen))
    size = _longest_edge(vertices[faces])
    open_ended = some_seen & ~all_seen & (size > smallest)
    settled.append(faces[some_seen & ~open_ended])
    faces = faces[open_ended]
    made = sum(len(done) for done in settled) + 4 * len(faces)
    if made > MAX_SPLIT:
      settled.append(faces)
      break
    faces, attributes = _split(faces, attributes)

  if not settled:
    return mesh, 0
  faces = np.concatenate(settled)
  vertices, colours, uv, _ = attributes
  if not len(faces):
    # nothing is left, and nothing of it may count for the box
    return Mesh(np.zeros((0, 3)), faces), gone
  used, faces = np.unique(faces, return_inverse=True)
  faces = faces.reshape(-1, 3)
  material = np.zeros(len(faces), np.int32)
  left = Mesh(vertices[used], faces, colours[used], uv[used], material, mesh.materials)
  return left, gone


def _longest_edge(corners_F33: np.ndarray) -> np.ndarray:
  with np.errstate(invalid="ignore", over="ignore"):
    edges = corners_F33 - np.roll(corners_F33, 1, axis=1)
    return np.sqrt((edges**2).sum(-1)).max(1)


def _split(faces_F3: np.ndarray, attributes: list[np.ndarray]):
  """Four faces for each, and per-vertex attributes with the middles of edges behind them."""
  a, b, c = faces_F3.T
  count = len(attributes[0])
  edges = np.concatenate([faces_F3[:, [0, 1]], faces_F3[:, [1, 2]], faces_F3[:, [2, 0]]])
  low, high = edges.min(1), edges.max(1)
  # both ends of an edge in one number: faces that share an edge share its middle
  packed, middle = np.unique(low * count + high, return_inverse=True)
  edges = np.stack(np.divmod(packed, count), 1)
  ab, bc, ca = (count + middle.reshape(-1)).reshape(3, -1)
  grown = []
  for values in attributes:
    between = (values[edges[:, 0]] + values[edges[:, 1]]) / 2
    grown.append(np.concatenate([values, between.astype(values.dtype)]))
  quarters = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
  faces = np.concatenate([np.stack(quarter, 1) for quarter in quarters])
  return faces, grown


class _Texels:
  """Counts of visible texels in rectangles of a repeating texture."""

  def __init__(self, cutout_HW: np.ndarray | None):
    self._sums = None
    if cutout_HW is not None:
      sums = np.zeros((cutout_HW.shape[0] + 1, cutout_HW.shape[1] + 1), np.int32)
      np.cumsum(~cutout_HW, axis=0, dtype=np.int32, out=sums[1:, 1:])
      np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
      self._sums = sums

  def seen(self, uv_F32: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether some, and whether all, of the texels around each face are visible; two (F,) bool."""
    count = len(uv_F32)
    if self._sums is None:
      return np.ones(count, bool), np.ones(count, bool)
    height, width = self._sums.shape[0] - 1, self._sums.shape[1] - 1
    left, right = _span(uv_F32[..., 0].astype(np.float64) * width)
    top, bottom = _span((1 - uv_F32[..., 1].astype(np.float64)) * height)
    visible = (
      self._below(bottom, right)
      - self._below(top, right)
      - self._below(bottom, left)
      + self._below(top, left)
    )
    return visible > 0, visible == (right - left) * (bottom - top)

  def _below(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Visible texels of the repeated picture in rows < row and columns < column."""
    height, width = self._sums.shape[0] - 1, self._sums.shape[1] - 1
    rows, row = np.divmod(row, height)
    columns, column = np.divmod(column, width)
    sums = self._sums
    whole = rows * columns * int(sums[-1, -1])
    above = rows * sums[-1, column].astype(np.int64)
    before = columns * sums[row, -1].astype(np.int64)
    return whole + above + before + sums[row, column]


def _span(place_F3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """First texel that a face touches along one axis, and the one behind the last."""
  # a face that ends where a texel begins does not touch that texel, whatever rounding says
  first = np.floor(place_F3.min(1) + BORDER).astype(np.int64)
  behind = np.ceil(place_F3.max(1) - BORDER).astype(np.int64)
  return first, np.maximum(behind, first + 1)

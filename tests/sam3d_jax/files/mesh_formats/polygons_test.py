"""Polygons: triangles cover exactly what the polygon covers, and face as it does."""

import numpy as np
import pytest

from sam3d_jax.errors import Refused
from sam3d_jax.files.mesh_formats import polygons

ELL = [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]
ARROW = [[0, 0], [2, 2], [0, 1], [-2, 2]]
COMB = [
  [0, 0],
  [7, 0],
  [7, 3],
  [6, 3],
  [6, 1],
  [5, 1],
  [5, 3],
  [4, 3],
  [4, 1],
  [3, 1],
  [3, 3],
  [0, 3],
]
# a square with a square hole, reached by a slit
KEYHOLE = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0], [1, 1], [1, 3], [3, 3], [3, 1], [1, 1]]
SPIRAL = [[0, 0], [6, 0], [6, 6], [1, 6], [1, 2], [4, 2], [4, 4], [3, 4], [3, 3], [2, 3], [2, 5]]
SPIRAL += [[5, 5], [5, 1], [0, 1]]


def turned(flat) -> np.ndarray:
  """In a tilted plane far from the origin."""
  points = np.asarray(flat, float) @ np.array([[0.6, 0.64, 0.48], [-0.8, 0.48, 0.36]])
  return points + [100, -50, 20]


def areas(faces, vertices) -> np.ndarray:
  """(F, 3) normals with the length of each triangle's area."""
  a, b, c = (vertices[faces[:, i]] for i in range(3))
  return np.cross(b - a, c - a) / 2


def covered(faces, flat, samples: int = 41) -> np.ndarray:
  """How many triangles lie over each point of a grid that no edge goes through."""
  flat = np.asarray(flat, float)
  low, high = flat.min(0), flat.max(0)
  x, y = (np.linspace(low[k] + 0.013, high[k] - 0.017, samples) for k in range(2))
  points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
  count = np.zeros(len(points), int)
  for a, b, c in flat[faces]:
    sides = []
    for start, end in ((a, b), (b, c), (c, a)):
      edge, to = end - start, points - start
      sides.append(edge[0] * to[:, 1] - edge[1] * to[:, 0])
    count += (np.min(sides, 0) > 0) | (np.max(sides, 0) < 0)
  return count


@pytest.mark.parametrize("flat", [ELL, ARROW, COMB, KEYHOLE, SPIRAL])
@pytest.mark.parametrize("backwards", [False, True])
def test_every_point_of_a_concave_polygon_is_covered_once(flat, backwards):
  flat = flat[::-1] if backwards else flat
  for first in range(len(flat)):
    rolled = flat[first:] + flat[:first]
    vertices = turned(rolled)
    faces = polygons.triangulate([range(len(rolled))], vertices)
    assert len(faces) == len(rolled) - 2
    normal = areas(faces, vertices)
    whole = np.cross(vertices, np.roll(vertices, -1, axis=0)).sum(0) / 2
    # no triangle is turned over, and together they are as large
    assert (normal @ whole > -1e-6).all()
    np.testing.assert_allclose(normal.sum(0), whole, atol=1e-6)
    assert covered(faces, rolled).max() == 1


def test_convex_polygons_are_cut_as_fans_from_their_first_corner():
  angle = np.linspace(0, 2 * np.pi, 8)[:-1]
  vertices = turned(np.stack([np.cos(angle), np.sin(angle)], 1))
  faces = polygons.triangulate([range(7), [2, 1, 0, 6]], vertices)
  expected = [[0, i, i + 1] for i in range(1, 6)] + [[2, 1, 0], [2, 0, 6]]
  np.testing.assert_array_equal(faces, expected)


def test_triangles_stay_in_the_order_of_their_polygons():
  vertices = turned(ELL)
  faces, owner = polygons.triangulate_with_owners(
    [[0, 1, 2], range(6), [3, 4, 5], [0, 1, 2, 3]], vertices
  )
  np.testing.assert_array_equal(owner, [0, 1, 1, 1, 1, 2, 3, 3])
  np.testing.assert_array_equal(faces[[0, 5]], [[0, 1, 2], [3, 4, 5]])


def test_polygons_without_an_area_or_with_nan_are_cut_all_the_same():
  line = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0.0]])
  assert len(polygons.triangulate([range(4)], line)) == 2
  line[2, 1] = np.nan
  assert len(polygons.triangulate([range(4)], line)) == 2


def test_a_star_that_crosses_itself_is_cut_somehow():
  angle = np.arange(5) * 4 * np.pi / 5
  vertices = turned(np.stack([np.cos(angle), np.sin(angle)], 1))
  assert len(polygons.triangulate([range(5)], vertices)) == 3


def test_a_concave_polygon_of_countless_corners_is_refused():
  x = np.arange(polygons.MAX_EAR_CORNERS + 2.0)
  teeth = np.stack([x, x % 2, 0 * x], 1)
  teeth[-2:, 1] = -9
  with pytest.raises(Refused, match="concave polygon"):
    polygons.triangulate([np.r_[: len(x) - 2, len(x) - 1, len(x) - 2]], teeth)

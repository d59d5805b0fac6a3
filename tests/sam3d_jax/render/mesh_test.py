"""Meshes from occupancy, GLB files, and renders."""

import numpy as np
import pytest
import trimesh

from sam3d_jax.render import mesh, preview


def ball(resolution: int = 24, radius: float = 0.4) -> np.ndarray:
  """The voxels that a sphere passes through."""
  corner = np.abs(np.arange(resolution + 1) / resolution - 0.5)

  def distance(side: np.ndarray) -> np.ndarray:
    """From the centre to the corner of each voxel whose coordinates these are."""
    x, y, z = np.meshgrid(side, side, side, indexing="ij")
    return np.sqrt(x**2 + y**2 + z**2)

  nearest = distance(np.minimum(corner[:-1], corner[1:]))
  farthest = distance(np.maximum(corner[:-1], corner[1:]))
  return (nearest <= radius) & (farthest >= radius)


def bar() -> np.ndarray:
  """Longest along x, off centre along z: tells the axes apart."""
  grid = np.zeros((16, 16, 16), bool)
  grid[2:14, 6:10, 12:14] = True
  return grid


def as_trimesh(m: mesh.Mesh) -> trimesh.Trimesh:
  return trimesh.Trimesh(m.vertices, m.faces, process=False)


def test_a_hollow_shell_becomes_one_watertight_outward_surface():
  shape = as_trimesh(mesh.from_occupancy(ball()))
  assert shape.is_watertight
  assert shape.body_count == 1
  # positive: faces look outward
  expected = 4 / 3 * np.pi * 0.4**3
  assert shape.volume == pytest.approx(expected, rel=0.02)


def test_vertices_lie_at_the_surface_in_the_object_frame():
  vertices = mesh.from_occupancy(ball()).vertices
  radius = np.linalg.norm(vertices, axis=-1)
  voxel = 1 / 24
  assert radius.mean() == pytest.approx(0.4, abs=0.1 * voxel)
  assert radius.std() < 0.15 * voxel


@pytest.mark.parametrize("at", [0.25, 0.28, 0.31])
def test_the_surface_goes_through_the_middle_of_its_voxels(at):
  """A box around the origin, its faces anywhere within a voxel: the mesh errs by half a voxel at
  most, not outwards only.
  """
  corner = np.arange(-8, 9) / 16
  low = corner[:-1]
  high = corner[1:]
  along = (low <= at) & (high >= -at)
  upper_face = (low <= at) & (high >= at)
  lower_face = (low <= -at) & (high >= -at)
  face = upper_face | lower_face

  # The box is where all axes are along it, its surface where one of them is at a face.
  in_box = along[:, None, None] & along[:, None] & along
  at_face = face[:, None, None] | face[:, None] | face
  vertices = mesh.from_occupancy(in_box & at_face).vertices

  # of two opposite faces, away from their rounded edges
  middle = np.abs(vertices[:, 1:]).max(1) < 0.1
  error = np.abs(vertices[middle, 0]) - at
  assert np.abs(error).max() < 0.5 / 16


def test_a_sheet_one_voxel_thin_survives():
  grid = np.zeros((16, 16, 16), bool)
  grid[4:12, 4:12, 8] = True
  shape = as_trimesh(mesh.from_occupancy(grid))
  width, _, thickness = shape.extents
  assert shape.is_watertight
  assert width > 7 / 16
  assert 0 < thickness <= 1 / 16


def test_a_rod_one_voxel_thin_survives_whole():
  grid = np.zeros((16, 16, 16), bool)
  grid[2:14, 8, 8] = True
  shape = as_trimesh(mesh.from_occupancy(grid))
  assert shape.is_watertight
  assert shape.body_count == 1
  assert shape.extents[0] > 11 / 16


def test_an_object_that_touches_the_border_is_closed():
  full = np.ones((6, 6, 6), bool)
  assert as_trimesh(mesh.from_occupancy(full)).is_watertight


def test_an_empty_grid_has_no_mesh():
  empty = np.zeros((8, 8, 8), bool)
  assert mesh.from_occupancy(empty) is None


def test_glb_is_y_up_and_keeps_names_and_colours(tmp_path):
  path = tmp_path / "bar.glb"
  colour = np.array([200, 30, 60], np.uint8)
  shape = mesh.from_occupancy(bar(), colour=colour)
  mesh.write_glb(path, {"bar": shape})
  read = trimesh.load_scene(path).geometry["bar"]

  x, y, z = shape.vertices.T
  np.testing.assert_allclose(read.vertices, np.stack([x, z, -y], -1), atol=1e-6)
  assert read.vertices[:, 1].min() > 0.2  # the bar hangs high along z, hence along glTF's y
  rgb = read.visual.vertex_colors[:, :3]
  assert (rgb == colour).all()
  assert list(tmp_path.iterdir()) == [path]


def test_render_shows_the_object_where_the_camera_frame_says():
  # looking along +x with z up: y to the right, since camera x is left
  view = np.array([[0.0, -1, 0], [0, 0, 1], [1, 0, 0]])
  grid = np.zeros((8, 8, 8), bool)
  grid[3:5, 6:8, 6:8] = True  # right and up
  picture = preview.render(mesh.from_occupancy(grid), view, size=32)
  difference = np.abs(picture.astype(int) - preview.BACKGROUND).sum(-1)
  rows, columns = np.nonzero(difference > 60)
  assert len(rows)
  assert rows.max() < 16
  assert columns.min() >= 16


def test_a_lit_ball_is_smooth_and_an_empty_render_is_background():
  picture = preview.render(mesh.from_occupancy(ball()), preview.orbit(30, 20), size=64)
  inner = picture[24:40, 24:40].astype(float).mean(-1)
  # no speckle: neighbouring pixels differ little
  steps = np.abs(np.diff(inner, axis=0))
  assert np.median(steps) < 8
  empty = preview.render(None, np.eye(3), size=16)
  assert (empty == preview.BACKGROUND).all()


def test_turning_by_a_full_circle_changes_nothing():
  view = preview.orbit(40, 10)
  np.testing.assert_allclose(preview.turned(view, 360.0), view, atol=1e-12)
  assert np.linalg.det(view) == pytest.approx(1)


def test_grid_places_every_picture():
  red = np.full((10, 20, 3), (255, 0, 0), np.uint8)
  rows = [[red, red], [red, red]]
  sheet = preview.grid(rows, ("a", "b"), ("", ""), size=40)
  is_red = (np.asarray(sheet) == (255, 0, 0)).all(-1)
  # twice as wide as high: 40 x 20 each
  assert is_red.sum() == 4 * 40 * 20

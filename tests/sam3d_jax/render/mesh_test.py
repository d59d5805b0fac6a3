"""Meshes from occupancy, GLB files, and renders."""

import numpy as np
import pytest
import trimesh

from sam3d_jax.render import mesh, preview


def ball(resolution: int = 24, radius: float = 0.4) -> np.ndarray:
  """The voxels that a sphere passes through."""
  corner = np.abs(np.arange(resolution + 1) / resolution - 0.5)
  near, far = (
    np.sqrt(sum(np.square(a) for a in np.meshgrid(side, side, side, indexing="ij")))
    for side in (np.minimum(corner[:-1], corner[1:]), np.maximum(corner[:-1], corner[1:]))
  )
  return (near <= radius) & (far >= radius)


def bar() -> np.ndarray:
  """Longest along x, off centre along z: tells the axes apart."""
  grid = np.zeros((16, 16, 16), bool)
  grid[2:14, 6:10, 12:14] = True
  return grid


def as_trimesh(m: mesh.Mesh) -> trimesh.Trimesh:
  return trimesh.Trimesh(m.vertices, m.faces, process=False)


def test_a_hollow_shell_becomes_one_watertight_outward_surface():
  shape = as_trimesh(mesh.from_occupancy(ball()))
  assert shape.is_watertight and shape.body_count == 1
  # positive: faces look outward
  assert shape.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.02)


def test_vertices_lie_at_the_surface_in_the_object_frame():
  radius = np.linalg.norm(mesh.from_occupancy(ball()).vertices, axis=-1)
  assert radius.mean() == pytest.approx(0.4, abs=0.1 / 24) and radius.std() < 0.15 / 24


@pytest.mark.parametrize("at", [0.25, 0.28, 0.31])
def test_the_surface_goes_through_the_middle_of_its_voxels(at):
  """A box around the origin, its faces anywhere within a voxel: the mesh errs by half a voxel at
  most, not outwards only.
  """
  corner = np.arange(-8, 9) / 16
  along = (corner[:-1] <= at) & (corner[1:] >= -at)
  faces = ((corner[:-1] <= at) & (corner[1:] >= at)) | ((corner[:-1] <= -at) & (corner[1:] >= -at))
  grid = (along[:, None, None] & along[:, None] & along) & (
    faces[:, None, None] | faces[:, None] | faces
  )
  vertices = mesh.from_occupancy(grid).vertices
  middle = np.abs(vertices[:, 1:]).max(1) < 0.1  # of two opposite faces: edges are rounded
  assert np.abs(np.abs(vertices[middle, 0]) - at).max() < 0.5 / 16


def test_a_sheet_one_voxel_thin_survives():
  grid = np.zeros((16, 16, 16), bool)
  grid[4:12, 4:12, 8] = True
  shape = as_trimesh(mesh.from_occupancy(grid))
  assert shape.is_watertight and shape.extents[0] > 7 / 16 and 0 < shape.extents[2] <= 1 / 16


def test_a_rod_one_voxel_thin_survives_whole():
  grid = np.zeros((16, 16, 16), bool)
  grid[2:14, 8, 8] = True
  shape = as_trimesh(mesh.from_occupancy(grid))
  assert shape.is_watertight and shape.body_count == 1 and shape.extents[0] > 11 / 16


def test_an_object_that_touches_the_border_is_closed():
  assert as_trimesh(mesh.from_occupancy(np.ones((6, 6, 6), bool))).is_watertight


def test_an_empty_grid_has_no_mesh():
  assert mesh.from_occupancy(np.zeros((8, 8, 8), bool)) is None


def test_glb_is_y_up_and_keeps_names_and_colours(tmp_path):
  shape = mesh.from_occupancy(bar(), colour=np.array([200, 30, 60], np.uint8))
  mesh.write_glb(tmp_path / "bar.glb", {"bar": shape})
  scene = trimesh.load_scene(tmp_path / "bar.glb")
  read = scene.geometry["bar"]
  x, y, z = shape.vertices.T
  np.testing.assert_allclose(read.vertices, np.stack([x, z, -y], -1), atol=1e-6)
  assert read.vertices[:, 1].min() > 0.2  # the bar hangs high along z, hence along glTF's y
  assert (read.visual.vertex_colors[:, :3] == [200, 30, 60]).all()
  assert list(tmp_path.iterdir()) == [tmp_path / "bar.glb"]


def test_render_shows_the_object_where_the_camera_frame_says():
  # looking along +x with z up: y to the right, since camera x is left
  view = np.array([[0.0, -1, 0], [0, 0, 1], [1, 0, 0]])
  grid = np.zeros((8, 8, 8), bool)
  grid[3:5, 6:8, 6:8] = True  # right and up
  ink = (
    np.abs(
      preview.render(mesh.from_occupancy(grid), view, size=32).astype(int) - preview.BACKGROUND
    ).sum(-1)
    > 60
  )
  rows, columns = np.nonzero(ink)
  assert len(rows) and rows.max() < 16 and columns.min() >= 16


def test_a_lit_ball_is_smooth_and_an_empty_render_is_background():
  picture = preview.render(mesh.from_occupancy(ball()), preview.orbit(30, 20), size=64).astype(
    float
  )
  inner = picture[24:40, 24:40].mean(-1)
  # no speckle: neighbouring pixels differ little
  assert np.median(np.abs(np.diff(inner, axis=0))) < 8
  assert (preview.render(None, np.eye(3), size=16) == preview.BACKGROUND).all()


def test_turning_by_a_full_circle_changes_nothing():
  view = preview.orbit(40, 10)
  np.testing.assert_allclose(preview.turned(view, 360.0), view, atol=1e-12)
  assert np.linalg.det(view) == pytest.approx(1)


def test_grid_places_every_picture():
  red = np.full((10, 20, 3), (255, 0, 0), np.uint8)
  sheet = np.asarray(preview.grid([[red, red], [red, red]], ("a", "b"), ("", ""), size=40))
  assert ((sheet == (255, 0, 0)).all(-1)).sum() == 4 * 40 * 20

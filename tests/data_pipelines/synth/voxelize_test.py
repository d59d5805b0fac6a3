"""Surface voxelisation against closed forms, subdivision and a plain reference."""

import numpy as np
import pytest
import trimesh

from data_pipelines.synth import voxelize


def _clip_touches(triangle_33, low_3, high_3) -> bool:
  """Whether a triangle meets a closed box, by clipping the polygon against the six half-spaces
  (Sutherland-Hodgman).
  """
  polygon = [np.asarray(p, float) for p in triangle_33]
  for axis in range(3):
    for sign, bound in ((1, high_3[axis]), (-1, -low_3[axis])):
      out = []
      for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        da, db = bound - sign * a[axis], bound - sign * b[axis]
        if da >= 0:
          out.append(a)
        if da * db < 0:
          out.append(a + (b - a) * da / (da - db))
      polygon = out
      if not polygon:
        return False
  return True


def _as_set(voxels_N3: np.ndarray) -> set:
  return set(map(tuple, voxels_N3))


def _shell(low: int, high: int, n: int) -> set:
  """The outermost voxels of a cube from `low` to `high`."""
  inner = slice(low + 1, high - 1)
  grid = np.zeros((n, n, n), bool)
  grid[low:high, low:high, low:high] = True
  grid[inner, inner, inner] = False
  return _as_set(np.argwhere(grid))


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_random_triangles_equal_the_clipped_polygon_reference(scale):
  rng = np.random.default_rng(0)
  n = 8
  face = np.array([[0, 1, 2]])
  for _ in range(12):
    middle = rng.uniform(-0.5, 0.5, 3)
    corners = middle + scale * rng.uniform(-0.5, 0.5, (3, 3))
    triangle = np.clip(corners, -0.5, 0.5)
    want = set()
    for voxel in np.ndindex(n, n, n):
      low = np.array(voxel) / n - 0.5
      high = (np.array(voxel) + 1) / n - 0.5
      if _clip_touches(triangle, low, high):
        want.add(voxel)
    assert _as_set(voxelize.voxelize(triangle, face, n)) == want


def test_a_box_off_the_grid_is_a_shell_of_one_voxel():
  # faces in the middle of voxels 10 and 53
  side = (64 - 2 * 10.5) / 64
  box = trimesh.creation.box(extents=[side, side, side])
  voxels = voxelize.voxelize(box.vertices, box.faces)
  assert _as_set(voxels) == _shell(10, 54, 64)


def test_a_face_on_a_voxel_boundary_belongs_to_both_sides():
  square = np.array(
    [
      [-0.4, -0.4, 0.0],
      [0.4, -0.4, 0.0],
      [0.4, 0.4, 0.0],
      [-0.4, 0.4, 0.0],
    ]
  )
  faces = np.array([[0, 1, 2], [0, 2, 3]])
  voxels = voxelize.voxelize(square, faces, 16)
  assert set(voxels[:, 2]) == {7, 8}
  assert len(voxels) == 2 * 14 * 14


def test_the_unit_cube_touches_the_outermost_layer_only():
  box = trimesh.creation.box()
  voxels = voxelize.voxelize(box.vertices, box.faces, 32)
  assert _as_set(voxels) == _shell(0, 32, 32)


def test_a_sphere_is_every_voxel_its_surface_crosses():
  n = 32
  radius = 0.43
  sphere = trimesh.creation.icosphere(6, radius=radius)
  voxels = voxelize.voxelize(sphere.vertices, sphere.faces, n)
  got = np.zeros((n, n, n), bool)
  got[tuple(voxels.T)] = True

  # Distances of each voxel's nearest and farthest corner from the middle.
  edges = np.arange(n + 1) / n - 0.5
  low = edges[:-1]
  high = edges[1:]
  near = np.maximum(np.maximum(low, -high), 0) ** 2
  far = np.maximum(np.abs(low), np.abs(high)) ** 2
  nearest = np.sqrt(near[:, None, None] + near[:, None] + near)
  farthest = np.sqrt(far[:, None, None] + far[:, None] + far)

  inner = radius - 1e-3 * radius  # the polyhedron lies this much inside the sphere
  crossed = (nearest < inner) & (farthest > radius)
  missed = (nearest > radius) | (farthest < inner)
  assert got[crossed].all()
  assert not got[missed].any()


def test_subdividing_triangles_changes_nothing():
  rng = np.random.default_rng(1)
  vertices = rng.uniform(-0.5, 0.5, (12, 3))
  faces = rng.integers(0, 12, (9, 3))
  mesh = trimesh.Trimesh(vertices, faces, process=False)
  mesh.update_faces(mesh.area_faces > 1e-3)
  fine = mesh.subdivide().subdivide()
  coarse_voxels = voxelize.voxelize(mesh.vertices, mesh.faces)
  fine_voxels = voxelize.voxelize(fine.vertices, fine.faces)
  np.testing.assert_array_equal(coarse_voxels, fine_voxels)


def test_work_in_small_chunks_gives_the_same_voxels(monkeypatch):
  sphere = trimesh.creation.icosphere(2, radius=0.45)
  whole = voxelize.voxelize(sphere.vertices, sphere.faces)
  monkeypatch.setattr(voxelize, "CHUNK", 97)
  in_chunks = voxelize.voxelize(sphere.vertices, sphere.faces)
  np.testing.assert_array_equal(in_chunks, whole)


def test_broken_meshes_are_voxelised_face_by_face():
  sphere = trimesh.creation.icosphere(2, radius=0.4)
  rng = np.random.default_rng(2)
  chosen = rng.permutation(len(sphere.faces))[:200]
  faces = sphere.faces[chosen]
  is_flipped = rng.random((200, 1)) < 0.5
  flipped = np.where(is_flipped, faces[:, ::-1], faces)
  # an edge and a corner of a face that is there anyway
  a, b, _ = faces[0]
  broken = np.concatenate([flipped, [[a, a, b], [b, b, b]]])
  np.testing.assert_array_equal(
    voxelize.voxelize(sphere.vertices, broken),
    voxelize.voxelize(sphere.vertices, faces),
  )


def test_output_is_lexicographic_unique_uint8():
  sphere = trimesh.creation.icosphere(2, radius=0.5)
  voxels = voxelize.voxelize(sphere.vertices, sphere.faces)
  assert voxels.dtype == np.uint8 and voxels.min() >= 0 and voxels.max() <= 63
  np.testing.assert_array_equal(voxels, np.unique(voxels, axis=0))


def test_coarsening_equals_voxelising_at_the_coarse_resolution():
  mesh = trimesh.creation.icosphere(2, radius=0.437)
  fine = voxelize.voxelize(mesh.vertices, mesh.faces, 64)
  coarse = voxelize.voxelize(mesh.vertices, mesh.faces, 32)
  np.testing.assert_array_equal(voxelize.coarsen(fine), coarse)


def test_an_unsupported_resolution_is_an_error():
  with pytest.raises(ValueError, match="power of two"):
    voxelize.voxelize(np.zeros((3, 3)), np.array([[0, 1, 2]]), 48)

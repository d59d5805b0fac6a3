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


def _shell(low: int, high: int, n: int) -> set:
  grid = np.zeros((n,) * 3, bool)
  grid[low:high, low:high, low:high] = True
  grid[low + 1 : high - 1, low + 1 : high - 1, low + 1 : high - 1] = False
  return set(map(tuple, np.argwhere(grid)))


def test_random_triangles_equal_the_clipped_polygon_reference():
  rng = np.random.default_rng(0)
  n = 8
  for scale in (0.1, 0.5, 1.0):
    for _ in range(12):
      triangle = np.clip(
        rng.uniform(-0.5, 0.5, 3) + scale * rng.uniform(-0.5, 0.5, (3, 3)), -0.5, 0.5
      )
      got = set(map(tuple, voxelize.voxelize(triangle, np.array([[0, 1, 2]]), n)))
      want = {
        (i, j, k)
        for i in range(n)
        for j in range(n)
        for k in range(n)
        if _clip_touches(
          triangle, np.array([i, j, k]) / n - 0.5, np.array([i + 1, j + 1, k + 1]) / n - 0.5
        )
      }
      assert got == want


def test_a_box_off_the_grid_is_a_shell_of_one_voxel():
  # faces in the middle of voxels 10 and 53
  box = trimesh.creation.box(extents=[(64 - 2 * 10.5) / 64] * 3)
  voxels = voxelize.voxelize(box.vertices, box.faces)
  assert set(map(tuple, voxels)) == _shell(10, 54, 64)


def test_a_face_on_a_voxel_boundary_belongs_to_both_sides():
  square = np.array([[-0.4, -0.4, 0.0], [0.4, -0.4, 0.0], [0.4, 0.4, 0.0], [-0.4, 0.4, 0.0]])
  voxels = voxelize.voxelize(square, np.array([[0, 1, 2], [0, 2, 3]]), 16)
  assert set(voxels[:, 2]) == {7, 8}
  assert len(voxels) == 2 * 14 * 14


def test_the_unit_cube_touches_the_outermost_layer_only():
  box = trimesh.creation.box()
  assert set(map(tuple, voxelize.voxelize(box.vertices, box.faces, 32))) == _shell(0, 32, 32)


def test_a_sphere_is_every_voxel_its_surface_crosses():
  n, radius = 32, 0.43
  sphere = trimesh.creation.icosphere(6, radius=radius)
  got = np.zeros((n,) * 3, bool)
  got[tuple(voxelize.voxelize(sphere.vertices, sphere.faces, n).T)] = True
  edges = np.arange(n + 1) / n - 0.5
  near = np.maximum(np.maximum(edges[:-1], -edges[1:]), 0) ** 2
  far = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:])) ** 2
  nearest = np.sqrt(near[:, None, None] + near[:, None] + near)
  farthest = np.sqrt(far[:, None, None] + far[:, None] + far)
  sagitta = 1e-3 * radius  # the polyhedron lies this much inside the sphere
  assert got[(nearest < radius - sagitta) & (farthest > radius)].all()
  assert not got[(nearest > radius) | (farthest < radius - sagitta)].any()


def test_subdividing_triangles_changes_nothing():
  rng = np.random.default_rng(1)
  mesh = trimesh.Trimesh(
    rng.uniform(-0.5, 0.5, (12, 3)), rng.integers(0, 12, (9, 3)), process=False
  )
  mesh.update_faces(mesh.area_faces > 1e-3)
  fine = mesh.subdivide().subdivide()
  np.testing.assert_array_equal(
    voxelize.voxelize(mesh.vertices, mesh.faces), voxelize.voxelize(fine.vertices, fine.faces)
  )


def test_work_in_small_chunks_gives_the_same_voxels(monkeypatch):
  sphere = trimesh.creation.icosphere(2, radius=0.45)
  whole = voxelize.voxelize(sphere.vertices, sphere.faces)
  monkeypatch.setattr(voxelize, "CHUNK", 97)
  np.testing.assert_array_equal(voxelize.voxelize(sphere.vertices, sphere.faces), whole)


def test_broken_meshes_are_voxelised_face_by_face():
  sphere = trimesh.creation.icosphere(2, radius=0.4)
  rng = np.random.default_rng(2)
  faces = sphere.faces[rng.permutation(len(sphere.faces))[:200]]
  flipped = np.where(rng.random((200, 1)) < 0.5, faces, faces[:, ::-1])
  a, b, _ = faces[0]
  # an edge and a corner of a face that is there anyway
  degenerate = np.concatenate([flipped, [[a, a, b], [b, b, b]]])
  np.testing.assert_array_equal(
    voxelize.voxelize(sphere.vertices, degenerate), voxelize.voxelize(sphere.vertices, faces)
  )


def test_output_is_lexicographic_unique_uint8():
  sphere = trimesh.creation.icosphere(2, radius=0.5)
  voxels = voxelize.voxelize(sphere.vertices, sphere.faces)
  assert voxels.dtype == np.uint8 and voxels.min() >= 0 and voxels.max() <= 63
  np.testing.assert_array_equal(voxels, np.unique(voxels, axis=0))


def test_coarsening_equals_voxelising_at_the_coarse_resolution():
  mesh = trimesh.creation.icosphere(2, radius=0.437)
  fine = voxelize.voxelize(mesh.vertices, mesh.faces, 64)
  np.testing.assert_array_equal(
    voxelize.coarsen(fine), voxelize.voxelize(mesh.vertices, mesh.faces, 32)
  )


def test_an_unsupported_resolution_is_an_error():
  with pytest.raises(ValueError, match="power of two"):
    voxelize.voxelize(np.zeros((3, 3)), np.array([[0, 1, 2]]), 48)

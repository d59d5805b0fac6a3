"""Parity of the mesh extraction (f9). Vertices come in another order than in the published code, so
each is matched with the fixture's nearest, one to one, and faces are compared as sets of corners.
"""

import jax
import numpy as np
from scipy import spatial

from sam3d_jax.geometry import bricks as brick_grid
from sam3d_jax.geometry.bricks import CELLS, SIDE
from sam3d_jax.models import flexicubes
from tests.parity import Fixture, case


def bricks_of(coords_N3, feats_NC, resolution: int):
  """Listed cubes as bricks, their features (V, 4, 4, 4, C)."""
  bricks, place_N = brick_grid.of_cubes(coords_N3, resolution)
  own = bricks.active_xyzV.shape[-1]
  cells = np.zeros((CELLS * own, feats_NC.shape[1]), np.float32)
  cells[place_N] = feats_NC
  grid = cells.reshape(SIDE, SIDE, SIDE, own, -1)
  return bricks, np.moveaxis(grid, 3, 0)


def in_their_order(ref_M3, vertices_M3, faces_F3, *others):
  """Vertices, faces and further arrays over vertices in the order of the reference's.

  A face's rotation is the one that begins with its smallest vertex; faces are sorted.
  """
  _, theirs_M = spatial.cKDTree(ref_M3).query(vertices_M3)
  if len(set(theirs_M.tolist())) != len(ref_M3):
    raise AssertionError("vertices do not match the fixture's one to one")
  mine_M = np.argsort(theirs_M)
  arrays = [array[mine_M] for array in (vertices_M3, *others)]
  return arrays[0], sorted_faces(theirs_M[faces_F3]), *arrays[1:]


def sorted_faces(faces_F3) -> np.ndarray:
  """The same triangles, each from its smallest vertex on, in order."""
  faces_F3 = np.asarray(faces_F3)
  turn_F1 = faces_F3.argmin(axis=1)[:, None]
  turned = np.take_along_axis(faces_F3, (turn_F1 + np.arange(3)) % 3, axis=1)
  order = np.lexsort(turned.T[::-1])
  return turned[order]


def face_normals(vertices_M3, faces_F3) -> np.ndarray:
  """Unit normals of triangles."""
  a, b, c = np.moveaxis(vertices_M3[faces_F3], 1, 0)
  normals = np.cross(b - a, c - a)
  return normals / np.linalg.norm(normals, axis=1, keepdims=True)


@case("f9_flexicubes")
def extraction(fixture: Fixture):
  resolution = fixture.kwargs["res"]
  expected = fixture.group("out")
  out = {}
  for variant in sorted({name.split("/")[0] for name in fixture.inputs}):
    given = fixture.group(f"in/{variant}")
    coords_N3 = given["coords"][:, 1:]
    bricks, feats = bricks_of(coords_N3, given["feats"], resolution)
    ref = fixture.group(f"out/{variant}")

    # inference; the fixture's faces are put in the same order as ours
    mesh = flexicubes.extract(feats, bricks, resolution)
    vertices, faces, attributes = in_their_order(
      ref["vertices"], mesh.vertices_M3, mesh.faces_F3, mesh.attributes_M6
    )
    faces_in_order(ref, faces, "faces")
    computed = {"vertices": vertices, "faces": ref["faces"], "vertex_attrs": attributes}
    computed["face_normal"] = face_normals(vertices, ref["faces"])

    # training
    computed |= training(ref, feats, bricks, resolution)
    if "vert_pos" in ref:
      computed |= corners(feats, bricks, resolution)
    out |= {f"out/{variant}/{name}": value for name, value in computed.items()}
  if "empty_nverts_nfaces" in expected:
    # signed distances that are all positive
    outside = np.zeros_like(feats)
    outside[..., :8] = 1
    empty = flexicubes.extract(outside, bricks, resolution)
    out["out/empty_nverts_nfaces"] = np.array([len(empty.vertices_M3), len(empty.faces_F3)])
  return out


def faces_in_order(ref, faces, name) -> None:
  """Raises unless the faces are the fixture's: their order alone is ours."""
  if not np.array_equal(faces, sorted_faces(ref[name])):
    raise AssertionError(f"{name} are not the fixture's")


def training(ref, feats, bricks, resolution: int) -> dict[str, np.ndarray]:
  """The arrays of the mesh with gradients, under the fixture's names."""
  sizes = flexicubes.Sizes(cubes=1000, corners=1500, vertices=1000, quads=1000)
  compute = jax.jit(flexicubes.training_mesh, static_argnums=(2, 3))
  mesh = compute(feats, bricks, resolution, sizes)
  valid_F = np.asarray(mesh.valid_F)
  used, index = np.unique(np.asarray(mesh.faces_F3)[valid_F], return_inverse=True)
  vertices, faces = in_their_order(
    ref["training/vertices"], np.asarray(mesh.vertices_M3)[used], index.reshape(-1, 3)
  )
  faces_in_order(ref, faces, "training/faces")
  out = {
    "training/vertices": vertices,
    "training/faces": ref["training/faces"],
    "training/reg_loss": np.asarray(mesh.reg_loss)[0],
  }
  if "training/tsdf_v" in ref:
    predicted_A = np.asarray(mesh.predicted_A)
    corners_N3 = np.asarray(mesh.corners_A3)[predicted_A]
    sdf_N = np.asarray(mesh.sdf_A)[predicted_A]
    _, theirs_N = spatial.cKDTree(ref["training/tsdf_v"]).query(corners_N3)
    order_N = np.argsort(theirs_N)
    out |= {"training/tsdf_v": corners_N3[order_N], "training/tsdf_s": sdf_N[order_N]}
  return out


def corners(feats, bricks, resolution: int) -> dict[str, np.ndarray]:
  """Positions and averaged values of all corners, in (x, y, z) order."""
  parts = flexicubes.parts(feats)
  values = np.concatenate([parts[name] for name in ("sdf", "deform", "colour")], axis=-1)
  field = flexicubes.corner_fields(flexicubes.by_corner(values), bricks)
  count = np.asarray(field.count_xyzK)
  means = np.array(field.means_xyzCK)
  means[..., 0, :] = flexicubes.signed_distance(means[..., 0, :], count, resolution)
  cell, brick = np.nonzero(count.reshape(CELLS, -1))
  local = np.stack(np.unravel_index(cell, (SIDE, SIDE, SIDE)))
  position_N3 = (bricks.coords_3K[:, brick] * SIDE + local).T
  values_N10 = np.moveaxis(means, 3, -1)[count > 0]
  order = np.lexsort(position_N3.T[::-1])
  return {"vert_pos": position_N3[order], "vert_attrs": values_N10[order]}

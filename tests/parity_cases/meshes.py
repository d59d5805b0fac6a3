"""Parity of the mesh decoder (f8) and of mesh extraction (f9). Vertices come in another order than
in the published code, so each is matched with the fixture's nearest, one to one, and faces are
compared as sets of corners.
"""

import functools

from flax import nnx
import jax
import numpy as np
from scipy import spatial

from sam3d_jax.geometry import bricks as brick_grid
from sam3d_jax.geometry import packing
from sam3d_jax.geometry.bricks import CELLS, SIDE
from sam3d_jax.models import flexicubes, slat_mesh
from sam3d_jax.models.flexicubes_surface import Sizes
from sam3d_jax.models.slat_mesh import SlatMeshConfig, SlatMeshDecoder
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.torch_bridge import names_slat
from tests.parity import Fixture, case
from tests.parity_cases.flow_and_vae import loaded
from tests.parity_cases.slat import trunk_config


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
  sizes = Sizes(cubes=1000, corners=1500, vertices=1000, quads=1000)
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
  corners = flexicubes.corner_means(flexicubes.by_corner(values), bricks)
  count = np.asarray(corners.count_xyzK)
  means = np.array(corners.means_xyzCK)
  means[..., 0, :] = flexicubes.signed_distance(means[..., 0, :], count, resolution)
  cell, brick = np.nonzero(count.reshape(CELLS, -1))
  local = np.stack(np.unravel_index(cell, (SIDE, SIDE, SIDE)))
  position_N3 = (bricks.coords_3K[:, brick] * SIDE + local).T
  values_N10 = np.moveaxis(means, 3, -1)[count > 0]
  order = np.lexsort(position_N3.T[::-1])
  return {"vert_pos": position_N3[order], "vert_attrs": values_N10[order]}


@case("f8_slat_mesh_decoder")
def decoder(fixture: Fixture):
  k = fixture.kwargs
  width = k["model_channels"]
  cfg = SlatMeshConfig(
    trunk=trunk_config(fixture),
    up_channels=(width // 4, width // 8),
    latent_channels=k["latent_channels"],
    resolution=k["resolution"],
  )
  rules = names_slat.mesh_decoder_rules(width, cfg.up_channels)
  module = loaded(functools.partial(SlatMeshDecoder, cfg), rules, fixture.params)

  # both objects in one row that is longer than they need
  row = packed(fixture, cfg)
  latents = row.fill(by_object(fixture, fixture.inputs["feats"]))
  x = SparseTensor(latents, row.voxels.fine)
  graph, params = nnx.split(module)

  @jax.jit
  def forward(params, x):
    decoder = nnx.merge(graph, params)
    h = decoder.trunk(x)
    bricks = h.feats_RVC[:, :, None, None, None]
    after = decoder.up_blocks[0](bricks, x.level)
    return h.feats_RVC, after, decoder(x)

  trunk_RVD, first_RVxyzC, feats_RVxyzC = forward(params, x)
  children_RVNC = np.asarray(first_RVxyzC).reshape(*trunk_RVD.shape[:2], 8, -1)
  cubes_RVNC = slat_mesh.in_published_order(feats_RVxyzC)
  out = {
    "out/after_transformer": np.concatenate(row.split(trunk_RVD)),
    "out/after_upsample0_first256rows": joined(row, children_RVNC)[:256],
    "out/feats": joined(row, cubes_RVNC),
    "out/coords": fine_coords(fixture),
  }

  # the meshes of both
  (meshes,) = slat_mesh.meshes(feats_RVxyzC, row.voxels.fine, cfg.resolution)
  for number, mesh in enumerate(meshes):
    ref = fixture.group(f"out/item{number}")
    vertices, faces, attributes = in_their_order(
      ref["vertices"], mesh.vertices_M3, mesh.faces_F3, mesh.attributes_M6
    )
    faces_in_order(ref, faces, "faces")
    out[f"out/item{number}/vertices"] = vertices
    out[f"out/item{number}/faces"] = ref["faces"]
    out[f"out/item{number}/vertex_attrs"] = attributes
  return out


def by_object(fixture: Fixture, rows_NC) -> list[np.ndarray]:
  """The rows of the fixture's joined list, object by object."""
  number_N = fixture.inputs["coords"][:, 0]
  return [np.asarray(rows_NC)[number_N == n] for n in range(number_N.max() + 1)]


def packed(fixture: Fixture, cfg: SlatMeshConfig) -> packing.Packed:
  """The fixture's objects in one row with a block of padding at its end."""
  tables = packing.Tables(cfg.resolution, neighbours=True, window=cfg.trunk.window)
  objects = []
  for coords_V3 in by_object(fixture, fixture.inputs["coords"][:, 1:]):
    objects.append(packing.object_tables(coords_V3, tables))
  needed = packing.smallest_shape(objects)
  shape = packing.RowShape(needed.voxels + packing.BLOCK, 0, needed.objects)
  return packing.pack(objects, shape)


def joined(row: packing.Packed, cubes_RVNC) -> np.ndarray:
  """Cubes (R, V, N, C) of all voxels in one list."""
  rows, slots, cubes, channels = cubes_RVNC.shape
  flat = np.asarray(cubes_RVNC).reshape(rows, slots, cubes * channels)
  return np.concatenate(row.split(flat)).reshape(-1, channels)


def fine_coords(fixture: Fixture) -> np.ndarray:
  """(object, x, y, z) of all cubes, voxel by voxel, as the fixture lists them."""
  coords_N4 = fixture.inputs["coords"]
  axis = np.arange(SIDE)
  cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
  cells_643 = slat_mesh.in_published_order(cells[None, None])[0, 0]
  cubes = coords_N4[:, None].repeat(CELLS, axis=1)
  cubes[..., 1:] = cubes[..., 1:] * SIDE + cells_643
  return cubes.reshape(-1, 4)

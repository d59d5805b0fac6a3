"""Meshes with known scores, and a protocol of few points."""

import trimesh

from sam3d_jax.evaluation import align, shape, surface
from sam3d_jax.render.mesh import Mesh

FAST = shape.ShapeProtocol(
  points=20_000,
  emd_points=256,
  align_points=4000,
  icp=align.IcpProtocol(
    spiral=101,
    scan_points=128,
    keep=6,
    coarse_points=400,
    medium_points=2000,
    fine_points=2000,
  ),
)


def box(extents=(2.0, 1.2, 0.6)) -> Mesh:
  mesh = trimesh.creation.box(extents)
  return surface.make_surface(mesh.vertices, mesh.faces)


def wedge() -> Mesh:
  """A shape without any symmetry: three boxes of different size."""
  boxes = []
  for extents, centre in (
    ((2, 0.3, 0.5), (0, 0, 0)),
    ((0.3, 1.1, 0.4), (0.8, 0.5, 0)),
    ((0.25, 0.25, 0.9), (-0.8, 0.05, 0.5)),
  ):
    moved = trimesh.transformations.translation_matrix(centre)
    boxes.append(trimesh.creation.box(extents, moved))
  mesh = trimesh.util.concatenate(boxes)
  return surface.make_surface(mesh.vertices, mesh.faces)

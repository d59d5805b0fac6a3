"""Procedural objects: pure functions of (seed, index), closed solids, enough variety."""

import itertools

import numpy as np
import pytest
import trimesh

from data_pipelines.synth import assets, procedural, voxelize
from data_pipelines.synth.filters import FilterConfig, check

COUNT = 2 * len(procedural.FAMILIES)


@pytest.fixture(scope="module")
def objects():
  return [procedural.make_parts(0, i) for i in range(COUNT)]


def _asset(index: int, families=(), seed: int = 0) -> assets.Asset:
  scene = procedural.make_scene(seed, index, families)
  return assets.from_scene(scene, source=str(index), up="z")


def test_there_are_at_least_fourteen_families_in_equal_shares():
  assert len(procedural.FAMILIES) >= 14
  names = [procedural.family_of(i) for i in range(COUNT)]
  for family in procedural.FAMILIES:
    assert names.count(family) == 2, family


def test_every_part_is_a_closed_solid_facing_outwards(objects):
  for index, parts in enumerate(objects):
    family = procedural.family_of(index)
    for part in parts:
      assert part.mesh.is_watertight, family
      assert part.mesh.volume > 0, family


def test_an_object_depends_on_seed_and_index_alone():
  for index in (0, 5, 11):
    made = procedural.make_parts(3, index)
    again = procedural.make_parts(3, index)
    for a, b in zip(made, again, strict=True):
      np.testing.assert_array_equal(a.mesh.vertices, b.mesh.vertices)
      assert a.colour == b.colour
  keys = set()
  for seed in (0, 1):
    keys.update(_asset(index, seed=seed).key for index in range(COUNT))
  assert len(keys) == 2 * COUNT


def test_restricting_the_families_keeps_them_in_rotation():
  names = [procedural.family_of(i, ("mug", "car")) for i in range(4)]
  assert names == ["mug", "car", "mug", "car"]
  with pytest.raises(ValueError, match="muk.*known are.*mug"):
    procedural.family_of(0, ("muk",))


@pytest.mark.parametrize("family", procedural.FAMILIES)
def test_shapes_within_a_family_differ_strongly(family):
  grids = []
  for seed in range(4):
    mesh = _asset(0, (family,), seed).mesh
    voxels = voxelize.voxelize(mesh.vertices, mesh.faces, 16)
    grid = np.zeros((16, 16, 16), bool)
    grid[tuple(voxels.T)] = True
    grids.append(grid)
  overlaps = []
  for a, b in itertools.combinations(grids, 2):
    overlaps.append((a & b).sum() / (a | b).sum())
  assert np.mean(overlaps) < 0.75


def test_every_object_passes_the_geometry_filters():
  for index in range(COUNT):
    check(_asset(index), FilterConfig())


def test_glb_export_round_trips_geometry_and_colour(tmp_path):
  procedural.write_glbs(tmp_path, seed=1, count=3)
  paths = sorted(tmp_path.glob("*.glb"))
  assert [path.name for path in paths] == ["00000_table.glb", "00001_chair.glb", "00002_mug.glb"]
  for index, path in enumerate(paths):
    read = assets.load(path).mesh
    made = _asset(index, seed=1).mesh
    read_extent = np.ptp(read.vertices, axis=0)
    np.testing.assert_allclose(read_extent, np.ptp(made.vertices, axis=0), atol=1e-5)
    read_area = trimesh.Trimesh(read.vertices, read.faces).area
    made_area = trimesh.Trimesh(made.vertices, made.faces).area
    assert read_area == pytest.approx(made_area, rel=1e-4)
    read_colours = {material.colour for material in read.materials}
    assert read_colours == {material.colour for material in made.materials}

"""Procedural objects: pure functions of (seed, index), closed solids, enough variety."""

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
  return assets.from_scene(procedural.make_scene(seed, index, families), source=str(index), up="z")


def test_there_are_at_least_fourteen_families_in_equal_shares():
  assert len(procedural.FAMILIES) >= 14
  names = [procedural.family_of(i) for i in range(COUNT)]
  assert all(names.count(family) == 2 for family in procedural.FAMILIES)


def test_every_part_is_a_closed_solid_facing_outwards(objects):
  for index, parts in enumerate(objects):
    for part in parts:
      assert part.mesh.is_watertight and part.mesh.volume > 0, procedural.family_of(index)


def test_an_object_depends_on_seed_and_index_alone():
  for index in (0, 5, 11):
    again = procedural.make_parts(3, index)
    for a, b in zip(procedural.make_parts(3, index), again, strict=True):
      np.testing.assert_array_equal(a.mesh.vertices, b.mesh.vertices)
      assert a.colour == b.colour
  keys = {_asset(index, seed=seed).key for seed in (0, 1) for index in range(COUNT)}
  assert len(keys) == 2 * COUNT


def test_restricting_the_families_keeps_them_in_rotation():
  assert [procedural.family_of(i, ("mug", "car")) for i in range(4)] == ["mug", "car", "mug", "car"]
  with pytest.raises(ValueError, match="muk.*known are.*mug"):
    procedural.family_of(0, ("muk",))


def test_shapes_within_a_family_differ_strongly():
  for family in procedural.FAMILIES:
    grids = []
    for seed in range(4):
      asset = _asset(0, (family,), seed)
      grid = np.zeros((16,) * 3, bool)
      grid[tuple(voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces, 16).T)] = True
      grids.append(grid)
    ious = [(a & b).sum() / (a | b).sum() for i, a in enumerate(grids) for b in grids[:i]]
    assert np.mean(ious) < 0.75, family


def test_every_object_passes_the_geometry_filters():
  for index in range(COUNT):
    check(_asset(index), FilterConfig())


def test_glb_export_round_trips_geometry_and_colour(tmp_path):
  procedural.write_glbs(tmp_path, seed=1, count=3)
  paths = sorted(tmp_path.glob("*.glb"))
  assert [p.name for p in paths] == ["00000_table.glb", "00001_chair.glb", "00002_mug.glb"]
  for index, path in enumerate(paths):
    read, made = assets.load(path), _asset(index, seed=1)
    np.testing.assert_allclose(
      np.ptp(read.mesh.vertices, axis=0), np.ptp(made.mesh.vertices, axis=0), atol=1e-5
    )
    area = [trimesh.Trimesh(a.mesh.vertices, a.mesh.faces).area for a in (read, made)]
    assert area[0] == pytest.approx(area[1], rel=1e-4)
    assert {m.colour for m in read.mesh.materials} == {m.colour for m in made.mesh.materials}

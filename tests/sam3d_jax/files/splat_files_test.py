"""Splats in .ply files: as published code writes them, written back, and what is refused."""

import numpy as np
import pytest

from sam3d_jax.errors import InputError, InputNote
from sam3d_jax.files import splat_files
from sam3d_jax.render.mesh import Mesh, write_ply
from sam3d_jax.render.splats import Splats


def some_splats(count=5):
  draw = np.random.default_rng(0)
  rotations = draw.standard_normal((count, 4))
  rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
  fields = Splats(
    centres_N3=draw.standard_normal((count, 3)),
    scales_N3=np.exp(draw.uniform(-9, 1, (count, 3))),
    rotations_N4=rotations,
    opacities_N=draw.uniform(0.01, 0.99, count),
    colours_N3=draw.uniform(0, 1, (count, 3)),
  )
  return Splats(*(field.astype(np.float32) for field in fields))


def as_text(columns, rows):
  properties = "\n".join(f"property double {name}" for name in columns)
  body = "\n".join(" ".join(map(repr, row)) for row in np.asarray(rows, float).tolist())
  head = f"ply\nformat ascii 1.0\nelement vertex {len(rows)}\n{properties}\nend_header\n"
  return head + body + "\n"


def test_what_is_written_is_read_again(tmp_path):
  splats = some_splats()
  path = tmp_path / "a.ply"
  splat_files.write(path, splats)
  for name, found in splat_files.read(path)._asdict().items():
    np.testing.assert_allclose(found, getattr(splats, name), rtol=2e-5, atol=1e-6, err_msg=name)
  assert splat_files.holds_splats(path)
  header, _, body = path.read_bytes().partition(b"end_header\n")
  assert len(body) == 68 * 5
  assert b"property float rot_3" in header


def test_padding_is_not_written_and_opacities_stay_finite(tmp_path):
  splats = some_splats()
  opacities = np.array([0.0, 1.0, 0.5, 0.0, 1e-9], np.float32)
  splat_files.write(tmp_path / "a.ply", splats._replace(opacities_N=opacities))
  found = splat_files.read(tmp_path / "a.ply")
  np.testing.assert_allclose(found.opacities_N, [1.0, 0.5, 0.0], atol=2e-6)
  np.testing.assert_allclose(found.centres_N3, splats.centres_N3[[1, 2, 4]])


def test_values_are_those_of_the_published_layout(tmp_path):
  path = tmp_path / "a.ply"
  # columns in another order, text, doubles, no normals
  columns = ["opacity", *splat_files.SCALE, *splat_files.ROTATION, *splat_files.COLOUR, *"xyz"]
  row = [np.log(3.0), 0.0, np.log(2.0), -1.0, 2, 0, 0, 0, 1 / 0.28209479177387814, -9, 0, 7, 8, 9]
  path.write_text(as_text(columns, [row]))
  found = splat_files.read(path)
  np.testing.assert_allclose(found.opacities_N, [0.75], rtol=1e-6)
  np.testing.assert_allclose(found.scales_N3, [[1, 2, np.exp(-1)]], rtol=1e-6)
  np.testing.assert_allclose(found.rotations_N4, [[2, 0, 0, 0]])
  np.testing.assert_allclose(found.colours_N3, [[1.5, 0, 0.5]], rtol=1e-6)
  np.testing.assert_allclose(found.centres_N3, [[7, 8, 9]])


def test_colours_by_direction_are_noted(tmp_path):
  path = tmp_path / "a.ply"
  columns = [*splat_files.NEEDED, "f_rest_0"]
  path.write_text(as_text(columns, [np.ones(len(columns))]))
  with pytest.warns(InputNote, match="only their constant part is used"):
    splat_files.read(path)


def test_what_is_no_file_of_splats_is_refused_by_name(tmp_path):
  def refusal(name):
    with pytest.raises(InputError) as caught:
      splat_files.read(tmp_path / name)
    assert name in str(caught.value)
    return str(caught.value)

  triangle = Mesh(np.eye(3), np.array([[0, 1, 2]]))
  write_ply(tmp_path / "mesh.ply", triangle)
  assert "no f_dc_0" in refusal("mesh.ply")
  assert not splat_files.holds_splats(tmp_path / "mesh.ply")
  assert "cannot be read" in refusal("missing.ply")
  assert not splat_files.holds_splats(tmp_path / "missing.ply")
  (tmp_path / "text.ply").write_text("hello")
  assert "no PLY header" in refusal("text.ply")

  splat_files.write(tmp_path / "whole.ply", some_splats())
  whole = (tmp_path / "whole.ply").read_bytes()
  (tmp_path / "cut.ply").write_bytes(whole[:-10])
  assert "cut short" in refusal("cut.ply")
  header = whole.split(b"end_header")[0]
  empty = header.replace(b"vertex 5", b"vertex 0") + b"end_header\n"
  (tmp_path / "empty.ply").write_bytes(empty)
  assert "holds no splats" in refusal("empty.ply")
  (tmp_path / "packed.ply").write_text(as_text(["packed_position"], [[1]]))
  assert "uncompressed" in refusal("packed.ply")
  lengths = np.full(len(splat_files.NEEDED), 100.0)
  (tmp_path / "lengths.ply").write_text(as_text(splat_files.NEEDED, [lengths]))
  assert "logarithms" in refusal("lengths.ply")


def test_what_no_file_can_hold_is_not_written(tmp_path):
  splats = some_splats()
  for field, value in (("centres_N3", np.nan), ("scales_N3", 0.0), ("rotations_N4", 0.0)):
    broken = getattr(splats, field).copy()
    broken[2] = value
    with pytest.raises(ValueError, match=r"splats for .*a\.ply"):
      splat_files.write(tmp_path / "a.ply", splats._replace(**{field: broken}))
  assert not list(tmp_path.iterdir())

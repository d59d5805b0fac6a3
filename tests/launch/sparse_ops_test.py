"""The operations over sparse voxels that are measured are the same on both sides."""

import numpy as np
import pytest

from launch import benchmark
from launch.performance import sparse_ops
from sam3d_jax.geometry import packing

torch_sparse = pytest.importorskip("launch.performance.torch_sparse")


@pytest.fixture(scope="module")
def few_heads():
  patch = pytest.MonkeyPatch()
  for name in ("WINDOW_HEADS", "FULL_HEADS"):
    patch.setattr(sparse_ops, name, 2)
  for name in ("CHANNELS", "HEAD_DIM"):
    patch.setattr(sparse_ops, name, 8)
  yield
  patch.undo()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_both_sides_compute_the_same_values_and_gradients(few_heads, number):
  found = packing.pack([sparse_ops.made_up(300)])
  operation = sparse_ops.operations(found)[number]
  forward, backward = sparse_ops.compiled(operation)
  torch_forward, torch_backward = torch_sparse.prepared(operation)

  def of_voxels(array):
    array = np.asarray(array)
    if array.shape[:2] == operation.valid_RV.shape:
      return array[operation.valid_RV]
    return array

  assert np.isfinite(operation.cotangent).all()
  np.testing.assert_allclose(of_voxels(forward()), torch_forward(), atol=2e-5)
  for ours, theirs in zip(backward(), torch_backward(), strict=True):
    np.testing.assert_allclose(of_voxels(ours), theirs, atol=2e-4)


def test_the_command_prints_a_row_for_each_operation(few_heads, tmp_path, capsys):
  flags = ["--sparse", "--torch", "--counts=300", "--repeat=1", f"--json={tmp_path / 'rows.json'}"]
  assert benchmark.main(flags) == 0
  printed = capsys.readouterr().out
  for operation in ("convolution", "windows", "full attention"):
    assert f"| 300 | {operation} |" in printed
  assert (tmp_path / "rows.json").exists()


@pytest.mark.parametrize("voxels", ["0", "300000", "many"])
def test_numbers_of_voxels_that_make_no_sense_are_refused(voxels, capsys):
  assert benchmark.main(["--sparse", f"--counts={voxels}"]) == 2
  assert f"--counts {voxels}" in capsys.readouterr().err

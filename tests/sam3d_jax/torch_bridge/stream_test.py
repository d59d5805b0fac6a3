"""Laws of checkpoints that are written and read a few arrays at a time."""

import weakref

import numpy as np
import pytest

from sam3d_jax.errors import InputError
from sam3d_jax.models import parameters
from sam3d_jax.torch_bridge import stream
from sam3d_jax.training import checkpoint_params
from tests.support.tiny_release import normal_arrays

META = {"config": {}, "lineage": {}}


class Watched(np.ndarray):
  """An array that can be referred to weakly."""


def test_streaming_holds_one_array_at_a_time_and_reads_back_exactly(tmp_path):
  shapes = {f"stack/layer/w{i}/kernel": (3, 40 + i) for i in range(12)}
  values = normal_arrays(shapes, seed=0)
  made, most = [], 0

  def make(path):
    """A fresh array, counting those made before that are still held."""
    nonlocal most
    array = values[path].copy().view(Watched)
    made.append(weakref.ref(array))
    held = sum(reference() is not None for reference in made)
    most = max(most, held)
    return array

  # each is made once for its checksum and once to be written
  stream.write_params(tmp_path, parameters.LazyParams(shapes, make), META)
  assert most == 1
  assert len(made) == 2 * len(values)

  # read as any checkpoint is
  back = checkpoint_params.load_params(tmp_path, which="raw")
  assert set(back) == set(values)
  for path, array in values.items():
    np.testing.assert_array_equal(back[path], array)

  # and as they are asked for
  sources = {path: f"params/{path}" for path in values}
  lazy = stream.read_params(tmp_path, 0, sources)
  path = "stack/layer/w7/kernel"
  np.testing.assert_array_equal(lazy[path], values[path])


def test_a_checkpoint_with_a_non_finite_array_is_never_written(tmp_path):
  kernel = np.array([1.0, np.nan], np.float32)
  with pytest.raises(InputError, match="a/kernel"):
    stream.write_params(tmp_path / "x", {"a/kernel": kernel}, META)
  assert not (tmp_path / "x").exists()

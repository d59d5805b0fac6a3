"""Checkpoints: whole or absent, and every leaf accounted for."""

import threading

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import orbax.checkpoint as ocp
import pytest

from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.training import checkpoint_arrays, checkpoint_params, checkpoint_steps
from sam3d_jax.training.checkpointer import Checkpointer, NonFiniteState, explained
from tests.support.tiny_checkpoints import (
  META,
  abstract,
  equal,
  make_state,
  saved,
)


def test_what_is_restored_is_what_was_saved(tmp_path):
  checkpointer = saved(tmp_path, 1, 2)
  state, meta = checkpointer.restore(abstract(make_state()))
  assert equal(state, make_state(2))
  assert meta["step"] == 2
  assert meta["config"] == META["config"]


def test_a_folder_may_be_named_from_the_one_above(tmp_path, monkeypatch):
  here = tmp_path / "here"
  here.mkdir()
  monkeypatch.chdir(here)
  checkpointer = saved("../run", 1)
  state, _ = checkpointer.restore(abstract(make_state()))
  assert equal(state, make_state(1))
  assert checkpointer.bad_steps == []
  assert checkpoint_steps.read_whole_meta("../run", 1)["step"] == 1


def test_a_save_returns_before_it_is_committed_and_what_is_written_is_the_state_at_the_call(
  tmp_path, monkeypatch
):
  checkpointer = Checkpointer(tmp_path)
  gate = threading.Event()
  write = ocp.JsonCheckpointHandler._save_fn

  async def held_back(*args):
    assert gate.wait(60)
    await write(*args)

  monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", held_back)
  state = make_state(5)
  checkpointer.save(5, state, META)

  # As donation does.
  jax.tree.map(lambda x: x.delete(), state)
  assert checkpoint_steps.steps(tmp_path) == []
  gate.set()
  checkpointer.wait()
  written, _ = checkpoint_arrays.read_state(tmp_path, 5, abstract(make_state()))
  assert equal(written, make_state(5))


def test_a_write_that_fails_is_an_error_that_names_the_folder(tmp_path):
  checkpointer = saved(tmp_path, 1)
  words = (
    "could not be written to .*checkpoints: No space left.*checkpoints before it are untouched"
  )
  with pytest.raises(JobFailed, match=words):
    with explained(checkpointer.workdir):
      raise OSError("No space left on device")


def test_a_non_finite_state_is_never_written(tmp_path):
  checkpointer = saved(tmp_path, 1)
  state = make_state(2)
  average = state["ema"]["0.9"]
  average["b/bias"] = average["b/bias"].at[0].set(jnp.inf)
  with pytest.raises(NonFiniteState, match="ema/0.9/b/bias"):
    checkpointer.save(2, state, META)
  assert checkpoint_steps.steps(tmp_path) == [1]


def test_every_leaf_is_accounted_for(tmp_path):
  checkpointer = saved(tmp_path, 1)
  wanted = abstract(make_state())
  wanted["params"]["new/kernel"] = jax.ShapeDtypeStruct((1,), jnp.float32)
  wanted["params"]["b/bias"] = jax.ShapeDtypeStruct((6,), jnp.float32)
  del wanted["ema"]["0.9"]
  with pytest.raises(InputError) as error:
    checkpointer.restore(wanted)
  told = str(error.value)
  assert "missing on disk  params/new/kernel" in told
  assert "not in the model  ema/0.9/a/kernel" in told
  assert "shape differs  params/b/bias: (5,) on disk, (6,)" in told


@pytest.mark.parametrize(
  "which, source",
  [
    ("raw", lambda state: state["params"]),
    ("ema", lambda state: state["ema"]["0.999"]),
    ("ema:0.9", lambda state: state["ema"]["0.9"]),
  ],
)
def test_model_parameters_are_found_by_kind(tmp_path, which, source):
  saved(tmp_path, 1).close()
  state = make_state(1)
  params = checkpoint_params.load_params(tmp_path, which=which)
  assert equal(params, {**source(state), **state["frozen"]})


def test_an_average_that_is_not_there_is_an_error_with_those_that_are(tmp_path):
  saved(tmp_path, 1).close()
  with pytest.raises(InputError, match="no average of decay 0.5; it has 0.9, 0.999"):
    checkpoint_params.load_params(tmp_path, which="ema:0.5")


def test_a_folder_without_checkpoints_says_where_it_looked(tmp_path):
  with pytest.raises(InputError, match="holds no checkpoint"):
    checkpoint_params.load_params(tmp_path)


def test_a_step_that_is_not_there_is_an_error_with_those_that_are(tmp_path):
  saved(tmp_path, 4).close()
  with pytest.raises(InputError, match="no checkpoint of step 3; it has 4"):
    checkpoint_steps.read_meta(tmp_path, 3)


def make_mesh(*shape: int):
  count = shape[0] * shape[1]
  return jax.make_mesh(
    shape,
    ("x", "y"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[:count],
  )


def sharding_of(mesh, x) -> NamedSharding:
  """Split along both axes where the shape allows it on every mesh used here."""
  splits = x.ndim == 2 and x.shape[0] == 8
  spec = P("x", "y") if splits else P()
  return NamedSharding(mesh, spec)


@pytest.mark.multidevice
def test_a_checkpoint_moves_to_another_mesh_and_precision(tmp_path):
  # Saved on eight devices.
  first = make_mesh(4, 2)
  state = jax.tree.map(lambda x: jax.device_put(x, sharding_of(first, x)), make_state(3))
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, state, META)
  checkpointer.wait()

  # Read on fewer.
  for mesh in (make_mesh(2, 2), make_mesh(1, 1)):

    def placed(x, mesh=mesh):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(mesh, x))

    moved, _ = checkpointer.restore(jax.tree.map(placed, state))
    assert equal(moved, make_state(3))
    kernel = moved["params"]["a/kernel"]
    assert kernel.sharding.mesh.shape == mesh.shape

  # Read with half the bits.
  def halved(x):
    dtype = jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype)

  half, _ = checkpointer.restore(jax.tree.map(halved, state))
  assert half["params"]["a/kernel"].dtype == jnp.bfloat16

"""A small training state, saved, and files of it damaged."""

import pathlib

import jax
import jax.numpy as jnp
import optax

from sam3d_jax.training.checkpointer import Checkpointer

META = {"config": {"model": {}}, "lineage": {}}


def make_state(scale: float = 1.0):
  """A state of every kind of leaf: integers, fp32 and bfloat16, nested and flat."""
  params = {
    "a/kernel": jnp.arange(32.0).reshape(8, 4) * scale,
    "b/bias": jnp.ones(5) * scale,
  }
  return {
    "step": jnp.int32(3),
    "params": params,
    "frozen": {"c/x": jnp.full((2, 3), scale, jnp.bfloat16)},
    "opt": optax.adamw(1e-3).init(params),
    "ema": {
      "0.9": params,
      "0.999": jax.tree.map(lambda x: 2 * x, params),
    },
  }


def abstract(state):
  """The state as shape structs, where it lies."""

  def shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

  return jax.tree.map(shape, state)


def equal(a, b) -> bool:
  """Whether two states hold the same numbers of the same types."""

  def same(x, y):
    return x.dtype == y.dtype and bool((x == y).all())

  return jax.tree.all(jax.tree.map(same, a, b))


def saved(workdir: pathlib.Path, *steps: int) -> Checkpointer:
  """Saves make_state(step) as each step."""
  checkpointer = Checkpointer(workdir, keep=5)
  for step in steps:
    checkpointer.save(step, make_state(step), META)
    checkpointer.wait()
  return checkpointer


def restored(checkpointer: Checkpointer):
  """The state and its step."""
  state, meta = checkpointer.restore(abstract(make_state()))
  return state, meta["step"]


def flip(file: pathlib.Path) -> None:
  """Changes one bit in the middle."""
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 0x10
  file.write_bytes(bytes(data))


def truncate(file: pathlib.Path) -> None:
  file.write_bytes(file.read_bytes()[:-20])


def delete(file: pathlib.Path) -> None:
  file.unlink()


DAMAGES = (flip, truncate, delete)


def data_files(workdir: pathlib.Path, step: int) -> list[pathlib.Path]:
  """The files with the numbers of a step, which the storage layer keeps in folders `d`."""
  state = workdir / "checkpoints" / str(step) / "state"
  return [file for file in state.rglob("d/*") if file.is_file()]


def damage_data(workdir: pathlib.Path, step: int) -> None:
  for file in data_files(workdir, step):
    flip(file)

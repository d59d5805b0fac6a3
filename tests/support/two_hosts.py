"""One of two processes that restore together, while something is wrong on the second one alone.

    python -m tests.support.two_hosts HOST:PORT INDEX FOLDER

FOLDER has `run` and `other`, each with steps 5 and 6, which differ between the two. Prints one JSON
object: scenario -> what came of it in this process.
"""

import contextlib
import errno
import json
import os
import pathlib
import sys
from unittest import mock

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.trainer import hosts, identity
from launch.trainer.specs import HostsSpec
from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import retries
from sam3d_jax.training import checkpoint_arrays, checkpoint_steps, checkpointer
from tests.support import tiny_checkpoints

GARBLED = ValueError("DATA_LOSS: CRC-32C checksum verification failed")
EIO = OSError(errno.EIO, os.strerror(errno.EIO))


def failing(real, error: Exception):
  """A reader of arrays that fails at step 6."""

  def read(workdir, step, *args, **kwargs):
    if step == 6:
      raise error
    return real(workdir, step, *args, **kwargs)

  return read


def restored(workdir: pathlib.Path, abstract) -> str:
  """Which step all go on from, or why none does."""
  try:
    keeper = checkpointer.Checkpointer(workdir)
    _, meta = keeper.restore(abstract)
    return f"step {meta['step']}, bad {keeper.bad_steps}"
  except JobFailed as error:
    return str(error)


def main(coordinator: str, index: int, folder: pathlib.Path) -> None:
  hosts.connect(HostsSpec(coordinator, "2", str(index)), {})
  retries.PATIENCE_SECONDS = retries.FIRST_PAUSE = 0.05
  checkpointer.SEEN_SECONDS = 0.0
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  replicated = NamedSharding(mesh, P())

  def on_both(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)

  abstract = jax.tree.map(on_both, tiny_checkpoints.make_state())
  run = folder / "run"
  came = {}

  # What is wrong on host 1, and nothing on host 0.
  def only_there(target, name: str, changed):
    if index == 0:
      return contextlib.nullcontext()
    return mock.patch.object(target, name, changed)

  came["fine"] = restored(run, abstract)
  real = checkpoint_arrays._read
  with only_there(checkpoint_arrays, "_read", failing(real, GARBLED)):
    came["damaged there"] = restored(run, abstract)
  with only_there(checkpoint_arrays, "_read", failing(real, EIO)):
    came["disk fails there"] = restored(run, abstract)
  with only_there(checkpoint_steps, "steps", lambda workdir: [5]):
    came["not seen there"] = restored(run, abstract)
  came["another folder there"] = restored(run if index == 0 else folder / "other", abstract)

  # One lock for all, and the same data for all.
  try:
    with hosts.only_job(folder / "held"):
      came["folder in use"] = "taken"
  except JobFailed as error:
    came["folder in use"] = str(error)
  with hosts.only_job(folder / "free"):
    came["folder free"] = "taken"
  try:
    contents = {"iso": {"records": {"train": 40 - 17 * index}}}
    identity.check_same_everywhere({"contents": contents, "code": {}, "packages": {}})
  except InputError as error:
    came["other data there"] = str(error)
  print(json.dumps(came), flush=True)


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))

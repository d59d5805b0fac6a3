"""Checkpoints: whole or absent, checked, readable on another mesh."""

import shutil
import threading

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.training import checkpoint, checksums, retention
from sam3d_jax.training.checkpointer import Checkpointer, NonFiniteState, explained


def make_state(scale=1.0):
  params = {"a/kernel": jnp.arange(32.0).reshape(8, 4) * scale, "b/bias": jnp.ones(5) * scale}
  return {
    "step": jnp.int32(3),
    "params": params,
    "frozen": {"c/x": jnp.full((2, 3), scale, jnp.bfloat16)},
    "opt": optax.adamw(1e-3).init(params),
    "ema": {"0.9": params, "0.999": jax.tree.map(lambda x: 2 * x, params)},
  }


def abstract(state, sharding=None):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
  )


def equal(a, b):
  return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b))


def saved(tmp_path, *steps):
  checkpointer = Checkpointer(tmp_path, keep=5)
  for step in steps:
    checkpointer.save(step, make_state(step), {"config": {"model": {}}, "lineage": {}})
    checkpointer.wait()
  return checkpointer


def test_what_is_restored_is_what_was_saved(tmp_path):
  checkpointer = saved(tmp_path, 1, 2)
  state, meta = checkpointer.restore(abstract(make_state()))
  assert equal(state, make_state(2)) and meta["step"] == 2 and meta["config"] == {"model": {}}


def damage_flip(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 0x10
  file.write_bytes(bytes(data))


def damage_truncate(file):
  file.write_bytes(file.read_bytes()[:-20])


def damage_delete(file):
  file.unlink()


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_delete])
def test_a_damaged_step_is_named_and_the_one_before_is_used(tmp_path, capfd, damage):
  saved(tmp_path, 1, 2).close()
  state_files = [
    f
    for f in (tmp_path / "checkpoints" / "2" / "state").rglob("*")
    if f.is_file() and f.parent.name == "d"
  ]
  for file in state_files:
    damage(file)
  checkpointer = Checkpointer(tmp_path)
  state, meta = checkpointer.restore(abstract(make_state()))
  assert meta["step"] == 1 and equal(state, make_state(1)) and checkpointer.bad_steps == [2]
  assert "step 2 is damaged" in capfd.readouterr().err
  checkpointer.discard_bad_steps()
  assert checkpointer.save(2, make_state(7), {"config": {}, "lineage": {}})
  checkpointer.wait()
  assert (tmp_path / "checkpoints" / "2.damaged").exists()
  assert equal(checkpointer.restore(abstract(make_state()))[0], make_state(7))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
  folder = tmp_path_factory.mktemp("two_steps")
  saved(folder, 1, 2).close()
  return folder


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_delete])
def test_whatever_file_is_damaged_a_restore_gives_a_whole_step_bit_for_bit(
  two_steps, tmp_path, damage
):
  files = sorted(
    f.relative_to(two_steps) for f in (two_steps / "checkpoints" / "2").rglob("*") if f.is_file()
  )
  fallbacks = 0
  for number, file in enumerate(files):
    folder = tmp_path / str(number)
    shutil.copytree(two_steps, folder)
    damage(folder / file)
    checkpointer = Checkpointer(folder)
    state, meta = checkpointer.restore(abstract(make_state()))
    assert equal(state, make_state(meta["step"])) and checkpointer.bad_steps == (
      [2] if meta["step"] == 1 else []
    ), file
    fallbacks += meta["step"] == 1
  assert fallbacks >= 3  # the metadata, the index and the data; some files are only for other tools


def test_a_seal_covers_what_is_written_beside_the_arrays(two_steps, tmp_path):
  folder = tmp_path / "copy"
  shutil.copytree(two_steps, folder)
  file = folder / "checkpoints" / "2" / "meta" / "metadata"
  assert '"step": 2' in file.read_text() and '"config": {"model": {}}' in file.read_text()
  file.write_text(file.read_text().replace('"config": {"model": {}}', '"config": {"model": 7}'))
  with pytest.raises(checkpoint.CorruptCheckpoint, match="differs from what was written"):
    checkpoint.read_meta(folder)


def test_old_steps_go_but_the_last_one_that_reads_back_stays_however_many_newer_ones_are_bad(
  tmp_path, capfd
):
  checkpointer = Checkpointer(tmp_path, keep=2)
  for step in range(1, 10):
    checkpointer.save(step, make_state(step), {"config": {}, "lineage": {}})
    if step > 4:  # from here on the disk swallows bits of what is written, before it is read back
      checkpointer.manager.wait_until_finished()
      damage_data(tmp_path, step)
    checkpointer.wait()
    checkpointer.keeper.wait()
    assert len(checkpoint.steps(tmp_path)) <= 2
  checkpointer.close()
  assert (
    checkpointer.keeper.damaged == [5, 6, 7, 8, 9]
    and "step 9 did not read back" in capfd.readouterr().err
  )
  state, meta = Checkpointer(tmp_path, keep=2).restore(abstract(make_state()))
  assert meta["step"] == 4 and equal(state, make_state(4))


def damage_data(workdir, step):
  for file in (workdir / "checkpoints" / str(step) / "state").rglob("d/*"):
    damage_flip(file)


def test_the_last_good_step_outlives_keep_newer_ones_that_were_damaged_after_they_were_checked(
  tmp_path,
):
  saved(tmp_path, 1, 2, 3, 4).close()
  for step in (2, 3, 4):
    damage_data(tmp_path, step)
  checkpointer = Checkpointer(tmp_path, keep=1)
  assert checkpointer.restore(abstract(make_state()))[1]["step"] == 1
  checkpointer.discard_bad_steps()
  checkpointer.save(2, make_state(2), {"config": {}, "lineage": {}})
  checkpointer.manager.wait_until_finished()
  damage_data(tmp_path, 2)
  checkpointer.wait()
  checkpointer.keeper.wait()
  assert checkpoint.steps(tmp_path) == [1]


def test_a_step_that_was_slow_to_read_back_stays_until_a_newer_one_was(tmp_path):
  for step in range(1, 7):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  gate = threading.Event()
  keeper = retention.Keeper(tmp_path, 2, verify=lambda *unused: gate.wait(60))
  for step in range(3, 7):
    keeper.committed(step)
  gate.set()
  keeper.wait()
  assert checkpoint.steps(tmp_path) == [3, 5, 6]


@pytest.mark.parametrize("compiled", [False, True])
def test_host_and_device_agree_on_checksums(monkeypatch, compiled):
  rng = np.random.default_rng(0)
  arrays = {
    "f32": rng.standard_normal((3, 5, 7), np.float32),
    "bf16": jnp.asarray(rng.standard_normal(33), jnp.bfloat16),
    "bool": rng.random(9) < 0.5,
    "i32": np.int32(-5),
    "u8": rng.integers(0, 256, (4, 4), np.uint8),
    "empty": np.zeros((0, 3), np.float32),
  }
  if compiled:
    monkeypatch.setattr(checksums, "in_host_memory", lambda x: False)
  sums = checksums.on_device({k: jnp.asarray(x) for k, x in arrays.items()})
  assert {k: checksums.on_host(np.asarray(x)) for k, x in arrays.items()} == sums
  assert len(set(sums.values())) == len(sums)
  bad = {
    "nan": jnp.asarray([0, np.nan]),
    "inf": jnp.asarray([np.inf], jnp.bfloat16),
    "good": jnp.arange(3),
    "also good": jnp.ones(2),
  }
  assert checksums.inspect(bad)[1] == ["nan", "inf"]


def test_a_host_checksum_does_not_depend_on_the_chunks(monkeypatch):
  x = np.random.default_rng(0).standard_normal(100).astype(np.float32)
  whole = checksums.on_host(x)
  monkeypatch.setattr(checksums, "CHUNK", 7)
  assert checksums.on_host(x) == whole


def test_a_save_returns_before_it_is_committed_and_what_is_written_is_the_state_at_the_call(
  tmp_path, monkeypatch
):
  checkpointer, gate, write = (
    Checkpointer(tmp_path),
    threading.Event(),
    ocp.JsonCheckpointHandler._save_fn,
  )

  async def held_back(*args):
    assert gate.wait(60)
    await write(*args)

  monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", held_back)
  state = make_state(5)
  checkpointer.save(5, state, {"config": {}, "lineage": {}})
  jax.tree.map(lambda x: x.delete(), state)  # as donation does
  assert checkpoint.steps(tmp_path) == []
  gate.set()
  checkpointer.wait()
  assert equal(checkpoint.read_state(tmp_path, 5, abstract(make_state())), make_state(5))


def test_a_write_that_fails_is_an_error_that_names_the_folder(tmp_path):
  checkpointer = saved(tmp_path, 1)
  with pytest.raises(
    JobFailed,
    match="could not be written to .*checkpoints: No space left.*checkpoints before it are "
    "untouched",
  ):
    with explained(checkpointer.workdir):
      raise OSError("No space left on device")


def test_bits_changed_under_the_storage_layer_are_found_by_the_checksums(tmp_path):
  saved(tmp_path, 1).close()
  other = tmp_path / "other"
  changed = make_state(1)
  changed["params"]["a/kernel"] = changed["params"]["a/kernel"].at[3, 2].add(1e-6)
  checkpointer = Checkpointer(other)
  checkpointer.save(1, changed, {"config": {}, "lineage": {}})
  checkpointer.close()
  state = other / "checkpoints" / "1" / "state"
  state.rename(tmp_path / "swap")
  (tmp_path / "checkpoints" / "1" / "state").rename(tmp_path / "old")
  (tmp_path / "swap").rename(tmp_path / "checkpoints" / "1" / "state")
  with pytest.raises(checkpoint.CorruptCheckpoint, match="a/kernel"):
    checkpoint.read_state(tmp_path, 1, abstract(make_state()))


def test_a_non_finite_state_is_never_written(tmp_path):
  checkpointer = saved(tmp_path, 1)
  state = make_state(2)
  state["ema"]["0.9"]["b/bias"] = state["ema"]["0.9"]["b/bias"].at[0].set(jnp.inf)
  with pytest.raises(NonFiniteState, match="ema/0.9/b/bias"):
    checkpointer.save(2, state, {"config": {}, "lineage": {}})
  assert checkpoint.steps(tmp_path) == [1]


def test_every_leaf_is_accounted_for(tmp_path):
  checkpointer = saved(tmp_path, 1)
  wanted = abstract(make_state())
  wanted["params"]["new/kernel"] = jax.ShapeDtypeStruct((1,), jnp.float32)
  del wanted["ema"]["0.9"]
  wanted["params"]["b/bias"] = jax.ShapeDtypeStruct((6,), jnp.float32)
  with pytest.raises(InputError) as error:
    checkpointer.restore(wanted)
  for line in (
    "missing on disk  params/new/kernel",
    "not in the model  ema/0.9/a/kernel",
    "shape differs  params/b/bias: (5,) on disk, (6,)",
  ):
    assert line in str(error.value)


@pytest.mark.multidevice
def test_a_checkpoint_moves_to_another_mesh_and_precision(tmp_path):
  meshes = [
    jax.make_mesh(shape, ("x", "y"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:n])
    for shape, n in (((4, 2), 8), ((2, 2), 4), ((1, 1), 1))
  ]
  place = lambda mesh: (
    lambda x: NamedSharding(mesh, P("x", "y") if x.ndim == 2 and x.shape[0] == 8 else P())
  )
  state = jax.tree.map(lambda x: jax.device_put(x, place(meshes[0])(x)), make_state(3))
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, state, {"config": {}, "lineage": {}})
  checkpointer.wait()
  for mesh in meshes[1:]:
    wanted = jax.tree.map(
      lambda x, mesh=mesh: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(mesh)(x)), state
    )
    restored, _ = checkpointer.restore(wanted)
    assert equal(restored, make_state(3))
    assert restored["params"]["a/kernel"].sharding.mesh.shape == mesh.shape
  half = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype),
    state,
  )
  restored, _ = checkpointer.restore(half)
  assert restored["params"]["a/kernel"].dtype == jnp.bfloat16


@pytest.mark.multidevice
def test_the_checksum_does_not_depend_on_the_layout_and_sees_every_bit():
  x = jax.random.normal(jax.random.key(0), (8, 16))
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  here = checksums.on_device({"x": x})["x"]
  assert (
    checksums.on_device({"x": jax.device_put(x, NamedSharding(mesh, P("x", "y")))})["x"] == here
  )
  bits = np.asarray(x).view(np.uint32)
  for position in ((0, 0), (7, 15), (3, 8)):
    for bit in (0, 13, 31):
      flipped = bits.copy()
      flipped[position] ^= np.uint32(1 << bit)
      assert checksums.on_device({"x": jnp.asarray(flipped.view(np.float32))})["x"] != here
  assert checksums.on_device({"x": x[::-1]})["x"] != here


def test_model_parameters_are_found_by_kind(tmp_path):
  saved(tmp_path, 1).close()
  state = make_state(1)
  for which, source in (
    ("raw", state["params"]),
    ("ema", state["ema"]["0.999"]),
    ("ema:0.9", state["ema"]["0.9"]),
  ):
    params = checkpoint.load_params(tmp_path, which=which)
    assert equal(params, {**source, **state["frozen"]})
  with pytest.raises(InputError, match="no average of decay 0.5; it has 0.9, 0.999"):
    checkpoint.load_params(tmp_path, which="ema:0.5")


def test_a_folder_without_checkpoints_says_where_it_looked(tmp_path):
  with pytest.raises(InputError, match="holds no checkpoint"):
    checkpoint.load_params(tmp_path)
  saved(tmp_path, 4).close()
  with pytest.raises(InputError, match="no checkpoint of step 3; it has 4"):
    checkpoint.read_meta(tmp_path, 3)

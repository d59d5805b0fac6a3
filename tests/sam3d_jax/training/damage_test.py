"""Checkpoints on a bad disk: what is damaged is found, named and survived."""

import asyncio
import functools
import gc
import json
import pathlib
import shutil
import threading

import jax.numpy as jnp
import pytest

from sam3d_jax.errors import InputError
from sam3d_jax.training import (
  best,
  checkpoint_arrays,
  checkpoint_params,
  checkpoint_steps,
  retention,
)
from sam3d_jax.training.checkpointer import Checkpointer
from sam3d_jax.training.checksums import CorruptCheckpoint
from tests.support.tiny_checkpoints import (
  DAMAGES,
  META,
  abstract,
  damage_data,
  data_files,
  equal,
  make_state,
  restored,
  saved,
  truncate,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_named_and_the_one_before_is_used(tmp_path, capfd, damage):
  saved(tmp_path, 1, 2).close()
  for file in data_files(tmp_path, 2):
    damage(file)

  # The one before is used.
  checkpointer = Checkpointer(tmp_path)
  state, step = restored(checkpointer)
  assert step == 1
  assert equal(state, make_state(1))
  assert checkpointer.bad_steps == [2]
  assert "step 2 is damaged" in capfd.readouterr().err

  # The step can be written again; what was there is kept beside it.
  checkpointer.discard_bad_steps()
  assert checkpointer.save(2, make_state(7), META)
  checkpointer.wait()
  assert (tmp_path / "checkpoints" / "2.damaged").exists()
  state, step = restored(checkpointer)
  assert step == 2
  assert equal(state, make_state(7))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
  folder = tmp_path_factory.mktemp("two_steps")
  saved(folder, 1, 2).close()
  return folder


def files_of_step(workdir: pathlib.Path, step: int) -> list[pathlib.Path]:
  """All files of a step, relative to the work folder."""
  everything = (workdir / "checkpoints" / str(step)).rglob("*")
  return sorted(path.relative_to(workdir) for path in everything if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_file_is_damaged_a_restore_gives_a_whole_step_bit_for_bit(
  two_steps, tmp_path, damage
):
  fell_back = 0
  for number, file in enumerate(files_of_step(two_steps, 2)):
    folder = tmp_path / str(number)
    shutil.copytree(two_steps, folder)
    damage(folder / file)
    checkpointer = Checkpointer(folder)
    state, step = restored(checkpointer)
    assert equal(state, make_state(step)), file
    assert checkpointer.bad_steps == ([2] if step == 1 else []), file
    fell_back += step == 1
  # The metadata, the index and the data; some files are only for other tools.
  assert fell_back >= 3


def test_a_seal_covers_what_is_written_beside_the_arrays(two_steps, tmp_path):
  folder = tmp_path / "copy"
  shutil.copytree(two_steps, folder)
  file = folder / "checkpoints" / "2" / "meta" / "metadata"
  text = file.read_text()
  assert '"step": 2' in text
  assert '"config": {"model": {}}' in text
  changed = text.replace('"config": {"model": {}}', '"config": {"model": 7}')
  file.write_text(changed)
  with pytest.raises(CorruptCheckpoint, match="differs from what was written"):
    checkpoint_steps.read_meta(folder, 2)


def half_copied(workdir: pathlib.Path, how: str) -> None:
  """Leaves step 2 as a copy that was cut short, or hit, would."""
  step = workdir / "checkpoints" / "2"
  if how == "empty":
    shutil.rmtree(step)
    (step / "state").mkdir(parents=True)
  elif how == "without meta":
    shutil.rmtree(step / "meta")
  elif how == "without state":
    shutil.rmtree(step / "state")
  elif how == "without data":
    shutil.rmtree(step / "state" / "d")
  elif how == "cut short":
    for file in data_files(workdir, 2):
      truncate(file)
  elif how == "no folder":
    shutil.rmtree(step)
    step.write_text("")


HALVES = ("empty", "without meta", "without state", "without data", "cut short", "no folder")


@pytest.mark.parametrize("how", HALVES)
def test_a_half_copied_step_is_named_and_the_one_before_is_read(two_steps, tmp_path, capfd, how):
  folder = tmp_path / "copy"
  shutil.copytree(two_steps, folder)
  half_copied(folder, how)
  kernel = make_state(1)["params"]["a/kernel"]

  # Parameters, what is said of them, and what is read later, array by array.
  params = checkpoint_params.load_params(folder, which="raw")
  assert (params["a/kernel"] == kernel).all()
  assert "step 2 is damaged" in capfd.readouterr().err
  read = functools.partial(checkpoint_steps.read_whole_meta, folder)
  assert checkpoint_steps.newest_readable(folder, read)["step"] == 1

  # What a stage would start from.
  shapes = {"a/kernel": kernel, "b/bias": kernel[0], "c/x": kernel}
  found = checkpoint_params.origin(folder, shapes, which="raw", allow="b/bias|c/x")
  assert found.step == 1

  # The step itself is refused, with what to do.
  with pytest.raises(InputError, match="step 2 is damaged .*: copy it again, or give another"):
    checkpoint_params.load_params(folder, which="raw", step=2)


@pytest.mark.parametrize("how", HALVES)
def test_without_a_step_that_reads_the_folder_is_refused(two_steps, tmp_path, how):
  folder = tmp_path / "copy"
  shutil.copytree(two_steps, folder)
  shutil.rmtree(folder / "checkpoints" / "1")
  half_copied(folder, how)
  with pytest.raises(InputError, match="none of the 1 checkpoints in .* can be read: copy"):
    checkpoint_params.load_params(folder, which="raw")


def test_an_index_of_arrays_is_compared_with_every_file(tmp_path):
  state = {"a": jnp.arange(90_000.0).reshape(300, 300), "b": jnp.ones(5)}
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, state, META)
  checkpointer.close()
  assert checkpoint_steps.read_whole_meta(tmp_path, 1)["step"] == 1
  largest = max(data_files(tmp_path, 1), key=lambda file: file.stat().st_size)
  assert largest.stat().st_size > 10_000
  largest.write_bytes(largest.read_bytes()[:1000])
  with pytest.raises(CorruptCheckpoint, match="has 1000 bytes"):
    checkpoint_steps.read_whole_meta(tmp_path, 1)
  largest.unlink()
  with pytest.raises(CorruptCheckpoint, match="No such file"):
    checkpoint_steps.read_whole_meta(tmp_path, 1)


def test_the_best_step_is_read_first_and_the_newest_where_it_is_damaged(two_steps, tmp_path):
  folder = tmp_path / "copy"
  shutil.copytree(two_steps, folder)
  (folder / best.FILE).write_text(json.dumps({"step": 1}))
  read = functools.partial(checkpoint_steps.read_meta, folder)
  assert checkpoint_steps.read_meta(folder)["step"] == 1
  assert checkpoint_steps.newest_readable(folder, read)["step"] == 1
  shutil.rmtree(folder / "checkpoints" / "1" / "meta")
  assert checkpoint_steps.newest_readable(folder, read)["step"] == 2
  # one that is cut off counts as absent
  (folder / best.FILE).write_text('{"step"')
  assert checkpoint_steps.newest_readable(folder, read)["step"] == 2


def test_bits_changed_under_the_storage_layer_are_found_by_the_checksums(tmp_path):
  saved(tmp_path / "here", 1).close()

  # The same step with one number changed, written by the storage layer as it should be.
  changed = make_state(1)
  kernel = changed["params"]["a/kernel"]
  changed["params"]["a/kernel"] = kernel.at[3, 2].add(1e-6)
  checkpointer = Checkpointer(tmp_path / "there")
  checkpointer.save(1, changed, META)
  checkpointer.close()

  state = tmp_path / "here" / "checkpoints" / "1" / "state"
  shutil.rmtree(state)
  shutil.move(tmp_path / "there" / "checkpoints" / "1" / "state", state)
  with pytest.raises(CorruptCheckpoint, match="a/kernel"):
    checkpoint_arrays.read_state(tmp_path / "here", 1, abstract(make_state()))


def test_old_steps_go_but_the_last_one_that_reads_back_stays_however_many_newer_ones_are_bad(
  tmp_path, capfd
):
  checkpointer = Checkpointer(tmp_path, keep=2)
  for step in range(1, 10):
    checkpointer.save(step, make_state(step), META)
    # From here on the disk swallows bits of what is written, before it is read back.
    if step > 4:
      checkpointer.manager.wait_until_finished()
      damage_data(tmp_path, step)
    checkpointer.wait()
    checkpointer.keeper.wait()
    assert len(checkpoint_steps.steps(tmp_path)) <= 2
  checkpointer.close()
  assert checkpointer.keeper.damaged == [5, 6, 7, 8, 9]
  assert "step 9 did not read back" in capfd.readouterr().err

  state, step = restored(Checkpointer(tmp_path, keep=2))
  assert step == 4
  assert equal(state, make_state(4))


def test_the_last_good_step_outlives_keep_newer_ones_that_were_damaged_after_they_were_checked(
  tmp_path,
):
  saved(tmp_path, 1, 2, 3, 4).close()
  for step in (2, 3, 4):
    damage_data(tmp_path, step)
  checkpointer = Checkpointer(tmp_path, keep=1)
  _, step = restored(checkpointer)
  assert step == 1

  # The next save is damaged too.
  checkpointer.discard_bad_steps()
  checkpointer.save(2, make_state(2), META)
  checkpointer.manager.wait_until_finished()
  damage_data(tmp_path, 2)
  checkpointer.wait()
  checkpointer.keeper.wait()
  assert checkpoint_steps.steps(tmp_path) == [1]


def test_a_step_that_was_slow_to_read_back_stays_until_a_newer_one_was(tmp_path):
  for step in range(1, 7):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  gate = threading.Event()

  def verify(workdir, step, stop):
    del workdir, step, stop
    gate.wait(60)

  keeper = retention.Keeper(tmp_path, 2, verify=verify)
  for step in range(3, 7):
    keeper.committed(step)
  gate.set()
  keeper.wait()
  assert checkpoint_steps.steps(tmp_path) == [3, 5, 6]


def test_reads_beside_the_one_that_failed_leave_no_complaint_behind(caplog):
  async def read(number: int):
    # each a turn of the loop later than the one before
    for _ in range(number):
      await asyncio.sleep(0)
    raise ValueError(f"array {number}")

  async def read_beside_each_other():
    await asyncio.gather(*(read(number) for number in range(5)))

  # as the storage layer does: a loop of its own, closed when the first fails
  loop = asyncio.new_event_loop()
  with pytest.raises(ValueError, match="array 0"):
    loop.run_until_complete(read_beside_each_other())
  loop.close()

  checkpoint_arrays.collect_unfinished()
  gc.collect()
  assert [record.message for record in caplog.records if record.name == "asyncio"] == []

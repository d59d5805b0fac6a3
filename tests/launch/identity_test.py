"""A run goes on with the data that it began with, and all hosts read the same."""

import errno
import json
import os
import pathlib
import shutil

import pytest

from data_pipelines.format import records
from launch.console import cli
from launch.trainer import command, identity
from sam3d_jax.errors import AwayError, ConfigError, DeniedError, InputError
from sam3d_jax.training import agreement
from tests.support import tiny_dataset

WORKDIR = pathlib.Path("run")
STEP = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_dataset.write_dataset(tmp_path_factory.mktemp("data") / "before", 40)


def config_of(folder: pathlib.Path, *more: str):
  path = f"--config.data.mixture.iso_3do.path={folder}"
  return cli.load_config("configs/vae_structure.py", [path, *more])


@pytest.fixture
def lineage(folder):
  """As a checkpoint has it: through JSON."""
  reads = identity.of(config_of(folder))
  return json.loads(json.dumps({"reads": reads, "commit": "abc"}))


def test_data_that_moved_are_the_same_data(folder, lineage, tmp_path, capsys):
  moved = shutil.copytree(folder, tmp_path / "elsewhere")
  config = config_of(moved)
  now = identity.of(config)
  carried = identity.carried_on(lineage, STEP, now, config, WORKDIR)
  assert carried == lineage
  assert not capsys.readouterr().err


def test_other_records_are_refused_and_taken_on_purpose(lineage, tmp_path, capsys):
  other = tiny_dataset.write_dataset(tmp_path / "other", 23, first=100)
  config = config_of(other)
  now = identity.of(config)
  words = (
    r"run was trained on a dataset of 40 train records, contents \w+ as data.mixture.iso_3do up to "
    r"step 500, now .*other holds a dataset of 23 train records, contents .*accept_changes=True"
  )
  with pytest.raises(ConfigError, match=words):
    identity.check_same_data(lineage, STEP, now, config, WORKDIR)

  config = config_of(other, "--config.data.accept_changes=True")
  carried = identity.carried_on(lineage, STEP, now, config, WORKDIR)
  assert "other data are read than before: iso_3do" in capsys.readouterr().err
  assert carried["reads"] == now
  (change,) = carried["changes"]
  assert change["step"] == STEP and change["datasets"] == ["iso_3do"]
  # the next start finds what it reads
  assert identity.check_same_data(carried, STEP, now, config_of(other), WORKDIR) == []


def test_as_many_records_of_another_build_are_other_data(folder, lineage, tmp_path):
  other = shutil.copytree(folder, tmp_path / "again")
  records.write_json(other / records.BUILD_FILE, {"digest": "of other settings"})
  config = config_of(other)
  with pytest.raises(ConfigError, match="holds a dataset of 40 train records"):
    identity.check_same_data(lineage, STEP, identity.of(config), config, WORKDIR)


def test_runs_from_before_know_how_many_records_there_were(folder, tmp_path):
  old = {"datasets": {"iso_3do": {"records": {"train": 40}, "digest": "of files"}}}
  config = config_of(folder)
  assert not identity.check_same_data(old, STEP, identity.of(config), config, WORKDIR)
  other = tiny_dataset.write_dataset(tmp_path / "other", 23)
  config = config_of(other)
  with pytest.raises(ConfigError, match="40 train records as .*23 train records"):
    identity.check_same_data(old, STEP, identity.of(config), config, WORKDIR)


def test_other_code_is_said_with_its_files_and_recorded(folder, lineage, capsys):
  config = config_of(folder)
  now = identity.of(config)
  now["code"]["data_pipelines/read/augment.py"] = "other"
  carried = identity.carried_on(lineage, STEP, now, config, WORKDIR)
  said = capsys.readouterr().err
  assert "is not that of step 500 (data_pipelines/read/augment.py)" in said
  assert "go on with commit abc" in said
  assert carried["changes"][0]["code"] == ["data_pipelines/read/augment.py"]


@pytest.mark.parametrize(
  "kind, name, words",
  [
    ("contents", "iso_3do", "host 1 reads another data.mixture.iso_3do than host 0"),
    ("code", "data_pipelines/read/rows.py", r"other code than host 0 \(data_pipelines/read/rows"),
    ("packages", "numpy", "other packages than host 0 .numpy 0.1 there"),
  ],
)
def test_hosts_that_differ_all_refuse_to_start(folder, monkeypatch, kind, name, words):
  reads = identity.of(config_of(folder))
  other = json.loads(json.dumps(reads))
  other[kind][name] = {"records": {"train": 1}} if kind == "contents" else "0.1"
  both = [json.dumps(reads), json.dumps(other)]
  monkeypatch.setattr(agreement, "exchange", lambda text: both)
  with pytest.raises(InputError, match=words):
    identity.check_same_everywhere(reads)


def test_comments_are_no_code(tmp_path, monkeypatch):
  monkeypatch.setattr(identity, "ROOT", tmp_path)
  monkeypatch.setattr(identity, "CODE", ("a.py",))
  file = tmp_path / "a.py"
  file.write_text("x = 1\n")
  before = identity.code()
  file.write_text("# why\n\nx = 1\n")
  assert identity.code() == before
  file.write_text("x = 2\n")
  assert identity.code() != before


@pytest.mark.parametrize("begun, code", [(False, cli.EXIT_BAD_INPUT), (True, 1)])
def test_data_that_are_gone_end_a_new_run_for_good_and_fail_one_that_was_begun(
  tmp_path, capsys, begun, code
):
  workdir = tmp_path / "run"
  if begun:
    (workdir / "checkpoints").mkdir(parents=True)
  argv = [
    "--config=configs/vae_structure.py",
    f"--workdir={workdir}",
    f"--config.data.mixture.iso_3do.path={tmp_path / 'unmounted'}",
  ]
  assert command.main(("train_vae",), "x", argv) == code
  said = capsys.readouterr().err
  assert "is not a folder" in said
  assert ("is its disk mounted?" in said) == begun


@pytest.mark.parametrize(
  "error, code",
  [
    (DeniedError("no right to it"), 1),
    (AwayError("not there"), 1),
    (OSError(errno.EROFS, os.strerror(errno.EROFS)), 1),
    (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), 1),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1),
    (ConfigError("wrong"), cli.EXIT_BAD_INPUT),
  ],
)
def test_no_disk_ends_a_run_that_was_begun_for_good(tmp_path, monkeypatch, capsys, error, code):
  def start(*unused):
    raise error

  (tmp_path / "checkpoints").mkdir()
  monkeypatch.setattr(command, "start", start)
  argv = ["--config=configs/vae_structure.py:fake", f"--workdir={tmp_path}"]
  assert command.main(("train_vae",), "x", argv) == code
  assert "Traceback" not in capsys.readouterr().err


def test_a_start_that_is_repeated_does_not_begin_beside_a_missing_mount(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
  argv = ["--config=configs/vae_structure.py:fake", f"--workdir={tmp_path / 'unmounted'}"]
  assert command.main(("train_vae",), "x", argv) == 1
  assert "was started 2 times before: mount its disk" in capsys.readouterr().err
  assert not (tmp_path / "unmounted").exists()

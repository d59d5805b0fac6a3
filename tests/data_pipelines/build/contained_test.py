"""One bad input ends no build; a failing disk is not taken for a bad input."""

import errno
import json
import os
import pathlib
import re
import shutil

from PIL import Image
import pytest

from data_pipelines.build import shard_jobs
from data_pipelines.format import records
from data_pipelines.synth import assets, sources
from launch import build_data
from launch.console import cli
from sam3d_jax.errors import InputError, JobFailed, Refused
from tests.support.tiny_build import CONFIG

# what a test puts in place of a reader is in this process alone
HERE = ("limits.memory_gb=0", "limits.seconds=0")
SMALL = ("views=1", "image_size=32", "image_format=png", "samples=1", "workers=1")


def _build(source: pathlib.Path, out: pathlib.Path, *overrides: str) -> int:
  given = (f"source={source}", f"out={out}", "test_fraction=0.0", *SMALL, *overrides)
  argv = ["--config", CONFIG.partition(":")[0], *(f"--config.{o}" for o in given)]
  return cli.run_command(build_data.run, description="d", flags=build_data.flags, argv=argv)


def _cube(path: pathlib.Path, *, by: float = 1.0) -> None:
  """A cube that no other value of `by` gives."""
  lines = []
  for corner in range(8):
    x, y, z = (corner >> 2) & 1, (corner >> 1) & 1, corner & 1
    lines.append(f"v {x * by} {y} {z}")
  faces = ("1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4")
  lines += [f"f {face}" for face in faces]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(lines) + "\n")


def _records(out: pathlib.Path) -> list[dict]:
  split = records.open_split(out)
  return [split[i] for i in range(len(split))]


def _refused(out: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
  "error",
  [KeyError("x"), RecursionError(), IndexError("y"), UnicodeDecodeError("utf-8", b"", 0, 1, "z")],
)
def test_whatever_a_reader_raises_is_a_refusal(error):
  with pytest.raises(Refused, match="too_large"), shard_jobs.contained():
    raise MemoryError
  with pytest.raises(Refused, match=type(error).__name__), shard_jobs.contained():
    raise error


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    PermissionError(errno.EACCES, "Permission denied"),
    InputError("estimator"),
    JobFailed("gone"),
    KeyboardInterrupt(),
  ],
)
def test_what_is_not_the_inputs_fault_stays_what_it_is(error):
  with pytest.raises(type(error)), shard_jobs.contained():
    raise error


def test_a_reader_that_fails_costs_its_own_mesh(tmp_path, monkeypatch):
  for number in range(2):
    _cube(tmp_path / "in" / f"{number}.obj", by=1 + number)
  read = assets.meshes.read

  def fails(path, **how):
    if path.name == "0.obj":
      raise IndexError("list index out of range")
    return read(path, **how)

  monkeypatch.setattr(assets.meshes, "read", fails)
  assert _build(tmp_path / "in", tmp_path / "out", "quarantine_budget=1.0", *HERE) == 0
  assert len(_records(tmp_path / "out")) == 1
  (bad,) = _refused(tmp_path / "out")
  assert bad["path"] == "0.obj" and "list index out of range" in bad["detail"]


@pytest.mark.parametrize("code, ends_with", [(errno.EACCES, 2), (errno.EIO, 1)])
def test_a_file_that_the_system_does_not_let_read_is_named(
  tmp_path, monkeypatch, capsys, code, ends_with
):
  _cube(tmp_path / "in" / "a.obj")
  whole = pathlib.Path.open

  def refuses(path, *how, **more):
    if path.name == "a.obj":
      raise OSError(code, os.strerror(code), str(path))
    return whole(path, *how, **more)

  monkeypatch.setattr(pathlib.Path, "open", refuses)
  assert _build(tmp_path / "in", tmp_path / "out") == ends_with
  said = capsys.readouterr().err
  assert "a.obj cannot be read" in said and os.strerror(code) in said


def test_a_disk_that_fails_while_shards_are_made_is_no_bad_input(tmp_path, monkeypatch, capsys):
  _cube(tmp_path / "in" / "a.obj")

  def fails(path, **how):
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

  monkeypatch.setattr(assets.meshes, "read", fails)
  assert _build(tmp_path / "in", tmp_path / "out", "quarantine_budget=1.0", *HERE) == 1
  assert "a.obj cannot be read" in capsys.readouterr().err
  assert _refused(tmp_path / "out") == []


@pytest.mark.parametrize(
  "side_file, content",
  [
    ("a.obj.license", "\u00a9 S\u00fcd".encode("latin-1")),
    ("a.obj.license", "\u00a9 S\u00fcd".encode("utf-16")),
    ("a.obj.license", b"\xef\xbb\xbf\xc2\xa9 S\xc3\xbcd\n"),
    ("sources.json", b'\xef\xbb\xbf{"a.obj": {"license": "\xc2\xa9 S\xc3\xbcd"}}'),
    ("sources.json", '{"a.obj": {"license": "\u00a9 S\u00fcd"}}'.encode("utf-16")),
    ("sources.json", '{"a.obj": {"license": "\u00a9 S\u00fcd"}}'.encode("latin-1")),
  ],
)
def test_a_licence_of_any_encoding_travels(tmp_path, side_file, content):
  _cube(tmp_path / "a.obj")
  (tmp_path / side_file).write_bytes(content)
  assert assets.load(tmp_path / "a.obj").license == "\u00a9 S\u00fcd"


@pytest.mark.parametrize(
  "content",
  [
    b'{"a.obj": {"license": "CC0",}}',
    b'[{"file": "a.obj", "license": "CC0"}]',
    b'{"a.obj": "CC0"}',
    b'{"a.obj": {"license": 4}}',
    b'{"a.obj": {"license": null}}',
    b'{"a.obj": {"license": "\\ud800"}}',
    b'{"a.obj": {"up": ["z"]}}',
    b"\xef\xbb\xbf",
    b"[" * 50_000,
  ],
)
def test_a_table_of_sources_that_says_nothing_refuses_its_mesh(tmp_path, content):
  _cube(tmp_path / "a.obj")
  (tmp_path / "sources.json").write_bytes(content)
  with pytest.raises(Refused, match=r"sources\.json.*a\.obj"):
    assets.load(tmp_path / "a.obj")


def test_a_table_names_a_mesh_however_its_accents_are_written(tmp_path):
  _cube(tmp_path / "Stu\u0308hl.obj")
  (tmp_path / "sources.json").write_text('{"St\u00fchl.obj": {"license": "CC0"}}')
  assert assets.load(tmp_path / "Stu\u0308hl.obj").license == "CC0"


def test_names_that_are_not_utf_8_and_linked_folders_are_built(tmp_path):
  _cube(tmp_path / "store" / "linked.obj", by=2)
  _cube(tmp_path / "in" / "plain.obj")
  raw = os.path.join(os.fsencode(tmp_path / "in"), b"St\xfchl.obj")
  _cube(pathlib.Path(os.fsdecode(raw)), by=3)
  (tmp_path / "in" / "more").symlink_to(tmp_path / "store")
  (tmp_path / "in" / "._plain.obj").write_bytes(b"\0\5\x16\7")
  assert _build(tmp_path / "in", tmp_path / "out", "quarantine_budget=0.0") == 0
  meshes = {json.loads(record["lineage"])["mesh"] for record in _records(tmp_path / "out")}
  assert meshes == {"plain.obj", "St\\xfchl.obj", "more/linked.obj"}


# What public reports told of, from the shared folder.


def test_field_folders_of_meshes(shared_dir, tmp_path):
  field = shared_dir / "field" / "folders-of-meshes"
  if not field.is_dir():
    pytest.skip(f"{field} does not exist")
  shutil.copytree(field, tmp_path / "field")
  trees = tmp_path / "field"

  def names(folder: pathlib.Path) -> list[str]:
    inputs = sources.list_inputs(sources.SourceConfig(source=str(folder)))
    return sorted(item.name for item in inputs)

  (trees / "tree_links" / "meshes" / "linked").symlink_to("../store")
  linked = [f"linked/linked{i}.obj" for i in range(3)]
  assert names(trees / "tree_links" / "meshes") == [f"here{i}.obj" for i in range(3)] + linked
  (trees / "tree_only_link").mkdir()
  (trees / "tree_only_link" / "shapes").symlink_to("../tree_links/store")
  assert names(trees / "tree_only_link") == [f"shapes/linked{i}.obj" for i in range(3)]
  assert names(trees / "tree_apple") == [f"m{i}.obj" for i in range(4)]
  latin = trees / "tree_latin1"
  os.rename(latin / "Stuhl.obj", os.path.join(os.fsencode(latin), b"St\xfchl.obj"))
  assert names(latin) == ["St\\xfchl.obj", "m0.obj", "m1.obj", "m2.obj"]


def test_field_side_files(shared_dir):
  field = shared_dir / "field" / "side-files"
  if not field.is_dir():
    pytest.skip(f"{field} does not exist")
  load = lambda case: assets.load(field / case / "a.obj")
  assert load("side_license_latin1").license == "\u00a9 2019 Atelier S\u00e9b"
  told = load("side_sources_bom")
  assert (told.license, told.up) == ("CC-BY-4.0", "z")
  for case in ("side_sources_bad", "side_sources_list", "side_sources_other"):
    with pytest.raises(Refused, match=r"sources\.json"):
      load(case)


def test_hostile_side_files_cost_their_own_mesh(shared_dir, tmp_path):
  hostile = shared_dir / "hostile"
  cases = sorted(path for path in hostile.glob("mesh_sidecar_*"))
  cases += sorted(hostile.glob("mesh_license_latin1"))
  if not cases:
    pytest.skip(f"{hostile} has no side files")
  for case in cases:
    shutil.copytree(case, tmp_path / "in" / case.name)
  _cube(tmp_path / "in" / "good.obj")
  assert _build(tmp_path / "in", tmp_path / "out", "quarantine_budget=1.0") == 0
  assert len(_records(tmp_path / "out")) >= 1


def test_every_collected_mesh_costs_itself_alone_and_is_named(hostile_dir, tmp_path):
  cases = sorted(hostile_dir.glob("mesh_*"))
  for case in cases:
    shutil.copytree(case, tmp_path / "in" / case.name)
  _cube(tmp_path / "in" / "good.obj")
  assert _build(tmp_path / "in", tmp_path / "out", "quarantine_budget=1.0") == 0
  made = {json.loads(record["lineage"])["mesh"] for record in _records(tmp_path / "out")}
  named = {bad["path"] for bad in _refused(tmp_path / "out")}
  meshes = {f"{case.name}/{next(case.glob('a.*f')).name}" for case in cases if any(case.glob("*f"))}
  assert "good.obj" in made
  assert len(made) + len(named) == len(cases) + 1
  assert {name for name in meshes if "gltf" in name} <= named


def test_a_mesh_that_takes_more_than_it_may_is_refused_with_the_limit(tmp_path):
  _cube(tmp_path / "in" / "good.obj")
  side = 9000
  Image.new("RGBA", (side, side)).save(tmp_path / "in" / "large.png")
  (tmp_path / "in" / "large.mtl").write_text("newmtl a\nmap_Kd large.png\n")
  text = (tmp_path / "in" / "good.obj").read_text()
  mapped = "mtllib large.mtl\nusemtl a\nvt 0 0\nvt 1 0\nvt 1 1\n" + text.replace("v 1", "v 2")
  mapped = re.sub(r"f (\d+) (\d+) (\d+) (\d+)", r"f \1/1 \2/2 \3/3 \4/1", mapped)
  (tmp_path / "in" / "large.obj").write_text(mapped)
  limits = ("limits.memory_gb=0.3", "quarantine_budget=1.0")
  assert _build(tmp_path / "in", tmp_path / "out", *limits) == 0
  (bad,) = _refused(tmp_path / "out")
  assert bad["path"] == "large.obj" and bad["reason"] == "too_large"
  assert "0.3 GB (limits.memory_gb)" in bad["detail"]

"""Validation: every damage is found and named, and good data pass."""

import io
import re

import numpy as np
from PIL import Image
import pytest

from data_pipelines.build import checks
from data_pipelines.format import records, schema
from launch import validate_data
from launch.console import cli
from tests.support import tiny_dataset


def reasons(example, kind="example"):
  return [f.reason for f in checks.check_example(example, kind).findings]


def validate(folder, *extra):
  return cli.run_command(
    validate_data.run,
    description="d",
    flags=validate_data.flags,
    config="none",
    argv=["--data", str(folder), *map(str, extra)],
  )


@pytest.mark.parametrize("kind", schema.KINDS)
def test_good_examples_pass_and_project_onto_their_masks(kind):
  for i in range(4):
    report = checks.check_example(tiny_dataset.make_example(i, kind=kind), kind)
    # its masks are half a pixel too large
    assert report.findings == [] and report.silhouette_iou > 0.85


def test_empty_fields_are_not_checked():
  example = schema.empty_example() | {"key": "k", "source": "s", "license": "l", "lineage": "{}"}
  assert checks.check_example(example).findings == []


def png(array):
  return tiny_dataset.encode_png(array)


def mask_of(example):
  return np.asarray(Image.open(io.BytesIO(example["mask"])))


DAMAGE = {
  "schema": lambda e: e | {"rotation": np.eye(3)},
  "no_license": lambda e: e | {"license": ""},
  "no_key": lambda e: e | {"key": ""},
  "bad_image": lambda e: e | {"image": b"not an image"},
  "bad_image_delit": lambda e: e | {"image_delit": b"not an image"},
  "delit_size": lambda e: e | {"image_delit": png(np.zeros((3, 4, 3), np.uint8))},
  "bad_mask": lambda e: e | {"mask": e["mask"][:40]},
  "camera_size": lambda e: e | {"camera": e["camera"] | {"width": 47}},
  "mask_size": lambda e: e | {"mask": png(mask_of(e)[:-1])},
  "empty_mask": lambda e: e | {"mask": png(np.zeros_like(mask_of(e)))},
  "mask_outside_full": lambda e: e | {"mask": png(np.full_like(mask_of(e), 255))},
  "voxel_range": lambda e: (
    e | {"voxels": np.concatenate([e["voxels"], [[64, 0, 0]]]).astype(np.uint8)}
  ),
  "voxel_order": lambda e: e | {"voxels": e["voxels"][::-1]},
  "latent_not_finite": lambda e: (
    e | {"structure_latent": np.full((4, 4, 4, 8), np.nan, np.float32)}
  ),
  "latent_without_autoencoder": lambda e: e | {"structure_latent_autoencoder": ""},
  "slat_length": lambda e: e | {"slat": np.zeros((3, 8), np.float16), "slat_autoencoder": "x"},
  "pose_partly_nan": lambda e: e | {"scale": np.array([1, np.nan, 1], np.float32)},
  "rotation": lambda e: e | {"rotation": e["rotation"] * np.float32(1.01)},
  "scale": lambda e: e | {"scale": -e["scale"]},
  "behind_camera": lambda e: e | {"translation": -e["translation"]},
  "voxels_outside_mask": lambda e: e | {"translation": e["translation"] + np.float32([0.3, 0, 0])},
  "out_of_view": lambda e: e | {"translation": e["translation"] + np.float32([50, 0, 0])},
  "silhouette": lambda e: e | {"scale": e["scale"] * np.float32(0.5)},
  "pointmap_empty": lambda e: e | {"pointmap": np.full_like(e["pointmap"], np.nan)},
  "pointmap_behind_camera": lambda e: e | {"pointmap": -e["pointmap"]},
  "pointmap_aspect": lambda e: e | {"pointmap": e["pointmap"][:30]},
  "pointmap_camera": lambda e: e | {"pointmap": e["pointmap"][:, ::-1]},
  "pointmap_misses_object": lambda e: (
    e | {"pointmap": np.where(mask_of(e)[..., None] > 0, np.nan, wall()).astype(np.float16)}
  ),
  "pointmap_off_surface": lambda e: e | {"pointmap": e["pointmap"] * np.float16(1.2)},
}


def wall():
  """A point map of a wall at 3 m."""
  u, v = np.meshgrid(np.arange(tiny_dataset.SIZE) + 0.5, np.arange(tiny_dataset.SIZE) + 0.5)
  return np.stack([(24 - u) / 80 * 3, (24 - v) / 80 * 3, np.full_like(u, 3)], -1)


@pytest.mark.parametrize("reason", DAMAGE)
def test_damage_is_found_and_named(reason):
  example = tiny_dataset.make_example(2)
  assert reason in reasons(DAMAGE[reason](example))


def test_mirrored_rotation_is_found_even_where_the_silhouette_fits():
  example = tiny_dataset.make_example(2)
  assert reasons(example | {"rotation": -example["rotation"]}) == ["rotation"]


def test_occluded_object_may_be_larger_than_what_is_seen_of_it():
  example = tiny_dataset.make_example(2)
  visible = mask_of(example).copy()
  visible[:, :24] = 0
  assert reasons(example | {"mask": png(visible)}) == []
  no_full = example | {"mask": png(visible), "mask_full": b""}
  assert reasons(no_full) == []
  assert "silhouette" in reasons(
    no_full | {"translation": example["translation"] + np.float32([0.6, 0, 0])}
  )


def test_preferences_without_losers_or_generators_are_found():
  example = tiny_dataset.make_example(1, kind="preference")
  assert reasons(example | {"losers": []}, "preference") == ["no_losers"]
  assert reasons(example | {"generator": ""}, "preference") == ["no_generator"]
  bad = example["losers"][0] | {"rotation": example["rotation"] * 2}
  assert reasons(example | {"losers": [bad]}, "preference") == ["rotation"]


def test_good_dataset_ends_with_zero_and_tells_what_it_holds(tmp_path, capsys):
  tiny_dataset.write_dataset(tmp_path, 6)
  (tmp_path / records.QUARANTINE_FILE).write_text(
    '{"path": "a", "reason": "empty", "detail": ""}\n' * 3
  )
  assert validate(tmp_path) == 0
  out = capsys.readouterr().out
  assert re.search(r"train +6 examples, 6 checked: ellipsoids 6", out)
  assert (
    "3 inputs refused" in out
    and re.search(r"3 +empty", out)
    and "ok: 6 examples" in out
    and "slat " not in out
  )


def test_bad_dataset_ends_with_two_and_names_record_and_reason(tmp_path, capsys):
  key = tiny_dataset.make_example(3)["key"]
  tiny_dataset.write_dataset(
    tmp_path, 6, shards=1, change=lambda e: DAMAGE["rotation"](e) if e["key"] == key else e
  )
  assert validate(tmp_path) == cli.EXIT_BAD_INPUT
  out = capsys.readouterr().out
  assert (
    "FAILED: 1 of 6" in out
    and "rotation: ellipsoids-train.array_record-00000-of-00001 record 3" in out
  )


def test_unreadable_records_are_found(tmp_path, capsys):
  tiny_dataset.write_dataset(tmp_path, 3, shards=1)
  path = records.shard_path(tmp_path, "ellipsoids", "train", 0, 1)
  data = bytearray(path.read_bytes())
  data[1000] ^= 0xFF
  path.write_bytes(data)
  assert validate(tmp_path) == cli.EXIT_BAD_INPUT
  assert (
    "unreadable: ellipsoids-train.array_record-00000-of-00001 record 0" in capsys.readouterr().out
  )


def test_faults_between_examples_are_found(tmp_path, capsys):
  same = tiny_dataset.make_example(0)
  other = {"structure_latent_autoencoder": "b" * 64}
  tiny_dataset.write_dataset(
    tmp_path, 2, change=lambda e: e | other | {"key": same["key"], "mesh_key": same["mesh_key"]}
  )
  tiny_dataset.write_dataset(tmp_path, 1, split="test", shards=1)
  assert validate(tmp_path) == cli.EXIT_BAD_INPUT
  out = capsys.readouterr().out
  assert all(
    reason in out for reason in ("duplicate_key", "mesh_in_two_splits", "mixed_autoencoders")
  )


def test_sheet_stands_alone_and_shows_every_picture(tmp_path):
  tiny_dataset.write_dataset(tmp_path / "d", 5)
  page = tmp_path / "sheet.html"
  assert validate(tmp_path / "d", "--html", page, "--max_examples", 2) == 0
  text = page.read_text()
  assert text.count("<section>") == 2 and text.count("data:image/png;base64,") == 2 * 6
  assert "http" not in text.replace("https://", "http") and "<script" not in text
  for caption in ("image", "mask (red)", "point map", "voxels on the image", "de-lit"):
    assert caption in text


def test_missing_dataset_is_a_readable_error(tmp_path, capsys):
  assert validate(tmp_path / "nowhere") == cli.EXIT_BAD_INPUT
  assert "does not exist" in capsys.readouterr().err

"""RecGen shards: written by the conventions of the project from objects whose pose is known, and
read back.
"""

import io
import json
import pathlib
import tarfile

import numpy as np
import pytest

from data_pipelines.build import checks, shard_jobs
from data_pipelines.convert import recgen
from data_pipelines.format import schema
from data_pipelines.synth import render, voxelize
from data_pipelines.synth.camera import Viewpoint
from launch.console import cli
from launch.planners import builders
from sam3d_jax.errors import ConfigError
from sam3d_jax.geometry import rotations
from tests.support import foreign
from tests.support.foreign import SIZE, VIEWS, convert, examples

OURS_TO_OPENCV = np.diag([-1.0, -1.0, 1.0])

# `_to_recgen` is written from the public loader and inference code, independently of the converter.


def _npy(array: np.ndarray) -> bytes:
  stream = io.BytesIO()
  np.save(stream, array)
  return stream.getvalue()


def _close(example: schema.Example, viewpoint: Viewpoint) -> None:
  """The record's pose is the viewpoint's."""
  pose = viewpoint.pose
  np.testing.assert_allclose(example["rotation"], pose.rotation, atol=1e-5)
  np.testing.assert_allclose(example["translation"], pose.translation, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(example["scale"], np.full(3, viewpoint.scale), rtol=1e-4)


def _to_recgen(
  viewpoint: Viewpoint, depth_mm: np.ndarray, mask: np.ndarray, quantile: float
) -> tuple[dict, np.ndarray]:
  """(pose entry, intrinsics) of a view whose metric pose is known."""
  camera = viewpoint.camera
  cx = camera.cx - 0.5
  cy = camera.cy - 0.5
  k = np.array([[camera.fx, 0, cx], [0, camera.fy, cy], [0, 0, 1]])

  # The points under the mask, one by one.
  cloud = []
  for row, column in np.argwhere((mask > 0) & (depth_mm > 0)):
    z = depth_mm[row, column] / 1000
    x = (column - cx) * z / camera.fx
    y = (row - cy) * z / camera.fy
    cloud.append([x, y, z])

  # Their normalisation: the spread between two quantiles comes to a half, the median to 0.5.
  median = np.median(cloud, axis=0)
  radii = np.linalg.norm(cloud - median, axis=1)
  near, far = np.quantile(radii, [quantile, 1 - quantile])
  s = 0.5 / (far - near)

  turn = OURS_TO_OPENCV @ viewpoint.pose.rotation
  place = OURS_TO_OPENCV @ viewpoint.pose.translation
  w, x, y, z = rotations.matrix_to_quaternion(turn)
  trans_x, trans_y, trans_z = s * (place - median) + 0.5
  pose = {
    "quat_w": w,
    "quat_x": x,
    "quat_y": y,
    "quat_z": z,
    "scale": s * viewpoint.scale,
    "trans_x": trans_x,
    "trans_y": trans_y,
    "trans_z": trans_z,
  }
  return {name: float(value) for name, value in pose.items()}, k


def _members(index: int, cameras: list, *, occluded: bool = False) -> dict[str, bytes]:
  """One object's members; `cameras` takes the true cameras. With `occluded` half of each mask is
  hidden by something nearer.
  """
  asset = foreign.make_object(index)
  rng = np.random.default_rng(index)
  voxels = voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces)
  order = rng.permutation(len(voxels))
  members = {
    "sha256.txt": f"{index:064x}".encode(),
    "ss_latent.npy": _npy(foreign.latent_of(voxels)),
    "slat_coords.npy": _npy(voxels[order].astype(np.int32)),
    "slat_feats.npy": _npy(foreign.slat_of(voxels[order])),
    "aesthetic_score.json": b"5.5",
    "num_views.json": str(VIEWS).encode(),
    "dataset_type.txt": b"objectbased",
    "view_indices.json": b"[0, 1]",
  }

  poses = []
  details = []
  for view in range(VIEWS):
    viewpoint, shown = foreign.make_view(asset, rng, scale=0.4 + 0.3 * view)
    mask = shown.mask_HW.copy()
    depth = np.where(mask, shown.depth_HW, 5.0)
    if occluded:
      columns = np.flatnonzero(mask.any(0))
      hidden = mask & (np.arange(SIZE) > columns.mean())
      mask[hidden] = False
      depth[hidden] = 0.3
    depth_mm = np.round(depth * 1000).astype(np.uint16)
    depth_mm[:3] = 0  # unknown
    pose, k = _to_recgen(viewpoint, depth_mm, mask, 0.05)
    visible = float(mask.sum() / shown.mask_HW.sum())
    detail = {"intrinsics": k.tolist(), "visible_fraction": visible}
    poses.append(pose)
    details.append(json.dumps(detail) if view else detail)  # JSON in JSON is read as well
    cameras.append(viewpoint)
    image = render.over(shown.lit_HW3, shown.alpha_HW, (200, 200, 200))
    members |= {
      f"cond_image_{view:02d}.jpg": foreign.encoded(image, "JPEG"),
      f"cond_mask_{view:02d}.png": foreign.encoded(mask.astype(np.uint8) * 255),
      f"cond_depth_{view:02d}.png": foreign.encoded(depth_mm),
      f"cond_mask_full_{view:02d}.png": foreign.encoded(shown.mask_HW.astype(np.uint8) * 255),
    }
  members["pose_data_median_quantile_5per.json"] = json.dumps(poses).encode()
  members["view_metadata.json"] = json.dumps(details).encode()
  return members


def _write_tar(path: pathlib.Path, objects: dict[str, dict[str, bytes]]) -> None:
  """Members `<key>.<name>` of one object after another."""
  members = []
  for key, fields in objects.items():
    members += [(f"{key}.{name}", data) for name, data in fields.items()]
  _write_members(path, members)


def _write_members(path: pathlib.Path, members: list[tuple[str, bytes | None]]) -> None:
  """Members in this order; one without bytes is a folder."""
  with tarfile.open(path, "w") as tar:
    for name, data in members:
      info = tarfile.TarInfo(name)
      if data is None:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
      else:
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _read_members(path: pathlib.Path) -> list[tuple[str, bytes]]:
  with tarfile.open(path) as tar:
    return [(member.name, tar.extractfile(member).read()) for member in tar]


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> tuple[pathlib.Path, list[Viewpoint]]:
  """Two tars: two objects in the first, a half hidden one in the second."""
  root = tmp_path_factory.mktemp("tars")
  cameras = []
  first = {"a": _members(0, cameras), "b": _members(1, cameras)}
  second = {"c": _members(2, cameras, occluded=True)}
  _write_tar(root / "shard-000000.tar", first)
  _write_tar(root / "shard-000001.tar", second)
  return root, cameras


def test_recgen_poses_are_metric_again_and_voxels_land_on_the_masks(tars, tmp_path):
  source, viewpoints = tars
  assert convert("recgen", source, tmp_path) == 0
  found = examples(tmp_path)
  assert len(found) == 3 * VIEWS
  for example, viewpoint in zip(found, viewpoints, strict=True):
    _close(example, viewpoint)
    report = checks.check_example(example)
    assert report.findings == []
    assert report.silhouette_iou > 0.8
    assert example["camera"]["cx"] == viewpoint.camera.cx
    assert example["structure_latent_autoencoder"].startswith("trellis/")
    foreign.check_latent(example)
    # rows follow their voxels
    np.testing.assert_allclose(example["slat"], foreign.slat_of(example["voxels"]), atol=1e-3)


def test_recgen_objects_that_are_hidden_or_too_many_views_are_left_out(tars, tmp_path):
  source, _ = tars
  visible = tmp_path / "visible"
  assert convert("recgen", source, visible, "min_visible=0.9") == 0
  assert len(examples(visible)) == 2 * VIEWS
  counts = json.loads((visible / "build.json").read_text())["counts"]
  assert counts["rejected_draws"] == {"hidden": VIEWS}
  one = tmp_path / "one"
  assert convert("recgen", source, one, "max_views=1") == 0
  assert [example["view"] for example in examples(one)] == [0, 0, 0]


@pytest.mark.parametrize(
  "override, reason",
  [
    ("scale_range=(5.0,6.0)", "pose"),
    ("max_translation=0.01", "pose"),
    ("min_pixels=9000", "small_mask"),
  ],
)
def test_recgen_views_beyond_a_threshold_are_counted_by_reason(tars, override, reason):
  file = f"{foreign.ROOT}/configs/data/recgen.py"
  config = cli.load_config(file, [f"--config.source={tars[0]}", f"--config.{override}"])
  plan = builders.PLANNERS["recgen"](config)
  refusals = shard_jobs.Refusals()
  made = []
  for job in plan.jobs:
    made += plan.make(job.spec, refusals)
  assert not made
  assert refusals.draws == {reason: 3 * VIEWS}


def test_a_score_that_no_object_has_leaves_nothing(tars, tmp_path):
  assert convert("recgen", tars[0], tmp_path, "min_aesthetic=6.0") == 2


def test_a_damaged_tar_costs_its_own_objects_only(tars, tmp_path):
  source = tmp_path / "in"
  source.mkdir()
  whole = (tars[0] / "shard-000000.tar").read_bytes()
  (source / "a.tar").write_bytes(whole[: len(whole) * 3 // 4])
  (source / "b.tar").write_bytes((tars[0] / "shard-000001.tar").read_bytes())
  (source / "c.tar").write_bytes(b"no tar at all" * 100)
  assert convert("recgen", source, tmp_path / "out", "quarantine_budget=0.9") == 0
  assert len(examples(tmp_path / "out")) >= 2 * VIEWS
  lines = [
    json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
  ]
  assert {line["path"].split("#")[0] for line in lines} == {"a.tar", "c.tar"}
  assert convert("recgen", source, tmp_path / "strict") == 2


def test_one_object_in_two_tars_stays_in_one_split(tars, tmp_path):
  for name in ("ss.tar", "slat.tar"):
    (tmp_path / name).write_bytes((tars[0] / "shard-000000.tar").read_bytes())
  config = recgen.RecgenConfig("r", str(tmp_path))
  plan = recgen.plan(config, test_fraction=0.5, objects_per_shard=9)
  names = {"train": set(), "test": set()}
  for job in plan.jobs:
    assert job.inputs == 2
    names[job.split].update(item.identity for item in job.spec.inputs)
  assert len(names["train"]) == len(names["test"]) == 1
  assert names["train"].isdisjoint(names["test"])


def test_minmax_normalisation_fills_the_unit_cube():
  points = np.random.default_rng(0).uniform(-1, 1, (500, 3)) * [1, 2, 3] + [4, 5, 6]
  s, u = recgen.normalisation(points, "minmax")
  placed = s * points + u
  np.testing.assert_allclose((placed.min(0) + placed.max(0)) / 2, 0.5)
  np.testing.assert_allclose(np.ptp(placed, axis=0).max(), 1)
  # No points, or points without extent.
  assert recgen.normalisation(points[:0], "minmax") is None
  assert recgen.normalisation(points[:1], "median_quantile_5per") is None


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"pose_variant": "median"}, "pose_variant = 'median'"),
    ({"scale_range": (2.0, 1.0)}, "scale_range"),
    ({"source": "gone"}, "not a folder"),
  ],
)
def test_wrong_recgen_settings_are_named(tmp_path, settings, words):
  stated = {"name": "r", "source": str(tmp_path)} | settings
  with pytest.raises(ConfigError, match=words):
    recgen.plan(recgen.RecgenConfig(**stated), test_fraction=0, objects_per_shard=1)


def _without_key(example: schema.Example) -> dict:
  """What a record says, but for where it comes from."""
  lineage = json.loads(example["lineage"])
  del lineage["tar"]
  kept = {name: example[name] for name in ("image", "mask", "view", "mesh_key", "translation")}
  return {name: np.asarray(value).tolist() for name, value in kept.items()} | lineage


@pytest.mark.parametrize("packed", ["folder", "dot", "apple", "unsorted", "reversed"])
def test_recgen_objects_are_found_however_their_tar_was_packed(tars, tmp_path, capsys, packed):
  plain = _read_members(tars[0] / "shard-000000.tar")
  if packed == "folder":
    members = [("x", None), ("x/y", None), *((f"x/y/{name}", data) for name, data in plain)]
  elif packed == "dot":
    members = [(".", None), *((f"./{name}", data) for name, data in plain)]
  elif packed == "apple":
    members = [("__MACOSX/._a", b"x")]
    for name, data in plain:
      members += [(f"._{name}", b"\0\5\26\7"), (name, data)]
  elif packed == "reversed":
    members = plain[::-1]
  else:
    # all of one field, then all of the next
    members = sorted(plain, key=lambda member: member[0].partition(".")[2])
  for folder in ("plain", "in"):
    (tmp_path / folder).mkdir()
  _write_members(tmp_path / "plain" / "t.tar", plain)
  _write_members(tmp_path / "in" / "t.tar", members)
  assert convert("recgen", tmp_path / "plain", tmp_path / "plain_out") == 0
  assert convert("recgen", tmp_path / "in", tmp_path / "out", "quarantine_budget=0.0") == 0
  expected = [_without_key(example) for example in examples(tmp_path / "plain_out")]
  assert [_without_key(example) for example in examples(tmp_path / "out")] == expected
  told = f"{len(plain) + 1} members of other systems (._*, __MACOSX) passed over"
  assert (told in capsys.readouterr().err) == (packed == "apple")


def test_an_object_that_was_packed_twice_is_two_objects_as_before(tars, tmp_path):
  plain = _read_members(tars[0] / "shard-000000.tar")
  _write_members(tmp_path / "t.tar", plain + plain)
  plan = recgen.plan(recgen.RecgenConfig("r", str(tmp_path)), test_fraction=0, objects_per_shard=9)
  names = [item.name for job in plan.jobs for item in job.spec.inputs]
  assert len(names) == 4 and not any("+" in name for name in names)


@pytest.mark.parametrize(
  "member, broken",
  [
    ("pose_data_median_quantile_5per.json", b'{"a": 1}'),
    ("pose_data_median_quantile_5per.json", b'["None", "None"]'),
    ("view_metadata.json", b'["x", 3]'),
    ("view_metadata.json", b"[[1], [2]]"),
    ("view_metadata.json", b'[{"visible_fraction": "None"}, {"visible_fraction": [1]}]'),
    ("aesthetic_score.json", b'"None"'),
    ("aesthetic_score.json", b"NaN"),
    ("aesthetic_score.json", b"[" * 9999),
    ("slat_coords.npy", b"\x93NUMPY"),
    ("cond_mask_00.png", b"no picture"),
  ],
)
def test_an_object_with_a_broken_member_costs_itself_only(tars, tmp_path, member, broken):
  members = dict(_read_members(tars[0] / "shard-000000.tar"))
  members[f"a.{member}"] = broken
  (tmp_path / "in").mkdir()
  _write_members(tmp_path / "in" / "t.tar", list(members.items()))
  assert convert("recgen", tmp_path / "in", tmp_path / "out", "quarantine_budget=0.5") == 0
  assert {example["mesh_key"] for example in examples(tmp_path / "out")} >= {_sha(members, "b")}
  refused = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
  rejected = json.loads((tmp_path / "out" / "build.json").read_text())["counts"]["rejected_draws"]
  assert refused or rejected


def _sha(members: dict[str, bytes], key: str) -> str:
  return members[f"{key}.sha256.txt"].decode().strip()


@pytest.mark.parametrize("case", ["tar_dir", "tar_dot", "tar_apple"])
def test_field_tars_give_what_their_members_without_folders_give(shared_dir, tmp_path, case):
  source = shared_dir / "field" / "tar-folders" / case
  if not source.is_dir():
    pytest.skip(f"{source} does not exist")
  assert convert("recgen", source, tmp_path, "quarantine_budget=0.0") == 0
  found = examples(tmp_path)
  assert len(found) == 4 and len({example["mesh_key"] for example in found}) == 2


def test_hostile_tars_are_refused_or_passed_over(shared_dir, tmp_path):
  source = shared_dir / "hostile" / "tars"
  if not source.is_dir():
    pytest.skip(f"{source} does not exist")
  config = recgen.RecgenConfig("r", str(source))
  plan = recgen.plan(config, test_fraction=0, objects_per_shard=99)
  (job,) = plan.jobs
  refusals = shard_jobs.Refusals()
  assert list(plan.make(job.spec, refusals)) == []
  assert len(refusals.inputs) == job.inputs


def test_a_member_of_a_negative_size_ends_the_reading_of_its_tar(tars, tmp_path):
  whole = bytearray((tars[0] / "shard-000001.tar").read_bytes())
  # base-256, as GNU tar writes what octal digits cannot hold
  whole[124:136] = b"\xff" * 10 + b"\xfc\x00"
  unsigned = sum(whole[:148]) + 8 * 32 + sum(whole[156:512])
  whole[148:156] = b"%06o\0 " % unsigned
  (tmp_path / "t.tar").write_bytes(bytes(whole))
  plan = recgen.plan(recgen.RecgenConfig("r", str(tmp_path)), test_fraction=0, objects_per_shard=9)
  assert [item.name for job in plan.jobs for item in job.spec.inputs] == ["t.tar#-1"]

"""Converters: shards and folders are written by the conventions of their projects from objects
whose pose is known, and read back.
"""

import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image
import pytest
import trimesh

from data_pipelines.build import checks, shard_jobs
from data_pipelines.convert import recgen, trellis
from data_pipelines.format import records, schema
from data_pipelines.synth import assets, lighting, procedural, render, voxelize
from data_pipelines.synth.camera import ViewConfig, Viewpoint, random_view
from launch import build_data
from launch.console import cli
from launch.planners import builders
from sam3d_jax.errors import ConfigError
from sam3d_jax.geometry import rotations

ROOT = pathlib.Path(__file__).parents[3]
SIZE = 96
VIEWS = 2
OURS_TO_OPENCV = np.diag([-1.0, -1.0, 1.0])
OURS_TO_BLENDER = np.diag([-1.0, 1.0, -1.0])


def _object(index: int) -> assets.Asset:
  scene = procedural.make_scene(5, index, ("mug", "chair"))
  return assets.from_scene(scene, source=str(index), up="z", license="CC0-1.0")


def _view(asset: assets.Asset, rng, *, scale: float) -> tuple[Viewpoint, render.View]:
  radius = float(np.linalg.norm(asset.mesh.vertices, axis=1).max())
  viewpoint, azimuth = random_view(
    rng,
    ViewConfig(elevation_deg=(0, 50), fill=(0.7, 0.8)),
    image_size=SIZE,
    radius=radius,
    scale=scale,
  )
  return viewpoint, render.render(
    render.Scene(asset.mesh),
    viewpoint,
    lighting.random_lights(rng, lighting.LightConfig(), azimuth),
    samples=1,
  )


def _latent(voxels: np.ndarray) -> np.ndarray:
  """(8, 16, 16, 16) as TRELLIS lays it out: channel 0 is the mean occupancy of 4^3 voxels of a grid
  filled as [x, y, z].
  """
  grid = np.zeros((64, 64, 64), np.float32)
  grid[voxels[:, 0], voxels[:, 1], voxels[:, 2]] = 1
  mean = grid.reshape(16, 4, 16, 4, 16, 4).mean((1, 3, 5))
  return np.stack([mean * (c + 1) for c in range(8)])


def _slat(voxels: np.ndarray) -> np.ndarray:
  """(N, 8) features that tell which voxel they belong to."""
  return voxels.repeat(3, 1)[:, :8] / np.float32(64)


def _check_latent(example: schema.Example) -> None:
  """The record's latent is that of the record's voxels: axis order and frame agree."""
  expected = _latent(example["voxels"])
  for channel in range(8):
    np.testing.assert_allclose(
      example["structure_latent"][..., channel], expected[channel], atol=1e-6
    )


def _encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
  stream = io.BytesIO()
  Image.fromarray(array).save(stream, kind)
  return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
  stream = io.BytesIO()
  np.save(stream, array)
  return stream.getvalue()


def _close(example: schema.Example, viewpoint: Viewpoint, scale_tolerance: float = 1e-4) -> None:
  np.testing.assert_allclose(example["rotation"], viewpoint.pose.rotation, atol=1e-5)
  np.testing.assert_allclose(
    example["translation"], viewpoint.pose.translation, rtol=1e-4, atol=1e-4
  )
  np.testing.assert_allclose(example["scale"], np.full(3, viewpoint.scale), rtol=scale_tolerance)


# RecGen. `_to_recgen` is written from the public loader and inference code, independently of the
# converter.


def _to_recgen(
  viewpoint: Viewpoint, depth_mm: np.ndarray, mask: np.ndarray, quantile: float
) -> tuple[dict, np.ndarray]:
  """(pose entry, intrinsics) of a view whose metric pose is known."""
  k = np.array(
    [
      [viewpoint.camera.fx, 0, viewpoint.camera.cx - 0.5],
      [0, viewpoint.camera.fy, viewpoint.camera.cy - 0.5],
      [0, 0, 1],
    ]
  )
  cloud = []
  for row, column in np.argwhere((mask > 0) & (depth_mm > 0)):
    z = depth_mm[row, column] / 1000
    cloud.append([(column - k[0, 2]) * z / k[0, 0], (row - k[1, 2]) * z / k[1, 1], z])
  cloud = np.array(cloud)
  median = np.median(cloud, axis=0)
  radii = np.sort(np.linalg.norm(cloud - median, axis=1))
  s = 0.5 / (np.quantile(radii, 1 - quantile) - np.quantile(radii, quantile))
  turn = OURS_TO_OPENCV @ viewpoint.pose.rotation
  translation = s * (OURS_TO_OPENCV @ viewpoint.pose.translation - median) + 0.5
  w, x, y, z = rotations.matrix_to_quaternion(turn)
  pose = {
    "quat_w": w,
    "quat_x": x,
    "quat_y": y,
    "quat_z": z,
    "scale": s * viewpoint.scale,
    **{f"trans_{axis}": value for axis, value in zip("xyz", translation, strict=True)},
  }
  return {name: float(value) for name, value in pose.items()}, k


def _members(index: int, cameras: list, *, occluded: bool = False) -> dict[str, bytes]:
  """One object's members; `cameras` takes the true cameras. With `occluded` half of each mask is
  hidden by something nearer.
  """
  asset, rng = _object(index), np.random.default_rng(index)
  voxels = voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces)
  order = rng.permutation(len(voxels))
  members = {
    "sha256.txt": f"{index:064x}".encode(),
    "ss_latent.npy": _npy(_latent(voxels)),
    "slat_coords.npy": _npy(voxels[order].astype(np.int32)),
    "slat_feats.npy": _npy(_slat(voxels[order])),
    "aesthetic_score.json": b"5.5",
    "num_views.json": str(VIEWS).encode(),
    "dataset_type.txt": b"objectbased",
  }
  poses, details = [], []
  for view in range(VIEWS):
    viewpoint, shown = _view(asset, rng, scale=0.4 + 0.3 * view)
    mask = shown.mask_HW.copy()
    depth = np.where(mask, shown.depth_HW, 5.0)
    if occluded:
      columns = np.flatnonzero(mask.any(0))
      hidden = mask & (np.arange(SIZE) > columns.mean())
      mask[hidden], depth[hidden] = False, 0.3
    depth_mm = np.round(depth * 1000).astype(np.uint16)
    depth_mm[:3] = 0
    pose, k = _to_recgen(viewpoint, depth_mm, mask, 0.05)
    poses.append(pose)
    details.append(
      {"intrinsics": k.tolist(), "visible_fraction": float(mask.sum() / shown.mask_HW.sum())}
    )
    cameras.append(viewpoint)
    members |= {
      f"cond_image_{view:02d}.jpg": _encoded(
        render.over(shown.lit_HW3, shown.alpha_HW, (200, 200, 200)), "JPEG"
      ),
      f"cond_mask_{view:02d}.png": _encoded(mask.astype(np.uint8) * 255),
      f"cond_depth_{view:02d}.png": _encoded(depth_mm),
      f"cond_mask_full_{view:02d}.png": _encoded(shown.mask_HW.astype(np.uint8) * 255),
    }
  return members | {
    "pose_data_median_quantile_5per.json": json.dumps(poses).encode(),
    "view_indices.json": b"[0, 1]",
    "view_metadata.json": json.dumps(
      [json.dumps(d) if i else d for i, d in enumerate(details)]
    ).encode(),
  }


def _write_tar(path: pathlib.Path, objects: dict[str, dict[str, bytes]]) -> None:
  with tarfile.open(path, "w") as tar:
    for key, members in objects.items():
      for name, data in members.items():
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _command(name: str, source: pathlib.Path, out: pathlib.Path, *overrides: str) -> int:
  argv = [
    "--config",
    f"{ROOT}/configs/data/{name}.py",
    f"--config.source={source}",
    f"--config.out={out}",
    "--config.workers=1",
    "--config.test_fraction=0.0",
    *(f"--config.{o}" for o in overrides),
  ]
  return cli.run_command(build_data.run, description="d", flags=build_data.flags, argv=argv)


def _examples(folder: pathlib.Path) -> list[schema.Example]:
  split = records.open_split(folder)
  return sorted((split[i] for i in range(len(split))), key=lambda e: (e["mesh_key"], e["view"]))


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> tuple[pathlib.Path, list[Viewpoint]]:
  """Two tars: two objects in the first, a half hidden one in the second."""
  root, cameras = tmp_path_factory.mktemp("tars"), []
  _write_tar(root / "shard-000000.tar", {"a": _members(0, cameras), "b": _members(1, cameras)})
  _write_tar(root / "shard-000001.tar", {"c": _members(2, cameras, occluded=True)})
  return root, cameras


def test_recgen_poses_are_metric_again_and_voxels_land_on_the_masks(tars, tmp_path):
  assert _command("recgen", tars[0], tmp_path) == 0
  examples = _examples(tmp_path)
  assert len(examples) == 3 * VIEWS
  for example, viewpoint in zip(examples, tars[1], strict=True):
    _close(example, viewpoint)
    report = checks.check_example(example)
    assert report.findings == [] and report.silhouette_iou > 0.8
    assert example["camera"]["cx"] == viewpoint.camera.cx and example[
      "structure_latent_autoencoder"
    ].startswith("trellis/")
    _check_latent(example)
    # rows follow their voxels
    np.testing.assert_allclose(example["slat"], _slat(example["voxels"]), atol=1e-3)


def test_recgen_views_are_filtered_by_the_stated_thresholds(tars, tmp_path):
  assert _command("recgen", tars[0], tmp_path / "visible", "min_visible=0.9") == 0
  assert len(_examples(tmp_path / "visible")) == 2 * VIEWS
  assert json.loads((tmp_path / "visible" / "build.json").read_text())["counts"][
    "rejected_draws"
  ] == {"hidden": VIEWS}
  assert _command("recgen", tars[0], tmp_path / "one", "max_views=1") == 0
  assert [e["view"] for e in _examples(tmp_path / "one")] == [0, 0, 0]
  for override, reason in (
    ("scale_range=(5.0,6.0)", "pose"),
    ("max_translation=0.01", "pose"),
    ("min_pixels=9000", "small_mask"),
  ):
    config = cli.load_config(
      f"{ROOT}/configs/data/recgen.py", [f"--config.source={tars[0]}", f"--config.{override}"]
    )
    refusals = shard_jobs.Refusals()
    plan = builders.PLANNERS["recgen"](config)
    assert not [
      e for job in plan.jobs for e in plan.make(job.spec, refusals)
    ] and refusals.draws == {reason: 3 * VIEWS}
  # nothing is left
  assert _command("recgen", tars[0], tmp_path / "plain", "min_aesthetic=6.0") == 2


def test_a_damaged_tar_costs_its_own_objects_only(tars, tmp_path):
  source = tmp_path / "in"
  source.mkdir()
  whole = (tars[0] / "shard-000000.tar").read_bytes()
  (source / "a.tar").write_bytes(whole[: len(whole) * 3 // 4])
  (source / "b.tar").write_bytes((tars[0] / "shard-000001.tar").read_bytes())
  (source / "c.tar").write_bytes(b"no tar at all" * 100)
  assert _command("recgen", source, tmp_path / "out", "quarantine_budget=0.9") == 0
  assert len(_examples(tmp_path / "out")) >= 2 * VIEWS
  lines = [
    json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
  ]
  assert {line["path"].split("#")[0] for line in lines} == {"a.tar", "c.tar"}
  assert _command("recgen", source, tmp_path / "strict") == 2


def test_one_object_in_two_tars_stays_in_one_split(tars, tmp_path):
  for name in ("ss.tar", "slat.tar"):
    (tmp_path / name).write_bytes((tars[0] / "shard-000000.tar").read_bytes())
  plan = recgen.plan(
    recgen.RecgenConfig("r", str(tmp_path)), test_fraction=0.5, objects_per_shard=9
  )
  names = {job.split: {item.identity for item in job.spec.inputs} for job in plan.jobs}
  assert len(names["train"]) == len(names["test"]) == 1 and not names["train"] & names["test"]
  assert {job.inputs for job in plan.jobs} == {2}


def test_minmax_normalisation_fills_the_unit_cube():
  points = np.random.default_rng(0).uniform(-1, 1, (500, 3)) * [1, 2, 3] + [4, 5, 6]
  s, u = recgen.normalisation(points, "minmax")
  placed = s * points + u
  np.testing.assert_allclose((placed.min(0) + placed.max(0)) / 2, 0.5)
  np.testing.assert_allclose(np.ptp(placed, axis=0).max(), 1)
  assert (
    recgen.normalisation(points[:0], "minmax") is None
    and recgen.normalisation(points[:1], "median_quantile_5per") is None
  )


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"pose_variant": "median"}, "pose_variant = 'median'"),
    ({"scale_range": (2.0, 1.0)}, "scale_range"),
    ({"source": "gone"}, "not a folder"),
  ],
)
def test_wrong_recgen_settings_are_named(tmp_path, settings, words):
  with pytest.raises(ConfigError, match=words):
    recgen.plan(
      recgen.RecgenConfig(**{"name": "r", "source": str(tmp_path), **settings}),
      test_fraction=0,
      objects_per_shard=1,
    )


# TRELLIS.


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory) -> tuple[pathlib.Path, list[Viewpoint]]:
  """Two objects as the toolkit leaves them, a third that was never rendered."""
  root, cameras = tmp_path_factory.mktemp("toolkit"), []
  shas = [f"{i:064x}" for i in range(3)]
  scores = (5.5, 4.0, 6.0)
  (root / "metadata.csv").write_text(
    "sha256,aesthetic_score\n" + "".join(f"{s},{a}\n" for s, a in zip(shas, scores, strict=True))
  )
  for folder in ("voxels", "ss_latents/enc", "latents/slat"):
    (root / folder).mkdir(parents=True)
  for index, sha in enumerate(shas[:2]):
    asset, rng = _object(index), np.random.default_rng(50 + index)
    voxels = voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces)
    shuffled = rng.permutation(voxels)
    trimesh.PointCloud((shuffled + 0.5) / 64 - 0.5).export(root / "voxels" / f"{sha}.ply")
    np.savez(root / "ss_latents" / "enc" / f"{sha}.npz", mean=_latent(voxels))
    np.savez(root / "latents" / "slat" / f"{sha}.npz", coords=shuffled, feats=_slat(shuffled))
    folder, frames = root / "renders_cond" / sha, []
    folder.mkdir(parents=True)
    for view in range(VIEWS):
      viewpoint, shown = _view(asset, rng, scale=1.0)
      to_world = np.eye(4)
      to_world[:3, :3] = (OURS_TO_BLENDER @ viewpoint.pose.rotation).T
      to_world[:3, 3] = -viewpoint.pose.rotation.T @ viewpoint.pose.translation
      frames.append(
        {
          "file_path": f"{view:03d}.png",
          "camera_angle_x": 2 * np.arctan(SIZE / 2 / viewpoint.camera.fx),
          "transform_matrix": to_world.tolist(),
        }
      )
      colour = render.over(shown.lit_HW3, shown.alpha_HW, (0, 0, 0))
      Image.fromarray(np.dstack([colour, np.round(shown.alpha_HW * 255).astype(np.uint8)])).save(
        folder / f"{view:03d}.png"
      )
      cameras.append((viewpoint, shown))
    (folder / "transforms.json").write_text(
      json.dumps({"aabb": [], "scale": 1.0, "offset": [0, 0, 0], "frames": frames})
    )
  return root, cameras


@pytest.mark.parametrize("image_size", [SIZE, 48])
def test_trellis_cameras_become_poses_and_voxels_land_on_the_masks(toolkit, tmp_path, image_size):
  assert (
    _command(
      "trellis",
      toolkit[0],
      tmp_path,
      "structure_encoder=enc",
      "slat_encoder=slat",
      f"image_size={image_size}",
    )
    == 0
  )
  examples = _examples(tmp_path)
  assert len(examples) == 2 * VIEWS
  for example, (viewpoint, _) in zip(examples, toolkit[1], strict=True):
    np.testing.assert_allclose(example["rotation"], viewpoint.pose.rotation, atol=1e-5)
    np.testing.assert_allclose(example["translation"], viewpoint.pose.translation, atol=1e-5)
    _check_latent(example)
    assert example["structure_latent_autoencoder"] == "enc" and not schema.is_present(
      example, "pointmap"
    )
    assert checks.check_example(example).findings == []
  assert (tmp_path / "quarantine.jsonl").read_text().count("not_rendered") == 1


def test_trellis_objects_are_chosen_by_score_and_missing_latents_are_faults(toolkit, tmp_path):
  assert _command("trellis", toolkit[0], tmp_path / "a", "min_aesthetic=5.0") == 0
  assert len(_examples(tmp_path / "a")) == VIEWS
  config = trellis.TrellisConfig("t", str(toolkit[0]), structure_encoder="other")
  with pytest.raises(ConfigError, match="there is no ss_latents/other; there are enc"):
    trellis.plan(config, test_fraction=0, objects_per_shard=1)
  with pytest.raises(ConfigError, match="there is no metadata.csv"):
    trellis.plan(trellis.TrellisConfig("t", str(tmp_path)), test_fraction=0, objects_per_shard=1)

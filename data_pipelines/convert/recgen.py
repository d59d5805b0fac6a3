"""Converter of the RecGen training shards (WebDataset tars, one object a sample; TRI-ML/recgen,
arXiv 2604.27106).

What the members mean follows from that repository's public loader, inference code and statistics:

  - `ss_latent.npy` (8, 16, 16, 16), `slat_coords.npy`, `slat_feats.npy` are TRELLIS latents of a
    z-up unit cube.
  - Cameras are OpenCV's (x right, y down, z forward). Pixel i has its centre at i, so its principal
    point is ours less half a pixel.
  - Depth is z in 16-bit millimetres, 0 unknown.
  - A pose takes the unit cube to the normalised camera, q = scale R x + trans, with R of the
    quaternion w, x, y, z on column vectors.
  - The normalised camera is q = s p + u of camera points p. With the points under the visible mask
    (depth known, farther than 5 cm) and
    variant `median_quantile_<k>per`, 1 / s is twice the spread of their distances from the median
    between the quantiles k % and 1 - k %, and u puts the median at 0.5; with `minmax` the box of
    the points fills [0, 1]^3, centred. Published statistics confirm the 0.5: translations average
    0.500, 0.494, 0.657.

So the metric pose is undone with s and u recomputed from the shard's own depth and mask. Assumed,
because nothing public states it: that the stored poses were normalised with the stored (not eroded)
masks. `launch.validate_data` shows on real shards whether that holds: voxels must land on the
masks. RecGen's data come with licences of their own; see the release.
"""

from collections.abc import Iterator, Mapping
import concurrent.futures
import dataclasses
import hashlib
import io
import json
import pathlib
import re
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.build import shard_jobs
from data_pipelines.convert import objects, tars
from data_pipelines.format import schema
from data_pipelines.synth import render, sources
from sam3d_jax.errors import ConfigError, Refused
from sam3d_jax.geometry import cameras, rotations
from sam3d_jax.geometry.pose import Pose

PIXEL_CENTRE = 0.5  # ours minus theirs
NEAREST = 0.05  # metres: closer points do not count in their normalisation
MAX_VOXELS = 32_768  # of a structured latent
VIEW = re.compile(r"cond_image_(\d+)\.jpg")
OPENCV = np.array(cameras.AXES["opencv"])
SCANNERS = 16  # threads that index tars


@dataclasses.dataclass(frozen=True)
class RecgenConfig:
  """Which views of which objects become records.

  The thresholds on a view are those of the public loader.
  """

  name: str
  source: str
  pose_variant: str = "median_quantile_5per"  # suffix of the pose file: its normalisation
  stereo: bool = False  # take stereo depth and its poses
  views: int = 0  # at most so many an object, the first that pass; 0: all
  min_visible: float = 0.2  # share of the object
  min_pixels: int = 400  # of the mask
  scale_range: tuple[float, float] = (0.3, 3.0)
  max_translation: float = 4.0
  max_pose_norm: float = 10.0  # of quaternion, translation and scale together
  min_aesthetic: float = 0.0  # of the object (4.5 for texture)
  autoencoder: str = ""  # what the records name as the makers of the latents
  slat_autoencoder: str = ""
  license: str = "unknown"

  def __post_init__(self):
    if self.pose_variant != "minmax" and not re.fullmatch(
      r"median_quantile_[\d.]+per", self.pose_variant
    ):
      raise ConfigError(
        f"pose_variant = {self.pose_variant!r}: it must be minmax or median_quantile_<percent>per"
      )
    if not self.scale_range[0] < self.scale_range[1]:
      raise ConfigError(f"scale_range = {self.scale_range}: it must be (low, high)")


def plan(config: RecgenConfig, *, test_fraction: float, objects_per_shard: int) -> shard_jobs.Plan:
  """Indexes the tars and deals their objects to shards; an object that lies in several tars stays
  in one split. Raises ConfigError.
  """
  root = pathlib.Path(config.source)
  if not config.source or not root.is_dir():
    raise ConfigError(
      f"source = {config.source!r} is not a folder; give --config.source=DIR with the .tar shards"
    )
  paths = sorted(root.rglob("*.tar"))
  if not paths:
    packed = " (there are .tar.gz: unpack them first)" if any(root.rglob("*.tar.gz")) else ""
    raise ConfigError(f"source = {config.source!r} holds no .tar shards{packed}")
  with concurrent.futures.ThreadPoolExecutor(SCANNERS) as pool:
    inputs = [item for found in pool.map(lambda path: _index(path, root), paths) for item in found]
  return objects.plan(
    "recgen",
    examples,
    config,
    sorted(inputs, key=lambda i: (i.identity, i.name)),
    test_fraction=test_fraction,
    objects_per_shard=objects_per_shard,
    description="RecGen shards, poses in our conventions",
  )


def _index(path: pathlib.Path, root: pathlib.Path) -> list[sources.Input]:
  """The objects of a tar as "<tar>#<offset>"; a tar that cannot be read is one input, refused when
  its shard is made.
  """
  name = path.relative_to(root).as_posix()
  found = []
  try:
    for key, offset, sha in tars.scan(path, "sha256.txt"):
      found.append(
        sources.Input(
          f"{name}#{offset}", hashlib.sha256((sha or f"{name} {key}").encode()).hexdigest()[:16]
        )
      )
  except Refused:
    found.append(sources.Input(f"{name}#-1", hashlib.sha256(name.encode()).hexdigest()[:16]))
  return found


def examples(
  config: RecgenConfig, item: sources.Input, refuse: shard_jobs.Refusals
) -> Iterator[schema.Example]:
  """The records of one object, one a view that passes; views that do not are counted by reason.
  Raises Refused.
  """
  tar, _, offset = item.name.rpartition("#")
  if int(offset) < 0:
    raise Refused(
      "unreadable",
      f"{tar}: the tar ends early or is none; objects before the damage are inputs of their own",
    )
  members = tars.read(pathlib.Path(config.source) / tar, int(offset))
  sha = members.get("sha256.txt", b"").decode().strip()
  aesthetic = (
    float(_json(members, "aesthetic_score.json")) if "aesthetic_score.json" in members else None
  )
  if config.min_aesthetic > 0 and (aesthetic is None or aesthetic < config.min_aesthetic):
    refuse(
      shard_jobs.Quarantined(
        item.name, "low_aesthetic", f"{aesthetic} is below {config.min_aesthetic:g}", fault=False
      )
    )
    return
  shape = _shape(members, config)
  poses, details = _json(members, _pose_file(config)), _json(members, "view_metadata.json")
  views = sorted(int(match[1]) for match in map(VIEW.fullmatch, members) if match)
  if min(len(poses), len(details)) < len(views):
    raise Refused(
      "bad_object",
      f"{len(views)} views but {len(poses)} poses and {len(details)} entries of view_metadata",
    )
  made = 0
  for place, view in enumerate(views):  # lists are in the order of the views that are there
    detail = json.loads(details[place]) if isinstance(details[place], str) else details[place] or {}
    fields = _view(members, view, poses[place], detail, config, refuse)
    if fields is None:
      continue
    yield (
      schema.empty_example()
      | shape
      | fields
      | {
        "key": schema.example_key(config.name, sha, item.name, view),
        "source": config.name,
        "view": np.int32(view),
        "mesh_key": sha or item.identity,
        "license": config.license,
        "lineage": json.dumps(
          {
            "converter": "recgen",
            "tar": tar,
            "view": view,
            "pose_variant": config.pose_variant,
            "aesthetic": aesthetic,
            "visible": detail.get("visible_fraction"),
          },
          sort_keys=True,
        ),
      }
    )
    made += 1
    if made == config.views:
      return


def _json(members: Mapping[str, bytes], name: str) -> Any:
  try:
    return json.loads(members[name])
  except KeyError as error:
    raise Refused(
      "missing_member", f"no member {name}; there are {', '.join(sorted(members)[:12])}"
    ) from error
  except ValueError as error:
    raise Refused("bad_object", f"{name} is no JSON: {error}") from error


def _pose_file(config: RecgenConfig) -> str:
  variant = ("st_" if config.stereo else "") + config.pose_variant
  return "pose_data.json" if variant == "minmax" else f"pose_data_{variant}.json"


def _shape(members: Mapping[str, bytes], config: RecgenConfig) -> dict[str, Any]:
  """Voxels and latents."""
  fields: dict[str, Any] = {}
  if "ss_latent.npy" in members:
    latent = objects.load_array(members["ss_latent.npy"], "ss_latent.npy", shape=(8, 16, 16, 16))
    fields |= {
      "structure_latent": objects.structure_latent(latent),
      "structure_latent_autoencoder": config.autoencoder,
    }
  if "slat_coords.npy" in members and "slat_feats.npy" in members:
    coords = objects.load_array(members["slat_coords.npy"], "slat_coords.npy", shape=(None, 3))
    feats = objects.load_array(
      members["slat_feats.npy"], "slat_feats.npy", shape=(None, schema.SLAT_CHANNELS)
    )
    if len(coords) > MAX_VOXELS:
      raise Refused("too_many_voxels", f"{len(coords)} voxels, at most {MAX_VOXELS}")
    voxels, slat = objects.sorted_slat(coords, feats, "slat_coords.npy")
    fields |= {"voxels": voxels, "slat": slat, "slat_autoencoder": config.slat_autoencoder}
  if not fields:
    raise Refused("missing_member", "neither ss_latent.npy nor slat_coords.npy and slat_feats.npy")
  return fields


def _view(
  members,
  view: int,
  pose: Mapping | None,
  detail: Mapping,
  config: RecgenConfig,
  refuse: shard_jobs.Refusals,
) -> dict | None:
  """Image, masks, point map, camera and pose of a view; None, and the reason counted, where it does
  not pass.
  """
  if detail.get("visible_fraction", 1.0) < config.min_visible:
    return refuse.draw("hidden")
  if pose is None or not _pose_passes(pose, config):
    return refuse.draw("pose")
  mask = _mask(members, f"cond_mask_{view:02d}.png")
  if mask is None or np.count_nonzero(mask) <= config.min_pixels:
    return refuse.draw("small_mask")
  depth = _depth(members, f"cond_depth_{'st_' if config.stereo else ''}{view:02d}.png")
  if depth is None or depth.shape != mask.shape or "intrinsics" not in detail:
    return refuse.draw("no_depth")
  k = np.array(detail["intrinsics"], np.float64)
  points = _unproject(depth, k)
  normalised = normalisation(
    points[(mask > 0) & (depth > 0) & (np.linalg.norm(points, axis=-1) > NEAREST)],
    config.pose_variant,
  )
  if normalised is None:
    return refuse.draw("no_depth")
  whole = _mask(members, f"cond_mask_full_{view:02d}.png")
  height, width = mask.shape
  camera = cameras.Camera(
    k[0, 0], k[1, 1], k[0, 2] + PIXEL_CENTRE, k[1, 2] + PIXEL_CENTRE, width, height
  )
  seen = {"image": members[f"cond_image_{view:02d}.jpg"], "mask": render.encode(mask > 0)}
  if whole is not None and whole.shape == mask.shape:
    seen["mask_full"] = render.encode((whole > 0) | (mask > 0))
  known = np.where((depth > 0)[..., None], points * OPENCV, np.nan)
  seen |= schema.pose_fields(metric_pose(pose, *normalised))
  return seen | {"pointmap": known.astype(np.float16), "camera": schema.camera_field(camera)}


def _pose_passes(pose: Mapping[str, float], config: RecgenConfig) -> bool:
  try:
    quaternion, translation, scale = _numbers(pose)
  except KeyError:
    return False
  low, high = config.scale_range
  whole = np.linalg.norm([*quaternion, *translation, scale])
  return bool(
    low < scale < high
    and np.linalg.norm(translation) <= config.max_translation
    and whole <= config.max_pose_norm
  )


def _numbers(pose: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, float]:
  quaternion = np.array([pose[f"quat_{axis}"] for axis in "wxyz"], np.float64)
  return (
    quaternion,
    np.array([pose[f"trans_{axis}"] for axis in "xyz"], np.float64),
    float(pose["scale"]),
  )


def _mask(members: Mapping[str, bytes], name: str) -> np.ndarray | None:
  array = _image(members, name)
  return array[..., 0] if array is not None and array.ndim == 3 else array


def _depth(members: Mapping[str, bytes], name: str) -> np.ndarray | None:
  array = _image(members, name)
  return None if array is None else array.astype(np.float64) / 1000


def _image(members: Mapping[str, bytes], name: str) -> np.ndarray | None:
  if name not in members:
    return None
  try:
    with Image.open(io.BytesIO(members[name])) as image:
      return np.asarray(image)
  except (OSError, SyntaxError, ValueError) as error:
    raise Refused("bad_image", f"{name} cannot be decoded: {error}") from error


def _unproject(depth_HW: np.ndarray, k_33: np.ndarray) -> np.ndarray:
  """OpenCV camera points (H, W, 3) of pixels whose centres are whole numbers."""
  row, column = np.mgrid[: depth_HW.shape[0], : depth_HW.shape[1]]
  return np.stack(
    [
      (column - k_33[0, 2]) * depth_HW / k_33[0, 0],
      (row - k_33[1, 2]) * depth_HW / k_33[1, 1],
      depth_HW,
    ],
    -1,
  )


def normalisation(points_P3: np.ndarray, variant: str) -> tuple[float, np.ndarray] | None:
  """(s, u) of q = s p + u for the visible points of an object; None where they have no extent."""
  if not len(points_P3):
    return None
  if variant == "minmax":
    low, high = points_P3.min(0), points_P3.max(0)
    spread, centre = float((high - low).max()), (low + high) / 2
  else:
    share = float(variant.removeprefix("median_quantile_").removesuffix("per")) / 100
    centre = np.median(points_P3, axis=0)
    near, far = np.quantile(np.linalg.norm(points_P3 - centre, axis=1), [share, 1 - share])
    spread = 2 * float(far - near)
  return (1 / spread, 0.5 - centre / spread) if spread > 0 else None


def metric_pose(pose: Mapping[str, float], s: float, u_3: np.ndarray) -> Pose:
  """The pose in our camera from one in the normalised OpenCV camera."""
  quaternion, translation, scale = _numbers(pose)
  rotation = rotations.quaternion_to_matrix(quaternion)
  return Pose(OPENCV[:, None] * rotation, OPENCV * (translation - u_3) / s, np.full(3, scale / s))

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
import functools
import json
import pathlib
import re
import sys
from typing import Any

import numpy as np

from data_pipelines.build import shard_jobs
from data_pipelines.convert import objects, tars
from data_pipelines.format import schema
from data_pipelines.synth import render, sources
from sam3d_jax.errors import ConfigError, Refused
from sam3d_jax.files import blame, folders, images, texts
from sam3d_jax.geometry import cameras, rotations
from sam3d_jax.geometry.pose import Pose

MAX_PIXELS = 1 << 26  # of a view
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
    # The variants whose normalisation can be undone (module docstring).
    is_quantile = re.fullmatch(r"median_quantile_[\d.]+per", self.pose_variant)
    if self.pose_variant != "minmax" and not is_quantile:
      raise ConfigError(
        f"pose_variant = {self.pose_variant!r}: it must be minmax or median_quantile_<percent>per"
      )
    low, high = self.scale_range
    if not low < high:
      raise ConfigError(f"scale_range = {self.scale_range}: it must be (low, high)")


def plan(config: RecgenConfig, *, test_fraction: float, objects_per_shard: int) -> shard_jobs.Plan:
  """Indexes the tars and deals their objects to shards; an object that lies in several tars stays
  in one split. Raises ConfigError.
  """
  # Tars lie at any depth below the source.
  root = pathlib.Path(config.source)
  if not config.source or not root.is_dir():
    raise ConfigError(
      f"source = {config.source!r} is not a folder; give --config.source=DIR with the .tar shards"
    )
  files = sources.files_below(root)
  paths = [path for path in files if path.name.endswith(".tar")]
  if not paths:
    is_packed = any(path.name.endswith(".tar.gz") for path in files)
    packed = " (there are .tar.gz: unpack them first)" if is_packed else ""
    raise ConfigError(f"source = {config.source!r} holds no .tar shards{packed}")

  # Indexing waits for the disk, hence threads.
  inputs = []
  foreign = 0
  with concurrent.futures.ThreadPoolExecutor(SCANNERS) as pool:
    for found, passed_over in pool.map(functools.partial(_index, root=root), paths):
      inputs += found
      foreign += passed_over
  if foreign:
    print(
      f"{folders.shown(root)}: {foreign} members of other systems (._*, __MACOSX) passed over",
      file=sys.stderr,
    )
  return objects.plan(
    "recgen",
    examples,
    config,
    sorted(inputs, key=lambda item: (item.identity, item.name)),
    test_fraction=test_fraction,
    objects_per_shard=objects_per_shard,
    description="RecGen shards, poses in our conventions",
  )


def _index(path: pathlib.Path, root: pathlib.Path) -> tuple[list[sources.Input], int]:
  """(the objects of a tar as "<tar>#<offset>", with "+<offset>" for each further run of members;
  how many members are other systems'). A tar that cannot be read is one input, refused when its
  shard is made.
  """
  name = folders.shown(path.relative_to(root))
  with blame.reading(path):
    index = tars.scan(path, "sha256.txt")
  found = []
  for entry in index.objects:
    # one object in two tars has one identity, and so one split
    own = entry.text or f"{name} {entry.key}"
    identity = sources.short_digest(own.encode("utf-8", "surrogateescape"))
    offsets = "+".join(map(str, entry.offsets))
    found.append(sources.Input(f"{name}#{offsets}", identity))
  if index.damage:
    identity = sources.short_digest(name.encode())
    found.append(sources.Input(f"{name}#-1", identity))
  return found, index.foreign


def examples(
  config: RecgenConfig, item: sources.Input, refuse: shard_jobs.Refusals
) -> Iterator[schema.Example]:
  """The records of one object, one a view that passes; views that do not are counted by reason.
  Raises Refused.
  """
  tar, _, stated = item.name.rpartition("#")
  offsets = [int(offset) for offset in stated.split("+")]
  if min(offsets) < 0:
    raise Refused(
      "unreadable",
      f"{tar}: the tar ends early or is none; objects before the damage are inputs of their own",
    )
  members = tars.read(folders.located(config.source, tar), offsets)
  sha = texts.decode(members.get("sha256.txt", b"")).strip()

  # Objects below the wanted score are left out.
  aesthetic = None
  if "aesthetic_score.json" in members:
    aesthetic = _score(_json(members, "aesthetic_score.json"))
  least = config.min_aesthetic
  if least > 0 and (aesthetic is None or aesthetic < least):
    refused = shard_jobs.Quarantined(
      item.name,
      "low_aesthetic",
      f"{aesthetic} is below {least:g}",
      fault=False,
    )
    refuse(refused)
    return

  # What its views share, and what there is of each.
  shape = _shape(members, config)
  poses = _json(members, _pose_file(config))
  details = _json(members, "view_metadata.json")
  views = _view_numbers(members)
  for what, entries in ((_pose_file(config), poses), ("view_metadata.json", details)):
    if not isinstance(entries, list):
      raise Refused("bad_object", f"{what} holds {type(entries).__name__}, expected a list")
  if min(len(poses), len(details)) < len(views):
    raise Refused(
      "bad_object",
      f"{len(views)} views but {len(poses)} poses and {len(details)} entries of view_metadata",
    )

  # The first views that pass, at most as many as are wanted.
  made = 0
  for place, view in enumerate(views):  # lists are in the order of the views that are there
    detail = _detail(details[place])
    fields = _view(
      members,
      view,
      poses[place],
      detail,
      config,
      refuse,
    )
    if fields is None:
      continue

    # Where it comes from, and what its release says of it.
    lineage = {
      "converter": "recgen",
      "tar": tar,
      "view": view,
      "pose_variant": config.pose_variant,
      "aesthetic": aesthetic,
      "visible": detail.get("visible_fraction"),
    }
    stated = {
      "key": schema.example_key(config.name, sha, item.name, view),
      "source": config.name,
      "view": np.int32(view),
      "mesh_key": sha or item.identity,
      "license": config.license,
      "lineage": json.dumps(lineage, sort_keys=True),
    }
    yield schema.empty_example() | shape | fields | stated
    made += 1
    if made == config.views:
      return


def _score(stated: Any) -> float | None:
  """A finite score; None where the object was not given one. Raises Refused (bad_object)."""
  if stated is None:
    return None
  try:
    return texts.number(str(stated))
  except texts.TextError as error:
    raise Refused("bad_object", f"aesthetic_score.json: {error}") from error


def _view_numbers(members: Mapping[str, bytes]) -> list[int]:
  """The numbers of the views that have an image, ascending."""
  numbers = []
  for name in members:
    match = VIEW.fullmatch(name)
    if match:
      numbers.append(int(match[1]))
  return sorted(numbers)


def _detail(entry: str | Mapping | None) -> Mapping:
  """An entry of view_metadata.json, which may be JSON in JSON. Raises Refused (bad_object)."""
  if isinstance(entry, str):
    entry = texts.parse_json(entry)
  entry = entry or {}
  if not isinstance(entry, Mapping):
    raise Refused("bad_object", f"view_metadata.json: {entry!r} is no object of values")
  return entry


def _json(members: Mapping[str, bytes], name: str) -> Any:
  """A member's JSON. Raises Refused (missing_member, bad_object)."""
  try:
    return texts.parse_json(members[name])
  except KeyError as error:
    # A few of the names, so that the message shows what kind of tar it is.
    there = ", ".join(sorted(members)[:12])
    raise Refused("missing_member", f"no member {name}; there are {there}") from error
  except ValueError as error:
    raise Refused("bad_object", f"{name}: {error}") from error


def _pose_file(config: RecgenConfig) -> str:
  """The member with the poses of the configured depth and normalisation."""
  # Stereo poses have a prefix; the plain minmax ones have no suffix at all.
  variant = config.pose_variant
  if config.stereo:
    variant = f"st_{variant}"
  if variant == "minmax":
    return "pose_data.json"
  return f"pose_data_{variant}.json"


def _shape(members: Mapping[str, bytes], config: RecgenConfig) -> dict[str, Any]:
  """Voxels and latents; what the object lacks is absent. Raises Refused."""
  # Of stage 1: the structure latent.
  fields: dict[str, Any] = {}
  if "ss_latent.npy" in members:
    latent = objects.load_array(
      members["ss_latent.npy"],
      "ss_latent.npy",
      shape=(8, 16, 16, 16),
    )
    fields["structure_latent"] = objects.structure_latent(latent)
    fields["structure_latent_autoencoder"] = config.autoencoder

  # Of stage 2: active voxels and a feature for each.
  if "slat_coords.npy" in members and "slat_feats.npy" in members:
    coords = objects.load_array(
      members["slat_coords.npy"],
      "slat_coords.npy",
      shape=(None, 3),
    )
    feats = objects.load_array(
      members["slat_feats.npy"],
      "slat_feats.npy",
      shape=(None, schema.SLAT_CHANNELS),
    )
    if len(coords) > MAX_VOXELS:
      raise Refused("too_many_voxels", f"{len(coords)} voxels, at most {MAX_VOXELS}")
    voxels, slat = objects.sorted_slat(coords, feats, "slat_coords.npy")
    fields["voxels"] = voxels
    fields["slat"] = slat
    fields["slat_autoencoder"] = config.slat_autoencoder
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
  # Whether enough of the object is seen, with a pose within the thresholds.
  if detail.get("visible_fraction", 1.0) < config.min_visible:
    return refuse.draw("hidden")
  if pose is None or not _pose_passes(pose, config):
    return refuse.draw("pose")
  mask = _mask(members, f"cond_mask_{view:02d}.png")
  if mask is None or np.count_nonzero(mask) <= config.min_pixels:
    return refuse.draw("small_mask")
  stereo = "st_" if config.stereo else ""
  depth = _depth(members, f"cond_depth_{stereo}{view:02d}.png")
  has_camera = "intrinsics" in detail
  if depth is None or depth.shape != mask.shape or not has_camera:
    return refuse.draw("no_depth")

  # Their normalisation, of the points under the mask.
  k = np.array(detail["intrinsics"], np.float64)
  points = _unproject(depth, k)
  is_known = depth > 0
  distance = np.linalg.norm(points, axis=-1)
  is_object = mask > 0
  counted = is_object & is_known & (distance > NEAREST)
  normalised = normalisation(points[counted], config.pose_variant)
  if normalised is None:
    return refuse.draw("no_depth")
  shrink, shift = normalised

  # In our frame and unit, where depth is known.
  height, width = mask.shape
  camera = cameras.Camera(
    fx=k[0, 0],
    fy=k[1, 1],
    cx=k[0, 2] + PIXEL_CENTRE,
    cy=k[1, 2] + PIXEL_CENTRE,
    width=width,
    height=height,
  )
  ours = points * OPENCV
  known_points = np.where(is_known[..., None], ours, np.nan)
  placed = metric_pose(pose, shrink, shift)
  seen = {
    "image": members[f"cond_image_{view:02d}.jpg"],
    "mask": render.encode(is_object),
    "pointmap": known_points.astype(np.float16),
    "camera": schema.camera_field(camera),
    **schema.pose_fields(placed),
  }

  # The whole object's mask holds at least what is visible.
  whole = _mask(members, f"cond_mask_full_{view:02d}.png")
  if whole is not None and whole.shape == mask.shape:
    full = (whole > 0) | is_object
    seen["mask_full"] = render.encode(full)
  return seen


def _pose_passes(pose: Mapping[str, float], config: RecgenConfig) -> bool:
  """Whether a pose lies within the thresholds of the public loader."""
  try:
    quaternion, translation, scale = _numbers(pose)
  except KeyError:
    return False
  low, high = config.scale_range
  # In units of the normalised camera.
  distance = np.linalg.norm(translation)
  whole = np.linalg.norm([*quaternion, *translation, scale])
  is_within = low < scale < high and distance <= config.max_translation
  return bool(is_within and whole <= config.max_pose_norm)


def _numbers(pose: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, float]:
  """Quaternion w, x, y, z, translation and scale of a pose. Raises KeyError if one is missing."""
  # One key a number.
  quaternion = [pose[f"quat_{axis}"] for axis in "wxyz"]
  translation = [pose[f"trans_{axis}"] for axis in "xyz"]
  return (
    np.array(quaternion, np.float64),
    np.array(translation, np.float64),
    float(pose["scale"]),
  )


def _mask(members: Mapping[str, bytes], name: str) -> np.ndarray | None:
  """(H, W) of a mask, non-zero inside; None where it is missing."""
  # Of a mask stored with several channels the first will do.
  array = _image(members, name)
  if array is not None and array.ndim == 3:
    return array[..., 0]
  return array


def _depth(members: Mapping[str, bytes], name: str) -> np.ndarray | None:
  """(H, W) metres, 0 unknown; None where it is missing."""
  array = _image(members, name)
  if array is None:
    return None
  millimetres = array.astype(np.float64)
  return millimetres / 1000


def _image(members: Mapping[str, bytes], name: str) -> np.ndarray | None:
  """A decoded image; None where it is missing. Raises Refused (bad_image)."""
  if name not in members:
    return None
  try:
    return np.asarray(images.open_bytes(members[name], MAX_PIXELS))
  except (OSError, SyntaxError, ValueError) as error:
    raise Refused("bad_image", f"{name} cannot be decoded: {error}") from error


def _unproject(depth_HW: np.ndarray, k_33: np.ndarray) -> np.ndarray:
  """OpenCV camera points (H, W, 3) of pixels whose centres are whole numbers."""
  height, width = depth_HW.shape
  row, column = np.mgrid[:height, :width]
  (fx, _, cx), (_, fy, cy), _ = k_33
  # x / z = (column - cx) / fx, and the like for y
  from_axis = column - cx
  below_axis = row - cy
  x = from_axis * depth_HW / fx
  y = below_axis * depth_HW / fy
  return np.stack([x, y, depth_HW], -1)


def normalisation(points_P3: np.ndarray, variant: str) -> tuple[float, np.ndarray] | None:
  """(s, u) of q = s p + u for the visible points of an object; None where they have no extent."""
  if not len(points_P3):
    return None
  # `spread` comes to 1, `centre` to 0.5.
  if variant == "minmax":
    low = points_P3.min(0)
    high = points_P3.max(0)
    centre = (low + high) / 2
    spread = float((high - low).max())
  else:
    # Quantiles keep strays from deciding the size.
    percent = variant.removeprefix("median_quantile_").removesuffix("per")
    share = float(percent) / 100
    centre = np.median(points_P3, axis=0)
    from_centre = points_P3 - centre
    distance = np.linalg.norm(from_centre, axis=1)
    near, far = np.quantile(distance, [share, 1 - share])
    spread = 2 * float(far - near)
  if not spread > 0:
    return None
  # q = p / spread + (0.5 - centre / spread).
  return 1 / spread, 0.5 - centre / spread


def metric_pose(pose: Mapping[str, float], s: float, u_3: np.ndarray) -> Pose:
  """The pose in our camera from one in the normalised OpenCV camera."""
  # q = s p + u solved for p; then OpenCV's axes to ours.
  quaternion, translation, scale = _numbers(pose)
  rotation = rotations.quaternion_to_matrix(quaternion)
  return Pose(
    rotation=OPENCV[:, None] * rotation,
    translation=OPENCV * (translation - u_3) / s,
    scale=np.full(3, scale / s),
  )

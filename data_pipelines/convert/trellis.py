"""Converter of folders made by the TRELLIS dataset toolkit (microsoft/TRELLIS, dataset_toolkits).

    metadata.csv                               sha256, aesthetic_score, ...
    renders_cond/<sha256>/transforms.json      frames: file_path, camera_angle_x, transform_matrix
    renders_cond/<sha256>/NNN.png              RGBA on a transparent background
    voxels/<sha256>.ply                        centres of the surface voxels
    ss_latents/<encoder>/<sha256>.npz          mean (8, 16, 16, 16)
    latents/<encoder>/<sha256>.npz             feats (N, 8), coords (N, 3)

From its public code: the world is Blender's, z up, with the object in [-0.5, 0.5]^3;
`transform_matrix` takes camera to world, the camera looking down its -z with y up; pictures are
square and `camera_angle_x` (radians) is their field of view; voxel (i, j, k) has its centre at (i +
0.5) / 64 - 0.5 and latents are grids filled as [x, y, z]. The object frame is ours, so only cameras
are converted. There is no depth, hence no point map: such records teach shape and rotation.
"""

from collections.abc import Iterator
import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.build import shard_jobs
from data_pipelines.convert import objects
from data_pipelines.format import schema
from data_pipelines.synth import render, sources
from sam3d_jax.errors import ConfigError, Refused
from sam3d_jax.files import arrays, blame, images, meshes, names, texts
from sam3d_jax.geometry import cameras
from sam3d_jax.geometry.pose import Pose

GLTF = np.array(cameras.AXES["gltf"])
MAX_PIXELS = 1 << 26  # of a view
ORTHONORMAL = 1e-3  # largest error of a camera's rotation


@dataclasses.dataclass(frozen=True)
class TrellisConfig:
  """Which views of which objects become records.

  Records name the encoders as makers of the latents unless autoencoder and slat_autoencoder say
  otherwise.
  """

  name: str
  source: str
  views: int = 0  # at most so many an object, the first; 0: all
  image_size: int = 518  # pixels a side of stored pictures
  image_format: str = "jpeg"
  background: int = 255  # grey level behind the object (TRELLIS trains on 0)
  alpha_threshold: float = 0.5  # coverage from which a pixel is the object's
  structure_encoder: str = ""  # folder of ss_latents to take, "" for none
  slat_encoder: str = ""  # folder of latents to take, "" for none
  autoencoder: str = ""
  slat_autoencoder: str = ""
  min_aesthetic: float = 0.0  # of the object; 0: any
  license: str = "unknown"


def plan(config: TrellisConfig, *, test_fraction: float, objects_per_shard: int) -> shard_jobs.Plan:
  """Lists the objects of metadata.csv and deals them to shards. Raises ConfigError."""
  root = pathlib.Path(config.source)
  table = root / "metadata.csv"
  if not config.source or not table.is_file():
    raise ConfigError(
      f"source = {config.source!r}: there is no metadata.csv; give the output_dir of the TRELLIS "
      "toolkit"
    )
  _check_encoder("structure_encoder", config.structure_encoder, root / "ss_latents")
  _check_encoder("slat_encoder", config.slat_encoder, root / "latents")
  rows = _read_rows(table)

  # Objects of at least the wanted score, each once.
  takes_any = config.min_aesthetic <= 0
  wanted = []
  for line, row in rows:
    if takes_any or _score(table, line, row) >= config.min_aesthetic:
      wanted.append(row["sha256"])
  if not wanted:
    raise ConfigError(
      f"min_aesthetic = {config.min_aesthetic:g} leaves none of {len(rows)} objects"
    )

  # An object's identity is its content: equal ones never fall into both splits.
  inputs = []
  for sha in dict.fromkeys(wanted):
    identity = sources.short_digest(sha.encode())
    inputs.append(sources.Input(sha, identity))
  return objects.plan(
    "trellis",
    examples,
    config,
    sorted(inputs, key=lambda item: item.identity),
    test_fraction=test_fraction,
    objects_per_shard=objects_per_shard,
    description="TRELLIS toolkit renders, poses in our conventions",
  )


def _read_rows(table: pathlib.Path) -> list[tuple[int, dict[str, str]]]:
  """(line, column -> cell) of every object of metadata.csv. Raises ConfigError."""
  try:
    with blame.reading(table):
      rows = list(texts.read_table(table))
  except texts.TextError as error:
    raise ConfigError(f"{table} cannot be read: {error}; save it as CSV again") from error
  if not rows or "sha256" not in rows[0][1]:
    raise ConfigError(f"{table} has no rows with a column sha256")
  for line, row in rows:
    sha = row["sha256"]
    # it names folders and files: nothing but a name may stand there
    if not re.fullmatch(r"\w[\w.-]*", sha):
      raise ConfigError(
        f"{table} line {line}: sha256 = {sha!r} is no name of an object; correct it"
      )
  return rows


def _score(table: pathlib.Path, line: int, row: dict[str, str]) -> float:
  """The aesthetic score of an object, 0 where it has none. Raises ConfigError."""
  stated = row.get("aesthetic_score", "")
  if not stated:
    return 0.0
  try:
    return texts.number(stated)
  except texts.TextError as error:
    raise ConfigError(
      f"{table} line {line}: aesthetic_score = {error}; correct it, leave the cell empty for an "
      "object without a score, or take every object with --config.min_aesthetic=0"
    ) from error


def _check_encoder(key: str, name: str, folder: pathlib.Path) -> None:
  """Raises ConfigError if the folder of latents lacks the encoder that a key names."""
  if not name or (folder / name).is_dir():
    return
  encoders = sorted(path.name for path in folder.glob("*"))
  there = ", ".join(encoders) or "none"
  raise ConfigError(f"{key} = {name!r}: there is no {folder.name}/{name}; there are {there}")


def examples(
  config: TrellisConfig, item: sources.Input, refuse: shard_jobs.Refusals
) -> Iterator[schema.Example]:
  """The records of one object, one a view; empty views are counted. Raises Refused."""
  folder = pathlib.Path(config.source) / "renders_cond" / item.name
  transforms = folder / "transforms.json"
  if not transforms.is_file():
    # The toolkit renders some objects only.
    refused = shard_jobs.Quarantined(
      item.name,
      "not_rendered",
      "no renders_cond/<sha256>/transforms.json",
      fault=False,
    )
    refuse(refused)
    return
  try:
    frames = texts.read_json(transforms)["frames"]
  except (ValueError, KeyError, TypeError) as error:
    raise Refused(
      "bad_transforms", f"transforms.json has no readable `frames`: {error!r}"
    ) from error

  # All views have the object's shape, each an image and a pose of its own.
  shape = _shape(config, item.name)
  wanted = frames[: config.views or None]
  for view, frame in enumerate(wanted):
    seen = _picture(folder, frame, config)
    if seen is None:
      refuse.draw("empty_view")
      continue
    size = seen.pop("size")
    placed = _pose(frame, size)
    lineage = {"converter": "trellis", "view": view}
    stated = {
      "key": schema.example_key(config.name, item.name, view),
      "source": config.name,
      "view": np.int32(view),
      "mesh_key": item.name,
      "license": config.license,
      "lineage": json.dumps(lineage, sort_keys=True),
    }
    yield schema.empty_example() | shape | seen | placed | stated


def _picture(folder: pathlib.Path, frame: dict, config: TrellisConfig) -> dict[str, Any] | None:
  """Image and masks of a view, and its `size` in pixels; None where nothing is seen.

  Raises Refused (bad_image).
  """
  try:
    path = names.below(folder, frame["file_path"], also=[config.source])
    stored = images.open_bytes(path.read_bytes(), MAX_PIXELS)
    rgba = stored.convert("RGBA")
  except (OSError, SyntaxError, ValueError, KeyError, TypeError) as error:
    if not blame.is_of_the_file(error):
      raise
    raise Refused("bad_image", f"{frame.get('file_path')}: {error}") from error
  if rgba.width != rgba.height:
    raise Refused(
      "bad_image",
      f"{frame['file_path']} is {rgba.width} x {rgba.height}: the toolkit renders squares",
    )

  # Before a plain background, at the wanted size.
  grey = config.background
  plain = Image.new("RGBA", rgba.size, (grey, grey, grey, 255))
  image = Image.alpha_composite(plain, rgba)
  image = image.convert("RGB")
  # Coverage, which the resize turns into fractions at the rim.
  alpha = rgba.getchannel("A")
  if config.image_size != rgba.width:
    size = (config.image_size, config.image_size)
    image = image.resize(size, Image.Resampling.BILINEAR)
    alpha = alpha.resize(size, Image.Resampling.BILINEAR)

  # What the object covers enough is its own.
  mask = np.asarray(alpha) >= 255 * config.alpha_threshold
  if not mask.any():
    return None
  encoded = render.encode(mask)  # nothing stands before the object
  return {
    "image": render.encode(np.asarray(image), config.image_format),
    "mask": encoded,
    "mask_full": encoded,
    "size": image.width,
  }


def _pose(frame: dict, size: int) -> dict[str, Any]:
  """Camera and pose from Blender's camera-to-world matrix. Raises Refused (bad_transforms)."""
  try:
    matrix = np.array(frame["transform_matrix"], np.float64)
    # Half the picture is seen under half the angle.
    half_fov = 0.5 * float(frame["camera_angle_x"])
    focal = 0.5 * size / np.tan(half_fov)
  except (KeyError, TypeError, ValueError) as error:
    raise Refused("bad_transforms", f"frame {frame.get('file_path')}: {error!r}") from error
  if not _is_rigid(matrix) or not focal > 0:
    raise Refused(
      "bad_transforms",
      f"frame {frame['file_path']}: transform_matrix is no rotation and translation, or the angle "
      "is wrong",
    )

  # World to camera, then to our frame.
  to_world = matrix[:3, :3]
  position = matrix[:3, 3]
  rotation = GLTF[:, None] * to_world.T
  translation = -rotation @ position
  pose = Pose(rotation, translation, np.ones(3))
  # The optical axis goes through the middle of a square picture.
  middle = size / 2
  camera = cameras.Camera(
    fx=focal,
    fy=focal,
    cx=middle,
    cy=middle,
    width=size,
    height=size,
  )
  return schema.pose_fields(pose) | {"camera": schema.camera_field(camera)}


def _is_rigid(matrix: np.ndarray) -> bool:
  """Whether a matrix is 4 x 4 with a rotation, within ORTHONORMAL, or a mirrored one."""
  if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
    return False
  turn = matrix[:3, :3]
  off = turn @ turn.T - np.eye(3)
  error = np.abs(off).max()
  return not error > ORTHONORMAL


def _shape(config: TrellisConfig, sha: str) -> dict[str, Any]:
  """Voxels and latents; what the folder lacks is absent. Raises Refused."""
  root = pathlib.Path(config.source)
  fields: dict[str, Any] = {}
  # Voxels by themselves teach a structure VAE.
  voxel_file = root / "voxels" / f"{sha}.ply"
  if voxel_file.is_file():
    fields["voxels"] = _voxels(voxel_file)

  if config.structure_encoder:
    latent_file = root / "ss_latents" / config.structure_encoder / f"{sha}.npz"
    arrays = _npz(latent_file, "mean")
    latent = arrays["mean"]
    if latent.ndim != 4:
      detail = f"ss_latents mean has shape {latent.shape}, expected channels, x, y, z"
      raise Refused("bad_array", detail)
    fields["structure_latent"] = objects.structure_latent(latent)
    fields["structure_latent_autoencoder"] = config.autoencoder or config.structure_encoder

  # A structured latent says its voxels itself; they must be those of the object.
  if config.slat_encoder:
    latents = _npz(
      root / "latents" / config.slat_encoder / f"{sha}.npz",
      "coords",
      "feats",
    )
    voxels, slat = objects.sorted_slat(
      latents["coords"],
      latents["feats"],
      "latents coords",
    )
    own = fields.get("voxels")
    if own is not None and not np.array_equal(voxels, own):
      detail = f"latents cover {len(voxels)} voxels, voxels/{sha}.ply has {len(own)} others"
      raise Refused("bad_array", detail)
    fields["voxels"] = voxels
    fields["slat"] = slat
    fields["slat_autoencoder"] = config.slat_autoencoder or config.slat_encoder
  if not fields:
    raise Refused("no_shape", "neither voxels nor latents")
  return fields


def _voxels(path: pathlib.Path) -> np.ndarray:
  """Voxels (N, 3) uint8 of a file of their centres, lexicographic. Raises Refused (bad_array)."""
  try:
    found = meshes.read(path, appearance=False)
  except Refused as error:
    raise Refused("bad_array", error.detail) from error
  # From the unit cube to the voxel that each centre lies in.
  scaled = (found.mesh.vertices + 0.5) * schema.VOXEL_RESOLUTION
  voxels = np.floor(scaled).astype(np.int64)
  if not len(voxels) or voxels.min() < 0 or voxels.max() >= schema.VOXEL_RESOLUTION:
    raise Refused("bad_array", f"{path.name}: voxel centres must lie in [-0.5, 0.5]^3")
  distinct = np.unique(voxels, axis=0)
  return distinct.astype(np.uint8)


def _npz(path: pathlib.Path, *names: str) -> dict[str, np.ndarray]:
  """Named arrays of a file. Raises Refused (missing_latent, bad_array)."""
  try:
    with path.open("rb") as file:
      stored = arrays.load(file, path.stat().st_size)
      return {name: stored[name] for name in names}
  except FileNotFoundError as error:
    encoder = path.parent
    raise Refused(
      "missing_latent", f"no {encoder.parent.name}/{encoder.name}/{path.name}"
    ) from error
  # zip, zlib and numpy each have their own errors for a damaged file
  except Exception as error:
    if not blame.is_of_the_file(error):
      raise
    raise Refused("bad_array", f"{path.name}: {error}") from error

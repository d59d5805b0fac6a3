"""Files of every input format, changed at random: what readers make of them.

A change is a function of the format's name and a number, so that every failure can be made again:

    python -m tests.support.fuzzing FORMAT NUMBER     # writes the changed file and reads it
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import sys
import tarfile
import tempfile
import time
from typing import Any
import zlib

import numpy as np
from PIL import Image
import trimesh

from data_pipelines.annotations import layout
from data_pipelines.build import limited
from data_pipelines.convert import objects, recgen, tars, trellis
from data_pipelines.eval_sets import bop, photo_folder
from data_pipelines.format import records, schema
from data_pipelines.read import rows
from data_pipelines.synth import assets, sources
from sam3d_jax.errors import InputError, Refused
from sam3d_jax.evaluation import layout as poses
from sam3d_jax.files import camera_files, photos, pointmaps, splat_files, texts
from sam3d_jax.render import splats
from tests.support import tiny_dataset

HEIGHT, WIDTH = 24, 32
BATCH_SECONDS = 60.0
ALONE_SECONDS = 10.0  # of one file, where a batch takes too long
THREADS_GB = 8.0  # of the address space that the threads of ArrayRecord's reader reserve
BATCH = 50  # changed files that are read in one call
# what readers raise of a file that is not as it should be
REFUSALS = (Refused, InputError, records.CorruptRecord, texts.TextError, poses.PoseError)
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1)
LIKELY = (0.25, 0.1, 0.1, 0.05, 0.1, 0.15, 0.1, 0.15)  # of the kinds of changes below
WORDS = (
  *(b"-1", b"0", b"1e308", b"1e999", b"nan", b"-inf", b"9" * 400, b"null", b"true", b'""', b"{}"),
  *(b"[]", b"[[[[[[[[", b"'", b'"', b"\\", b"../../x", b"\xff\xfe", b"\0", b"\xed\xa0\x80", b"#"),
)


@dataclasses.dataclass(frozen=True)
class Format:
  """A format of files. make: folder -> the file in it that is changed, all others beside it. read:
  what is done with a changed one. contained: whoever reads it takes every exception for a refusal.
  """

  make: Callable[[pathlib.Path], pathlib.Path]
  read: Callable[[pathlib.Path], Any]
  contained: bool = False
  memory_gb: float = 1.0


# --- Files that are as they should be -------------------------------------------------------------


def _box() -> trimesh.Trimesh:
  box = trimesh.creation.box()
  box.visual = trimesh.visual.TextureVisuals(
    uv=np.random.default_rng(0).random((len(box.vertices), 2)),
    material=trimesh.visual.material.PBRMaterial(baseColorTexture=_picture("RGBA")),
  )
  return box


def _picture(mode: str = "RGB") -> Image.Image:
  values = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 4), np.uint8)
  return Image.fromarray(values).convert(mode)


def _exported(suffix: str, **options) -> Callable:
  def make(folder: pathlib.Path) -> pathlib.Path:
    data = _box().export(file_type=suffix, **options)
    path = folder / f"a.{suffix.removesuffix('_ascii')}"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path

  return make


def _gltf(folder: pathlib.Path) -> pathlib.Path:
  for name, data in _box().scene().export(file_type="gltf").items():
    (folder / name).write_bytes(data)
  return (folder / "model.gltf").rename(folder / "a.gltf")


def _gltf_buffer(folder: pathlib.Path) -> pathlib.Path:
  _gltf(folder)
  return sorted(folder.glob("*.bin"))[0]


OBJ = """mtllib a.mtl
v 0 0 0 1 0 0
v 1 0 0 0 1 0
v 0 1 0 0 0 1
v 0 0 1 1 1 1
vt 0 0
vt 1 0
vt 0 1
usemtl one
f 1/1 2/2 3/3
f -1/-1 -2/-2 -3/-3
usemtl two
f 1 2 4 3
l 1 2
"""
MTL = "newmtl one\nKd 0.1 0.2 0.3\nmap_Kd -s 2 2 1 t.png\nnewmtl two\nmap_d t.png\n"


def _obj(folder: pathlib.Path, changed: str = "a.obj") -> pathlib.Path:
  _picture("RGBA").save(folder / "t.png")
  (folder / "a.obj").write_text(OBJ)
  (folder / "a.mtl").write_text(MTL)
  (folder / "sources.json").write_text('{"a.obj": {"license": "CC0-1.0", "up": "z"}}')
  (folder / "a.obj.license").write_text("CC-BY-4.0 Süd")
  return folder / changed


def _splats(folder: pathlib.Path) -> pathlib.Path:
  rng = np.random.default_rng(2)
  count = 12
  found = splats.Splats(
    centres_N3=rng.random((count, 3), np.float32),
    scales_N3=rng.random((count, 3), np.float32) + np.float32(0.1),
    rotations_N4=rng.random((count, 4), np.float32) + np.float32(0.1),
    opacities_N=rng.random(count, np.float32),
    colours_N3=rng.random((count, 3), np.float32),
  )
  splat_files.write(folder / "a.ply", found)
  return folder / "a.ply"


def _saved(name: str, mode: str = "RGB", **options) -> Callable:
  def make(folder: pathlib.Path) -> pathlib.Path:
    _picture(mode).save(folder / name, **options)
    return folder / name

  return make


def _mask_values() -> np.ndarray:
  values = np.zeros((HEIGHT, WIDTH), np.uint8)
  values[4:15, 6:20] = 255
  return values


def _array(name: str, values: np.ndarray, **more: np.ndarray) -> Callable:
  def make(folder: pathlib.Path) -> pathlib.Path:
    path = folder / name
    if path.suffix == ".npz":
      np.savez_compressed(path, pointmap=values, **more)
    elif path.suffix == ".npy":
      np.save(path, values)
    else:
      Image.fromarray(values).save(path)
    return path

  return make


def _points() -> np.ndarray:
  v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
  return np.stack([(WIDTH / 2 - u) / 40, (HEIGHT / 2 - v) / 40, np.ones_like(u)], -1)


def _exr(folder: pathlib.Path) -> pathlib.Path:
  import OpenEXR

  depth = _points()[..., 2].astype(np.float32)
  header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
  with OpenEXR.File(header, {"Z": depth}) as file:
    file.write(str(folder / "a.exr"))
  return folder / "a.exr"


def _text(name: str, text: str) -> Callable:
  def make(folder: pathlib.Path) -> pathlib.Path:
    (folder / name).write_text(text)
    return folder / name

  return make


POSE = {"rotation": [1.0, 0.0, 0.0, 0.0], "translation": [0.0, 0.0, 2.0], "scale": 0.5}
CAMERA = {"K": [[40, 0, 16], [0, 40, 12], [0, 0, 1]], "width": WIDTH, "height": HEIGHT, "k1": 0}


def _annotation(folder: pathlib.Path) -> pathlib.Path:
  _picture().save(folder / "photo.png")
  Image.fromarray(_mask_values()).save(folder / "mask.png")
  (folder / "a.obj").write_text(OBJ)
  stated = {
    "format": 1,
    "image": "photo.png",
    "mask": "mask.png",
    "camera": {"fx": 40, "fy": 40, "cx": 16, "cy": 12},
    "candidates": {
      "a": {"generator": "sam3d/1", "mesh": "a.obj", "pose": POSE},
      "b": {"generator": "other", "mesh": "a.obj", "license": "CC0"},
    },
    "choices": [{"left": "a", "right": "b", "answer": "left"}],
    "rating": 4.0,
  }
  (folder / layout.FILE).write_text(json.dumps(stated))
  return folder / layout.FILE


def _record(kind: str) -> Callable:
  def make(folder: pathlib.Path) -> pathlib.Path:
    example = tiny_dataset.make_example(0, kind=kind)
    (folder / "a.record").write_bytes(schema.serialise(example, kind))
    return folder / "a.record"

  return make


def _dataset(changed: str) -> Callable:
  def make(folder: pathlib.Path) -> pathlib.Path:
    tiny_dataset.write_dataset(folder, 3, shards=1)
    (folder / "build.json").write_text('{"autoencoder": "abc", "digest": "x", "counts": null}')
    (folder / "latent_statistics.json").write_text('{"mean": [0.0], "std": [1.0]}')
    return sorted(folder.glob(changed))[0]

  return make


def _tar(folder: pathlib.Path) -> pathlib.Path:
  values = np.full((HEIGHT, WIDTH), 900, np.uint16)
  stream = io.BytesIO()
  np.save(stream, np.zeros((8, 16, 16, 16), np.float16))
  pose = {f"quat_{axis}": 0.5 for axis in "wxyz"} | {f"trans_{axis}": 0.5 for axis in "xyz"}
  members = {
    "sha256.txt": b"abc",
    "ss_latent.npy": stream.getvalue(),
    "pose_data_median_quantile_5per.json": json.dumps([pose | {"scale": 1.0}]).encode(),
    "view_metadata.json": json.dumps([{"intrinsics": CAMERA["K"]}]).encode(),
    "cond_image_00.jpg": _encoded(_picture(), "JPEG"),
    "cond_mask_00.png": _encoded(Image.fromarray(_mask_values()), "PNG"),
    "cond_depth_00.png": _encoded(Image.fromarray(values), "PNG"),
  }
  with tarfile.open(folder / "a.tar", "w") as tar:
    for name, data in members.items():
      member = tarfile.TarInfo(f"key.{name}")
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return folder / "a.tar"


def _encoded(image: Image.Image, form: str) -> bytes:
  stream = io.BytesIO()
  image.save(stream, form)
  return stream.getvalue()


def _trellis(folder: pathlib.Path) -> pathlib.Path:
  views = folder / "renders_cond" / "abc"
  views.mkdir(parents=True)
  (folder / "voxels").mkdir()
  _picture("RGBA").resize((WIDTH, WIDTH)).save(views / "000.png")
  cloud = trimesh.PointCloud(np.array([[0.0, 0.0, 0.0], [0.1, 0.2, 0.3]]))
  (folder / "voxels" / "abc.ply").write_bytes(cloud.export(file_type="ply"))
  frame = {"file_path": "000.png", "camera_angle_x": 0.7, "transform_matrix": np.eye(4).tolist()}
  (views / "transforms.json").write_text(json.dumps({"frames": [frame, frame]}))
  return views / "transforms.json"


def _bop(changed: str) -> Callable:
  def make(folder: pathlib.Path) -> pathlib.Path:
    scene = folder / "test" / "000001"
    for name in ("rgb", "mask_visib"):
      (scene / name).mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "models" / "obj_000001.ply").write_bytes(
      trimesh.creation.box().export(file_type="ply")
    )
    _picture().save(scene / "rgb" / "000001.png")
    Image.fromarray(_mask_values()).save(scene / "mask_visib" / "000001_000000.png")
    truth = {"obj_id": 1, "cam_R_m2c": np.eye(3).ravel().tolist(), "cam_t_m2c": [0, 0, 900]}
    tables = {
      "scene_gt": {"1": [truth]},
      "scene_camera": {"1": {"cam_K": np.ravel(CAMERA["K"]).tolist(), "depth_scale": 1.0}},
      "scene_gt_info": {"1": [{"visib_fract": 0.9, "bbox_visib": [6, 4, 14, 11]}]},
    }
    for name, table in tables.items():
      (scene / f"{name}.json").write_text(json.dumps(table))
    return scene / f"{changed}.json"

  return make


# --- What is done with a changed one --------------------------------------------------------------


def _mask(path: pathlib.Path) -> None:
  photos.Photo(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).read_mask(path)


def _labels(path: pathlib.Path) -> None:
  found = photos.Photo(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).with_labels(path)
  for name in found.masks:
    found.masks[name].any()


def _pointmap(path: pathlib.Path) -> None:
  intrinsics = camera_files.Intrinsics(40.0, 40.0, 16.0, 12.0)
  pointmaps.read_pointmap(path, intrinsics=intrinsics)


def _decoded_record(kind: str) -> Callable:
  def read(path: pathlib.Path) -> None:
    example = schema.deserialise(path.read_bytes(), kind)
    for name, mode in (("image", "RGB"), ("mask", "L")):
      rows.decode_image(example[name], name, mode=mode)
    rows.occupancy(example["voxels"], 64)

  return read


def _opened_dataset(path: pathlib.Path) -> None:
  records.dataset_identity(path.parent)
  split = records.open_split(path.parent)
  for index in range(min(len(split), 4)):
    # one of the two things that may come of a changed file
    with contextlib.suppress(records.CorruptRecord):
      split[index]


def _recgen(path: pathlib.Path) -> None:
  config = recgen.RecgenConfig(name="x", source=str(path.parent), min_pixels=10)
  for found in tars.scan(path, "sha256.txt").objects:
    offsets = "+".join(map(str, found.offsets))
    objects.object_examples(recgen.examples, config, sources.Input(f"{path.name}#{offsets}", "x"))


def _converted(path: pathlib.Path) -> None:
  config = trellis.TrellisConfig(name="x", source=str(path.parents[2]), image_size=WIDTH)
  objects.object_examples(trellis.examples, config, sources.Input("abc", "x"))


def _bop_items(path: pathlib.Path) -> None:
  chosen = bop.BopSet(path.parents[2])
  for index in range(len(chosen.names)):
    chosen[index]


def _beside(name: str) -> Callable:
  """Reads another file of the folder, which leads to the changed one."""
  return lambda path: assets.load(path.with_name(name))


def _table(path: pathlib.Path) -> None:
  list(texts.read_table(path))


FORMATS = {
  "glb": Format(_exported("glb"), assets.load),
  "gltf": Format(_gltf, assets.load),
  "gltf_buffer": Format(_gltf_buffer, _beside("a.gltf")),
  "obj": Format(_obj, assets.load),
  "mtl": Format(functools.partial(_obj, changed="a.mtl"), _beside("a.obj")),
  "texture": Format(functools.partial(_obj, changed="t.png"), _beside("a.obj")),
  "side_table": Format(functools.partial(_obj, changed="sources.json"), _beside("a.obj")),
  "licence": Format(functools.partial(_obj, changed="a.obj.license"), _beside("a.obj")),
  "ply_text": Format(_exported("ply", encoding="ascii"), assets.load),
  "ply_binary": Format(_exported("ply"), assets.load),
  "stl_text": Format(_exported("stl_ascii"), assets.load),
  "stl_binary": Format(_exported("stl"), assets.load),
  "off": Format(_exported("off"), assets.load),
  "splats": Format(_splats, splat_files.read),
  "png": Format(_saved("a.png", "RGBA"), photos.read_photo),
  "png_palette": Format(_saved("a.png", "P"), photos.read_photo),
  "jpeg": Format(_saved("a.jpg"), photos.read_photo),
  "webp": Format(_saved("a.webp"), photos.read_photo),
  "tiff": Format(_saved("a.tif", compression="tiff_lzw"), photos.read_photo),
  "gif": Format(_saved("a.gif", "P"), photos.read_photo),
  "bmp": Format(_saved("a.bmp"), photos.read_photo),
  "jpeg2000": Format(_saved("a.jp2"), photos.read_photo),
  "mask_png": Format(_array("a.png", _mask_values()), _mask),
  "mask_npy": Format(_array("a.npy", _mask_values()), _mask),
  "labels": Format(_array("a.png", _mask_values() // 50), _labels),
  "depth_png": Format(_array("a.png", np.full((HEIGHT, WIDTH), 900, np.uint16)), _pointmap),
  "pointmap_npy": Format(_array("a.npy", _points()), _pointmap),
  "pointmap_npz": Format(_array("a.npz", _points(), K=np.array(CAMERA["K"])), _pointmap),
  "exr": Format(_exr, _pointmap),
  "intrinsics_json": Format(
    _text("a.json", json.dumps(CAMERA)), lambda path: camera_files.parse_intrinsics(str(path))
  ),
  "intrinsics_text": Format(
    _text("a.txt", "40 0 16\n0 40 12\n0 0 1\n"),
    lambda path: camera_files.parse_intrinsics(str(path)),
  ),
  "annotation": Format(_annotation, layout.read),
  "pose": Format(_text("a.json", json.dumps(POSE)), poses.load_pose),
  "pose_of_photo": Format(_text("a.json", json.dumps(POSE)), photo_folder.read_pose),
  "table": Format(_text("a.csv", "sha256,aesthetic_score\nabc,4.5\ndef,\n"), _table),
  "record": Format(_record("example"), _decoded_record("example")),
  "record_of_choices": Format(_record("preference"), _decoded_record("preference")),
  "shard": Format(_dataset("*.array_record*"), _opened_dataset, memory_gb=THREADS_GB),
  "features_json": Format(_dataset("features.json"), _opened_dataset, memory_gb=THREADS_GB),
  "dataset_info": Format(_dataset("dataset_info.json"), _opened_dataset, memory_gb=THREADS_GB),
  "build_json": Format(_dataset("build.json"), _opened_dataset, memory_gb=THREADS_GB),
  "statistics": Format(_dataset("latent_statistics.json"), _opened_dataset, memory_gb=THREADS_GB),
  "tar": Format(_tar, _recgen, contained=True),
  "transforms": Format(_trellis, _converted, contained=True),
  "bop_truth": Format(_bop("scene_gt"), _bop_items, contained=True),
  "bop_camera": Format(_bop("scene_camera"), _bop_items, contained=True),
  "bop_info": Format(_bop("scene_gt_info"), _bop_items, contained=True),
}


# --- Changes --------------------------------------------------------------------------------------


def changed(data: bytes, rng: np.random.Generator) -> bytes:
  """Some bytes with one to six changes, of the kinds that transfers, tools and people make."""
  result = bytearray(data)
  for _ in range(rng.choice([1, 1, 2, 6])):
    size = max(1, len(result))
    at = int(rng.integers(size))
    length = int(rng.integers(1, 1 + min(64, size)))
    kind = rng.choice(8, p=LIKELY)
    if kind == 0:
      result[at : at + 1] = bytes([rng.integers(256)])
    elif kind == 1:
      result[at : at + length] = rng.bytes(length)
    elif kind == 2:
      del result[at : at + length]
    elif kind == 3:
      del result[at:]
    elif kind == 4:
      other = int(rng.integers(size))
      result[at:at] = result[other : other + length]
    elif kind == 5:
      width = int(rng.choice([1, 2, 4, 8]))
      value = EXTREMES[rng.integers(len(EXTREMES))] & ((1 << 8 * width) - 1)
      order = "little" if rng.integers(2) else "big"
      result[at : at + width] = value.to_bytes(width, order)
    elif kind == 6:
      result[at:at] = WORDS[rng.integers(len(WORDS))]
    else:
      _change_word(result, rng)
  return bytes(result)


def _change_word(result: bytearray, rng: np.random.Generator) -> None:
  """Puts another word in the place of a number or name of a text."""
  text = bytes(result[: 1 << 16])
  starts = [at for at in range(len(text)) if text[at : at + 1].isalnum()]
  if not starts:
    return
  begin = end = starts[rng.integers(len(starts))]
  while end < len(text) and (text[end : end + 1].isalnum() or text[end : end + 1] in b"+-._"):
    end += 1
  result[begin:end] = WORDS[rng.integers(len(WORDS))]


@functools.cache
def _original(name: str) -> dict[str, bytes]:
  """The files of a format that are as they should be: path -> content."""
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    path = FORMATS[name].make(folder)
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*")}
    FORMATS[name].read(path)
    return {"": str(path.relative_to(folder)).encode()} | files


def write(name: str, number: int, folder: pathlib.Path) -> pathlib.Path:
  """Writes the files of a format with one of them changed, which is returned."""
  files = _original(name)
  which = files[""].decode()
  rng = np.random.default_rng([number, zlib.crc32(name.encode())])
  for path, data in files.items():
    if not path:
      continue
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(changed(data, rng) if path == which else data)
  return folder / which


def fuzz(name: str, first: int, count: int) -> tuple[list[tuple[int, str]], int, float]:
  """Reads changed files: (failures by number, how many were refused, seconds of the slowest)."""
  failures, refused, slowest = [], 0, 0.0
  for number in range(first, first + count):
    with tempfile.TemporaryDirectory() as scratch:
      path = write(name, number, pathlib.Path(scratch))
      began = time.monotonic()
      try:
        FORMATS[name].read(path)
      except REFUSALS:
        refused += 1
      except Exception as error:
        refused += 1
        if not FORMATS[name].contained:
          failures.append((number, f"{type(error).__name__}: {error}"))
      slowest = max(slowest, time.monotonic() - began)
  return failures, refused, slowest


def run(name: str, count: int, first: int = 0) -> dict[str, Any]:
  """`failures`, `refused` and `slowest` seconds of so many changed files, each batch within limits,
  and which file it was where a batch was not.
  """
  memory_gb = FORMATS[name].memory_gb
  limits = limited.Limits(memory_gb, BATCH_SECONDS)
  alone = limited.Limits(memory_gb, ALONE_SECONDS)
  failures, refused, slowest = [], 0, 0.0
  for start in range(first, first + count, BATCH):
    size = min(BATCH, first + count - start)
    try:
      found = [limited.call(limits, fuzz, name, start, size)]
    except Refused:
      found = []
      for number in range(start, start + size):
        try:
          found.append(limited.call(alone, fuzz, name, number, 1))
        except Refused as error:
          failures.append((number, str(error)))
    for wrong, turned_down, seconds in found:
      failures += wrong
      refused += turned_down
      slowest = max(slowest, seconds)
  return {"failures": failures, "refused": refused, "slowest": slowest}


def main() -> None:
  """One changed file, read in this process; or, with no number, a table of all formats."""
  if len(sys.argv) == 3:
    name, number = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch:
      path = write(name, number, pathlib.Path(scratch))
      print(path.read_bytes()[:2000])
      print(FORMATS[name].read(path))
    return
  count = int(sys.argv[1])
  for name in sys.argv[2].split(",") if len(sys.argv) > 3 else FORMATS:
    found = run(name, count)
    failures = found["failures"]
    print(
      f"{name:18} {count} {found['refused']:6} refused  {found['slowest']:6.2f} s  "
      f"{len(failures)} failures {failures[:3]}",
      flush=True,
    )


if __name__ == "__main__":
  # by its own name, under which the worker finds it
  from tests.support import fuzzing

  fuzzing.main()

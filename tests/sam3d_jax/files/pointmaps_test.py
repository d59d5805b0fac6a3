"""The reader of point maps: every form gives the same points; all else is refused by name."""

import json

import numpy as np
import OpenEXR
from PIL import Image
import pytest

from sam3d_jax.errors import InputError
from sam3d_jax.files import camera_files, pointmaps
from sam3d_jax.geometry import cameras

CAMERA = cameras.Camera(50.0, 52.0, 21.0, 14.0, 40, 30)
INTRINSICS = camera_files.Intrinsics(*CAMERA[:4])


def depth_map() -> np.ndarray:
  """A tilted plane with a step, in whole millimetres, unknown in one corner."""
  row, column = np.mgrid[:30, :40]
  depth = 2.0 + 0.01 * column + 0.02 * row + (column > 20)
  depth[:4, :5] = 0
  millimetres = np.round(depth * 1000)
  return millimetres.astype(np.uint16)


def truth() -> np.ndarray:
  metres = depth_map().astype(np.float32) / 1000
  return cameras.pointmap_from_depth(metres, CAMERA)


def write(folder, form: str):
  """The map as a file of a form, named after it."""
  depth = depth_map()
  metres = (depth / 1000).astype(np.float32)
  points = truth()
  path = folder / form
  if form == "png.png":
    Image.fromarray(depth).save(path)
  elif form == "tiff.tiff":
    Image.fromarray(metres).save(path)
  elif form == "depth.npz":
    unknown_is_far = np.where(depth > 0, depth / 1000, np.inf)
    np.savez(path, depth=unknown_is_far, K=[[50.0, 0, 21], [0, 52, 14], [0, 0, 1]])
  elif form == "points.npy":
    np.save(path, points)
  elif form == "masked.npz":
    filled = np.nan_to_num(points, nan=7.0)
    np.savez(path, points=filled.astype(np.float16), valid=depth > 0)
  elif form == "points.exr":
    x, y, z = (np.ascontiguousarray(points[..., axis]) for axis in range(3))
    write_exr(path, {"X": x, "Y": y, "Z": z})
  else:
    write_exr(path, {"Z": metres})
  return path


def write_exr(path, channels: dict[str, np.ndarray]) -> None:
  header = {"type": OpenEXR.scanlineimage, "compression": OpenEXR.PIZ_COMPRESSION}
  OpenEXR.File(header, channels).write(str(path))


@pytest.mark.parametrize(
  "form",
  ["png.png", "tiff.tiff", "depth.npz", "points.npy", "masked.npz", "points.exr", "depth.exr"],
)
def test_every_form_gives_the_same_points(tmp_path, form):
  is_bare_depth = form in ("png.png", "tiff.tiff", "depth.exr")
  needed = INTRINSICS if is_bare_depth else None
  found = pointmaps.read_pointmap(write(tmp_path, form), intrinsics=needed)
  # half precision in one of them
  tolerance = 2e-3 if form == "masked.npz" else 1e-5
  np.testing.assert_allclose(found.points_HW3, truth(), atol=tolerance)
  assert found.points_HW3.dtype == np.float32
  assert found.camera.width == 40


@pytest.mark.parametrize("frame", pointmaps.FRAMES)
def test_every_frame_is_converted_and_a_wrong_name_is_found_out(tmp_path, frame):
  path = tmp_path / "p.npy"
  np.save(path, cameras.convert_frame(truth(), "pytorch3d", frame))
  found = pointmaps.read_pointmap(path, frame=frame)
  np.testing.assert_allclose(found.points_HW3, truth(), atol=1e-6)
  for wrong in set(pointmaps.FRAMES) - {frame}:
    with pytest.raises(InputError, match="--pointmap_frame"):
      pointmaps.read_pointmap(path, frame=wrong)


def test_the_camera_of_a_point_map_is_recovered_in_spite_of_stray_points():
  points = truth()
  points[10:14, 30:38] += 0.8  # points that left their pixels
  camera, error = cameras.fit_camera(points)
  np.testing.assert_allclose(camera, CAMERA, rtol=1e-3)
  assert error < 1e-2


def test_points_that_no_pinhole_camera_sees_have_no_camera(tmp_path):
  rng = np.random.default_rng(0)
  np.save(tmp_path / "p.npy", rng.uniform(1, 2, (20, 20, 3)))
  assert pointmaps.read_pointmap(tmp_path / "p.npy").camera is None


def test_points_behind_the_camera_are_unknown(tmp_path):
  points = truth()
  points[20, 20] *= -1
  np.save(tmp_path / "p.npy", points)
  found = pointmaps.read_pointmap(tmp_path / "p.npy")
  assert np.isnan(found.points_HW3[20, 20]).all()


@pytest.mark.parametrize(
  "array, message",
  [
    (np.zeros((4, 4)), "depth map"),
    (np.ones((3, 8, 9)), "move the first axis"),
    (np.ones((8, 9, 4)), "shape"),
    (np.ones(5), "shape"),
    (np.full((8, 9, 3), np.nan), "no finite point"),
    (np.ones((8, 9, 3), complex), "complex"),
    (np.full((8, 9, 3), -1.0), "behind"),
    (np.array([["a"]]), "type"),
    (np.zeros((0, 3, 3)), "shape"),
  ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
  np.save(tmp_path / "wrong.npy", array)
  with pytest.raises(InputError, match=message) as error:
    pointmaps.read_pointmap(tmp_path / "wrong.npy")
  assert "wrong.npy" in str(error.value)


def test_other_files_are_refused(tmp_path):
  np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
  np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
  Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "eight_bit.png")
  (tmp_path / "text.npy").write_text("hello")
  (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04" + bytes(20))
  (tmp_path / "cut.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(20))
  cases = {
    "pickled.npy": "plain arrays",
    "two.npz": "name the point map",
    "eight_bit.png": "16-bit",
    "text.npy": "not a",
    "cut.npz": "not a",
    "cut.exr": "OpenEXR",
    "missing.npy": "no such file",
    ".": "directory",
  }
  for file, message in cases.items():
    with pytest.raises(InputError, match=message):
      pointmaps.read_pointmap(tmp_path / file)


def test_intrinsics_are_read_from_numbers_and_files(tmp_path):
  (tmp_path / "k.json").write_text(json.dumps({"K": [[50.0, 0, 21], [0, 52, 14], [0, 0, 1]]}))
  (tmp_path / "names.json").write_text(json.dumps(INTRINSICS._asdict()))
  (tmp_path / "k.txt").write_text("50 0 21\n0 52 14\n0 0 1\n")
  for text in ("50,52,21,14", *map(str, tmp_path.iterdir())):
    assert camera_files.parse_intrinsics(text) == INTRINSICS
  for text in ("50,52", "a,b,c,d", "-1,2,3,4", "no_such_file.json", "50,50,nan,3"):
    with pytest.raises(InputError, match="fx"):
      camera_files.parse_intrinsics(text)

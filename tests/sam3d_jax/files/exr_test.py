"""OpenEXR as renderers and cameras write it: the depth or the points are taken, never colours."""

import numpy as np
import OpenEXR
import pytest

from sam3d_jax.errors import InputError
from sam3d_jax.files import camera_files, pointmaps
from sam3d_jax.geometry import cameras

CAMERA = cameras.Camera(50.0, 52.0, 21.0, 14.0, 40, 30)
INTRINSICS = camera_files.Intrinsics(*CAMERA[:4])
ROWS, COLUMNS = np.mgrid[:30, :40].astype(np.float32)
DEPTH = 2 + 0.01 * COLUMNS + 0.02 * ROWS
POINTS = cameras.pointmap_from_depth(DEPTH, CAMERA)
NORMALS = np.dstack([0 * DEPTH, 0 * DEPTH + 0.6, 0 * DEPTH + 0.8])
# the world's z is up, and its origin is not the camera's
WORLD = POINTS[..., [0, 2, 1]] * (1, -1, 1) + (4, 1, 2)
COLOURS = np.random.default_rng(0).random((30, 40, 3))


def channels(prefix: str, letters: str, values: np.ndarray) -> dict[str, np.ndarray]:
  """prefix + letter -> float32 plane."""
  planes = values.reshape(30, 40, -1)
  found = {}
  for i, letter in enumerate(letters):
    found[prefix + letter] = np.ascontiguousarray(planes[..., i], np.float32)
  return found


def write(path, *parts: tuple[str, dict[str, np.ndarray]]) -> None:
  """An OpenEXR file of one or several named parts."""
  made = []
  for name, held in parts:
    header = {"type": OpenEXR.scanlineimage, "compression": OpenEXR.ZIP_COMPRESSION}
    made.append(OpenEXR.Part(header, held, name))
  OpenEXR.File(made).write(str(path))


RGBA = channels("", "RGBA", np.dstack([COLOURS, np.ones_like(DEPTH)]))
COMBINED = channels("ViewLayer.Combined.", "RGBA", np.dstack([COLOURS, np.ones_like(DEPTH)]))
NAMED_NORMALS = channels("ViewLayer.Normal.", "XYZ", NORMALS)
Z = channels("", "Z", DEPTH)
LAYER_Z = channels("ViewLayer.Depth.", "Z", DEPTH)
GREY = np.dstack([DEPTH] * 3)
READ = {
  "z": Z,
  "single channel of any name": {"distance": DEPTH},
  "colours and z": RGBA | Z,
  "multilayer": COMBINED | LAYER_Z,
  "normals and z": NAMED_NORMALS | LAYER_Z,
  "all passes": COMBINED | NAMED_NORMALS | LAYER_Z | channels("ViewLayer.Mist.", "Z", DEPTH / 9),
  "depth layer of another letter": COMBINED | channels("ViewLayer.Depth.", "V", DEPTH),
  "grey as colours": channels("", "RGB", GREY),
  "grey as colours with alpha": RGBA | channels("", "RGB", GREY),
  "grey depth layer": RGBA | channels("Z Depth.", "RGB", GREY),
  "points": channels("", "XYZ", POINTS),
  "points beside colours": RGBA | channels("", "XYZ", POINTS),
  "points of a layer": COMBINED | channels("ViewLayer.Position.", "XYZ", POINTS),
  "points named as colours": channels("", "RGB", POINTS),
}


@pytest.mark.parametrize("form", READ)
def test_depth_and_points_are_found_among_other_channels(tmp_path, form):
  write(tmp_path / "d.exr", ("all", READ[form]))
  found = pointmaps.read_pointmap(tmp_path / "d.exr", intrinsics=INTRINSICS)
  np.testing.assert_allclose(found.points_HW3, POINTS, atol=1e-5)


def test_depth_is_found_in_any_part(tmp_path):
  write(tmp_path / "d.exr", ("rgba", RGBA), ("depth", Z))
  found = pointmaps.read_pointmap(tmp_path / "d.exr", intrinsics=INTRINSICS)
  np.testing.assert_allclose(found.points_HW3, POINTS, atol=1e-5)


UNCLEAR = {
  "colours": (channels("", "RGB", COLOURS), "colours"),
  "colours with alpha": (RGBA, "colours"),
  "colours of a layer": (COMBINED, "none is known"),
  "grey of a layer of colours": (channels("ViewLayer.Combined.", "RGB", GREY), "none is known"),
  "normals": (NAMED_NORMALS, "none is known"),
  "normals without a layer": (channels("", "XYZ", NORMALS), "length 1"),
  "normals of other lengths": (channels("", "XYZ", NORMALS * 0.7), "points of the world"),
  "colours and normals": (RGBA | NAMED_NORMALS, "none is known"),
  "points of the world": (channels("Position.", "XYZ", WORLD), "points of the world"),
  "two depths": (LAYER_Z | channels("right.", "Z", DEPTH), "may be meant"),
  "depth and points": (LAYER_Z | channels("P.", "XYZ", POINTS), "may be meant"),
  "mist": (channels("ViewLayer.Mist.", "Z", DEPTH), "none is known"),
}


@pytest.mark.parametrize("form", UNCLEAR)
def test_where_it_is_not_clear_all_channels_are_listed_with_the_flag(tmp_path, form):
  held, message = UNCLEAR[form]
  write(tmp_path / "d.exr", ("all", held))
  with pytest.raises(InputError, match=f"d.exr.*{message}.*--pointmap_channels") as error:
    pointmaps.read_pointmap(tmp_path / "d.exr", intrinsics=INTRINSICS)
  for name in held:
    assert name in str(error.value) or name.endswith("A")


def test_the_user_chooses_by_whole_names(tmp_path):
  path = tmp_path / "d.exr"
  points = channels("P.", "XYZ", POINTS)
  write(path, ("all", points | LAYER_Z | channels("right.", "Z", DEPTH + 1)))
  for chosen in (["ViewLayer.Depth.Z"], list(points)):
    found = pointmaps.read_pointmap(path, intrinsics=INTRINSICS, channels=chosen)
    np.testing.assert_allclose(found.points_HW3, POINTS, atol=1e-5)
  for chosen, message in (
    (["Depth.Z"], "none is named Depth.Z"),
    (["P.X", "P.Y"], "2 were chosen"),
  ):
    with pytest.raises(InputError, match=f"{message}.*ViewLayer.Depth.Z|ViewLayer.*{message}"):
      pointmaps.read_pointmap(path, channels=chosen)

  np.save(tmp_path / "p.npy", POINTS)
  with pytest.raises(InputError, match="leave --pointmap_channels Z out"):
    pointmaps.read_pointmap(tmp_path / "p.npy", channels=["Z"])

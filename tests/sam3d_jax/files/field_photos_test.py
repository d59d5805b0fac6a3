"""Photos, point maps and intrinsics of the kinds that public reports told of, each with what is
right for it. The inputs lie in the shared folder; laws that need none of them are tested beside.
"""

import numpy as np
import pytest

from launch import sample
from launch.photos import jobs


def read(folder, *, intrinsics: str, pointmap: str):
  """The photo of a folder with the mask cup.png and a point map."""
  job = jobs.Job(
    "photo",
    folder / "photo.png",
    folder,
    masks=(folder / "cup.png",),
    pointmap=folder / pointmap,
    intrinsics=intrinsics,
  )
  return jobs.read(job)


@pytest.mark.parametrize(
  "case", ["exr_z_only", "exr_rgbaz", "exr_multilayer", "exr_normals_depth", "exr_rgb_equal"]
)
def test_depth_beside_other_channels_is_1_5_under_the_mask(field_dir, case):
  folder = field_dir / "exr-channels" / case
  photo = read(folder, intrinsics="120,120,64,48", pointmap="depth.exr")
  depth = photo.pointmap_HW3[photo.masks["cup"]][:, 2]
  assert np.median(depth) == 1.5


@pytest.mark.parametrize(
  "file", ["right.txt", "k_with_size.json", "nerfstudio.json", "record3d.json"]
)
def test_intrinsics_of_the_photo_are_scaled_to_its_depth_map(field_dir, file):
  folder = field_dir / "depth-intrinsics" / "depth_stray"
  photo = read(folder, intrinsics=str(folder / file), pointmap="depth.png")
  np.testing.assert_allclose(photo.pointmap_camera, (53.333, 53.333, 32, 24, 64, 48), atol=1e-3)
  np.testing.assert_allclose(photo.camera, (400, 400, 240, 180, 480, 360), atol=1e-2)


@pytest.mark.parametrize(
  "file, message",
  [
    ("camera_matrix.csv", "the principal point cx, cy = 240, 180 lies outside the picture of 64 x"),
    ("opencv.json", "distortion_coefficients = -0.3, 0.1, 0, 0, 0 is lens distortion"),
  ],
)
def test_intrinsics_of_another_picture_or_lens_are_refused(
  field_dir, tmp_path, capsys, file, message
):
  folder = field_dir / "depth-intrinsics" / "depth_stray"
  flags = ["--image", str(folder / "photo.png"), "--mask", str(folder / "cup.png")]
  flags += ["--pointmap", str(folder / "depth.png"), "--intrinsics", str(folder / file)]
  assert sample.main(["--checkpoint", "unused", *flags, "--out", str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert message in error and file in error

"""The worked example of docs/conventions.md."""

import pathlib
import re

import numpy as np

from sam3d_jax.geometry import cameras, normalisers, pose, rotations, windows


def test_the_worked_example_of_the_documentation_is_right():
  text = (pathlib.Path(__file__).parents[3] / "docs" / "conventions.md").read_text()
  block = re.search(r"```text worked-example\n(.*?)```", text, re.DOTALL)[1]
  stated = {}
  for line in block.splitlines():
    if line.count("=") != 1:
      continue
    name, value = line.split("=")
    numbers = re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", value)
    stated[name.strip()] = np.array([float(number) for number in numbers])

  # what the example starts from
  camera = cameras.Camera(*stated["camera fx fy cx cy width height"])
  camera = camera._replace(width=int(camera.width), height=int(camera.height))
  depth = stated["depth map, row by row"].reshape(camera.height, camera.width)
  mask = stated["mask, row by row"].reshape(depth.shape) > 0
  given = pose.Pose(stated["R"].reshape(3, 3), stated["t"], stated["s"])
  point = stated["object point"]

  # what it says of that
  points = cameras.pointmap_from_depth(depth, camera)
  moments = normalisers.ObjectCentric().scale_shift(points, mask)
  latents = pose.encode_latents(given, moments.scale, moments.shift)
  (in_camera,) = pose.transform_points(point[None], given)
  pixel, _ = cameras.project(in_camera, camera)
  computed = {
    "point of the top left pixel": points[0, 0],
    "shift": moments.shift,
    "scale": moments.scale,
    "point in the camera": in_camera,
    "its pixel": pixel,
    "R_rows": given.rotation.T.ravel(),
    "quaternion of R_rows": pose.release_quaternion(given.rotation),
    "quaternion of R": rotations.matrix_to_quaternion(given.rotation),
    "latent translation": latents["translation"][0],
    "latent scale": latents["scale"][0],
    "latent rotation": latents["rotation"][0],
    "latent translation_scale": latents["translation_scale"][0],
    "crop box": np.array(windows.mask_box(mask, 1.2)),
  }
  for name, value in computed.items():
    np.testing.assert_allclose(value, stated[name], atol=6e-5, err_msg=name)

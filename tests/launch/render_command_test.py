"""launch.render: pictures, turntables and depth of splats and meshes; what it refuses."""

import json

import numpy as np
from PIL import Image
import pytest
import trimesh

from launch import render
from launch.performance import rendering
from sam3d_jax.errors import InputNote
from sam3d_jax.files import splat_files
from sam3d_jax.render.splats import Splats


def write_camera(path, *, size=(48, 40), distance=2.0, **changed):
  """OpenCV: the input's x to the right, y down, z away."""
  matrix = np.eye(4)
  matrix[2, 3] = distance
  width, height = size
  camera = {"width": width, "height": height, "fx": 50.0, "fy": 50.0, "cx": 20.5, "cy": 16.5}
  stated = camera | {"world_to_camera": matrix.tolist()} | changed
  path.write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """One red splat in the middle, a box, a mesh of points alone."""
  folder = tmp_path_factory.mktemp("inputs")
  splat = Splats(
    centres_N3=np.zeros((1, 3)),
    scales_N3=np.full((1, 3), 0.1),
    rotations_N4=np.array([[1.0, 0, 0, 0]]),
    opacities_N=np.array([0.9]),
    colours_N3=np.array([[1.0, 0, 0]]),
  )
  splat_files.write(folder / "one.ply", splat)
  trimesh.creation.box(extents=(1, 0.5, 0.25)).export(folder / "box.glb")
  trimesh.PointCloud(np.eye(3)).export(folder / "points.ply")
  (folder / "result").mkdir()
  trimesh.creation.box().export(folder / "result" / "scene.glb")
  write_camera(folder / "camera.json")
  return folder


def picture(path):
  return np.asarray(Image.open(path).convert("RGB"))


def test_splats_are_drawn_where_a_camera_file_says(folder, tmp_path):
  words = ["--input", str(folder / "one.ply"), "--camera", str(folder / "camera.json")]
  out, depth = tmp_path / "a.png", tmp_path / "a.npy"
  words += [
    "--out",
    str(out),
    "--depth",
    str(depth),
    "--background",
    "0,0,255",
    "--kernel",
    "classic",
  ]
  assert render.main(words) == 0
  rgb = picture(out)
  assert rgb.shape == (40, 48, 3)
  # The principal point is the centre of this pixel.
  assert rgb[16, 20].tolist() == pytest.approx([0.9 * 255, 0, 0.1 * 255], abs=1)
  assert tuple(rgb[0, 0]) == (0, 0, 255)
  depth = np.load(depth)
  assert depth.dtype == np.float32
  np.testing.assert_allclose(depth[16, 20], 2.0, rtol=1e-5)
  assert np.isnan(depth[0, 0])


def test_meshes_are_cast_in_their_files_coordinates(folder, tmp_path):
  words = ["--input", str(folder / "box.glb"), "--camera", str(folder / "camera.json")]
  depth = tmp_path / "a.npy"
  assert render.main([*words, "--out", str(tmp_path / "a.png"), "--depth", str(depth)]) == 0
  seen = np.isfinite(np.load(depth))
  # 1 x 0.5 at 1.875 before a focal length of 50 pixels.
  columns, rows = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
  assert (columns[0], columns[-1]) == (7, 33)
  assert (rows[0], rows[-1]) == (10, 22)
  np.testing.assert_allclose(np.load(depth)[seen], 1.875, rtol=1e-5)


def test_a_turntable_sees_all_of_it_from_all_sides(folder, tmp_path):
  out = tmp_path / "turn.webp"
  words = ["--input", str(folder / "result"), "--out", str(out), "--frames", "3"]
  assert render.main([*words, "--width", "40", "--height", "30", "--azimuth", "10"]) == 0
  frames = Image.open(out)
  assert (frames.n_frames, frames.size) == (3, (40, 30))
  seen = []
  for number in range(3):
    frames.seek(number)
    seen.append(np.asarray(frames.convert("RGB")).astype(int))
    bright = seen[-1].sum(-1) > 60
    assert bright[15, 20]
    border = np.concatenate([bright[[0, -1]].ravel(), bright[:, [0, -1]].ravel()])
    assert not border.any()
  assert np.abs(seen[0] - seen[1]).max() > 20


def test_pairs_without_room_are_drawn_in_a_second_go(tmp_path):
  # Every splat covers every tile: 6 400 pairs, where there is room for 4 096 at first.
  splats = rendering.made_up(100)
  wide = splats._replace(
    scales_N3=np.full((100, 3), 5.0),
    opacities_N=np.full(100, 0.01),
    colours_N3=np.zeros((100, 3)),
  )
  splat_files.write(tmp_path / "wide.ply", wide)
  camera = write_camera(tmp_path / "camera.json", size=(128, 128), distance=3.0)
  words = ["--input", str(tmp_path / "wide.ply"), "--camera", str(camera)]
  assert render.main([*words, "--out", str(tmp_path / "a.png"), "--background", "1,1,1"]) == 0
  light = picture(tmp_path / "a.png")[16, 20].mean() / 255
  assert light == pytest.approx(0.99**100, abs=0.02)


def test_broken_splats_are_left_out_and_told_of(tmp_path):
  splats = rendering.made_up(100)
  splat_files.write(tmp_path / "some.ply", splats)
  data = bytearray((tmp_path / "some.ply").read_bytes())
  # The x of the last splat, of 17 numbers.
  data[-68:-64] = np.float32(np.nan).tobytes()
  (tmp_path / "some.ply").write_bytes(data)
  camera = write_camera(tmp_path / "camera.json", size=(128, 128), distance=3.0)
  words = ["--input", str(tmp_path / "some.ply"), "--camera", str(camera)]
  words += ["--out", str(tmp_path / "a.png"), "--background", "1,1,1"]
  with pytest.warns(InputNote, match="1 splats hold NaN or infinity"):
    assert render.main(words) == 0


def test_a_dry_run_says_what_would_be_drawn(folder, tmp_path, capsys):
  words = ["--input", str(folder / "one.ply"), "--out", str(tmp_path / "a.gif"), "--frames", "5"]
  assert render.main([*words, "--dry_run"]) == 0
  assert "1 splats, kernel mip, 512 x 512 pixels, 5 frames" in capsys.readouterr().out
  assert not list(tmp_path.iterdir())


def not_a_rotation():
  matrix = 2 * np.eye(4)
  matrix[3, 3] = 1
  return matrix.tolist()


@pytest.mark.parametrize(
  "words, said",
  (
    ("--input {in}/nothing.ply", "no such file or folder"),
    ("--input {in}", "a folder without scene.ply or scene.glb"),
    ("--input {in}/points.ply", "neither faces nor splats"),
    ("--input {in}/camera.json", "unknown mesh format"),
    ("--out a.tiff", "a picture is written as .png, .webp, .jpg"),
    ("--out a.png --frames 2", "a turntable is written as .webp, .gif, .mp4"),
    ("--out /proc/a.png", "is no folder that you may write to"),
    ("--depth a.png", "depth is written as .npy"),
    ("--depth a.npy --frames 2 --out a.gif", "--depth is that of one picture"),
    ("--camera {in}/camera.json --frames 2 --out a.gif", "give it without --camera"),
    ("--camera {in}/none.json", "no such file"),
    ("--camera {in}/camera.json --width 10 --height 40", "has another aspect"),
    ("--background white", "give r,g,b in 0..1 or in 0..255"),
    ("--width 0", "--width 0: give 1 to 16384 pixels"),
    ("--fov 190", "--fov 190: give degrees between 0 and 170"),
    ("--near -1", "--near -1 is negative"),
  ),
)
def test_what_cannot_be_drawn_ends_with_code_2(folder, tmp_path, monkeypatch, words, said, capsys):
  monkeypatch.chdir(tmp_path)
  given = {"--input": str(folder / "one.ply"), "--out": "out.png"}
  listed = words.replace("{in}", str(folder)).split()
  given |= dict(zip(listed[::2], listed[1::2], strict=True))
  assert render.main([word for pair in given.items() for word in pair]) == 2
  assert said in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "changed, said",
  (
    ({"world_to_camera": None}, "has no world_to_camera"),
    ({"world_to_camera": [[1, 0], [0, 1]]}, "has shape (2, 2), 4 x 4 is needed"),
    ({"world_to_camera": "x"}, "is no matrix of numbers"),
    ({"world_to_camera": np.eye(4)[::-1].tolist()}, "the last row of world_to_camera"),
    ({"world_to_camera": not_a_rotation()}, "is no rotation"),
    ({"fx": None}, "has no fx"),
    ({"fx": -1.0}, "positive fx and fy"),
    ({"width": None, "height": None}, "states no width and height"),
    ({"k1": 0.1}, "lens distortion"),
  ),
)
def test_camera_files_that_say_too_little_are_named(folder, tmp_path, changed, said, capsys):
  camera = write_camera(tmp_path / "c.json", **changed)
  words = ["--input", str(folder / "one.ply"), "--out", str(tmp_path / "a.png")]
  assert render.main([*words, "--camera", str(camera)]) == 2
  message = capsys.readouterr().err
  assert "c.json" in message
  assert said in message


def test_a_camera_within_a_mesh_is_refused(folder, tmp_path, capsys):
  camera = write_camera(tmp_path / "c.json", distance=0.05)
  words = ["--input", str(folder / "box.glb"), "--out", str(tmp_path / "a.png")]
  assert render.main([*words, "--camera", str(camera)]) == 2
  assert "behind the camera" in capsys.readouterr().err

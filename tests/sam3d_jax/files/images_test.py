"""Photos as users bring them: converted as documented, or refused by name with the fix."""

import io
import pathlib
import subprocess

import numpy as np
from PIL import Image, features
import pytest

from launch.photos import jobs
from sam3d_jax.errors import InputError
from sam3d_jax.files import images, pointmaps

SIZE = (40, 60)


def colours() -> np.ndarray:
  """(H, W, 3) uint8 noise."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
  "mode, suffix",
  [("RGB", "png"), ("CMYK", "tiff"), ("P", "png"), ("L", "png"), ("RGBA", "png"), ("1", "png")],
)
def test_photos_of_every_mode_become_eight_bit_rgb(tmp_path, mode, suffix):
  Image.fromarray(colours()).convert(mode).save(tmp_path / f"p.{suffix}")
  image, alpha = images.read_image(tmp_path / f"p.{suffix}")
  assert image.shape == (*SIZE, 3)
  assert image.dtype == np.uint8
  assert image.std() > 10
  # opaque alpha is none
  assert alpha is None


@pytest.mark.parametrize(
  "values",
  [np.linspace(0, 65535, 2400).astype(np.uint16), np.linspace(0, 1, 2400).astype(np.float32)],
)
def test_deep_grey_photos_keep_their_range(tmp_path, values):
  Image.fromarray(values.reshape(SIZE)).save(tmp_path / "p.tiff")
  image, _ = images.read_image(tmp_path / "p.tiff")
  first_channel = image[..., 0].ravel()
  np.testing.assert_allclose(first_channel, np.linspace(0, 255, 2400), atol=1)


def test_the_exif_orientation_is_applied(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by 90 degrees
  Image.fromarray(colours()).save(tmp_path / "p.png", exif=exif)
  image, _ = images.read_image(tmp_path / "p.png")
  np.testing.assert_array_equal(image, np.rot90(colours(), -1))


def test_animations_and_tiny_and_huge_photos_are_refused(tmp_path, monkeypatch):
  first = Image.fromarray(colours())
  second = Image.fromarray(255 - colours())
  for name in ("a.gif", "a.webp", "a.tiff"):
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with pytest.raises(InputError, match="animated or has pages"):
      images.read_image(tmp_path / name)
  Image.fromarray(colours()[:1, :1]).save(tmp_path / "dot.png")
  with pytest.raises(InputError, match="1 x 1"):
    images.read_image(tmp_path / "dot.png")
  first.save(tmp_path / "p.png")
  monkeypatch.setattr(images, "MAX_PIXELS", 1000)
  with pytest.raises(InputError, match="make it smaller"):
    images.read_image(tmp_path / "p.png")


def test_photos_behind_a_pillow_warning_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow warns above it
  Image.fromarray(colours()).save(tmp_path / "p.png")
  image, _ = images.read_image(tmp_path / "p.png")
  assert image.shape == (*SIZE, 3)


@pytest.mark.parametrize(
  "image, mask, message",
  [
    ("image_ok.jpg", "mask_wrong_size.png", "97 x 61"),
    ("image_ok.jpg", "mask_all_zero.png", "is empty"),
    ("image_ok.jpg", "mask_all_one.png", "whole photo"),
    ("image_ok.jpg", "mask_1x1.png", "1 x 1"),
    ("image_1x1.png", "mask_1x1.png", "1 x 1"),
    ("image_corrupt.png", "mask_ok.png", "cannot be decoded"),
    ("image_rgba.png", None, "alpha channel"),
    ("image_ok.jpg", None, "--mask"),
    ("image_16bit_rgb.png", "mask_ok.png", None),
    ("image_16bit_gray.png", "mask_ok.png", None),
    ("image_cmyk.jpg", "mask_ok.png", None),
    ("image_rgba.png", "mask_ok.png", None),
  ],
)
def test_the_collected_bad_files_are_refused_or_converted(
  shared_dir, tmp_path, image, mask, message
):
  bad = shared_dir / "data" / "bad"
  job = jobs.Job("photo", bad / image, tmp_path, (bad / mask,) if mask else ())
  if message is None:
    assert jobs.read(job).image_HW3.dtype == np.uint8
    return
  with pytest.raises(InputError, match=message) as error:
    jobs.read(job)
  assert image in str(error.value) or mask in str(error.value)


def test_avif_is_read_as_any_photo(tmp_path):
  if not features.check("avif"):
    pytest.skip("this Pillow reads no AVIF")
  Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(tmp_path / "p.avif", quality=100)
  image, _ = images.read_image(tmp_path / "p.avif")
  np.testing.assert_allclose(image, 90, atol=2)


def test_heic_is_read_with_its_plug_in(tmp_path):
  pillow_heif = pytest.importorskip("pillow_heif")
  pillow_heif.register_heif_opener()
  _, columns = np.indices(SIZE)
  smooth = columns.astype(np.uint8)
  photo = Image.fromarray(smooth).convert("RGB")
  photo.save(tmp_path / "p.heic", quality=100)
  image, _ = images.read_image(tmp_path / "p.heic")
  np.testing.assert_allclose(image[..., 1], smooth, atol=4)


HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(200)


@pytest.mark.parametrize(
  "file, content, message",
  [
    ("p.heic", HEIC, "pip install -r requirements-heif.txt"),
    ("renamed.jpg", HEIC, "pip install -r requirements-heif.txt"),
    ("p.HEIF", b"cut", "pip install -r requirements-heif.txt"),
    ("p.avif", HEIC.replace(b"heic", b"avif"), "cannot be decoded|pillow>=11.3"),
    ("p.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "PostScript"),
    ("p.nef", b"raw", "develop it"),
    ("p.jxl", b"\xff\x0a" + bytes(30), "JPEG XL"),
    ("p.png", b"text", "not an image in a known format"),
  ],
)
def test_what_is_no_readable_picture_is_named_with_the_remedy(
  tmp_path, monkeypatch, file, content, message
):
  monkeypatch.setattr(images, "register_heif", lambda: False)
  (tmp_path / file).write_bytes(content)
  with pytest.raises(InputError, match=f"photo .*{file}: .*({message})"):
    images.read_image(tmp_path / file)


def test_no_picture_starts_a_program(tmp_path, monkeypatch, hostile_dir):
  def started(*_, **__):
    raise AssertionError("a program was started")

  monkeypatch.setattr(subprocess, "Popen", started)
  monkeypatch.setattr(subprocess, "check_call", started)
  for read in (images.read_image, pointmaps.read_pointmap):
    with pytest.raises(InputError, match=r"photo\.jpg"):
      read(hostile_dir / "eps_as_photo" / "photo.jpg")


@pytest.mark.parametrize("form", ["EPS", "WMF", "FITS", "BUFR", "HDF5", "MPEG"])
def test_only_formats_of_pictures_are_decoded(form):
  assert form not in images.formats()


def test_every_reader_of_pictures_states_its_formats():
  root = pathlib.Path(images.__file__).parents[2]
  folders = [root / name for name in ("sam3d_jax", "data_pipelines", "launch")]
  for path in (file for folder in folders for file in folder.rglob("*.py")):
    for line in path.read_text().splitlines():
      if "Image.open(" in line:
        assert "formats=" in line, (path, line)


def test_a_picture_in_memory_is_measured_before_it_is_decoded():
  buffer = io.BytesIO()
  Image.new("1", (4000, 4000)).save(buffer, "PNG")
  with pytest.raises(ValueError, match="4000 x 4000 pixels"):
    images.open_bytes(buffer.getvalue(), most=1_000_000)
  assert images.open_bytes(buffer.getvalue()).size == (4000, 4000)


@pytest.mark.parametrize("top", [200, 60_000])
def test_bands_of_a_large_grey_photo_make_the_whole(monkeypatch, top):
  values = np.random.default_rng(0).integers(0, top, (37, 41)).astype(np.int32)
  whole = np.asarray(images.to_eight_bit(Image.fromarray(values)))
  monkeypatch.setattr(images, "BAND", 100)
  np.testing.assert_array_equal(images.to_eight_bit(Image.fromarray(values)), whole)

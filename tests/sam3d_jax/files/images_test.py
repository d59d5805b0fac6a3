"""Photos, masks and label maps as users bring them: converted as documented, or refused by name
with the fix.
"""

import errno
import subprocess
import warnings

import numpy as np
from PIL import Image, features
import pytest

from launch.photos import jobs
from sam3d_jax.errors import InputError, InputNote
from sam3d_jax.files import images, photos, pointmaps

SIZE = (40, 60)


def box_mask() -> np.ndarray:
  mask = np.zeros(SIZE, bool)
  mask[10:30, 20:45] = True
  return mask


def palette_image(index: np.ndarray, colours: list[int]) -> Image.Image:
  image = Image.fromarray(index.astype(np.uint8), mode="P")
  image.putpalette(colours)
  return image


def soft(mask: np.ndarray) -> np.ndarray:
  """The mask as 8-bit grey with a ramp just outside its edges."""
  from scipy import ndimage

  outside = ndimage.distance_transform_edt(~mask)
  return np.clip(255 - 60 * outside, 0, 255).astype(np.uint8)


MASKS = {
  "grey": lambda m: Image.fromarray(m.astype(np.uint8) * 255),
  "zero_one": lambda m: Image.fromarray(m.astype(np.uint8)),
  "one_bit": lambda m: Image.fromarray(m),
  "sixteen_bit": lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
  "float": lambda m: Image.fromarray(m.astype(np.float32)),
  # a dark colour is object all the same
  "palette": lambda m: palette_image(m, [0, 0, 0, 10, 0, 0]),
  "rgb": lambda m: Image.fromarray(np.repeat(m[..., None], 3, -1).astype(np.uint8) * 255),
  "alpha": lambda m: Image.fromarray(
    np.dstack([np.full((*m.shape, 3), 9), m * 255]).astype(np.uint8)
  ),
  "opaque_alpha": lambda m: Image.fromarray(
    np.dstack([np.repeat(m[..., None], 3, -1) * 255, np.full(m.shape, 255)]).astype(np.uint8)
  ),
  "grey_alpha": lambda m: Image.fromarray(
    np.dstack([np.full(m.shape, 9), m * 255]).astype(np.uint8)
  ),
}


@pytest.mark.parametrize("form", MASKS)
def test_every_form_of_a_mask_is_read(tmp_path, form):
  path = tmp_path / ("mask.tiff" if form == "float" else "mask.png")
  MASKS[form](box_mask()).save(path)
  np.testing.assert_array_equal(images.read_mask(path, SIZE), box_mask())


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, np.int64])
def test_arrays_are_masks_too(tmp_path, dtype):
  np.save(tmp_path / "m.npy", box_mask()[None].astype(dtype))
  np.testing.assert_array_equal(images.read_mask(tmp_path / "m.npy", SIZE), box_mask())


def test_soft_edges_are_cut_at_half(tmp_path):
  Image.fromarray(soft(box_mask())).save(tmp_path / "m.png")
  mask = images.read_mask(tmp_path / "m.png", SIZE)
  assert mask[box_mask()].all() and mask[9, 30] and not mask[6, 30]


@pytest.mark.parametrize(
  "make, message",
  [
    (
      lambda: palette_image(
        np.arange(2400).reshape(SIZE) % 4, [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]
      ),
      "--labels",
    ),
    (lambda: Image.fromarray((np.arange(2400).reshape(SIZE) % 4).astype(np.uint8)), "--labels"),
    (
      lambda: Image.fromarray(np.tile(np.linspace(0, 255, 60), (40, 1)).astype(np.uint8)),
      "soft edges",
    ),
    (lambda: Image.fromarray(np.full(SIZE, -1, np.int32)), "negative"),
    (lambda: Image.fromarray(np.full(SIZE, np.nan, np.float32)), "not finite"),
    (lambda: Image.fromarray(np.zeros(SIZE[::-1], np.uint8)), "EXIF"),
    (lambda: Image.fromarray(np.zeros((7, 9), np.uint8)), "9 x 7"),
  ],
)
def test_what_is_not_the_mask_of_one_object_is_refused(tmp_path, make, message):
  make().save(tmp_path / "mask.tiff")
  with pytest.raises(InputError, match=message) as error:
    images.read_mask(tmp_path / "mask.tiff", SIZE)
  assert "mask.tiff" in str(error.value)


def labels() -> np.ndarray:
  ids = np.zeros(SIZE, np.int64)
  ids[5:15, 5:20], ids[20:35, 30:50], ids[0, 0] = 300, 7, 9  # 9 is a crumb
  return ids


@pytest.mark.parametrize("form", ["sixteen_bit.png", "array.npy", "colour.png"])
def test_every_id_of_a_label_map_is_an_object(tmp_path, form):
  ids, path = labels(), tmp_path / form
  if form == "array.npy":
    np.save(path, ids)
  elif form == "colour.png":
    Image.fromarray(np.dstack([ids % 256, ids // 256, ids * 0]).astype(np.uint8)).save(path)
  else:
    Image.fromarray(ids.astype(np.uint16)).save(path)
  found = images.read_labels(path, SIZE)
  assert list(found) == ["id_7", "id_300"] and found["id_300"].sum() == 150
  assert list(images.read_labels(path, SIZE, [300])) == ["id_300"]
  for ids, message in (([8], "no id 8; it has 7, 9, 300"), ([9], "id_9 spans 1 x 1")):
    with pytest.raises(InputError, match=message):
      images.read_labels(path, SIZE, ids)


def test_palette_indices_are_ids_and_lossy_label_maps_are_refused(tmp_path):
  palette_image(
    np.where(labels() == 300, 2, labels() == 7), [0, 0, 0, 255, 255, 255, 255, 255, 255]
  ).save(tmp_path / "l.png")
  assert list(images.read_labels(tmp_path / "l.png", SIZE)) == ["id_1", "id_2"]
  Image.fromarray((labels() % 256).astype(np.uint8)).save(tmp_path / "l.jpg")
  with pytest.raises(InputError, match="JPEG"):
    images.read_labels(tmp_path / "l.jpg", SIZE)


def colours() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
  "mode, suffix",
  [("RGB", "png"), ("CMYK", "tiff"), ("P", "png"), ("L", "png"), ("RGBA", "png"), ("1", "png")],
)
def test_photos_of_every_mode_become_eight_bit_rgb(tmp_path, mode, suffix):
  Image.fromarray(colours()).convert(mode).save(tmp_path / f"p.{suffix}")
  image, alpha = images.read_image(tmp_path / f"p.{suffix}")
  # opaque alpha is none
  assert (
    image.shape == (*SIZE, 3) and image.dtype == np.uint8 and alpha is None and image.std() > 10
  )


@pytest.mark.parametrize(
  "values",
  [np.linspace(0, 65535, 2400).astype(np.uint16), np.linspace(0, 1, 2400).astype(np.float32)],
)
def test_deep_grey_photos_keep_their_range(tmp_path, values):
  Image.fromarray(values.reshape(SIZE)).save(tmp_path / "p.tiff")
  image, _ = images.read_image(tmp_path / "p.tiff")
  np.testing.assert_allclose(image[..., 0].ravel(), np.linspace(0, 255, 2400), atol=1)


def test_the_exif_orientation_is_applied(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by 90 degrees
  Image.fromarray(colours()).save(tmp_path / "p.png", exif=exif)
  np.testing.assert_array_equal(images.read_image(tmp_path / "p.png")[0], np.rot90(colours(), -1))


def test_animations_and_tiny_and_huge_photos_are_refused(tmp_path, monkeypatch):
  frames = [Image.fromarray(colours()), Image.fromarray(255 - colours())]
  for name in ("a.gif", "a.webp", "a.tiff"):
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="animated or has pages"):
      images.read_image(tmp_path / name)
  Image.fromarray(colours()[:1, :1]).save(tmp_path / "dot.png")
  with pytest.raises(InputError, match="1 x 1"):
    images.read_image(tmp_path / "dot.png")
  frames[0].save(tmp_path / "p.png")
  monkeypatch.setattr(images, "MAX_PIXELS", 1000)
  with pytest.raises(InputError, match="make it smaller"):
    images.read_image(tmp_path / "p.png")


def test_photos_behind_a_pillow_warning_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow warns above it
  Image.fromarray(colours()).save(tmp_path / "p.png")
  assert images.read_image(tmp_path / "p.png")[0].shape == (*SIZE, 3)


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


ORIENTATIONS = (2, 3, 4, 5, 6, 7, 8)


def oriented(values: np.ndarray, orientation: int | None, path) -> None:
  """Saves pixels as they lie in the file, with an EXIF orientation."""
  exif = Image.Exif()
  if orientation is not None:
    exif[images.ORIENTATION_TAG] = orientation
  Image.fromarray(values).save(path, exif=exif)


def corner_mask(size: tuple[int, int] = SIZE) -> np.ndarray:
  """A mask that no turn and no mirror leaves as it is."""
  mask = np.zeros(size, np.uint8)
  mask[4:9, 3:30] = 255
  mask[9:20, 3:8] = 255
  return mask


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_are_turned_as_pillow_turns_them(tmp_path, orientation):
  oriented(corner_mask(), orientation, tmp_path / "p.png")
  upright = np.asarray(images.open_image(tmp_path / "p.png", "photo"))
  np.testing.assert_array_equal(images.TURNS[orientation](corner_mask()), upright)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_photos_of_every_format_state_how_their_pixels_lie(tmp_path, suffix):
  for orientation in (None, *ORIENTATIONS):
    oriented(corner_mask(), orientation, tmp_path / f"p.{suffix}")
    photo = photos.read_photo(tmp_path / f"p.{suffix}")
    assert photo.orientation == (orientation or 1)
    is_sideways = orientation in images.SIDEWAYS
    assert photo.size == (SIZE[::-1] if is_sideways else SIZE)
    if suffix in ("png", "tiff"):
      turn = images.TURNS.get(orientation, np.asarray)
      np.testing.assert_array_equal(photo.image_HW3[..., 0], turn(corner_mask()))


@pytest.mark.parametrize("form", ["mask.png", "mask.npy", "labels.png"])
@pytest.mark.parametrize("orientation", images.SIDEWAYS)
def test_a_mask_as_the_sensor_saw_it_is_turned_with_its_photo(tmp_path, orientation, form):
  oriented(colours(), orientation, tmp_path / "p.jpg")
  photo = photos.read_photo(tmp_path / "p.jpg")
  if form == "mask.npy":
    np.save(tmp_path / form, corner_mask())
  else:
    Image.fromarray(corner_mask()).save(tmp_path / form)
  with pytest.warns(InputNote, match=f"{form} .*orientation {orientation}"):
    if form == "labels.png":
      found = photo.with_labels(tmp_path / form).masks["id_255"]
    else:
      found = photo.read_mask(tmp_path / form)
  expected = images.TURNS[orientation](corner_mask()) > 0
  np.testing.assert_array_equal(found, expected)

  # an upright one stays as it is, without a word
  np.save(tmp_path / "upright.npy", expected)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    np.testing.assert_array_equal(photo.read_mask(tmp_path / "upright.npy"), expected)


@pytest.mark.parametrize("orientation, size", [(3, SIZE), (2, SIZE), (4, SIZE), (6, (40, 40))])
def test_where_sizes_do_not_tell_how_a_mask_lies_the_flag_does(tmp_path, orientation, size):
  path = tmp_path / "p.jpg"
  oriented(colours()[: size[0], : size[1]], orientation, path)
  mask = corner_mask(size)
  Image.fromarray(mask).save(tmp_path / "m.png")
  with pytest.raises(InputError, match="m.png: .*--mask_orientation upright, or stored"):
    photos.read_photo(path).read_mask(tmp_path / "m.png")

  upright = photos.read_photo(path, mask_orientation="upright")
  np.testing.assert_array_equal(upright.read_mask(tmp_path / "m.png"), mask > 0)
  stored = photos.read_photo(path, mask_orientation="stored")
  turned = images.TURNS[orientation](mask) > 0
  np.testing.assert_array_equal(stored.read_mask(tmp_path / "m.png"), turned)

  # a mask that states its own orientation, or looks the same either way, needs no flag
  oriented(mask, orientation, tmp_path / "own.png")
  np.testing.assert_array_equal(photos.read_photo(path).read_mask(tmp_path / "own.png"), turned)
  same = np.zeros(size, np.uint8)
  same[10:-10, 10:-10] = 1
  Image.fromarray(same).save(tmp_path / "same.png")
  np.testing.assert_array_equal(photos.read_photo(path).read_mask(tmp_path / "same.png"), same > 0)


def test_avif_is_read_as_any_photo(tmp_path):
  if not features.check("avif"):
    pytest.skip("this Pillow reads no AVIF")
  Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(tmp_path / "p.avif", quality=100)
  image, _ = images.read_image(tmp_path / "p.avif")
  np.testing.assert_allclose(image, 90, atol=2)


def test_heic_is_read_with_its_plug_in(tmp_path):
  pillow_heif = pytest.importorskip("pillow_heif")
  smooth = np.mgrid[: SIZE[0], : SIZE[1]][1].astype(np.uint8)
  pillow_heif.register_heif_opener()
  Image.fromarray(np.repeat(smooth[..., None], 3, -1)).save(tmp_path / "p.heic", quality=100)
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


def test_a_failing_disk_is_no_fault_of_the_input(tmp_path, monkeypatch):
  def failing(*_, **__):
    raise OSError(errno.EIO, "Input/output error")

  np.save(tmp_path / "m.npy", corner_mask())
  Image.fromarray(corner_mask()).save(tmp_path / "m.png")
  monkeypatch.setattr(Image, "open", failing)
  with pytest.raises(OSError, match="Input/output") as error:
    images.read_mask(tmp_path / "m.png", SIZE)
  assert not isinstance(error.value, InputError)
  monkeypatch.setattr(np, "load", failing)
  with pytest.raises(OSError, match="Input/output"):
    images.read_mask(tmp_path / "m.npy", SIZE)


def test_a_label_map_of_many_objects_takes_one_mask_at_a_time(tmp_path):
  ids = np.arange(1, 841, dtype=np.uint16).reshape(28, 30)
  Image.fromarray(np.kron(ids, np.ones((4, 4), np.uint16))).save(tmp_path / "l.png")
  masks = images.read_labels(tmp_path / "l.png", (112, 120))
  assert len(masks) == 840 and list(masks)[0] == "id_1"
  assert masks["id_31"].sum() == 16 and masks["id_31"] is not masks["id_31"]


def test_the_collected_label_map_of_many_objects_is_read(hostile_dir):
  path = hostile_dir / "labels_900_objects" / "labels.png"
  with Image.open(path) as image:
    width, height = image.size
  assert len(images.read_labels(path, (height, width))) == 839

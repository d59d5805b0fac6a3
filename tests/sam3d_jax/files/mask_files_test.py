"""Masks and label maps as users bring them: read as documented, turned with their photos, or
refused by name with the fix.
"""

import errno
import warnings

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from sam3d_jax.errors import InputError, InputNote
from sam3d_jax.files import images, mask_files, photos

SIZE = (40, 60)


def box_mask() -> np.ndarray:
  mask = np.zeros(SIZE, bool)
  mask[10:30, 20:45] = True
  return mask


def grey(values: np.ndarray, dtype=np.uint8) -> Image.Image:
  """One channel of these numbers."""
  return Image.fromarray(values.astype(dtype))


def stacked(*planes: np.ndarray) -> Image.Image:
  """Channels of 8 bits: L and alpha, RGB, or RGBA."""
  pixels = np.dstack(planes)
  return Image.fromarray(pixels.astype(np.uint8))


def palette_image(index: np.ndarray, colours: list[int]) -> Image.Image:
  image = Image.fromarray(index.astype(np.uint8), mode="P")
  image.putpalette(colours)
  return image


def soft(mask: np.ndarray) -> np.ndarray:
  """The mask as 8-bit grey with a ramp just outside its edges."""
  outside = ndimage.distance_transform_edt(~mask)
  ramp = np.clip(255 - 60 * outside, 0, 255)
  return ramp.astype(np.uint8)


def colours() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


MASK = box_mask()
WHITE = MASK * 255
DULL = np.full(SIZE, 9)
OPAQUE = np.full(SIZE, 255)
MASKS = {
  "grey": grey(WHITE),
  "zero_one": grey(MASK),
  "one_bit": Image.fromarray(MASK),
  "sixteen_bit": grey(MASK * 65535, np.uint16),
  "float": grey(MASK, np.float32),
  # a dark colour is object all the same
  "palette": palette_image(MASK, [0, 0, 0, 10, 0, 0]),
  "rgb": stacked(WHITE, WHITE, WHITE),
  "alpha": stacked(DULL, DULL, DULL, WHITE),
  "opaque_alpha": stacked(WHITE, WHITE, WHITE, OPAQUE),
  "grey_alpha": stacked(DULL, WHITE),
}


@pytest.mark.parametrize("form", MASKS)
def test_every_form_of_a_mask_is_read(tmp_path, form):
  # PNG has no floats
  suffix = ".tiff" if form == "float" else ".png"
  path = tmp_path / f"mask{suffix}"
  MASKS[form].save(path)
  found = mask_files.read_mask(path, SIZE)
  np.testing.assert_array_equal(found, MASK)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, np.int64])
def test_arrays_are_masks_too(tmp_path, dtype):
  path = tmp_path / "m.npy"
  np.save(path, MASK[None].astype(dtype))
  found = mask_files.read_mask(path, SIZE)
  np.testing.assert_array_equal(found, MASK)


def test_soft_edges_are_cut_at_half(tmp_path):
  path = tmp_path / "m.png"
  grey(soft(MASK)).save(path)
  found = mask_files.read_mask(path, SIZE)
  assert found[MASK].all()
  # one pixel outside is brighter than half, four are not
  assert found[9, 30]
  assert not found[6, 30]


FOUR_IDS = np.arange(2400).reshape(SIZE) % 4
RAMP = np.tile(np.linspace(0, 255, 60), (40, 1))
NO_MASKS = {
  "palette of several": (
    palette_image(FOUR_IDS, [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]),
    "--labels",
  ),
  "ids": (grey(FOUR_IDS), "--labels"),
  "ramp": (grey(RAMP), "soft edges"),
  "negative": (grey(np.full(SIZE, -1), np.int32), "negative"),
  "nan": (grey(np.full(SIZE, np.nan), np.float32), "not finite"),
  "on its side": (grey(np.zeros(SIZE[::-1])), "EXIF"),
  "another size": (grey(np.zeros((7, 9))), "9 x 7"),
}


@pytest.mark.parametrize("form", NO_MASKS)
def test_what_is_not_the_mask_of_one_object_is_refused(tmp_path, form):
  image, message = NO_MASKS[form]
  image.save(tmp_path / "mask.tiff")
  with pytest.raises(InputError, match=f"mask.tiff.*{message}"):
    mask_files.read_mask(tmp_path / "mask.tiff", SIZE)


def labels() -> np.ndarray:
  """Two objects and a crumb."""
  ids = np.zeros(SIZE, np.int64)
  ids[5:15, 5:20] = 300
  ids[20:35, 30:50] = 7
  ids[0, 0] = 9
  return ids


@pytest.mark.parametrize("form", ["sixteen_bit.png", "array.npy", "colour.png"])
def test_every_id_of_a_label_map_is_an_object(tmp_path, form):
  ids = labels()
  path = tmp_path / form
  if form == "array.npy":
    np.save(path, ids)
  elif form == "colour.png":
    stacked(ids % 256, ids // 256, 0 * ids).save(path)
  else:
    grey(ids, np.uint16).save(path)

  # all that are large enough, or those that are asked for
  found = mask_files.read_labels(path, SIZE)
  assert list(found) == ["id_7", "id_300"]
  assert found["id_300"].sum() == 150
  chosen = mask_files.read_labels(path, SIZE, [300])
  assert list(chosen) == ["id_300"]
  for asked, message in ((8, "no id 8; it has 7, 9, 300"), (9, "id_9 spans 1 x 1")):
    with pytest.raises(InputError, match=message):
      mask_files.read_labels(path, SIZE, [asked])


def test_palette_indices_are_ids_and_lossy_label_maps_are_refused(tmp_path):
  ids = labels()
  index = np.where(ids == 300, 2, ids == 7)
  white = [255, 255, 255]
  palette_image(index, [0, 0, 0, *white, *white]).save(tmp_path / "l.png")
  found = mask_files.read_labels(tmp_path / "l.png", SIZE)
  assert list(found) == ["id_1", "id_2"]

  grey(ids % 256).save(tmp_path / "l.jpg")
  with pytest.raises(InputError, match="JPEG"):
    mask_files.read_labels(tmp_path / "l.jpg", SIZE)


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
  np.testing.assert_array_equal(mask_files.TURNS[orientation](corner_mask()), upright)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_photos_of_every_format_state_how_their_pixels_lie(tmp_path, suffix):
  for orientation in (None, *ORIENTATIONS):
    oriented(corner_mask(), orientation, tmp_path / f"p.{suffix}")
    photo = photos.read_photo(tmp_path / f"p.{suffix}")
    assert photo.orientation == (orientation or 1)
    is_sideways = orientation in mask_files.SIDEWAYS
    assert photo.size == (SIZE[::-1] if is_sideways else SIZE)
    if suffix in ("png", "tiff"):
      turn = mask_files.TURNS.get(orientation, np.asarray)
      np.testing.assert_array_equal(photo.image_HW3[..., 0], turn(corner_mask()))


@pytest.mark.parametrize("form", ["mask.png", "mask.npy", "labels.png"])
@pytest.mark.parametrize("orientation", mask_files.SIDEWAYS)
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
  expected = mask_files.TURNS[orientation](corner_mask()) > 0
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
  turned = mask_files.TURNS[orientation](mask) > 0
  np.testing.assert_array_equal(stored.read_mask(tmp_path / "m.png"), turned)

  # a mask that states its own orientation, or looks the same either way, needs no flag
  oriented(mask, orientation, tmp_path / "own.png")
  np.testing.assert_array_equal(photos.read_photo(path).read_mask(tmp_path / "own.png"), turned)
  same = np.zeros(size, np.uint8)
  same[10:-10, 10:-10] = 1
  Image.fromarray(same).save(tmp_path / "same.png")
  np.testing.assert_array_equal(photos.read_photo(path).read_mask(tmp_path / "same.png"), same > 0)


def test_a_failing_disk_is_no_fault_of_the_input(tmp_path, monkeypatch):
  def failing(*_, **__):
    raise OSError(errno.EIO, "Input/output error")

  np.save(tmp_path / "m.npy", corner_mask())
  Image.fromarray(corner_mask()).save(tmp_path / "m.png")
  monkeypatch.setattr(Image, "open", failing)
  with pytest.raises(OSError, match="Input/output") as error:
    mask_files.read_mask(tmp_path / "m.png", SIZE)
  assert not isinstance(error.value, InputError)
  monkeypatch.setattr(np, "load", failing)
  with pytest.raises(OSError, match="Input/output"):
    mask_files.read_mask(tmp_path / "m.npy", SIZE)


def test_a_label_map_of_many_objects_takes_one_mask_at_a_time(tmp_path):
  # 28 x 30 objects of 4 x 4 pixels
  numbers = np.arange(1, 841).reshape(28, 30)
  ids = np.kron(numbers, np.ones((4, 4)))
  grey(ids, np.uint16).save(tmp_path / "l.png")
  masks = mask_files.read_labels(tmp_path / "l.png", ids.shape)
  assert len(masks) == 840
  assert masks["id_31"].sum() == 16
  # made anew whenever it is asked for
  assert masks["id_31"] is not masks["id_31"]


def test_the_collected_label_map_of_many_objects_is_read(hostile_dir):
  path = hostile_dir / "labels_900_objects" / "labels.png"
  with Image.open(path) as image:
    width, height = image.size
  assert len(mask_files.read_labels(path, (height, width))) == 839

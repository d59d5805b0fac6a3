"""Preprocessing, point-map normalisation, augmentation."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from data_pipelines.read import augment
from sam3d_jax.errors import ConfigError
from sam3d_jax.geometry import normalisers, preprocessing, resizing, windows
from sam3d_jax.geometry.grids import nearest_index

RNG = np.random.default_rng(3)
STREAMS = ("image", "mask", "rgb_image", "rgb_image_mask", "pointmap", "rgb_pointmap")
SIZES = {"image_size": 24, "pointmap_size": 16}
IMAGE = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
MASK = np.zeros((40, 56), bool)
MASK[8:27, 30:52] = True
POINTS = (RNG.standard_normal((40, 56, 3)) + [0, 0, 4]).astype(np.float32)
POINTS[:4] = np.nan


def preprocess(image=IMAGE, mask=MASK, pointmap=POINTS, **options):
  options = {"streams": STREAMS} | SIZES | options
  return preprocessing.preprocess(image, mask, pointmap, **options)


def test_shift_and_scale_are_the_published_medians():
  moments = normalisers.ObjectCentric().scale_shift(POINTS, MASK)
  # the lower of two middle values
  of_object = np.sort(POINTS[MASK], axis=0)
  middle = (len(of_object) - 1) // 2
  np.testing.assert_allclose(moments.shift, of_object[middle])

  known = POINTS[4:]
  sizes = np.sort(np.abs(known - moments.shift).max(-1).ravel())
  middle = (len(sizes) - 1) // 2
  np.testing.assert_allclose(moments.scale, sizes[middle])


@pytest.mark.parametrize(
  "normaliser",
  [
    normalisers.ObjectCentric(),
    normalisers.ObjectCentric(use_scene_scale=False),
    normalisers.ScaleShiftInvariant(),
    normalisers.ObjectCentric(use_scene_scale="object_norm_median", scale_factor=2.0),
    normalisers.ApparentSize(),
    normalisers.ApparentSize(use_scene_scale=False),
    normalisers.Disparity(),
    normalisers.Disparity(use_scene_scale=False),
  ],
)
def test_normalisation_inverts(normaliser):
  points = np.where(POINTS > 0.1, POINTS, 0.1)  # disparities need positive depth
  moments = normaliser.scale_shift(points, MASK)
  normalised = normaliser.apply(points, moments)
  back = normaliser.invert(normalised, moments)
  np.testing.assert_allclose(back, points, atol=1e-4)


def test_normalised_points_do_not_depend_on_the_unit_of_length():
  normaliser = normalisers.ObjectCentric()
  results = []
  for points in (POINTS, 1000 * POINTS):
    moments = normaliser.scale_shift(points, MASK)
    results.append(normaliser.apply(points, moments))
  np.testing.assert_allclose(*results, atol=1e-4)


def test_a_mask_without_known_points_falls_back_or_raises():
  blind = np.zeros_like(MASK)
  blind[:3, :10] = True
  moments = normalisers.ObjectCentric(scale_factor=2.0).scale_shift(POINTS, blind)
  assert moments.scale.tolist() == [2, 2, 2]
  assert moments.shift.tolist() == [0, 0, 0]
  strict = normalisers.ObjectCentric(fallback=False)
  with pytest.raises(normalisers.NoValidPoints):
    strict.scale_shift(POINTS, blind)


def test_clipping_makes_far_points_unknown():
  normaliser = normalisers.ObjectCentric(clip_beyond=1.0)
  moments = normaliser.scale_shift(POINTS, MASK)
  out = normaliser.apply(POINTS, moments)
  assert np.nanmax(np.linalg.norm(out, axis=-1)) <= 1.0
  assert np.isnan(out[5:]).any()

  clipped = normalisers.clip_far(POINTS, MASK, 1.2)
  object_depth = np.median(POINTS[MASK][:, 2])
  is_far = POINTS[..., 2] > 1.3 * object_depth
  assert np.isnan(clipped[is_far]).all()


def test_mask_box_is_square_and_scaled_about_the_centre():
  # rows 8..26, columns 30..51: 21 on the longer side, halved down
  assert windows.mask_box(MASK) == (30, 7, 50, 27)
  x1, y1, x2, y2 = windows.mask_box(MASK, 2.0)
  assert x2 - x1 == 42
  assert y2 - y1 == 42
  assert abs((x1 + x2) / 2 - 40.5) <= 1
  assert abs((y1 + y2) / 2 - 17) <= 1


def test_corners_are_truncated_towards_zero():
  corner = np.zeros((20, 20), bool)
  corner[0:4, 0:4] = True  # centre 1.5, half side 3: -1.5 becomes -1, not -2
  assert windows.mask_box(corner, 2.0) == (-1, -1, 4, 4)


@pytest.mark.parametrize(
  "mask, message", [(np.zeros((9, 9), bool), "empty"), (np.eye(9, dtype=bool)[:2], "2 x 2")]
)
def test_masks_that_cannot_be_cropped_around_are_refused(mask, message):
  with pytest.raises(windows.MaskError, match=message):
    windows.crop_window(mask)


def test_crop_equals_padding_and_slicing():
  window = windows.crop_window(MASK, box_factor=1.5, padding=0.2)
  x1, y1, x2, y2 = window.box
  around = 100
  padded = np.pad(IMAGE, ((around, around), (around, around), (0, 0)))
  box = padded[around + y1 : around + y2, around + x1 : around + x2]
  extend = int((x2 - x1) * 0.2)
  expected = np.pad(box, ((extend, extend), (extend, extend), (0, 0)))
  np.testing.assert_array_equal(resizing.cut(IMAGE, window), expected)


def test_a_crop_can_leave_the_image_entirely():
  window = windows.Window((100, 100, 110, 110), 100, 100, 10)
  assert not resizing.cut(IMAGE, window).any()


def test_square_window_centres_the_image():
  window = windows.square_window(40, 56)
  out = resizing.cut(IMAGE, window)
  assert out.shape == (56, 56, 3)
  np.testing.assert_array_equal(out[8:48], IMAGE)
  assert not out[:8].any()
  assert not out[48:].any()


def test_images_are_resized_with_antialiasing():
  stripes = np.zeros((32, 32, 1), np.float32)
  stripes[::2] = 1.0
  out = resizing.resize_float(stripes, (8, 8))
  # without antialiasing rows would be sampled, not averaged
  np.testing.assert_allclose(out[2:-2], 0.5, atol=0.03)


def test_uint8_images_are_within_two_levels_of_the_exact_resize():
  fast = preprocess()
  exact = preprocess(IMAGE.astype(np.float32) / 255, MASK.astype(np.float32))
  for name in STREAMS[:4]:
    assert fast[name].dtype == np.uint8
    assert exact[name].dtype == np.float32
  # two passes, each rounded to 8 bits
  for name in ("image", "rgb_image"):
    difference = fast[name].astype(np.float32) - 255 * exact[name]
    assert np.abs(difference).max() <= 2, name
  for name in ("mask", "rgb_image_mask"):
    np.testing.assert_array_equal(fast[name], exact[name])


def test_masks_stay_binary_and_accept_any_integer_type():
  expected = preprocess()["mask"]
  assert set(np.unique(expected)) == {0, 1}
  as_bytes = MASK.astype(np.uint8)
  for mask in (as_bytes, 255 * as_bytes, MASK.astype(np.int64)):
    found = preprocess(mask=mask)["mask"]
    np.testing.assert_array_equal(found, expected)


def test_pixels_masks_and_points_of_a_stream_stay_aligned():
  # points that say which pixel they are of
  y, x = np.meshgrid(np.arange(40), np.arange(56), indexing="ij")
  points = np.stack([y, x, np.ones_like(y)], -1).astype(np.float32)
  out = preprocess(
    mask=MASK,
    pointmap=points,
    normalise_pointmap=False,
    image_size=16,
    pointmap_fill=np.nan,
  )
  for mask_name, pointmap_name in (("mask", "pointmap"), ("rgb_image_mask", "rgb_pointmap")):
    mask = out[mask_name][..., 0]
    pointmap = out[pointmap_name]
    known = np.isfinite(pointmap).all(-1)
    y, x, _ = pointmap[known].astype(int).T
    np.testing.assert_array_equal(mask[known], MASK[y, x])
    assert not mask[~known].any()


def test_point_maps_are_zero_outside_the_photo_unless_another_fill_is_asked_for():
  zero = preprocess(box_factor=3.0)
  unknown = preprocess(box_factor=3.0, pointmap_fill=np.nan)
  for name in ("pointmap", "rgb_pointmap"):
    outside = (zero[name] == 0).all(-1)
    assert outside.any()
    assert np.isnan(unknown[name][outside]).all()
    np.testing.assert_array_equal(zero[name][~outside], unknown[name][~outside])


def test_points_beyond_the_box_are_unknown_but_those_beside_the_photo_are_filled():
  # The box leaves the photo on the left, the padding surrounds the box.
  corner = np.zeros_like(MASK)
  corner[5:20, :12] = True
  window = windows.crop_window(corner, padding=0.5)
  x1, y1, x2, y2 = window.box
  assert x1 < 0

  # Nothing is resized.
  out = preprocess(
    mask=corner,
    padding=0.5,
    image_size=window.side,
    pointmap_size=window.side,
  )["pointmap"]
  columns = np.arange(window.side) + window.x
  beyond = (columns < x1) | (columns >= x2)
  assert np.isnan(out[:, beyond]).all()
  in_box = out[y1 - window.y : y2 - window.y]
  beside = in_box[:, (columns >= x1) & (columns < 0)]
  assert beside.size
  assert not beside.any()


def test_point_maps_of_another_size_are_brought_to_the_photo_and_keep_their_gaps():
  half = POINTS[::2, ::2]
  out = preprocess(pointmap=half)
  assert out["pointmap"].shape == (16, 16, 3)
  assert out["rgb_pointmap"].shape == (16, 16, 3)
  assert np.isnan(out["rgb_pointmap"]).any()
  assert np.isfinite(out["pointmap"]).any()

  resized = resizing.resize_pointmap(half, (40, 56))
  assert np.isnan(resized[:4]).all()
  assert np.isfinite(resized[4:]).all()


def test_a_point_map_is_resized_to_the_images_size_and_from_there_to_its_own():
  image_size = 18  # with 16 of the point map, both windows have points that one resize would miss
  twice = preprocess(image_size=image_size)
  once = preprocess(image_size=image_size, resize_twice=False)
  between = preprocess(image_size=image_size, resize_twice=False, pointmap_size=image_size)
  index = nearest_index(image_size, SIZES["pointmap_size"])
  for name in ("pointmap", "rgb_pointmap"):
    np.testing.assert_array_equal(twice[name], between[name][index][:, index])
    assert not np.array_equal(twice[name], once[name], equal_nan=True)


def test_half_precision_point_maps_are_computed_in_single_precision():
  half = POINTS.astype(np.float16)
  found = preprocess(pointmap=half)["pointmap"]
  expected = preprocess(pointmap=half.astype(np.float32))["pointmap"]
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.float32


def test_only_the_asked_streams_are_made_and_impossible_ones_are_refused():
  without = preprocess(pointmap=None, streams=("image", "mask"))
  assert set(without) == {"image", "mask"}
  mask_alone = preprocess(streams=("mask",))
  assert set(mask_alone) == {"mask", "pointmap_scale", "pointmap_shift"}
  with pytest.raises(ValueError, match="need a point map"):
    preprocess(pointmap=None)
  with pytest.raises(ValueError, match="its mask"):
    preprocess(mask=MASK[:-1])


ALL = augment.AugmentConfig(
  erode=0.5, dilate=0.5, blur=1.0, colour=1.0, light=1.0, box_factor=(1.0, 1.5), shift=0.1
)


def run(cfg, seed=0, mask=MASK):
  return augment.augment(IMAGE, mask, np.random.default_rng(seed), cfg)


@pytest.mark.parametrize("shape", [(40, 56), (20, 28), (33, 28), (20, 41)])
def test_an_enlarged_point_map_read_in_part_is_that_of_the_whole(shape):
  small = POINTS[::2, ::2].copy()
  small[5, 7] = np.nan
  small[12:14, 20:] = np.nan
  whole = resizing.resize_pointmap(small, shape)
  lazy = resizing.Enlarged(small, shape)

  height, width = shape
  rows = np.arange(height)
  columns = np.array([0, 3, 9, 10, width - 1])
  np.testing.assert_allclose(lazy.at(rows, columns), whole[:, columns], atol=2e-6)

  window = windows.Window((-3, -2, 37, 38), -5, -4, 44)
  fills = {"outside": 7.0, "beyond_box": np.nan}
  found = resizing.resize_nearest(lazy, window, 17, **fills)
  expected = resizing.resize_nearest(whole, window, 17, **fills)
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_augmentation_is_a_function_of_the_generator():
  first = run(ALL)
  again = run(ALL)
  np.testing.assert_array_equal(first.image, again.image)
  assert first[2:] == again[2:]
  assert first.image.dtype == np.uint8
  assert first.mask.dtype == bool

  other = run(ALL, seed=1)
  assert (first.image != other.image).any()
  assert first[2:] != other[2:]


def test_default_augmentation_changes_nothing():
  out = run(augment.AugmentConfig())
  assert out.image is IMAGE
  assert out.mask is MASK
  assert out.box_factor == windows.BOX_FACTOR
  assert out.shift == (0, 0)


def test_switching_one_augmentation_off_leaves_the_other_draws_alone():
  everything = run(ALL)
  no_blur = run(dataclasses.replace(ALL, blur=0.0))
  same_colours = run(dataclasses.replace(ALL, blur=0.0, colour=0.0))
  same_mask = run(dataclasses.replace(ALL, erode=0.0, dilate=0.0))
  assert no_blur[2:] == everything[2:]
  np.testing.assert_array_equal(same_colours.mask, everything.mask)
  np.testing.assert_array_equal(same_mask.image, everything.image)


@pytest.mark.parametrize("name", ["blur", "colour", "light"])
def test_each_image_augmentation_changes_the_image_alone(name):
  config = augment.AugmentConfig(**{name: 1.0})
  out = run(config)
  assert (out.image != IMAGE).any()
  assert out.image.shape == IMAGE.shape
  assert out.mask is MASK


def test_erosion_shrinks_and_dilation_grows_the_mask_by_the_kernel():
  expected = np.zeros_like(MASK)
  expected[9:26, 31:51] = True
  np.testing.assert_array_equal(augment.erode(MASK, 3), expected)
  expected[7:28, 29:53] = True
  np.testing.assert_array_equal(augment.dilate(MASK, 3), expected)


def test_dilation_stops_at_the_border_and_erosion_never_empties_a_mask():
  edge = np.zeros((12, 12), np.uint8)
  edge[:4, :4] = 1
  grown = augment.dilate(edge, 5)
  np.testing.assert_array_equal(grown[:6, :6], 1)
  np.testing.assert_array_equal(augment.erode(edge, 5), edge)


def test_colour_factors_of_one_change_nothing_and_zero_saturation_is_grey():
  same = augment.adjust_colour(IMAGE, 1.0, 1.0, 1.0)
  np.testing.assert_array_equal(same, IMAGE)
  grey = augment.adjust_colour(IMAGE, 1.0, 1.0, 0.0).astype(int)
  assert np.ptp(grey, axis=-1).max() <= 1
  expected = np.asarray(Image.fromarray(IMAGE).convert("L"), int)
  difference = grey[..., 0] - expected
  assert np.abs(difference).max() <= 1


def test_light_ramp_spans_its_gain_along_its_direction():
  flat = np.full((5, 9, 3), 100, np.uint8)
  lit = augment.light_ramp(flat, 0.0, 0.3)[..., 0]
  first_row = lit[0]
  assert first_row[0] == 70
  assert first_row[-1] == 130
  assert (lit == first_row).all()


def test_augmentation_ranges_are_checked():
  wrong = (
    ({"blur": 1.5}, "blur = 1.5"),
    ({"erode": 0.6, "dilate": 0.6}, "at most 1"),
    ({"shift": 1.0}, "shift = 1.0"),
    ({"box_factor": (1.4, 1.2)}, "box_factor"),
    ({"blur_scale": (0.5, 2.0)}, "blur_scale"),
  )
  for settings, words in wrong:
    with pytest.raises(ConfigError, match=words):
      augment.AugmentConfig(**settings)
  assert not augment.AugmentConfig().active
  assert augment.AugmentConfig(shift=0.1).active

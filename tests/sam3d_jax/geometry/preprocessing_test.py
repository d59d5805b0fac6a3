"""Preprocessing, point-map normalisation, augmentation."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from data_pipelines.read import augment
from sam3d_jax.errors import ConfigError
from sam3d_jax.geometry import normalisers, preprocessing
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
  return preprocessing.preprocess(image, mask, pointmap, **({"streams": STREAMS} | SIZES | options))


def test_shift_and_scale_are_the_published_medians():
  moments = normalisers.ObjectCentric().scale_shift(POINTS, MASK)
  np.testing.assert_allclose(moments.shift, np.sort(POINTS[MASK], axis=0)[(MASK.sum() - 1) // 2])
  size = np.sort(np.abs(POINTS[4:] - moments.shift).max(-1).ravel())
  np.testing.assert_allclose(moments.scale, size[(size.size - 1) // 2])


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
  np.testing.assert_allclose(
    normaliser.invert(normaliser.apply(points, moments), moments), points, atol=1e-4
  )


def test_normalised_points_do_not_depend_on_the_unit_of_length():
  normaliser = normalisers.ObjectCentric()
  results = [normaliser.apply(p, normaliser.scale_shift(p, MASK)) for p in (POINTS, 1000 * POINTS)]
  np.testing.assert_allclose(*results, atol=1e-4)


def test_a_mask_without_known_points_falls_back_or_raises():
  blind = np.zeros_like(MASK)
  blind[:3, :10] = True
  moments = normalisers.ObjectCentric(scale_factor=2.0).scale_shift(POINTS, blind)
  assert moments.scale.tolist() == [2, 2, 2] and moments.shift.tolist() == [0, 0, 0]
  with pytest.raises(normalisers.NoValidPoints):
    normalisers.ObjectCentric(fallback=False).scale_shift(POINTS, blind)


def test_clipping_makes_far_points_unknown():
  normaliser = normalisers.ObjectCentric(clip_beyond=1.0)
  out = normaliser.apply(POINTS, normaliser.scale_shift(POINTS, MASK))
  assert np.nanmax(np.linalg.norm(out, axis=-1)) <= 1.0 and np.isnan(out[5:]).any()
  assert np.isnan(
    normalisers.clip_far(POINTS, MASK, 1.2)[POINTS[..., 2] > 1.3 * np.median(POINTS[MASK][:, 2])]
  ).all()


def test_mask_box_is_square_and_scaled_about_the_centre():
  # rows 8..26, columns 30..51: 21 on the longer side, halved down
  assert preprocessing.mask_box(MASK) == (30, 7, 50, 27)
  x1, y1, x2, y2 = preprocessing.mask_box(MASK, 2.0)
  assert (
    (x2 - x1, y2 - y1) == (42, 42)
    and abs((x1 + x2) / 2 - 40.5) <= 1
    and abs((y1 + y2) / 2 - 17) <= 1
  )


def test_corners_are_truncated_towards_zero():
  corner = np.zeros((20, 20), bool)
  corner[0:4, 0:4] = True  # centre 1.5, half side 3: -1.5 becomes -1, not -2
  assert preprocessing.mask_box(corner, 2.0) == (-1, -1, 4, 4)


@pytest.mark.parametrize(
  "mask, message", [(np.zeros((9, 9), bool), "empty"), (np.eye(9, dtype=bool)[:2], "2 x 2")]
)
def test_masks_that_cannot_be_cropped_around_are_refused(mask, message):
  with pytest.raises(preprocessing.MaskError, match=message):
    preprocessing.crop_window(mask)


def test_crop_equals_padding_and_slicing():
  window = preprocessing.crop_window(MASK, box_factor=1.5, padding=0.2)
  x1, y1, x2, y2 = window.box
  padded = np.pad(IMAGE, ((100, 100), (100, 100), (0, 0)))
  extend = int((x2 - x1) * 0.2)
  expected = np.pad(
    padded[100 + y1 : 100 + y2, 100 + x1 : 100 + x2], ((extend, extend), (extend, extend), (0, 0))
  )
  np.testing.assert_array_equal(preprocessing.cut(IMAGE, window), expected)


def test_a_crop_can_leave_the_image_entirely():
  window = preprocessing.Window((100, 100, 110, 110), 100, 100, 10)
  assert not preprocessing.cut(IMAGE, window).any()


def test_square_window_centres_the_image():
  out = preprocessing.cut(IMAGE, preprocessing.square_window(40, 56))
  assert out.shape == (56, 56, 3)
  np.testing.assert_array_equal(out[8:48], IMAGE)
  assert not out[:8].any() and not out[48:].any()


def test_images_are_resized_with_antialiasing():
  stripes = np.zeros((32, 32, 1), np.float32)
  stripes[::2] = 1.0
  out = preprocessing.resize_float(stripes, (8, 8))
  # without antialiasing rows would be sampled, not averaged
  np.testing.assert_allclose(out[2:-2], 0.5, atol=0.03)


def test_uint8_images_are_within_two_levels_of_the_exact_resize():
  exact = preprocess(IMAGE.astype(np.float32) / 255, MASK.astype(np.float32))
  fast = preprocess()
  for name in STREAMS[:4]:
    assert fast[name].dtype == np.uint8 and exact[name].dtype == np.float32
  for name in ("image", "rgb_image"):  # two passes, each rounded to 8 bits
    assert np.abs(fast[name].astype(np.float32) - 255 * exact[name]).max() <= 2, name
  for name in ("mask", "rgb_image_mask"):
    np.testing.assert_array_equal(fast[name], exact[name])


def test_masks_stay_binary_and_accept_any_integer_type():
  for mask in (MASK.astype(np.uint8), 255 * MASK.astype(np.uint8), MASK.astype(np.int64)):
    np.testing.assert_array_equal(preprocess(mask=mask)["mask"], preprocess()["mask"])
  assert set(np.unique(preprocess()["mask"])) == {0, 1}


def test_pixels_masks_and_points_of_a_stream_stay_aligned():
  yx = np.stack(np.meshgrid(np.arange(40), np.arange(56), indexing="ij"), -1)
  points = np.concatenate([yx, np.ones((40, 56, 1))], -1).astype(np.float32)
  out = preprocess(
    mask=MASK, pointmap=points, normalise_pointmap=False, image_size=16, pointmap_fill=np.nan
  )
  for mask, pointmap in (("mask", "pointmap"), ("rgb_image_mask", "rgb_pointmap")):
    known = np.isfinite(out[pointmap]).all(-1)
    y, x = out[pointmap][known][:, :2].astype(int).T
    np.testing.assert_array_equal(out[mask][known][:, 0], MASK[y, x])
    assert not out[mask][~known].any()


def test_point_maps_are_zero_outside_the_photo_unless_another_fill_is_asked_for():
  zero, unknown = preprocess(box_factor=3.0), preprocess(box_factor=3.0, pointmap_fill=np.nan)
  for name in ("pointmap", "rgb_pointmap"):
    outside = (zero[name] == 0).all(-1)
    assert outside.any() and np.isnan(unknown[name][outside]).all()
    np.testing.assert_array_equal(zero[name][~outside], unknown[name][~outside])


def test_points_beyond_the_box_are_unknown_but_those_beside_the_photo_are_filled():
  corner = np.zeros_like(MASK)
  corner[5:20, :12] = True  # the box leaves the photo on the left, the padding surrounds the box
  window = preprocessing.crop_window(corner, padding=0.5)
  whole = {"image_size": window.side, "pointmap_size": window.side}  # nothing is resized
  out = preprocess(mask=corner, padding=0.5, **whole)["pointmap"]
  x1, y1, x2, y2 = window.box
  columns = np.arange(window.side) + window.x
  assert x1 < 0 and np.isnan(out[:, columns < x1]).all() and np.isnan(out[:, columns >= x2]).all()
  beside = out[y1 - window.y : y2 - window.y][:, (columns >= x1) & (columns < 0)]
  assert beside.size and not beside.any()


def test_point_maps_of_another_size_are_brought_to_the_photo_and_keep_their_gaps():
  out = preprocess(pointmap=POINTS[::2, ::2])
  assert out["pointmap"].shape == out["rgb_pointmap"].shape == (16, 16, 3)
  assert np.isnan(out["rgb_pointmap"]).any() and np.isfinite(out["pointmap"]).any()
  resized = preprocessing.resize_pointmap(POINTS[::2, ::2], (40, 56))
  assert np.isnan(resized[:4]).all() and np.isfinite(resized[4:]).all()


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
  got, expected = preprocess(pointmap=half), preprocess(pointmap=half.astype(np.float32))
  np.testing.assert_array_equal(got["pointmap"], expected["pointmap"])
  assert got["pointmap"].dtype == np.float32


def test_only_the_asked_streams_are_made_and_impossible_ones_are_refused():
  assert set(preprocess(pointmap=None, streams=("image", "mask"))) == {"image", "mask"}
  assert set(preprocess(streams=("mask",))) == {"mask", "pointmap_scale", "pointmap_shift"}
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
  small[5, 7], small[12:14, 20:] = np.nan, np.nan
  whole, lazy = preprocessing.resize_pointmap(small, shape), preprocessing.Enlarged(small, shape)
  rows, columns = np.arange(shape[0]), np.array([0, 3, 9, 10, shape[1] - 1])
  np.testing.assert_allclose(lazy.at(rows, columns), whole[:, columns], atol=2e-6)
  window = preprocessing.Window((-3, -2, 37, 38), -5, -4, 44)
  got, expected = (
    preprocessing.resize_nearest(x, window, 17, outside=7.0, beyond_box=np.nan)
    for x in (lazy, whole)
  )
  np.testing.assert_allclose(got, expected, atol=2e-6)


def test_augmentation_is_a_function_of_the_generator():
  first, again, other = run(ALL), run(ALL), run(ALL, seed=1)
  np.testing.assert_array_equal(first.image, again.image)
  assert first[2:] == again[2:] and first[2:] != other[2:]
  assert (
    (first.image != other.image).any()
    and first.image.dtype == np.uint8
    and first.mask.dtype == bool
  )


def test_default_augmentation_changes_nothing():
  out = run(augment.AugmentConfig())
  assert (
    out.image is IMAGE
    and out.mask is MASK
    and out.box_factor == preprocessing.BOX_FACTOR
    and out.shift == (0, 0)
  )


def test_switching_one_augmentation_off_leaves_the_other_draws_alone():
  assert run(dataclasses.replace(ALL, blur=0.0))[2:] == run(ALL)[2:]
  np.testing.assert_array_equal(
    run(dataclasses.replace(ALL, blur=0.0, colour=0.0)).mask, run(ALL).mask
  )
  np.testing.assert_array_equal(
    run(dataclasses.replace(ALL, erode=0.0, dilate=0.0)).image, run(ALL).image
  )


@pytest.mark.parametrize("name", ["blur", "colour", "light"])
def test_each_image_augmentation_changes_the_image_alone(name):
  out = run(augment.AugmentConfig(**{name: 1.0}))
  assert (out.image != IMAGE).any() and out.image.shape == IMAGE.shape and out.mask is MASK


def test_erosion_shrinks_and_dilation_grows_the_mask_by_the_kernel():
  small, large = augment.erode(MASK, 3), augment.dilate(MASK, 3)
  expected = np.zeros_like(MASK)
  expected[9:26, 31:51] = True
  np.testing.assert_array_equal(small, expected)
  expected[7:28, 29:53] = True
  np.testing.assert_array_equal(large, expected)


def test_dilation_stops_at_the_border_and_erosion_never_empties_a_mask():
  edge = np.zeros((12, 12), np.uint8)
  edge[:4, :4] = 1
  np.testing.assert_array_equal(augment.dilate(edge, 5)[:6, :6], 1)
  np.testing.assert_array_equal(augment.erode(edge, 5), edge)


def test_colour_factors_of_one_change_nothing_and_zero_saturation_is_grey():
  np.testing.assert_array_equal(augment.adjust_colour(IMAGE, 1.0, 1.0, 1.0), IMAGE)
  grey = augment.adjust_colour(IMAGE, 1.0, 1.0, 0.0).astype(int)
  assert np.ptp(grey, axis=-1).max() <= 1
  expected = np.asarray(Image.fromarray(IMAGE).convert("L"), int)
  assert np.abs(grey[..., 0] - expected).max() <= 1


def test_light_ramp_spans_its_gain_along_its_direction():
  flat = np.full((5, 9, 3), 100, np.uint8)
  right = augment.light_ramp(flat, 0.0, 0.3)[..., 0]
  assert right[0, 0] == 70 and right[0, -1] == 130 and (right == right[0]).all()


def test_augmentation_ranges_are_checked():
  for settings, words in (
    ({"blur": 1.5}, "blur = 1.5"),
    ({"erode": 0.6, "dilate": 0.6}, "at most 1"),
    ({"shift": 1.0}, "shift = 1.0"),
    ({"box_factor": (1.4, 1.2)}, "box_factor"),
    ({"blur_scale": (0.5, 2.0)}, "blur_scale"),
  ):
    with pytest.raises(ConfigError, match=words):
      augment.AugmentConfig(**settings)
  assert not augment.AugmentConfig().active and augment.AugmentConfig(shift=0.1).active

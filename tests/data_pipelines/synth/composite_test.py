"""The laws of pasting: compositing, the z-buffer, support and contour on scenes whose answers are
known; filling what was removed.
"""

import numpy as np
import pytest

from data_pipelines.synth import composite, flying, removal, swap
from data_pipelines.synth.render_paste import Rejected
from sam3d_jax.render.colour import srgb_to_linear

SIZE = 40
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]
SWAP = swap.SwapRules()
FLYING = flying.FlyingRules()
UNKNOWN = np.full((SIZE, SIZE), np.nan)
WALL = np.full((SIZE, SIZE), 5.0)


def depth_of(where, depth) -> np.ndarray:
  """A depth map that is `depth` where told and unknown elsewhere."""
  return np.where(where, depth, np.nan).astype(np.float32)


def disk(row=20, column=20, radius=8) -> np.ndarray:
  """Pixels of a disk, (SIZE, SIZE) bool."""
  return (ROWS - row) ** 2 + (COLUMNS - column) ** 2 <= radius**2


def linear(image_HW3: np.ndarray) -> np.ndarray:
  """The first row of a grey image in linear light."""
  return srgb_to_linear(image_HW3 / np.float32(255))[0, :, 0]


def test_pixels_that_nothing_covers_keep_every_one_of_256_values():
  values = np.arange(256, dtype=np.uint8).reshape(16, 16)
  photo = np.stack([values] * 3, -1)
  colour = np.zeros((16, 16, 3), np.float32)
  alpha = np.zeros((16, 16), np.float32)
  pasted = composite.paste(photo, [(colour, alpha), (colour, alpha)])
  np.testing.assert_array_equal(pasted, photo)


def test_layers_blend_by_coverage_in_linear_light_the_nearest_last():
  photo = np.full((1, 3, 3), 100, np.uint8)
  far = (np.full((1, 3, 3), 0.8, np.float32), np.ones((1, 3), np.float32))
  alpha = np.array([[0.0, 0.25, 1.0]], np.float32)
  near = (0.1 * alpha[..., None] * np.ones(3, np.float32), alpha)

  near_last = linear(composite.paste(photo, [far, near]))
  np.testing.assert_allclose(near_last, [0.8, 0.025 + 0.75 * 0.8, 0.1], atol=4e-3)
  far_last = linear(composite.paste(photo, [near, far]))
  np.testing.assert_allclose(far_last, 0.8, atol=4e-3)
  over_photo = linear(composite.paste(photo, [near]))
  blended = 0.025 + 0.75 * linear(photo)[0]
  np.testing.assert_allclose(over_photo[1], blended, atol=2e-3)


def test_the_z_buffer_hides_what_lies_behind_and_unknown_depth_hides_nothing():
  ball = depth_of(disk(), 2.0)
  # a pillar before the left half, a wall behind the right one
  scene = np.where(COLUMNS < 20, 1.0, 3.0)
  scene[:, 30:] = np.nan
  visible = composite.in_front(ball, scene)
  np.testing.assert_array_equal(visible, disk() & (COLUMNS >= 20))
  visible = composite.in_front(ball, UNKNOWN)
  np.testing.assert_array_equal(visible, disk())


def test_a_cut_layer_draws_the_visible_part_and_its_soft_border_only():
  whole = disk()
  visible = disk() & (COLUMNS >= 20)
  border = np.where(composite.grow(whole), 0.5, 0.0)
  alpha = np.where(whole, 1.0, border).astype(np.float32)
  white = np.ones((SIZE, SIZE, 3), np.float32) * alpha[..., None]
  colour, cut = composite.limited(white, alpha, whole, visible)
  np.testing.assert_array_equal(cut == 1, visible)
  assert cut[20, 29] == 0.5
  assert not cut[20, :19].any()
  assert not colour[cut == 0].any()


def test_an_object_is_supported_if_the_background_lies_before_its_lowest_tenth():
  ball = depth_of(disk(), 2.0)  # rows 12 to 28: the lowest tenth is two rows

  def support_of(scene, **settings):
    return composite.support(ball, scene, band=0.1, **settings)

  assert support_of(WALL) == 0
  assert support_of(np.where(ROWS >= 28, 1.9, WALL)) > 0
  assert support_of(np.where(ROWS >= 27, 1.9, WALL)) == 1
  # something before its upper part carries nothing
  assert support_of(np.where(ROWS < 27, 1.0, WALL)) == 0
  # a floor a little farther carries it if that is tolerated
  floor = np.where(ROWS >= 28, 2.04, WALL)
  assert support_of(floor) == 0
  assert support_of(floor, tolerance=0.03) > 0
  assert support_of(UNKNOWN) == 0


def test_the_hidden_contour_is_the_share_that_borders_on_something_clearly_nearer():
  square = (abs(ROWS - 20) <= 8) & (abs(COLUMNS - 20) <= 8)
  depth = depth_of(square, 2.0)
  scene = np.where(COLUMNS < 20, 1.0, 5.0)
  visible = composite.in_front(depth, scene)

  # 17 rows, 9 columns: a contour of 48, 17 of it along the pillar
  found = composite.hidden_contour(visible, depth, scene, margin=0.05)
  assert found == pytest.approx(17 / 48)

  # nearer, not clearly
  barely = np.where(COLUMNS < 20, 1.95, 5.0)
  assert composite.hidden_contour(visible, depth, barely, margin=0.05) == 0
  assert composite.hidden_contour(square, depth, WALL, margin=0.05) == 0

  # the image's border is no contour
  everywhere = np.ones((SIZE, SIZE), bool)
  full = depth_of(everywhere, 2.0)
  assert composite.hidden_contour(everywhere, full, scene, margin=0.05) == 0


def test_swaps_are_kept_if_a_fifth_is_seen_and_they_are_supported_or_partly_hidden():
  ball = depth_of(disk(), 2.0)

  def verdict(scene):
    return swap.check(ball, composite.in_front(ball, scene), scene, SWAP)

  with pytest.raises(Rejected, match="neither_supported_nor_occluded"):
    verdict(WALL)
  below = verdict(np.where(ROWS >= 28, 1.0, WALL))
  assert below["support"] > 0
  beside = verdict(np.where(COLUMNS < 20, 1.0, WALL))
  assert beside["support"] > 0
  assert beside["hidden_contour"] > 0.1
  assert 0.4 < beside["visible"] < 0.6
  # hidden from above: occluded, though nothing carries it
  above = verdict(np.where(ROWS < 16, 1.0, WALL))
  assert above["support"] == 0
  assert above["hidden_contour"] >= 0.1
  with pytest.raises(Rejected, match="too_hidden"):
    verdict(np.where(COLUMNS < 26, 1.0, WALL))
  nowhere = np.zeros((SIZE, SIZE), bool)
  with pytest.raises(Rejected, match="nothing_in_view"):
    swap.check(UNKNOWN, nowhere, WALL, SWAP)


@pytest.mark.parametrize(
  "share, reason",
  [
    (0.05, "too_hidden"),
    (0.1, None),
    (0.5, None),
    (0.9, None),
    (0.95, "too_visible"),
    (1.0, "too_visible"),
  ],
)
def test_flying_pairs_are_kept_between_a_tenth_and_nine_tenths(share, reason):
  hidden = np.zeros((SIZE, SIZE), bool)
  hidden[:10, :10] = True
  # What is in front covers all but the first pixels of the hidden object.
  pixels = np.flatnonzero(hidden.ravel())
  front = np.zeros((SIZE, SIZE), bool)
  front.flat[pixels[round(100 * share) :]] = True
  visible = flying.visible_part(hidden, front)
  if reason is None:
    flying.check(hidden, front, visible, FLYING)
  else:
    with pytest.raises(Rejected, match=reason):
      flying.check(hidden, front, visible, FLYING)


def test_flying_targets_cover_a_five_hundredth_of_the_image():
  hidden = disk(radius=3)
  front = disk(column=24, radius=3)
  small = np.zeros((SIZE, SIZE), bool)
  small.flat[:3] = True  # of 1600 pixels
  enough = np.zeros((SIZE, SIZE), bool)
  enough.flat[:4] = True
  flying.check(hidden, front, enough, FLYING)
  with pytest.raises(Rejected, match="too_small"):
    flying.check(hidden, front, small, FLYING)


def test_one_third_of_any_objects_samples_show_it_in_front():
  for phase in np.random.default_rng(0).uniform(size=50):
    roles = [flying.is_front(view, phase, 1 / 3) for view in range(30)]
    assert sum(roles) == 10
    for i in range(28):
      assert sum(roles[i : i + 3]) == 1
  assert not any(flying.is_front(view, 0.4, 0.0) for view in range(9))
  assert all(flying.is_front(view, 0.4, 1.0) for view in range(9))


def test_a_plane_behind_a_removed_object_is_recovered_exactly():
  disparity = 0.2 + 0.003 * ROWS + 0.001 * COLUMNS  # linear in the pixel
  plane = (1 / disparity).astype(np.float32)
  before = np.where(disk(), 0.7, plane).astype(np.float32)
  filled = removal.fill_depth(before, disk())
  np.testing.assert_allclose(filled, plane, rtol=1e-5)


def test_depth_without_a_known_rim_stays_unknown():
  depth = np.full((SIZE, SIZE), 3.0, np.float32)
  depth[:, :20] = np.nan
  hole = disk(column=8, radius=4) | disk(column=30, radius=4)
  filled = removal.fill_depth(depth, hole)
  assert np.isnan(filled[:, :20]).all() and np.allclose(filled[:, 20:], 3.0)


def test_removed_colours_come_from_around_the_object():
  photo = np.full((SIZE, SIZE, 3), 90, np.uint8)
  photo[disk()] = (255, 0, 0)
  region = removal.enlarged(disk(), 0.02)
  assert region[disk()].all() and region.sum() > disk().sum()
  np.testing.assert_allclose(removal.remove(photo, region), 90, atol=4)

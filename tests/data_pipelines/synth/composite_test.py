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


def depth_of(where, depth) -> np.ndarray:
  """A depth map that is `depth` where told and unknown elsewhere."""
  return np.where(where, depth, np.nan).astype(np.float32)


def disk(row=20, column=20, radius=8) -> np.ndarray:
  return (ROWS - row) ** 2 + (COLUMNS - column) ** 2 <= radius**2


def test_pixels_that_nothing_covers_keep_every_one_of_256_values():
  photo = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, -1)
  nothing = (np.zeros((16, 16, 3), np.float32), np.zeros((16, 16), np.float32))
  np.testing.assert_array_equal(composite.paste(photo, [nothing, nothing]), photo)


def test_layers_blend_by_coverage_in_linear_light_the_nearest_last():
  photo = np.full((1, 3, 3), 100, np.uint8)
  far = (np.full((1, 3, 3), 0.8, np.float32), np.ones((1, 3), np.float32))
  alpha = np.array([[0.0, 0.25, 1.0]], np.float32)
  near = (0.1 * alpha[..., None] * np.ones(3, np.float32), alpha)
  linear = lambda image: srgb_to_linear(image / np.float32(255))[0, :, 0]
  np.testing.assert_allclose(
    linear(composite.paste(photo, [far, near])), [0.8, 0.025 + 0.75 * 0.8, 0.1], atol=4e-3
  )
  np.testing.assert_allclose(linear(composite.paste(photo, [near, far])), 0.8, atol=4e-3)
  np.testing.assert_allclose(
    linear(composite.paste(photo, [near]))[1], 0.025 + 0.75 * linear(photo)[0], atol=2e-3
  )


def test_the_z_buffer_hides_what_lies_behind_and_unknown_depth_hides_nothing():
  ball = depth_of(disk(), 2.0)
  # a pillar before the left half, a wall behind the right one
  scene = np.where(COLUMNS < 20, 1.0, 3.0)
  scene[:, 30:] = np.nan
  visible = composite.in_front(ball, scene)
  np.testing.assert_array_equal(visible, disk() & (COLUMNS >= 20))
  np.testing.assert_array_equal(composite.in_front(ball, np.full((SIZE, SIZE), np.nan)), disk())


def test_a_cut_layer_draws_the_visible_part_and_its_soft_border_only():
  whole, visible = disk(), disk() & (COLUMNS >= 20)
  alpha = np.where(whole, 1.0, np.where(composite.grow(whole), 0.5, 0.0)).astype(np.float32)
  colour, cut = composite.limited(
    np.ones((SIZE, SIZE, 3), np.float32) * alpha[..., None], alpha, whole, visible
  )
  np.testing.assert_array_equal(cut == 1, visible)
  assert cut[20, 29] == 0.5 and not cut[20, :19].any() and not colour[cut == 0].any()


def test_an_object_is_supported_if_the_background_lies_before_its_lowest_tenth():
  ball = depth_of(disk(), 2.0)  # rows 12 to 28: the lowest tenth is two rows
  wall = np.full((SIZE, SIZE), 5.0)
  hidden_from = lambda row: np.where(ROWS >= row, 1.9, wall)
  assert composite.support(ball, wall, band=0.1) == 0
  assert composite.support(ball, hidden_from(28), band=0.1) > 0
  assert composite.support(ball, hidden_from(27), band=0.1) == 1
  # something before its upper part carries nothing
  assert composite.support(ball, np.where(ROWS < 27, 1.0, wall), band=0.1) == 0
  floor = np.where(ROWS >= 28, 2.04, wall)
  assert (
    composite.support(ball, floor, band=0.1) == 0
    and composite.support(ball, floor, band=0.1, tolerance=0.03) > 0
  )
  assert composite.support(ball, np.full((SIZE, SIZE), np.nan), band=0.1) == 0


def test_the_hidden_contour_is_the_share_that_borders_on_something_clearly_nearer():
  square = (abs(ROWS - 20) <= 8) & (abs(COLUMNS - 20) <= 8)
  scene = np.where(COLUMNS < 20, 1.0, 5.0)
  # 17 rows, 9 columns: a contour of 48, 17 of it along the pillar
  visible = composite.in_front(depth_of(square, 2.0), scene)
  found = composite.hidden_contour(visible, depth_of(square, 2.0), scene, margin=0.05)
  assert found == pytest.approx(17 / 48)
  barely = np.where(COLUMNS < 20, 1.95, 5.0)
  # nearer, not clearly
  assert composite.hidden_contour(visible, depth_of(square, 2.0), barely, margin=0.05) == 0
  assert (
    composite.hidden_contour(square, depth_of(square, 2.0), np.full((SIZE, SIZE), 5.0), margin=0.05)
    == 0
  )
  everywhere = np.ones((SIZE, SIZE), bool)
  # the image's border is no contour
  assert composite.hidden_contour(everywhere, depth_of(everywhere, 2.0), scene, margin=0.05) == 0


def test_swaps_are_kept_if_a_fifth_is_seen_and_they_are_supported_or_partly_hidden():
  ball, wall = depth_of(disk(), 2.0), np.full((SIZE, SIZE), 5.0)
  verdict = lambda scene: swap.check(ball, composite.in_front(ball, scene), scene, SWAP)
  with pytest.raises(Rejected, match="neither_supported_nor_occluded"):
    verdict(wall)
  assert verdict(np.where(ROWS >= 28, 1.0, wall))["support"] > 0
  beside = verdict(np.where(COLUMNS < 20, 1.0, wall))
  assert beside["support"] > 0 and beside["hidden_contour"] > 0.1 and 0.4 < beside["visible"] < 0.6
  above = verdict(np.where(ROWS < 16, 1.0, wall))
  # hidden from above: occluded, though nothing carries it
  assert above["support"] == 0 and above["hidden_contour"] >= 0.1
  with pytest.raises(Rejected, match="too_hidden"):
    verdict(np.where(COLUMNS < 26, 1.0, wall))
  with pytest.raises(Rejected, match="nothing_in_view"):
    swap.check(np.full((SIZE, SIZE), np.nan), np.zeros((SIZE, SIZE), bool), wall, SWAP)


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
  front = np.zeros((SIZE, SIZE), bool)
  front.reshape(-1)[np.flatnonzero(hidden.ravel())[round(100 * share) :]] = True
  check = lambda: flying.check(
    hidden, front, flying.visible_part(hidden, front), flying.FlyingRules()
  )
  if reason is None:
    check()
  else:
    with pytest.raises(Rejected, match=reason):
      check()


def test_flying_targets_cover_a_five_hundredth_of_the_image():
  hidden, front = disk(radius=3), disk(column=24, radius=3)
  small, enough = np.zeros((SIZE, SIZE), bool), np.zeros((SIZE, SIZE), bool)
  small.flat[:3], enough.flat[:4] = True, True  # of 1600 pixels
  flying.check(hidden, front, enough, flying.FlyingRules())
  with pytest.raises(Rejected, match="too_small"):
    flying.check(hidden, front, small, flying.FlyingRules())


def test_one_third_of_any_objects_samples_show_it_in_front():
  for phase in np.random.default_rng(0).uniform(size=50):
    roles = [flying.is_front(view, phase, 1 / 3) for view in range(30)]
    assert sum(roles) == 10 and all(sum(roles[i : i + 3]) == 1 for i in range(28))
  assert not any(flying.is_front(view, 0.4, 0.0) for view in range(9)) and all(
    flying.is_front(view, 0.4, 1.0) for view in range(9)
  )


def test_a_plane_behind_a_removed_object_is_recovered_exactly():
  # disparity is linear in the pixel
  plane = (1 / (0.2 + 0.003 * ROWS + 0.001 * COLUMNS)).astype(np.float32)
  before = np.where(disk(), 0.7, plane).astype(np.float32)
  np.testing.assert_allclose(removal.fill_depth(before, disk()), plane, rtol=1e-5)


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

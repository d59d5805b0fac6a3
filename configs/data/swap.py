"""What the two object swaps, rp_3do_osr and rp_3do_osa, have in common: their thresholds."""

from ml_collections import ConfigDict

from configs.data import base


def dataset(name: str) -> ConfigDict:
  """Keys of an object swap."""
  c = base.pasting(base.dataset(name))
  c.rules = ConfigDict()
  # of an object of OS-R from the view of its front; 180: any orientation
  c.rules.largest_turn_deg = 180.0
  c.rules.min_visible = 0.2  # of the new object's pixels
  # lowest part of the object in which the background has to lie before it for the object to be
  # supported
  c.rules.support_band = 0.1
  c.rules.min_support = 0.0  # share of that band hidden by the background; 0: any
  # of the depth, by which the background may be farther and still support
  c.rules.support_tolerance = 0.0
  # share of the visible contour with a clearly nearer outside for the object to count as partly
  # occluded
  c.rules.min_contour = 0.1
  c.rules.contour_margin = 0.05  # of the depth: nearer by more is clearly nearer
  c.rules.min_object_share = 0.005  # of the image: smaller photographed objects are not swapped
  # by which masks grow before the object is inpainted, of the photo's longer side
  c.rules.margin = 0.01
  c.rules.box_percent = 2.0  # of the object's points left out at each end of its 3-D box
  return c

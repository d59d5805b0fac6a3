r"""RP-3DO FO, flying occlusions: a target and an occluder pasted into photographs.

    python -m launch.build_data --config configs/data/rp_3do_fo.py \
        --config.source=MESHES --config.photos.source=PHOTOS --config.out=DATA

For mid-training; both objects are oriented at random. PHOTOS holds photographs in any format; point
maps beside them are used where they exist. `:tiny` needs neither meshes nor photos: procedural
objects before synthetic rooms.
"""

from ml_collections import ConfigDict

from configs.data import base


def get_config(variant: str = ""):
  c = base.pasting(base.dataset("rp_3do_fo"))
  c.rules = ConfigDict()
  c.rules.visible = (0.1, 0.9)  # |M_vis| / |M_obj| of the hidden object
  c.rules.min_image_share = 0.002  # |M_vis| / |image| of the target
  c.rules.front_share = 1 / 3  # of the samples show the object in front, whose mask is complete
  # diameter of an object's bounding sphere over the photo's shorter side
  c.rules.size = (0.3, 0.75)
  c.rules.overlap = (0.1, 0.8)  # distance of the two objects' centres over the sum of their radii
  c.rules.largest_turn_deg = 180.0  # of an object from the view of its front; 180: any orientation
  c.rules.fov_deg = (30.0, 60.0)  # of photos whose camera is unknown
  # metres along the unit cube's edge, log-uniform, before objects move to the front of the photo
  c.rules.scale = (0.2, 2.0)
  if variant == "tiny":
    c.rules.largest_turn_deg = base.TINY_TURN_DEG
    return base.tiny_pasting(c)
  if variant:
    raise ValueError(f"variant '{variant}' is unknown; there is 'tiny'")
  return c

r"""RP-3DO OS-R, object swap, random: photographed objects replaced by random meshes.

    python -m launch.build_data --config configs/data/rp_3do_osr.py \
        --config.source=MESHES --config.photos.source=SCENES --config.out=DATA

For mid-training: the mesh lies where the object stood. SCENES holds a folder a photo: image, masks,
and a point map unless `photos.depth_command` makes it. `:tiny` needs neither meshes nor photos:
procedural objects in synthetic rooms with exact point maps.
"""

from configs.data import base, swap


def get_config(variant: str = ""):
  c = swap.dataset("rp_3do_osr")
  if variant == "tiny":
    c = base.tiny_pasting(c)
    c.image_size = 160
    c.rules.min_object_share = 0.015  # what stands in a room is small
    c.rules.largest_turn_deg = base.TINY_TURN_DEG
    return c
  if variant:
    raise ValueError(f"variant '{variant}' is unknown; there is 'tiny'")
  return c

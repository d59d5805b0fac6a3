r"""RP-3DO OS-A, object swap, annotated: photographed objects replaced by their annotated meshes.

    python -m launch.build_data --config configs/data/rp_3do_osa.py \
        --config.source=ANNOTATIONS --config.out=DATA

For texture: the meshes are aligned to the pixel. ANNOTATIONS is a folder of annotated photos with
meshes, poses and point maps, as mitl_3do reads it; of `photos` only the estimator is used. `:tiny`
needs none: synthetic rooms whose objects are known.
"""

from configs.data import base, swap


def get_config(variant: str = ""):
  c = swap.dataset("rp_3do_osa")
  c.views = 1  # of each object, each under another light
  c.delit = True  # the pair of lit and de-lit image is what textures are learned from
  # annotated objects stand on what carries them instead of sinking into it
  c.rules.support_tolerance = 0.03
  c.files_outside = False  # whether annotations may name files from outside of the source folder
  if variant == "tiny":
    c = base.tiny_pasting(c)
    c.views = 1
    c.image_size = 160
    c.rules.min_object_share = 0.015  # what stands in a room is small
    c.objects_per_shard = 8
    return c
  if variant:
    raise ValueError(f"variant '{variant}' is unknown; there is 'tiny'")
  return c

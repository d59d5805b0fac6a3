r"""Iso-3DO: meshes alone on a plain background, 24 views each at 518 pixels, for pre-training.

    python -m launch.build_data --config configs/data/iso_3do.py \
        --config.source=MESHES --config.out=DATA

What a view costs is in docs/benchmarks.md, "Data".

`:tiny` needs no meshes: 2 400 procedural objects, three views at 96 pixels from within 60 degrees
of the front, less than a minute on two cores. So many because a model sees a new object only as
well as it knows others of its kind: with 470 training objects a direct regression of the latents
explained a tenth of their variance on held-out ones, with 2 340 three tenths.
"""

from configs.data import base


def get_config(variant: str = ""):
  c = base.rendering(base.dataset("iso_3do"))
  if variant == "tiny":
    c.source = "procedural"
    c.views = 3
    c.image_size = 96
    c.image_format = "png"
    c.delit = False  # textures are not what is learned from these
    c.procedural.families = base.TINY_FAMILIES
    c.procedural.count = 2400
    c.test_fraction = 0.025
    c.objects_per_shard = 80
    c.camera.elevation_deg = (0.0, 50.0)
    c.camera.azimuth_deg = (-150.0, -30.0)  # the front is at -90
  elif variant:
    raise ValueError(f"variant '{variant}' is unknown; there is 'tiny'")
  return c

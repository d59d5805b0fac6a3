"""Iso-3DO: meshes alone on a plain background, 24 views each at 518 pixels, for pre-training.

    python -m launch.build_data --config configs/data/iso_3do.py --config.source=MESHES --config.out=DATA

A view of a 20 000-triangle textured mesh takes about half a second of one core. `:tiny` needs no
meshes: 2 400 procedural objects, three views at 96 pixels from within 60 degrees of the front, less
than a minute on two cores. So many because a model sees a new object only as well as it knows
others of its kind: with 470 training objects a direct regression of the latents explained a tenth
of their variance on held-out ones, with 2 340 three tenths.
"""

from configs.data import base


def get_config(variant: str = ""):
  c = base.rendering(base.dataset("iso_3do"))
  if variant == "tiny":
    c.source = "procedural"
    c.views, c.image_size, c.image_format = 3, 96, "png"
    c.procedural.families = (
      "table",
      "chair",
      "mug",
      "lamp",
      "bottle",
      "arrow",
      "letter",
      "crate",
      "shelf",
      "stairs",
      "bed",
      "house",
    )
    c.procedural.count, c.test_fraction, c.objects_per_shard = 2400, 0.025, 80
    # the front is at -90
    c.camera.elevation_deg, c.camera.azimuth_deg = (0.0, 50.0), (-150.0, -30.0)
  elif variant:
    raise ValueError(f"variant '{variant}' is unknown; there is 'tiny'")
  return c

r"""Views of objects from all sides, 150 each at 512 pixels, in ambient light: what structured
latents are made from, and what their autoencoder is trained on.

    python -m launch.build_data --config configs/data/views.py \
        --config.source=MESHES --config.out=DATA

The cameras are those of the published recipe (radius 2, field of view 40 degrees). `:tiny` needs no
meshes: 30 procedural objects, 24 views at 128 pixels.
"""

from configs.data import base


def get_config(variant: str = ""):
  c = base.views(base.dataset("views"))
  if variant == "tiny":
    c.source = "procedural"
    c.views = 24
    c.image_size = 128
    c.image_format = "png"
    c.procedural.families = base.TINY_FAMILIES
    c.procedural.count = 30
    c.test_fraction = 0.1
  elif variant:
    raise ValueError(f"variant '{variant}' is unknown; there is 'tiny'")
  return c

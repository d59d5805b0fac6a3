r"""Art-3DO: real photos with meshes that artists made for them, for supervised fine-tuning.

    python -m launch.build_data --config configs/data/art_3do.py \
        --config.source=ANNOTATIONS --config.out=DATA

`:tiny` needs no annotations: six of 24 synthetic items have an artist's mesh.
"""

from configs.data import annotated


def get_config(variant: str = ""):
  return annotated.variant(annotated.dataset("art_3do"), variant)

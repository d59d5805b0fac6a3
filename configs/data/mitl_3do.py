r"""MITL-3DO: real photos with the shape, pose and rating that annotators gave them.

    python -m launch.build_data --config configs/data/mitl_3do.py \
        --config.source=ANNOTATIONS --config.out=DATA --config.min_rating=3

For supervised fine-tuning. `:tiny` needs no annotations: 24 synthetic items, about ten seconds of
one core.
"""

from configs.data import annotated


def get_config(variant: str = ""):
  c = annotated.dataset("mitl_3do")
  c.min_rating = 3.0
  return annotated.variant(c, variant)

r"""Preferences: pairs of winner and losers, for preference alignment (DPO).

    python -m launch.build_data --config configs/data/preferences.py \
        --config.source=ANNOTATIONS --config.out=DATA --config.families="('my_model',)"

They come from chains of choices between a model's own samples. Then add latents with
launch.encode_latents, winner's and losers' alike. `:tiny` needs no annotations: pairs from 24
synthetic items.
"""

from configs.data import annotated


def get_config(variant: str = ""):
  c = annotated.dataset("preferences")
  c.families = ("sam3d",)
  c.min_rating = 3.0
  return annotated.variant(c, variant)

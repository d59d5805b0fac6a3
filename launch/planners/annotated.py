"""Planners of datasets that are made from what others have annotated or rendered: configuration in,
plan of shards out.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from data_pipelines.annotations import dataset, items, synthetic
from data_pipelines.build import shard_jobs
from data_pipelines.convert import recgen, trellis
from data_pipelines.synth import sources


def plan_annotated(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of mitl_3do, art_3do or preferences."""
  recipe = items.Recipe(
    name=c.name,
    builder=c.builder,
    synthetic=c.source == sources.PROCEDURAL,
    min_rating=c.min_rating,
    families=tuple(c.families),
    pairs=c.pairs,
    max_losers=c.max_losers,
    max_side=c.max_side,
    image_format=c.image_format,
    license=c.license,
    max_coordinate=c.max_coordinate,
  )
  made_up = synthetic.SyntheticConfig(
    seed=c.seed,
    count=c.synthetic.count,
    families=tuple(c.synthetic.families),
    image_size=c.synthetic.image_size,
    candidates=c.synthetic.candidates,
  )
  config = dataset.AnnotationConfig(c.source, recipe, made_up)
  return dataset.plan(config, test_fraction=c.test_fraction, items_per_shard=c.items_per_shard)


def plan_recgen(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of a conversion of RecGen shards."""
  keys = (
    "name",
    "source",
    "pose_variant",
    "stereo",
    "min_visible",
    "min_pixels",
    "scale_range",
    "max_translation",
    "max_pose_norm",
    "min_aesthetic",
    "autoencoder",
    "slat_autoencoder",
    "license",
  )
  config = recgen.RecgenConfig(views=c.max_views, **{key: c[key] for key in keys})
  return recgen.plan(config, test_fraction=c.test_fraction, objects_per_shard=c.objects_per_shard)


def plan_trellis(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of a conversion of a TRELLIS toolkit folder."""
  keys = (
    "name",
    "source",
    "image_size",
    "image_format",
    "background",
    "alpha_threshold",
    "structure_encoder",
    "slat_encoder",
    "autoencoder",
    "slat_autoencoder",
    "min_aesthetic",
    "license",
  )
  config = trellis.TrellisConfig(views=c.max_views, **{key: c[key] for key in keys})
  return trellis.plan(config, test_fraction=c.test_fraction, objects_per_shard=c.objects_per_shard)


PLANNERS: dict[str, Callable[[ConfigDict], shard_jobs.Plan]] = {
  **dict.fromkeys(dataset.MAKERS, plan_annotated),
  "recgen": plan_recgen,
  "trellis": plan_trellis,
}

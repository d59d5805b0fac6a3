"""Plans of datasets of annotated photos, for launch.build_data."""

from ml_collections import ConfigDict

from data_pipelines.annotations import dataset, items, synthetic
from data_pipelines.build import shard_jobs
from data_pipelines.synth import sources
from sam3d_jax import sections


def plan_annotations(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of mitl_3do, art_3do or preferences."""
  # which of people's choices become examples, and how
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
  # what stands in for them where the source is procedural
  settings = {**c.synthetic, "seed": c.seed}
  made_up = sections.typed(synthetic.SyntheticConfig, settings, "synthetic")
  config = dataset.AnnotationConfig(c.source, recipe, made_up, c.files_outside)
  return dataset.plan(config, test_fraction=c.test_fraction, items_per_shard=c.items_per_shard)

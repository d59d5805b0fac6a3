"""Plans of conversions of datasets that others have made, for launch.build_data."""

from ml_collections import ConfigDict

from data_pipelines.build import shard_jobs
from data_pipelines.convert import recgen, trellis

# keys of the configuration that are fields of the converter's own one
RECGEN_KEYS = (
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
TRELLIS_KEYS = (
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


def plan_recgen(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of a conversion of RecGen shards."""
  same = {key: c[key] for key in RECGEN_KEYS}
  config = recgen.RecgenConfig(views=c.max_views, **same)
  return recgen.plan(
    config,
    test_fraction=c.test_fraction,
    objects_per_shard=c.objects_per_shard,
  )


def plan_trellis(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of a conversion of a TRELLIS toolkit folder."""
  same = {key: c[key] for key in TRELLIS_KEYS}
  config = trellis.TrellisConfig(views=c.max_views, **same)
  return trellis.plan(
    config,
    test_fraction=c.test_fraction,
    objects_per_shard=c.objects_per_shard,
  )

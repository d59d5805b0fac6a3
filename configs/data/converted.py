"""Keys of datasets that are converted from shards or folders of other projects."""

from ml_collections import ConfigDict

from configs.data import base


def dataset(name: str) -> ConfigDict:
  """Keys that every converter has."""
  c = ConfigDict()
  c.builder = name  # which converter makes the shards
  c.name = name  # of the dataset; shard files and records carry it
  c.source = ""  # folder to convert
  c.out = ""  # folder of the dataset
  c.workers = 0  # processes; 0: one a core. The data do not depend on it
  c.quarantine_budget = 0.02  # fraction of the objects that may be faulty before the build fails
  c.test_fraction = 0.02  # of the objects held out in the split "test"
  # objects of a shard, at most; 0: their number decides, 64 shards of no more than 32 each
  c.objects_per_shard = 0
  c.license = "unknown"  # of the source; it travels into every record
  c.max_views = 0  # views of an object, the first that pass; 0: all
  # what records name as the maker of their structure latents: the digest of the model that is
  # trained on them
  c.autoencoder = ""
  c.slat_autoencoder = ""  # the same of structured latents
  base.limits(c)
  c.min_aesthetic = 0.0  # objects with a lower score are left out; 4.5 is in use for texture
  return c

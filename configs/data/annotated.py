"""Keys of the datasets that are made from annotated photos.

docs/data.md describes the folder that they read.
"""

from ml_collections import ConfigDict

from configs.data import base


def dataset(name: str) -> ConfigDict:
  """Keys of mitl_3do, art_3do and preferences."""
  c = ConfigDict()
  c.builder = name  # which builder makes the shards
  c.name = name  # of the dataset; shard files and records carry it
  # folder with annotation.json files at any depth, or "procedural" for synthetic items
  c.source = ""
  c.out = ""  # folder of the dataset
  c.seed = 0  # of synthetic items
  c.workers = 0  # processes; 0: one a core. The data do not depend on it
  c.quarantine_budget = 0.02  # fraction of the items that may be faulty before the build fails
  c.test_fraction = 0.02  # of the photos held out in the split "test"
  # items of a shard, at most; 0: their number decides, 64 shards of no more than 32 each
  c.items_per_shard = 0
  c.license = "unknown"  # of items that state none
  # whether annotations may name files from outside of the source folder; links count as where they
  # lead
  c.files_outside = False

  # alpha: rating from which the best candidate is accepted; 0 accepts unrated items too
  c.min_rating = 0.0
  c.families = ()  # generator families whose candidates become preference pairs; empty: all
  c.pairs = "best"  # best: the best candidate against all that lost; all: also pairs below the best
  c.max_losers = 0  # losers kept of each winner, the hardest first; 0: all
  c.max_side = 0  # longer side of stored photos, pixels; 0: as they are
  c.image_format = "jpeg"  # png or jpeg, of photos that have to be encoded anew
  c.max_coordinate = 1e6  # meshes with larger coordinates are refused

  base.limits(c)
  c.synthetic = ConfigDict()  # read if source is "procedural"
  c.synthetic.count = 24  # items
  c.synthetic.families = ()  # names of procedural families; empty: all
  c.synthetic.image_size = 160  # pixels a side
  c.synthetic.candidates = 4  # of each item
  return c


def tiny(c: ConfigDict) -> ConfigDict:
  """Synthetic items: procedural objects, distorted candidates, a judge by voxel IoU."""
  c.source = "procedural"
  c.test_fraction = 0.1
  c.items_per_shard = 8
  return c


def variant(c: ConfigDict, name: str) -> ConfigDict:
  """Applies the variant `name`. Raises ValueError for one that does not exist."""
  if name not in ("", "tiny"):
    raise ValueError(f"variant '{name}' is unknown; there is 'tiny'")
  return tiny(c) if name == "tiny" else c

"""The smallest build of a dataset from made-up meshes."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/data/iso_3do.py") + ":tiny"
SMALL = (
  "procedural.count=6",
  "procedural.families=('mug','crate','hammer')",
  "views=2",
  "image_size=40",
  "objects_per_shard=2",
  "test_fraction=0.3",
  "workers=1",
)

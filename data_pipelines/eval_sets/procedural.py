"""The frozen procedural benchmark as an evaluation set."""

import json
import pathlib

from data_pipelines.eval_sets.item import Item
from data_pipelines.read import rows
from data_pipelines.synth import benchmark
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import surface
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose


class ProceduralSet:
  """The photos of a benchmark that was built into a folder (benchmark.plan). Every record is
  checked against its digest.
  """

  def __init__(self, chosen: benchmark.Benchmark, directory: str | pathlib.Path):
    self.benchmark = chosen
    self._source, self._order = benchmark.open_checked(chosen, directory)
    self.names = [
      f"{p['object']:03d}-{list(benchmark.LEVELS).index(p['level'])}-{p['level']}"
      for p in chosen.photos
    ]
    self.identity = {"set": chosen.name, "photos": len(chosen.photos), "digest": chosen.digest}

  def __getitem__(self, index: int) -> Item:
    photo, example = self.benchmark.photos[index], self._source[self._order[index]]
    asset = benchmark.object_asset(self.benchmark.seed, photo["object"])
    if asset.key != example["mesh_key"]:
      raise InputError(
        f"benchmark photo {self.names[index]}: the object's mesh is another one here "
        f"({asset.key[:12]} for "
        f"{example['mesh_key'][:12]}); install the versions in requirements.txt"
      )
    lineage = json.loads(example["lineage"])
    return Item(
      name=self.names[index],
      group=photo["level"],
      subject=f"object {photo['object']}: {lineage['mesh'].rpartition('/')[2]}",
      image_HW3=rows.decode_image(example["image"], "image", mode="RGB"),
      mask_HW=rows.decode_image(example["mask"], "mask", mode="L") > 0,
      pointmap_HW3=example["pointmap"].astype("float32"),
      camera=Camera(**{name: example["camera"][name] for name in Camera._fields}),
      voxels_N3=example["voxels"],
      truth=surface.make_surface(asset.mesh.vertices, asset.mesh.faces, name=self.names[index]),
      pose=Pose(
        example["rotation"].astype(float),
        example["translation"].astype(float),
        example["scale"].astype(float),
      ),
    )

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
    """Opens the built dataset. Raises InputError if a photo is missing or not the frozen one."""
    self.benchmark = chosen
    # Checked now, so that no score is taken of a changed photo.
    self._source, self._order = benchmark.open_checked(chosen, directory)
    levels = list(benchmark.LEVELS)
    self.names = []
    for photo in chosen.photos:
      # The level's number first, so that an object's photos sort from free to hidden.
      level = photo["level"]
      number = levels.index(level)
      self.names.append(f"{photo['object']:03d}-{number}-{level}")
    self.identity = {
      "set": chosen.name,
      "photos": len(chosen.photos),
      "digest": chosen.digest,
    }

  def __getitem__(self, index: int) -> Item:
    photo = self.benchmark.photos[index]
    example = self._source[self._order[index]]

    # The truth is made anew; it must be the mesh that was photographed.
    asset = benchmark.object_asset(self.benchmark.seed, photo["object"])
    if asset.key != example["mesh_key"]:
      raise InputError(
        f"benchmark photo {self.names[index]}: the object's mesh is another one here "
        f"({asset.key[:12]} for {example['mesh_key'][:12]}); install the versions in "
        "requirements.txt"
      )
    truth = surface.make_surface(
      asset.mesh.vertices,
      asset.mesh.faces,
      name=self.names[index],
    )

    # Photos of one object are not independent.
    lineage = json.loads(example["lineage"])
    _, _, mesh_name = lineage["mesh"].rpartition("/")
    mask = rows.decode_image(example["mask"], "mask", mode="L")
    intrinsics = {name: example["camera"][name] for name in Camera._fields}
    return Item(
      name=self.names[index],
      group=photo["level"],
      subject=f"object {photo['object']}: {mesh_name}",
      image_HW3=rows.decode_image(example["image"], "image", mode="RGB"),
      mask_HW=mask > 0,
      pointmap_HW3=example["pointmap"].astype("float32"),
      camera=Camera(**intrinsics),
      voxels_N3=example["voxels"],
      truth=truth,
      pose=Pose(
        rotation=example["rotation"].astype(float),
        translation=example["translation"].astype(float),
        scale=example["scale"].astype(float),
      ),
    )

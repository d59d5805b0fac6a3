"""Views: each object from all sides, lit by ambient light, what its structured latents are made
from and learned on.

One record a view, the views of an object one after the other; the first of them holds its voxels.
The cameras lie on a sphere around the object, at the points of a Hammersley set that a random
offset of the object turns, and look at its middle. A unit of length is the unit cube's edge.
"""

from collections.abc import Iterator
import dataclasses
import json

import numpy as np

from data_pipelines.build.shard_jobs import Plan
from data_pipelines.format import schema
from data_pipelines.synth import (
  assets,
  camera,
  filters,
  iso_3do,
  mesh_builds,
  render,
  sources,
  voxelize,
)
from data_pipelines.synth.assets import Asset
from data_pipelines.synth.camera import Viewpoint
from data_pipelines.synth.lighting import LightConfig, random_lights
from data_pipelines.synth.mesh_builds import MeshBuild
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, Refused
from sam3d_jax.geometry import cameras

VERSION = "1"  # raise it when the same seed gives other bytes
BLACK = (0, 0, 0)
CORNER = 3**0.5 / 2  # from the middle of the unit cube
STEEPEST = np.radians(89.5)  # elevation of a camera: straight up there is no left and right


@dataclasses.dataclass(frozen=True)
class SphereConfig:
  """Where the cameras are. radius: from the middle of the unit cube, in its edges."""

  radius: float = 2.0
  fov_deg: float = 40.0

  def __post_init__(self):
    sections.check_positive(self, "radius", "fov_deg")
    if self.radius <= CORNER:
      raise ConfigError(
        f"sphere.radius = {self.radius} is within the unit cube: give more than {CORNER:.3f}"
      )
    if self.fov_deg >= 170:
      raise ConfigError(f"sphere.fov_deg = {self.fov_deg}: give less than 170")


@dataclasses.dataclass(frozen=True)
class ViewsConfig:
  """Everything the examples depend on, apart from the meshes."""

  name: str
  seed: int
  views: int  # per object
  image_size: int  # pixels a side
  samples: int  # colour rays a pixel along each axis
  image_format: str  # png or jpeg
  lit: bool  # `image` under random light, one set an object; else ambient light alone
  source: sources.SourceConfig
  sphere: SphereConfig
  light: LightConfig
  filters: filters.FilterConfig


def plan(config: ViewsConfig, *, test_fraction: float, objects_per_shard: int) -> Plan:
  """Lists the source, splits it and cuts it into shards.

  Raises ConfigError on a wrong source or fraction.
  """
  build = MeshBuild(
    builder="views",
    description="Views: objects from all sides, with alpha, depth and surface voxels",
    make=make_examples,
    versions={"views": VERSION},
  )
  return mesh_builds.plan(
    build,
    config,
    test_fraction=test_fraction,
    objects_per_shard=objects_per_shard,
  )


def make_examples(asset: Asset, config: ViewsConfig) -> Iterator[schema.Example]:
  """One example per view of a mesh."""
  # Prepared once for all views of the mesh.
  scene = render.Scene(asset.mesh, asset.source)
  voxels = voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces)
  own = iso_3do.generator(config.seed, asset.key)
  places = sphere(config.views, own.uniform(0, 1, 2))
  lights = random_lights(own, config.light, float(own.uniform(0, 2 * np.pi)))

  for view, (azimuth, elevation) in enumerate(places):
    viewpoint = looking_from(azimuth, elevation, config)
    shown = render.render(
      scene,
      viewpoint,
      lights,
      samples=config.samples,
    )
    yield _example(
      asset,
      config,
      view,
      viewpoint,
      shown,
      voxels,
    )


def sphere(count: int, offset_2: np.ndarray) -> np.ndarray:
  """(count, 2) azimuth and elevation, radians, of a Hammersley set on the sphere; `offset_2` in
  0..1 moves it along both.
  """
  # evenly in height, and in azimuth by the bits of the index mirrored at the point
  index = np.arange(count)
  height = (index + offset_2[0]) / count
  turn = (mirrored(index) + offset_2[1]) % 1.0
  elevation = np.arcsin(np.clip(2 * height - 1, -1, 1))
  steep = np.clip(elevation, -STEEPEST, STEEPEST)
  return np.stack([2 * np.pi * turn, steep], axis=1)


def mirrored(index_N: np.ndarray) -> np.ndarray:
  """Radical inverse in base 2: 0, 1/2, 1/4, 3/4, 1/8, ..."""
  value = np.zeros(len(index_N))
  rest = np.array(index_N)
  place = 0.5
  while rest.any():
    value += place * (rest % 2)
    rest //= 2
    place /= 2
  return value


def looking_from(azimuth: float, elevation: float, config: ViewsConfig) -> Viewpoint:
  """A camera of the sphere; the object at its own size."""
  size = config.image_size
  fov = np.radians(config.sphere.fov_deg)
  pinhole = cameras.camera_from_fov(size, size, fov)
  ahead = np.array([0.0, 0.0, config.sphere.radius])
  rotation = camera.look_at(azimuth, elevation)
  return camera.viewpoint(pinhole, rotation, ahead)


def _example(
  asset: Asset,
  config: ViewsConfig,
  view: int,
  viewpoint: Viewpoint,
  shown: render.View,
  voxels: np.ndarray,
) -> schema.Example:
  """The record of one view before black. Raises Refused for a view that shows nothing."""
  if not shown.mask_HW.any():
    raise Refused("empty_view", f"view {view} shows nothing of the object")
  mask = render.encode(shown.mask_HW)
  alpha_HW = np.round(255 * shown.alpha_HW).astype(np.uint8)
  delit = render.over(shown.delit_HW3, shown.alpha_HW, BLACK)
  lineage = {
    "builder": "views",
    "mesh": asset.source,
    "seed": config.seed,
    "view": view,
    "views": config.views,
    "lit": config.lit,
    **assets.lineage(asset),
    "views_version": VERSION,
    **mesh_builds.versions(),
  }

  example = schema.empty_example()
  example.update(
    key=schema.example_key(config.name, config.seed, asset.source, asset.key, view),
    source=config.name,
    view=np.int32(view),
    image=render.encode(delit, config.image_format),
    alpha=render.encode(alpha_HW),
    depth=shown.depth_HW.astype(np.float16),
    mask=mask,
    mask_full=mask,  # nothing stands before the object
    camera=schema.camera_field(viewpoint.camera),
    mesh_key=asset.key,
    license=asset.license,
    lineage=json.dumps(lineage, sort_keys=True),
    **schema.pose_fields(viewpoint.pose),
  )
  # once an object: 96 kB in each of 150 views would be most of the dataset
  if view == 0:
    example["voxels"] = voxels
  if config.lit:
    lit = render.over(shown.lit_HW3, shown.alpha_HW, BLACK)
    example["image"] = render.encode(lit, config.image_format)
    example["image_delit"] = render.encode(delit, config.image_format)
  return example

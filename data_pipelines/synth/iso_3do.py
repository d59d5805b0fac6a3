"""Iso-3DO: one object alone on a plain background, seen from random viewpoints under random light.

One example per object and view; every random number is drawn from (seed, mesh key, view).
"""

from collections.abc import Iterator
import dataclasses
import json

import numpy as np

from data_pipelines.build.shard_jobs import Plan
from data_pipelines.format import schema
from data_pipelines.synth import assets, filters, mesh_builds, render, sources, voxelize
from data_pipelines.synth.assets import Asset
from data_pipelines.synth.camera import ViewConfig, Viewpoint, random_view
from data_pipelines.synth.lighting import LightConfig, random_lights
from data_pipelines.synth.mesh_builds import MeshBuild


@dataclasses.dataclass(frozen=True)
class IsoConfig:
  """Everything the examples depend on, apart from the meshes."""

  name: str
  seed: int
  views: int  # per object
  image_size: int  # pixels a side
  samples: int  # colour rays a pixel along each axis
  image_format: str  # png or jpeg
  background: tuple[int, int]  # grey levels of the plain background, drawn uniformly
  pointmap: bool  # whether to store the point map
  delit: bool  # whether to store the de-lit image
  source: sources.SourceConfig
  camera: ViewConfig
  light: LightConfig
  filters: filters.FilterConfig


def plan(config: IsoConfig, *, test_fraction: float, objects_per_shard: int) -> Plan:
  """Lists the source, splits it and cuts it into shards.

  Raises ConfigError on a wrong source or fraction.
  """
  build = MeshBuild(
    builder="iso_3do",
    description="Iso-3DO: rendered single objects with surface voxels and pose",
    make=make_examples,
  )
  return mesh_builds.plan(
    build,
    config,
    test_fraction=test_fraction,
    objects_per_shard=objects_per_shard,
  )


def make_examples(asset: Asset, config: IsoConfig) -> Iterator[schema.Example]:
  """One example per view of a mesh."""
  # Prepared once for all views of the mesh.
  scene = render.Scene(asset.mesh, asset.source)
  voxels = voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces)
  radius = asset.radius

  # The object has one size in all of its views.
  low, high = np.log(config.camera.scale)
  own = generator(config.seed, asset.key)
  scale = float(np.exp(own.uniform(low, high)))

  # Camera, light and background of a view are drawn by themselves.
  for view in range(config.views):
    rng = generator(config.seed, asset.key, view)
    viewpoint, azimuth = random_view(
      rng,
      config.camera,
      image_size=config.image_size,
      radius=radius,
      scale=scale,
    )
    lights = random_lights(rng, config.light, azimuth)
    darkest, brightest = config.background
    grey = int(rng.integers(darkest, brightest + 1))
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
      grey,
      voxels,
    )


def generator(seed: int, key: str, *indices: int) -> np.random.Generator:
  """The random numbers of (seed, content key, indices), the same on every machine."""
  # the key's 32 hexadecimal digits are four words
  words = [int(key[i : i + 8], 16) for i in range(0, 32, 8)]
  return np.random.default_rng([seed, len(indices), *indices, *words])


def _example(
  asset: Asset,
  config: IsoConfig,
  view: int,
  viewpoint: Viewpoint,
  shown: render.View,
  grey: int,
  voxels: np.ndarray,
) -> schema.Example:
  """The record of one view before a plain grey."""
  # Opaque: alpha is in the mask.
  background = (grey, grey, grey)
  image = render.over(shown.lit_HW3, shown.alpha_HW, background)
  mask = render.encode(shown.mask_HW)
  lineage = {
    "builder": "iso_3do",
    "mesh": asset.source,
    "seed": config.seed,
    "view": view,
    "background": grey,
    **assets.lineage(asset),
    **mesh_builds.versions(),
  }

  example = schema.empty_example()
  example.update(
    key=schema.example_key(config.name, config.seed, asset.source, asset.key, view),
    source=config.name,
    view=np.int32(view),
    image=render.encode(image, config.image_format),
    mask=mask,
    mask_full=mask,  # nothing stands before the object
    camera=schema.camera_field(viewpoint.camera),
    voxels=voxels,
    mesh_key=asset.key,
    license=asset.license,
    lineage=json.dumps(lineage, sort_keys=True),
    **schema.pose_fields(viewpoint.pose),
  )
  if config.pointmap:
    example["pointmap"] = shown.pointmap_HW3.astype(np.float16)
  if config.delit:
    delit = render.over(shown.delit_HW3, shown.alpha_HW, background)
    example["image_delit"] = render.encode(delit, config.image_format)
  return example

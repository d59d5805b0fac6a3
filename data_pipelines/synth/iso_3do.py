"""Iso-3DO: one object alone on a plain background, seen from random viewpoints under random light.

`make_shard` is a pure function of its specification; every random number is drawn from (seed, mesh
key, view). One example per object and view; the objects of the train and test splits are disjoint.
"""

from collections.abc import Iterator
import dataclasses
import functools
from importlib import metadata
import json

import numpy as np

from data_pipelines.build.shard_jobs import Plan, Quarantined, Refusals, contained
from data_pipelines.format import schema
from data_pipelines.synth import assets, filters, render, sources, voxelize
from data_pipelines.synth.assets import Asset
from data_pipelines.synth.camera import ViewConfig, Viewpoint, random_view
from data_pipelines.synth.lighting import LightConfig, random_lights
from sam3d_jax.errors import Refused

RENDERER_VERSION = "1"  # raise it when the same seed gives other pixels


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


@dataclasses.dataclass(frozen=True)
class ShardSpec:
  """What one shard is made of."""

  config: IsoConfig
  inputs: tuple[sources.Input, ...]


def plan(config: IsoConfig, *, test_fraction: float, objects_per_shard: int) -> Plan:
  """Lists the source, splits it and cuts it into shards.

  Raises ConfigError on a wrong source or fraction.
  """
  inputs = sources.list_inputs(config.source)
  per_shard = sources.per_shard(objects_per_shard, len(inputs))
  jobs = sources.deal_jobs(
    inputs,
    test_fraction=test_fraction,
    per_shard=per_shard,
    spec=functools.partial(ShardSpec, config),
  )

  # What the bytes depend on; where the meshes lie changes none.
  as_json = json.dumps(dataclasses.asdict(config))
  settings = json.loads(as_json)
  if config.source.source != sources.PROCEDURAL:
    settings["source"]["source"] = "folder"
  identity = {
    "builder": "iso_3do",
    "schema": schema.VERSION,
    "renderer": RENDERER_VERSION,
    "config": settings,
    "test_fraction": test_fraction,
    "objects_per_shard": per_shard,
    "inputs": {"count": len(inputs), "digest": sources.digest(inputs)},
  }
  return Plan(
    name=config.name,
    jobs=tuple(jobs),
    make=make_shard,
    identity=identity,
    lineage=_versions(),
    warnings=(
      *sources.split_warning((job.split for job in jobs), test_fraction, "meshes"),
      *sources.license_warning(config.source, inputs),
    ),
    description="Iso-3DO: rendered single objects with surface voxels and pose",
  )


@functools.cache
def _versions() -> dict[str, str]:
  # Whose versions can change a byte.
  packages = ("embreex", "numpy", "pillow", "trimesh")
  installed = {name: metadata.version(name) for name in packages}
  return {"renderer": f"embreex-numpy {RENDERER_VERSION}"} | installed


def make_shard(spec: ShardSpec, refuse: Refusals) -> Iterator[schema.Example]:
  """Yields the examples of a shard in order; refused meshes are reported and skipped."""
  for item in refuse.each(spec.inputs):
    try:
      asset = sources.read(refuse, spec.config.source, spec.config.filters, item)
      # a mesh gives all of its views, or none
      with contained():
        made = list(make_examples(asset, spec.config))
    except Refused as error:
      refused = Quarantined(
        path=item.name,
        reason=error.reason,
        detail=error.detail,
      )
      refuse(refused)
      continue
    yield from made


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
    **_versions(),
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

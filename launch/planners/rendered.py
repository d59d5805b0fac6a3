"""Plans of datasets of rendered meshes, for launch.build_data."""

from ml_collections import ConfigDict

from data_pipelines.build import shard_jobs
from data_pipelines.synth import filters, iso_3do, sources, views
from data_pipelines.synth.camera import ViewConfig
from data_pipelines.synth.lighting import LightConfig
from sam3d_jax import sections


def mesh_source(c: ConfigDict) -> sources.SourceConfig:
  """Where the meshes come from."""
  return sources.SourceConfig(
    source=c.source,
    seed=c.seed,
    count=c.procedural.count,
    families=tuple(c.procedural.families),
    license=c.license,
    max_coordinate=c.mesh.max_coordinate,
  )


def plan_iso_3do(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of an Iso-3DO build."""
  config = iso_3do.IsoConfig(
    name=c.name,
    seed=c.seed,
    views=c.views,
    image_size=c.image_size,
    samples=c.samples,
    image_format=c.image_format,
    background=c.background,
    pointmap=c.pointmap,
    delit=c.delit,
    source=mesh_source(c),
    camera=sections.typed(ViewConfig, c.camera, "camera"),
    light=sections.typed(LightConfig, c.light, "light"),
    filters=sections.typed(filters.FilterConfig, c.filters, "filters"),
  )
  return iso_3do.plan(config, test_fraction=c.test_fraction, objects_per_shard=c.objects_per_shard)


def plan_views(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of a build of views."""
  config = views.ViewsConfig(
    name=c.name,
    seed=c.seed,
    views=c.views,
    image_size=c.image_size,
    samples=c.samples,
    image_format=c.image_format,
    lit=c.lit,
    source=mesh_source(c),
    sphere=sections.typed(views.SphereConfig, c.sphere, "sphere"),
    light=sections.typed(LightConfig, c.light, "light"),
    filters=sections.typed(filters.FilterConfig, c.filters, "filters"),
  )
  return views.plan(config, test_fraction=c.test_fraction, objects_per_shard=c.objects_per_shard)

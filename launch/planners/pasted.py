"""Plans of the render-and-paste datasets, for launch.build_data."""

from collections.abc import Callable
import dataclasses
import os

from ml_collections import ConfigDict

from data_pipelines.build import shard_jobs
from data_pipelines.synth import (
  filters,
  flying,
  render_paste,
  scenes,
  sources,
  swap,
  swap_annotated,
)
from data_pipelines.synth.lighting import LightConfig
from sam3d_jax.errors import ConfigError
from sam3d_jax.files import commands

RULES = {
  "rp_3do_fo": flying.FlyingRules,
  "rp_3do_osr": swap.SwapRules,
  "rp_3do_osa": swap.SwapRules,
}
DRAWS = {"rp_3do_fo": flying.draw, "rp_3do_osr": swap.draw_random}


def paste_config(c: ConfigDict) -> render_paste.PasteConfig:
  """The builder's configuration. Raises ConfigError on values that it cannot work with."""
  check(c)
  cache = c.photos.depth_cache or os.path.join(c.out, "pointmaps")
  photos = scenes.PhotoConfig(
    **{**c.photos, "depth_cache": cache}, seed=c.seed, image_size=c.image_size
  )
  source = sources.SourceConfig(
    source=c.source,
    seed=c.seed,
    count=c.procedural.count,
    families=tuple(c.procedural.families),
    license=c.license,
    max_coordinate=c.mesh.max_coordinate,
  )
  same = (
    "builder",
    "name",
    "seed",
    "views",
    "samples",
    "image_format",
    "delit",
    "attempts",
    "partners",
    "photos_per_shard",
  )
  return render_paste.PasteConfig(
    **{key: c[key] for key in same},
    source=source,
    photos=photos,
    light=LightConfig(**c.light),
    filters=filters.FilterConfig(**c.filters),
    rules=RULES[c.builder](**c.rules),
  )


def check(c: ConfigDict) -> None:
  """Raises ConfigError, naming key and value."""
  for key in ("attempts", "photos_per_shard"):
    if c[key] < 1:
      raise ConfigError(f"{key} = {c[key]}: it must be at least 1")
  if c.partners < 0:
    raise ConfigError(f"partners = {c.partners}: it must be 0 or more")
  for field in dataclasses.fields(RULES[c.builder]):
    value = c.rules[field.name]
    if isinstance(value, tuple) and (len(value) != 2 or not 0 <= value[0] <= value[1]):
      raise ConfigError(
        f"rules.{field.name} = {value}: it must be a range (low, high) of positive numbers"
      )
    largest = {"box_percent": 50, "largest_turn_deg": 180}.get(field.name, 1)
    if not isinstance(value, tuple) and not 0 <= value <= largest:
      raise ConfigError(f"rules.{field.name} = {value}: it must lie between 0 and {largest}")
  if c.photos.depth_command:
    commands.parse(c.photos.depth_command, "photos.depth_command")


def plan(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of an RP-3DO build."""
  config = paste_config(c)
  if c.builder == "rp_3do_osa":
    return swap_annotated.plan(
      config, test_fraction=c.test_fraction, items_per_shard=c.objects_per_shard
    )
  return render_paste.plan(
    config,
    DRAWS[c.builder],
    test_fraction=c.test_fraction,
    objects_per_shard=c.objects_per_shard,
    needs_depth=c.builder != "rp_3do_fo",
  )


PLANNERS: dict[str, Callable[[ConfigDict], shard_jobs.Plan]] = dict.fromkeys(RULES, plan)

"""Plans of the render-and-paste datasets, for launch.build_data."""

import dataclasses
import os

from ml_collections import ConfigDict

from data_pipelines.build import shard_jobs
from data_pipelines.synth import filters, flying, render_paste, scenes, swap, swap_annotated
from data_pipelines.synth.lighting import LightConfig
from launch.planners import rendered
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError
from sam3d_jax.files import commands

# keys of the configuration that are fields of PasteConfig
SAME_KEYS = (
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
# largest value of a rule that is a single number; 1 where none is named
LARGEST_RULES = {"box_percent": 50, "largest_turn_deg": 180}


def plan_flying(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of rp_3do_fo: flying occlusions, which need no depth."""
  return _plan_drawn(c, flying.FlyingRules, flying.draw, needs_depth=False)


def plan_random_swap(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of rp_3do_osr: objects swapped for random ones."""
  return _plan_drawn(c, swap.SwapRules, swap.draw_random, needs_depth=True)


def plan_annotated_swap(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of rp_3do_osa: objects swapped for what was annotated in their place."""
  return swap_annotated.plan(
    paste_config(c, swap.SwapRules),
    test_fraction=c.test_fraction,
    items_per_shard=c.objects_per_shard,
  )


def _plan_drawn(c: ConfigDict, rules: type, draw, *, needs_depth: bool) -> shard_jobs.Plan:
  return render_paste.plan(
    paste_config(c, rules),
    draw,
    test_fraction=c.test_fraction,
    objects_per_shard=c.objects_per_shard,
    needs_depth=needs_depth,
  )


def paste_config(c: ConfigDict, rules: type) -> render_paste.PasteConfig:
  """The builder's configuration. Raises ConfigError on values that it cannot work with."""
  check(c, rules)
  # point maps that are made on the way are kept with the dataset, unless told where
  cache = c.photos.depth_cache or os.path.join(c.out, "pointmaps")
  photo_keys = {
    **c.photos,
    "depth_cache": cache,
    "seed": c.seed,
    "image_size": c.image_size,
  }
  photos = sections.typed(scenes.PhotoConfig, photo_keys, "photos")

  same = {key: c[key] for key in SAME_KEYS}
  return render_paste.PasteConfig(
    **same,
    source=rendered.mesh_source(c),
    photos=photos,
    light=sections.typed(LightConfig, c.light, "light"),
    filters=sections.typed(filters.FilterConfig, c.filters, "filters"),
    rules=sections.typed(rules, c.rules, "rules"),
    files_outside=c.get("files_outside", False),
  )


def check(c: ConfigDict, rules: type) -> None:
  """Raises ConfigError, naming key and value."""
  # how often, how many
  for key in ("attempts", "photos_per_shard"):
    if c[key] < 1:
      raise ConfigError(f"{key} = {c[key]}: it must be at least 1")
  if c.partners < 0:
    raise ConfigError(f"partners = {c.partners}: it must be 0 or more")

  # the rules of this builder; each is a key of the section
  for field in dataclasses.fields(rules):
    check_rule(field.name, c.rules[field.name])
  if c.photos.depth_command:
    commands.parse(c.photos.depth_command, "photos.depth_command")


def check_rule(name: str, value) -> None:
  """Raises ConfigError for a rule that is neither a range of positive numbers nor in its bounds."""
  if isinstance(value, tuple):
    is_range = len(value) == 2 and 0 <= value[0] <= value[1]
    if not is_range:
      raise ConfigError(
        f"rules.{name} = {value}: it must be a range (low, high) of positive numbers"
      )
    return
  largest = LARGEST_RULES.get(name, 1)
  if not 0 <= value <= largest:
    raise ConfigError(f"rules.{name} = {value}: it must lie between 0 and {largest}")

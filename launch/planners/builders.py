"""Every kind of dataset that launch.build_data can make: `builder` of a configuration -> planner.

A planner turns the configuration into a plan of shards (data_pipelines/build/shard_jobs.py); the
shards are pure functions of that plan. A new kind of dataset is one entry here and its
configuration in configs/data/.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from data_pipelines.build.shard_jobs import Plan
from launch.planners import annotations, converted, pasted, rendered

PLANNERS: dict[str, Callable[[ConfigDict], Plan]] = {
  # renders of meshes
  "iso_3do": rendered.plan_iso_3do,
  "views": rendered.plan_views,
  # renders pasted into photos
  "rp_3do_fo": pasted.plan_flying,
  "rp_3do_osr": pasted.plan_random_swap,
  "rp_3do_osa": pasted.plan_annotated_swap,
  # photos with shapes that people chose, made or compared
  "mitl_3do": annotations.plan_annotations,
  "art_3do": annotations.plan_annotations,
  "preferences": annotations.plan_annotations,
  # datasets that others have made
  "recgen": converted.plan_recgen,
  "trellis": converted.plan_trellis,
}

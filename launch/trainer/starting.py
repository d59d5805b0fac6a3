"""Where a run starts: resume (same work folder) > initialise (`init_from`) > scratch; and where it
came from, for the record.
"""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax
from ml_collections import ConfigDict

from data_pipelines.format import records
from launch.trainer.setup import Setup
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import registry as models
from sam3d_jax.objectives import registry as objectives
from sam3d_jax.training import checkpoint
from sam3d_jax.training.checkpointer import Checkpointer
from sam3d_jax.training.state import init_state

SHOWN_LEAVES = 6


def starting_state(setup: Setup, checkpointer: Checkpointer):
  """The state to start from and the lineage of what will be saved; prints which of the three it is.

  A leaf of `init_from` that does not fit is an error unless
  `init_allow` matches its path.
  """
  config = setup.config
  restored = checkpointer.restore(setup.abstract_state)
  if restored is not None:
    checkpointer.discard_bad_steps()
    state, meta = restored
    check_same_run(meta["config"], config, setup.workdir)
    print(f"start: resuming {setup.workdir} at step {meta['step']}")
    return state, meta["lineage"]
  start = lambda params: init_state(setup.optim, params, keep_reference=setup.keeps_reference)
  if not config.init_from:
    print(
      f"start: random parameters, seed {config.seed} (no checkpoint in {setup.workdir}, init_from "
      "not set)"
    )
    return run_once(lambda: start(setup.random_params()), setup.shardings), make_lineage(config, [])
  params, parent = checkpoint.initial_params(
    config.init_from,
    setup.param_shapes,
    setup.mesh,
    which=config.init_which,
    allow=setup.init_allow,
  )
  print(
    f"start: the {config.init_which} parameters of {config.init_from} step {parent['step']} "
    f"(digest {parent['digest']})"
  )
  for what, leaves in (
    ("new, drawn at random", parent["fresh"]),
    ("not taken over", parent["left_out"]),
  ):
    if leaves:
      print(
        f"  {what}: {len(leaves)} leaves, "
        f"{', '.join(leaves[:SHOWN_LEAVES])}{' ...' if len(leaves) > SHOWN_LEAVES else ''}"
      )
  whole = (lambda given: start({**setup.random_params(), **given})) if parent["fresh"] else start
  return run_once(whole, setup.shardings, params), make_lineage(config, [parent])


def run_once(fn, shardings, *args):
  """Runs a function that is worth no optimisation: on CPU its compile time is all that it costs (7
  times less this way).
  """
  options = (
    {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}
    if jax.default_backend() == "cpu"
    else None
  )
  return jax.jit(fn, out_shardings=shardings).lower(*args).compile(compiler_options=options)(*args)


def keep_recorded_values(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Lets a run that began before a key was there go on with what it began with."""
  # Only keys that this configuration has, and that do not have to be set by hand.
  kept = {}
  for path, later in models.lookup(config.model.name).later_keys.items():
    section = models.section_of(config.model, path)
    if later.told and section is not None:
      kept[path] = later, section
  if not kept or not checkpoint.steps(workdir):
    return

  recorded = checkpoint.read_meta(workdir)["config"]["model"]
  for path, (later, section) in kept.items():
    then = models.section_of(recorded, path)
    if then is None or path[-1] in then:
      continue
    section[path[-1]] = later.value
    print(
      f"{workdir} was started with {later.told} and goes on so "
      f"(model.{'.'.join(path)} = {later.value})"
    )


RESUMABLE_CHANGES = (
  "steps",
  "checkpoint",
  "eval",
  "log",
  "mesh",
  "compile_cache",
  "accumulate",
  "guard",
  "watchdog",
)


def check_same_run(before: dict, config: ConfigDict, workdir: pathlib.Path) -> None:
  """A work folder belongs to one experiment: resuming it with other science is an error that names
  the first difference.
  """
  now = config.to_dict()
  performance = {
    ("data", "threads"),
    ("data", "prefetch"),
    ("data", "cache_mb"),
    ("data", "workers"),
  }
  later_keys = models.lookup(config.model.name).later_keys
  for key, old, new in differences(before, now):
    # It was not a key when the run began.
    later = later_keys.get(key[1:]) if key[0] == "model" else None
    if old is None and later is not None and new == later.value:
      continue
    if (
      key[0] in RESUMABLE_CHANGES
      or key[:2] in performance
      or key[-1] in ("remat", "unroll", "attention", "path")
    ):
      continue
    raise ConfigError(
      f"{workdir} was started with {'.'.join(key)} = {old!r}, now it is {new!r}: use another "
      "--workdir, or "
      "--config.init_from to start a new stage from its parameters"
    )


def differences(a, b, prefix: tuple[str, ...] = ()):
  """(key path, value in a, value in b) of every leaf that differs between nested dictionaries."""
  for key in sorted(set(a) | set(b)):
    x, y = a.get(key), b.get(key)
    if isinstance(x, dict) and isinstance(y, dict):
      yield from differences(x, y, (*prefix, key))
    elif (list(x) if isinstance(x, tuple) else x) != (list(y) if isinstance(y, tuple) else y):
      yield (*prefix, key), x, y


def make_lineage(config: ConfigDict, parents: list[dict]) -> dict:
  """Where a checkpoint comes from: stage, parents, datasets, versions."""
  datasets = {}
  if config.data.kind == "shards":
    datasets = {
      name: records.dataset_identity(entry.path)
      for name, entry in config.data.mixture.items()
      if entry.weight
    }
  versions = {
    p: importlib.metadata.version(p)
    for p in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  }
  return {
    "stage": config.stage,
    "parents": parents,
    "datasets": datasets,
    "versions": versions | {"python": platform.python_version()},
    "commit": git_commit(),
    "seed": config.seed,
    "learned": learned(config, parents),
  }


def learned(config: ConfigDict, parents: list[dict]) -> list[str]:
  """Latents that this run or an ancestor of it has trained: a stage that trains fewer does not
  unlearn the others.
  """
  name = config.model.name
  known = set(objectives.learned_latents(config.objective, name))
  for parent in parents:
    known.update(parent["lineage"].get("learned", ()))
  return [latent for latent in models.lookup(name).latents if latent in known]


def git_commit() -> str:
  """Commit of the code, '' outside a checkout."""
  folder = pathlib.Path(__file__).parents[2]
  if not (folder / ".git").exists():
    return ""
  done = subprocess.run(
    ["git", "rev-parse", "HEAD"],
    cwd=folder,
    capture_output=True,
    text=True,
    env={**os.environ, "LC_ALL": "C"},
  )
  return done.stdout.strip()

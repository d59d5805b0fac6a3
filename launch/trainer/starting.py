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
from launch.console.progress import say
from launch.trainer import identity
from launch.trainer import setup as setup_lib
from launch.trainer.setup import Setup
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, InputError, JobFailed
from sam3d_jax.models import registry as models
from sam3d_jax.objectives import registry as objectives
from sam3d_jax.training import agreement, checkpoint_params, checkpoint_steps, compilation
from sam3d_jax.training.checkpointer import Checkpointer
from sam3d_jax.training.checksums import CorruptCheckpoint
from sam3d_jax.training.state import init_state

SHOWN_LEAVES = 6
# of which a checkpoint records the versions
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def starting_state(setup: Setup, checkpointer: Checkpointer, reads: identity.Identity):
  """The state to start from, the lineage of what will be saved, and the setup to go on with; prints
  how it starts.

  reads: what its batches depend on, compared with what the run began with. The setup is another one
  where the run goes on with a value that it recorded (see `keep_recorded_values`). A leaf of
  `init_from` that does not fit is an error unless `init_allow` matches its path.
  """
  config = setup.config

  # Resume.
  restored = checkpointer.restore(setup.abstract_state)
  if restored is not None:
    checkpointer.discard_bad_steps()
    state, meta = restored
    # It may be an older step than the one that the setup was made for.
    if keep_recorded_values(config, meta["config"], setup.workdir):
      setup = setup_lib.prepare(config, setup.workdir)
    check_same_run(meta["config"], config, setup.workdir)
    step = meta["step"]
    lineage = identity.carried_on(meta["lineage"], step, reads, config, setup.workdir)
    print(f"start: resuming {setup.workdir} at step {step}")
    return state, lineage, setup

  def start(params):
    return init_state(setup.optim, params, keep_reference=setup.keeps_reference)

  # From scratch.
  if not config.init_from:
    print(
      f"start: random parameters, seed {config.seed} (no checkpoint in {setup.workdir}, init_from "
      "not set)"
    )
    state = run_once(lambda: start(setup.random_params()), setup.shardings)
    return state, make_lineage(config, [], reads), setup

  # Initialise, with random parameters where the parent has none.
  params, parent = checkpoint_params.initial_params(
    config.init_from,
    setup.param_shapes,
    setup.mesh,
    which=config.init_which,
    allow=setup.init_allow,
    model=config.model,
  )
  print(
    f"start: the {config.init_which} parameters of {config.init_from} step {parent['step']} "
    f"(digest {parent['digest']})"
  )
  tell_leaves("new, drawn at random", parent["fresh"])
  tell_leaves("not taken over", parent["left_out"])

  def completed(given):
    if parent["fresh"]:
      given = {**setup.random_params(), **given}
    return start(given)

  state = run_once(completed, setup.shardings, params)
  return state, make_lineage(config, [parent], reads), setup


def tell_leaves(what: str, leaves: list[str]) -> None:
  """Prints how many leaves there are of a kind, and the first of them."""
  if not leaves:
    return
  shown = ", ".join(leaves[:SHOWN_LEAVES])
  if len(leaves) > SHOWN_LEAVES:
    shown += " ..."
  print(f"  {what}: {len(leaves)} leaves, {shown}")


def run_once(fn, shardings, *args):
  """Runs a function that is worth no optimisation: on CPU its compile time is all that it costs (7
  times less this way).
  """
  options = None
  if jax.default_backend() == "cpu":
    options = {
      "xla_llvm_disable_expensive_passes": True,
      "xla_backend_optimization_level": 0,
    }
  lowered = jax.jit(fn, out_shardings=shardings).lower(*args)
  program = compilation.compiled(lowered, "the state to start from", say, options)
  return program(*args)


def recorded_meta(workdir: pathlib.Path) -> dict | None:
  """Step, configuration and lineage that the newest readable checkpoint of a work folder was
  written with, as plain values; None without any. The first process of a job reads it for all.
  """
  error, found = None, None
  if jax.process_index() == 0:
    try:
      found = _recorded_meta(workdir)
    except (InputError, JobFailed) as raised:
      error = raised
  agreement.settle(error)
  return agreement.of_first(found)


def _recorded_meta(workdir: pathlib.Path) -> dict | None:
  for step in reversed(checkpoint_steps.steps(workdir)):
    try:
      meta = checkpoint_steps.read_meta(workdir, step)
      return {key: meta[key] for key in ("step", "config", "lineage")}
    # restoring names it, and takes the one before too
    except CorruptCheckpoint:
      continue
  return None


def keep_recorded_values(config: ConfigDict, recorded: dict, workdir: pathlib.Path) -> bool:
  """Lets a run that began before a key was there go on with what it began with.

  recorded: the configuration of the checkpoint that it goes on from. Returns whether a value of
  `config` was changed for that.
  """
  changed = False
  for path, later in models.lookup(config.model.name).later_keys.items():
    # Only keys that this configuration has, and that do not have to be set by hand.
    section = models.section_of(config.model, path)
    then = models.section_of(recorded["model"], path)
    if not later.told or section is None or then is None:
      continue

    # A run that went on so has recorded the value since.
    key = path[-1]
    began_with_it = then.get(key, later.value) == later.value
    if not began_with_it or section[key] == later.value:
      continue
    section[key] = later.value
    changed = True
    print(
      f"{workdir} was started with {later.told} and goes on so "
      f"(model.{'.'.join(path)} = {later.value})"
    )
  return changed


def agree_with_run(config: ConfigDict, workdir: pathlib.Path) -> dict | None:
  """Takes over what the run of a work folder began with; what that was, see `recorded_meta`.

  Raises ConfigError naming the first key that makes it another experiment, before its state is
  read, which would list arrays.
  """
  recorded = recorded_meta(workdir)
  if recorded is not None:
    keep_recorded_values(config, recorded["config"], workdir)
    check_same_run(recorded["config"], config, workdir)
  return recorded


# What may change from one start of a run to the next: sections and keys of the configuration,
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
# how fast data are read,
READING_SPEED = (
  ("data", "threads"),
  ("data", "prefetch"),
  ("data", "cache_mb"),
  ("data", "workers"),
  ("data", "accept_changes"),
)
# and, in whatever section, how the model is computed and where its data lie.
RESUMABLE_NAMES = (
  "remat",
  "unroll",
  "attention",
  "path",
)


def check_same_run(before: dict, config: ConfigDict, workdir: pathlib.Path) -> None:
  """A work folder belongs to one experiment: resuming it with other science is an error that names
  the first difference.
  """
  now = config.to_dict()
  # Every difference has to be one that may be.
  later_keys = models.lookup(config.model.name).later_keys
  for key, old, new in sections.differences(before, now):
    # It was not a key when the run began.
    later = later_keys.get(key[1:]) if key[0] == "model" else None
    if old is None and later is not None and new == later.value:
      continue
    if key[0] in RESUMABLE_CHANGES or key[:2] in READING_SPEED or key[-1] in RESUMABLE_NAMES:
      continue
    name = ".".join(key)
    raise ConfigError(
      f"{workdir} was started with {name} = {old!r}, now it is {new!r}: use another --workdir, or "
      "--config.init_from to start a new stage from its parameters"
    )


def make_lineage(config: ConfigDict, parents: list[dict], reads: identity.Identity) -> dict:
  """Where a checkpoint comes from: stage, parents, datasets, versions."""
  # Sources of weight 0 are not read.
  datasets = {}
  if config.data.kind == "shards":
    for name, entry in config.data.mixture.items():
      if entry.weight:
        datasets[name] = records.dataset_lineage(entry.path)
  versions = {package: importlib.metadata.version(package) for package in PACKAGES}
  versions["python"] = platform.python_version()
  return {
    "stage": config.stage,
    "parents": parents,
    "datasets": datasets,
    "reads": reads,
    "versions": versions,
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
  # Lineages that older code wrote do not say.
  for parent in parents:
    before = parent["lineage"].get("learned", ())
    known.update(before)
  latents = models.lookup(name).latents
  return [latent for latent in latents if latent in known]


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

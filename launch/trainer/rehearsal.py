"""A dry run of a training command: everything that can be found without training, and the plan.

Nothing is written and no folder is made. Devices may be described rather than present, and data may
be missing. What is there is checked: the work folder's own configuration and state, `init_from`,
the files of previews, the datasets.
"""

import dataclasses

from ml_collections import ConfigDict

from launch.console import machines
from launch.console.folders import check_folder
from launch.trainer import checks, hosts, identity, plan, previews, setup, starting
from launch.trainer.setup import Setup
from launch.trainer.specs import RunSpec
from sam3d_jax.training import checkpoint_arrays, checkpoint_params, checkpoint_steps


def run(spec: RunSpec) -> None:
  """Prints the plan of a run. Raises ConfigError or InputError for what would stop it."""
  # What the configuration alone can get wrong.
  config = spec.config
  setup.read(config)
  workdir = check_folder(spec.workdir)

  # The devices: described ones, or those of this job.
  devices = None
  if spec.devices:
    devices = machines.parse(spec.devices, "--devices").devices()
  else:
    hosts.connect(spec.hosts)
  before = starting.agree_with_run(config, workdir)
  hosts.check_same_config(config)

  # The plan, from the data that there are.
  missing = checks.missing_data(config)
  if before is not None and not missing:
    reads = identity.of(config)
    identity.check_same_data(before["lineage"], before["step"], reads, config, workdir)
  prepared = setup.prepare(with_data_at_hand(config, missing), devices=devices)
  prepared = dataclasses.replace(prepared, config=config, workdir=workdir)
  print(plan.text(prepared, missing))

  # Where it would start, and what its previews would read.
  print(start(prepared))
  autoencoder = ""
  if config.data.kind == "shards" and not missing:
    autoencoder = prepared.train_loader.config.autoencoder
  previews.check_files(config, autoencoder)


def with_data_at_hand(config: ConfigDict, missing: tuple[str, ...]) -> ConfigDict:
  """A copy that reads the sources that are there; random batches of the same form without any."""
  if not missing:
    return config
  copy = ConfigDict(config.to_dict(), convert_dict=True)
  for name in missing:
    copy.data.mixture[name].weight = 0.0
  if not any(entry.weight for entry in copy.data.mixture.values()):
    copy.data.kind = "fake"
    # its objects are read from shards
    copy.eval.decoder = ""
  return copy


def start(prepared: Setup) -> str:
  """Where the run would start: resume, initialise or scratch.

  Raises ConfigError for a work folder of another experiment, InputError for a checkpoint that does
  not fit.
  """
  config, workdir = prepared.config, prepared.workdir

  # Resume: the same experiment, and every leaf of its state.
  if checkpoint_steps.steps(workdir):
    meta = checkpoint_steps.read_meta(workdir)
    checkpoint_arrays.audit(
      checkpoint_arrays.flatten(prepared.abstract_state),
      checkpoint_steps.shapes_of(meta),
      where=f"{workdir} step {meta['step']}",
    )
    return f"start: would resume {workdir} at step {meta['step']} of {config.steps}"

  # From scratch, or from another run's parameters.
  if not config.init_from:
    return f"start: would draw random parameters, seed {config.seed} (init_from is not set)"
  found = checkpoint_params.origin(
    config.init_from,
    prepared.param_shapes,
    which=config.init_which,
    allow=prepared.init_allow,
    model=config.model,
  )
  where = f"{config.init_from} step {found.step}"
  return (
    f"start: would take the {config.init_which} parameters of {where}; "
    f"{len(found.fresh)} leaves new, {len(found.left_out)} not taken over"
  )

"""What every training command does: check, plan, restore or initialise, compile, train.

`launch.pretrain`, `launch.sft`, `launch.dpo`, `launch.distill` and `launch.train_vae` are this with
the stages they accept.
"""

import argparse
import concurrent.futures
import functools
import importlib.util
import os
import pathlib
import sys

from ml_collections import ConfigDict

from launch.console import cli
from launch.console.folders import prepare_workdir
from launch.console.progress import Progress
from launch.trainer import hosts, plan, starting
from sam3d_jax.errors import ConfigError
from sam3d_jax.training.ledger import Ledger
from sam3d_jax.training.preemption import StopFlag


def command(stages: tuple[str, ...], description: str, argv: list[str] | None = None) -> int:
  """Runs a training command that accepts configurations of the given stages: its exit code."""
  run_stages = functools.partial(run, stages=stages)
  return cli.run_command(run_stages, description=description, flags=flags, argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir",
    required=True,
    help="folder for checkpoints and metrics; an existing one is resumed",
  )
  parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
  hosts.flags(parser)


def run(args: argparse.Namespace, *, stages: tuple[str, ...]) -> int:
  """Trains as configured. Everything that can be wrong with the configuration is found before a
  device is touched.
  """
  config = args.config
  with StopFlag() as stop:
    check(config, stages)
    workdir = prepare_workdir(args.workdir)
    ledger = Ledger(workdir / "goodput.jsonl")
    hosts.connect(args)
    starting.keep_recorded_resizes(config, workdir)
    hosts.check_same_config(config)
    setup = Setup(config, workdir)
    print(plan.text(setup), flush=True)
    if not args.dry_run:
      recorded(setup, ledger, stop)
  return 0


def recorded(setup: "Setup", ledger: Ledger, stop: StopFlag) -> None:
  """Trains under the watchdog, with the beginning and the end in the ledger."""
  import jax

  from launch.cluster import flags as cluster_flags
  from sam3d_jax.training.watchdog import Watchdog, WatchdogConfig

  ledger.write = jax.process_index() == 0
  ledger.record(
    "begin",
    hosts=jax.process_count(),
    devices=jax.device_count(),
    environment=cluster_flags.recorded(os.environ),
  )
  cfg = WatchdogConfig(**setup.config.watchdog.to_dict())
  with Watchdog(ledger, setup.workdir, cfg, host=jax.process_index()):
    try:
      train(setup, ledger, stop)
    finally:
      ledger.record("end", outcome=getattr(sys.exc_info()[0], "__name__", "done"))


def check(config: ConfigDict, stages: tuple[str, ...]) -> None:
  """Cross-field checks; raises ConfigError naming the key, its value and the fix."""
  if config.stage not in stages:
    raise ConfigError(f"stage = {config.stage!r}: this command runs {', '.join(stages)}")
  for key in ("steps", "batch_size", "accumulate"):
    if config[key] < 1:
      raise ConfigError(f"{key} = {config[key]} is not a positive number")
  if not 0 <= config.seed < 2**32:
    raise ConfigError(f"seed = {config.seed} is not a whole number from 0 to 4294967295")
  for section, key in (("log", "every"), ("checkpoint", "every"), ("checkpoint", "keep")):
    if config[section][key] < 1:
      raise ConfigError(f"{section}.{key} = {config[section][key]} is not a positive number")
  if config.batch_size % config.accumulate:
    raise ConfigError(
      f"batch_size = {config.batch_size} does not divide into accumulate = {config.accumulate} "
      "parts"
    )
  for key in ("factor", "seconds", "other_seconds"):
    if not config.watchdog[key] > 0:
      raise ConfigError(f"watchdog.{key} = {config.watchdog[key]} is not a positive number")
  if config.log.wandb and importlib.util.find_spec("wandb") is None:
    raise ConfigError(
      f"log.wandb = {config.log.wandb!r}: the package wandb is not installed (pip install wandb); "
      "or leave it empty"
    )
  check_data(config)
  from launch.trainer import previews

  previews.check(config)
  optim_config(config), guard_config(config), make_objective(config)  # these raise too


def check_data(config: ConfigDict) -> None:
  """The mixture names datasets that exist."""
  if config.data.kind not in ("shards", "fake"):
    raise ConfigError(f"data.kind = {config.data.kind!r} is not one of shards, fake")
  if config.data.kind == "fake":
    return
  if not config.data.mixture:
    raise ConfigError("data.mixture names no dataset")
  entries = {name: entry for name, entry in config.data.mixture.items() if entry.weight}
  if not entries:
    raise ConfigError("data.mixture: every source has weight 0")
  for name, entry in entries.items():
    if not entry.path:
      raise ConfigError(
        f"data.mixture.{name}.path is empty: give the dataset folder with "
        f"--config.data.mixture.{name}.path=DIR"
      )
    if not pathlib.Path(entry.path).is_dir():
      raise ConfigError(
        f"data.mixture.{name}.path = {entry.path!r} is not a folder (build it with "
        "launch.build_data)"
      )


class Setup:
  """The parts of a run that exist before any parameter does: model structure, mesh, shardings,
  data.

  devices: those of the mesh, which may be described rather than present (`launch.aot`); by default
  all that there are.
  """

  def __init__(self, config: ConfigDict, workdir: pathlib.Path | None = None, devices=None):
    from sam3d_jax.models import lora, registry

    self.config, self.workdir = config, workdir
    self.lora = lora.LoraConfig(**config.lora.to_dict())
    self.optim, self.guard = optim_config(config), guard_config(config)
    self.model_config = registry.typed_config(config.model)
    self.abstract_model = registry.abstract_model(config.model)
    self.objective = make_objective(config)
    self.keeps_reference = needs_reference(config)
    self.factor_shapes = lora.factor_shapes(self.abstract_model, self.lora)
    self.init_allow = (
      f"({config.init_allow})|({lora.PATTERN})" if self.factor_shapes else config.init_allow
    )
    self._connect(devices)

  def _connect(self, devices) -> None:
    """Touches the devices."""
    import jax

    from sam3d_jax.models.parameters import flat_params
    from sam3d_jax.sharding import mesh as mesh_lib
    from sam3d_jax.sharding import rules
    from sam3d_jax.training import optim
    from sam3d_jax.training.state import ModelGraph, init_state

    config = self.config
    cache = compile_cache(config, self.workdir)
    if cache:
      jax.config.update("jax_compilation_cache_dir", cache)
    self.mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(**config.mesh.to_dict()), devices)
    mesh_lib.check_batch_size(config.batch_size // config.accumulate, self.mesh)
    self.graph = ModelGraph.of(self.abstract_model, lora_scale=self.lora.scale)
    self.param_shapes = flat_params(self.abstract_model) | self.factor_shapes
    optim.split_trainable(self.optim, self.param_shapes)
    self.abstract_state = jax.eval_shape(
      lambda p: init_state(self.optim, p, keep_reference=self.keeps_reference), self.param_shapes
    )
    self.shardings = rules.state_shardings(self.mesh, self.abstract_state, self.param_shapes)
    self.abstract_state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      self.abstract_state,
      self.shardings,
    )
    self.train_loader = make_loader(config, self.model_config, config.data.split)
    self.eval_loader = (
      make_loader(config, self.model_config, config.eval.split, augmented=False)
      if config.eval.every
      else None
    )

  def random_params(self):
    """All parameters at their initial values, path -> array; pure, for jit."""
    from flax import nnx

    from sam3d_jax.models import lora, registry
    from sam3d_jax.models.parameters import flat_params

    whole = flat_params(registry.build_model(self.config.model, rngs=nnx.Rngs(self.config.seed)))
    return whole | lora.random_factors(self.factor_shapes, self.config.seed)


def compile_cache(config: ConfigDict, workdir: pathlib.Path | None) -> str:
  """Folder of compiled programs: what the configuration says, else JAX's own variable, else one in
  the work folder; '' without any.

  Which programs are worth storing is JAX's choice (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, by
  default those that took a second).
  """
  return (
    config.compile_cache
    or os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    or (str(workdir / "compile_cache") if workdir else "")
  )


def optim_config(config: ConfigDict):
  """The typed `optim` section, checked. With low-rank adapters their factors are all that is
  trained.
  """
  from sam3d_jax.models.lora import PATTERN
  from sam3d_jax.training import optim

  settings = {**config.optim.to_dict(), "ema": tuple(config.optim.ema)}
  if config.lora.targets:
    if config.optim.trainable != ".*":
      raise ConfigError(
        f"optim.trainable = {config.optim.trainable!r} and lora.targets = {config.lora.targets!r}: "
        "adapters are trained "
        "alone, leave optim.trainable as it is"
      )
    settings |= {"trainable": PATTERN, "frozen": ""}
  cfg = optim.OptimConfig(**settings)
  optim.check(cfg)
  return cfg


def guard_config(config: ConfigDict):
  """The typed `guard` section."""
  from sam3d_jax.training.step import GuardConfig

  return GuardConfig(**config.guard.to_dict())


def make_objective(config: ConfigDict):
  """The objective of the configuration with its settings bound. Raises ConfigError for a setting it
  does not take.
  """
  from sam3d_jax.objectives import registry

  return registry.bind(config.objective.to_dict(), config.model.name)


def needs_reference(config: ConfigDict) -> bool:
  """Whether the objective compares with a frozen copy of the parameters that the run starts from."""
  from sam3d_jax.objectives import registry

  return registry.lookup(config.objective.name).reference


def train(setup: Setup, ledger, stop) -> None:
  """Restores or initialises, compiles and runs the loop."""
  from launch.trainer import lowering
  from sam3d_jax.training import loop
  from sam3d_jax.training.checkpointer import Checkpointer

  config = setup.config
  checkpointer = Checkpointer(setup.workdir, keep=config.checkpoint.keep)
  with ledger.phase("restore"):
    state, lineage = starting.starting_state(setup, checkpointer)
  first = int(state.step)
  if first >= config.steps:
    print(f"already trained: step {first} of {config.steps} is saved in {setup.workdir}")
    checkpointer.close()
    return
  with ledger.phase("compile"):
    lowered = lowering.step(setup)
    program = lowering.fingerprint(lowered)
    hosts.check_same_program("the training step", program)
    # Beside each other: much of a compilation is the work of one thread.
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile") as pool:
      compiling = pool.submit(lowered.compile)
      evaluation = make_evaluation(setup)
      compiled = compiling.result()
    checkpointer.prepare(state)
  job = loop.Job(
    cfg=loop.LoopConfig(
      config.steps,
      config.batch_size,
      config.log.every,
      config.checkpoint.every,
      config.eval.every,
      config.log.wandb,
    ),
    optim=setup.optim,
    guard=setup.guard,
    workdir=setup.workdir,
    mesh=setup.mesh,
    step_fn=lowering.bind(compiled, config),
    batches=setup.train_loader.iterate,
    evaluation=evaluation,
    progress=Progress,
    flops_per_sample=plan.model_flops(setup),
    meta={
      "config": config.to_dict(),
      "lineage": lineage,
      "params": {p: list(x.shape) for p, x in setup.param_shapes.items()},
      "program": program,
    },
  )
  ledger.step = first
  ledger.record("start", damaged=checkpointer.bad_steps)
  print(f"ready for the first step after {ledger.text()}", file=sys.stderr, flush=True)
  try:
    with ledger.phase("other"):
      loop.train(job, state, checkpointer, ledger, stop)
  finally:
    checkpointer.close()
  print(f"trained to step {config.steps}; checkpoints and metrics are in {setup.workdir}")


def make_loader(config: ConfigDict, model_config, split: str, *, augmented: bool = True):
  """The reader of one split for this configuration's model and objective."""
  import jax

  from data_pipelines.read import loader
  from sam3d_jax.objectives import registry

  return loader.from_config(
    config,
    model_config,
    kind=registry.batch_kind(config.objective.name, config.model.name),
    latents=registry.learned_latents(config.objective, config.model.name),
    split=split,
    augmented=augmented,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
  )


def make_evaluation(setup: Setup):
  """The compiled evaluation of a run, None if it has none."""
  if setup.eval_loader is None:
    return None
  from launch.trainer import previews
  from launch.trainer.evaluation import Evaluation

  evaluation = Evaluation(setup, previews.make(setup))
  evaluation.compile(setup.abstract_state)
  return evaluation

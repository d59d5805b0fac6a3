"""What exists of a run before any parameter does, typed: first what the configuration alone says,
then model structure, mesh, shardings and data.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from flax import nnx
import jax
from ml_collections import ConfigDict

from data_pipelines.format import records
from data_pipelines.read import loader
from data_pipelines.read.fake import FakeLoader
from data_pipelines.read.loader import Loader
from launch.scoring.held_out import HIGHER_IS_BETTER
from launch.trainer import previews
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import lora
from sam3d_jax.models import registry as models
from sam3d_jax.models.parameters import flat_params
from sam3d_jax.objectives import registry as objectives
from sam3d_jax.sampling.generate import SamplerConfig
from sam3d_jax.sharding import mesh as mesh_lib
from sam3d_jax.sharding import rules
from sam3d_jax.training import optim
from sam3d_jax.training.best import StopRule
from sam3d_jax.training.state import ModelGraph, TrainState, init_state
from sam3d_jax.training.step import GuardConfig
from sam3d_jax.training.watchdog import WatchdogConfig


@dataclasses.dataclass(frozen=True)
class Settings:
  """A configuration, checked and typed; no device is touched.

  config: as it was given, for the record and for what is read one key at a time. model_config:
  typed configuration of the model. objective: `(model, frozen, batch, key) -> (loss, metrics)`.
  keeps_reference: it compares with a frozen copy of the parameters that the run starts from.
  sampler: of evaluation and previews; None for a model that is not sampled.
  stop_rule: when it ends for want of a better state; None: it trains all its steps.
  """

  config: ConfigDict
  model_config: Any
  objective: Callable
  keeps_reference: bool
  optim: optim.OptimConfig
  guard: GuardConfig
  watchdog: WatchdogConfig
  lora: lora.LoraConfig
  mesh_config: mesh_lib.MeshConfig
  sampler: SamplerConfig | None
  stop_rule: StopRule | None


@dataclasses.dataclass(frozen=True)
class Setup(Settings):
  """A run up to its first parameter.

  workdir: None for a program that is only compiled. init_allow: regular expression over parameters
  that `init_from` may lack. factor_shapes: of the low-rank adapters. param_shapes: of everything,
  path -> shape struct. abstract_state: the training state as shape structs with shardings.
  """

  workdir: pathlib.Path | None
  mesh: jax.sharding.Mesh
  graph: ModelGraph
  factor_shapes: Mapping[str, jax.ShapeDtypeStruct]
  param_shapes: Mapping[str, jax.ShapeDtypeStruct]
  init_allow: str
  abstract_state: TrainState
  shardings: TrainState
  train_loader: Loader | FakeLoader
  eval_loader: Loader | FakeLoader | None

  def random_params(self) -> dict[str, jax.Array]:
    """All parameters at their initial values, path -> array; pure, for jit."""
    seed = self.config.seed
    module = models.build_model(self.config.model, rngs=nnx.Rngs(seed))
    factors = lora.random_factors(self.factor_shapes, seed)
    return flat_params(module) | factors


def read(config: ConfigDict) -> Settings:
  """The typed parts of a configuration. Raises ConfigError for what cannot work; `checks.check` has
  seen to what can be known without JAX.
  """
  previews.check(config)
  model_config = models.typed_config(config.model)
  objective = objectives.bind(
    config.objective.to_dict(),
    config.model.name,
    model_config,
    rows=config.batch_size // config.accumulate,
  )
  loader.settings_of(config, model_config, **reading(config), split=config.data.split)
  sampler = None
  if "sampler" in config:
    sampler = sections.typed(SamplerConfig, config.sampler, "sampler")
  return Settings(
    config=config,
    model_config=model_config,
    objective=objective,
    keeps_reference=objectives.lookup(config.objective.name).reference,
    optim=optim_config(config),
    guard=sections.typed(GuardConfig, config.guard, "guard"),
    watchdog=sections.typed(WatchdogConfig, config.watchdog, "watchdog"),
    lora=sections.typed(lora.LoraConfig, config.lora, "lora"),
    mesh_config=sections.typed(mesh_lib.MeshConfig, config.mesh, "mesh"),
    sampler=sampler,
    stop_rule=stop_rule(config),
  )


def prepare(
  config: ConfigDict, workdir: pathlib.Path | None = None, devices: Sequence | None = None
) -> Setup:
  """The setup of a run.

  devices: those of the mesh, which may be described rather than present (`launch.aot`); by default
  all that there are.
  """
  # Everything that the configuration alone can get wrong comes before the devices.
  settings = read(config)
  module = models.abstract_model(config.model)
  factor_shapes = lora.factor_shapes(module, settings.lora)
  param_shapes = flat_params(module) | factor_shapes
  optim.split_trainable(settings.optim, param_shapes)
  init_allow = config.init_allow
  if factor_shapes:
    init_allow = f"({init_allow})|({lora.PATTERN})"

  # Devices.
  cache = compile_cache(config, workdir)
  if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
  mesh = mesh_lib.make_mesh(settings.mesh_config, devices)
  mesh_lib.check_batch_size(config.batch_size, mesh, config.accumulate)

  # How the state lies on them.
  def fresh_state(params):
    return init_state(settings.optim, params, keep_reference=settings.keeps_reference)

  shapes = jax.eval_shape(fresh_state, param_shapes)
  shardings = rules.state_shardings(mesh, shapes, param_shapes)
  abstract_state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )

  # Data. What is evaluated on is not augmented.
  train_loader = make_loader(config, settings.model_config, config.data.split)
  eval_loader = None
  if config.eval.every:
    eval_loader = held_out_loader(settings)
  return Setup(
    **vars(settings),
    workdir=workdir,
    mesh=mesh,
    graph=ModelGraph.of(module, lora_scale=settings.lora.scale),
    factor_shapes=factor_shapes,
    param_shapes=param_shapes,
    init_allow=init_allow,
    abstract_state=abstract_state,
    shardings=shardings,
    train_loader=train_loader,
    eval_loader=eval_loader,
  )


def stop_rule(config: ConfigDict) -> StopRule | None:
  """What `eval.stop_after` and `eval.score` say, checked."""
  settings = config.eval
  if not settings.stop_after:
    return None
  # Losses are there in any case; scores are those of sampled shapes.
  name = settings.score
  if name == "loss":
    return StopRule("eval/loss", higher=False, patience=settings.stop_after)
  if name not in HIGHER_IS_BETTER:
    known = ", ".join(["loss", *HIGHER_IS_BETTER])
    raise ConfigError(f"eval.score = {name!r} is not one of {known}")
  if not settings.decoder:
    raise ConfigError(
      f"eval.score = {name!r}: no shapes are sampled to score; name the structure VAE of the "
      "latents with --config.eval.decoder=DIR, or use eval.score = 'loss'"
    )
  return StopRule(f"eval/{name}", HIGHER_IS_BETTER[name], settings.stop_after)


def optim_config(config: ConfigDict) -> optim.OptimConfig:
  """The typed `optim` section, checked. With low-rank adapters their factors are all that is
  trained.
  """
  settings = config.optim.to_dict()
  settings["ema"] = tuple(config.optim.ema)
  # Adapters are told from all else by the name of their parameters.
  if config.lora.targets:
    if config.optim.trainable != ".*":
      raise ConfigError(
        f"optim.trainable = {config.optim.trainable!r} and lora.targets = {config.lora.targets!r}: "
        "adapters are trained alone, leave optim.trainable as it is"
      )
    settings |= {"trainable": lora.PATTERN, "frozen": ""}
  cfg = sections.typed(optim.OptimConfig, settings, "optim")
  optim.check(cfg)
  return cfg


def compile_cache(config: ConfigDict, workdir: pathlib.Path | None) -> str:
  """Folder of compiled programs: what the configuration says, else JAX's own variable, else one in
  the work folder; '' without any. A path is absolute.

  Which programs are worth storing is JAX's choice (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, by
  default those that took a second).
  """
  folder = config.compile_cache or os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
  if not folder:
    return str(workdir / "compile_cache") if workdir else ""
  if "://" in folder:
    return folder
  # JAX takes its spelling into the key of a program: a relative path to the same folder finds none.
  return os.path.abspath(folder)


def held_out_loader(settings: Settings) -> Loader | FakeLoader:
  """The reader of what is evaluated on. Raises ConfigError, with the ways out, if there is nothing
  to read.
  """
  config = settings.config
  split = config.eval.split
  try:
    return make_loader(config, settings.model_config, split, augmented=False)
  except records.EmptySplit as error:
    raise ConfigError(
      f"eval.split = {split!r}: {error}. Build the dataset with a larger test_fraction or more "
      "objects, evaluate on what is trained on with --config.eval.split=train, or on nothing with "
      "--config.eval.every=0"
    ) from error


def reading(config: ConfigDict) -> dict[str, Any]:
  """The kind of batch that the objective is trained on, and the latents that it learns."""
  name = config.model.name
  return {
    "kind": objectives.batch_kind(config.objective.name, name),
    "latents": objectives.learned_latents(config.objective, name),
  }


def make_loader(
  config: ConfigDict, model_config: Any, split: str, *, augmented: bool = True
) -> Loader | FakeLoader:
  """The reader of one split for this configuration's model and objective."""
  return loader.from_config(
    config,
    model_config,
    **reading(config),
    split=split,
    augmented=augmented,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
  )

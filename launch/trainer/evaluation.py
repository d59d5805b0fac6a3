"""Evaluation while a model trains: losses on fixed held-out batches, and shapes sampled from the
averaged parameters, scored and drawn.

The training loop only dispatches. The devices run evaluation programs in their queue like any step;
reading the results, meshes, metrics and pictures are the work of a thread, and the loop writes down
what is ready. Noise and objects are the same every time.
"""

from collections import deque
import concurrent.futures
import dataclasses
import math
import pathlib
import re
import shutil
from typing import Any

from flax import nnx
import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np

from launch.console.progress import say
from launch.scoring import held_out
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.files import names
from sam3d_jax.inference import predictor, weights
from sam3d_jax.models import parameters
from sam3d_jax.objectives import paths
from sam3d_jax.objectives import registry as objectives
from sam3d_jax.render import mesh as meshes
from sam3d_jax.render import preview
from sam3d_jax.sampling import generate
from sam3d_jax.sharding import mesh as mesh_lib
from sam3d_jax.training import checkpoint_params, checkpoint_steps, compilation

AHEAD = 2  # evaluations under way before the loop waits for the oldest
KEPT = 3  # evaluations whose meshes are kept
EVALUATION = re.compile(r"\d{8,}")  # name of the folder of their meshes: the step
COLUMNS = ("input", "mask", "truth", "truth, turned 120°", "sample", "sample, turned 120°")


@dataclasses.dataclass(frozen=True)
class Result:
  """One finished evaluation."""

  step: int
  scalars: dict[str, float]
  picture: np.ndarray | None = None  # (H, W, 3) uint8


class Evaluation:
  """What `training.loop` calls: `start`, `poll` and `finish`."""

  def __init__(self, setup, preview=None):
    """preview: `launch.trainer.previews.Preview` of the run, None for losses alone."""
    # The slowest average is evaluated, if there is one.
    self.decay = None
    if setup.optim.ema:
      self.decay = f"{max(setup.optim.ema):g}"
    self.losses = Losses(setup)
    self.samples = preview
    self.worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="evaluation")
    self.pending: deque[concurrent.futures.Future] = deque()

  def compile(self, abstract_state) -> None:
    """Compiles everything that runs during training, so that nothing is compiled in the middle."""
    self.losses.compile(abstract_state)
    if self.samples is not None:
      params = self._params(abstract_state)
      self.samples.compile(params, abstract_state.frozen)

  def start(self, step: int, state, last: bool) -> list[Result]:
    """Dispatches the evaluation of a state; returns what finished meanwhile. `last`: the run ends
    here.
    """
    # Every evaluation under way holds buffers on the devices.
    done = []
    while len(self.pending) >= AHEAD:
      done.append(self.pending.popleft().result())

    # The devices' part is queued before the next step, which overwrites the state.
    params = self._params(state)
    losses = self.losses.dispatch(params, state)
    sampled = curve = None
    if self.samples is not None:
      sampled = self.samples.dispatch(params, state.frozen)
      if last:
        curve = self.samples.curve(params, state.frozen)

    # The rest is the thread's.
    reading = self.worker.submit(self._read, step, losses, sampled, curve)
    self.pending.append(reading)
    return done

  def wait(self) -> list[Result]:
    """Results of all that is under way, oldest first, once they are there."""
    done = []
    while self.pending:
      done.append(self.pending.popleft().result())
    return done

  def poll(self) -> list[Result]:
    """Evaluations that have finished, oldest first. An error in one is raised here."""
    done = []
    while self.pending and self.pending[0].done():
      done.append(self.pending.popleft().result())
    return done

  def finish(self, timeout: float | None = None) -> list[Result]:
    """Waits for what is under way, each at most `timeout` seconds.

    What takes longer is given up.
    """
    done = []
    # One that takes too long holds up those behind it, which are given up with it.
    try:
      while self.pending:
        done.append(self.pending.popleft().result(timeout))
    except concurrent.futures.TimeoutError:
      self.pending.clear()
    self.abandon()
    return done

  def abandon(self) -> None:
    """Starts nothing more; what is under way ends by itself."""
    self.worker.shutdown(wait=False, cancel_futures=True)

  def _params(self, state):
    """The parameters that are evaluated."""
    if self.decay:
      return state.ema[self.decay]
    return state.params

  def _read(self, step: int, losses, sampled, curve) -> Result:
    """The thread's part: everything that waits for a device or works on the host."""
    # Losses first: they were queued first.
    scalars = self.losses.read(losses)
    if sampled is None:
      return Result(step, scalars)
    scores, picture = self.samples.read(step, sampled)
    if curve:
      self.samples.write_curve(curve)
    return Result(step, scalars | scores, picture)


class Losses:
  """The objective on `eval.batches` held-out batches that are read once and kept on the host."""

  def __init__(self, setup):
    self.setup = setup
    self.config = setup.config
    self.batches: list[Any] = []
    self.seed = np.uint32(self.config.seed)

    def loss(params, frozen, reference, batch, seed):
      model = setup.graph.merge({**params, **frozen})
      teacher = None
      if reference:
        teacher = setup.graph.merge({**reference, **frozen})
      value, metrics = setup.objective(model, teacher, batch, jax.random.key(seed))
      return {**metrics, "loss": value}

    # The same noise at every evaluation: the seed is all that the key depends on.
    self.loss = jax.jit(loss)

  def compile(self, state) -> None:
    """Reads the batches and compiles the loss for an abstract state."""
    # Read once and kept, so that every evaluation is of the same examples.
    loader = self.setup.eval_loader
    self.batches = [loader.batch(index) for index in range(self.config.eval.batches)]
    batch = mesh_lib.place_batch(self.setup.mesh, self.batches[0])

    # Any average will do: only shapes and shardings count.
    params = state.params
    if state.ema:
      params = state.ema[max(state.ema, key=float)]
    with jax.set_mesh(self.setup.mesh):
      lowered = self.loss.lower(
        params,
        state.frozen,
        state.reference,
        batch,
        self.seed,
      )
      self.loss = compilation.compiled(lowered, "the losses on held-out examples", say)

  def dispatch(self, params, state) -> list:
    """Starts the losses of all batches; what it returns goes to `read`."""
    # Batches are placed anew each time: between evaluations they take no memory of the devices.
    rows = []
    for held_out_batch in self.batches:
      batch = mesh_lib.place_batch(self.setup.mesh, held_out_batch)
      row = self.loss(
        params,
        state.frozen,
        state.reference,
        batch,
        self.seed,
      )
      rows.append(row)
    return rows

  def read(self, rows: list) -> dict[str, float]:
    """Means over the batches; the loss of each bucket of time where the objective has them."""
    rows = jax.device_get(rows)
    mean = {}
    for name in rows[0]:
      values = [row[name] for row in rows]
      mean[name] = float(np.nanmean(values))

    # Sums and shares of buckets become the buckets' means, now that they are averaged.
    shown = {}
    for name, value in mean.items():
      if not name.startswith(("flow_time_sum/", "flow_time_share/")):
        shown[name] = value
    shown |= paths.bucket_means(mean, "flow_time")
    return {f"eval/{name}": value for name, value in shown.items()}


class Samples:
  """Shapes and poses sampled for held-out objects, with their scores, picture and meshes."""

  def __init__(self, setup):
    config = setup.config
    self.config = config
    self.setup = setup
    self.workdir = setup.workdir
    self.mesh = setup.mesh

    # The decoder, which has to be that of the latents.
    check_decoder_sizes(config)
    vae, vae_config = checkpoint_params.restore_model(config.eval.decoder, together=True)
    digest = parameters.params_digest(parameters.flat_params(vae))
    check_autoencoder(config, digest, setup.train_loader.config.autoencoder)
    self.decoder_graph, decoder = nnx.split(vae.decoder)
    self.replicated = NamedSharding(self.mesh, P())
    self.decoder = jax.device_put(decoder, self.replicated)

    # The objects, the same at every evaluation.
    self.latent_shapes = weights.latent_shapes(config.model)
    self.learned = objectives.learned_latents(config.objective, config.model.name)
    folders = [entry.path for entry in config.data.mixture.values() if entry.weight]
    self.objects = held_out.read(
      folders,
      config.eval.split,
      weights.input_config(config.model),
      vae_config.model.resolution,
      config.eval.objects,
    )
    self.inputs = self._place_inputs()

    self.sampler = setup.sampler
    self.compiled = None

  def _place_inputs(self):
    """Condition and noise keys of the objects, on the mesh; every host gives its rows."""
    # As many rows as the mesh can split, at least the objects.
    axes = self.mesh.shape
    ways = axes["data"] * axes["fsdp"]
    rows = math.ceil(len(self.objects) / ways) * ways
    requests = held_out.requests(self.objects)
    cond, keys_B2 = predictor.batch(requests, rows, self.config.seed)
    whole = (cond, np.asarray(keys_B2))

    # Every host prepares all rows, of which it places its own.
    share = rows // jax.process_count()
    first = jax.process_index() * share
    mine = jax.tree.map(lambda x: x[first : first + share], whole)
    return mesh_lib.place_batch(self.mesh, mine)

  def program(self, sampler: generate.SamplerConfig):
    """(params, frozen, decoder, cond, noise keys) -> latents, occupancy; whole on every device."""

    def sample(params, frozen, decoder, cond, key_B2):
      model = self.setup.graph.merge({**params, **frozen})
      decode = nnx.merge(self.decoder_graph, decoder)
      return predictor.sample_objects(
        model,
        decode,
        cond,
        key_B2,
        sampler,
        self.latent_shapes,
      )

    return jax.jit(sample, out_shardings=self.replicated)

  def compile(self, params, frozen) -> None:
    """Compiles what `dispatch` runs."""
    program = self.program(self.sampler)
    with jax.set_mesh(self.mesh):
      lowered = program.lower(
        params,
        frozen,
        self.decoder,
        *self.inputs,
      )
      self.compiled = compilation.compiled(lowered, "the sampler of held-out objects", say)

  def dispatch(self, params, frozen):
    """Starts sampling; (latents, occupancy), still on the devices."""
    return self.compiled(params, frozen, self.decoder, *self.inputs)

  def scores(self, sampled) -> tuple[dict[str, float], np.ndarray]:
    """Mean scores of the objects, and their occupancy (objects, X, Y, Z)."""
    latents, occupancy = jax.device_get(sampled)
    rows = []
    for index, one in enumerate(self.objects):
      row = held_out.score(
        one,
        occupancy[index],
        {name: value[index] for name, value in latents.items()},
        self.learned,
        f1_threshold=self.config.eval.f1_threshold,
      )
      rows.append(row)
    return held_out.mean_scores(rows), occupancy

  def read(self, step: int, sampled) -> tuple[dict[str, float], np.ndarray | None]:
    """Scores under `eval/`; on the first host also the picture and the meshes, in
    <workdir>/previews.
    """
    # Every host has all samples and scores them; one draws.
    scores, occupancy = self.scores(sampled)
    named = {f"eval/{name}": score for name, score in scores.items()}
    if jax.process_index() != 0:
      return named, None

    # The first objects, beside the mean over all of them.
    shown = self.objects[: self.config.eval.pictures]
    viou = scores["viou"]
    picture = draw(
      shown,
      occupancy,
      f"step {step}: voxel IoU {viou:.3f} over {len(self.objects)} objects",
    )
    shapes = {one.key: occupancy[index] for index, one in enumerate(shown)}
    write_previews(self.workdir / "previews", step, picture, shapes)
    return named, np.asarray(picture)

  def curve(self, params, frozen) -> list[tuple[str, int, Any]] | None:
    """Samples at each number of steps of `eval.steps_curve`: by the distilled sampler, and by the
    plain one with guidance.
    """
    if not self.config.eval.steps_curve:
      return None

    # What a distilled model is for, and what it is to be compared with.
    forms = {
      "shortcut": {"shortcut": True, "pointmap_guidance": None},
      "plain": {"shortcut": False},
    }

    # Each number of steps is a program of its own, compiled here and used once.
    rows = []
    for steps in self.config.eval.steps_curve:
      for name, change in forms.items():
        sampler = dataclasses.replace(self.sampler, steps=steps, **change)
        inputs = (params, frozen, self.decoder, *self.inputs)
        what = f"the {name} sampler of {steps} steps"
        with jax.set_mesh(self.mesh):
          lowered = self.program(sampler).lower(*inputs)
          program = compilation.compiled(lowered, what, say)
          sampled = program(*inputs)
        rows.append((name, steps, sampled))
    return rows

  def write_curve(self, curve) -> None:
    """<workdir>/steps_quality.csv and .png."""
    from launch.scoring import steps_curve

    rows = []
    for name, steps, sampled in curve:
      scores, _ = self.scores(sampled)
      rows.append({"sampler": name, "steps": steps, **scores})
    if jax.process_index() == 0:
      steps_curve.write(self.workdir, rows)


def check_decoder(config: ConfigDict, autoencoder: str) -> None:
  """Raises ConfigError if `eval.decoder` is not there or does not fit the model or the data.

  autoencoder: digest that the latents of the data carry; '' before there are data.
  """
  check_decoder_sizes(config)
  if autoencoder:
    vae, _ = checkpoint_params.restore_model(config.eval.decoder)
    digest = parameters.params_digest(parameters.flat_params(vae))
    check_autoencoder(config, digest, autoencoder)


def check_decoder_sizes(config: ConfigDict) -> None:
  """Raises InputError unless `eval.decoder` is a structure VAE of the model's latents."""
  decoder = config.eval.decoder
  try:
    model = ConfigDict(checkpoint_steps.read_meta(decoder)["config"]).model
  except InputError as error:
    raise ConfigError(f"eval.decoder = {decoder!r}: {error}") from error
  if model.name != "structure_vae":
    raise ConfigError(
      f"eval.decoder = {decoder!r} holds a model of kind {model.name!r}, a structure_vae is "
      "needed: give the work folder of launch.train_vae"
    )
  weights.check_latent_shape(config.model, model, f"eval.decoder {decoder}")


def check_autoencoder(config: ConfigDict, digest: str, trained: str) -> None:
  """Raises ConfigError if the decoder belongs to other latents than those trained on."""
  if trained != digest:
    given, wanted = digest[:12], trained[:12]
    raise ConfigError(
      f"eval.decoder = {config.eval.decoder!r} is autoencoder {given}, the latents of the "
      f"data were made by {wanted}; give the work folder of the structure VAE that encoded them"
    )


def draw(objects, occupancy: np.ndarray, title: str):
  """The picture of some objects: input, truth and sample from two views each."""
  rows, captions = [], []
  for index, one in enumerate(objects):
    # As in the photo, where the object's rotation is known.
    view = one.rotation
    if view is None:
      view = preview.orbit(30, 25)
    turned = preview.turned(view, 120.0)

    row = [one.photo, one.mask]
    for grid in (one.occupancy, occupancy[index]):
      shape = meshes.from_occupancy(grid)
      row.append(preview.render(shape, view, size=128))
      row.append(preview.render(shape, turned, size=128))
    rows.append(row)
    captions.append(one.key[:12])
  return preview.grid(rows, COLUMNS, captions, title=title, size=128)


def write_previews(folder: pathlib.Path, step: int, picture, shapes: dict[str, np.ndarray]) -> None:
  """previews/<step>.png and previews/<step>/<object>.glb; the meshes of the newest KEPT evaluations
  stay.
  """
  name = f"{step:08d}"
  glbs = folder / name
  glbs.mkdir(parents=True, exist_ok=True)
  picture.save(folder / f"{name}.png")
  for key, grid in shapes.items():
    shape = meshes.from_occupancy(grid)
    if shape is not None:
      meshes.write_glb(glbs / f"{names.file_name(key)}.glb", {"object": shape})

  # Pictures are small and stay.
  evaluations = sorted(path for path in folder.iterdir() if is_evaluation(path))
  for old in evaluations[:-KEPT]:
    shutil.rmtree(old)


def is_evaluation(path: pathlib.Path) -> bool:
  """Whether this is a folder of meshes of an evaluation, by its name."""
  return path.is_dir() and not path.is_symlink() and bool(EVALUATION.fullmatch(path.name))

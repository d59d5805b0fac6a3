"""A trained Geometry model and the decoder of its latents, ready to sample.

There is one program a batch size.

Photos, datasets, evaluation sets and the ladder call the `Predictor`; previews during training
trace the same `sample_objects` over the training mesh.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import numpy as np

from sam3d_jax.batch import Conditioning
from sam3d_jax.geometry import pose
from sam3d_jax.geometry.conditions import InputConfig
from sam3d_jax.models.volumes import tokens_to_grid
from sam3d_jax.objectives import draws
from sam3d_jax.sampling import generate
from sam3d_jax.training import compilation


class Request(NamedTuple):
  """One sample to draw.

  streams: what the model looks at, without batch axis. content: (2,) uint32 content key; the noise
  of the sample depends on it and on the seed alone.
  """

  streams: Conditioning
  content: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A batch of samples on the host, or without the axis B one of them.

  occupancy: (B, X, Y, Z) bool in the object frame. latents: name -> (B, tokens, channels) float32.
  rotation: (B, 3, 3) object to camera, as in Pose.
  """

  occupancy: np.ndarray
  latents: dict[str, np.ndarray]
  rotation: np.ndarray

  def one(self, index: int) -> "Prediction":
    latents = {name: x[index] for name, x in self.latents.items()}
    return Prediction(
      occupancy=self.occupancy[index],
      latents=latents,
      rotation=self.rotation[index],
    )


class Started(NamedTuple):
  """A batch on its way: what the device will give, and how many of its rows were asked for."""

  arrays: Any
  count: int


@dataclasses.dataclass(frozen=True)
class Predictor:
  """Models on the device with everything that decides the samples but the inputs and the seed.

  model: GeometryModel. decoder: StructureDecoder. form: of the inputs that the model reads.
  latent_shapes: latent name -> (tokens, channels) that it makes. trained: latents that it has
  learned. convention: of the layout latents. resolution: voxels a side. identity: names of the
  weights, for the record. tell: takes a line for the screen before and after each compilation.
  """

  model: nnx.Module
  decoder: nnx.Module
  sampler: generate.SamplerConfig
  form: InputConfig
  latent_shapes: Mapping[str, tuple[int, int]]
  trained: tuple[str, ...]
  convention: str
  resolution: int
  identity: Mapping[str, Any]
  tell: compilation.Tell = compilation.silent

  @property
  def placed(self) -> bool:
    """Whether the model has learned where objects are, not only how they are turned."""
    place = {"translation", "scale"}
    return place <= set(self.trained)

  @functools.cached_property
  def _jitted(self):
    """(params, traced function of params, cond, key_B2)."""
    # Parameters are an argument: as constants they would be compiled into every program.
    model_graph, model_params = nnx.split(self.model)
    decoder_graph, decoder_params = nnx.split(self.decoder)

    @jax.jit
    def run(params, cond, key_B2):
      model_params, decoder_params = params
      model = nnx.merge(model_graph, model_params)
      decoder = nnx.merge(decoder_graph, decoder_params)
      return sample_objects(
        model,
        decoder,
        cond,
        key_B2,
        self.sampler,
        self.latent_shapes,
      )

    return (model_params, decoder_params), run

  @functools.cached_property
  def programs(self) -> dict[tuple, Any]:
    """Compiled programs by the shapes and types of their inputs.

    It only grows: its length is the number of compilations.
    """
    return {}

  def program(self, *inputs):
    """The compiled program for inputs of these shapes."""
    # Compiled ahead of the call, so that compilations can be counted and timed.
    params, run = self._jitted
    leaves = jax.tree.leaves(inputs)
    signature = tuple((tuple(x.shape), str(x.dtype)) for x in leaves)
    if signature not in self.programs:
      lowered = run.lower(params, *inputs)
      count, _ = leaves[-1].shape
      what = f"the sampler for batches of {count} objects"
      self.programs[signature] = compilation.compiled(lowered, what, self.tell)
    return functools.partial(self.programs[signature], params)

  def start(self, requests: Sequence[Request], bucket: int, seed: int) -> Started:
    """Sends one batch to the device and returns at once; `finish` waits for it.

    Args:
      requests: at most `bucket`, at least one; short batches are filled up, so that every bucket is
        compiled once.
      bucket: rows of the batch.
      seed: of the noise.
    """
    inputs = batch(requests, bucket, seed)
    program = self.program(*inputs)
    return Started(program(*inputs), len(requests))

  def finish(self, started: Started) -> Prediction:
    """The samples of a batch that `start` sent, one for each request."""
    latents, occupancy = jax.device_get(started.arrays)
    # Rows beyond the count only filled the batch up.
    count = started.count
    latents = {name: x[:count] for name, x in latents.items()}
    rotation_token = latents["rotation"][:, 0]
    return Prediction(
      occupancy=occupancy[:count],
      latents=latents,
      rotation=pose.decode_rotation(rotation_token),
    )

  def __call__(self, requests: Sequence[Request], bucket: int, seed: int) -> Prediction:
    """`start` and `finish`."""
    started = self.start(requests, bucket, seed)
    return self.finish(started)


def sample_objects(
  model: nnx.Module,
  decoder: nnx.Module,
  cond: Conditioning,
  key_B2: jax.Array,
  sampler: generate.SamplerConfig,
  latent_shapes: Mapping[str, tuple[int, int]],
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Latents and occupancy (B, X, Y, Z) bool sampled for a batch of conditions.

  Pure; to be traced.
  """
  latents = generate.sample_latents(model, cond, key_B2, sampler, latent_shapes)
  grid = tokens_to_grid(latents["shape"])
  logits_BXYZ = decoder(grid)
  return latents, logits_BXYZ > 0


def batch(requests: Sequence[Request], bucket: int, seed: int) -> tuple[Conditioning, jax.Array]:
  """Condition (bucket, ...) and noise keys (bucket, 2) of requests, filled up with the first."""
  filler = [requests[0]] * (bucket - len(requests))
  padded = [*requests, *filler]

  def stacked(*rows):
    return np.stack(rows)

  streams = [request.streams for request in padded]
  cond = jax.tree.map(stacked, *streams)

  # The noise of a row depends on its own content and the seed alone.
  content_B2 = np.stack([request.content for request in padded])
  key = jax.random.key(seed)
  keys_B = draws.example_keys(key, content_B2)
  return cond, draws.raw_keys(keys_B)

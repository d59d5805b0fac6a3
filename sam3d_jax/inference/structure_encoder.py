"""Occupancy grids to structure latents with the encoder of a trained structure VAE."""

from collections.abc import Sequence

from flax import nnx
import jax
import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.models import parameters
from sam3d_jax.training import checkpoint_params, checkpoint_steps, compilation


class StructureEncoder:
  """The mean of the posterior, compiled for batches of `batch_size` and, once a shorter one comes,
  for a half, a quarter, ... of it.

  digest: name of the autoencoder, encoder and decoder, since a latent needs both. resolution: of
  the grids that it takes. latent: resolution and channels of what it gives. step: the checkpoint's.
  """

  def __init__(
    self,
    vae: nnx.Module,
    *,
    batch_size: int,
    step: int = 0,
    tell: compilation.Tell = compilation.silent,
  ):
    """step: of the checkpoint. tell: hears of the compilation."""
    # What a latent has to say of itself.
    params = parameters.flat_params(vae)
    self.digest = parameters.params_digest(params)
    self.resolution = vae.cfg.resolution
    self.latent = {
      "resolution": vae.cfg.latent_resolution,
      "channels": vae.cfg.latent_channels,
    }
    self.step = step
    self.batch_size = batch_size

    # Parameters are an argument: as constants they would be compiled into the program.
    graph, self._state = nnx.split(vae.encoder)

    def mean(state, occupancy_BRRR):
      encoder = nnx.merge(graph, state)
      return encoder(occupancy_BRRR)[0]

    self._mean = jax.jit(mean)
    self._programs: dict[int, jax.stages.Compiled] = {}
    self._tell = tell

  def _program(self, occupancy_BRRR: np.ndarray) -> jax.stages.Compiled:
    """(parameters, occupancy of a batch) -> means, compiled for the first batch of its size."""
    size = len(occupancy_BRRR)
    if size not in self._programs:
      lowered = self._mean.lower(self._state, occupancy_BRRR)
      what = f"the encoder for batches of {size} shapes"
      self._programs[size] = compilation.compiled(lowered, what, self._tell)
    return self._programs[size]

  def __call__(self, grids: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Latents (r, r, r, C), fp32, of occupancy grids (R, R, R); a short batch is filled up."""
    latents: list[np.ndarray] = []
    for first in range(0, len(grids), self.batch_size):
      batch = list(grids[first : first + self.batch_size])
      count = len(batch)
      # Empty grids fill the batch up to one of a few sizes, so that there are few programs.
      empty = np.zeros_like(batch[0])
      batch += [empty] * (self._size_for(count) - count)
      occupancy_BRRR = np.stack(batch)
      program = self._program(occupancy_BRRR)
      means = program(self._state, occupancy_BRRR)
      means = np.asarray(means, np.float32)
      latents += list(means[:count])
    return latents

  def _size_for(self, count: int) -> int:
    """The smallest of the sizes that programs are compiled for which holds `count` grids."""
    size = self.batch_size
    while size % 2 == 0 and size // 2 >= count:
      size //= 2
    return size


def from_checkpoint(
  workdir: str,
  *,
  which: str,
  batch_size: int,
  tell: compilation.Tell = compilation.silent,
) -> StructureEncoder:
  """The encoder of a structure VAE's work folder.

  which: parameters to use: ema, ema:<decay> or raw. tell: hears of the compilation. Raises
  InputError for another kind of model.
  """

  def read(step: int):
    # What it is, before its parameters are read.
    meta = checkpoint_steps.read_whole_meta(workdir, step)
    name = meta["config"]["model"]["name"]
    if name != "structure_vae":
      raise InputError(f"--checkpoint {workdir} is a {name} model, a structure_vae is needed")
    return checkpoint_params.read_model(workdir, step, which=which)

  vae, meta = checkpoint_steps.newest_readable(workdir, read)
  return StructureEncoder(
    vae,
    batch_size=batch_size,
    step=meta["step"],
    tell=tell,
  )

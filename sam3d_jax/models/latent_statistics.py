"""Mean and spread of structured latents: flow models see latents normalised by them.

They belong to an autoencoder. A flow model trained with one set makes latents that the decoders of
the other one turn into wrong colours and shapes, so they are part of a model's configuration. Pure
Python: data workers normalise with the same numbers.
"""

import dataclasses
import math

from sam3d_jax.geometry.arrays import namespace
from sam3d_jax.sections import FieldError, nearest


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
  """normalised = (latent - mean) / std, channel by channel."""

  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __post_init__(self):
    # configurations hold lists
    object.__setattr__(self, "mean", tuple(self.mean))
    object.__setattr__(self, "std", tuple(self.std))
    if len(self.mean) != len(self.std):
      raise FieldError(
        f"mean has {len(self.mean)} channels and std {len(self.std)}: give one number a channel"
      )
    for value in self.std:
      if not 0 < value < math.inf:
        raise FieldError(f"std holds {value}: give positive numbers")


PUBLISHED: dict[str, LatentStatistics] = {
  # of the released decoders, whose autoencoder saw depth-aware features
  "release": LatentStatistics(
    mean=(
      0.12211431,
      0.37204156,
      -1.26521907,
      -2.05276058,
      -3.10432536,
      -0.11294304,
      -0.85146744,
      0.45506954,
    ),
    std=(
      2.37326008,
      2.13174402,
      2.2413953,
      2.30589401,
      2.1191894,
      1.8969511,
      2.41684989,
      2.08374642,
    ),
  ),
  # of the TRELLIS autoencoder
  "trellis": LatentStatistics(
    mean=(
      -2.16875,
      -0.00435,
      -0.13352,
      -0.08418,
      -0.52712,
      0.72387,
      -1.14145,
      1.20394,
    ),
    std=(
      2.37765,
      2.38639,
      2.12442,
      2.17486,
      2.66394,
      2.37119,
      2.62174,
      2.68452,
    ),
  ),
}


def named(name: str) -> LatentStatistics:
  """A published set. Raises FieldError for an unknown name."""
  if name not in PUBLISHED:
    known = ", ".join(PUBLISHED)
    raise FieldError(
      f"latent_statistics = {name!r} is not one of {known}{nearest(name, PUBLISHED)}; or give a "
      "section with mean and std"
    )
  return PUBLISHED[name]


def normalise(latents, statistics: LatentStatistics):
  """(..., C) latents as an autoencoder makes them to what the flow model sees; NumPy or JAX."""
  xp = namespace(latents)
  mean = xp.asarray(statistics.mean, dtype=xp.float32)
  std = xp.asarray(statistics.std, dtype=xp.float32)
  return (latents - mean) / std


def denormalise(normalised, statistics: LatentStatistics):
  """The inverse of `normalise`: what decoders read."""
  xp = namespace(normalised)
  mean = xp.asarray(statistics.mean, dtype=xp.float32)
  std = xp.asarray(statistics.std, dtype=xp.float32)
  return normalised * std + mean

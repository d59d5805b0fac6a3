"""Gaussians as the decoders of SLAT latents state them: raw numbers, and what they mean.

A decoder gives every voxel several Gaussians. Its numbers are raw: a scale goes through a softplus,
an opacity through a sigmoid, a rotation is normalised. Weights were trained through exactly these
functions (arXiv 2412.01506, appendix).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax import sections
from sam3d_jax.render.splats import Splats, colours_of_sh0
from sam3d_jax.sections import FieldError

IDENTITY = (1.0, 0.0, 0.0, 0.0)  # w, x, y, z; raw rotations are added to it
CHANNELS = 14  # raw numbers of a Gaussian


@dataclasses.dataclass(frozen=True)
class Activations:
  """From raw numbers to Gaussians; the defaults are published, and their weights need them.

  reach: side of the cube around its voxel's centre within which a Gaussian can lie, in voxels.
  rotation_rate: raw rotations are multiplied by it. scale_bias: scale of a raw zero. opacity_bias:
  opacity of a raw zero. smallest_scale: joined to every scale, so that none is a point; both in
  units of the object's cube. screen_kernel: variance that the renderer of their training added on
  the screen, square pixels, its opacity compensated.
  """

  reach: float = 1.5
  rotation_rate: float = 0.1
  scale_bias: float = 4e-3
  opacity_bias: float = 0.1
  smallest_scale: float = 9e-4
  screen_kernel: float = 0.1

  def __post_init__(self):
    sections.check_positive(self, "rotation_rate", "scale_bias")
    sections.check_not_negative(self, "smallest_scale", "screen_kernel")
    if self.reach <= 1:
      raise FieldError(
        f"reach = {self.reach}: a Gaussian must be able to leave its voxel: give more than 1"
      )
    if not 0 < self.opacity_bias < 1:
      raise FieldError(f"opacity_bias = {self.opacity_bias} is not between 0 and 1")

  @property
  def raw_scale_bias(self) -> float:
    """What the softplus turns into `scale_bias`."""
    return math.log(math.expm1(self.scale_bias))

  @property
  def raw_opacity_bias(self) -> float:
    """What the sigmoid turns into `opacity_bias`."""
    return math.log(self.opacity_bias / (1 - self.opacity_bias))


class RawGaussians(NamedTuple):
  """Gaussians as decoded. Leading axes are free; positions are final, in the cube 0..1."""

  position: jax.Array  # (..., 3)
  colour: jax.Array  # (..., 3), coefficients of the constant spherical harmonic
  scaling: jax.Array  # (..., 3)
  rotation: jax.Array  # (..., 4), to be added to no rotation; w, x, y, z
  opacity: jax.Array  # (..., 1)


class Gaussians(NamedTuple):
  """Gaussians as they are rendered, in the object's frame: the cube -0.5..0.5, z up."""

  centre: jax.Array  # (..., 3)
  harmonic: jax.Array  # (..., 3), coefficients of the constant spherical harmonic
  scale: jax.Array  # (..., 3), standard deviations along its axes
  rotation: jax.Array  # (..., 4) unit quaternion, w, x, y, z
  opacity: jax.Array  # (..., 1)


def radical_inverse(base: int, number: int) -> float:
  """Digits of a number mirrored at the point (van der Corput)."""
  value, place = 0.0, 1.0 / base
  while number:
    number, digit = divmod(number, base)
    value += digit * place
    place /= base
  return value


def first_offsets(count: int, reach: float) -> np.ndarray:
  """Where the Gaussians of a voxel start, (count, 3) fp32: spread over it by a Hammersley sequence,
  as arguments of the tanh that keeps them near.
  """
  points = []
  for number in range(count):
    points.append((number / count, radical_inverse(2, number), radical_inverse(3, number)))
  # rounded where the published table was, whose bits these are
  spread = np.asarray(points, np.float32) * 2 - 1
  bounded = spread / np.float32(reach)
  offsets = np.arctanh(bounded.astype(np.float64))
  return offsets.astype(np.float32)


def split(raw_V, coords_V3, first_G3, resolution: int, activations: Activations) -> RawGaussians:
  """A decoder's channels as Gaussians (..., V, G, .).

  raw_V: (..., V, 14 G), each attribute of all G Gaussians side by side. coords_V3: the voxels.
  first_G3: of `first_offsets`.
  """
  count = len(first_G3)
  raw_V = raw_V.astype(jnp.float32)
  leading = raw_V.shape[:-1]

  # attribute by attribute
  widths = (3, 3, 3, 4, 1)
  parts = []
  start = 0
  for width in widths:
    stop = start + width * count
    part = raw_V[..., start:stop]
    parts.append(part.reshape(*leading, count, width))
    start = stop
  offset, colour, scaling, rotation, opacity = parts

  # a Gaussian stays within reach of its voxel's centre
  centre_V13 = (coords_V3.astype(jnp.float32)[..., None, :] + 0.5) / resolution
  moved = jnp.tanh(offset + first_G3)
  half_reach = 0.5 * activations.reach / resolution
  return RawGaussians(
    position=centre_V13 + moved * half_reach,
    colour=colour,
    scaling=scaling,
    rotation=rotation * activations.rotation_rate,
    opacity=opacity,
  )


def unnormalised(raw_rotation):
  """The quaternion of a raw rotation before it is normalised."""
  return raw_rotation + jnp.asarray(IDENTITY, jnp.float32)


def activate(raw: RawGaussians, activations: Activations) -> Gaussians:
  """What the raw numbers mean."""
  soft = jax.nn.softplus(raw.scaling + activations.raw_scale_bias)
  squared = jnp.square(soft) + activations.smallest_scale**2
  quaternion = unnormalised(raw.rotation)
  length = jnp.linalg.norm(quaternion, axis=-1, keepdims=True)
  return Gaussians(
    centre=raw.position - 0.5,
    harmonic=raw.colour,
    scale=jnp.sqrt(squared),
    rotation=quaternion / jnp.maximum(length, 1e-12),
    opacity=jax.nn.sigmoid(raw.opacity + activations.raw_opacity_bias),
  )


def splats(gaussians: Gaussians, valid) -> Splats:
  """Gaussians (..., V, G, .) as one list for renderers and files; those of voxels (..., V) that are
  not `valid`, padding, have opacity 0.
  """
  opacity = jnp.where(valid[..., None], gaussians.opacity[..., 0], 0)
  return Splats(
    centres_N3=gaussians.centre.reshape(-1, 3),
    scales_N3=gaussians.scale.reshape(-1, 3),
    rotations_N4=gaussians.rotation.reshape(-1, 4),
    opacities_N=opacity.reshape(-1),
    colours_N3=colours_of_sh0(gaussians.harmonic.reshape(-1, 3)),
  )

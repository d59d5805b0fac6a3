"""The only types that cross from the data pipelines to the device side.

All are NamedTuples of arrays, hence pytrees. Images are channels last. `B` is the global batch once
the arrays are placed on a mesh, the host's own rows before that.

The five latents of the Geometry model (reference order of the layout tokens) and their shapes after
`(B,)`:

    shape              (L, C)   structure latent, L = resolution**3 tokens, x-major, z fastest
    rotation           (1, 6)   normalised 6-D rotation
    translation        (1, 3)   (t - shift) / scale of the point map
    scale              (1, 3)   log(s / scale of the point map)
    translation_scale  (1, 1)   log of the translation's own scale; 0 but in the convention of unit
                                translations
"""

from typing import NamedTuple

import numpy as np

from sam3d_jax.geometry.packing import PackedVoxels

# token order of the layout stream
LAYOUT_LATENTS = ("rotation", "translation", "scale", "translation_scale")
LATENTS = ("shape", *LAYOUT_LATENTS)
# of the Texture & Refinement model: one, on the voxels of an object
TEXTURE_LATENTS = ("slat",)


class Conditioning(NamedTuple):
  """What the model looks at. A stream that is None is not used and costs nothing.

  Images are uint8 in 0..255 or float in 0..1, masks uint8 or float in 0..1, point maps float with
  NaN where unknown.
  """

  image: np.ndarray | None = None  # (B, I, I, 3) crop around the object
  mask: np.ndarray | None = None  # (B, I, I, 1) mask of the crop
  rgb_image: np.ndarray | None = None  # (B, I, I, 3) whole photo, padded to a square
  rgb_image_mask: np.ndarray | None = None  # (B, I, I, 1) mask of the whole photo
  pointmap: np.ndarray | None = None  # (B, P, P, 3) normalised point map of the crop
  rgb_pointmap: np.ndarray | None = None  # (B, P, P, 3) normalised point map of the whole photo


class GeometryBatch(NamedTuple):
  """One training batch of the Geometry model."""

  # (B, 2) uint32, content key of each example; all randomness of an example is derived from it
  key: np.ndarray
  cond: Conditioning
  # latent name -> (B, tokens, channels) float32; the data end (time 1) of the path
  latents: dict[str, np.ndarray]
  # latent name -> (B,) bool; a latent that is not present is never trained on
  present: dict[str, np.ndarray]


class StructureBatch(NamedTuple):
  """One training batch of the structure VAE."""

  key: np.ndarray  # (B, 2) uint32
  occupancy: np.ndarray  # (B, X, Y, Z) uint8, 1 on surface voxels


class PreferenceBatch(NamedTuple):
  """One batch of preference pairs: two candidates for the same input, the first preferred."""

  key: np.ndarray  # (B, 2) uint32
  cond: Conditioning
  win: dict[str, np.ndarray]  # latent name -> (B, tokens, channels)
  lose: dict[str, np.ndarray]
  # latent name -> (B,) bool, true where both candidates have the latent
  present: dict[str, np.ndarray]


class TextureBatch(NamedTuple):
  """One training batch of the Texture & Refinement model: objects packed into R rows.

  K places of a row for objects, V slots for their voxels (geometry/packing.py). A place that no
  object takes has no voxels and nothing present; what else it holds is not read.
  """

  # (R, K, 2) uint32, content key of each object; all its randomness is derived from it
  key: np.ndarray
  cond: Conditioning  # streams are (R, K, I, I, channels)
  voxels: PackedVoxels  # with neighbours, the level of half the resolution, and pooling
  # latent name -> (R, V, channels) float32, normalised (models/latent_statistics.py), zero in the
  # padding; the data end (time 1) of the path
  latents: dict[str, np.ndarray]
  # latent name -> (R, K) bool; an object whose latent is not present is never trained on
  present: dict[str, np.ndarray]


# Batch type -> path of each array that holds the tokens of an example -> axis along which they lie.
# That axis may be split over devices besides the batch (`mesh.context`); a batch type without such
# arrays needs no entry.
TOKEN_AXES: dict[type, dict[str, int]] = {
  GeometryBatch: {"latents/shape": 1},
  PreferenceBatch: {"win/shape": 1, "lose/shape": 1},
}

# Batch types whose examples may lack some of the latents; `present` says who has which.
MAY_LACK_LATENTS: frozenset[type] = frozenset((GeometryBatch, PreferenceBatch, TextureBatch))

# Batch types whose rows hold several examples, on the slots of their `voxels`.
PACKED: frozenset[type] = frozenset((TextureBatch,))

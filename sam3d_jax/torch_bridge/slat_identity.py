"""Whose SLAT latents a flow model makes and a decoder reads: they have to be one encoder's.

A decoder of another autoencoder runs without complaint and returns wrong colours and shapes. So
latents carry a name, the digest of the encoder's parameters, and an import notes which files lay
beside it.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

from sam3d_jax.errors import InputError
from sam3d_jax.torch_bridge import load
from sam3d_jax.torch_bridge.release import Release, latents_of

LINEAGE_KEY = "slat"  # of a lineage and of a dataset in it, as "latents" is of the first stage
DECODERS = ("slat_decoder_gs", "slat_decoder_gs_4", "slat_decoder_mesh")


@dataclasses.dataclass(frozen=True)
class SlatIdentity:
  """Whose latents something makes or reads.

  what: the thing, for messages. autoencoder: the latents' name, None if it does not say. files:
  published part -> digest of the files that lay beside it where it was imported.
  """

  what: str
  autoencoder: str | None
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def of_lineage(lineage: Mapping[str, Any], what: str, encoded: str | None = None) -> SlatIdentity:
  """Of a model by its lineage; encoded: name of the latents that it makes from data, if it does.

  Raises InputError if datasets of one run name different autoencoders.
  """
  found = latents_of(lineage, LINEAGE_KEY) or {}
  return SlatIdentity(
    what=what,
    autoencoder=encoded or found.get("autoencoder"),
    files=found.get("files") or {},
  )


def of_release(release: Release) -> SlatIdentity:
  """Of everything of the second stage in a release folder, as its record has it."""
  known = release.sidecar.get(LINEAGE_KEY) or {}
  files = {}
  for part in DECODERS:
    if part in release.files:
      files[part] = load.file_digest(release.verified_file(part))
  return SlatIdentity(
    what=str(release.folder),
    autoencoder=known.get("autoencoder"),
    files=files,
  )


def check(identities: Iterable[SlatIdentity]) -> bool:
  """Whether all of them are known to be of the same latents; one alone is.

  Raises InputError for two that are known not to be.
  """
  identities = list(identities)
  verified = True
  for number, one in enumerate(identities):
    for other in identities[number + 1 :]:
      verified = _belong(one, other) and verified
  return verified


def _belong(one: SlatIdentity, other: SlatIdentity) -> bool:
  """Whether two are known to be of the same latents."""
  # Files that lay side by side belong together, whatever names say.
  for part, digest in one.files.items():
    if other.files.get(part) == digest:
      return True
  if one.autoencoder is None or other.autoencoder is None:
    return False
  if one.autoencoder != other.autoencoder:
    raise InputError(
      f"{one.what} is of SLAT latents of autoencoder {one.autoencoder}, {other.what} of "
      f"{other.autoencoder}: colours and shapes would be wrong. Give decoders of the autoencoder "
      "that encoded the data."
    )
  return True

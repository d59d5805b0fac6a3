"""Keys of content: what makes an example the same example on every machine and in every run.

All randomness of an example hangs on its key (`sam3d_jax.objectives.draws`), so a record, a photo's
object and an item of an evaluation set each get one from what they are.
"""

import hashlib

import numpy as np


def example_key(*parts: str | bytes | int | np.ndarray) -> str:
  """A stable key (32 hex digits) of the parts' content, in order.

  It is the same on every machine and Python version; parts of other types or shapes, or split in
  other places, give another key.
  """
  digest = hashlib.sha256()
  for part in parts:
    if isinstance(part, np.ndarray):
      part = f"{part.dtype.str}{part.shape}".encode() + np.ascontiguousarray(part).tobytes()
    data = part if isinstance(part, bytes) else str(part).encode()
    digest.update(type(part).__name__.encode() + len(data).to_bytes(8, "little") + data)
  return digest.hexdigest()[:32]


def key_words(key: str) -> np.ndarray:
  """The key as (2,) uint32, the form in which it enters random draws (`GeometryBatch.key`)."""
  return np.frombuffer(hashlib.sha256(key.encode()).digest()[:8], dtype="<u4").astype(np.uint32)

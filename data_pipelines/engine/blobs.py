"""Files by their SHA-256, on disk or behind any fsspec URL.

A file is written once and never changed, so a name says what is in it, equal files are kept once,
and a path is never made of anything that a user typed.
"""

import hashlib
import pathlib
import re

import fsspec

from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic

DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: object) -> bool:
  """Whether something can be the name of a kept file."""
  return isinstance(text, str) and DIGEST.fullmatch(text) is not None


class Blobs:
  """A store in a folder, or at an fsspec URL such as `s3://bucket/prefix`."""

  def __init__(self, url: str):
    self.url = url
    is_remote = "://" in url
    self._folder = None if is_remote else pathlib.Path(url)
    self._remote = None
    if is_remote:
      try:
        self._remote, self._root = fsspec.core.url_to_fs(url)
      except (ImportError, ValueError) as error:
        raise InputError(f"--store {url!r}: {error}") from error

  def add(self, content: bytes) -> str:
    """Keeps the bytes; returns their digest."""
    digest = hashlib.sha256(content).hexdigest()
    if self.has(digest):
      return digest
    if self._folder is not None:
      atomic.write_bytes(self.path(digest), content)
    else:
      # object stores show an upload whole or not at all
      self._remote.pipe_file(self._at(digest), content)
    return digest

  def read(self, digest: str) -> bytes:
    """The bytes of a digest. Raises FileNotFoundError for one that is not kept."""
    if self._folder is not None:
      return self.path(digest).read_bytes()
    return self._remote.cat_file(self._at(digest))

  def has(self, digest: str) -> bool:
    if self._folder is not None:
      return self.path(digest).is_file()
    return self._remote.exists(self._at(digest))

  def path(self, digest: str) -> pathlib.Path:
    """The file of a digest in a store on disk."""
    return self._folder / self._relative(digest)

  def _at(self, digest: str) -> str:
    return f"{self._root}/{self._relative(digest)}"

  def _relative(self, digest: str) -> str:
    # No other text than a digest ever becomes a path.
    if not is_digest(digest):
      raise ValueError(f"{digest!r} is no SHA-256 digest")
    return f"{digest[:2]}/{digest}"

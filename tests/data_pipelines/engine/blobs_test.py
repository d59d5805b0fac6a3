"""Laws of the store of files, on disk and behind a URL."""

import uuid

import pytest

from data_pipelines.engine.blobs import Blobs, is_digest
from sam3d_jax.errors import InputError


@pytest.fixture(params=["disk", "url"])
def blobs(request, tmp_path) -> Blobs:
  if request.param == "disk":
    return Blobs(str(tmp_path / "store"))
  return Blobs(f"memory://{uuid.uuid4().hex}")


def test_what_is_added_is_read_under_its_digest(blobs):
  digest = blobs.add(b"a mesh")
  assert is_digest(digest)
  assert blobs.add(b"a mesh") == digest
  assert blobs.read(digest) == b"a mesh"
  assert blobs.has(digest) and not blobs.has("0" * 64)
  with pytest.raises(FileNotFoundError):
    blobs.read("0" * 64)


@pytest.mark.parametrize("name", ["", "../engine.db", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_nothing_but_a_digest_becomes_a_path(blobs, name):
  assert not is_digest(name)
  with pytest.raises(ValueError, match="no SHA-256"):
    blobs.read(name)


def test_a_scheme_that_nobody_knows_is_refused():
  with pytest.raises(InputError, match="--store 'nosuch://x'"):
    Blobs("nosuch://x")

"""Tars of others: what a header announces is bounded before memory is taken for it."""

import io
import tarfile

import pytest

from data_pipelines.convert import tars
from sam3d_jax.errors import Refused


def test_a_header_that_announces_more_than_headers_have_is_not_read(tmp_path):
  path = tmp_path / "a.tar"
  header = tarfile.TarInfo("././@PaxHeader")
  header.type = tarfile.XHDTYPE
  header.size = 40 << 30
  with path.open("wb") as file:
    file.write(header.tobuf(tarfile.GNU_FORMAT))
    file.truncate(41 << 30)
  index = tars.scan(path, "sha256.txt")
  assert not index.objects and "a header of" in index.damage
  with pytest.raises(Refused, match="a header of"):
    tars.read(path, [0])


def test_members_of_an_object_are_bounded_together(tmp_path, monkeypatch):
  path = tmp_path / "a.tar"
  with tarfile.open(path, "w") as tar:
    for field in ("a.bin", "b.bin"):
      member = tarfile.TarInfo(f"key.{field}")
      member.size = 3000
      tar.addfile(member, io.BytesIO(bytes(3000)))
  (found,) = tars.scan(path, "sha256.txt").objects
  assert {len(data) for data in tars.read(path, found.offsets).values()} == {3000}
  monkeypatch.setattr(tars, "LARGEST_OBJECT", 5000)
  with pytest.raises(Refused, match="at most 5000"):
    tars.read(path, found.offsets)

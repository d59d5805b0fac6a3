"""NumPy files that others have made: headers are not believed."""

import io
import zipfile

import numpy as np
import pytest

from data_pipelines.annotations import items
from data_pipelines.annotations.layout import Candidate
from data_pipelines.convert import objects
from sam3d_jax.errors import InputError, Refused
from sam3d_jax.files import arrays, camera_files, mask_files, pointmaps


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
  """The start of a .npy file of this shape."""
  stream = io.BytesIO()
  stated = {"descr": dtype, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(stream, stated)
  return stream.getvalue()


def test_arrays_come_as_they_were_saved(tmp_path):
  values = np.arange(6.0).reshape(2, 3)
  np.save(tmp_path / "a.npy", np.asfortranarray(values))
  np.savez_compressed(tmp_path / "a.npz", depth=values, K=np.eye(3))
  np.testing.assert_array_equal(arrays.read_arrays(tmp_path / "a.npy", "x"), values)
  found = arrays.read_arrays(tmp_path / "a.npz", "x")
  assert list(found) == ["depth", "K"]
  np.testing.assert_array_equal(found["depth"], values)


def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path):
  claims = header((400_000, 400_000)) + bytes(64)
  (tmp_path / "a.npy").write_bytes(claims)
  with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
    archive.writestr("depth.npy", claims)
  for file in ("a.npy", "a.npz"):
    with pytest.raises(InputError, match=f"map .*{file}: .*claims 640,000,000,000 bytes"):
      arrays.read_arrays(tmp_path / file, f"map {tmp_path / file}")


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(arrays, "MAX_BYTES", 10_000)
  np.savez_compressed(tmp_path / "a.npz", depth=np.zeros((100, 100), np.uint8))
  with pytest.raises(InputError, match="at most 10,000"):
    arrays.read_arrays(tmp_path / "a.npz", "x")


def test_damage_and_objects_are_refused(tmp_path):
  np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
  np.savez_compressed(tmp_path / "whole.npz", depth=np.random.default_rng(0).random((40, 40)))
  whole = (tmp_path / "whole.npz").read_bytes()
  (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04" + b"garbage" * 10)
  (tmp_path / "text.npy").write_text("hello")
  flipped = bytearray(whole)
  for place in range(200, 400):
    flipped[place] ^= 0xFF
  (tmp_path / "flipped.npz").write_bytes(flipped)
  for file in ("objects.npy", "cut.npz", "zip.npy", "text.npy", "flipped.npz", "missing.npy"):
    with pytest.raises(InputError, match=file):
      arrays.read_arrays(tmp_path / file, file)


def test_the_readers_of_masks_maps_and_intrinsics_refuse_the_collected_files(hostile_dir, tmp_path):
  folder = hostile_dir / "npz_and_npy"
  for file in ("bad.npz", "z.npz", "huge.npz", "huge.npy", "vox2.npz", "m.npy"):
    with pytest.raises(InputError, match=file):
      pointmaps.read_pointmap(folder / file)
    copy = tmp_path / f"{file}.npy"
    copy.write_bytes((folder / file).read_bytes())
    with pytest.raises(InputError, match=file):
      mask_files.read_mask(copy, (9, 9))
    with pytest.raises(InputError, match=file):
      camera_files.parse_intrinsics(str(copy))


def test_arrays_of_other_peoples_datasets_are_not_believed_either(tmp_path):
  claims = header((400_000, 400_000)) + bytes(64)
  with pytest.raises(Refused, match="bad_array: coords: .*claims 640,000,000,000 bytes"):
    objects.load_array(claims, "coords", shape=(None, None))
  with zipfile.ZipFile(tmp_path / "latents.npz", "w") as archive:
    archive.writestr("voxels.npy", claims)
  candidate = Candidate(name="a", generator="g", latents=tmp_path / "latents.npz")
  with pytest.raises(Refused, match="bad_latents: .*latents.npz: .*claims 640,000,000,000 bytes"):
    items.shape_fields(candidate, items.Recipe("name", "mitl_3do"))

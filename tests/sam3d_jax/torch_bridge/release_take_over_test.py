"""Laws of what a release takes over from another one."""

import json
import shutil

import pytest
import yaml

from sam3d_jax.errors import InputError
from sam3d_jax.torch_bridge import load, release, release_writer
from sam3d_jax.training import checkpoint_steps
from tests.support.tiny_release import STAGE_2, export, import_, in_memory


def test_parts_not_trained_here_are_taken_over(published_like, tmp_path):
  out = tmp_path / "out"
  record = release_writer.write_release(out, in_memory("geometry", 1), take_from=published_like)
  written = json.loads((out / "release.json").read_text())
  assert record["parts"] == written["parts"]

  # linked, not copied
  for part in (*STAGE_2, "ss_decoder"):
    ours = out / f"{part}.ckpt"
    theirs = published_like / f"{part}.ckpt"
    assert ours.samefile(theirs)
    entry = record["parts"][part]
    assert entry["sha256"] == load.file_digest(theirs)

  # with the settings and the terms that come with them
  pipeline = yaml.safe_load((out / "pipeline.yaml").read_text())
  assert pipeline["slat_mean"] == [0.5] * 8
  assert pipeline["slat_decoder_mesh_ckpt_path"] == "slat_decoder_mesh.ckpt"
  assert (out / "LICENSE").read_text() == "terms"
  assert "missing" not in "\n".join(record["published_pipeline"]["obstacles"])


def test_a_published_release_can_be_continued_and_given_back(runs, published_like, tmp_path):
  start, out = tmp_path / "start", tmp_path / "out"
  assert import_(published_like, start) == 0
  lineage = checkpoint_steps.read_meta(start)["lineage"]
  assert list(lineage["files"]) == [str(published_like / "ss_generator.ckpt")]

  # it is the very decoder that lay beside the imported model
  assert export(start, out, take_from=published_like) == 0
  record = json.loads((out / "release.json").read_text())
  assert record["decoder"]["verified"]

  # the card says whose terms hold
  card = (out / "MODEL_CARD.md").read_text()
  assert "imported and not trained further" in card
  assert "descends from imported weights: their licence holds" in card
  assert "Taken over from another release, under its licence: ss_decoder.ckpt" in card
  assert "Licence files in this folder: `LICENSE`." in card

  # another decoder in its place; the file is a hard link by now, and writing into it changes both
  other = runs / "release" / "ss_encoder.ckpt"
  decoder_file = published_like / "ss_decoder.ckpt"
  decoder_file.unlink()
  decoder_file.write_bytes(other.read_bytes())
  changed = release.read_release(published_like)
  decoder = release_writer.decoder_identity(None, changed)
  latents = release.latents_of(lineage)
  assert not release.check_latents(latents, decoder)


def test_a_taken_over_file_that_changed_since_is_refused(runs, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(runs / "release", broken)
  (broken / "ss_encoder.ckpt").write_bytes(b"something else")
  with pytest.raises(InputError, match="ss_encoder.ckpt is not the file that"):
    release_writer.write_release(tmp_path / "out", in_memory("geometry", 1), take_from=broken)
  assert [path.name for path in tmp_path.iterdir()] == ["broken"]

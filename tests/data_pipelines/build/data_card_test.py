"""The card of a dataset says what its folder holds, and is left to people from then on."""

from data_pipelines.build import data_card
from data_pipelines.format import records
from tests.support import tiny_dataset

PLAIN = {
  "identity": {"builder": "iso_3do", "config": {"views": 3, "camera": {"fov": [30, 60]}}},
  "lineage": {"numpy": "2.4.6"},
  "counts": {
    "records": {"train": 5},
    "inputs": 7,
    "refused": {"unreadable": 2},
    "rejected_draws": {"too_dark": 4},
  },
}


def card_of(folder, build: dict, **examples) -> str:
  tiny_dataset.write_dataset(folder, 5, **examples)
  records.write_json(folder / records.BUILD_FILE, build)
  assert data_card.write(folder) == folder / "DATA_CARD.md"
  text = (folder / "DATA_CARD.md").read_text()
  assert "$" not in text
  return text


def test_the_card_has_counts_licences_configuration_and_refusals(tmp_path):
  licences = iter(["CC-BY-4.0", "CC0 |\n1.0", "CC-BY-4.0", "", "CC-BY-4.0"])
  text = card_of(tmp_path, PLAIN, change=lambda example: example | {"license": next(licences)})
  size = sum(path.stat().st_size for path in tmp_path.glob("*.array_record-*")) / 2**20
  for line in (
    f"| train | 5 | 2 | {size:.1f} |",
    "| made by | iso_3do, numpy 2.4.6 |",
    "| CC-BY-4.0 | 3 |",
    "| CC0 \\| 1.0 | 1 |",
    "| not stated | 1 |",
    "| `camera.fov` | [30, 60] |",
    "| of 7 inputs | refused |",
    "| unreadable | 2 |",
    "| random draws: too_dark | 4 |",
  ):
    assert line in text.splitlines(), line
  assert records.dataset_identity(tmp_path)["digest"] in text


def test_the_card_of_a_dataset_with_latents_names_parent_and_autoencoder(tmp_path):
  source = {"name": "iso", "version": "1.1.0", "digest": "beef"}
  build = {
    "source": source,
    "autoencoder": "cafe",
    "latent": {"resolution": 4, "channels": 8},
  }
  text = card_of(tmp_path, build)
  assert "| parent | iso 1.1.0, digest `beef` |" in text
  assert "| latents | 4³ × 8, autoencoder `cafe` |" in text


def test_examples_that_cannot_be_read_are_counted(tmp_path, monkeypatch):
  def fail(split, index):
    raise records.CorruptRecord("bytes are missing")

  monkeypatch.setattr(records.Split, "__getitem__", fail)
  assert "| not readable | 5 |" in card_of(tmp_path, PLAIN).splitlines()


def test_a_card_that_is_there_is_left_alone(tmp_path):
  card_of(tmp_path, PLAIN)
  (tmp_path / "DATA_CARD.md").write_text("mine")
  assert data_card.write(tmp_path) is None
  assert (tmp_path / "DATA_CARD.md").read_text() == "mine"

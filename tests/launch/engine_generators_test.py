"""Where the data engine's candidates come from."""

import numpy as np
import pytest
import trimesh

from data_pipelines.engine import adding, export, people, poses, proposals, queue, reports
from launch import engine, evaluate
from launch.console.refusals import Refusals
from launch.engines import generators
from sam3d_jax.errors import InputError
from tests.support import engine_projects, tiny_weights


@pytest.fixture
def made(tmp_path):
  """A project whose two objects wait for candidates."""
  with_tasks = engine_projects.make(tmp_path, objects=2, candidates=0)
  yield with_tasks
  with_tasks.close()


@pytest.mark.parametrize("text", ["mine", "mine=meshes", "=meshes:x", "mine=shapes:x"])
def test_a_generator_is_name_kind_and_path(text):
  with pytest.raises(InputError, match="write NAME=KIND:PATH|kind 'shapes' is not one of"):
    generators.parse(text)


def test_candidates_are_shared_out():
  one = generators.Generator("a", "meshes", None)
  assert generators.shares([one] * 3, 8) == [3, 3, 2]
  assert generators.shares([one], 8) == [8]


def test_a_tournament_keeps_the_best_of_each_group_and_thus_variety():
  kept = generators.tournament(list(range(50)), 8, lambda group: [-abs(n - 20) for n in group])
  groups = [{n for n in range(50) if n % 8 == number} for number in range(8)]
  assert [next(g for g, group in enumerate(groups) if n in group) for n in kept] == list(range(8))
  assert kept[4] == 20
  assert generators.tournament([1, 2], 8, None) == [1, 2]


def test_retrieval_prefers_what_looks_like_the_mask(tmp_path, made):
  """The masks are upright 5 x 8 pixels: of a plate, a pole and such a block it is the block."""
  folder = tmp_path / "shelf"
  folder.mkdir()
  for name, extents in {
    "plate": (1, 0.05, 1),
    "pole": (0.1, 1, 0.1),
    "block": (0.5, 1, 0.5),
  }.items():
    trimesh.creation.box(extents).export(folder / f"{name}.glb")
  generator = generators.parse(f"shelf=dataset:{folder}")
  targets = proposals.wanting(made, 0)
  refused = Refusals("candidates")
  for found in generator.propose(made, targets, 1, refused):
    (one,) = found
    assert one.mesh == (folder / "block.glb").read_bytes()
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(InputError, match="holds no mesh"):
    list(generators.parse(f"none=dataset:{empty}").propose(made, targets, 1, refused))
  assert refused.found == []


def test_a_file_that_is_no_mesh_costs_itself_alone(tmp_path, made, capsys):
  for number in range(2):
    folder = tmp_path / "meshes" / "cup" / str(number)
    folder.mkdir(parents=True)
    (folder / "a.glb").write_bytes(b"glTF and no more")
    (folder / "b.glb").write_bytes(engine_projects.mesh_bytes(2))
  words = ["propose", "--project", str(made.folder)]
  words += ["--generator", f"mine=meshes:{tmp_path / 'meshes'}"]
  # the others are proposed, and who is to blame is named
  assert engine.main(words) == 2
  said = capsys.readouterr()
  assert "2 tasks opened" in said.out
  assert "a.glb" in said.err and "2 of 4 candidates cannot be used" in said.err
  assert "a.glb" in (made.folder / "quarantine.jsonl").read_text()


def test_a_photo_that_cannot_be_read_costs_itself_alone(tmp_path, made, capsys):
  photos = tmp_path / "photos"
  photos.mkdir()
  cutout = np.full((20, 20, 4), 255, np.uint8)
  cutout[:5, :, 3] = 0
  (photos / "good.png").write_bytes(adding.png_bytes(cutout))
  (photos / "bad.png").write_bytes(b"\x89PNG and no more")
  words = ["add", "--project", str(made.folder), "--images", str(photos)]
  assert engine.main(words) == 2
  assert "bad.png" in capsys.readouterr().err
  assert engine.main([*words, "--quarantine_budget", "0.5"]) == 0


def test_textures_are_chosen_like_shapes_and_end_there(tmp_path, made):
  for number in range(2):
    folder = tmp_path / "textures" / "cup" / str(number)
    folder.mkdir(parents=True)
    for name, size in (("a", 1), ("b", 2)):
      (folder / f"{name}.glb").write_bytes(engine_projects.mesh_bytes(size + number))
  words = ["propose", "--project", str(made.folder), "--kind", "texture"]
  assert engine.main([*words, "--generator", f"mine=meshes:{tmp_path / 'textures'}"]) == 0
  ann = engine_projects.person(made, "ann")
  first = queue.next_task(made, ann)
  assert first.stage == "texture"
  sides = {side: first.view[side]["id"] for side in ("left", "right")}
  said = {"epoch": first.epoch, "kind": "choice"}
  queue.decide(made, ann, first.task, key="c", payload={**sides, "answer": "left"}, **said)
  said["kind"] = "rating"
  rating = {"winner": sides["left"], "value": 0.0}
  queue.decide(made, ann, first.task, key="r", payload=rating, **said)
  assert reports.status(made)["tasks"]["texture"] == {"done": 1, "open": 1}
  assert "pose" not in reports.status(made)["tasks"]


def test_who_is_sent_away_comes_in_no_more_until_a_new_token(made, capsys):
  words = ["token", "--project", str(made.folder), "--name", "bot"]
  assert engine.main(words) == 0
  token = capsys.readouterr().out.strip()

  def is_known() -> bool:
    with made.database.transaction() as session:
      return people.of_token(session, token) is not None

  assert is_known()
  assert engine.main([*words, "--revoke"]) == 0
  assert not is_known()
  with pytest.raises(InputError, match="was sent away"):
    engine_projects.person(made, "bot")
  assert engine.main(words) == 0
  assert engine_projects.person(made, "bot").active


def test_a_model_proposes_what_it_samples_with_its_latents(tmp_path, made, capsys):
  """From a checkpoint to annotation folders that keep the sampled latents."""
  geometry = tiny_weights.save_with_pointmap(tmp_path / "geometry")
  decoder = tiny_weights.save_vae(tmp_path / "vae")
  words = ["propose", "--project", str(made.folder), "--samples", "2", "--draws", "4"]
  words += ["--generator", f"sam3d/1=checkpoint:{geometry}", "--decoder", decoder, "--steps", "1"]
  assert engine.main(words) == 0, capsys.readouterr().err
  ann = engine_projects.person(made, "ann")
  handed = queue.next_task(made, ann, ["shape"])
  left = handed.view["left"]
  assert left["suffix"] == ".glb"
  payload = {"left": left["id"], "right": handed.view["right"]["id"], "answer": "right"}
  queue.decide(made, ann, handed.task, key="c", epoch=handed.epoch, kind="choice", payload=payload)
  winner = queue.next_task(made, ann, ["shape"]).view["winner"]
  payload = {"winner": winner["id"], "value": 5}
  queue.decide(made, ann, handed.task, key="r", epoch=handed.epoch, kind="rating", payload=payload)
  # where the model puts it is where posing starts
  start = queue.next_task(made, ann, ["pose"]).view["pose"]
  assert np.isfinite(start["translation"]).all()

  export.export(made, tmp_path / "out", iteration=0, alpha=3)
  (item,) = (tmp_path / "out" / export.ITEMS).iterdir()
  with np.load(item / "shape-0.npz") as held:
    assert {"voxels", "structure_latent", "structure_latent_autoencoder"} <= set(held)
    assert held["structure_latent"].dtype == np.float32


def test_photos_come_back_as_they_were_taken_in(tmp_path, made):
  (first, _) = proposals.wanting(made, 0)
  photo = generators.photo_of(made, first)
  given = engine_projects.photo(tmp_path, "cup", 2)
  np.testing.assert_array_equal(photo.image_HW3, given.image_HW3)
  np.testing.assert_array_equal(photo.masks["object"], given.masks["0"])
  assert poses.UPRIGHT[0] > 0


def test_blind_comparisons_end_in_the_votes_that_evaluate_reads(tmp_path, made, capsys):
  words = ["compare", "--project", str(made.folder)]
  for name, size in (("ours", 1), ("theirs", 5)):
    for number in range(2):
      folder = tmp_path / name / "cup" / str(number)
      folder.mkdir(parents=True)
      (folder / "a.glb").write_bytes(engine_projects.mesh_bytes(size))
    words += ["--generator", f"{name}=meshes:{tmp_path / name}"]
  assert engine.main(words[:-2]) == 2
  assert engine.main(words) == 0
  ann = engine_projects.person(made, "ann")
  for number in range(2):
    handed = queue.next_task(made, ann, ["comparison"])
    sides = [handed.view[side] for side in ("left", "right")]
    payload = {"left": sides[0]["id"], "right": sides[1]["id"], "answer": "left"}
    said = {"key": f"v{number}", "epoch": handed.epoch, "kind": "vote"}
    queue.decide(made, ann, handed.task, payload=payload, **said)
  votes = tmp_path / "votes.csv"
  assert engine.main(["votes", "--project", str(made.folder), "--out", str(votes)]) == 0
  head, *lines = votes.read_text().splitlines()
  assert head == "left,right,outcome"
  assert {frozenset(line.split(",")[:2]) for line in lines} == {frozenset(("ours", "theirs"))}
  assert evaluate.main(["--votes", str(votes), "--out", str(tmp_path / "scores")]) == 0

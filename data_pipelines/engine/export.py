"""From decisions to the annotation folders that `launch.build_data` reads.

    OUT/export.json                  what was exported, and from which decisions
    OUT/items/PHOTO-OBJECT-ITERATION/annotation.json and the files that it names

Every object whose chain ended is an item, with all candidates, the choices and the rating: what was
accepted, what was not, and who made it. The builders choose: `mitl_3do` takes the winners rated at
least α, `art_3do` what artists made, `preferences` the pairs. The same database gives the same
bytes.
"""

from collections.abc import Iterator
import dataclasses
import io
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import sqlalchemy
from sqlalchemy import orm

from data_pipelines.annotations import choices, write
from data_pipelines.engine import poses
from data_pipelines.engine.adding import JPEG_START
from data_pipelines.engine.project import Project
from data_pipelines.engine.stages import Work, last_decision
from data_pipelines.engine.tables import Candidate, Decision, Object, Photo, Task
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic, names

ITEMS = "items"
SUMMARY = "export.json"


@dataclasses.dataclass(frozen=True)
class Item:
  """One object whose chain ended, and what was decided about it."""

  name: str
  iteration: int
  photo: Photo
  target: Object
  candidates: tuple[Candidate, ...]
  chain: tuple[dict[str, Any], ...]
  rating: dict[str, Any]
  made: dict[str, Any] | None  # by an artist
  pose: dict[str, Any] | None


def export(project: Project, out: pathlib.Path, *, iteration: int, alpha: float) -> dict[str, Any]:
  """Writes the items of all iterations up to `iteration`; returns the summary.

  alpha: least rating that counts as accepted. Raises InputError for a folder that is not empty.
  """
  if out.exists() and any(out.iterdir()):
    raise InputError(f"--out {out} is not empty: name a folder that is, or a new one")
  counts = {"items": 0, "accepted": 0, "below_alpha": 0, "by_artists": 0, "posed": 0}
  generators: dict[str, int] = {}
  with atomic.folder(out) as folder:
    for item in items(project, iteration):
      _write(project, folder / ITEMS / item.name, item)
      counts["items"] += 1
      counts["posed"] += item.pose is not None
      counts["by_artists"] += item.made is not None
      accepted = item.rating["value"] >= alpha
      counts["accepted" if accepted else "below_alpha"] += 1
      for one in item.candidates:
        generators[one.generator] = generators.get(one.generator, 0) + 1
    summary = {
      "family": project.settings.family,
      "iteration": iteration,
      "alpha": alpha,
      **counts,
      "candidates_by_generator": dict(sorted(generators.items())),
    }
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
  return summary


def items(project: Project, iteration: int) -> Iterator[Item]:
  """The items, by photo, object and iteration."""
  with project.database.transaction() as session:
    rated = sqlalchemy.select(Decision.task_id).where(Decision.kind == "rating")
    rows = session.execute(
      sqlalchemy.select(Task, Object, Photo)
      .join(Object, Object.id == Task.object_id)
      .join(Photo, Photo.id == Task.photo_id)
      .where(
        Task.stage == "shape",
        Task.copy == 0,
        Task.iteration <= iteration,
        Task.id.in_(rated),
      )
      .order_by(Photo.name, Object.number, Task.iteration)
    ).all()
    found = [_item(session, project, *row) for row in rows]
  yield from found


def _item(session: orm.Session, project: Project, task: Task, target: Object, photo: Photo) -> Item:
  work = Work(session, project, task)
  (rating,) = work.decisions("rating")
  name = f"{names.file_name(photo.name)}-{target.number}-{task.iteration}"
  return Item(
    name=name,
    iteration=task.iteration,
    photo=photo,
    target=target,
    candidates=tuple(work.candidates("shape")),
    chain=tuple(work.decisions("choice")),
    rating=rating,
    made=last_decision(session, task, "artist", "upload"),
    pose=last_decision(session, task, "pose", "pose"),
  )


def _write(project: Project, folder: pathlib.Path, item: Item) -> None:
  """One annotation folder."""
  blobs = project.blobs
  image = blobs.read(item.photo.image)
  suffix = "jpg" if image.startswith(JPEG_START) else "png"
  files = {
    "image": (f"image.{suffix}", image),
    "mask": ("mask.png", blobs.read(item.target.mask)),
  }
  points = None
  if item.photo.pointmap is not None:
    points = poses.points_of(blobs, item.photo.pointmap)
  # the pose is that of the mesh that was accepted
  pose = None if item.pose is None else poses.from_json(item.pose)
  winner = item.rating["winner"]
  named = {one.id: one.name for one in item.candidates}

  with tempfile.TemporaryDirectory() as scratch:
    proposals = {}
    for one in item.candidates:
      is_posed = one.id == winner and item.made is None
      said = {"pose": pose if is_posed else None, "license": one.license}
      # what a model sampled is trained on as it was sampled
      if one.latents is not None:
        arrays = _arrays(blobs.read(one.latents))
        fields = {key: arrays[key] for key in write.LATENT_FIELDS if key in arrays}
        autoencoder = fields.get("structure_latent_autoencoder")
        if autoencoder is not None:
          fields["structure_latent_autoencoder"] = str(autoencoder)
        proposals[one.name] = write.Proposal(one.generator, **fields, **said)
        continue
      mesh = pathlib.Path(scratch) / f"{one.name}{one.suffix}"
      mesh.write_bytes(blobs.read(one.mesh))
      proposals[one.name] = write.Proposal(one.generator, mesh=mesh, **said)
    artist = None
    if item.made is not None:
      mesh = pathlib.Path(scratch) / f"artist{item.made['suffix']}"
      mesh.write_bytes(blobs.read(item.made["mesh"]))
      artist = write.Proposal("artist", mesh=mesh, pose=pose)

    write.item(
      folder,
      files,
      points,
      item.photo.camera,
      proposals,
      [_choice(choice, named) for choice in item.chain],
      rating=item.rating["value"],
      artist=artist,
      note=f"iteration {item.iteration}",
      license=item.photo.license,
    )


def _choice(stored: dict[str, Any], named: dict[int, str]) -> choices.Choice:
  kept = stored.get("kept")
  return choices.Choice(
    named[stored["left"]],
    named[stored["right"]],
    stored["answer"],
    kept="" if kept is None else named[kept],
  )


def _arrays(content: bytes) -> dict[str, np.ndarray]:
  """The arrays of an .npz of ours."""
  with np.load(io.BytesIO(content), allow_pickle=False) as held:
    return dict(held)

"""Candidates for the objects of a project, and the tasks that they open."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import pathlib
import tempfile
from typing import Any

import sqlalchemy

from data_pipelines.engine import stages
from data_pipelines.engine.project import Project
from data_pipelines.engine.tables import Candidate, Object, Photo, Task
from data_pipelines.synth import assets
from sam3d_jax.render.mesh import write_glb

SPLATS = b"f_dc_0"  # property that a .ply of splats has, in its head
HEAD = 4096  # bytes


@dataclasses.dataclass(frozen=True)
class Wanting:
  """An object that waits for candidates."""

  id: int
  photo: str  # name of its photo
  number: int
  image: str
  mask: str
  pointmap: str | None
  camera: Mapping[str, float] | None


@dataclasses.dataclass(frozen=True)
class Proposed:
  """A candidate: the bytes of its mesh and, of a model's, of its latents."""

  generator: str  # "family" or "family/version"
  mesh: bytes
  suffix: str = ".glb"
  latents: bytes | None = None
  pose: Mapping[str, Any] | None = None
  license: str = ""


def wanting(project: Project, iteration: int, kind: str = "shape") -> list[Wanting]:
  """Objects without candidates of a kind and an iteration, by number."""
  with project.database.transaction() as session:
    has_candidate = sqlalchemy.exists().where(
      Candidate.object_id == Object.id,
      Candidate.iteration == iteration,
      Candidate.kind == kind,
    )
    rows = session.execute(
      sqlalchemy.select(Object, Photo)
      .join(Photo, Photo.id == Object.photo_id)
      .where(~has_candidate)
      .order_by(Object.id)
    )
    found = []
    for one, photo in rows:
      found.append(
        Wanting(
          id=one.id,
          photo=photo.name,
          number=one.number,
          image=photo.image,
          mask=one.mask,
          pointmap=photo.pointmap,
          camera=photo.camera,
        )
      )
  return found


def propose(
  project: Project,
  target: int,
  iteration: int,
  candidates: Sequence[Proposed],
  kind: str = "shape",
) -> Task | None:
  """Adds the candidates of an object and opens its task, in one transaction.

  kind: shape, texture or comparison, which is the task's stage as well.

  None without candidates: the object goes on waiting.
  """
  if not candidates:
    return None
  # files first: a row never names one that is not kept
  kept = []
  for one in candidates:
    latents = None if one.latents is None else project.blobs.add(one.latents)
    content, suffix = shown(one)
    kept.append((one, project.blobs.add(one.mesh), project.blobs.add(content), suffix, latents))

  with project.database.transaction() as session:
    owner = session.get_one(Object, target)
    for number, (one, mesh, digest, suffix, latents) in enumerate(kept):
      session.add(
        Candidate(
          object_id=target,
          iteration=iteration,
          name=f"{kind}-{number}",
          generator=one.generator,
          kind=kind,
          mesh=mesh,
          suffix=one.suffix,
          shown=digest,
          shown_suffix=suffix,
          latents=latents,
          pose=None if one.pose is None else dict(one.pose),
          license=one.license,
        )
      )
    session.flush()
    task = stages.new_task(
      session, kind, owner.photo_id, target, project.settings.seed, iteration=iteration
    )
    if task.state == "waiting":
      task.state = "open"
  return task


def shown(one: Proposed) -> tuple[bytes, str]:
  """(bytes, suffix) of what a browser shows of a candidate. Raises Refused for no mesh."""
  is_splats = one.suffix == ".ply" and SPLATS in one.mesh[:HEAD]
  if one.suffix == ".glb" or is_splats:
    return one.mesh, one.suffix
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f"candidate{one.suffix}"
    path.write_bytes(one.mesh)
    asset = assets.load(path)
    made = path.with_suffix(".shown.glb")
    write_glb(made, {"candidate": asset.mesh})
    return made.read_bytes(), ".glb"


def sources(project: Project) -> Iterator[tuple[str, int, int]]:
  """(generator, candidates that were shown, candidates that won) of each generator."""
  with project.database.transaction() as session:
    winners = {}
    payloads = session.scalars(
      sqlalchemy.select(stages.Decision.payload)
      .join(Task, Task.id == stages.Decision.task_id)
      .where(stages.Decision.kind == "rating", Task.copy == 0)
    )
    for payload in payloads:
      winners[payload["winner"]] = payload["value"]
    rows = session.execute(
      sqlalchemy.select(Candidate.generator, Candidate.id)
      .join(Task, (Task.object_id == Candidate.object_id) & (Task.stage == Candidate.kind))
      .where(
        Task.state.in_(("done", "rejected")),
        Task.copy == 0,
        Task.iteration == Candidate.iteration,
      )
    )
    shown: dict[str, list[int]] = {}
    for generator, number in rows:
      shown.setdefault(generator, []).append(number)
  for generator, numbers in sorted(shown.items()):
    yield generator, len(numbers), sum(number in winners for number in numbers)

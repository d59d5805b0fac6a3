"""What a person does at each stage: what they are shown, what they may decide, what follows.

One entry of STAGES a stage. `view` gives what the page shows; `decide` checks a decision and says
what becomes of the task; it raises ValueError, with what to send instead, for a decision that the
task does not wait for.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import math
import random
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from data_pipelines.annotations import choices
from data_pipelines.engine import chain, poses, tables
from data_pipelines.engine.blobs import is_digest
from data_pipelines.engine.project import Project, Settings
from data_pipelines.engine.tables import Annotator, Candidate, Decision, Object, Photo, Task


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A checked decision. state: of the task afterwards. then: makes the tasks that follow."""

  payload: dict[str, Any]
  state: str = "open"
  then: Callable[[], None] = lambda: None


@dataclasses.dataclass
class Work:
  """A task under a decision, in a transaction. annotator: who decides; None for a look."""

  session: orm.Session
  project: Project
  task: Task
  annotator: Annotator | None = None

  @property
  def settings(self) -> Settings:
    return self.project.settings

  @property
  def photo(self) -> Photo:
    return self.session.get_one(Photo, self.task.photo_id)

  def decisions(self, kind: str) -> list[dict[str, Any]]:
    """Payloads of the task's decisions of a kind, in order."""
    rows = self.session.scalars(
      sqlalchemy.select(Decision.payload)
      .where(Decision.task_id == self.task.id, Decision.kind == kind)
      .order_by(Decision.step)
    )
    return list(rows)

  def candidates(self, kind: str) -> list[Candidate]:
    """The candidates that the task compares."""
    rows = self.session.scalars(
      sqlalchemy.select(Candidate)
      .where(
        Candidate.object_id == self.task.object_id,
        Candidate.iteration == self.task.iteration,
        Candidate.kind == kind,
      )
      .order_by(Candidate.id)
    )
    return list(rows)


@dataclasses.dataclass(frozen=True)
class Stage:
  """kinds: of decisions that are taken. roles: that may take its tasks."""

  kinds: tuple[str, ...]
  view: Callable[[Work], dict[str, Any]]
  decide: Callable[[Work, str, Mapping[str, Any]], Outcome]
  roles: tuple[str, ...] = tables.ROLES


def new_task(
  session: orm.Session,
  stage: str,
  photo: int,
  target: int | None,
  seed: int,
  *,
  iteration: int = 0,
  copy: int = 0,
  state: str = "open",
) -> Task:
  """Adds a task; the one that there is already, if any, stays as it is.

  Its seed depends on the project's and on what the task is about, so that the same project asks the
  same questions wherever its database lies. A copy asks with other sides and another order.
  """
  same = sqlalchemy.select(Task).where(
    Task.stage == stage,
    Task.photo_id == photo,
    Task.object_id.is_(None) if target is None else Task.object_id == target,
    Task.iteration == iteration,
    Task.copy == copy,
  )
  found = session.scalar(same)
  if found is not None:
    return found
  about = f"{seed} {stage} {photo} {target} {iteration} {copy}"
  mixed = int(hashlib.sha256(about.encode()).hexdigest()[:7], 16)
  task = Task(
    stage=stage,
    state=state,
    photo_id=photo,
    object_id=target,
    iteration=iteration,
    copy=copy,
    seed=mixed,
  )
  session.add(task)
  session.flush()
  return task


# --------------------------------------------------------------------------------------------------
# Stage 1: objects and their masks
# --------------------------------------------------------------------------------------------------


def view_mask(work: Work) -> dict[str, Any]:
  """The masks that there are, to be corrected."""
  objects = work.session.scalars(
    sqlalchemy.select(Object).where(Object.photo_id == work.task.photo_id).order_by(Object.number)
  )
  return {"objects": [{"number": one.number, "mask": one.mask} for one in objects]}


def decide_mask(work: Work, kind: str, payload: Mapping[str, Any]) -> Outcome:
  """payload: {"masks": [digest, …]}, an object each; none where the photo has no object."""
  masks = payload.get("masks")
  is_list = isinstance(masks, list) and all(isinstance(mask, str) for mask in masks)
  if not is_list:
    raise ValueError(f"masks = {masks!r}: send the digests of the uploaded masks, one an object")
  for digest in masks:
    if not is_digest(digest) or not work.project.blobs.has(digest):
      raise ValueError(f"mask {digest!r} was not uploaded: upload it first")

  def then() -> None:
    for number, digest in enumerate(masks):
      add_object(work.session, work.settings, work.task.photo_id, number, digest)

  return Outcome({"masks": list(masks)}, "done", then)


def add_object(
  session: orm.Session, settings: Settings, photo: int, number: int, mask: str
) -> Object:
  """An object of a photo, and its task of choosing a shape, which waits for candidates."""
  same = sqlalchemy.select(Object).where(Object.photo_id == photo, Object.number == number)
  found = session.scalar(same)
  if found is None:
    found = Object(photo_id=photo, number=number, mask=mask)
    session.add(found)
  found.mask = mask
  session.flush()
  new_task(session, "shape", photo, found.id, settings.seed, state="waiting")
  return found


# --------------------------------------------------------------------------------------------------
# Stage 2: a chain of choices, then a rating
# --------------------------------------------------------------------------------------------------


def view_chain(work: Work) -> dict[str, Any]:
  """The next pair, or the winner to be rated."""
  made = work.decisions("choice")
  candidates = {one.id: one for one in work.candidates(work.task.stage)}
  state = chain.replay(list(candidates), work.task.seed, made)
  shown: dict[str, Any] = {
    "step": len(made),
    "steps": max(len(candidates) - 1, 0),
    "rating_max": work.settings.rating_max,
  }
  if state.pair is not None:
    for side in ("left", "right"):
      shown[side] = _candidate(candidates[getattr(state.pair, side)])
    # what the page may load while the person looks
    after = state.order[state.pair.step + 2 : state.pair.step + 3]
    shown["after"] = [_candidate(candidates[number]) for number in after]
  elif state.standing is not None:
    shown["winner"] = _candidate(candidates[state.standing])
  return shown


def _candidate(one: Candidate) -> dict[str, Any]:
  """What a person may know of a candidate: not who made it."""
  return {"id": one.id, "mesh": one.shown, "suffix": one.shown_suffix}


def decide_chain(work: Work, kind: str, payload: Mapping[str, Any]) -> Outcome:
  """Choices while candidates are left, then the winner's rating."""
  made = work.decisions("choice")
  numbers = [one.id for one in work.candidates(work.task.stage)]
  state = chain.replay(numbers, work.task.seed, made)
  if kind == "choice":
    return Outcome(chain.checked(state, work.task.seed, payload))
  if state.pair is not None:
    left = len(numbers) - 1 - len(made)
    raise ValueError(f"{left} candidates have not been compared: send choices first")
  if state.standing is None:
    raise ValueError("the task has no candidate to rate")
  return _rated(work, state.standing, payload)


def _rated(work: Work, winner: int, payload: Mapping[str, Any]) -> Outcome:
  """payload: {"winner": candidate, "value": 0..rating_max}."""
  value, most = payload.get("value"), work.settings.rating_max
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not math.isfinite(value) or not 0 <= value <= most:
    raise ValueError(f"value = {value!r}: a rating is a number from 0 to {most:g}")
  if payload.get("winner") != winner:
    raise ValueError(f"the winner of the chain is {winner}, not {payload.get('winner')!r}")
  stored = {"winner": winner, "value": float(value)}
  task, settings = work.task, work.settings

  # a copy is asked for its answer alone
  if task.copy:
    return Outcome(stored, "done")

  def follows(stage: str) -> Callable[[], None]:
    def then() -> None:
      if stage:
        new_task(
          work.session,
          stage,
          task.photo_id,
          task.object_id,
          settings.seed,
          iteration=task.iteration,
        )
      ask_others(work)

    return then

  # a texture that is chosen is the end of it
  if task.stage == "texture":
    return Outcome(stored, "done", follows(""))
  if value < settings.artist_below:
    return Outcome(stored, "rejected", follows("artist"))
  return Outcome(stored, "done", follows("pose"))


def ask_others(work: Work) -> None:
  """Opens copies of a task that was decided: of a lead's for everybody to be compared with, of some
  of the others' for a second opinion.
  """
  task, settings = work.task, work.settings
  copies = 0
  if work.annotator is not None and work.annotator.role == "lead":
    copies = settings.gold
  elif random.Random(f"{task.seed} overlap").random() < settings.overlap:
    copies = 1
  for number in range(copies):
    new_task(
      work.session,
      task.stage,
      task.photo_id,
      task.object_id,
      settings.seed,
      iteration=task.iteration,
      copy=number + 1,
    )


# --------------------------------------------------------------------------------------------------
# Stage 2.5: an artist makes the mesh
# --------------------------------------------------------------------------------------------------


def view_artist(work: Work) -> dict[str, Any]:
  """The photo and the mask say it all."""
  del work
  return {"upload": "a mesh, y up, as .glb"}


def decide_artist(work: Work, kind: str, payload: Mapping[str, Any]) -> Outcome:
  """payload: {"mesh": digest of the uploaded file}."""
  digest = payload.get("mesh")
  if not is_digest(digest) or not work.project.blobs.has(digest):
    raise ValueError(f"mesh = {digest!r} was not uploaded: upload the .glb first")
  task = work.task

  def then() -> None:
    new_task(
      work.session,
      "pose",
      task.photo_id,
      task.object_id,
      work.settings.seed,
      iteration=task.iteration,
    )

  return Outcome({"mesh": digest, "suffix": ".glb"}, "done", then)


# --------------------------------------------------------------------------------------------------
# Stage 3: the pose on the points of the photo
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Accepted:
  """The mesh that an object goes on with: its file, and what a browser shows of it."""

  mesh: str
  suffix: str
  shown: str
  pose: dict | None  # that was proposed with it


def view_pose(work: Work) -> dict[str, Any]:
  """The accepted mesh, where to start, the photo's camera."""
  accepted = accepted_mesh(work.session, work.task)
  photo, mask = _seen(work)
  start = accepted.pose or poses.start(work.project.blobs, photo, mask)
  camera = poses.camera_of(photo)
  return {
    "mesh": accepted.shown,
    "pose": start,
    "camera": {key: getattr(camera, key) for key in ("fx", "fy", "cx", "cy")},
    "has_points": photo.pointmap is not None,
  }


def _seen(work: Work) -> tuple[Photo, str]:
  """The photo, and the digest of the object's mask."""
  photo = work.session.get_one(Photo, work.task.photo_id)
  return photo, work.session.get_one(Object, work.task.object_id).mask


def accepted_mesh(session: orm.Session, task: Task) -> Accepted:
  """The mesh that an artist made, else the winner of the chain."""
  made = last_decision(session, task, "artist", "upload")
  if made is not None:
    return Accepted(made["mesh"], made["suffix"], made["mesh"], None)
  rated = last_decision(session, task, "shape", "rating")
  winner = session.get_one(Candidate, rated["winner"])
  return Accepted(winner.mesh, winner.suffix, winner.shown, winner.pose)


def last_decision(session: orm.Session, task: Task, stage: str, kind: str) -> dict[str, Any] | None:
  """What was decided last about a task's object at another stage, None for nothing."""
  return session.scalar(
    sqlalchemy.select(Decision.payload)
    .join(Task, Task.id == Decision.task_id)
    .where(
      Task.stage == stage,
      Task.object_id == task.object_id,
      Task.iteration == task.iteration,
      Task.copy == 0,
      Decision.kind == kind,
    )
    .order_by(Decision.step.desc())
    .limit(1)
  )


def decide_pose(work: Work, kind: str, payload: Mapping[str, Any]) -> Outcome:
  """payload: {"rotation": w x y z, "translation": 3, "scale": positive}."""
  del work, kind
  return Outcome(checked_pose(payload), "done")


@dataclasses.dataclass(frozen=True)
class Posing:
  """What the fit of a pose is measured with; rows that outlive their transaction."""

  accepted: Accepted
  photo: Photo
  mask: str


def posing(work: Work) -> Posing:
  """Of a task of posing."""
  return Posing(accepted_mesh(work.session, work.task), *_seen(work))


def fit(project: Project, of: Posing, payload: Mapping[str, Any]) -> float:
  """Mask IoU of a pose. It takes a while: not within a transaction. Raises ValueError."""
  pose = checked_pose(payload)
  mesh, suffix = of.accepted.mesh, of.accepted.suffix
  return poses.mask_iou(project.blobs, mesh, suffix, of.photo, of.mask, pose)


def checked_pose(payload: Mapping[str, Any]) -> dict[str, Any]:
  """The numbers of a pose, its quaternion of length 1. Raises ValueError."""
  stored = {}
  for key, length in (("rotation", 4), ("translation", 3)):
    stored[key] = _numbers(key, payload.get(key), length)
  (scale,) = _numbers("scale", [payload.get("scale")], 1)
  if scale <= 0:
    raise ValueError(f"scale = {scale}: it must be positive")
  norm = math.hypot(*stored["rotation"])
  if norm < 1e-6:
    raise ValueError("rotation is no rotation: its length is 0")
  stored["rotation"] = [part / norm for part in stored["rotation"]]
  return {**stored, "scale": scale}


def _numbers(key: str, values: Any, length: int) -> list[float]:
  """Finite numbers, so many. Raises ValueError."""
  is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == length
  if is_list and all(isinstance(value, (int, float)) for value in values):
    if all(math.isfinite(value) for value in values):
      return [float(value) for value in values]
  raise ValueError(f"{key} = {values!r}: send {length} finite numbers")


# --------------------------------------------------------------------------------------------------
# Blind comparison of two models
# --------------------------------------------------------------------------------------------------


def view_comparison(work: Work) -> dict[str, Any]:
  """The two, on random sides."""
  candidates = {one.id: one for one in work.candidates("comparison")}
  pair = chain.replay(list(candidates), work.task.seed, []).pair
  if pair is None:
    return {}
  return {"left": _candidate(candidates[pair.left]), "right": _candidate(candidates[pair.right])}


def decide_comparison(work: Work, kind: str, payload: Mapping[str, Any]) -> Outcome:
  """payload: {"left", "right", "answer"}."""
  numbers = [one.id for one in work.candidates("comparison")]
  state = chain.replay(numbers, work.task.seed, [])
  stored = chain.checked(state, work.task.seed, payload)
  stored.pop("kept", None)
  return Outcome(stored, "done")


STAGES: dict[str, Stage] = {
  "mask": Stage(("masks",), view_mask, decide_mask),
  "shape": Stage(("choice", "rating"), view_chain, decide_chain),
  "texture": Stage(("choice", "rating"), view_chain, decide_chain),
  "artist": Stage(("upload",), view_artist, decide_artist, roles=("artist", "lead")),
  "pose": Stage(("pose",), view_pose, decide_pose),
  "comparison": Stage(("vote",), view_comparison, decide_comparison),
}
assert tuple(STAGES) == tables.STAGES
assert set(choices.ANSWERS) == {"left", "right", "equal"}

"""Handing out tasks and taking decisions: who holds what, and what was acknowledged.

A task is leased to one person at a time. Its epoch goes up whenever it changes hands, and every
decision carries the epoch under which the task was handed out: who was away while somebody else
took over is told so, and nothing of theirs is mixed into the other's work.

A decision has a key that its sender chose. It is acknowledged after it is on disk; sent again with
the same key it is acknowledged again and changes nothing.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from data_pipelines.engine import stages
from data_pipelines.engine.project import Project
from data_pipelines.engine.stages import STAGES, Work
from data_pipelines.engine.tables import Annotator, Decision, Event, Photo, Task

MAX_KEY = 100  # characters of a decision's key


class Rejected(Exception):
  """A request that cannot be met.

  reason: one word for programs; the message is for people and says what to do.
  """

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Handed:
  """A task in the hands of a person."""

  task: int
  stage: str
  epoch: int
  until: float
  photo: Mapping[str, Any]
  view: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Acknowledged:
  """A decision on disk. again: it was there before."""

  key: str
  task: int
  kind: str
  step: int
  again: bool


def next_task(
  project: Project,
  annotator: Annotator,
  wanted: Sequence[str] | None = None,
  *,
  any_stage: bool = False,
) -> Handed | None:
  """The task to work on: the one that the person holds, else the first that is free.

  wanted: stages to choose from; None: all that the person may take. any_stage: whatever their role.
  None where nothing is left. Two pages of one person get the same task under the same epoch.
  """
  may = [name for name, stage in STAGES.items() if any_stage or annotator.role in stage.roles]
  names = [name for name in may if wanted is None or name in wanted]
  with project.database.transaction() as session:
    now = project.database.now(session)
    held = _held(session, annotator, names, now)
    task = held or _free(session, annotator, names, now)
    if task is None:
      return None

    # a lease that is extended keeps its epoch; one that changes hands does not
    if held is None:
      task.lease_epoch += 1
      task.lease_owner = annotator.id
      _note(session, now, annotator, task, "leased", {"epoch": task.lease_epoch})
    task.lease_until = now + 60 * project.settings.lease_minutes
    session.flush()
    return _handed(session, project, task)


def _held(
  session: orm.Session, annotator: Annotator, names: Sequence[str], now: float
) -> Task | None:
  """The task whose lease the person has."""
  query = sqlalchemy.select(Task).where(
    Task.lease_owner == annotator.id,
    Task.state == "open",
    Task.stage.in_(names),
    Task.lease_until > now,
  )
  return session.scalar(query.order_by(Task.id).limit(1).with_for_update())


def _free(
  session: orm.Session, annotator: Annotator, names: Sequence[str], now: float
) -> Task | None:
  """The first task that nobody holds, by priority.

  A row that another person is about to take is passed over, and so are copies of what the person
  has decided already.
  """
  best = None
  # One look at the index a stage: it is ordered within a stage.
  for name in names:
    query = sqlalchemy.select(Task).where(
      Task.state == "open",
      Task.stage == name,
      Task.lease_until <= now,
      (Task.copy == 0) | ~_known_to(annotator),
    )
    ordered = query.order_by(Task.priority, Task.id).limit(1)
    found = session.scalar(ordered.with_for_update(skip_locked=True))
    if found is not None and (best is None or found.priority < best.priority):
      best = found
  return best


def _known_to(annotator: Annotator) -> sqlalchemy.Exists:
  """Whether the person has decided the task of which a task is a copy, or another copy of it."""
  other = orm.aliased(Task)
  return sqlalchemy.exists().where(
    other.object_id == Task.object_id,
    other.stage == Task.stage,
    other.iteration == Task.iteration,
    Decision.task_id == other.id,
    Decision.annotator_id == annotator.id,
  )


def _handed(session: orm.Session, project: Project, task: Task) -> Handed:
  photo = session.get_one(Photo, task.photo_id)
  shown = {
    "name": photo.name,
    "image": photo.image,
    "width": photo.width,
    "height": photo.height,
  }
  if task.object_id is not None:
    shown["mask"] = session.get_one(stages.Object, task.object_id).mask
  view = STAGES[task.stage].view(Work(session, project, task))
  return Handed(task.id, task.stage, task.lease_epoch, task.lease_until, shown, view)


def decide(
  project: Project,
  annotator: Annotator,
  task_id: int,
  *,
  key: str,
  epoch: int,
  kind: str,
  payload: Mapping[str, Any],
  milliseconds: int | None = None,
  found: Mapping[str, Any] | None = None,
) -> Acknowledged:
  """Takes a decision; it is on disk when this returns.

  found: what the server knows of it, stored with the payload and before what was sent.

  Raises Rejected: `unknown_task`, `key_reused` for a key that stands for something else,
  `lease_lost` where somebody else has taken over, `closed` for a task that is decided, and
  `bad_decision` for one that the task does not wait for.
  """
  if not key or len(key) > MAX_KEY:
    raise Rejected("bad_decision", f"key = {key!r}: send 1 to {MAX_KEY} characters")
  with project.database.transaction() as session:
    again = _stored(session, key, task_id, kind, annotator)
    if again is not None:
      return again

    # whose it is
    task = session.get(Task, task_id, with_for_update=True)
    if task is None:
      raise Rejected("unknown_task", f"there is no task {task_id}: ask for the next one")
    # While this waited for the row, the same key may have arrived by another way.
    again = _stored(session, key, task_id, kind, annotator)
    if again is not None:
      return again
    if task.lease_owner != annotator.id or task.lease_epoch != epoch:
      raise Rejected(
        "lease_lost", f"task {task_id} is no longer yours: it was handed on; ask for the next one"
      )
    if task.state != "open":
      raise Rejected("closed", f"task {task_id} is {task.state}: ask for the next one")

    # what it says
    stage = STAGES[task.stage]
    if kind not in stage.kinds:
      expected = " or ".join(stage.kinds)
      raise Rejected("bad_decision", f"kind = {kind!r}: a task of {task.stage} takes {expected}")
    work = Work(session, project, task, annotator)
    step = len(work.decisions(kind))
    try:
      outcome = stage.decide(work, kind, payload)
    except ValueError as error:
      raise Rejected("bad_decision", str(error)) from error

    # all of it, or nothing
    now = project.database.now(session)
    session.add(
      Decision(
        key=key,
        task_id=task.id,
        kind=kind,
        step=step,
        annotator_id=annotator.id,
        epoch=epoch,
        payload={**outcome.payload, **(found or {})},
        milliseconds=milliseconds,
        at=now,
      )
    )
    _note(session, now, annotator, task, kind, {"key": key, "step": step})
    task.state = outcome.state
    if outcome.state == "open":
      task.lease_until = now + 60 * project.settings.lease_minutes
    else:
      task.lease_owner, task.lease_until = None, 0.0
    outcome.then()
  return Acknowledged(key, task_id, kind, step, again=False)


def _stored(
  session: orm.Session, key: str, task_id: int, kind: str, annotator: Annotator
) -> Acknowledged | None:
  """The acknowledgement of a decision that is on disk already. Raises Rejected."""
  found = session.scalar(sqlalchemy.select(Decision).where(Decision.key == key))
  if found is None:
    return None
  if (found.task_id, found.kind, found.annotator_id) != (task_id, kind, annotator.id):
    raise Rejected(
      "key_reused", f"key {key!r} stands for another decision: draw a new key for each"
    )
  return Acknowledged(key, task_id, kind, found.step, again=True)


def holding(
  project: Project, annotator: Annotator, task_id: int, look: Callable[[Work], Any]
) -> Any:
  """What `look` finds in a task that the person holds. Raises Rejected."""
  with project.database.transaction() as session:
    task = session.get(Task, task_id)
    if task is None or task.lease_owner != annotator.id or task.state != "open":
      raise Rejected("lease_lost", f"task {task_id} is not yours: ask for the next one")
    return look(Work(session, project, task))


def release(project: Project, annotator: Annotator, task_id: int, *, skip: bool) -> None:
  """Gives a task back: to whoever comes next or, with `skip`, to a lead. Raises Rejected."""
  with project.database.transaction() as session:
    task = session.get(Task, task_id, with_for_update=True)
    if task is None or task.lease_owner != annotator.id:
      raise Rejected("lease_lost", f"task {task_id} is not yours to give back")
    now = project.database.now(session)
    task.lease_owner, task.lease_until = None, 0.0
    if skip:
      task.state = "skipped"
    _note(session, now, annotator, task, "skipped" if skip else "released", {})


def requeue(project: Project, lead: Annotator, task_id: int, *, priority: int = -1) -> None:
  """Opens a skipped task again, before others. Raises Rejected."""
  with project.database.transaction() as session:
    task = session.get(Task, task_id, with_for_update=True)
    if task is None or task.state != "skipped":
      raise Rejected("closed", f"task {task_id} is not skipped: only those are opened again")
    task.state, task.priority = "open", priority
    now = project.database.now(session)
    _note(session, now, lead, task, "requeued", {"priority": priority})


def _note(
  session: orm.Session,
  now: float,
  annotator: Annotator | None,
  task: Task | None,
  kind: str,
  payload: Mapping[str, Any],
) -> None:
  """A line of the audit trail, in the transaction of what it tells of."""
  session.add(
    Event(
      at=now,
      annotator_id=annotator.id if annotator else None,
      task_id=task.id if task else None,
      kind=kind,
      payload=dict(payload),
    )
  )

"""What a project holds, in numbers, and every decision as it is stored."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy

from data_pipelines.engine import proposals
from data_pipelines.engine.project import Project
from data_pipelines.engine.tables import Annotator, Candidate, Decision, Object, Photo, Task

HOUR = 3600.0
PAGE = 1000  # decisions that are read at once


def status(project: Project) -> dict[str, Any]:
  """Photos, objects, candidates; tasks by stage and state; decisions by kind; throughput of the
  last hour; how often each generator's candidates win.
  """
  with project.database.transaction() as session:
    now = project.database.now(session)

    def count(table) -> int:
      return session.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(table))

    found = {
      "photos": count(Photo),
      "objects": count(Object),
      "candidates": count(Candidate),
    }
    tasks: dict[str, dict[str, int]] = {}
    by_state = session.execute(
      sqlalchemy.select(Task.stage, Task.state, sqlalchemy.func.count()).group_by(
        Task.stage, Task.state
      )
    )
    for stage, state, number in by_state:
      tasks.setdefault(stage, {})[state] = number
    found["tasks"] = tasks
    found["leased"] = session.scalar(
      sqlalchemy.select(sqlalchemy.func.count())
      .select_from(Task)
      .where(Task.state == "open", Task.lease_until > now)
    )

    decisions: dict[str, dict[str, int]] = {}
    by_kind = session.execute(
      sqlalchemy.select(Task.stage, Decision.kind, sqlalchemy.func.count())
      .join(Task, Task.id == Decision.task_id)
      .group_by(Task.stage, Decision.kind)
    )
    for stage, kind, number in by_kind:
      decisions.setdefault(stage, {})[kind] = number
    found["decisions"] = decisions
    found["decisions_last_hour"] = session.scalar(
      sqlalchemy.select(sqlalchemy.func.count())
      .select_from(Decision)
      .where(Decision.at > now - HOUR)
    )

  sources = {}
  for generator, shown, won in proposals.sources(project):
    sources[generator] = {"shown": shown, "won": won}
  found["sources"] = sources
  return found


def decisions(project: Project) -> Iterator[dict[str, Any]]:
  """Every stored decision in the order in which they were acknowledged."""
  after = 0
  while True:
    with project.database.transaction() as session:
      rows = session.execute(
        sqlalchemy.select(Decision, Task.stage, Annotator.name)
        .join(Task, Task.id == Decision.task_id)
        .join(Annotator, Annotator.id == Decision.annotator_id)
        .where(Decision.id > after)
        .order_by(Decision.id)
        .limit(PAGE)
      ).all()
    if not rows:
      return
    for one, stage, name in rows:
      after = one.id
      yield {
        "key": one.key,
        "task": one.task_id,
        "stage": stage,
        "kind": one.kind,
        "step": one.step,
        "annotator": name,
        "epoch": one.epoch,
        "payload": one.payload,
        "milliseconds": one.milliseconds,
        "at": one.at,
      }

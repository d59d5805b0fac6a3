"""What a project holds, in numbers, and every decision as it is stored."""

from collections.abc import Iterator, Sequence
import statistics
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from data_pipelines.engine import proposals
from data_pipelines.engine.project import Project
from data_pipelines.engine.tables import Annotator, Candidate, Decision, Object, Photo, Task

HOUR = 3600.0
PAGE = 1000  # decisions that are read at once
# What is remarkable about a person's decisions; sides are random, so half of them are left.
ENOUGH = 20  # decisions before anything is said of them
HASTY_SECONDS = 1.0
ONE_SIDED = 0.25
MOSTLY = 0.8
ENOUGH_COPIES = 5
AGREES = 0.5  # share of the copies that a person decides as the first one, or a lead, did


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


def people(project: Project) -> list[dict[str, Any]]:
  """What each person decided, and what a lead may want to look at."""
  told = []
  with project.database.transaction() as session:
    agreed = agreement(session)
    for person in session.scalars(sqlalchemy.select(Annotator).order_by(Annotator.name)):
      rows = session.execute(
        sqlalchemy.select(Decision.kind, Decision.payload, Decision.milliseconds).where(
          Decision.annotator_id == person.id
        )
      ).all()
      one = {"name": person.name, "role": person.role, **_habits(rows)}
      same = agreed.get(person.id, [])
      if same:
        one["compared"], one["agreement"] = len(same), round(statistics.fmean(same), 2)
        if len(same) >= ENOUGH_COPIES and one["agreement"] < AGREES:
          one["remarks"].append("often alone")
      told.append(one)
  return told


def agreement(session: orm.Session) -> dict[int, list[bool]]:
  """Person -> for each copy of an object that they rated, whether its winner is the original's."""
  rows = session.execute(
    sqlalchemy.select(
      Task.stage, Task.object_id, Task.iteration, Task.copy, Decision.annotator_id, Decision.payload
    )
    .join(Decision, Decision.task_id == Task.id)
    .where(Decision.kind == "rating")
  ).all()
  originals = {row[:3]: row.payload["winner"] for row in rows if row.copy == 0}
  found: dict[int, list[bool]] = {}
  for row in rows:
    if row.copy:
      same = row.payload["winner"] == originals[row[:3]]
      found.setdefault(row.annotator_id, []).append(same)
  return found


def _habits(rows: Sequence[tuple[str, dict[str, Any], int | None]]) -> dict[str, Any]:
  """Numbers of one person's decisions: how quick, which sides, which ratings."""
  answers = [payload["answer"] for kind, payload, _ in rows if kind in ("choice", "vote")]
  ratings = [payload["value"] for kind, payload, _ in rows if kind == "rating"]
  seconds = [taken / 1000 for _, _, taken in rows if taken is not None]
  found: dict[str, Any] = {"decisions": len(rows), "remarks": []}
  if seconds:
    found["median_seconds"] = round(statistics.median(seconds), 1)
    if len(seconds) >= ENOUGH and found["median_seconds"] < HASTY_SECONDS:
      found["remarks"].append("very quick")
  if ratings:
    found["mean_rating"] = round(statistics.fmean(ratings), 2)
    if len(ratings) >= ENOUGH and len(set(ratings)) == 1:
      found["remarks"].append("one rating for all")
  if answers:
    sided = [answer for answer in answers if answer != "equal"]
    found["equal"] = round(1 - len(sided) / len(answers), 2)
    if sided:
      found["left"] = round(sided.count("left") / len(sided), 2)
      if len(sided) >= ENOUGH and abs(found["left"] - 0.5) > ONE_SIDED:
        found["remarks"].append("one side")
    if len(answers) >= ENOUGH and found["equal"] > MOSTLY:
      found["remarks"].append("mostly equal")
  return found


def votes(project: Project) -> Iterator[tuple[str, str, str]]:
  """(generator on the left, generator on the right, outcome) of each blind comparison."""
  with project.database.transaction() as session:
    payloads = list(
      session.scalars(
        sqlalchemy.select(Decision.payload).where(Decision.kind == "vote").order_by(Decision.id)
      )
    )
    rows = session.execute(
      sqlalchemy.select(Candidate.id, Candidate.generator).where(Candidate.kind == "comparison")
    )
    generators = dict(rows.all())
  for payload in payloads:
    yield generators[payload["left"]], generators[payload["right"]], payload["answer"]


def skipped(project: Project) -> list[dict[str, Any]]:
  """Tasks that somebody could not decide."""
  with project.database.transaction() as session:
    rows = session.execute(
      sqlalchemy.select(Task.id, Task.stage, Photo.name)
      .join(Photo, Photo.id == Task.photo_id)
      .where(Task.state == "skipped")
      .order_by(Task.id)
      .limit(PAGE)
    )
    return [{"task": number, "stage": stage, "photo": name} for number, stage, name in rows]


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

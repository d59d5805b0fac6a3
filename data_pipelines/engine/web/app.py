"""The HTTP API of the engine (OpenAPI at /openapi.json) and the page that uses it."""

from collections.abc import Mapping
import contextlib
import pathlib
import secrets
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
import pydantic
from sqlalchemy import exc

from data_pipelines.engine import adding, people, poses, queue, reports, stages
from data_pipelines.engine.project import Project
from data_pipelines.engine.tables import Annotator, Event
from data_pipelines.engine.web import access as ways_in
from data_pipelines.engine.web import segment, uploads
from data_pipelines.engine.web.access import Access
from sam3d_jax.errors import InputError

STATIC = pathlib.Path(__file__).with_name("static")
# of the reasons why a request is refused
HTTP_STATUS = {
  "unknown_task": 404,
  "key_reused": 409,
  "lease_lost": 409,
  "closed": 409,
  "bad_decision": 422,
}
# Nothing is fetched from elsewhere, nothing inline runs, nobody frames the page.
POLICY = (
  "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' blob: data:; "
  "worker-src 'self' blob:; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
  "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
HEADERS = {
  "content-security-policy": POLICY,
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
}


class DecisionIn(pydantic.BaseModel):
  """A decision as a page or a program sends it."""

  model_config = pydantic.ConfigDict(extra="forbid")

  key: str = pydantic.Field(min_length=1, max_length=queue.MAX_KEY)
  epoch: int
  kind: str
  payload: dict[str, Any]
  milliseconds: int | None = pydantic.Field(default=None, ge=0, lt=2**31)


class PoseIn(pydantic.BaseModel):
  """A pose of the unit cube in the photo's camera."""

  model_config = pydantic.ConfigDict(extra="forbid")

  rotation: list[float]
  translation: list[float]
  scale: float


class PointsIn(pydantic.BaseModel):
  """Points of a photo for a segmenter: x, y in pixels, and 1 where the object is, 0 where not."""

  model_config = pydantic.ConfigDict(extra="forbid")

  points: list[tuple[float, float, int]] = pydantic.Field(
    min_length=1, max_length=segment.MAX_POINTS
  )


class PersonIn(pydantic.BaseModel):
  """Somebody to invite."""

  model_config = pydantic.ConfigDict(extra="forbid")

  name: str
  role: str = "annotator"


def create_app(
  project: Project, access: Access, segmenter: segment.Segmenter | None = None
) -> FastAPI:
  """The app of a project."""
  app = FastAPI(title="sam3d_jax data engine", docs_url=None, redoc_url=None)

  @app.middleware("http")
  async def guard(request: Request, call_next):
    try:
      ways_in.check_origin(request, access)
    except HTTPException as error:
      return JSONResponse({"reason": "forbidden", "detail": error.detail}, error.status_code)
    response = await call_next(request)
    for name, value in HEADERS.items():
      response.headers.setdefault(name, value)
    return response

  @app.exception_handler(queue.Rejected)
  async def rejected(_request: Request, error: queue.Rejected):
    status = HTTP_STATUS[error.reason]
    return JSONResponse({"reason": error.reason, "detail": str(error)}, status)

  @app.exception_handler(exc.OperationalError)
  async def unavailable(_request: Request, error: exc.OperationalError):
    # A full disk or a database that restarts: nothing was acknowledged, the same key may be sent
    # again.
    reason = str(error.orig).strip().splitlines()[0]
    detail = f"not stored: {reason}; send it again with the same key"
    return JSONResponse({"reason": "unavailable", "detail": detail}, 503)

  def caller(request: Request) -> Annotator:
    with project.database.transaction() as session:
      return ways_in.caller(request, access, session)

  Caller = Annotated[Annotator, Depends(caller)]

  def lead(person: Caller) -> Annotator:
    if person.role != "lead" and not access.local:
      raise HTTPException(403, "this is for leads")
    return person

  Lead = Annotated[Annotator, Depends(lead)]

  def pose_fit(person: Annotator, task: int, payload: Mapping[str, Any]) -> float:
    """Mask IoU of a pose of a task that the person holds."""
    posing = queue.holding(project, person, task, stages.posing)
    try:
      return stages.fit(project, posing, payload)
    except ValueError as error:
      raise HTTPException(422, str(error)) from error

  @app.get("/api/me")
  def me(person: Caller) -> dict[str, Any]:
    """Who the caller is."""
    return {
      "name": person.name,
      "role": person.role,
      "leads": person.role == "lead" or bool(access.local),
      "segmenter": segmenter is not None,
    }

  @app.post("/api/tasks/{task}/segment")
  def segment_at(task: int, body: PointsIn, person: Caller) -> dict[str, str]:
    """A mask of the segmenter for points of the photo, kept: {"digest"}."""
    if segmenter is None:
      raise HTTPException(404, "no segmenter was given: launch.annotate --segmenter")
    photo = queue.holding(project, person, task, lambda work: work.photo)
    picture = adding.as_png(project.blobs.read(photo.image))
    try:
      made = segmenter.mask(picture, body.points, photo.name)
    except InputError as error:
      raise HTTPException(502, str(error)) from error
    return {"digest": project.blobs.add(uploads.checked("mask", made))}

  @app.get("/api/next")
  def next_task(person: Caller, stages: str = "") -> dict[str, Any]:
    """The next task of the caller; {"task": null} where nothing is left. stages: names, commas."""
    wanted = [name for name in stages.split(",") if name] or None
    handed = queue.next_task(project, person, wanted, any_stage=bool(access.local))
    return _task_json(handed)

  @app.post("/api/tasks/{task}/decisions")
  def decide(task: int, body: DecisionIn, person: Caller) -> dict[str, Any]:
    """Takes a decision. The answer comes after it is on disk and brings the task that follows."""
    # measured here and before the transaction, which others wait for
    found = {}
    if body.kind == "pose":
      # A task that is no longer theirs has no fit: what it is, again or refused, is decided below.
      with contextlib.suppress(queue.Rejected):
        found["iou"] = pose_fit(person, task, body.payload)
    taken = queue.decide(
      project,
      person,
      task,
      key=body.key,
      epoch=body.epoch,
      kind=body.kind,
      payload=body.payload,
      milliseconds=body.milliseconds,
      found=found,
    )
    return {
      "key": taken.key,
      "task": taken.task,
      "kind": taken.kind,
      "step": taken.step,
      "again": taken.again,
    }

  @app.get("/api/tasks/{task}/points")
  def points(task: int, person: Caller) -> Response:
    """Points of the photo of a pose task: count (uint32), x y z (float32), r g b (uint8)."""
    photo = queue.holding(project, person, task, lambda work: work.photo)
    return Response(poses.packed_points(project.blobs, photo), media_type=uploads.BYTES)

  @app.post("/api/tasks/{task}/iou")
  def iou(task: int, body: PoseIn, person: Caller) -> dict[str, float]:
    """Mask IoU of a pose, as it would be stored."""
    return {"iou": pose_fit(person, task, body.model_dump())}

  @app.post("/api/tasks/{task}/release")
  def release(task: int, person: Caller, skip: bool = False) -> dict[str, Any]:
    """Gives a task back; with skip=true to a lead."""
    queue.release(project, person, task, skip=skip)
    return {"task": task}

  @app.post("/api/tasks/{task}/requeue")
  def requeue(task: int, person: Lead) -> dict[str, Any]:
    """Opens a skipped task again."""
    queue.requeue(project, person, task)
    return {"task": task}

  @app.post("/api/uploads/{kind}")
  async def upload(kind: str, request: Request, person: Caller) -> dict[str, Any]:
    """Keeps a file, after a look at what is in it. kind: mask (PNG) or mesh (GLB)."""
    del person
    content = await uploads.read_body(request, kind)
    # reading takes time, in which others are served
    checked = await run_in_threadpool(uploads.checked, kind, content)
    return {"digest": await run_in_threadpool(project.blobs.add, checked)}

  @app.get("/api/files/{digest}")
  def file(digest: str, person: Caller) -> Response:
    """A kept file, as bytes that no browser runs or shows as a page."""
    del person
    return uploads.served(project, digest)

  @app.get("/api/status")
  def status(person: Lead) -> dict[str, Any]:
    """Progress in numbers."""
    del person
    return reports.status(project)

  @app.get("/api/people")
  def people_of(person: Lead) -> list[dict[str, Any]]:
    """What each person decided, and what is remarkable about it."""
    del person
    return reports.people(project)

  @app.get("/api/skipped")
  def skipped(person: Lead) -> list[dict[str, Any]]:
    """Tasks that somebody could not decide."""
    del person
    return reports.skipped(project)

  @app.post("/api/people")
  def invite(body: PersonIn, person: Lead) -> dict[str, Any]:
    """A join link, which works once."""
    with project.database.transaction() as session:
      try:
        people.named(session, body.name, body.role)
      except InputError as error:
        raise HTTPException(422, str(error)) from error
    return {"link": access.join_link(body.name, body.role, secrets.token_urlsafe(12))}

  @app.get("/enter")
  def enter(token: str, request: Request) -> Response:
    """Turns the token of this machine into a cookie."""
    if not ways_in.is_local(access, token):
      raise HTTPException(403, "this is not the token of this server: take the address it printed")
    response = RedirectResponse("/", 303)
    name = ways_in.cookie_name(ways_in.LOCAL_COOKIE, request)
    response.set_cookie(name, token, httponly=True, samesite="lax")
    return response

  @app.get("/join")
  def join(token: str, request: Request) -> Response:
    """Turns a join link into a cookie."""
    said = access.joined(token)
    with project.database.transaction() as session:
      used = _used_once(session, project, said)
      if not used:
        raise HTTPException(403, "this link was used already: ask for a new one")
      try:
        person = people.named(session, said["name"], said["role"])
      except InputError as error:
        raise HTTPException(403, str(error)) from error
    response = RedirectResponse("/", 303)
    response.set_cookie(
      ways_in.cookie_name(ways_in.COOKIE, request),
      access.signer.dumps({"id": person.id}),
      max_age=ways_in.COOKIE_SECONDS,
      httponly=True,
      samesite="lax",
      secure=request.url.scheme == "https",
    )
    return response

  if STATIC.is_dir():
    app.mount("/", StaticFiles(directory=STATIC, html=True))
  return app


def _task_json(handed: queue.Handed | None) -> dict[str, Any]:
  if handed is None:
    return {"task": None}
  return {
    "task": handed.task,
    "stage": handed.stage,
    "epoch": handed.epoch,
    "until": handed.until,
    "photo": dict(handed.photo),
    "view": dict(handed.view),
  }


def _used_once(session, project: Project, said: dict[str, str]) -> bool:
  """Whether a join link is used for the first time; it then has been."""
  kind = f"join {said['nonce']}"
  found = session.query(Event.id).filter(Event.kind == kind).first()
  if found is not None:
    return False
  now = project.database.now(session)
  session.add(
    Event(at=now, annotator_id=None, task_id=None, kind=kind, payload={"name": said["name"]})
  )
  session.flush()
  return True

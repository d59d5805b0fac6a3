"""What the engine keeps: photos, objects in them, candidates, tasks, people and what they decided.

Decisions and events are only ever appended. What follows from them (which pair a person sees next,
who won a chain) is not stored but replayed, so that it cannot disagree with the log. Files are kept
by their SHA-256 in the store (blobs.py); rows name the digest.
"""

from sqlalchemy import JSON, CheckConstraint, Float, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# What a person does with a task, in the order in which an object meets them.
STAGES = ("mask", "shape", "texture", "artist", "pose", "comparison")
# waiting: for candidates. open: anybody may take it. done: decided. rejected: no candidate was good
# enough. skipped: a person could not decide; a lead looks at it.
STATES = ("waiting", "open", "done", "rejected", "skipped")
ROLES = ("annotator", "artist", "lead")

DIGEST = String(64)
NAME = String(200)


class Base(DeclarativeBase):
  """All tables of the engine."""


class Annotator(Base):
  """A person, or a program that acts as one."""

  __tablename__ = "annotator"

  id: Mapped[int] = mapped_column(primary_key=True)
  name: Mapped[str] = mapped_column(NAME, unique=True)
  role: Mapped[str] = mapped_column(String(20))
  token_sha256: Mapped[str | None] = mapped_column(DIGEST, unique=True)
  active: Mapped[bool] = mapped_column(default=True)


class Photo(Base):
  """A photograph."""

  __tablename__ = "photo"

  id: Mapped[int] = mapped_column(primary_key=True)
  name: Mapped[str] = mapped_column(NAME, unique=True)
  image: Mapped[str] = mapped_column(DIGEST)
  pointmap: Mapped[str | None] = mapped_column(DIGEST)
  width: Mapped[int]
  height: Mapped[int]
  camera: Mapped[dict | None] = mapped_column(JSON)
  license: Mapped[str] = mapped_column(String(100), default="")


class Object(Base):
  """One object of a photo, by its mask."""

  __tablename__ = "object"
  __table_args__ = (UniqueConstraint("photo_id", "number"),)

  id: Mapped[int] = mapped_column(primary_key=True)
  photo_id: Mapped[int] = mapped_column(ForeignKey("photo.id"), index=True)
  number: Mapped[int]
  mask: Mapped[str] = mapped_column(DIGEST)


class Candidate(Base):
  """A shape, or a texture, that a generator proposed for an object."""

  __tablename__ = "candidate"
  __table_args__ = (UniqueConstraint("object_id", "iteration", "name"),)

  id: Mapped[int] = mapped_column(primary_key=True)
  object_id: Mapped[int] = mapped_column(ForeignKey("object.id"), index=True)
  iteration: Mapped[int]
  name: Mapped[str] = mapped_column(NAME)
  generator: Mapped[str] = mapped_column(NAME)  # "family" or "family/version"
  kind: Mapped[str] = mapped_column(String(20))  # shape, texture
  mesh: Mapped[str] = mapped_column(DIGEST)
  suffix: Mapped[str] = mapped_column(String(10))  # of the mesh's file, as ".glb"
  # what a browser shows: the mesh itself if it is a .glb, else one that was made of it
  shown: Mapped[str] = mapped_column(DIGEST)
  shown_suffix: Mapped[str] = mapped_column(String(10))  # .glb, or .ply of splats
  latents: Mapped[str | None] = mapped_column(DIGEST)
  pose: Mapped[dict | None] = mapped_column(JSON)
  license: Mapped[str] = mapped_column(String(100), default="")


class Task(Base):
  """A piece of work for one person at a time.

  lease_epoch counts how often it changed hands. Who holds it sends the epoch with every decision:
  one that was handed out before somebody else took over is refused.
  """

  __tablename__ = "task"
  __table_args__ = (
    CheckConstraint(f"stage in {STAGES}", name="stage"),
    CheckConstraint(f"state in {STATES}", name="state"),
    UniqueConstraint("stage", "photo_id", "object_id", "iteration", "copy"),
    # the next task is the first row of this index
    Index("task_queue", "state", "stage", "priority", "id"),
    Index("task_lease", "lease_owner", "state"),
  )

  id: Mapped[int] = mapped_column(primary_key=True)
  stage: Mapped[str] = mapped_column(String(20))
  state: Mapped[str] = mapped_column(String(20))
  priority: Mapped[int] = mapped_column(default=0)  # smaller comes first
  photo_id: Mapped[int] = mapped_column(ForeignKey("photo.id"))
  object_id: Mapped[int | None] = mapped_column(ForeignKey("object.id"), index=True)
  iteration: Mapped[int] = mapped_column(default=0)
  # 0: what it decides counts. Others ask the same of somebody else, to see who agrees.
  copy: Mapped[int] = mapped_column(default=0)
  seed: Mapped[int]
  lease_owner: Mapped[int | None] = mapped_column(ForeignKey("annotator.id"))
  lease_until: Mapped[float] = mapped_column(Float, default=0.0)
  lease_epoch: Mapped[int] = mapped_column(default=0)


class Decision(Base):
  """What a person decided; never changed, never removed.

  key: chosen by who sends it, once a decision: sending it again changes nothing. step: its place
  among the decisions of its kind about the task.
  """

  __tablename__ = "decision"
  __table_args__ = (UniqueConstraint("task_id", "kind", "step"),)

  id: Mapped[int] = mapped_column(primary_key=True)
  key: Mapped[str] = mapped_column(String(100), unique=True)
  task_id: Mapped[int] = mapped_column(ForeignKey("task.id"))
  kind: Mapped[str] = mapped_column(String(20))
  step: Mapped[int]
  annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"), index=True)
  epoch: Mapped[int]
  payload: Mapped[dict] = mapped_column(JSON)
  milliseconds: Mapped[int | None]  # that the person took, as their page counted
  at: Mapped[float] = mapped_column(Float)


class Event(Base):
  """The audit trail: what was done, by whom, when; written with what it tells of."""

  __tablename__ = "event"

  id: Mapped[int] = mapped_column(primary_key=True)
  at: Mapped[float] = mapped_column(Float)
  annotator_id: Mapped[int | None] = mapped_column(ForeignKey("annotator.id"))
  task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"), index=True)
  kind: Mapped[str] = mapped_column(String(40))
  payload: Mapped[dict] = mapped_column(JSON)

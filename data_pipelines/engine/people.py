"""Who works on a project: names, roles, tokens of programs, links by which people join."""

import hashlib
import secrets

import sqlalchemy
from sqlalchemy import orm

from data_pipelines.engine.tables import ROLES, Annotator
from sam3d_jax.errors import InputError

TOKEN_BYTES = 24


def digest_of(token: str) -> str:
  """What is kept of a token: who reads the database learns none."""
  return hashlib.sha256(token.encode()).hexdigest()


def named(
  session: orm.Session, name: str, role: str = "annotator", *, readmit: bool = False
) -> Annotator:
  """The person of that name, made with the role where there is none yet.

  readmit: also one who was sent away. Raises InputError for a name or a role that cannot be.
  """
  if not name or len(name) > 200 or not name.isprintable():
    raise InputError(f"name = {name!r}: give 1 to 200 printable characters")
  if role not in ROLES:
    raise InputError(f"role = {role!r}: it is one of {', '.join(ROLES)}")
  found = session.scalar(sqlalchemy.select(Annotator).where(Annotator.name == name))
  if found is not None and not (found.active or readmit):
    raise InputError(f"{name!r} was sent away: launch.engine token lets them in again")
  if found is None:
    found = Annotator(name=name, role=role, token_sha256=None)
    session.add(found)
    session.flush()
  return found


def give_token(session: orm.Session, person: Annotator) -> str:
  """A new token of the person, which replaces the one before; it is shown once and not kept."""
  token = secrets.token_urlsafe(TOKEN_BYTES)
  person.active = True
  person.token_sha256 = digest_of(token)
  session.flush()
  return token


def send_away(session: orm.Session, person: Annotator) -> None:
  """Lets a person in no more, by token, link or cookie; what they decided stays."""
  person.token_sha256 = None
  person.active = False
  session.flush()


def of_token(session: orm.Session, token: str) -> Annotator | None:
  """Whose token it is; None for one that nobody has, or had."""
  query = sqlalchemy.select(Annotator).where(
    Annotator.token_sha256 == digest_of(token), Annotator.active
  )
  return session.scalar(query)

"""Who may call the app, and as whom.

Three ways in, the first that applies counts:

- a bearer token (`Authorization: Bearer …`), for programs;
- a cookie, which a join link gave to a browser;
- a user header that a proxy sets, together with a secret that only the proxy knows.

On the loopback address, and only there, one token stands for everybody who works at the machine
(tokens.py): the header `X-Engine-Token`, or a cookie that the printed address gave. The header
`X-Annotator`, or the page's own name field, says who it is. Everywhere requests must name this
host, and those that change something come from this origin.
"""

import dataclasses
import hmac
import ipaddress
from urllib.parse import unquote, urlsplit

from fastapi import HTTPException, Request
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer
from sqlalchemy import orm

from data_pipelines.engine import people, tokens
from data_pipelines.engine.tables import Annotator
from sam3d_jax.errors import InputError

COOKIE = "sam3d_engine"  # with the port: browsers keep one set of cookies for all ports of a host
COOKIE_SECONDS = 30 * 24 * 3600
JOIN_SECONDS = 7 * 24 * 3600
LOCAL_NAME = "local"
LOCAL_COOKIE = "sam3d_engine_local"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclasses.dataclass(frozen=True)
class Access:
  """How people come in.

  secret: signs join links and cookies. hosts: names under which the app may be called, with their
  ports. local: the token of this machine, with which one works at every stage and sees the lead's
  page; empty: there is none. proxy_header,
  proxy_secret: of a proxy that says who it is; empty: there is none.
  """

  secret: str
  hosts: tuple[str, ...]
  local: str = ""
  proxy_header: str = ""
  proxy_secret: str = ""

  @property
  def signer(self) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(self.secret, salt="sam3d-engine")

  def join_link(self, name: str, role: str, nonce: str) -> str:
    """Path and query of a link by which one person joins, once."""
    token = self.signer.dumps({"name": name, "role": role, "nonce": nonce})
    return f"/join?token={token}"

  def joined(self, token: str) -> dict[str, str]:
    """What a join link says. Raises HTTPException for one that is not ours, or is too old."""
    try:
      return self.signer.loads(token, max_age=JOIN_SECONDS)
    except SignatureExpired as error:
      raise HTTPException(403, "this link is older than a week: ask for a new one") from error
    except BadSignature as error:
      raise HTTPException(403, "this link is not one of this project") from error


def is_loopback(host: str) -> bool:
  """Whether an address to listen at is reached from this machine only."""
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def check_origin(request: Request, access: Access) -> None:
  """Raises HTTPException for a request under a name of another host, or from another site."""
  host = request.headers.get("host", "")
  if host not in access.hosts:
    known = ", ".join(access.hosts)
    raise HTTPException(403, f"host {host!r} is not one of {known}: name it with --allow_host")
  if request.method in SAFE_METHODS:
    return
  origin = request.headers.get("origin")
  if origin is not None and urlsplit(origin).netloc != host:
    raise HTTPException(403, f"origin {origin!r} is another site than {host!r}")
  if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
    raise HTTPException(403, "requests from other sites are refused")


def caller(request: Request, access: Access, session: orm.Session) -> Annotator:
  """Who calls. Raises HTTPException 401 for nobody that is known."""
  # a program with a token
  kind, _, token = request.headers.get("authorization", "").partition(" ")
  if kind.lower() == "bearer" and token:
    person = people.of_token(session, token)
    if person is None:
      raise HTTPException(401, "this token is not valid: ask a lead for a new one")
    return person

  # a browser that has joined
  cookie = request.cookies.get(cookie_name(COOKIE, request))
  if cookie:
    try:
      number = access.signer.loads(cookie, max_age=COOKIE_SECONDS)["id"]
    except (BadSignature, KeyError, TypeError) as error:
      raise HTTPException(401, "the session has ended: open your join link again") from error
    person = session.get(Annotator, number)
    if person is None or not person.active:
      raise HTTPException(401, "this person has left the project")
    return person

  # a proxy that has asked already
  if access.proxy_header:
    given = request.headers.get("x-proxy-secret", "")
    name = request.headers.get(access.proxy_header, "")
    if name and hmac.compare_digest(given.encode(), access.proxy_secret.encode()):
      return _named(session, name)

  # whoever is at the machine
  given = request.headers.get(tokens.HEADER) or request.cookies.get(
    cookie_name(LOCAL_COOKIE, request), ""
  )
  if is_local(access, given):
    # a page sends any letter, which headers carry escaped
    return _named(session, unquote(request.headers.get("x-annotator", "")) or LOCAL_NAME)
  ways = "a join link, a bearer token or the proxy's header"
  if access.local:
    ways = "open the address that launch.annotate printed, or send X-Engine-Token"
  raise HTTPException(401, f"say who you are: {ways}")


def cookie_name(name: str, request: Request) -> str:
  """The name of a cookie of this server, which is not that of another port."""
  return f"{name}_{request.url.port or 0}"


def is_local(access: Access, given: str) -> bool:
  """Whether a token is that of this machine."""
  return bool(access.local) and hmac.compare_digest(given.encode(), access.local.encode())


def _named(session: orm.Session, name: str) -> Annotator:
  try:
    return people.named(session, name)
  except InputError as error:
    raise HTTPException(400, str(error)) from error

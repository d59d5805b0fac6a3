"""Who may look at a page that a command serves: whoever was given its address, and nobody's script.

Pages are served at an address of this machine, where every page that its browser shows could ask
for them too. So every request is asked three things: whether it names this server (a name of
another server that leads here is one of an attack), whether it comes from a page of this server,
and whether it has the token. The token stands in the address that the command prints; the first
request exchanges it for a cookie and leaves it out of the address.

What is asked does not depend on the server: `Gate.judge` takes a path and headers.
"""

from collections.abc import Mapping
import dataclasses
import hmac
from http import cookies
import secrets
import urllib.parse

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("", "0.0.0.0", "::")  # addresses to listen at, but none to be reached by
TOKEN = "token"  # in the address
# Of every answer: shown in no frame, by no guess of its type, named to no other server.
HEADERS = {
  "X-Frame-Options": "DENY",
  "Content-Security-Policy": "frame-ancestors 'none'",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-store",
}


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the gate answers in place of the server: a status, a line of text, and headers."""

  status: int
  text: str
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Gate:
  """Judges the requests to one server.

  host: the address that it listens at. port: set once it is known.
  """

  def __init__(self, host: str):
    self.host = host
    self.port = 0
    self.token = secrets.token_urlsafe(24)

  @property
  def is_private(self) -> bool:
    """Whether this machine alone reaches the server."""
    return self.host in LOOPBACK

  def url(self, path: str = "/") -> str:
    """The address to open, token and all."""
    host = "localhost" if self.is_private else self.host
    if ":" in host:
      host = f"[{host}]"
    return f"http://{host}:{self.port}{path}?{TOKEN}={self.token}"

  def judge(self, target: str, headers: Mapping[str, str]) -> Answer | None:
    """None if a request may pass, else the answer to it.

    Args:
      target: path and query of the request.
      headers: of the request; any mapping that finds a name in any case, or all in small letters.
    """
    # What leads elsewhere than to this server's own files.
    path, _, query = target.partition("?")
    parts = urllib.parse.unquote(path).replace("\\", "/").split("/")
    if not path.startswith("/") or ".." in parts or "\0" in path:
      return Answer(400, "no such path")

    # Under which name, and from whose page.
    named = _header(headers, "host")
    if not self._is_own(named):
      return Answer(403, f"this server is reached at {self.url().partition('?')[0]}")
    origin = _header(headers, "origin")
    asks_for_socket = _header(headers, "upgrade").lower() == "websocket"
    if (origin or asks_for_socket) and not self._is_own_origin(origin, named):
      return Answer(403, "asked for by another page")

    # Who was let in before, and who comes with the token.
    if self._matches(self._cookie(_header(headers, "cookie"))):
      return None
    stated = urllib.parse.parse_qs(query).get(TOKEN, [""])
    if asks_for_socket or not self._matches(stated[0]):
      return Answer(403, "open the address that the command has printed, with its token")
    cookie = f"{self._cookie_name}={self.token}; Path=/; HttpOnly; SameSite=Strict"
    return Answer(303, "", {"Location": path, "Set-Cookie": cookie})

  @property
  def _cookie_name(self) -> str:
    # cookies belong to a machine, not to one of its ports
    return f"sam3d_{self.port}"

  def _cookie(self, text: str) -> str:
    """The token that a request brings in its cookies."""
    try:
      found = cookies.SimpleCookie(text).get(self._cookie_name)
    except cookies.CookieError:
      return ""
    return found.value if found is not None else ""

  def _matches(self, stated: str) -> bool:
    return hmac.compare_digest(stated.encode("utf-8", "replace"), self.token.encode())

  def _is_own(self, named: str) -> bool:
    """Whether a header `Host` names this server."""
    host, port = _split(named)
    if port != self.port:
      return False
    if self.is_private:
      return host in LOOPBACK
    # its other names are not known: the page must still be its own, and know the token
    return self.host in EVERYWHERE or host in (self.host, *LOOPBACK)

  def _is_own_origin(self, origin: str, named: str) -> bool:
    """Whether a header `Origin` is of a page of this server, under the name that is asked for."""
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and bool(rest) and _split(rest) == _split(named)


def _header(headers: Mapping[str, str], name: str) -> str:
  """A header of a request, "" if it has none or several that differ."""
  try:
    found = headers.get(name)
    if found is None:
      found = headers.get(name.title())
  # websockets says so of a header that is there twice
  except LookupError:
    return ""
  return found or ""


def _split(named: str) -> tuple[str, int]:
  """(host, port) of a header; port -1 for what is none."""
  try:
    parts = urllib.parse.urlsplit(f"//{named}")
    is_plain = parts.netloc == named and "@" not in named
    port = parts.port if parts.port is not None else 80
    return (parts.hostname or "") if is_plain else "", port
  except ValueError:
    return "", -1

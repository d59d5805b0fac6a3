"""Who may look at a page that a command serves."""

import pytest

from launch.console.gate import Gate


@pytest.fixture
def gate():
  found = Gate("127.0.0.1")
  found.port = 8080
  return found


def asked(gate: Gate, path: str = "/", **headers: str):
  return gate.judge(path, {"host": "localhost:8080"} | headers)


def let_in(gate: Gate) -> str:
  """The cookie of who has come with the token."""
  answer = asked(gate, f"/?token={gate.token}")
  assert answer.status == 303 and answer.headers["Location"] == "/"
  cookie = answer.headers["Set-Cookie"]
  assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
  return cookie.partition(";")[0]


def test_the_token_lets_in_and_the_cookie_keeps_in(gate):
  assert gate.url() == f"http://localhost:8080/?token={gate.token}"
  cookie = let_in(gate)
  assert asked(gate, cookie=cookie) is None
  assert asked(gate, "/assets/index.js", cookie=f"other=1; {cookie}") is None
  own = {"upgrade": "websocket", "origin": "http://localhost:8080"}
  assert asked(gate, cookie=cookie, **own) is None


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=x", "/?token=\u00fc", "/?other=1"])
def test_nobody_comes_in_without_the_token(gate, path):
  assert asked(gate, path).status == 403
  assert asked(gate, path, cookie="sam3d_8080=x").status == 403
  assert asked(gate, path, cookie="; ;=\x01").status == 403


@pytest.mark.parametrize(
  "origin", ["http://evil.example", "http://localhost:8081", "null", "", "http://localhost:8080.x"]
)
def test_another_page_is_refused_with_the_cookie_too(gate, origin):
  cookie = let_in(gate)
  assert asked(gate, cookie=cookie, upgrade="WebSocket", origin=origin).status == 403
  if origin:
    assert asked(gate, cookie=cookie, origin=origin).status == 403


@pytest.mark.parametrize(
  "host", ["evil.example:8080", "localhost:8081", "", "localhost", "a@localhost:8080", "[::1"]
)
def test_another_name_that_leads_here_is_refused(gate, host):
  cookie = let_in(gate)
  assert asked(gate, host=host, cookie=cookie).status == 403
  assert asked(gate, f"/?token={gate.token}", host=host).status == 403


@pytest.mark.parametrize(
  "path", ["/../secret", "/a/../../secret", "/%2e%2e/secret", "/..\\secret", "x", "/a\0b"]
)
def test_a_path_that_leads_elsewhere_is_refused(gate, path):
  assert asked(gate, path, cookie=let_in(gate)).status == 400


def test_a_socket_needs_the_cookie(gate):
  own = {"upgrade": "websocket", "origin": "http://localhost:8080"}
  assert asked(gate, f"/?token={gate.token}", **own).status == 403


def test_every_name_of_a_machine_will_do_where_it_listens_at_all():
  gate = Gate("0.0.0.0")
  gate.port = 9000
  headers = {"host": "10.0.0.5:9000"}
  assert gate.judge("/", headers).status == 403
  cookie = gate.judge(f"/?token={gate.token}", headers).headers["Set-Cookie"].partition(";")[0]
  assert gate.judge("/", headers | {"cookie": cookie}) is None
  stranger = {"cookie": cookie, "origin": "http://10.0.0.6:9000"}
  assert gate.judge("/", headers | stranger).status == 403


def test_tokens_of_two_servers_differ():
  assert Gate("127.0.0.1").token != Gate("127.0.0.1").token

"""Laws of the HTTP API: who may call it, what may be sent, what comes back."""

import io
import json
import sqlite3
import sys
import zlib

import numpy as np
from PIL import Image
import pytest
from sqlalchemy import exc
from starlette.testclient import TestClient

from data_pipelines.engine import adding, people, queue, reports, tokens
from data_pipelines.engine.web import access, app, segment, uploads
from sam3d_jax.errors import ConfigError
from tests.support import engine_projects

HOST = "127.0.0.1:8008"


def client(made, segmenter=None, **settings) -> TestClient:
  """A client of the project's app, on its loopback address."""
  way_in = access.Access(**({"secret": "s", "hosts": (HOST,), "local": "t"} | settings))
  calls = TestClient(app.create_app(made, way_in, segmenter), base_url=f"http://{HOST}")
  calls.headers[tokens.HEADER] = "t"
  return calls


@pytest.fixture
def made(tmp_path):
  with_tasks = engine_projects.make(tmp_path, objects=1)
  yield with_tasks
  with_tasks.close()


def test_a_task_is_handed_out_decided_and_described(made):
  calls = client(made)
  named = {"x-annotator": "ann"}
  task = calls.get("/api/next", headers=named).json()
  view = task["view"]
  # who made a candidate is not told
  assert set(view["left"]) == {"id", "mesh", "suffix"}
  assert "sam3d" not in json.dumps(task)
  payload = {"left": view["left"]["id"], "right": view["right"]["id"], "answer": "equal"}
  body = {"key": "k", "epoch": task["epoch"], "kind": "choice", "payload": payload}
  path = f"/api/tasks/{task['task']}/decisions"
  assert calls.post(path, json=body, headers=named).json()["again"] is False
  assert calls.post(path, json=body, headers=named).json()["again"] is True
  # another person cannot
  stale = calls.post(path, json=body | {"key": "l"}, headers={"x-annotator": "ben"})
  assert (stale.status_code, stale.json()["reason"]) == (409, "lease_lost")
  assert calls.post(path, json={"key": "k"}, headers=named).status_code == 422
  assert "/api/tasks/{task}/decisions" in calls.get("/openapi.json").json()["paths"]
  # the files that it names are served as what they are, and nothing runs in them
  mesh = calls.get(f"/api/files/{view['left']['mesh']}", headers=named)
  assert mesh.headers["content-type"] == "model/gltf-binary"
  assert "sandbox" in mesh.headers["content-security-policy"]


@pytest.mark.parametrize(
  "request_headers, status",
  [
    ({"host": "evil.example"}, 403),
    ({"host": "127.0.0.1:9999"}, 403),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"origin": f"http://{HOST}"}, 409),
  ],
)
def test_other_sites_change_nothing(made, request_headers, status):
  calls = client(made)
  answer = calls.post("/api/tasks/1/release", headers=request_headers)
  assert answer.status_code == status


def test_beyond_the_machine_everybody_says_who_they_are(made):
  proxied = {"proxy_header": "x-user", "proxy_secret": "p"}
  calls = client(made, local="", **proxied)
  assert calls.get("/api/me").status_code == 401
  assert calls.get("/api/me", headers={"x-annotator": "ann"}).status_code == 401
  # a proxy, with its secret only
  assert calls.get("/api/me", headers={"x-user": "ann"}).status_code == 401
  wrong = {"x-user": "ann", "x-proxy-secret": "q"}
  assert calls.get("/api/me", headers=wrong).status_code == 401
  right = {"x-user": "ann", "x-proxy-secret": "p"}
  assert calls.get("/api/me", headers=right).json()["name"] == "ann"

  # a token, until it is replaced
  with made.database.transaction() as session:
    lead = people.named(session, "lea", "lead")
    token = people.give_token(session, lead)
  bearer = {"authorization": f"Bearer {token}"}
  assert calls.get("/api/me", headers=bearer).json()["role"] == "lead"
  assert calls.get("/api/me", headers={"authorization": "Bearer x"}).status_code == 401

  # a join link, once
  invitation = {"name": "ben", "role": "annotator"}
  link = calls.post("/api/people", json=invitation, headers=bearer).json()["link"]
  joined = calls.get(link, follow_redirects=False)
  cookie = joined.headers["set-cookie"]
  assert "HttpOnly" in cookie and "SameSite=lax" in cookie
  assert calls.get("/api/me").json()["name"] == "ben"
  assert calls.get("/api/status").status_code == 403
  calls.cookies.clear()
  assert calls.get(link, follow_redirects=False).status_code == 403
  tampered = link[:-2] + ("AA" if not link.endswith("AA") else "BB")
  assert calls.get(tampered, follow_redirects=False).status_code == 403


def test_at_the_machine_a_token_is_needed_too(made):
  calls = client(made)
  assert calls.get("/api/me").json()["leads"] is True
  calls.headers[tokens.HEADER] = "u"
  assert calls.get("/api/me").status_code == 401
  del calls.headers[tokens.HEADER]
  refused = calls.get("/api/next")
  assert refused.status_code == 401
  assert "the address that launch.annotate printed" in refused.json()["detail"]
  # the printed address gives a browser a cookie
  assert calls.get("/enter?token=u", follow_redirects=False).status_code == 403
  entered = calls.get("/enter?token=t", follow_redirects=False)
  assert "HttpOnly" in entered.headers["set-cookie"]
  assert calls.get("/api/me").status_code == 200


def test_the_token_is_for_its_user_alone(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
  assert tokens.found(8008) == ""
  first = tokens.make(8008)
  assert tokens.found(8008) == first
  assert tokens.make(8008) != first
  assert tokens.file_of(8008).stat().st_mode & 0o077 == 0


def mask_png(size=(32, 24), mode="L") -> bytes:
  buffer = io.BytesIO()
  Image.new(mode, size, "white").save(buffer, "PNG")
  return buffer.getvalue()


def bomb_png() -> bytes:
  """A few bytes that state 60 000 x 60 000 pixels."""
  head = (60_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])

  def chunk(name, content):
    checksum = zlib.crc32(name + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + name + content + checksum

  body = chunk(b"IDAT", zlib.compress(bytes(100)))
  return uploads.PNG_START + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
  "kind, content, status, words",
  [
    ("mask", b"<svg onload='x'/>", 415, "a mask is a PNG"),
    ("mask", mask_png()[:50], 415, "cannot be read"),
    ("mask", bomb_png(), 413, "too large"),
    ("mesh", mask_png(), 415, "a mesh is a .glb"),
    ("mesh", engine_projects.mesh_bytes(1)[:-40], 415, "cannot be used"),
    ("mesh", b"glTF" + b"\xff" * 40, 415, "cannot be used"),
    ("page", b"x", 404, "not one of mask, mesh"),
  ],
)
def test_uploads_are_what_they_say_or_refused(made, kind, content, status, words):
  answer = client(made).post(f"/api/uploads/{kind}", content=content)
  assert answer.status_code == status
  assert words in answer.json()["detail"]


def test_an_upload_of_any_length_is_stopped_where_it_is_too_long(made, monkeypatch):
  monkeypatch.setitem(uploads.LARGEST, "mesh", 1000)
  calls = client(made)
  stated = {"content-length": str(10 << 30)}
  assert calls.post("/api/uploads/mesh", headers=stated, content=b"").status_code == 413
  sent = []

  def endless():
    for _ in range(100):
      sent.append(1)
      yield b"x" * 100

  assert calls.post("/api/uploads/mesh", content=endless()).status_code == 413


def test_masks_are_kept_as_pictures_of_our_own_making(made):
  calls = client(made)
  digest = calls.post("/api/uploads/mask", content=mask_png(mode="RGB")).json()["digest"]
  kept = calls.get(f"/api/files/{digest}")
  picture = Image.open(io.BytesIO(kept.content))
  assert (picture.mode, picture.size) == ("L", (32, 24))
  assert np.asarray(picture).min() == 255
  mesh = engine_projects.mesh_bytes(3)
  assert calls.post("/api/uploads/mesh", content=mesh).status_code == 200
  for name in ("../engine.db", "0" * 64, "..%2f..%2fproject.json"):
    assert calls.get(f"/api/files/{name}").status_code == 404


def test_an_answer_that_cannot_be_stored_is_no_acknowledgement(made, monkeypatch):
  """A disk that is full when the transaction ends: 503; with room again the same key is stored."""
  calls = client(made)
  task = calls.get("/api/next").json()
  view = task["view"]
  payload = {"left": view["left"]["id"], "right": view["right"]["id"], "answer": "left"}
  body = {"key": "k", "epoch": task["epoch"], "kind": "choice", "payload": payload}
  path = f"/api/tasks/{task['task']}/decisions"

  def full(_session):
    raise exc.OperationalError("COMMIT", {}, sqlite3.OperationalError("disk is full"))

  monkeypatch.setattr(queue.Decision, "__init__", lambda self, **row: full(self))
  refused = calls.post(path, json=body)
  assert (refused.status_code, refused.json()["reason"]) == (503, "unavailable")
  assert "disk is full; send it again with the same key" in refused.json()["detail"]
  monkeypatch.undo()
  assert list(reports.decisions(made)) == []
  assert calls.post(path, json=body).json()["again"] is False


def test_the_server_is_reached_under_its_own_names_only():
  assert access.is_loopback("127.0.0.1") and access.is_loopback("localhost")
  assert not access.is_loopback("0.0.0.0") and not access.is_loopback("host.example")


SEGMENTER = """
import json, sys
from PIL import Image
image, points, out = sys.argv[1:]
(x, y, inside), = json.load(open(points))
mask = Image.new("L", Image.open(image).size, 0)
mask.putpixel((round(x), round(y)), 255 * inside)
mask.save(out)
"""


def test_a_segmenter_makes_masks_of_clicks(tmp_path):
  with_photo = engine_projects.make(tmp_path, objects=1)
  adding.add_photo(with_photo, "bare", engine_projects.photo(tmp_path, "bare", 0))
  program = tmp_path / "segmenter.py"
  program.write_text(SEGMENTER)
  words = f"{sys.executable} {program} {{image}} {{points}} {{out}}"
  calls = client(with_photo, segmenter=segment.parse(words))
  task = calls.get("/api/next?stages=mask").json()
  path = f"/api/tasks/{task['task']}/segment"
  digest = calls.post(path, json={"points": [[7, 5, 1]]}).json()["digest"]
  mask = np.asarray(Image.open(io.BytesIO(with_photo.blobs.read(digest))))
  assert np.argwhere(mask).tolist() == [[5, 7]]
  # a program that fails is told of, and nothing else breaks
  program.write_text("raise SystemExit('out of memory')")
  failed = calls.post(path, json={"points": [[7, 5, 1]]})
  assert failed.status_code == 502
  assert "out of memory" in failed.json()["detail"]
  assert calls.post(path, json={"points": []}).status_code == 422
  without = client(with_photo)
  assert without.post(path, json={"points": [[7, 5, 1]]}).status_code == 404
  with_photo.close()
  with pytest.raises(ConfigError, match="must contain {image} and {points} and {out}"):
    segment.parse("sam {image}")

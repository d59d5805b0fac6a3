"""What the viewer makes of results of others, on a stand-in for the library that draws the page."""

import json
import shutil
import sys
import types

import numpy as np
from PIL import Image
import pytest

from launch.console.gate import Gate
from launch.photos import viewer
from sam3d_jax.errors import JobFailed
from sam3d_jax.render import mesh
from tests.support.placed import solid

NAME = "<iframe srcdoc=\"<img src=x onerror=parent.document.title='MARK'>\">"


class Handle:
  """Anything on the page."""

  value = None

  def remove(self):
    pass

  def on_update(self, function):
    pass


class Part:
  """The panel or the scene: notes every call."""

  def __init__(self):
    self.calls = []

  def __getattr__(self, name):
    def call(*args, **options):
      self.calls.append((name, args, options))
      return Handle()

    return call


class Server:
  """A stand-in for viser's, which starts a server of `websockets`."""

  starts = True

  def __init__(self, host, port, **options):
    self.gui, self.scene, self.port = Part(), Part(), port
    self.initial_camera = types.SimpleNamespace()
    library = sys.modules["websockets.asyncio.server"]
    if self.starts:
      library.serve("handler", host, port, process_request=lambda connection, request: "page")

  def get_port(self):
    return self.port

  def get_clients(self):
    return {}

  def stop(self):
    pass


@pytest.fixture
def library(monkeypatch):
  """The stand-ins; gives the functions that servers ask about requests."""
  asked = []
  server = types.ModuleType("websockets.asyncio.server")
  server.serve = lambda *args, process_request, **options: asked.append(process_request)
  package = types.ModuleType("websockets.asyncio")
  package.server = server
  viser = types.ModuleType("viser")
  viser.ViserServer = Server
  monkeypatch.setitem(sys.modules, "websockets", types.ModuleType("websockets"))
  monkeypatch.setitem(sys.modules, "websockets.asyncio", package)
  monkeypatch.setitem(sys.modules, "websockets.asyncio.server", server)
  monkeypatch.setitem(sys.modules, "viser", viser)
  return asked


def serve(folder, **options):
  return viewer.serve(viewer.find(folder), gate=Gate("127.0.0.1"), port=8080, **options)


def texts(server) -> list[str]:
  return [str(call[1]) for call in server.gui.calls if call[0] == "add_text"]


def test_the_collected_name_is_text_and_its_photo_stays_where_it_is(library, hostile_dir, tmp_path):
  source = hostile_dir / "viewer_script" / "results" / "give_it_the_name_in_README"
  folder = tmp_path / "results" / NAME.replace("/", "")
  shutil.copytree(source, folder)
  Image.new("RGB", (64, 64)).save(tmp_path / "private.png")
  layout = json.loads((folder / "layout.json").read_text())
  layout["image"] = str(tmp_path / "private.png")
  (folder / "layout.json").write_text(json.dumps(layout))

  server = serve(tmp_path / "results")
  drawn = {call[0] for call in server.gui.calls}
  assert drawn.isdisjoint({"add_markdown", "add_html", "add_image"})
  assert any(NAME.replace("/", "")[:20] in text for text in texts(server))
  assert any("--viewer_photos" in text for text in texts(server))

  shown = serve(tmp_path / "results", photos=(str(tmp_path),))
  assert "add_image" in {call[0] for call in shown.gui.calls}


def result(folder, **changes) -> None:
  """A result of one object."""
  folder.mkdir(parents=True)
  mesh.write_glb(folder / "cup.glb", {"cup": mesh.from_occupancy(solid())})
  place = {"scale": [1, 1, 1], "rotation_glb": [1, 0, 0, 0], "translation": [0, 0, 2]}
  entry = {"file": "cup.glb", "placement": place, "mask_iou": 0.5} | changes
  layout = {
    "format": 1,
    "settings": {},
    "files": [],
    "frame": "camera",
    "image": None,
    "width": 64,
    "height": 64,
    "camera": {"fx": 60, "fy": 60, "cx": 32, "cy": 32, "source": "given"},
    "scene": {"units": None},
    "objects": {"../../<b>cup</b>": entry},
  }
  (folder / "layout.json").write_text(json.dumps(layout))


def test_an_object_has_no_path_of_its_own_on_the_page(library, tmp_path):
  result(tmp_path / "a")
  server = serve(tmp_path)
  (glb,) = [call for call in server.scene.calls if call[0] == "add_glb"]
  assert glb[1][0] == "/objects/0"


@pytest.mark.parametrize("file", ["../secret.glb", "/etc/passwd", 3, "away.glb"])
def test_no_object_lies_outside_of_its_results(library, tmp_path, file):
  result(tmp_path / "out" / "a", file=file)
  mesh.write_glb(tmp_path / "out" / "secret.glb", {"cup": mesh.from_occupancy(solid())})
  (tmp_path / "out" / "a" / "away.glb").symlink_to(tmp_path / "out" / "secret.glb")
  server = serve(tmp_path / "out")
  assert not [call for call in server.scene.calls if call[0] == "add_glb"]
  assert any("Cannot be shown" in text for text in texts(server))


def test_an_object_that_names_an_address_is_not_shown(library, tmp_path):
  result(tmp_path / "a", file="b.gltf")
  tree = {"asset": {"version": "2.0"}, "images": [{"uri": "http://evil.example/a.png"}]}
  (tmp_path / "a" / "b.gltf").write_text(json.dumps(tree))
  server = serve(tmp_path)
  assert not [call for call in server.scene.calls if call[0] == "add_glb"]
  tree["images"] = [{"uri": "data:image/png;base64,AA=="}]
  assert not viewer.refers_elsewhere(tree)


@pytest.mark.parametrize("changes", [{"placement": None}, {"mask_iou": "x"}, {"file": {}}])
def test_results_that_are_damaged_are_said_to_be(library, tmp_path, changes):
  result(tmp_path / "a", **changes)
  assert any("Cannot be shown" in text for text in texts(serve(tmp_path)))


def test_every_request_is_asked_and_a_library_that_does_not_ask_is_not_used(
  library, tmp_path, monkeypatch
):
  result(tmp_path / "a")
  serve(tmp_path)
  (ask,) = library

  class Connection:
    def respond(self, status, text):
      return types.SimpleNamespace(status=status, headers={})

  request = types.SimpleNamespace(path="/", headers={"Host": "localhost:8080"})
  answer = ask(Connection(), request)
  assert answer.status == 403 and answer.headers["X-Frame-Options"] == "DENY"

  monkeypatch.setattr(Server, "starts", False)
  with pytest.raises(JobFailed, match="viser"):
    serve(tmp_path)


def test_a_photo_of_the_results_is_shown(tmp_path):
  Image.new("RGB", (64, 64), (9, 8, 7)).save(tmp_path / "photo.png")
  picture = viewer.read_picture(str(tmp_path / "photo.png"), (tmp_path,))
  np.testing.assert_array_equal(picture[0, 0], (9, 8, 7))
  assert viewer.read_picture(str(tmp_path / "none.png"), (tmp_path,)) is None

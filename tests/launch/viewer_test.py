"""The page of launch.sample --viewer, seen in a real browser. Needs viser (requirements-viewer.txt)
and Chromium; else skipped.
"""

import argparse
import dataclasses
import socket
import urllib.error
import urllib.request

import numpy as np
from PIL import Image
import pytest

from launch import sample
from launch.console.gate import Gate
from launch.photos import viewer
from sam3d_jax.render import mesh, raycast
from tests.support import browser
from tests.support.placed import candidate_of, known_pose, photo_of, solid, write_results

pytest.importorskip(
  "viser", reason="viser is not installed: pip install -r requirements-viewer.txt"
)


CLICK = """[...document.querySelectorAll('input[type=checkbox]')].some(box => {
  let row = box;
  while (row && !row.innerText) row = row.parentElement;
  if (!row || !row.innerText.startsWith("%s")) return false;
  box.click();
  return true;
})"""  # clicks the box beside this label; whether there is one


@pytest.fixture(scope="module")
def results_folder(tmp_path_factory):
  """Results for a red object with a point map."""
  folder = tmp_path_factory.mktemp("results")
  photo = photo_of(raycast.Caster(mesh.from_occupancy(solid())), known_pose())
  image = np.where(photo.masks["thing"][..., None], (220, 20, 30), (60, 70, 80)).astype(np.uint8)
  Image.fromarray(image).save(folder / "photo.png")
  photo = dataclasses.replace(photo, image_HW3=image, path=folder / "photo.png")
  write_results(folder, [candidate_of(photo, known_pose())])
  return folder


@pytest.fixture
def server(results_folder):
  gate = Gate("127.0.0.1")
  server = viewer.serve(viewer.find(results_folder), gate=gate, port=8950)
  server.url = gate.url()
  yield server
  server.stop()


VALUES = "[...document.querySelectorAll('input')].map(field => field.value).join(' ')"


def test_the_page_is_for_who_has_its_token(server):
  plain = server.url.partition("?")[0]
  with pytest.raises(urllib.error.HTTPError, match="403"):
    urllib.request.urlopen(plain)
  with pytest.raises(urllib.error.HTTPError, match="403"):
    urllib.request.urlopen(urllib.request.Request(server.url, headers={"Origin": "http://x"}))
  jar = urllib.request.HTTPCookieProcessor()
  with urllib.request.build_opener(jar).open(server.url) as answer:
    assert answer.status == 200 and answer.url == plain


def test_the_page_is_served_to_this_machine_only(server):
  assert sample_default("viewer_host") == "127.0.0.1" and server.get_host() == "127.0.0.1"
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      # sends nothing: asks which address this machine has towards others
      probe.connect(("192.0.2.1", 9))
    except OSError:
      pytest.skip("this machine has no address but the loopback")
    address = probe.getsockname()[0]
  if address.startswith("127."):
    pytest.skip("this machine has no address but the loopback")
  with pytest.raises(OSError):
    socket.create_connection((address, server.get_port()), timeout=5)


def sample_default(name: str):
  parser = argparse.ArgumentParser()
  sample.flags(parser)
  return parser.get_default(name)


def test_the_page_shows_the_photo_the_points_and_the_objects(server, tmp_path):
  program = browser.find()
  if program is None:
    pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is installed")
  with browser.Page(program, server.url, tmp_path) as page:
    page.wait(lambda: "thing (mask IoU" in page.text())
    assert "frame camera" in page.evaluate(VALUES) and "point map" in page.text()

    def red() -> int:
      """Red pixels of the scene, which is left of the panel."""
      shot = page.screenshot()[:, :600].astype(int)
      return int(
        (
          (shot[..., 0] > 90)
          & (shot[..., 0] > 2.2 * shot[..., 1])
          & (shot[..., 0] > 2.2 * shot[..., 2])
        ).sum()
      )

    page.wait(lambda: red() > 1000)
    click = lambda name: page.wait(lambda: page.evaluate(CLICK % name))
    click("photo's camera")
    click("point map")
    page.wait(lambda: red() > 1000)  # the object is there without them
    click("thing")
    page.wait(lambda: red() < 200)  # what is left are the axes in the corner
    click("point map")
    page.wait(lambda: red() > 500)


def test_a_folder_without_results_is_refused_by_name(tmp_path, capsys):
  assert sample.main(["--viewer", "--out", str(tmp_path)]) == 2
  assert str(tmp_path) in capsys.readouterr().err

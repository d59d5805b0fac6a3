"""What a person does, done in a real browser: choices, rating, gizmo, undo, brush, upload."""

import io
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from data_pipelines.engine import adding, project, proposals, reports, tokens
from tests.support import engine_projects
from tests.support.jobs import free_port

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
  pytest.skip("no Chromium is installed", allow_module_level=True)
FLAGS = [
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--use-angle=swiftshader",
  "--enable-unsafe-swiftshader",
]
SIZE = {"width": 900, "height": 520}


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as playwright:
    started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield started
    started.close()


@pytest.fixture
def served(tmp_path, monkeypatch):
  """(address, project folder) of a server with one object, and of a photo without masks."""
  made = engine_projects.make(tmp_path, objects=1, candidates=3)
  adding.add_photo(made, "bare", engine_projects.photo(tmp_path, "bare", 0))
  made.close()
  monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
  port = free_port()
  with engine_projects.served(tmp_path / "project", port):
    yield f"http://127.0.0.1:{port}", tmp_path / "project"


def opened(browser, address: str, stages: str):
  """A page of one person; everything that it asks for elsewhere, or complains of, is noted."""
  page = browser.new_page(viewport=SIZE)
  page.outside, page.complaints = [], []
  page.on("request", lambda request: _note(page, request.url, address))
  page.on("pageerror", lambda error: page.complaints.append(str(error)))
  page.on("console", lambda said: said.type == "error" and page.complaints.append(said.text))
  page.add_init_script("localStorage.setItem('sam3d-annotator', 'Zoë')")
  token = tokens.found(int(address.rpartition(":")[2]))
  page.goto(f"{address}/enter?token={token}")
  page.goto(f"{address}/?still&stages={stages}")
  return page


def _note(page, url: str, address: str) -> None:
  if not url.startswith((address, "blob:", "data:")):
    page.outside.append(url)


def wait_for(page, ready: str) -> None:
  """Waits until a task is shown: its stage and step."""
  page.wait_for_selector(f"body[data-ready$='{ready}']", timeout=60_000)


def wait_until(page, condition: str) -> None:
  """Waits for an expression of the page, asked from outside: the page itself evaluates no text."""
  for _ in range(600):
    if page.evaluate(condition):
      return
    page.wait_for_timeout(50)
  raise AssertionError(f"never: {condition}")


def stored(folder: pathlib.Path) -> list[dict]:
  made = project.read(folder)
  lines = list(reports.decisions(made))
  made.close()
  return lines


def test_choices_by_key_a_rating_and_a_pose_by_gizmo(browser, served, tmp_path):
  address, folder = served
  page = opened(browser, address, "shape,pose")
  wait_for(page, "shape-0")
  page.screenshot(path=tmp_path / "choice.png")
  page.keyboard.press("ArrowLeft")
  wait_for(page, "shape-1")
  page.keyboard.press("ArrowDown")
  wait_for(page, "shape-2")
  page.screenshot(path=tmp_path / "rating.png")
  page.keyboard.press("4")
  wait_for(page, "pose-0")
  kinds = [(line["kind"], line["payload"].get("answer")) for line in stored(folder)]
  assert kinds == [("choice", "left"), ("choice", "equal"), ("rating", None)]
  assert stored(folder)[2]["payload"]["value"] == 4.0
  assert stored(folder)[0]["annotator"] == "Zoë"
  assert stored(folder)[0]["milliseconds"] > 0

  # the gizmo moves the object, undo brings it back
  fit = page.locator("#iou")
  wait_until(page, "document.querySelector('#iou').dataset.value !== undefined")
  before = float(fit.get_attribute("data-value"))
  x, y = page.evaluate("document.querySelector('.view').screenPosition()")
  page.screenshot(path=tmp_path / "pose.png")
  page.mouse.move(x + 45, y)
  page.mouse.down()
  page.mouse.move(x + 150, y, steps=6)
  page.mouse.up()
  change = f"Math.abs(document.querySelector('#iou').dataset.value - {before})"
  wait_until(page, f"{change} > 0.01")
  page.screenshot(path=tmp_path / "moved.png")
  page.keyboard.press("z")
  wait_until(page, f"{change} < 1e-6")
  page.keyboard.press("Enter")
  page.wait_for_selector("#nothing")
  pose = stored(folder)[-1]
  assert pose["kind"] == "pose"
  assert pose["payload"]["iou"] == pytest.approx(before, abs=1e-6)
  assert page.outside == [] and page.complaints == []
  page.close()


def test_a_mask_is_painted_and_its_object_waits_for_candidates(browser, served, tmp_path):
  address, folder = served
  page = opened(browser, address, "mask")
  wait_for(page, "mask-0")
  box = page.locator("#paint").bounding_box()
  at = lambda u, v: (box["x"] + u * box["width"], box["y"] + v * box["height"])
  page.locator("#larger").click()
  page.mouse.move(*at(0.3, 0.5))
  page.mouse.down()
  page.mouse.move(*at(0.6, 0.5), steps=5)
  page.mouse.up()
  # a stroke too many is taken back
  page.mouse.move(*at(0.9, 0.9))
  page.mouse.down()
  page.mouse.up()
  page.keyboard.press("z")
  page.screenshot(path=tmp_path / "mask.png")
  page.keyboard.press("Enter")
  page.wait_for_selector("#nothing")
  made = project.read(folder)
  (target,) = [one for one in proposals.wanting(made, 0) if one.photo == "bare"]
  mask = made.blobs.read(target.mask)
  made.close()
  painted = np.asarray(Image.open(io.BytesIO(mask))) > 127
  height, width = painted.shape
  assert painted[height // 2, int(0.45 * width)]
  assert not painted[int(0.9 * height), int(0.9 * width)]
  assert page.outside == [] and page.complaints == []
  page.close()


def test_an_artist_hands_in_a_mesh(browser, served, tmp_path):
  address, folder = served
  page = opened(browser, address, "shape,artist")
  for step, key in enumerate(("ArrowRight", "ArrowRight", "0")):
    wait_for(page, f"shape-{step}")
    page.keyboard.press(key)
  wait_for(page, "artist-0")
  wrong = tmp_path / "wrong.glb"
  wrong.write_bytes(b"<html>")
  page.set_input_files("#file", wrong)
  wait_until(page, "document.querySelector('#message').textContent.includes('.glb')")
  mesh = tmp_path / "mine.glb"
  mesh.write_bytes(engine_projects.mesh_bytes(5))
  page.set_input_files("#file", mesh)
  wait_until(page, "!document.querySelector('#save').disabled")
  page.screenshot(path=tmp_path / "artist.png")
  page.click("#save")
  page.wait_for_selector("#nothing")
  upload = stored(folder)[-1]
  assert upload["kind"] == "upload"
  made = project.read(folder)
  assert made.blobs.read(upload["payload"]["mesh"]) == mesh.read_bytes()
  made.close()

  # and the lead sees it all
  page.goto(f"{address}/?still#lead")
  page.reload()
  page.wait_for_selector("h2:has-text('People')")
  page.screenshot(path=tmp_path / "lead.png")
  assert "Zoë" in page.inner_text("main")
  assert page.outside == []
  page.close()

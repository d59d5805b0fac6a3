"""A headless Chromium, driven by its DevTools protocol: what tests need to look at a page."""

import base64
import io
import json
import pathlib
import shutil
import subprocess
import time
import urllib.request

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--use-gl=angle",
  "--use-angle=swiftshader",
  "--enable-unsafe-swiftshader",
  "--no-first-run",
  "--window-size=1000,640",
  "--remote-debugging-port=0",
  "--remote-allow-origins=*",
)


def find() -> str | None:
  """The program, None where there is none."""
  return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
  """One page of a browser of its own. Use as a context."""

  def __init__(self, program: str, url: str, profile: pathlib.Path):
    self.command = [program, *FLAGS, f"--user-data-dir={profile}", url]
    self.port_file = profile / "DevToolsActivePort"
    self.url = url
    self.count = 0  # of calls, which numbers them

  def __enter__(self):
    self.process = subprocess.Popen(
      self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
      self.socket = self._connect()
    except BaseException:
      self.process.kill()
      raise
    return self

  def _connect(self, seconds: float = 60.0):
    # comes with the viewer, which not every environment has
    from websockets.sync.client import connect

    end = time.monotonic() + seconds
    while time.monotonic() < end:
      address = self._address()
      if address is not None:
        return connect(address, max_size=None)
      time.sleep(0.2)
    raise TimeoutError(f"{self.command[0]} did not open {self.url} within {seconds} s")

  def _address(self) -> str | None:
    """Where the page listens, None until it is open."""
    lines = self.port_file.read_text().splitlines() if self.port_file.exists() else []
    if not lines:
      return None
    port, *_ = lines
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
      pages = json.load(answer)
    for page in pages:
      # a token in the address is taken out of it by the page
      if page["type"] == "page" and page["url"].startswith(self.url.partition("?")[0]):
        return page["webSocketDebuggerUrl"]
    return None

  def __exit__(self, *error):
    self.socket.close()
    self.process.terminate()
    self.process.wait(30)

  def call(self, method: str, **params) -> dict:
    self.count += 1
    self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
    while True:
      answer = json.loads(self.socket.recv(timeout=60))
      if answer.get("id") == self.count:
        return answer["result"]

  def screenshot(self) -> np.ndarray:
    """(H, W, 3) uint8."""
    answer = self.call("Page.captureScreenshot", format="png")
    png = base64.b64decode(answer["data"])
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return np.asarray(image)

  def evaluate(self, expression: str):
    """The value of a JavaScript expression on the page, None where it has none."""
    answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
    return answer["result"].get("value")

  def text(self) -> str:
    """The words on the page."""
    return self.evaluate("document.body.innerText") or ""

  def wait(self, condition, seconds: float = 90.0):
    """Calls condition() until it is true; its value. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      if found := condition():
        return found
      time.sleep(0.5)
    raise TimeoutError(
      f"{self.url}: the page did not come to show what was waited for within {seconds} s"
    )

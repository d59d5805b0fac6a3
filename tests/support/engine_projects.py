"""Small projects of the data engine, with made-up photos, meshes and people."""

import contextlib
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import trimesh

from data_pipelines.engine import adding, people, project, proposals
from data_pipelines.engine.project import Project
from data_pipelines.engine.tables import Annotator
from sam3d_jax.files import photos

ROOT = pathlib.Path(__file__).parents[2]
SIZE = (24, 32)


def photo(folder: pathlib.Path, name: str, objects: int = 1) -> photos.Photo:
  """A photo of noise with so many masks, each a square of its own."""
  rng = np.random.default_rng(sum(name.encode()))
  image = rng.integers(0, 255, (*SIZE, 3), np.uint8)
  path = folder / f"{name}.png"
  path.write_bytes(adding.png_bytes(image))
  masks = {}
  for number in range(objects):
    mask = np.zeros(SIZE, bool)
    mask[4:12, 4 + 6 * number : 9 + 6 * number] = True
    masks[str(number)] = mask
  return photos.Photo(image, masks=masks, path=path)


def mesh_bytes(size: float) -> bytes:
  """A box as GLB."""
  return trimesh.creation.box((1.0, 1.0, size)).export(file_type="glb")


def make(
  folder: pathlib.Path,
  *,
  objects: int = 2,
  candidates: int = 3,
  database: str = "",
  **settings,
) -> Project:
  """A project with one photo whose objects have candidates of two generators."""
  made = project.create(folder / "project", project.Settings(database=database, **settings))
  adding.add_photo(made, "cup", photo(folder, "cup", objects), "CC0-1.0")
  for target in proposals.wanting(made, 0):
    proposed = []
    for number in range(candidates):
      family = ("sam3d/1", "other/1")[number % 2]
      proposed.append(proposals.Proposed(family, mesh_bytes(1 + number + target.number)))
    proposals.propose(made, target.id, 0, proposed)
  return made


def person(made: Project, name: str, role: str = "annotator") -> Annotator:
  with made.database.transaction() as session:
    return people.named(session, name, role)


@contextlib.contextmanager
def served(folder: pathlib.Path, port: int):
  """A server of the project in a process of its own; killed at the end."""
  server = start(folder, port)
  try:
    yield server
  finally:
    server.kill()
    server.wait()


def start(folder: pathlib.Path, port: int) -> subprocess.Popen:
  """Starts a server and waits until it answers."""
  command = [sys.executable, "-m", "launch.annotate", "--project", str(folder), "--port", str(port)]
  server = subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  while server.poll() is None:
    try:
      urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=5)
      return server
    except (urllib.error.URLError, ConnectionError, TimeoutError):
      time.sleep(0.05)
  raise AssertionError(server.stderr.read().decode())

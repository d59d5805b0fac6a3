"""Another process that holds a folder."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
HOLDER = """
import sys, time
from sam3d_jax.files import locks
with locks.hold(sys.argv[1], "launch.other"):
  print("held", flush=True)
  time.sleep(600)
"""


def start(program: str, *args) -> subprocess.Popen:
  """Runs a program of this checkout in a process of its own."""
  return subprocess.Popen(
    [sys.executable, "-c", program, *map(str, args)],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )


@contextlib.contextmanager
def holding(folder: pathlib.Path) -> Iterator[subprocess.Popen]:
  """The process, once it holds the folder; it is killed at the end."""
  process = start(HOLDER, folder)
  try:
    assert process.stdout.readline() == "held\n"
    yield process
  finally:
    process.kill()
    process.wait()

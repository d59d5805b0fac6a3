"""What a shard has come to while it is not finished, so that a killed build goes on within it.

A shard's inputs are dealt with one after the other, so what is kept is a prefix of them, in parts:

    parts/<split>-<index>-of-<count>/<first>-<stop>.array_record

A part's first record is JSON, what the shard turned down up to input `stop`; the rest are the
records of the inputs from `first` on. A part is whole or absent, and one is written when that is
worth it: seconds of work, not every input. They go when their shard is finished.
"""

from collections.abc import Iterator
import dataclasses
import json
import os
import pathlib
import re
import shutil
import time
from typing import Any

from data_pipelines.format import records

PARTS = "parts"
PART_SECONDS = 10.0  # of work that a kill may cost, beside the input that is under way
_PART = re.compile(r"(?P<first>\d+)-(?P<stop>\d+)\.array_record")


@dataclasses.dataclass(frozen=True)
class Part:
  """A file, and which inputs it holds the records of."""

  path: pathlib.Path
  first: int
  stop: int


class Shard:
  """What one shard has come to.

  inputs: how many of them an earlier run dealt with. report: what it turned down up to there.
  """

  def __init__(self, folder: pathlib.Path):
    # what is there, as far as it can be read
    self.folder = folder
    self.inputs = 0
    self.report: dict[str, Any] = {}
    self._found: list[Part] = []
    for part in chain(folder):
      header = read_header(part.path)
      if header is None:
        break
      self._found.append(part)
      self.inputs = part.stop
      self.report = header

    # what this run adds
    self._kept = self.inputs
    self._pending: list[bytes] = []
    self._since = time.monotonic()

  def records(self) -> Iterator[bytes]:
    """The records of the inputs that an earlier run dealt with, in order."""
    for part in self._found:
      _, *kept = records.read_bytes(part.path)
      yield from kept

  def add(self, record: bytes) -> None:
    """Takes a record of the input that is under way."""
    self._pending.append(record)

  def through(self, inputs: int, report: dict[str, Any]) -> None:
    """So many inputs are dealt with; writes a part if enough work went into them."""
    seconds = time.monotonic() - self._since
    if seconds < PART_SECONDS:
      return
    text = json.dumps(report)
    path = self.folder / f"{self._kept}-{inputs}.array_record"
    records.write_bytes(path, [text.encode(), *self._pending])

    # the next part begins here
    self._kept = inputs
    self._pending = []
    self._since = time.monotonic()

  def remove(self) -> None:
    """The shard is finished."""
    shutil.rmtree(self.folder, ignore_errors=True)


def chain(folder: str | os.PathLike) -> list[Part]:
  """The parts that follow each other from the first input on."""
  # by where they begin
  folder = pathlib.Path(folder)
  by_first: dict[int, Part] = {}
  if folder.is_dir():
    for path in folder.iterdir():
      match = _PART.fullmatch(path.name)
      if match:
        part = Part(path, int(match["first"]), int(match["stop"]))
        by_first[part.first] = part

  # each goes on where the one before it stops
  found = []
  stop = 0
  while stop in by_first:
    found.append(by_first[stop])
    stop = found[-1].stop
  return found


def inputs_of(folder: str | os.PathLike) -> int:
  """How many inputs the parts of a folder hold."""
  found = chain(folder)
  return found[-1].stop if found else 0


def read_header(path: pathlib.Path) -> dict[str, Any] | None:
  """What a part says of its inputs; None for one that the disk has lost bytes of."""
  try:
    header, *_ = records.read_bytes(path)
    return json.loads(header)
  except (records.DatasetError, ValueError):
    return None

"""Inputs that a command cannot use: each costs itself alone, is named, and is counted.

A command goes through its inputs within `Refusals.input`. At the end the refused ones stand in
OUT/quarantine.jsonl, as those of a build do, and more of them than --quarantine_budget allows end
the command with code 2, after the others are done.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib

from sam3d_jax.errors import InputError, JobFailed, Preempted, Refused
from sam3d_jax.files import atomic, blame, folders

FILE = "quarantine.jsonl"
UNUSABLE, UNREADABLE, TOO_LARGE = "unusable", "unreadable", "too_large"  # reasons
SHOWN = 20  # of the refused ones


@dataclasses.dataclass(frozen=True)
class Refusal:
  """An input that was not used: its file or name, a reason that is counted, and what is wrong."""

  path: str
  reason: str
  detail: str


class Refusals:
  """The refused inputs of a command. what: they are, in the plural."""

  def __init__(self, what: str):
    self.what = what
    self.found: list[Refusal] = []

  @contextlib.contextmanager
  def input(self, path: str | os.PathLike) -> Iterator[None]:
    """Whatever using an input raises becomes a refusal; the block ends there.

    A failing disk, a lack of permission and what ends a command for other reasons (JobFailed,
    Preempted) are raised as they are: the input is not to blame.
    """
    try:
      yield
    except (JobFailed, Preempted):
      raise
    except Refused as error:
      self.add(path, error.reason, error.detail)
    except InputError as error:
      self.add(path, UNUSABLE, str(error))
    except MemoryError:
      self.add(path, TOO_LARGE, "there is not enough memory for it")
    except Exception as error:
      if not blame.is_of_the_file(error):
        raise
      self.add(path, UNREADABLE, blame.said(error))

  def add(self, path: str | os.PathLike, reason: str, detail: str) -> None:
    """Notes one that is not used; one that was noted is not noted again."""
    refusal = Refusal(folders.shown(path), reason, detail)
    if refusal not in self.found:
      self.found.append(refusal)

  def write(self, out: pathlib.Path) -> None:
    """Writes them, one a line, if there are any; else takes an earlier run's away."""
    path = out / FILE
    lines = [json.dumps(dataclasses.asdict(one), sort_keys=True) + "\n" for one in self.found]
    if lines or path.is_file():
      atomic.write_text(path, "".join(lines))

  def said(self, total: int) -> str:
    """All of them in words, the first ones by name."""
    lines = []
    for one in self.found[:SHOWN]:
      is_named = one.path in one.detail or pathlib.PurePath(one.path).name in one.detail
      lines.append(one.detail if is_named else f"{one.path}: {one.detail}")
    if len(self.found) > SHOWN:
      lines.append(f"... and {len(self.found) - SHOWN} more")
    if total > 1:
      lines.append(f"({len(self.found)} of {total} {self.what} cannot be used)")
    return "\n".join(lines)

  def check(self, total: int, budget: float) -> None:
    """Raises InputError if more of them are refused than the budget allows, a share of all."""
    if len(self.found) > budget * total:
      raise InputError(self.said(total))

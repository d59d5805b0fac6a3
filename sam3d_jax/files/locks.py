"""One writer a folder: who writes to it, on which machine, and whether it still lives.

    with locks.hold(out, "launch.build_data"):
      ...                       # raises InUse if somebody else writes to `out`

A lock is a file, `<folder>/.writers/<slot>.<number>.json`, made whole under its name or not at all
(a hard link, or exclusive creation where the disk has no links), so that it holds on network disks
too. Its owner touches it every BEAT_SECONDS. An owner is gone when its process is (on this
machine), or when its file has not been touched for LEASE_SECONDS by the disk's own clock; then the
next writer takes the lock with the number after. The number is a fence: an owner that was only
asleep finds a higher one, or none of its own, at its next `check` and stops before it writes.

Writers that share the work of one folder give slots of their own and the name of their group.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import platform
import random
import sys
import threading
import time
from typing import Any
import uuid

from sam3d_jax.errors import JobFailed
from sam3d_jax.files import texts

FOLDER = ".writers"
LEASE_SECONDS = 120.0  # without a sign of life after which an owner counts as gone
BEAT_SECONDS = 15.0  # between signs of life
POLL_SECONDS = 1.0  # between looks at an owner of another machine
# what a disk without hard links says
WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EOPNOTSUPP)


class InUse(JobFailed):
  """Somebody else writes to the folder."""


class Lost(JobFailed):
  """Somebody else has taken the folder over while this process gave no sign of life."""


@dataclasses.dataclass(frozen=True)
class Owner:
  """A lock as it lies there.

  path: of its file. touched: when, by the disk's clock. record: what its owner wrote; empty if that
  cannot be read.
  """

  path: pathlib.Path
  touched: float
  record: dict[str, Any]

  @property
  def slot(self) -> str:
    return self.path.name.split(".")[0]

  @property
  def number(self) -> int:
    return int(self.path.name.split(".")[1])

  @property
  def is_here(self) -> bool:
    """Whether its process can be asked for: it is, or was, one of this machine's."""
    here = _this_process()
    for key in ("boot", "processes"):
      # a system that does not say has no machine in common with any
      if not here[key] or self.record.get(key) != here[key]:
        return False
    return True

  @property
  def is_running(self) -> bool:
    """Whether a process of this machine still runs."""
    pid = self.record["pid"]
    # a lock of this very process that it could not take away, its disk being gone
    if pid == os.getpid():
      tokens = [lock.token for lock in _held.values()]
      return self.record.get("token") in tokens
    start = _start_of(pid)
    return start is not None and start == self.record["start"]

  @property
  def is_ended(self) -> bool:
    """Whether it is known at once that the process is gone."""
    return self.is_here and not self.is_running

  def text(self, now: float) -> str:
    """Who it is. now: by the disk's clock."""
    what = self.record.get("what", "another process")
    pid = self.record.get("pid", "?")
    host = self.record.get("host", "another machine")
    since = self.record.get("since", "?")
    silent = max(0.0, now - self.touched)
    return f"{what} (process {pid} on {host}, since {since}, last sign of life {silent:.0f} s ago)"


class Lock:
  """A folder that this process writes to, until `release`."""

  def __init__(self, folder: pathlib.Path, path: pathlib.Path, token: str):
    self.folder = folder
    self.path = path
    self.holders = 1  # in this process
    self.token = token
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._beat, name="folder-lock", daemon=True)
    self._thread.start()

  @property
  def fence(self) -> int:
    """Higher than that of every owner before."""
    return int(self.path.name.split(".")[1])

  def check(self) -> None:
    """Raises Lost if the folder is somebody else's by now; to be called before what is written
    becomes visible.
    """
    # One that has slept, and that nobody has followed, goes on.
    with contextlib.suppress(OSError):
      os.utime(self.path)
    owner = _read(self.path)
    is_own = owner is not None and owner.record.get("token") == self.token
    slot = self.path.name.split(".")[0]
    following = self.path.with_name(f"{slot}.{self.fence + 1}.json")
    if is_own and not following.exists():
      return
    if not self.path.parent.exists():
      raise Lost(
        f"{self.folder}: the lock of this process is gone with all that lay beside it, and nothing "
        "more is written. Is the disk still mounted? Run the same command again then"
      )
    raise Lost(
      f"{self.folder}: this process gave no sign of life for too long, or its lock {self.path} was "
      "removed, and another one may write there now: nothing more is written. Run the same command "
      "again; it waits for the other one, or says who it is"
    )

  def release(self) -> None:
    """Lets the next writer in."""
    self.holders -= 1
    if self.holders:
      return
    _held.pop(self._key(), None)
    self._end.set()
    self._thread.join()
    with contextlib.suppress(OSError, Lost):
      self.check()
      self.path.unlink()
    # if nobody else shares the folder
    with contextlib.suppress(OSError):
      self.path.parent.rmdir()

  def _key(self) -> tuple[str, str]:
    return str(self.folder), self.path.name.split(".")[0]

  def _beat(self) -> None:
    while not self._end.wait(BEAT_SECONDS):
      # A disk that fails for a moment costs a beat.
      with contextlib.suppress(OSError):
        os.utime(self.path)


# of this process: (folder, slot) -> its lock
_held: dict[tuple[str, str], Lock] = {}


@contextlib.contextmanager
def hold(
  folder: str | os.PathLike,
  what: str,
  *,
  slot: str = "0",
  group: str = "",
  tell: Callable[[str], None] | None = None,
) -> Iterator[Lock]:
  """Writes to a folder alone while the block runs; see `take`."""
  lock = take(
    folder,
    what,
    slot=slot,
    group=group,
    tell=tell,
  )
  try:
    yield lock
  finally:
    lock.release()


def take(
  folder: str | os.PathLike,
  what: str,
  *,
  slot: str = "0",
  group: str = "",
  tell: Callable[[str], None] | None = None,
) -> Lock:
  """The lock of a folder, which is made if need be. A process that holds it gets it again.

  what: this program, for the messages of others. slot, group: writers of one group, in slots of
  their own, share the folder. tell: takes a line if it takes waiting: until an owner on another
  machine gives a sign of life, or its lease is over. Raises InUse naming who has it.
  """
  folder = pathlib.Path(folder).absolute()
  held = _held.get((str(folder), slot))
  if held is not None:
    held.holders += 1
    return held

  record = _this_process() | {
    "token": uuid.uuid4().hex,
    "what": what,
    "group": group,
    "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
  }
  seen: dict[pathlib.Path, float] = {}
  tell = tell or _tell
  while True:
    # Whoever is in the way and lives, or may.
    path = _next_path(folder, slot, group, seen, tell)
    if path is None:
      time.sleep(POLL_SECONDS)
      continue
    if not _create(path, record):
      continue

    # Two that came at once, in slots that do not go together: both see each other, both step back.
    others, _ = _owners(folder)
    rivals = [other for other in others if _in_the_way(other, slot, group) and other.path != path]
    gone = [other for other in rivals if other.is_ended or seen.get(other.path) == other.touched]
    if len(gone) < len(rivals):
      path.unlink(missing_ok=True)
      time.sleep(random.uniform(0.0, POLL_SECONDS))
      continue

    # The folder is this process's; those that are gone leave nothing behind.
    for other in rivals:
      other.path.unlink(missing_ok=True)
    lock = Lock(folder, path, record["token"])
    _held[str(folder), slot] = lock
    return lock


def check(path: str | os.PathLike) -> None:
  """Raises Lost if this process held the lock of a folder above `path` and has lost it."""
  path = pathlib.Path(path).absolute()
  for lock in list(_held.values()):
    if path.is_relative_to(lock.folder):
      lock.check()


def _next_path(
  folder: pathlib.Path,
  slot: str,
  group: str,
  seen: dict[pathlib.Path, float],
  tell: Callable[[str], None],
) -> pathlib.Path | None:
  """The lock to make; None if it is not known yet whether an owner lives.

  seen: when owners were last touched, of the looks so far. Raises InUse.
  """
  owners, now = _owners(folder)
  unknown = False
  for owner in owners:
    if not _in_the_way(owner, slot, group) or owner.is_ended:
      continue
    is_new = owner.path not in seen
    has_moved = seen.setdefault(owner.path, owner.touched) != owner.touched
    if owner.is_here or has_moved:
      raise InUse(
        f"{folder} is in use by {owner.text(now)}. Wait for it, end it there, or give another "
        f"folder; a process that is gone without a word is taken over after {LEASE_SECONDS:.0f} s"
      )
    if now - owner.touched < LEASE_SECONDS:
      if is_new:
        tell(
          f"{folder} was last written by {owner.text(now)}: waiting for a sign of life, "
          f"{LEASE_SECONDS:.0f} s at most"
        )
      unknown = True
  if unknown:
    return None
  numbers = [owner.number for owner in owners if owner.slot == slot]
  return folder / FOLDER / f"{slot}.{max(numbers, default=0) + 1}.json"


def _in_the_way(owner: Owner, slot: str, group: str) -> bool:
  """Whether an owner and a writer of this slot and group cannot both write."""
  shares = bool(group) and owner.record.get("group") == group
  return owner.slot == slot or not shares


def _owners(folder: pathlib.Path) -> tuple[list[Owner], float]:
  """The locks of a folder, and the present time by the clock of its disk."""
  place = folder / FOLDER
  place.mkdir(parents=True, exist_ok=True)
  # A file that is made now has the disk's time: no two machines' clocks are compared.
  probe = place / f".{uuid.uuid4().hex}"
  try:
    probe.touch()
    now = probe.stat().st_mtime
  finally:
    probe.unlink(missing_ok=True)

  owners = []
  for path in sorted(place.glob("*.json")):
    owner = _read(path)
    if owner is not None:
      owners.append(owner)
  return owners, now


def _read(path: pathlib.Path) -> Owner | None:
  """A lock as it lies there; None if it is gone."""
  try:
    # Opened, not only looked at: a network disk then asks its server.
    with path.open("rb") as file:
      touched = os.fstat(file.fileno()).st_mtime
      content = file.read()
  except FileNotFoundError:
    return None
  try:
    record = texts.parse_json(content)
  except texts.TextError:
    record = {}
  if not isinstance(record, dict):
    record = {}
  return Owner(path, touched, record)


def _create(path: pathlib.Path, record: dict[str, Any]) -> bool:
  """Makes a lock, whole; False if another process was quicker."""
  text = json.dumps(record, indent=2) + "\n"
  temporary = path.with_name(f".{record['token']}.part")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    try:
      os.link(temporary, path)
    except OSError as error:
      if error.errno not in WITHOUT_LINKS:
        raise
      with path.open("x") as file:
        file.write(text)
        os.fsync(file.fileno())
    return True
  except FileExistsError:
    return False
  except FileNotFoundError:
    # the one before has just removed the folder of locks
    return False
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def _this_process() -> dict[str, Any]:
  """What identifies this process, also among those of other containers and machines."""
  pid = os.getpid()
  return {
    "host": platform.node(),
    "boot": _line("/proc/sys/kernel/random/boot_id"),
    # containers number their processes each from 1
    "processes": _link("/proc/self/ns/pid"),
    "pid": pid,
    "start": _start_of(pid),
  }


def _start_of(pid: int) -> str | None:
  """When a process was created, in ticks after boot; None if it is gone.

  Numbers are given again, the two together are not.
  """
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return None
  # proc(5): behind the name, in brackets, come state (field 3) and start time (field 22).
  fields = stat.rpartition(")")[2].split()
  state, start = fields[0], fields[19]
  return None if state in "ZX" else start


def _line(path: str) -> str:
  try:
    return pathlib.Path(path).read_text().strip()
  except OSError:
    return ""


def _link(path: str) -> str:
  try:
    return os.readlink(path)
  except OSError:
    return ""


def _tell(line: str) -> None:
  print(line, file=sys.stderr, flush=True)

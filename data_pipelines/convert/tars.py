"""Objects in WebDataset tars: members `<key>.<field>` of one object.

They lie one after another as WebDataset packs them; other programs also leave them apart, with
entries of folders between them. As WebDataset does, what is no file and names that begin with a dot
(a Mac's `._` twins) are passed over. Nothing is unpacked onto the disk, and links are not followed.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import pathlib
import tarfile
from typing import BinaryIO

from sam3d_jax.errors import Refused
from sam3d_jax.files import blame, folders, texts

LARGEST_MEMBER = 1 << 30  # bytes of one member
LARGEST_OBJECT = 1 << 31  # bytes of an object's members, which are held in memory together
LARGEST_TEXT = 1 << 16  # bytes of a member that is read when a tar is indexed
LARGEST_READ = 1 << 24  # bytes that are read at once: no header of a member is longer


@dataclasses.dataclass(frozen=True)
class Found:
  """An object of a tar: where each run of its members begins, and the text of one field."""

  key: str
  offsets: tuple[int, ...]  # one where its members lie together
  text: str = ""


@dataclasses.dataclass(frozen=True)
class Index:
  """What a tar holds."""

  objects: tuple[Found, ...]
  foreign: int = 0  # files of other systems (folders.is_foreign), which are passed over
  damage: str = ""  # why it cannot be read on after these objects


@dataclasses.dataclass
class _Run:
  """Members of one key that lie together."""

  key: str
  offset: int
  # name of each field -> its text, where it is the field that is asked for
  texts: dict[str, str] = dataclasses.field(default_factory=dict)


def _split(name: str) -> tuple[str, str]:
  """(key, field) of a member: the key ends at the first dot of the file's name."""
  # WebDataset's rule: folders belong to the key, their dots do not count.
  folder, slash, base = name.rpartition("/")
  key, _, field = base.partition(".")
  return folder + slash + key, field


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
  """The members in order. Raises tarfile.ReadError where one would lead back to those before it."""
  for member in tar:
    if member.size < 0:
      raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
    yield member


def _is_passed_over(member: tarfile.TarInfo) -> bool:
  """Whether a member is no part of an object: a folder, a device, another system's file."""
  _, _, base = member.name.rpartition("/")
  is_file = member.isreg() or member.issym() or member.islnk()
  return not is_file or base.startswith(".") or _is_foreign(member)


def _is_foreign(member: tarfile.TarInfo) -> bool:
  """Whether a member is a file of another system."""
  return member.isreg() and any(map(folders.is_foreign, member.name.split("/")))


def _obstacle(member: tarfile.TarInfo) -> str | None:
  """Why a member is not read, with the remedy; None if it is a plain file of a size that fits."""
  if member.issym() or member.islnk():
    return (
      f"{member.name} is a link to {member.linkname}; pack the files themselves (tar --dereference "
      "--hard-dereference)"
    )
  if member.issparse():
    return f"{member.name} is a sparse file; pack it without tar --sparse"
  if member.size > LARGEST_MEMBER:
    return f"{member.name} has {member.size} bytes, at most {LARGEST_MEMBER} are read"
  return None


class _Bounded:
  """A file that is read in pieces: what a header says of its length is not believed."""

  def __init__(self, file: BinaryIO):
    self._file = file
    self.seek = file.seek
    self.tell = file.tell

  def read(self, size: int = -1) -> bytes:
    if not 0 <= size <= LARGEST_READ:
      raise tarfile.ReadError(f"a header of {size} bytes")
    return self._file.read(size)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
  """The bytes of a member. Raises Refused (unreadable) for what is no plain file that fits."""
  why = _obstacle(member)
  if why is not None:
    raise Refused("unreadable", why)
  pieces = []
  with tar.extractfile(member) as stream:
    while piece := stream.read(LARGEST_READ):
      pieces.append(piece)
  return b"".join(pieces)


def scan(path: pathlib.Path, field: str) -> Index:
  """The objects of a tar, with the text of `field` or "", in the order in which they begin.

  Runs of one key whose fields differ are one object; where they repeat, an object of their own
  begins. Raises OSError where the disk fails.
  """
  runs: list[_Run] = []
  foreign, damage = 0, ""
  try:
    # Headers only: contents are skipped unless they are asked for.
    with path.open("rb") as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:
      for member in _members(tar):
        if _is_passed_over(member):
          foreign += _is_foreign(member)
          continue
        key, name = _split(member.name)
        # Another key begins the next run.
        if not runs or key != runs[-1].key:
          runs.append(_Run(key, member.offset))
        runs[-1].texts[name] = ""
        is_short = member.size <= LARGEST_TEXT
        if name == field and is_short and _obstacle(member) is None:
          content = _content(tar, member)
          runs[-1].texts[name] = texts.decode(content).strip()
  except Exception as error:
    if not blame.is_of_the_file(error):
      raise
    damage = f"{path.name}: not a readable tar ({error})"
    # the damage may lie in what was read last
    del runs[-1:]
  return Index(_joined(runs, field), foreign, damage)


def _joined(runs: Sequence[_Run], field: str) -> tuple[Found, ...]:
  """The objects that runs of members make."""
  objects: list[Found] = []
  fields_of: list[set[str]] = []
  latest: dict[str, int] = {}  # key -> which of the objects
  for run in runs:
    text = run.texts.get(field, "")
    place = latest.get(run.key)

    # An object of which nothing repeats goes on; else one begins.
    if place is not None and fields_of[place].isdisjoint(run.texts):
      before = objects[place]
      offsets = (*before.offsets, run.offset)
      objects[place] = Found(run.key, offsets, text or before.text)
      fields_of[place].update(run.texts)
    else:
      latest[run.key] = len(objects)
      objects.append(Found(run.key, (run.offset,), text))
      fields_of.append(set(run.texts))
  return tuple(objects)


def read(path: pathlib.Path, offsets: Sequence[int]) -> Mapping[str, bytes]:
  """field -> bytes of the object whose runs of members begin at `offsets`. Raises Refused
  (unreadable).
  """
  fields: dict[str, bytes] = {}
  for offset in offsets:
    try:
      with path.open("rb") as file:
        file.seek(offset)
        with tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:
          fields |= _run_at(tar)
        total = sum(map(len, fields.values()))
        if total > LARGEST_OBJECT:
          detail = f"an object of {total} bytes, at most {LARGEST_OBJECT} are read"
          raise Refused("unreadable", detail)
    except Refused as error:
      raise Refused(error.reason, f"{path.name} at byte {offset}: {error.detail}") from error
    except Exception as error:
      if not blame.is_of_the_file(error):
        raise
      raise Refused("unreadable", f"{path.name} at byte {offset}: {error}") from error
  return fields


def _run_at(tar: tarfile.TarFile) -> dict[str, bytes]:
  """field -> bytes of the run of members with which an opened tar begins."""
  fields: dict[str, bytes] = {}
  wanted = None
  for member in _members(tar):
    if _is_passed_over(member):
      continue
    key, name = _split(member.name)
    if wanted is None:
      wanted = key
    # The next run begins.
    if key != wanted:
      break
    fields[name] = _content(tar, member)
  return fields

"""Objects in WebDataset tars: members `<key>.<field>` of one object lie one after another."""

from collections.abc import Iterator, Mapping
import pathlib
import tarfile

from sam3d_jax.errors import Refused


def _split(name: str) -> tuple[str, str]:
  """(key, field) of a member: the key ends at the first dot of the file's name."""
  folder, slash, base = name.rpartition("/")
  key, _, field = base.partition(".")
  return folder + slash + key, field


def scan(path: pathlib.Path, field: str) -> Iterator[tuple[str, int, str]]:
  """(key, offset of its first member, text of `field` or "") of every object in a tar. Raises
  Refused (unreadable).
  """
  try:
    with tarfile.open(path, "r:") as tar:
      found: tuple[str, int, str] | None = None
      for member in tar:
        key, name = _split(member.name)
        # Another key begins the next object.
        if found is None or key != found[0]:
          if found is not None:
            yield found
          found = (key, member.offset, "")
        if name == field:
          text = tar.extractfile(member).read().decode().strip()
          found = (*found[:2], text)
      if found is not None:
        yield found
  except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
    raise Refused("unreadable", f"{path.name}: not a readable tar ({error})") from error


def read(path: pathlib.Path, offset: int) -> Mapping[str, bytes]:
  """field -> bytes of the object whose first member stands at `offset`. Raises Refused
  (unreadable).
  """
  fields: dict[str, bytes] = {}
  wanted = None
  try:
    with path.open("rb") as file:
      file.seek(offset)
      with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
          key, name = _split(member.name)
          if wanted is None:
            wanted = key
          if key != wanted:
            break
          fields[name] = tar.extractfile(member).read()
  except (tarfile.TarError, OSError) as error:
    raise Refused("unreadable", f"{path.name} at byte {offset}: {error}") from error
  return fields

"""Where candidates come from: `NAME=KIND:PATH`.

    meshes   PATH/PHOTO/NUMBER/*.glb: files that somebody made, for the object NUMBER of PHOTO

A kind is one entry of KINDS.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import pathlib

from data_pipelines.engine.proposals import Proposed, Wanting
from sam3d_jax.errors import InputError
from sam3d_jax.files import meshes, names


@dataclasses.dataclass(frozen=True)
class Generator:
  """One source of candidates.

  name: generator that the candidates are of, "family" or "family/version". path: of its kind.
  """

  name: str
  kind: str
  path: pathlib.Path

  def propose(self, target: Wanting, samples: int) -> list[Proposed]:
    """Up to `samples` candidates of an object."""
    return list(KINDS[self.kind](self, target, samples))


def parse(text: str) -> Generator:
  """The generator of a flag. Raises InputError."""
  name, equals, rest = text.partition("=")
  kind, colon, path = rest.partition(":")
  if not (name and equals and colon and path):
    raise InputError(f"--generator {text!r}: write NAME=KIND:PATH, as sam3d/1=meshes:PROPOSALS")
  if kind not in KINDS:
    raise InputError(f"--generator {text!r}: kind {kind!r} is not one of {', '.join(KINDS)}")
  found = pathlib.Path(path)
  if not found.exists():
    raise InputError(f"--generator {text!r}: {path} does not exist")
  return Generator(name, kind, found)


def from_meshes(generator: Generator, target: Wanting, samples: int) -> Iterator[Proposed]:
  """Files of the object's own folder, by name."""
  folder = generator.path / names.file_name(target.photo) / str(target.number)
  if not folder.is_dir():
    return
  files = sorted(path for path in folder.iterdir() if path.suffix.lower() in meshes.SUFFIXES)
  for path in files[:samples]:
    # what cannot be read is told now, not when a person has to look at it
    meshes.read(path)
    yield Proposed(generator.name, path.read_bytes(), path.suffix.lower())


KINDS: dict[str, Callable[[Generator, Wanting, int], Iterator[Proposed]]] = {
  "meshes": from_meshes,
}


def shares(generators: Sequence[Generator], samples: int) -> list[int]:
  """How many of `samples` candidates each generator makes; the first ones make one more."""
  each, more = divmod(samples, len(generators))
  return [each + (number < more) for number in range(len(generators))]

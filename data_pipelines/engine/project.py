"""A project of the data engine: a folder with its settings, its store and, without --db, its
database.
"""

import dataclasses
import json
import pathlib

from data_pipelines.engine.blobs import Blobs
from data_pipelines.engine.database import Database
from sam3d_jax import sections
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic

FILE = "project.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a project is told once, when it is made.

  family: generator family of the model that is trained.
  database: URL; empty: `engine.db` in the folder.
  store: folder or fsspec URL of the files; empty: `store` in the folder.
  candidates: that an object gets in a round.
  rating_max: the best rating; the worst is 0.
  artist_below: winners rated lower go to an artist.
  lease_minutes: how long a task waits for a person who went away.
  overlap: share of the rated objects that are asked of a second person, to see who agrees.
  gold: how many people are asked what a lead has decided.
  seed: of orders and sides.
  """

  family: str = "sam3d"
  database: str = ""
  store: str = ""
  candidates: int = 8
  rating_max: float = 5.0
  artist_below: float = 1.5
  lease_minutes: float = 30.0
  overlap: float = 0.05
  gold: int = 3
  seed: int = 0

  def __post_init__(self):
    sections.check_positive(self, "candidates", "rating_max", "lease_minutes")
    if not 0 <= self.overlap <= 1 or self.gold < 0:
      raise sections.FieldError(
        f"overlap = {self.overlap}, gold = {self.gold}: a share of 0 to 1, and 0 or more people"
      )


@dataclasses.dataclass
class Project:
  """An open project."""

  folder: pathlib.Path
  settings: Settings
  database: Database
  blobs: Blobs

  def close(self) -> None:
    self.database.close()


def create(folder: pathlib.Path, settings: Settings) -> Project:
  """Makes a project. Raises InputError for a folder that holds one, or anything else."""
  check_new(folder)
  folder.mkdir(parents=True, exist_ok=True)
  project = _opened(folder, settings)
  project.database.upgrade()
  # last: a folder with settings is a whole project
  atomic.write_json(folder / FILE, {"format": FORMAT, **dataclasses.asdict(settings)})
  return project


def check_new(folder: pathlib.Path) -> None:
  """Raises InputError for a folder that holds a project, or anything else."""
  if (folder / FILE).exists():
    raise InputError(f"{folder} holds a project already: add to it, or name another folder")
  if folder.exists() and any(folder.iterdir()):
    raise InputError(f"{folder} is not empty: name a folder that is, or a new one")


def read(folder: pathlib.Path, database: str = "") -> Project:
  """Opens a project.

  database: URL in place of the project's own. Raises InputError for a folder without a project and
  for tables of another version.
  """
  project = unchecked(folder, database)
  project.database.check_version()
  return project


def unchecked(folder: pathlib.Path, database: str = "") -> Project:
  """The same without a look at the tables, for upgrading them."""
  path = folder / FILE
  try:
    stated = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise InputError(
      f"{path}: no such file; make a project with `launch.engine create --project {folder}`"
    ) from error
  except ValueError as error:
    raise InputError(f"{path}: {error}: restore it from a backup") from error
  if not isinstance(stated, dict) or stated.get("format") != FORMAT:
    raise InputError(f"{path}: it is not of format {FORMAT}: use the engine that made it")
  del stated["format"]
  settings = sections.typed(Settings, stated, str(path))
  if database:
    settings = dataclasses.replace(settings, database=database)
  return _opened(folder, settings)


def _opened(folder: pathlib.Path, settings: Settings) -> Project:
  url = settings.database or f"sqlite:///{(folder / 'engine.db').absolute()}"
  store = settings.store or str(folder / "store")
  return Project(folder, settings, Database(url), Blobs(store))

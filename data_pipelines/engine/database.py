"""The engine's database: SQLite in the project's folder, or PostgreSQL for teams.

SQLite takes one writer at a time. A transaction that begins as a reader and becomes a writer fails
under load whatever its timeout, so every transaction begins as a writer (BEGIN IMMEDIATE), and one
server process is all that writes. `synchronous = FULL`: what was acknowledged survives a loss of
power.
"""

from collections.abc import Iterator
import contextlib
import pathlib
import sqlite3
import threading
import time

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
import sqlalchemy
from sqlalchemy import exc, orm

from sam3d_jax.errors import InputError, JobFailed

MIGRATIONS = pathlib.Path(__file__).with_name("migrations")
BUSY_MS = 30_000  # that a writer waits for another one
SCHEMES = ("sqlite", "postgresql")


class Database:
  """Transactions on the database of a URL.

  Raises InputError for a URL that is neither SQLite nor PostgreSQL.
  """

  def __init__(self, url: str):
    self.url = _with_driver(url)
    self.engine = sqlalchemy.create_engine(self.url, pool_pre_ping=True)
    self.is_sqlite = self.engine.dialect.name == "sqlite"
    # Writers of this process queue here rather than sleeping on the file's lock, which is unfair.
    self._writer = threading.Lock() if self.is_sqlite else contextlib.nullcontext()
    if self.is_sqlite:
      _prepare_sqlite(self.engine)
    self._session = orm.sessionmaker(self.engine, expire_on_commit=False)

  @contextlib.contextmanager
  def transaction(self) -> Iterator[orm.Session]:
    """A session whose changes are on disk when the block ends, all or none."""
    with self._writer, self._session.begin() as session:
      yield session

  def now(self, session: orm.Session) -> float:
    """Seconds since 1970 by the clock that all writers share: leases compare no two clocks."""
    if self.is_sqlite:
      return time.time()
    moment = session.scalar(sqlalchemy.text("select extract(epoch from clock_timestamp())"))
    return float(moment)

  def upgrade(self) -> None:
    """Brings the tables to this version of the engine; makes them in an empty database."""
    with self.reachable(), self.engine.begin() as connection:
      command.upgrade(_alembic(connection), "head")

  def check_version(self) -> None:
    """Raises InputError for a database that this version of the engine does not know."""
    script = ScriptDirectory.from_config(_alembic(None))
    with self.reachable(), self.engine.connect() as connection:
      found = MigrationContext.configure(connection).get_current_revision()
    head = script.get_current_head()
    if found != head:
      raise InputError(
        f"database {self.shown}: its tables are of version {found or 'none'}, this engine's of "
        f"{head}: back it up and run `launch.engine upgrade`, or use the engine that made it"
      )

  @property
  def shown(self) -> str:
    """The URL without its password."""
    return self.engine.url.render_as_string(hide_password=True)

  @contextlib.contextmanager
  def reachable(self) -> Iterator[None]:
    """Raises JobFailed in place of a driver's error where the database does not answer."""
    try:
      yield
    except exc.OperationalError as error:
      reason = str(error.orig).strip().splitlines()[0]
      raise JobFailed(f"database {self.shown}: {reason}") from error

  def close(self) -> None:
    self.engine.dispose()


def _with_driver(url: str) -> str:
  """The URL as SQLAlchemy takes it. Raises InputError."""
  scheme, separator, rest = url.partition("://")
  if not separator or scheme not in SCHEMES:
    raise InputError(
      f"--db {url!r}: give postgresql://USER@HOST/NAME, or nothing for SQLite in the project"
    )
  driver = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}[scheme]
  return f"{driver}://{rest}"


def _prepare_sqlite(engine: sqlalchemy.Engine) -> None:
  """Durable, with writers that wait for each other."""

  @sqlalchemy.event.listens_for(engine, "connect")
  def set_up(connection: sqlite3.Connection, _record) -> None:
    connection.isolation_level = None  # transactions begin as below, not as the driver guesses
    for pragma in (
      "journal_mode = WAL",
      "synchronous = FULL",
      "foreign_keys = ON",
      f"busy_timeout = {BUSY_MS}",
    ):
      connection.execute(f"PRAGMA {pragma}")

  @sqlalchemy.event.listens_for(engine, "begin")
  def begin(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _alembic(connection: sqlalchemy.Connection | None) -> Config:
  config = Config()
  config.set_main_option("script_location", str(MIGRATIONS))
  config.attributes["connection"] = connection
  return config

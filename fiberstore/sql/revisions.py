"""The newest revision, told without Alembic, which takes long to import."""

import threading
from functools import cache
from importlib.resources import files
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

VERSION_TABLE = "fiberstore_alembic_version"
_STORED: sa.Select[str] = sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))

# Threads that open a store at once are not to open a connection each, which its pool would keep.
_one_at_a_time = threading.Lock()


def is_newest(engine: sa.Engine) -> bool:
    """Return True if the database is at the newest revision of this release, and nothing else."""
    with _one_at_a_time, engine.connect() as connection:
        try:
            return connection.scalars(_STORED).all() == [newest(migrations())]
        except ProgrammingError:  # it has no such table, or not for everybody; Alembic tells
            return False


@cache
def newest(folder: Path) -> str:
    """Return the newest revision of the migrations in a folder, whose files begin with their revisions."""
    return max(file.name.partition("_")[0] for file in (folder / "versions").glob("[0-9]*.py"))


def migrations() -> Path:
    """Return the folder of the migrations, in a clone or in an installed package."""
    package = Path(str(files("fiberstore")))
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"

"""How commands open a store that they change, and what shows that they are at work."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fiberstore.cli.opening import check_tables
from fiberstore.cli.render import make_console
from fiberstore.duckdb import DuckDBStorage
from fiberstore.engine import create_engine
from fiberstore.errors import DatabaseError, SchemaVersionError, translate_errors
from fiberstore.lifecycle import Compacted
from fiberstore.process import IN_MEMORY


@contextmanager
def open_to_change(db: str) -> Iterator[DuckDBStorage]:
    """Open a store that is there, with the tables of this release; nothing is made or upgraded.

    Raises:
        DatabaseError: It is in memory or does not exist, has no tables, or those of an older release.
        SchemaVersionError: It has the tables of a newer release.
    """
    _check_file(db)
    with DuckDBStorage(db) as storage:
        check_tables(storage)
        check_revision(storage, db)
        yield storage


def _check_file(db: str) -> None:
    database = create_engine(db).url.database or ""  # opens nothing
    if database.startswith(IN_MEMORY):
        raise DatabaseError(f"{db} is empty, there is nothing to change; give the path of a store")
    if not Path(database).exists():
        raise DatabaseError(
            f"{database} does not exist; give the path of a store, `fiberstore ingest` makes one"
        )


def check_revision(storage: DuckDBStorage, db: str) -> None:
    """Check that a store has the tables of this release.

    Raises:
        DatabaseError: They are those of an older release.
        SchemaVersionError: They are those of a newer release.
    """
    from fiberstore import schema

    with translate_errors(), storage.session() as session:
        found = schema.current(session.connection())
    head = schema.head()
    if found == head:
        return
    if not schema.is_known(found):
        raise SchemaVersionError(str(found), head)
    raise DatabaseError(
        f"{storage.engine.url.database} has the tables of an older release (revision {found or 'none'}, "
        f"this one needs {head}); fiberstore db upgrade --db {shlex.quote(db)} brings them up to date"
    )


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show, on a terminal, what is being done and for how long."""
    console = make_console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield


def compact_file(storage: DuckDBStorage) -> Compacted:
    """Write the file anew, and show on a terminal for how long that takes."""
    with working("writing the file anew"):
        return storage.compact()


def shown_sizes(compacted: Compacted) -> str:
    """Return what a compaction has done, in words."""
    return f"the file had {decimal(compacted.bytes_before)}, and has {decimal(compacted.bytes_after)} now"

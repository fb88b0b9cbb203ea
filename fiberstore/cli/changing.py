"""Opening of stores by the commands that change them, and the display of their progress."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fiberstore.cli.console import make_console
from fiberstore.cli.stores import check_tables, shown_target, store_name
from fiberstore.contract.results import Compacted
from fiberstore.duckdb.engine import create_engine
from fiberstore.errors import DatabaseError, SchemaVersionError
from fiberstore.opening import open_storage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.engine import IN_MEMORY, is_postgresql
from fiberstore.sql.revisions import is_newest
from fiberstore.sql.translate import translate_errors


@contextmanager
def open_or_make(db: str, config_version: int = 0) -> Iterator[SqlStorage]:
    """Open a store with the tables of this release; a file and tables that are not there are made.

    Raises:
        DatabaseError: It cannot be opened; a server's database must be there.
        SchemaVersionError: It has the tables of a newer release.
    """
    with open_storage(db, config_version=config_version) as storage:
        storage.init_schema()
        yield storage


@contextmanager
def open_to_change(db: str) -> Iterator[SqlStorage]:
    """Open a store that is there, with the tables of this release; nothing is made or upgraded.

    Raises:
        DatabaseError: It is in memory or does not exist, has no tables, or those of an older release.
        SchemaVersionError: It has the tables of a newer release.
    """
    if not is_postgresql(db):
        _check_file(db)
    with open_storage(db) as storage:
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


def check_revision(storage: SqlStorage, db: str) -> None:
    """Check that a store has the tables of this release.

    Raises:
        DatabaseError: They are those of an older release.
        SchemaVersionError: They are those of a newer release.
    """
    with translate_errors():
        if is_newest(storage.engine):
            return
    from fiberstore.sql import migrate

    with translate_errors(), storage.session() as session:
        found = migrate.current(session.connection())
        is_usable = found is not None and migrate.is_usable(session.connection(), found)
    head = migrate.head()
    if is_usable:
        return
    if not migrate.is_known(found):
        raise SchemaVersionError(str(found), head)
    raise DatabaseError(
        f"{store_name(storage)} has the tables of an older release (revision {found or 'none'}, this one "
        f"needs {head}); fiberstore db upgrade {db_option(db)} brings them up to date"
    )


def db_option(db: str) -> str:
    """Return the option that names a store again, for commands that messages suggest."""
    return f"--db {shlex.quote(shown_target(db))}"


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal the running work and its duration."""
    console = make_console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield


def compact_store(storage: SqlStorage) -> Compacted:
    """Write the store anew, and show on a terminal for how long that takes."""
    with working("writing the store anew"):
        return storage.compact()


def shown_sizes(compacted: Compacted) -> str:
    """Describe the outcome of a compaction."""
    return f"the store took {decimal(compacted.bytes_before)}, and takes {decimal(compacted.bytes_after)} now"

"""Copies of a database, each one snapshot, taken while others read and write."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self, TypeVar
from uuid import uuid4

import duckdb

from fiberstore.atomic_files import LOG_SUFFIXES, new_file
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.duckdb.shielding import Interruption, shielded
from fiberstore.errors import DatabaseError
from fiberstore.sql.models import TABLES_BESIDE
from fiberstore.sql.translate import translate_errors

T = TypeVar("T")

_CHECKPOINT_TIMEOUT_S, _PAUSE_S = 5.0, 0.02
_BESIDE = tuple(f'."{name}"' for name in TABLES_BESIDE.values())
_logger = logging.getLogger(__name__)


def write_backup(connection: DuckDBConnection, target: str | os.PathLike[str]) -> None:
    """Copy a whole database, an application's own tables included, into a new file.

    Rows are copied and indexes built anew, so the copy is compact, and damage of an index is not copied. It
    has its name once it was opened by itself, and has as many rows of each table as the snapshot.

    Args:
        connection: One to the database.
        target: Path of a file that does not exist yet; see ``new_file``.

    Raises:
        DatabaseError: The target exists, its folder does not, or the copy failed; then there is no copy.
    """
    shielded(lambda interruption: _write_backup(connection, target, interruption))
    _logger.info("backup: %d bytes written", Path(target).stat().st_size)


def refuse_logs(path: Path) -> None:
    """Refuse a database of which a part is still in a log beside it."""
    for suffix in LOG_SUFFIXES:
        log = path.with_name(path.name + suffix)
        if log.exists() and log.stat().st_size:
            raise DatabaseError(
                f"{log} is there after a WAL checkpoint, so {path.name} is not whole; try again"
            )


def _write_backup(
    connection: DuckDBConnection, target: str | os.PathLike[str], interruption: Interruption
) -> None:
    with new_file(target) as path, translate_errors(), Copy.attached(connection, path.parent) as copy:
        rows = copy.fill(interruption, row_counts)
        copy.detach()
        refuse_logs(copy.path)
        copy.path.rename(path)
        verify(path, rows)


class Copy:
    """A copy of a database, which DuckDB's instance of that has attached.

    It is hidden, or others would come upon it in the catalog and keep it from its checkpoint; and it has no
    write-ahead log, in which a part of it might stay. Statements have connections of their own, since they
    need no turn of the ``ChangeLock``, and only some of them may be interrupted.

    Attributes:
        path: Its file. Sessions that DETACH leaves with it still call it by this name.
        alias: Its name in statements.
    """

    def __init__(self, connection: DuckDBConnection, path: Path) -> None:
        self.path = path
        self.alias = f"backup_{uuid4().hex}"
        self._connection = connection
        self._is_attached = False

    @classmethod
    @contextmanager
    def attached(cls, connection: DuckDBConnection, folder: Path) -> Iterator[Self]:
        """Yield a new one in a file of the folder, attached until the block ends or ``detach`` is called."""
        copy = cls(connection, folder / uuid4().hex)
        try:
            copy._attach()
            yield copy
        finally:
            copy.detach()

    def _attach(self) -> None:
        with closing(self._connection.sibling()) as keeper:
            keeper.execute(
                f"ATTACH ? AS {self.alias} (READ_WRITE, HIDDEN true, RECOVERY_MODE no_wal_writes)",
                [str(self.path)],
            )
        self._is_attached = True
        if (mode := self._connection.file_mode()) is not None:
            self.path.chmod(mode)  # who may not read the store may not read its copy

    def detach(self) -> None:
        """Let DuckDB close the file, if it has not."""
        if self._is_attached:
            with closing(self._connection.sibling()) as keeper:
                keeper.execute(f"DETACH {self.alias}")
            self._is_attached = False

    def fill(self, interruption: Interruption, look: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Copy a snapshot, and return what ``look`` sees in it."""
        with closing(self._connection.sibling()) as copier, interruption.calling(copier.interrupt):
            ((source,),) = copier.execute("SELECT current_database()").fetchall()
            copier.begin()
            _refuse_triggers(copier)
            _keep_order(copier)
            copier.execute(f"COPY FROM DATABASE {_quoted(source)} TO {self.alias}")
            for name in _tables(copier):
                if name.endswith(_BESIDE):  # no part of the store
                    copier.execute(f"DROP TABLE {self.alias}.{name}")
            seen = look(copier)
            copier.commit()
        self.checkpoint(interruption)
        return seen

    def checkpoint(self, interruption: Interruption) -> None:
        """Move what was written into the file; DETACH does so only if nobody else refers to the database."""
        deadline = time.monotonic() + _CHECKPOINT_TIMEOUT_S
        with closing(self._connection.sibling()) as keeper:
            while True:
                interruption.check()
                try:
                    keeper.execute(f"CHECKPOINT {self.alias}")
                except duckdb.TransactionException as error:
                    if time.monotonic() >= deadline:
                        raise DatabaseError(
                            f"a transaction of this process uses the unfinished copy {self.alias}; end it, "
                            "and try again"
                        ) from error
                    time.sleep(_PAUSE_S)
                else:
                    return


def _keep_order(raw: duckdb.DuckDBPyConnection) -> None:
    """Have rows copied in their order; the instance keeps the setting, since there may be other copies."""
    ((keeps_order,),) = raw.execute("SELECT current_setting('preserve_insertion_order')").fetchall()
    if not keeps_order:
        raw.execute("SET GLOBAL preserve_insertion_order = true")


def _refuse_triggers(raw: duckdb.DuckDBPyConnection) -> None:
    """Refuse a database with triggers, which DuckDB would leave out of a copy without a word."""
    triggers = (
        "SELECT trigger_name, table_name FROM duckdb_triggers() WHERE database_name = current_database()"
    )
    for trigger, table in raw.execute(triggers).fetchall():
        raise DatabaseError(
            f"DuckDB would leave the trigger {trigger} of the table {table} out of the copy; drop it before, "
            "and create it again afterwards"
        )


def verify(path: Path, rows: dict[str, int]) -> None:
    """Open a copy by itself, and compare the rows of its tables."""
    with duckdb.connect(path, read_only=True, config={"autoinstall_known_extensions": "false"}) as copy:
        found = row_counts(copy)
    if found != rows:
        differing = sorted(table for table in rows | found if rows.get(table) != found.get(table))
        raise DatabaseError(
            f"the copy does not hold what the store does, in {', '.join(differing)}; try again"
        )


def row_counts(raw: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Return how many rows the tables of the current database have; not those that are being written."""
    counts = {}
    for name in _tables(raw):
        if not name.endswith(_BESIDE):
            ((counts[name],),) = raw.execute(f"SELECT count(*) FROM {name}").fetchall()  # noqa: S608  # quoted
    return counts


def _tables(raw: duckdb.DuckDBPyConnection) -> list[str]:
    tables = raw.execute(
        "SELECT schema_name, table_name FROM duckdb_tables() "
        "WHERE database_name = current_database() AND NOT internal AND NOT temporary"
    ).fetchall()
    return [f"{_quoted(schema)}.{_quoted(table)}" for schema, table in tables]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

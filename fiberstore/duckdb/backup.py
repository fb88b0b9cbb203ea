"""Copies of a database, each one snapshot, taken while others read and write."""

import logging
import os
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import duckdb

from fiberstore.atomic_files import LOG_SUFFIXES, new_file
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.duckdb.shielding import Interruption, shielded
from fiberstore.errors import DatabaseError
from fiberstore.sql.models import TABLES_BESIDE
from fiberstore.sql.translate import translate_errors

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
    with new_file(target) as path, translate_errors():
        # Sessions that DETACH leaves with the file go on calling it by this name.
        attached = path.with_name(uuid4().hex)
        rows = _copy(connection, attached, interruption)
        refuse_logs(attached)
        attached.rename(path)
        _verify(path, rows)


def _copy(connection: DuckDBConnection, path: Path, interruption: Interruption) -> dict[str, int]:
    """Copy a snapshot, and return how many rows its tables have.

    It has connections of its own, since it needs no turn of the ``ChangeLock``, and only one of them may be
    interrupted. The copy is hidden, or others would come upon it in the catalog and keep it from its
    checkpoint; and it has no write-ahead log, in which a part of it might stay.
    """
    alias = f"backup_{uuid4().hex}"
    with closing(connection.sibling()) as keeper, closing(connection.sibling()) as copier:
        keeper.execute(
            f"ATTACH ? AS {alias} (READ_WRITE, HIDDEN true, RECOVERY_MODE no_wal_writes)", [str(path)]
        )
        try:
            if (mode := connection.file_mode()) is not None:
                path.chmod(mode)  # who may not read the store may not read its copy
            with interruption.calling(copier.interrupt):
                ((source,),) = copier.execute("SELECT current_database()").fetchall()
                copier.begin()
                copier.execute(f"COPY FROM DATABASE {_quoted(source)} TO {alias}")
                rows = _row_counts(copier)
                for name in [name for name in rows if name.endswith(_BESIDE)]:  # no part of the store
                    copier.execute(f"DROP TABLE {alias}.{name}")
                    del rows[name]
                copier.commit()
            _wal_checkpoint(keeper, alias, interruption)
        finally:
            keeper.execute(f"DETACH {alias}")
    return rows


def _wal_checkpoint(raw: duckdb.DuckDBPyConnection, alias: str, interruption: Interruption) -> None:
    """Move what was written into the file; DETACH does so only if nobody else refers to the database."""
    deadline = time.monotonic() + _CHECKPOINT_TIMEOUT_S
    while True:
        interruption.check()
        try:
            raw.execute(f"CHECKPOINT {alias}")
        except duckdb.TransactionException as error:
            if time.monotonic() >= deadline:
                raise DatabaseError(
                    f"a transaction of this process uses the unfinished copy {alias}; end it, and try again"
                ) from error
            time.sleep(_PAUSE_S)
        else:
            return


def _verify(path: Path, rows: dict[str, int]) -> None:
    """Open a copy by itself, and compare the rows of its tables."""
    with duckdb.connect(path, read_only=True, config={"autoinstall_known_extensions": "false"}) as copy:
        found = _row_counts(copy)
    if found != rows:
        differing = sorted(table for table in rows | found if rows.get(table) != found.get(table))
        raise DatabaseError(
            f"the copy does not hold what the store does, in {', '.join(differing)}; try again"
        )


def _row_counts(raw: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Return how many rows the tables of the current database have."""
    tables = raw.execute(
        "SELECT schema_name, table_name FROM duckdb_tables() "
        "WHERE database_name = current_database() AND NOT internal AND NOT temporary"
    ).fetchall()
    counts = {}
    for schema, table in tables:
        name = f"{_quoted(schema)}.{_quoted(table)}"
        ((counts[name],),) = raw.execute(f"SELECT count(*) FROM {name}").fetchall()  # noqa: S608  # quoted
    return counts


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

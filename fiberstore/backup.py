"""Copies of a database, each one snapshot, taken while others read and write."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from fiberstore.dbapi import Connection
from fiberstore.errors import DatabaseError, translate_errors
from fiberstore.records import check_text

_SUFFIXES = ("", ".wal", ".wal.checkpoint", ".wal.recovery")
_logger = logging.getLogger(__name__)


def write_backup(connection: Connection, target: str | os.PathLike[str]) -> None:
    """Copy a whole database, an application's own tables included, into a new file.

    Rows are copied and indexes built anew, so the copy is compact, and damage of an index is not copied.

    Args:
        connection: One outside a transaction.
        target: Path of a file that does not exist yet; see ``new_file``.

    Raises:
        DatabaseError: The target exists, its folder does not, or the copy failed; then there is no copy.
    """
    with new_file(target) as path, translate_errors():
        _copy(connection, path)
    _logger.info("backup: %d bytes written", Path(target).stat().st_size)


@contextmanager
def new_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the block a path to write to, and the file its own name once the block has ended.

    It is on disk by then, so a file of the target's name is always whole. Until then its name is hidden, and
    ends in ``.partial``.

    Raises:
        DatabaseError: The target exists, its folder does not, or it cannot be written.
    """
    with _new(target) as (partial, path):
        try:
            yield partial
            _sync(partial)
            _give_name(partial, path)
            _sync(path.parent)
        finally:
            for suffix in _SUFFIXES:
                partial.with_name(partial.name + suffix).unlink(missing_ok=True)


@contextmanager
def new_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the block a folder to write in, and the folder its own name once the block has ended.

    The block has files in folders of the folder put on disk; the rest is as for ``new_file``.

    Raises:
        DatabaseError: The target exists, its folder does not, or it cannot be written.
    """
    with _new(target) as (partial, path):
        try:
            partial.mkdir()
            yield partial
            for written in (*partial.iterdir(), partial):
                _sync(written)
            partial.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _new(target: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Give the block a hidden path to write at, and the path of the target, if nothing is there."""
    path = Path(check_text(os.fspath(target))).absolute()
    try:
        for suffix in _SUFFIXES:
            taken = path.with_name(path.name + suffix)
            if os.path.lexists(taken):
                raise DatabaseError(f"{taken} exists already, and nothing is overwritten; give another path")
        if not path.parent.is_dir():
            raise DatabaseError(f"the folder {path.parent} does not exist; create it first")
        yield path.with_name(f".{uuid4().hex}.partial"), path
    except OSError as error:
        raise DatabaseError(f"{path} cannot be written: {error.strerror}") from error


def _give_name(partial: Path, path: Path) -> None:
    """Give a file its name; where links are possible, nothing is overwritten even if it has just appeared."""
    try:
        os.link(partial, path)
    except FileExistsError as error:
        raise DatabaseError(f"{path} exists by now, and nothing is overwritten; give another path") from error
    except OSError:
        partial.rename(path)


def _copy(connection: Connection, path: Path) -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT current_database()")
    ((source,),) = cursor.fetchall()
    quoted, alias = str(source).replace('"', '""'), f"backup_{uuid4().hex}"
    cursor.execute(f"ATTACH ? AS {alias} (READ_WRITE)", [str(path)])
    try:
        if os.path.exists(connection.database_key):  # noqa: PTH110  # who may not read the store may not read its copy
            path.chmod(Path(connection.database_key).stat().st_mode)
        cursor.execute(f'COPY FROM DATABASE "{quoted}" TO {alias}')
    finally:
        cursor.execute(f"DETACH {alias}")


def _sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

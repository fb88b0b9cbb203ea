"""A copy that opens of a store that does not, because a checkpoint was killed.

DuckDB 2.0.0 writes the block that its headers point to in place: old parts stay, and those of the new
checkpoint are put into free places. A kill (or a power failure) in the middle of this write leaves a block
that its checksum does not fit, and the store does not open. What the headers point to is still there, for the
old parts were written over with the same bytes; only the checksum has to be mended.
"""

import os
import re
import shutil
from pathlib import Path

import duckdb
import sqlalchemy as sa

from fiberstore.atomic_files import new_file
from fiberstore.doctor import Finding, examine
from fiberstore.duckdb.backup import refuse_logs
from fiberstore.duckdb.storage import DuckDBStorage
from fiberstore.duckdb.wal import block_locations, was_in_checkpoint
from fiberstore.errors import DamagedFileError, DatabaseError
from fiberstore.sql.translate import translate_errors

_MISMATCH = re.compile(
    r"computed checksum (\d+) does not match stored checksum \d+ in block at location (\d+)"
)
_CHECKSUM_BYTES = 8


def rescue(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[Finding]:
    """Copy a store that a killed checkpoint has left unreadable into a new file that can be read.

    The source stays as it is. Only the checksum of a block that was being written is mended, and only if the
    write-ahead log says that a checkpoint was running; the log is then replayed into the copy.

    Args:
        source: Path of the store.
        target: Path of a file that does not exist yet.

    Returns:
        What the doctor finds in the copy.

    Raises:
        DamagedFileError: Something else is damaged.
        DatabaseError: The store opens as it is, or the copy cannot be written.
        StorageLockedError: A process holds the source.
    """
    database = Path(source)
    damage = _damage(database)
    if not was_in_checkpoint(database):
        raise damage
    with new_file(target) as path:
        for suffix in ("", ".wal", ".wal.checkpoint"):
            file = database.with_name(database.name + suffix)
            if file.exists():
                shutil.copy(file, path.with_name(path.name + suffix))
        locations = block_locations(path)
        while locations:
            mended = _mend(path, locations)
            if mended is None:
                break
            locations.remove(mended)
        with DuckDBStorage(path) as storage:
            findings = examine(storage)
            with translate_errors(), storage.session() as session:
                session.execute(sa.text("CHECKPOINT"))
        refuse_logs(path)
    return findings


def _damage(database: Path) -> DamagedFileError:
    try:
        with DuckDBStorage(database, read_only=True):
            raise DatabaseError(f"{database} opens as it is; `fiberstore db backup` copies it")
    except DamagedFileError as error:
        return error


def _mend(path: Path, locations: set[int]) -> int | None:
    """Mend the first of the blocks that does not fit its checksum; return where it begins, or None."""
    try:
        duckdb.connect(path, read_only=True).close()
    except duckdb.Error as error:
        mismatch = _MISMATCH.search(str(error))
        if mismatch is None or int(mismatch[2]) not in locations:
            return None  # the storage says what it is
    else:
        return None
    with path.open("r+b") as file:
        file.seek(int(mismatch[2]))
        file.write(int(mismatch[1]).to_bytes(_CHECKSUM_BYTES, "little"))
    return int(mismatch[2])

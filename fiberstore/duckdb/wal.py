"""Verification of a write-ahead log (WAL) before DuckDB opens the database.

DuckDB takes an invalid entry of a WAL for its torn end, as ``kill -9`` leaves it, and drops the rest.
That is wrong where commits follow: damage to the length of one entry, or to the header, would
silently drop what was acknowledged. Everything else in a log has a checksum, which DuckDB verifies itself.

A log of DuckDB 2.0 is a header and entries: the length of the payload and its checksum, 8 bytes each, then
the payload. The last entry of a commit has no content, so it is the same each time. While a WAL checkpoint
runs, commits go to a second log, ``.wal.checkpoint``. (A third, ``.wal.recovery``, is a copy DuckDB makes
of both.)
"""

import os
import re
import struct
import time
from pathlib import Path
from typing import BinaryIO

from fiberstore.errors import DamagedFileError, DatabaseError

_HEADER_START = b"d\0be\0\2"  # entry type 98, version 2
_HEADER = re.compile(
    _HEADER_START
    + rb"(f\0\x10([\0-\x7f]|[\x80-\xff]\x01){16}"  # the identifier of the database
    + rb"g\0[\x80-\xff]{0,9}[\0-\x7f])?\xff\xff"  # how many checkpoints it has had
)
_LONGEST_HEADER_BYTES = 55
_ENTRY_HEAD = struct.Struct("<QQ")
_COMMIT = bytes.fromhex("e7fe7d722fed3d5e 640064ffff")  # checksum and payload
_SHORTEST_PAYLOAD_BYTES = 5
_CHECKPOINT_MARK = re.compile(  # entry type 99, then a commit
    rb"d\0ce\0.{1,24}\xff\xff" + re.escape(struct.pack("<Q", _SHORTEST_PAYLOAD_BYTES) + _COMMIT) + rb"\Z",
    re.DOTALL,
)
_LONGEST_MARK_BYTES = 64
_BLOCK_POINTERS = (4096 + 16, 8192 + 16)
_CHUNK_BYTES = 2**16
_MOST_LOOKS, _PAUSE_S = 10, 0.02
_MAGIC, _MAGIC_OFFSET = b"DUCK", 8
_FILE_HEADER_BYTES = 3 * 4096


def check_files(database: Path) -> None:
    """Refuse a file that is no database, and logs from which DuckDB would drop commits without a word.

    Args:
        database: The database file, if there is one; its logs lie beside it. This process must not have it
            open: to read a file and close it drops DuckDB's lock on it.

    Raises:
        DamagedFileError: The file ends within its header, or a log is damaged. A torn log, which ends within
            an entry, is not.
        DatabaseError: The file is no DuckDB database, or cannot be read.
    """
    for _ in range(_MOST_LOOKS):
        before = _state(database)
        try:
            _check_logs(database)
            if database.exists():
                _check_format(database)
        except FileNotFoundError:  # another process has just closed it
            continue
        except OSError as error:
            raise DatabaseError(f"{database} cannot be opened: {error.strerror}") from error
        except DatabaseError:
            time.sleep(_PAUSE_S)
            if _state(database) == before:
                raise
        else:
            return


def _state(database: Path) -> list[tuple[int, int]]:
    """Return sizes and times of the files, which change while another process creates or checkpoints them."""
    files = (database.with_name(database.name + suffix) for suffix in ("", ".wal", ".wal.checkpoint"))
    return [(_size_bytes(file), file.stat().st_mtime_ns if file.exists() else 0) for file in files]


def has_two_logs(database: Path) -> bool:
    """Return True if a WAL checkpoint was interrupted after a commit began the second log, empty or not."""
    return database.with_name(database.name + ".wal.checkpoint").exists()


def was_in_wal_checkpoint(database: Path) -> bool:
    """Return True if the log ends in the mark of a WAL checkpoint, which DuckDB removes at its end."""
    log = database.with_name(database.name + ".wal")
    if not _size_bytes(log):
        return False
    with log.open("rb") as file:
        file.seek(max(0, _size_bytes(log) - _LONGEST_MARK_BYTES))
        return _CHECKPOINT_MARK.search(file.read()) is not None


def block_locations(database: Path) -> set[int]:
    """Return where the blocks begin that the file's headers point to, which are read first."""
    with database.open("rb") as file:
        file.seek(_BLOCK_POINTERS[0])
        head = file.read(_FILE_HEADER_BYTES - _BLOCK_POINTERS[0])
    found = set()
    for offset in _BLOCK_POINTERS:
        pointers = struct.unpack_from("<QQ", head, offset - _BLOCK_POINTERS[0])
        (block_bytes,) = struct.unpack_from("<Q", head, offset - _BLOCK_POINTERS[0] + 24)
        found |= {_FILE_HEADER_BYTES + (pointer & 2**56 - 1) * block_bytes for pointer in pointers}
    return found


def _check_format(path: Path) -> None:
    """Refuse files of other formats: DuckDB would look for an extension that reads them."""
    with path.open("rb") as file:
        head = file.read(_MAGIC_OFFSET + len(_MAGIC))
    if not head:
        raise DatabaseError(f"{path} is empty, not a DuckDB database; if nobody is creating it, remove it")
    if head[_MAGIC_OFFSET:] != _MAGIC:
        raise DatabaseError(f"{path} is not a DuckDB database; give another path")
    if path.stat().st_size < _FILE_HEADER_BYTES:
        raise DamagedFileError(
            str(path), "it ends within its header. If it was to be new, there was no space for it: remove it"
        )


def _check_logs(database: Path) -> None:
    log, later = (database.with_name(database.name + suffix) for suffix in (".wal", ".wal.checkpoint"))
    if _size_bytes(log) and not _size_bytes(database):  # DuckDB would begin anew and delete the log
        raise DamagedFileError(str(database), f"it is missing or empty, but there is {log.name}")
    if _size_bytes(later) and not _size_bytes(log):
        raise DamagedFileError(str(log), f"it is missing or empty, but {later.name} continues it")
    for path in (log, later):
        if _size_bytes(path):
            _check_log(path)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check_log(path: Path) -> None:
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        damage = _damage(file, before.st_size)
        after = os.fstat(file.fileno())
    # What changes is not damaged: somebody writes it, and DuckDB will say who.
    if damage and (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
        raise DamagedFileError(str(path), damage)


def _damage(file: BinaryIO, size_bytes: int) -> str | None:
    head = file.read(_LONGEST_HEADER_BYTES)
    header = _HEADER.match(head)
    if header is None:
        is_cut = len(head) < _LONGEST_HEADER_BYTES and head.startswith(_HEADER_START[: len(head)])
        return None if is_cut else "it does not begin with the header of a log"
    position = _end_of_entries(file, header.end(), size_bytes)
    if _holds_commit(file, position):
        return f"the entry at byte {position} is damaged, and commits follow it"
    return None


def _end_of_entries(file: BinaryIO, position: int, size_bytes: int) -> int:
    """Return where the last complete entry ends; the file's size, unless it is torn or damaged."""
    chunk, chunk_begins = b"", position
    while position + _ENTRY_HEAD.size <= size_bytes:
        if position + _ENTRY_HEAD.size > chunk_begins + len(chunk):
            file.seek(position)
            chunk, chunk_begins = file.read(_CHUNK_BYTES), position
        length, _ = _ENTRY_HEAD.unpack_from(chunk, position - chunk_begins)
        end = position + _ENTRY_HEAD.size + length
        if length < _SHORTEST_PAYLOAD_BYTES or end > size_bytes:
            break
        position = end
    return position


def _holds_commit(file: BinaryIO, position: int) -> bool:
    file.seek(position)
    seen = b""
    while chunk := file.read(_CHUNK_BYTES):
        seen = seen[1 - len(_COMMIT) :] + chunk
        if _COMMIT in seen:
            return True
    return False

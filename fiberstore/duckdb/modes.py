"""Modes of what DuckDB makes beside a database: who may not read the database may not read its log either.

DuckDB makes files as the umask of the process says, which is not ours to change. But it takes a log and a
folder for temporary files that are there already as they are, so those of a private database are made before
DuckDB needs them. Only the second log, which a commit beside a checkpoint begins, and the copy of a log that
an opening may make, have the umask's mode for the time of that commit or opening.
"""

import os
from contextlib import suppress

from fiberstore.atomic_files import LOG_SUFFIXES

_READ_BY_ALL = 0o444
_FOLDER_MODE = 0o700


def make_log(database: str) -> None:
    """Make the log of a private database, if it is not there, before DuckDB does."""
    with suppress(FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError):
        mode = _mode(database)
        if _is_private(mode):
            os.close(os.open(database + LOG_SUFFIXES[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def limit_log_modes(database: str) -> None:
    """Take from the logs of a database what its own mode does not allow; another user's stay as they are."""
    for suffix in LOG_SUFFIXES[:2]:  # the third is DuckDB's while it opens the database
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            _limit(database + suffix, _mode(database))


def make_temporary_folder(database: str) -> None:
    """Make the folder for temporary files of a private database, for the owner alone."""
    folder = f"{database}.tmp"
    with suppress(FileNotFoundError, PermissionError):  # a new database; one in a folder that is only read
        if _is_private(_mode(database)):
            try:
                os.mkdir(folder, _FOLDER_MODE)  # noqa: PTH102  # all paths here are texts
            except FileExistsError:
                _limit(folder, _FOLDER_MODE)


def remove_temporary_folder(database: str) -> None:
    """Remove the folder for temporary files, unless somebody uses it."""
    with suppress(OSError):
        os.rmdir(f"{database}.tmp")  # noqa: PTH106


def _mode(path: str) -> int:
    return os.stat(path).st_mode & 0o777  # noqa: PTH116


def _is_private(mode: int) -> bool:
    return mode & _READ_BY_ALL != _READ_BY_ALL


def _limit(path: str, allowed: int) -> None:
    mode = _mode(path)
    if mode & ~allowed:
        os.chmod(path, mode & allowed)  # noqa: PTH101

"""Files and folders that get their names only once they are whole and on disk.

Until then they are in a hidden folder beside, which nobody but the owner may enter. Who writes in it holds a
lock on it, and the system drops the lock when the process dies. So a folder that a kill has left can be told
from one in use, and is removed by whoever makes the next one.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from fiberstore.checks import check_text
from fiberstore.errors import DatabaseError

if sys.platform != "win32":
    import fcntl

LOG_SUFFIXES = (".wal", ".wal.checkpoint", ".wal.recovery")
_HIDDEN = re.compile(r"\.fiberstore-[0-9a-f]{32}\.partial")


@contextmanager
def new_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the block a path to write to, and the file its own name once the block has ended.

    It is on disk by then, so a file of the target's name is always whole. Until then it is hidden.

    Raises:
        DatabaseError: The target exists, its folder does not, or it cannot be written.
    """
    with _new(target) as (partial, path):
        yield partial
        sync(partial)
        _give_name(partial, path)
        sync(path.parent)


@contextmanager
def new_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the block a folder to write in, and the folder its own name once the block has ended.

    The block has files in folders of the folder put on disk; the rest is as for ``new_file``.

    Raises:
        DatabaseError: The target exists, its folder does not, or it cannot be written.
    """
    with _new(target) as (partial, path):
        partial.mkdir()
        yield partial
        for written in (*partial.iterdir(), partial):
            sync(written)
        partial.rename(path)
        sync(path.parent)


@contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """Give the block a new hidden folder of its own, and remove it afterwards.

    What killed processes have left in the same parent is removed first.
    """
    remove_leftovers(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the doctor names what stays
        if lock is not None:
            os.close(lock)


def hidden_folders(parent: Path) -> list[Path]:
    """Return the hidden folders of unfinished files, in use or not; empty if the parent cannot be listed."""
    try:
        names = sorted(os.listdir(parent))  # noqa: PTH208  # a list of names is all that is needed
    except PermissionError:
        return []
    return [parent / name for name in names if _HIDDEN.fullmatch(name)]


def leftovers(parent: Path) -> list[Path]:
    """Return the hidden folders that killed processes have left."""
    return [folder for folder in hidden_folders(parent) if _is_left(folder, remove=False)]


def remove_leftovers(parent: Path) -> None:
    """Remove the hidden folders that killed processes have left; the doctor names those that it cannot."""
    for folder in hidden_folders(parent):
        _is_left(folder, remove=True)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _new(target: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Give the block a hidden path to write at, and the path of the target, if nothing is there."""
    path = Path(check_text(os.fspath(target))).absolute()
    try:
        for suffix in ("", *LOG_SUFFIXES):
            taken = path.with_name(path.name + suffix)
            if os.path.lexists(taken):
                raise DatabaseError(f"{taken} exists already, and nothing is overwritten; give another path")
        if not path.parent.is_dir():
            raise DatabaseError(f"the folder {path.parent} does not exist; create it first")
        with hidden_folder(path.parent) as folder:
            yield folder / path.name, path
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


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """Make a hidden folder, and lock it before anybody takes it for a leftover."""
    while True:
        folder = parent / f".fiberstore-{uuid4().hex}.partial"
        folder.mkdir(0o700)
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # somebody was faster, and removes it
        except OSError:  # a file system without locks, where nobody can take it for a leftover either
            return folder, None
        if folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _is_left(folder: Path, *, remove: bool) -> bool:
    try:
        lock = _lock(folder)
    except OSError:  # in use, gone, or somebody else's
        return False
    if lock is None:
        return False
    try:
        if remove:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
    return True


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as the descriptor that is returned is open; None where there are no locks.

    Raises:
        BlockingIOError: It is locked.
        OSError: It cannot be.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

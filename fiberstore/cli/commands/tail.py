"""``tail``: the newest logs, and those that are stored from now on."""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, TypeAlias
from uuid import UUID

import typer

from fiberstore.cli import INTERRUPTED
from fiberstore.cli.app import app, print_note
from fiberstore.cli.options import Db, Json, LogFilter, LogShape, chosen_shape, with_filter
from fiberstore.cli.render import LogLines
from fiberstore.cli.stores import open_to_read
from fiberstore.contract.queries import Logs, LogTail
from fiberstore.errors import CannotConnectError, ConnectionLostError, StorageLockedError
from fiberstore.records import StoredLog
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.engine import is_postgresql

_LOGS = 10
_WAIT_S = 0.2
_LOCK_TIMEOUT_S = 1.0

_State: TypeAlias = tuple[tuple[int, int, int] | None, ...]


@app.command(epilog="Example: fiberstore tail --db store.duckdb -f --source web")
@with_filter
def tail(
    chosen: LogFilter,
    *,
    db: Db,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", min=0, metavar="N", help=f"Number of newest logs; {_LOGS} by default."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new logs as they are stored, until Ctrl-C.")
    ] = False,
    position: Annotated[
        str | None,
        typer.Option(
            metavar="POSITION",
            help="Begin after this position (printed at the end of each run); '' is the store's beginning.",
        ),
    ] = None,
    form: LogShape = None,
    as_json: Json = False,
) -> None:
    """Print the newest logs, then with `-f` those that are stored, in the order they are; nothing twice.

    Logs that one call or transaction has stored may come in another order than they were written in.

    At its end the command prints, on stderr, the position to resume from.

    DuckDB lets nobody write a file that another process has open. So the command opens the store only for
    moments, when it has changed, and sees nothing while another program has it open; a program that writes
    should use a `lock_timeout_s` of a second. On PostgreSQL nobody waits, and
    the command resumes after a restart of the server.
    """
    if position is not None and lines is not None:
        raise typer.BadParameter("--position says where to begin; leave this out", param_hint="'--lines'")
    shape = chosen_shape(form, as_json=as_json)
    with _until_interrupted() as stop, _opened(db) as store:
        follower = TailFollower(chosen, store, LogLines(shape), stop)
        try:
            if position is None:
                follower.begin(_LOGS if lines is None else lines)
            else:
                follower.begin_after(position)
            while follow and not stop.wait(_WAIT_S):
                follower.look()
        finally:
            if follower.position is not None:
                print_note(f"--position {shlex.quote(follower.position)} resumes from here")
    if stop.is_set():
        raise typer.Exit(INTERRUPTED)


class FileStore:
    """A store in a file, opened only for moments: nobody can write it meanwhile."""

    def __init__(self, db: str) -> None:
        self._db = db
        self._files: tuple[Path, ...] = ()
        self._seen: _State = ()

    def has_changed(self) -> bool:
        """Return True if the store may hold new logs since it was last opened."""
        return _state(self._files) != self._seen

    @contextmanager
    def opened(self, lock_timeout_s: float = 0.0) -> Iterator[SqlStorage]:
        """Open the store for the block."""
        with open_to_read(self._db, lock_timeout_s) as storage:
            file = Path(storage.engine.url.database or "")
            self._files = (file, file.with_name(f"{file.name}.wal"))
            self._seen = _state(self._files)  # nobody writes them as long as it is open
            yield storage


class ServerStore:
    """A store on a server, open all the time."""

    def __init__(self, storage: SqlStorage) -> None:
        self._storage = storage

    def has_changed(self) -> bool:
        """Return True: only a query can tell."""
        return True

    def opened(self, lock_timeout_s: float = 0.0) -> AbstractContextManager[SqlStorage]:
        """Yield the open store."""
        del lock_timeout_s
        return nullcontext(self._storage)


@contextmanager
def _opened(db: str) -> Iterator[FileStore | ServerStore]:
    if is_postgresql(db):
        with open_to_read(db) as storage:
            yield ServerStore(storage)
    else:
        yield FileStore(db)


class TailFollower:
    """Prints the new logs of a store, each time it is looked at.

    Attributes:
        position: Position to resume from, before which everything is printed; None until it is known.
    """

    def __init__(
        self, chosen: LogFilter, store: FileStore | ServerStore, lines: LogLines, stop: threading.Event
    ) -> None:
        self.position: str | None = None
        self._chosen = chosen
        self._store = store
        self._lines = lines
        self._stop = stop
        self._newest = dict[UUID, StoredLog]()
        self._has_told = False
        self._is_locked_out = False
        self._lost_by = ""

    def begin(self, lines: int) -> None:
        """Print the newest logs."""
        with self._store.opened() as storage:
            query = self._query(storage)
            position = query.tail().position
            newest = query.order_by("newest").page(lines).items if lines else []
        self._newest = {log.log_id: log for log in newest}  # on a server some may be after the position
        self._lines.begin()
        for log in reversed(newest):
            self._lines.print(log)
        sys.stdout.flush()
        self.position = position

    def begin_after(self, position: str) -> None:
        """Print what was stored after a position."""
        with self._store.opened() as storage:
            new = self._query(storage).tail(position, timeout_s=0)
            self._lines.begin()
            self._print(new)

    def look(self) -> None:
        """Print what is new, if the store has changed and nobody else has it open."""
        if not self._store.has_changed():
            return
        try:
            with self._store.opened(_LOCK_TIMEOUT_S) as storage:
                self._is_locked_out = False
                self._print(self._query(storage).tail(self.position, timeout_s=0))
                self._lost_by = ""
        except StorageLockedError as error:
            if not self._is_locked_out:
                print_note(f"{error}; waiting")
            self._is_locked_out = True
        except (ConnectionLostError, CannotConnectError) as error:
            if str(error) != self._lost_by:
                print_note(f"{error}; waiting")
            self._lost_by = str(error)

    def _query(self, storage: SqlStorage) -> Logs:
        tells, self._has_told = not self._has_told, True
        return self._chosen.of(storage, tells=tells)

    def _print(self, new: LogTail) -> None:
        try:
            for log in new:
                if self._newest.pop(log.log_id, None) != log:
                    self._lines.print(log)
                if self._stop.is_set():
                    break
        finally:
            sys.stdout.flush()
            self.position = new.position


def _state(files: tuple[Path, ...]) -> _State:
    return tuple(_signature(file) for file in files)


def _signature(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _until_interrupted() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so that no log is printed without its position."""
    stop = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)

"""The program that is killed: it reports on its standard output when each thing begins and when it ended.

``victim.py PROGRAM FILE ARGUMENT...``; an argument is often ``LANE:NUMBER``, a lane and its next number.
Each line ends with the time in ns; it is one ``write`` to the pipe, so all that was reported before the kill
is there to be read.
"""

import faulthandler
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from fiberstore import DuckDBStorage, LogRecord, copy_store
from fiberstore.doctor import examine
from fiberstore.duckdb.change_lock import LOCK_TIMEOUT_S
from fiberstore.ingest.pipeline import IngestReport, ingest
from fiberstore.ingest.rules import load_rules
from fiberstore.repositories.access import BATCH_ROWS
from fiberstore.sql import migrate
from tests.reliability.crash.workers import bulk_logs, step

INGEST_BATCH_ROWS = 25
HANGS_S = 55  # before it is ended as one that hangs
_FILL_ROWS = 10_000
_ROWS_PER_REPORT = 10_000
_START = datetime(2024, 5, 1, tzinfo=UTC)


def report(*words: object) -> None:
    os.write(sys.stdout.fileno(), " ".join(map(str, (*words, time.time_ns()))).encode() + b"\n")


def report_commits(storage: DuckDBStorage) -> None:
    sa.event.listen(storage.engine, "commit", lambda _: report("commit"))


def write_lane(storage: DuckDBStorage, lane: str, number: int) -> None:
    while True:
        transaction = step(lane, number)
        report("begin", "step", lane, number)
        transaction.write(storage)
        report("end", "step", lane, number)
        number += 1


def write_lanes(file: str, *lanes: str) -> None:
    with DuckDBStorage(file) as storage:
        report_commits(storage)
        threads = [
            threading.Thread(target=write_lane, args=(storage, lane, int(number)))
            for lane, _, number in (argument.partition(":") for argument in lanes)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def write_beside_checkpoints(file: str, argument: str) -> None:
    lane, _, number = argument.partition(":")
    with DuckDBStorage(file) as storage:
        threading.Thread(target=write_lane, args=(storage, lane, int(number))).start()
        pooled = storage.engine.raw_connection()
        cursor = pooled.cursor()
        while True:
            time.sleep(0.005)  # for something to be in the log
            report("begin", "checkpoint")
            with suppress(duckdb.TransactionException):  # refused while a transaction has written
                cursor.execute("CHECKPOINT")
            report("end", "checkpoint")


def write_bulk(file: str, argument: str) -> None:
    lane, _, number = argument.partition(":")

    def rows() -> Iterator[LogRecord]:
        for count, log in enumerate(bulk_logs(lane, int(number)), 1):
            yield log
            if count > BATCH_ROWS // 2 and count % _ROWS_PER_REPORT == 0:
                report("row", count)

    with DuckDBStorage(file) as storage:
        report("begin", "step", lane, number)
        storage.write_logs(rows())
        report("end", "step", lane, number)
        threading.Event().wait()


def fill_log(file: str, bytes_: str) -> None:
    with DuckDBStorage(file) as storage:
        storage.init_schema()
        log = Path(f"{storage.engine.url.database}.wal")
        for written in itertools.count(_FILL_ROWS, _FILL_ROWS):
            storage.write_logs(
                LogRecord(
                    timestamp=_START + timedelta(milliseconds=row), source_id="api", raw_text=f"{row:0100}"
                )
                for row in range(written - _FILL_ROWS, written)
            )
            report("rows", written)
            if log.stat().st_size >= int(bytes_):
                report("full")
                threading.Event().wait()


class Caller:
    """Makes calls in the main thread, where Ctrl-C comes.

    Each call is followed by the next transaction of a lane. After Ctrl-C another thread has to get its turn
    to change rows, and what was interrupted is called again.
    """

    def __init__(self, storage: DuckDBStorage, copy: DuckDBStorage, lane: str, number: int) -> None:
        self._storage = storage
        self._copy = copy
        self._lane = lane
        self._number = number
        self._backups = itertools.count(1)
        self._others = ThreadPoolExecutor(1)
        self._calls = {
            "step": self._step,
            "backup": self._back_up,
            "compact": self._compact,
            "copy": self._copy_store,
            "doctor": self._examine,
        }

    def run(self, call: str) -> None:
        turns = itertools.count(1)
        while True:
            with suppress(KeyboardInterrupt):  # which drops the traceback, and what it owns
                signal.signal(signal.SIGINT, signal.default_int_handler)
                while True:
                    self._calls[call]()
                    self._step()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that comes late is not of the next call
            turn = next(turns)
            report("cut", turn)
            for storage in (self._storage, self._copy):
                changed = self._others.submit(storage.checkpoints.set, "turn", str(turn))
                changed.result(LOCK_TIMEOUT_S / 2)
            faulthandler.dump_traceback_later(HANGS_S)
            report("checked", turn)

    def _step(self) -> None:
        report("begin", "step", self._lane, self._number)
        step(self._lane, self._number).write(self._storage)
        report("end", "step", self._lane, self._number)
        self._number += 1

    def _back_up(self) -> None:
        number = next(self._backups)
        report("begin", "backup", number)
        self._storage.backup(backup_path(Path(self._storage.engine.url.database or ""), number))
        report("end", "backup", number)

    def _compact(self) -> None:
        report("begin", "compact")
        self._storage.compact()
        report("end", "compact")

    def _copy_store(self) -> None:
        report("begin", "copy")
        copy_store(self._storage, self._copy)
        report("end", "copy")

    def _examine(self) -> None:
        report("begin", "doctor")
        examine(self._storage)
        report("end", "doctor")


def backup_path(store: Path, number: int) -> Path:
    return store.with_name(f"backup-{number}.duckdb")


def make_calls(file: str, call: str, copy: str, *lanes: str) -> None:
    def write_beside(lane: str, number: int) -> None:
        while True:
            for one in range(number, number := number + 5):
                report("begin", "step", lane, one)
                step(lane, one).write(storage)
                report("end", "step", lane, one)
            examine(storage)  # it touches the catalog

    def dropped(found: "sys.UnraisableHookArgs") -> None:
        if found.exc_type is KeyboardInterrupt:
            report("checked")
        else:
            sys.__unraisablehook__(found)

    faulthandler.dump_traceback_later(HANGS_S)
    sys.unraisablehook = dropped  # what is raised in a destructor, Python prints and drops
    (lane, number), beside = (
        (name, int(next_)) for name, _, next_ in (part.partition(":") for part in lanes)
    )
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # until a call is made: the other thread reports steps before
    with DuckDBStorage(file) as storage, DuckDBStorage(copy) as destination:
        threading.Thread(target=write_beside, args=beside).start()
        Caller(storage, destination, lane, number).run(call)


def open_store(file: str) -> None:
    report("begin", "opening")
    with DuckDBStorage(file):
        report("end", "opening")
        threading.Event().wait()


def migrate_file(file: str) -> None:
    migrate.head()  # imports Alembic
    with DuckDBStorage(file) as storage:
        statements = iter(range(1000))
        sa.event.listen(
            storage.engine, "before_cursor_execute", lambda *_: report("statement", next(statements))
        )
        report("begin", "migration")
        storage.init_schema()
        report("end", "migration")
        threading.Event().wait()


def ingest_files(file: str, rules_file: str) -> None:
    def on_batch(done: IngestReport) -> None:
        report("end", "batch", done.logs_read)
        report("begin", "batch")

    with DuckDBStorage(file) as storage:
        storage.init_schema()
        report_commits(storage)
        report("begin", "batch")
        ingest(storage, load_rules(Path(rules_file)), batch_rows=INGEST_BATCH_ROWS, on_batch=on_batch)
        threading.Event().wait()


def die(failed: threading.ExceptHookArgs) -> None:
    traceback.print_exception(failed.exc_value)
    os._exit(1)


if __name__ == "__main__":
    pa.array([0])  # the first one imports pandas: now, and not while a call is interrupted
    threading.excepthook = die
    programs: dict[str, Callable[..., None]] = {
        "lanes": write_lanes,
        "checkpoints": write_beside_checkpoints,
        "bulk": write_bulk,
        "calls": make_calls,
        "open": open_store,
        "fill": fill_log,
        "migrate": migrate_file,
        "ingest": ingest_files,
    }
    programs[sys.argv[1]](*sys.argv[2:])

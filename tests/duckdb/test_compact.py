"""``compact()``: the file is written anew, nothing deleted is left in it, and who calls only waits."""

import asyncio
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
import sqlalchemy as sa

from fiberstore import AsyncDuckDBStorage, DatabaseError, DuckDBStorage, Fibers, Logs, StorageClosedError
from fiberstore.atomic_files import hidden_folder, leftovers
from fiberstore.contract.results import Compacted
from fiberstore.doctor import examine
from fiberstore.duckdb import change_lock, compact, fork_guard
from fiberstore.duckdb.backup import Copy
from fiberstore.duckdb.catch_up import Snapshot
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.duckdb.dialect import _CONFIG
from fiberstore.duckdb.fork_guard import opened
from fiberstore.duckdb.shielding import Interruption
from fiberstore.testing.examples import all_logs, at, fiber, log, member, uid
from fiberstore.testing.keys import key
from tests.support.command_line import runner

SECRET = "hunter2-correct-horse-battery-staple"  # noqa: S105


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(compact, "_HOLD_S", 0.05)


@pytest.fixture
def plain(store_file: Path) -> Iterator[DuckDBStorage]:
    """A storage whose texts stand in the file as they are."""
    with DuckDBStorage(f"duckdb:///{store_file}?force_compression=uncompressed") as storage:
        yield storage


def files_with(text: str, folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if text.encode() in path.read_bytes())


def checkpoint(storage: DuckDBStorage) -> None:
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("CHECKPOINT")


def test_what_was_redacted_and_deleted_is_in_no_file_afterwards(plain: DuckDBStorage, db_file: Path) -> None:
    plain.write_logs([log(n, text=f"{n} password={SECRET}") for n in range(3_000)])
    plain.write_logs([log(9_000 + n, text=f"gone {SECRET[::-1]} {n}") for n in range(500)])
    checkpoint(plain)
    plain.logs.redact("password=[^ ]+", "password=***")
    plain.logs.where(Logs.c.raw_text.startswith("gone")).delete()
    checkpoint(plain)
    plain.close()
    # In the same process a look at the file would drop DuckDB's lock on it.
    assert files_with(SECRET, db_file.parent) == [db_file.name]
    assert files_with(SECRET[::-1], db_file.parent) == [db_file.name]
    with DuckDBStorage(f"duckdb:///{db_file}?force_compression=uncompressed") as storage:
        storage.compact()
        assert storage.logs.count() == 3_000
    assert files_with("password=***", db_file.parent) == [db_file.name]
    assert files_with(SECRET, db_file.parent) == []
    assert files_with(SECRET[::-1], db_file.parent) == []
    assert [*db_file.parent.iterdir()] == [db_file]


def test_a_secret_that_is_only_in_the_write_ahead_log_is_gone_too(
    plain: DuckDBStorage, db_file: Path
) -> None:
    plain.write_logs([log(1, text=SECRET)])
    plain.logs.redact(SECRET, "***")
    plain.compact()
    plain.write_logs([log(2)])
    plain.close()
    assert files_with(SECRET, db_file.parent) == []


@pytest.mark.slow
def test_the_file_is_smaller_and_holds_the_same(storage: DuckDBStorage, db_file: Path) -> None:
    storage.write_logs([log(n, n, text=f"{uid(n)} " * 8) for n in range(30_000)])
    storage.write_fibers([fiber(n, last=at(30_000)) for n in range(100)])
    storage.write_memberships([member(n, n % 100) for n in range(30_000)])
    checkpoint(storage)
    storage.prune(logs=Logs.c.timestamp < at(1))
    storage.logs.where(Logs.c.timestamp < at(25_000)).delete()
    before = all_logs(storage), storage.fibers.page().items
    size = storage.prune(logs=Logs.c.timestamp < at(0)).file_bytes
    done = storage.compact()
    assert done.bytes_before >= size
    assert done.bytes_after == db_file.stat().st_size < size / 2
    assert (all_logs(storage), storage.fibers.page().items) == before
    assert [finding for finding in examine(storage) if finding.is_problem] == []
    storage.write_logs([log(40_000)])
    assert storage.logs.count() == 5_001
    assert storage.stats().calls["compact"].calls == 1


def test_what_is_written_afterwards_is_there_when_it_is_opened_again(store_file: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(1)])
        storage.compact()
        storage.write_logs([log(2)])
        storage.compact()
        storage.write_logs([log(3)])
    with DuckDBStorage(store_file) as storage:
        assert [found.log_id for found in all_logs(storage)] == [uid(1), uid(2), uid(3)]


def test_pages_and_tails_go_on(storage: DuckDBStorage) -> None:
    storage.write_logs([log(n) for n in range(10)])
    page = storage.logs.page(4)
    tail = storage.logs.tail("", timeout_s=0)
    assert len(list(tail)) == 10
    storage.logs.where(Logs.c.log_id == uid(2)).delete()
    storage.compact()
    storage.write_logs([log(20)])
    assert page.next is not None
    rest = storage.logs.page(100, page.next)
    assert [found.log_id.int for found in rest.items] == [4, 5, 6, 7, 8, 9, 20]
    assert [found.log_id for found in storage.logs.tail(tail.position, timeout_s=0)] == [uid(20)]


def do_before(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, action: Callable[[], object]
) -> None:
    """Have something done before a function is called for the first time."""
    call, actions = getattr(owner, name), [action]

    def do_and_call(*arguments: object, **named: object) -> object:
        while actions:
            actions.pop()()
        return call(*arguments, **named)

    monkeypatch.setattr(owner, name, do_and_call)


@pytest.mark.parametrize("name", ["catch_up", "verify"])
def test_calls_of_other_threads_wait_and_get_their_answers(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    storage.write_logs([log(n) for n in range(1_000)])
    monkeypatch.setattr(change_lock, "LOCK_TIMEOUT_S", 0.1)  # they do not even begin to wait for it
    begun, errors, found = threading.Event(), [], []

    def call(number: int) -> None:
        begun.wait()
        try:
            with storage.transaction() as transaction:
                transaction.fibers.write_fiber(fiber(number))
            storage.write_logs([log(2_000 + number)])
            found.append(storage.get_log(uid(number)))
        except Exception as error:  # noqa: BLE001  # the test tells of it
            errors.append(error)

    # More than the pool has connections.
    threads = [threading.Thread(target=call, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()

    def let_them_call() -> None:
        begun.set()
        for thread in threads:
            thread.join(0.02)
        assert found == []
        assert errors == []
        monkeypatch.undo()

    do_before(monkeypatch, compact, name, let_them_call)
    storage.compact()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(one.log_id.int for one in found if one) == list(range(20))
    assert storage.logs.count() == 1_020
    assert storage.fibers.count() == 20


def test_engines_of_this_process_wait_too(storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_logs([log(1)])
    counts: list[int] = []

    def count() -> None:
        with DuckDBStorage(str(storage.engine.url.database)) as other:
            counts.append(other.logs.count())
            other.write_logs([log(2)])

    thread = threading.Thread(target=count)

    def let_it_open() -> None:
        thread.start()
        thread.join(0.1)
        assert counts == []

    do_before(monkeypatch, compact, "verify", let_it_open)
    storage.compact()
    thread.join()
    assert counts == [1]
    assert storage.logs.count() == 2


Change = Callable[[DuckDBStorage], object]


def change_all(storage: DuckDBStorage) -> None:
    """Append, change and delete rows of all tables; of the logs, only append."""
    storage.write_logs([log(n, -n) for n in range(100, 110)])
    storage.upsert_fibers([fiber(1, "other"), fiber(2, last=at(99)), fiber(8)])
    storage.write_memberships([member(100, 1), member(5, 2)])
    storage.merge_fibers({uid(4): uid(3)})
    storage.fibers.where(Fibers.c.fiber_id == uid(5)).delete()
    storage.write_keys([key(1, "user", "eve"), key(2, "user", "bob")])
    storage.fibers.where(Fibers.c.fiber_id == uid(0)).close()
    storage.fibers.where(Fibers.c.fiber_id == uid(1)).pin()
    storage.logs.where(Logs.c.log_id == uid(3)).unpin()
    storage.checkpoints.compare_and_set("a", "1", "2")
    storage.checkpoints.compare_and_set("b", None, "1")
    storage.versions.register(b"other rules")


def activate_the_older(storage: DuckDBStorage) -> None:
    """Change indexed columns of rows that have the last places before and afterwards."""
    older, _ = storage.versions.all()
    storage.versions.activate(older.config_version)
    storage.upsert_fibers([fiber(6, "other")])


def redact(storage: DuckDBStorage) -> None:
    storage.logs.where(Logs.c.log_id == uid(2)).redact(".+", "gone")


def delete_and_write_again(storage: DuckDBStorage) -> None:
    storage.logs.where(Logs.c.log_id == uid(2)).delete()
    storage.write_logs([log(2)])


def execute(sql: str) -> Change:
    def run(storage: DuckDBStorage) -> None:
        with storage.engine.begin() as connection:
            connection.exec_driver_sql(sql)

    return run


def everything(storage: DuckDBStorage) -> list[object]:
    """Return the rows of all tables in their order, and what the doctor finds."""
    with storage.engine.connect() as connection:

        def rows(sql: str) -> list[Any]:
            return [tuple(row) for row in connection.exec_driver_sql(sql)]

        tables = rows("SELECT schema_name || '.' || table_name FROM duckdb_tables() ORDER BY 1")
        return [
            [finding for finding in examine(storage) if finding.is_problem],
            *([table, rows(f"FROM {table} ORDER BY rowid")] for (table,) in tables),
        ]


@pytest.mark.parametrize(
    ("change", "copies"),
    [
        (change_all, 1),
        (activate_the_older, 1),
        (redact, 2),
        (delete_and_write_again, 2),
        (execute("CREATE TABLE mine (a INTEGER)"), 2),
        (execute("CREATE INDEX mine ON fibers (closed)"), 2),
        (execute("COMMENT ON COLUMN fibers.closed IS 'mine'"), 2),
        (execute("UPDATE fiberstore_alembic_version SET version_num = 'other'"), 2),
    ],
)
def test_what_is_written_beside_the_copy_is_in_the_new_file(
    storage: DuckDBStorage,
    db_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    copies: int,
) -> None:
    storage.write_logs([log(n) for n in range(20)])
    storage.write_fibers([fiber(n) for n in range(7)])
    storage.write_memberships([member(n, n % 7) for n in range(20)])
    storage.write_keys([key(n, "user", "ann") for n in range(7)])
    storage.logs.where(Logs.c.log_id == uid(3)).pin()
    storage.checkpoints.compare_and_set("a", None, "1")
    for rules in (b"older", b"newer"):
        storage.versions.activate(storage.versions.register(rules).config_version)
    expected: list[object] = []

    def change_and_read() -> None:
        change(storage)
        expected.extend(everything(storage))

    fills = count_calls(monkeypatch, Copy, "fill")
    do_before(monkeypatch, Snapshot, "check", change_and_read)
    storage.compact()
    assert everything(storage) == expected
    assert len(fills) == copies
    storage.close()
    with DuckDBStorage(db_file) as again:
        assert everything(again) == expected


def test_a_change_of_case_beside_the_copy_is_kept_though_texts_are_compared_without(
    store_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DuckDBStorage(f"duckdb:///{store_file}?default_collation=nocase") as storage:
        storage.write_logs([log(1, text="secret")])
        storage.checkpoints.compare_and_set("a", None, "abc")

        def change() -> None:
            assert storage.logs.redact("secret", "SECRET") == 1
            storage.checkpoints.compare_and_set("a", "abc", "ABC")

        do_before(monkeypatch, Snapshot, "check", change)
        storage.compact()
        checkpoint, (line,) = storage.checkpoints.get("a"), all_logs(storage)
        assert checkpoint is not None
        assert (checkpoint.value, line.raw_text) == ("ABC", "SECRET")


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE mine (each INTEGER)",
        "CREATE VIEW mine AS FROM fibers",
        "CREATE SEQUENCE mine",
        "CREATE TYPE mine AS ENUM ('a')",
        "CREATE MACRO mine(a) AS a",
        "CREATE SCHEMA mine",
        "ALTER TABLE fiber_pins ADD COLUMN mine INTEGER",
    ],
)
def test_what_an_application_has_added_is_copied_while_nobody_writes(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    execute(sql)(storage)
    expected, looks, fills = everything(storage), list[object](), count_calls(monkeypatch, Copy, "fill")
    do_before(monkeypatch, Snapshot, "check", partial(looks.append, None))
    storage.compact()
    assert (looks, len(fills)) == ([], 1)
    assert everything(storage) == expected


@pytest.mark.slow
def test_rows_are_copied_in_their_order_by_any_settings(store_file: Path) -> None:
    with DuckDBStorage(f"duckdb:///{store_file}?preserve_insertion_order=false") as storage:
        execute("INSERT INTO raw_logs SELECT uuid(), now(), 'a', 'b', now(), 1 FROM range(500_000)")(storage)
        order = sa.text("SELECT md5(string_agg(log_id, '' ORDER BY rowid)) FROM raw_logs")
        with storage.session() as session:
            before = session.scalar(order)
        storage.compact()
        with storage.session() as session:
            assert session.scalar(order) == before


@pytest.mark.slow
def test_rows_that_a_checkpoint_moves_together_are_copied_once(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB does so with groups of 122,880 rows, when most of theirs have been deleted."""
    execute("INSERT INTO raw_logs SELECT uuid(), now(), 'a', 'b', now(), 1 FROM range(500_000)")(storage)
    execute("DELETE FROM raw_logs WHERE rowid % 5 <> 0")(storage)
    fills = count_calls(monkeypatch, Copy, "fill")
    do_before(monkeypatch, Snapshot, "check", partial(storage.write_logs, [log(1)]))
    storage.compact()
    assert storage.logs.count() == 100_001
    assert len(fills) == 1


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[None]:
    call, calls = getattr(owner, name), list[None]()

    def counted(*arguments: object, **named: object) -> object:
        calls.append(None)
        return call(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_a_file_in_which_copied_rows_change_each_time_is_copied_while_nobody_writes(
    plain: DuckDBStorage, db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.write_logs([log(n, text=SECRET) for n in range(10)])
    fills, check, number = count_calls(monkeypatch, Copy, "fill"), Snapshot.check, itertools.count()

    def redact_and_check(before: Snapshot, raw: duckdb.DuckDBPyConnection, copy: Copy) -> None:
        plain.logs.where(Logs.c.log_id == uid(next(number))).redact(".+", "gone")
        check(before, raw, copy)

    monkeypatch.setattr(Snapshot, "check", redact_and_check)
    plain.logs.where(~Logs.c.log_id.in_([uid(0), uid(1)])).redact(".+", "gone")
    plain.compact()
    assert len(fills) == 3
    assert [one.raw_text for one in all_logs(plain)] == ["gone"] * 10
    plain.close()
    assert files_with(SECRET, db_file.parent) == []


def test_a_copy_that_holds_other_rows_than_the_store_is_refused(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_logs([log(n) for n in range(10)])
    checkpoint_of_copy = Copy.checkpoint

    def lose_a_row(copy: Copy, interruption: Interruption) -> None:
        with closing(copy._connection.sibling()) as raw:
            raw.execute(f"UPDATE {copy.alias}.raw_logs SET raw_text = 'other' WHERE log_id = '{uid(3)}'")
        checkpoint_of_copy(copy, interruption)

    monkeypatch.setattr(Copy, "checkpoint", lose_a_row)
    with pytest.raises(DatabaseError, match=r"does not hold what the store does, in .*raw_logs"):
        storage.compact()
    assert storage.logs.where(Logs.c.raw_text == "other").count() == 0


def test_others_go_on_between_tries_while_a_stream_is_open(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "_HOLD_S", 0.01)
    storage.write_logs([log(n) for n in range(10)])
    stream, in_use = storage.logs.iter_records(), threading.Event()
    next(stream)
    do_before(monkeypatch, compact.Calls, "held_up", in_use.set)
    with ThreadPoolExecutor(1) as pool:
        compacting = pool.submit(storage.compact)
        in_use.wait()
        assert storage.get_log(uid(1)) is not None
        assert storage.write_logs([log(10)]) == 1
        assert len(list(stream)) == 9
        assert compacting.result().bytes_after > 0
    assert storage.logs.count() == 11


def test_only_one_compaction_of_a_storage_runs(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compact_too() -> None:
        with pytest.raises(DatabaseError, match="compacted already"):
            storage.compact()

    do_before(monkeypatch, Copy, "fill", compact_too)
    storage.compact()


def test_a_storage_that_is_closed_meanwhile_keeps_its_file(
    storage: DuckDBStorage, db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_logs([log(1)])
    do_before(monkeypatch, Snapshot, "check", storage.close)
    with pytest.raises(StorageClosedError):
        storage.compact()
    assert [path.name for path in db_file.parent.iterdir()] == [db_file.name]
    with DuckDBStorage(db_file) as again:
        assert again.logs.count() == 1


@pytest.mark.usefixtures("impatient")
def test_it_is_refused_while_something_else_uses_the_file(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_logs([log(n) for n in range(3)])
    fills = count_calls(monkeypatch, Copy, "fill")
    with (
        storage.transaction(),
        pytest.raises(DatabaseError, match="transaction\\(\\) of this storage") as refused,
    ):
        storage.compact()
    assert refused.type is DatabaseError
    stream = storage.logs.iter_records()
    next(stream)
    with pytest.raises(DatabaseError, match="a stream"):
        storage.compact()
    assert len(list(stream)) == 2
    with (
        DuckDBStorage(str(storage.engine.url.database)) as other,
        pytest.raises(DatabaseError, match="another storage"),
    ):
        assert other.logs.count() == 3
        storage.compact()
    assert fills == []  # none of these would have ended
    with storage.session() as session:
        session.execute(sa.text("SELECT 1"))
        with pytest.raises(DatabaseError, match="a session or a connection of this storage's engine"):
            storage.compact()
    assert storage.logs.count() == 3
    assert storage.compact().bytes_after > 0


@pytest.mark.usefixtures("impatient")
def test_sessions_that_follow_one_another_wait(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "BUSY_TIMEOUT_S", 5.0)
    session, opened = storage.session(), list[bool]()
    session.execute(sa.text("SELECT 1"))

    def open_another() -> None:
        with storage.session() as another:
            opened.append(another.scalar(sa.text("SELECT true")))

    thread = threading.Thread(target=open_another)

    def follow(_engine: sa.Engine) -> None:
        if thread.ident is None:
            thread.start()
            thread.join(0.01)
            session.close()

    sa.event.listen(storage.engine, "engine_disposed", follow)
    assert storage.compact().bytes_after > 0
    thread.join()
    assert opened == [True]


def test_who_needs_one_more_connection_to_end_gets_it(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "BUSY_TIMEOUT_S", 5.0)
    monkeypatch.setattr(compact, "_HOLD_S", 0.5)
    is_over = threading.Event()

    def examine_again_and_again() -> None:
        while not is_over.is_set():
            examine(storage)
            storage.logs.count()

    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(examine_again_and_again)
        try:
            assert storage.compact().bytes_after > 0
        finally:
            is_over.set()
        ended.result()


def test_nobody_opens_the_file_while_one_of_two_keeps_all_out(db_file: Path) -> None:
    let_in = threading.Event()

    def wait() -> None:
        with fork_guard.opening:
            fork_guard.wait_to_open(str(db_file))
        let_in.set()

    thread = threading.Thread(target=wait)
    with fork_guard.closed_off(str(db_file)):
        with fork_guard.closed_off(str(db_file)):
            pass
        thread.start()
        assert not let_in.wait(0.05)
    thread.join()
    assert let_in.is_set()


@pytest.mark.parametrize("when", ["fill", "_replace"])
def test_a_full_disk_ends_a_compaction_and_not_the_storage(
    storage: DuckDBStorage, db_file: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Of a file that cannot grow, a WAL checkpoint fails, and with it DuckDB's instance."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    checkpoint(storage)
    storage.write_logs([log(n, text=random.randbytes(200).hex()) for n in range(3_000)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (db_file.stat().st_size, limits[1]))

    do_before(monkeypatch, Copy if when == "fill" else compact, when, fill_disk)
    try:
        with pytest.raises(DatabaseError, match="File too large"):
            storage.compact()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*db_file.parent.glob(".*")] == []
    assert storage.write_logs([log(5_000)]) == 1
    assert storage.compact().bytes_after > 0
    assert storage.logs.count() == 3_001


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_refused_compaction_keeps_the_lock(storage: DuckDBStorage, db_file: Path) -> None:
    with DuckDBStorage(db_file) as other:
        assert other.stats().calls == {}
        with pytest.raises(DatabaseError, match="another storage"):
            storage.compact()
    assert run_other(db_file, "0") == "locked"


@pytest.mark.usefixtures("impatient")
def test_a_connection_of_duckdbs_own_is_noticed(store_file: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        raw = duckdb.connect(store_file, config={**_CONFIG, "checkpoint_threshold": f"{2**27}B"})
        with pytest.raises(DatabaseError, match="of this process has it open"):
            storage.compact()
        storage.write_logs([log(1)])
        raw.close()
        storage.compact()
        assert storage.logs.count() == 1


def test_a_connection_of_duckdbs_own_that_comes_meanwhile_is_noticed(
    db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[duckdb.DuckDBPyConnection] = []

    def open_by_itself() -> None:
        opened.append(duckdb.connect(db_file, config={**_CONFIG, "checkpoint_threshold": f"{2**27}B"}))

    storage = DuckDBStorage(db_file)
    storage.init_schema()
    do_before(monkeypatch, compact, "_keep_owner", open_by_itself)
    number = db_file.stat().st_ino
    with pytest.raises(DatabaseError, match="of this process has it open"):
        storage.compact()
    assert db_file.stat().st_ino == number
    opened.pop().close()
    do_before(monkeypatch, compact, "_retire", open_by_itself)
    with pytest.raises(DatabaseError, match="this process has to end"):
        storage.compact()
    with pytest.raises(DatabaseError, match="this process has to end"):
        storage.write_logs([log(1)])
    opened[0].close()
    storage.close()
    with DuckDBStorage(db_file) as storage:
        assert storage.logs.count() == 0


class Steps:
    """Counts the steps that a compaction asks the system or DuckDB for, and does something before one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, action: Callable[[], object]) -> None:
        self.seen, self._at, self._action = 0, at, action
        for owner, name in (
            (os, "link"), (os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "chmod"),
            (Path, "mkdir"), (Copy, "fill"), (Snapshot, "check"), (compact, "catch_up"),
            (compact, "refuse_logs"), (compact, "verify"), (compact, "_keep_owner"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        sibling = DuckDBConnection.sibling
        monkeypatch.setattr(
            DuckDBConnection, "sibling", lambda connection: Sibling(sibling(connection), self)
        )

    def step(self) -> None:
        self.seen += 1
        if self.seen == self._at:
            self._action()

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: object, **named: object) -> object:
            self.step()
            return call(*arguments, **named)

        return counted


class Sibling:
    """A connection of DuckDB's own; each statement but the last is a step."""

    def __init__(self, raw: duckdb.DuckDBPyConnection, steps: Steps) -> None:
        self._raw, self._steps = raw, steps

    def __getattr__(self, name: str) -> object:
        return getattr(self._raw, name)

    def execute(self, sql: str, *values: object) -> duckdb.DuckDBPyConnection:
        if not sql.startswith("DETACH"):
            self._steps.step()
        return self._raw.execute(sql, *values)


def fail() -> None:
    raise OSError(errno.EPERM, "not permitted")


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "expected"),
    [(fail, DatabaseError), pytest.param(press_ctrl_c, KeyboardInterrupt, marks=pytest.mark.slow)],
)
def test_a_compaction_that_ends_at_any_step_leaves_a_store_that_goes_on(
    store_file: Path, action: Callable[[], None], expected: type[BaseException]
) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(n) for n in range(100)])
        for at in itertools.count(1):
            with pytest.MonkeyPatch.context() as patched:
                steps = Steps(patched, at, action)
                try:
                    storage.compact()
                except (DatabaseError, OSError, KeyboardInterrupt) as error:
                    assert isinstance(error, expected), at  # noqa: PT017  # it ends without one in the end
            if steps.seen < at:
                break
            assert storage.logs.count() == 100, at
            assert [path.name for path in store_file.parent.glob(".*")] == [], at
            storage.backup(copy := store_file.with_name("copy.duckdb"))
            assert count_alone(copy) == 100, at
            copy.unlink()
        assert at > 20
        storage.write_logs([log(1_000)])
        storage.compact()
    assert count_alone(store_file) == 101


def count_alone(path: Path) -> int:
    with duckdb.connect(path, read_only=True) as raw:
        ((count,),) = raw.execute("SELECT count(*) FROM raw_logs").fetchall()
    return int(count)


def test_the_old_file_is_no_database_once_its_lock_is_free(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that opened the file before the rename, and gets the lock only now, must not use it."""
    storage.write_logs([log(1)])
    take_again, said = compact._take_again, list[str]()

    def take_later(engine: sa.Engine, path: Path, old: Path) -> None:
        with pytest.raises(duckdb.Error) as caught:
            duckdb.connect(old)
        said.append(str(caught.value))
        take_again(engine, path, old)

    monkeypatch.setattr(compact, "_take_again", take_later)
    storage.compact()
    assert "not a valid DuckDB database file" in said[0]


def test_the_old_file_is_kept_if_the_new_one_does_not_open(
    storage: DuckDBStorage, db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_logs([log(n) for n in range(100)])
    take_again = compact._take_again

    def take_damaged(engine: sa.Engine, path: Path, old: Path) -> None:
        os.truncate(path, 5_000)
        take_again(engine, path, old)

    monkeypatch.setattr(compact, "_take_again", take_damaged)
    with pytest.raises(DatabaseError, match=r"kept as .*store.duckdb.before-compact-"):
        storage.compact()
    (kept,) = db_file.parent.glob("store.duckdb.before-compact-*")
    assert count_alone(kept) == 100


INTERRUPTED_FOR_EVER = """
import sys, fiberstore
storage = fiberstore.DuckDBStorage(sys.argv[1])
print("begun", flush=True)
while True:
    try:
        storage.compact()
        storage.backup(sys.argv[1] + ".copy")
        with fiberstore.DuckDBStorage(sys.argv[1] + ".copy", read_only=True) as copy:
            assert copy.logs.count() == 2_000
        __import__("os").unlink(sys.argv[1] + ".copy")
    except KeyboardInterrupt:
        __import__("pathlib").Path(sys.argv[1] + ".copy").unlink(missing_ok=True)
        print(storage.logs.count(), flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_at_random_moments_empties_no_store(store_file: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(n) for n in range(2_000)])
    command = [sys.executable, "-c", INTERRUPTED_FOR_EVER, str(store_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for _ in range(30):
            time.sleep(random.uniform(0, 0.2))
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "2000\n"
        process.kill()
    assert count_alone(store_file) == 2_000


KILLED = """
import os, signal, sys
from fiberstore import DuckDBStorage
from fiberstore.duckdb import compact
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
compact._keep_owner = die
DuckDBStorage(sys.argv[1]).compact()
"""


@pytest.mark.slow
def test_what_a_kill_leaves_is_named_and_removed_and_what_lives_stays(
    store_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(1)])
    subprocess.run([sys.executable, "-c", KILLED, str(store_file)], check=False)
    with hidden_folder(store_file.parent) as living:
        assert leftovers(store_file.parent) == []  # making a new one has removed what was dead
        subprocess.run([sys.executable, "-c", KILLED, str(store_file)], check=False)
        (dead,) = set(store_file.parent.glob(".*")) - {living}
        assert dead.stat().st_mode & 0o777 == 0o700
        run = runner(capsys)
        result = run("doctor", "--db", store_file)
        assert (result.code, str(dead) in result.out, str(living) in result.out) == (0, True, False)
        with DuckDBStorage(store_file, read_only=True):
            assert dead.exists()
        result = run("redact", "nothing", "--db", store_file)
        assert not dead.exists()
        assert f"{living} may hold the old text" in result.err
        (living / "mine").touch()
    assert [path.name for path in store_file.parent.iterdir()] == ["store.duckdb"]


KILLED_BESIDE_WRITERS = """
import sys, threading
from fiberstore import DuckDBStorage
from fiberstore.testing.examples import fiber, log
storage = DuckDBStorage(sys.argv[1])
def write(first):
    for number in range(first, first + 90_000):
        storage.write_logs([log(number)])
        storage.upsert_fibers([fiber(first + 99_999), fiber(number)])
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
for number in (1, 2):
    threading.Thread(target=write, args=(int(sys.argv[2]) + number * 100_000,), daemon=True).start()
while True:
    storage.compact()
"""


@pytest.mark.slow
def test_what_was_acknowledged_beside_compactions_is_there_after_a_kill(
    store_file: Path, *, long_form: bool
) -> None:
    stored: set[int] = set()
    for kill in range(100 if long_form else 8):
        command = [sys.executable, "-c", KILLED_BESIDE_WRITERS, str(store_file), str((kill + 1) * 1_000_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            begun = process.stdout.readline()
            time.sleep(random.uniform(0, 0.5))  # the moment of the kill
            process.kill()
            words = [*begun.split(), *process.stdout.read().split("\n")[:-1]]
        stored.update(int(word) for word in words if word.isdigit())
        with DuckDBStorage(store_file) as storage:
            assert stored <= {found.log_id.int for found in all_logs(storage)}
            assert stored <= {found.fiber_id.int for found in storage.fibers.iter_records()}
            assert [finding for finding in examine(storage) if finding.is_problem] == []
    assert len(stored) > 20


OTHER = """
import sys
from fiberstore import DuckDBStorage, StorageLockedError
from fiberstore.contract.results import Compacted
from fiberstore.duckdb.fork_guard import opened
from fiberstore.testing.examples import log
print("begun", flush=True)
try:
    with DuckDBStorage(sys.argv[1], lock_timeout_s=float(sys.argv[2])) as storage:
        storage.write_logs([log(7_777)])
        print(storage.logs.count())
except StorageLockedError:
    print("locked")
"""


def run_other(db_file: Path, timeout_s: str) -> str:
    command = [sys.executable, "-c", OTHER, str(db_file), timeout_s]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


@pytest.mark.slow
def test_the_lock_is_kept_from_before_to_after(
    storage: DuckDBStorage, db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def ask() -> None:
        said.append(run_other(db_file, "0"))

    for owner, name in ((Snapshot, "check"), (compact, "catch_up"), (compact, "verify")):
        do_before(monkeypatch, owner, name, ask)
    storage.compact()
    ask()
    assert said == ["locked"] * 4


@pytest.mark.slow
def test_a_process_that_waits_for_the_file_writes_into_the_new_one(db_file: Path) -> None:
    storage = DuckDBStorage(db_file)
    storage.init_schema()
    storage.write_logs([log(n) for n in range(1_000)])
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(db_file), "60"], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        for _ in range(5):
            try:
                storage.compact()
            except DatabaseError:  # the other one was faster in the moment between the files
                break
        storage.close()
        assert other.stdout.read() == "1001\n"
    with DuckDBStorage(db_file) as storage:
        assert storage.logs.count() == 1_001


def test_who_opens_the_file_that_was_there_before_looks_again(tmp_path: Path) -> None:
    path, new = tmp_path / "a", tmp_path / "b"
    path.write_text("old")
    new.write_text("new")
    closed: list[str] = []

    def connect() -> str:
        text = path.read_text()
        if new.exists():
            new.replace(path)
        return text

    assert opened(str(path), connect, closed.append) == "new"
    assert closed == ["old"]


def test_a_link_stays_a_link_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "store.duckdb", tmp_path / "link.duckdb"
    link.symlink_to(real)
    with DuckDBStorage(link) as storage:
        storage.init_schema()
        storage.write_logs([log(1)])
        checkpoint(storage)
        real.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(real, 12_345, 12_346)
        before = real.stat()
        storage.compact()
        after = real.stat()
        assert storage.logs.count() == 1
    assert link.is_symlink()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_an_applications_own_tables_are_copied(storage: DuckDBStorage) -> None:
    with storage.session() as session:
        session.execute(sa.text("CREATE TABLE mine (a INTEGER)"))
        session.execute(sa.text("INSERT INTO mine VALUES (42)"))
        session.commit()
    storage.compact()
    with storage.session() as session:
        assert session.scalar(sa.text("SELECT a FROM mine")) == 42


def test_what_cannot_be_copied_stays_as_it_is(storage: DuckDBStorage, db_file: Path) -> None:
    with storage.session() as session:
        session.execute(sa.text("CREATE TABLE tree (a INTEGER PRIMARY KEY, b INTEGER REFERENCES tree (a))"))
        session.execute(sa.text("INSERT INTO tree VALUES (1, NULL)"))
        session.execute(sa.text("INSERT INTO tree VALUES (2, 1)"))
        session.commit()
    storage.write_logs([log(1)])
    number = db_file.stat().st_ino
    with pytest.raises(DatabaseError, match="foreign key"):
        storage.compact()
    assert storage.logs.count() == 1
    assert db_file.stat().st_ino == number
    assert [*db_file.parent.glob(".*")] == []


def test_a_trigger_which_no_copy_would_have_is_named(storage: DuckDBStorage, db_file: Path) -> None:
    execute("CREATE TABLE notes (a INTEGER)")(storage)
    execute("CREATE TRIGGER mine AFTER INSERT ON raw_logs FOR EACH STATEMENT INSERT INTO notes VALUES (1)")(
        storage
    )
    for copy in (storage.compact, lambda: storage.backup(db_file.with_name("copy.duckdb"))):
        with pytest.raises(DatabaseError, match="the trigger mine of the table raw_logs"):
            copy()
    storage.write_logs([log(1)])
    assert [
        path.name for path in db_file.parent.iterdir() if "copy" in path.name or "partial" in path.name
    ] == []


async def compacted_beside_reads(db_file: Path) -> list[bool]:
    async with AsyncDuckDBStorage(db_file) as storage:
        reads = [asyncio.create_task(storage.get_log(uid(1))) for _ in range(30)]
        await storage.compact()
        return [await read is not None for read in reads]


def test_the_async_face_waits_too(store_file: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(1)])
    assert asyncio.run(compacted_beside_reads(store_file)) == [True] * 30


def test_in_memory_it_does_nothing() -> None:
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        storage.write_logs([log(1)])
        assert storage.compact() == Compacted(0, 0)
        assert storage.logs.count() == 1


def test_a_store_that_is_only_read_is_refused(store_file: Path) -> None:
    with DuckDBStorage(store_file, read_only=True) as storage:
        with pytest.raises(DatabaseError, match="reading only"):
            storage.compact()
        assert storage.logs.count() == 0


def test_a_secret_in_a_key_goes_with_its_fiber(plain: DuckDBStorage, db_file: Path) -> None:
    plain.write_fibers([fiber(1, attributes={"password": [SECRET]})])
    plain.write_keys([key(1, "password", SECRET)])
    checkpoint(plain)
    assert files_with(SECRET, db_file.parent)
    assert plain.fibers.where(Fibers.c.keys["password"] == SECRET).delete().fibers == 1
    plain.compact()
    plain.close()
    assert files_with(SECRET, db_file.parent) == []

"""Many rows are deleted by a table that is written anew: nothing that others write is lost by it."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread, get_ident
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from fiberstore import DatabaseError, DuckDBStorage, Fibers, LogRecord, Logs, Memberships, StoredLog
from fiberstore.duckdb import change_lock, rebuild
from fiberstore.duckdb.support import SUPPORT
from fiberstore.repositories import access, retention
from fiberstore.repositories.prune_plan import Plan, Unit
from fiberstore.sql.migrate import differences, is_host_object
from fiberstore.sql.models import TABLES_BESIDE
from fiberstore.sql.support import FindGoing, GoingRows
from fiberstore.testing.examples import all_logs, at, fiber, log, member, uid
from tests.support.parameters import parametrize_mostly_slow

if TYPE_CHECKING:
    from fiberstore.contract.results import Compacted

TABLES = "raw_logs", "fibers", "fiber_memberships"
LATE = 1_000


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MANY_ROWS", 1)


@pytest.fixture
def filled(storage: DuckDBStorage) -> DuckDBStorage:
    """A storage of ten logs in five fibers, of two versions."""
    storage.write_logs([log(number) for number in range(10)])
    storage.write_fibers(
        [
            fiber(number, first=at(2 * number), last=at(2 * number + 1), config_version=version)
            for number, version in enumerate((1, 1, 1, 2, 2))
        ]
    )
    storage.write_memberships([member(number, number // 2, 1 + (number > 5)) for number in range(10)])
    return storage


def schema_of(storage: DuckDBStorage) -> tuple[set[int], list[str]]:
    """Return the numbers of the tables, and the statements that create them and their indexes."""
    with storage.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT table_name, table_oid, sql FROM duckdb_tables()").all()
        indexes = connection.exec_driver_sql("SELECT sql FROM duckdb_indexes() ORDER BY sql").scalars().all()
    return {row[1] for row in rows if row[0] in TABLES}, sorted(row[2] for row in rows) + list(indexes)


def content_of(storage: DuckDBStorage) -> list[list[object]]:
    return [list(query.iter_records()) for query in (storage.logs, storage.fibers, storage.memberships)]


CALLS: dict[str, Callable[[DuckDBStorage], object]] = {
    "logs.delete": lambda storage: storage.logs.where(Logs.c.timestamp < at(5)).delete(),
    "fibers.delete": lambda storage: storage.fibers.where(Fibers.c.last_activity < at(5)).delete(),
    "memberships.delete": lambda storage: storage.memberships.where(
        Memberships.c.fiber_id.in_([uid(1), uid(2)])
    ).delete(),
    "merge_fibers": lambda storage: storage.merge_fibers({uid(0): uid(1), uid(3): uid(4)}),
    "prune": lambda storage: storage.prune(
        fibers=Fibers.c.last_activity < at(5), logs=Logs.c.timestamp < at(8)
    ),
    "versions.drop": lambda storage: storage.versions.drop(2),
}


@contextmanager
def a_copy_of(storage: DuckDBStorage) -> Iterator[DuckDBStorage]:
    with DuckDBStorage(":memory:") as copy:
        copy.init_schema()
        copy.write_batch(
            logs=storage.logs.iter_records(),
            fibers=storage.fibers.iter_records(),
            memberships=storage.memberships.iter_records(),
        )
        yield copy


@parametrize_mostly_slow("call", CALLS.values(), ids=[*CALLS], quick=2)
def test_the_same_goes_and_the_tables_are_as_they_were(
    filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch, call: Callable[[DuckDBStorage], object]
) -> None:
    with a_copy_of(filled) as plain:
        with monkeypatch.context() as many:
            many.setattr(access, "MANY_ROWS", 1_000)
            expected = call(plain)
        numbers, statements = schema_of(filled)
        assert str(call(filled)).partition("file_bytes")[0] == str(expected).partition("file_bytes")[0]
        assert filled.stats().rows_written == plain.stats().rows_written
        assert content_of(filled) == content_of(plain)
    assert schema_of(filled)[0] != numbers
    assert schema_of(filled)[1] == statements


def _opened_again(storage: DuckDBStorage) -> None:
    DuckDBStorage(storage.engine.url.database or "").close()


# Acts of others after the tables are prepared and before the lock; True if that of the logs is still of use.
MEANWHILE: dict[str, tuple[Callable[[DuckDBStorage], object], bool]] = {
    "append": (
        lambda storage: storage.write_batch(
            logs=[
                StoredLog(**dict(log(number)), ingestion_time=at(0), config_version=1)
                for number in (3, 100, 101)
            ],
            memberships=[member(100, 4, 2), member(0, 4, 2), member(101, 0), member(9, 0), member(0, 1, 2)],
        ),
        True,
    ),
    "change of another table": (lambda storage: storage.upsert_fibers([fiber(4, "job")]), True),
    "opening": (_opened_again, True),
    "redaction": (lambda storage: storage.logs.redact(".+", "gone"), False),
    "deletion": (lambda storage: storage.logs.where(Logs.c.log_id.in_([uid(7), uid(8)])).delete(), False),
    "deletion of rows that go": (lambda storage: storage.logs.where(Logs.c.timestamp < at(3)).delete(), True),
    "deletion of the newest": (lambda storage: storage.logs.where(Logs.c.timestamp == at(9)).delete(), False),
}


@parametrize_mostly_slow(
    ("name", "act"),
    [
        *(("logs.delete", act) for act in MEANWHILE),
        ("fibers.delete", "append"),
        ("memberships.delete", "append"),
        ("merge_fibers", "append"),
    ],
    quick=3,
)
def test_what_others_do_meanwhile_is_as_done_before(
    filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch, name: str, act: str
) -> None:
    call, (meanwhile, is_of_use) = CALLS[name], MEANWHILE[act]
    with a_copy_of(filled) as plain:
        with monkeypatch.context() as many:
            many.setattr(access, "MANY_ROWS", 1_000)
            meanwhile(plain)
            expected = call(plain)
        used = after_preparing(filled, monkeypatch, lambda: meanwhile(filled))
        assert call(filled) == expected
        assert content_of(filled) == content_of(plain)
    if "raw_logs" in used:
        assert used["raw_logs"] == is_of_use
    assert tables_beside(filled) == []


def after_preparing(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]
) -> dict[str, bool]:
    """Act once before the lock of the next call; return which of its prepared tables were of use."""
    used: dict[str, bool] = {}

    @contextmanager
    def prepared(session: Session, find: FindGoing) -> Iterator[None]:
        with rebuild.prepared(session, find):
            monkeypatch.setattr(storage._sessions, "_support", SUPPORT)
            act()
            monkeypatch.setattr(rebuild, "_verified", verified)
            yield

    def verified(session: Session, going: GoingRows) -> object:
        table, found = going.table, real(session, going)
        prepared = rebuild.Preparations.of(storage.engine.url.database or "").tables
        if (get_ident(), table.name) in prepared:
            used[table.name] = found is not None
        return found

    real = rebuild._verified
    monkeypatch.setattr(storage._sessions, "_support", replace(SUPPORT, prepared=prepared))
    return used


def test_a_change_of_case_meanwhile_stays_though_texts_are_compared_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DuckDBStorage(f"duckdb:///{tmp_path}/store.duckdb?default_collation=nocase") as storage:
        storage.init_schema()
        storage.write_logs([log(number, text="secret") for number in range(3)])
        redacted = list[int]()
        used = after_preparing(
            storage, monkeypatch, lambda: redacted.append(storage.logs.redact("secret", "SECRET"))
        )
        assert storage.logs.where(Logs.c.timestamp < at(1)).delete().logs == 1
        assert (redacted, used) == ([3], {"raw_logs": False})
        assert {found.raw_text for found in all_logs(storage)} == {"SECRET"}


def tables_beside(storage: DuckDBStorage) -> list[str]:
    with storage.engine.connect() as connection:
        names = sa.inspect(connection).get_table_names()
    return [name for name in names if name.startswith("fiberstore_anew")]


def test_a_call_that_fails_leaves_no_table(filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        assert tables_beside(filled) == ["fiberstore_anew_fiber_memberships", "fiberstore_anew_raw_logs"]
        assert not differences(filled.engine)
        assert not any(
            is_host_object(sa.Table(name, sa.MetaData()), name, "table") for name in tables_beside(filled)
        )
        raise KeyboardInterrupt

    after_preparing(filled, monkeypatch, fail)
    with pytest.raises(KeyboardInterrupt):
        filled.logs.where(Logs.c.timestamp < at(5)).delete()
    assert tables_beside(filled) == []
    assert filled.logs.count() == 10


def test_what_a_killed_process_has_prepared_is_dropped_by_the_next(tmp_path: Path) -> None:
    path, of_an_application = tmp_path / "store.duckdb", "fiberstore_anew_and_better"
    with DuckDBStorage(path) as storage:
        storage.init_schema()
        with storage.engine.begin() as connection:
            for name in (TABLES_BESIDE["raw_logs"], of_an_application):
                connection.exec_driver_sql(f"CREATE TABLE {name} (log_id UUID PRIMARY KEY)")
    with DuckDBStorage(f"duckdb:///{path}?access_mode=read_only") as storage:
        assert tables_beside(storage) == [of_an_application, TABLES_BESIDE["raw_logs"]]
    with ThreadPoolExecutor(4) as threads, ExitStack() as opened:
        for storage in threads.map(DuckDBStorage, [path] * 4):
            opened.enter_context(storage)
        assert tables_beside(storage) == [of_an_application]


def test_of_two_that_delete_the_same_rows_each_takes_its_own_tables(
    filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete() -> int:
        return filled.logs.where(Logs.c.timestamp < at(5)).delete().logs

    with ThreadPoolExecutor(1) as thread:
        after_preparing(filled, monkeypatch, lambda: gone.append(thread.submit(delete).result()))
        gone: list[int] = []
        gone.append(delete())
    assert gone == [5, 0]
    assert filled.logs.count() == 5
    assert tables_beside(filled) == []


def test_a_compaction_waits_for_a_call_that_has_prepared(
    filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as thread:
        compacted: list[Future[Compacted]] = []

        def begin() -> None:
            compacted.append(thread.submit(filled.compact))
            while not filled._calls._compactions.alive():
                pass

        after_preparing(filled, monkeypatch, begin)
        assert filled.logs.where(Logs.c.timestamp < at(5)).delete().logs == 5
        assert compacted[0].result().bytes_after
    assert filled.logs.count() == 5


def test_an_error_that_is_kept_keeps_no_turn(filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("once")

    after_preparing(filled, monkeypatch, fail)
    with pytest.raises(ValueError, match="once") as kept:
        filled.logs.where(Logs.c.timestamp < at(5)).delete()
    used = after_preparing(filled, monkeypatch, lambda: None)
    filled.logs.where(Logs.c.timestamp < at(5)).delete()
    assert used["raw_logs"]
    assert kept.value.__traceback__ is not None


def test_a_backup_has_no_table_that_is_prepared(
    filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    after_preparing(filled, monkeypatch, lambda: filled.backup(tmp_path / "copy.duckdb"))
    filled.logs.where(Logs.c.timestamp < at(5)).delete()
    with DuckDBStorage(tmp_path / "copy.duckdb", read_only=True) as copy:
        assert tables_beside(copy) == []
        assert copy.logs.count() == 10


def test_a_column_that_is_changed_meanwhile_stays_so(
    filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        with filled.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE log_pins ALTER COLUMN log_id SET DEFAULT uuid()")

    def default() -> object:
        with filled.engine.connect() as connection:
            return connection.exec_driver_sql(
                "SELECT column_default FROM duckdb_columns() WHERE table_name = 'log_pins'"
            ).scalar()

    filled.logs.pin()
    after_preparing(filled, monkeypatch, change)
    filled.logs.where(Logs.c.timestamp < at(5)).delete()
    assert default() == "uuid()"


def test_what_is_appended_meanwhile_is_kept(filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    late = LogRecord(log_id=uid(LATE), timestamp=at(LATE), source_id="late", raw_text="late")
    appending = Thread(target=filled.write_logs, args=[[late]])

    def append(_session: Session) -> None:
        if appending.ident is None:
            appending.start()
        appending.join(0.3)  # it would be done by then, if it did not wait

    monkeypatch.setattr(rebuild, "expire", append)  # the last step before the commit
    filled.logs.where(Logs.c.timestamp < at(5)).delete()
    appending.join()
    assert filled.get_log(uid(LATE)) is not None
    assert filled.logs.count() == 6


def test_one_that_has_appended_before_is_not_waited_for_long(
    filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_lock, "APPENDS_TIMEOUT_S", 0.0)
    numbers, _ = schema_of(filled)
    with filled.session() as session:
        session.execute(
            sa.text(
                "INSERT INTO raw_logs SELECT uuid(), timestamp, 'late', '', NULL, 1 FROM raw_logs LIMIT 1"
            )
        )
        assert filled.logs.where(Logs.c.timestamp < at(5)).delete().logs == 5
        session.commit()
    assert filled.logs.where(Logs.c.source_id == "late").count() == 1
    assert schema_of(filled)[0] == numbers


def test_a_prune_beside_one_that_appends_for_long_goes_in_small_steps(
    filled: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_lock, "APPENDS_TIMEOUT_S", 0.0)
    monkeypatch.setattr(retention, "DEFAULT_STEP_ROWS", 2)
    logs_gone: list[int] = []
    with filled.session() as session:
        session.execute(sa.text("INSERT INTO fiber_memberships VALUES (uuid(), uuid(), 1)"))
        filled.prune(
            fibers=Fibers.c.last_activity < at(7),
            step_rows=10,
            on_step=lambda step: logs_gone.append(step.logs),
        )
        session.commit()
    assert logs_gone == [2, 4, 6]
    assert filled.memberships.count() == 5
    logs_gone.clear()
    filled.prune(
        logs=Logs.c.timestamp < at(5),
        fibers=Fibers.c.first_activity < at(20),
        step_rows=10,
        on_step=lambda step: logs_gone.append(step.logs),
    )
    assert logs_gone == [4]


@parametrize_mostly_slow(
    ("most_staying", "disk_is_full", "max_steps", "steps"),
    [
        (9, False, None, [6]),
        (7, False, None, [2, 4, 6]),
        (9, True, None, [2, 4, 6]),
        (9, False, 3, [2, 4, 6]),
    ],
)
def test_a_prune_goes_in_one_step_where_nobody_waits_for_long(
    filled: DuckDBStorage,
    monkeypatch: pytest.MonkeyPatch,
    *,
    most_staying: int,
    disk_is_full: bool,
    max_steps: int | None,
    steps: list[int],
) -> None:
    monkeypatch.setattr(retention, "DEFAULT_STEP_ROWS", 2)
    monkeypatch.setattr(retention, "_MOST_STAYING_ROWS", most_staying)
    take, taken = Plan.take, list[int]()

    def take_and_count(plan: Plan, rows: int, weight: float) -> list[Unit]:
        units = take(plan, rows, weight)
        taken.append(len(units))
        return units

    monkeypatch.setattr(Plan, "take", take_and_count)
    if disk_is_full:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    gone: list[int] = []
    filled.prune(
        fibers=Fibers.c.last_activity < at(7),
        max_steps=max_steps,
        on_step=lambda step: gone.append(step.logs),
    )
    assert gone == steps
    assert taken == [3 // len(steps)] * len(steps)  # no more than a step is in memory


def test_a_file_that_was_removed_while_it_is_open_is_said_to_be(filled: DuckDBStorage, db_file: Path) -> None:
    db_file.unlink()
    old = Logs.c.timestamp < at(5)
    for call in (filled.logs.where(old).delete, partial(filled.prune, logs=old)):
        with pytest.raises(DatabaseError, match="is open, but cannot be found"):
            call()
    assert filled.logs.count() == 10


def test_one_that_has_read_before_keeps_its_snapshot_and_appends_nothing(filled: DuckDBStorage) -> None:
    with filled.session() as session:
        assert session.scalar(sa.text("SELECT count(*) FROM raw_logs")) == 10
        filled.logs.where(Logs.c.timestamp < at(5)).delete()
        assert session.scalar(sa.text("SELECT count(*) FROM raw_logs WHERE raw_text IS NOT NULL")) == 10
        with pytest.raises(OperationalError, match="dropped"):
            session.execute(sa.text("INSERT INTO raw_logs SELECT uuid(), now(), 'late', '', NULL, 1"))
    assert filled.logs.count() == 5


def test_rows_keep_their_order_for_who_reads_on(filled: DuckDBStorage) -> None:
    filled.logs.where(Logs.c.log_id.in_([uid(9)])).delete()
    filled.write_logs([log(20, -1), log(21, 30)])
    filled.logs.where(Logs.c.timestamp < at(5)).where(Logs.c.timestamp >= at(0)).delete()
    filled.write_logs([log(22, 2)])
    with filled.engine.connect() as connection:
        order = connection.exec_driver_sql("SELECT log_id FROM raw_logs ORDER BY rowid").scalars().all()
    assert [str(id_) for id_ in order] == [str(uid(number)) for number in (5, 6, 7, 8, 20, 21, 22)]


@parametrize_mostly_slow(
    "statement",
    [
        "ALTER TABLE fiber_memberships ADD COLUMN mine INTEGER DEFAULT 7",
        "COMMENT ON TABLE fiber_memberships IS 'mine'",
        "COMMENT ON COLUMN fiber_memberships.log_id IS 'mine'",
        "COMMENT ON INDEX idx_memberships_fiber IS 'mine'",
        "CREATE TRIGGER mine AFTER DELETE ON fiber_memberships FOR EACH STATEMENT DELETE FROM fiber_pins",
        "CREATE TABLE mine (l UUID, f UUID, FOREIGN KEY (l, f) REFERENCES fiber_memberships)",
    ],
    quick=2,
)
def test_a_table_that_an_application_has_extended_stays(filled: DuckDBStorage, statement: str) -> None:
    with filled.engine.begin() as connection:
        if "ADD COLUMN" in statement:
            connection.exec_driver_sql("DROP INDEX idx_memberships_fiber")
        connection.exec_driver_sql(statement)
    numbers, statements = schema_of(filled)
    assert filled.memberships.where(Memberships.c.fiber_id.in_([uid(0)])).delete().memberships == 2
    assert schema_of(filled) == (numbers, statements)


def test_a_listener_may_append_while_many_rows_are_deleted(filled: DuckDBStorage) -> None:
    @sa.event.listens_for(filled.engine, "before_cursor_execute")
    def audit(*arguments: object) -> None:
        if str(arguments[2]).startswith("DELETE FROM raw_logs"):
            filled.write_logs([log(LATE)])

    assert filled.logs.where(Logs.c.timestamp < at(5)).delete().logs == 5
    assert filled.logs.count() == 6


def test_a_delete_needs_no_connection_of_the_readers(tmp_path: Path) -> None:
    with DuckDBStorage(tmp_path / "store.duckdb", pool_size=1) as storage:
        storage.init_schema()
        storage.write_logs([log(number) for number in range(10)])
        records = storage.logs.iter_records()
        assert next(records) is not None
        assert storage.logs.where(Logs.c.timestamp < at(5)).delete().logs == 5

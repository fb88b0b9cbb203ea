"""SQLAlchemy's events and ``echo``: every statement of every call arrives there, with its parameters."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import Pool

from fiberstore import DuckDBStorage, DuplicateError, Fibers, LogRepository
from fiberstore.contract.queries import Logs
from fiberstore.repositories.storage import SqlStorage
from fiberstore.testing.examples import fiber, log, member, uid
from tests.support.databases import empty
from tests.support.factories import NOON
from tests.support.parameters import parametrize_mostly_slow

Seen = list[tuple[str, Sequence[Any]]]
MANY = 300


@pytest.fixture
def storage(any_storage: SqlStorage) -> SqlStorage:
    return any_storage


@contextmanager
def listening(target: sa.Engine | sa.Connection) -> Iterator[Seen]:
    """Collect the statements that arrive, each once it has been executed, and their parameters."""
    seen: Seen = []
    begun: list[str] = []

    def before(_connection: object, _cursor: object, sql: str, *_others: object) -> None:
        begun.append(sql)

    def after(_connection: object, _cursor: object, sql: str, values: Sequence[Any], *rest: object) -> None:
        context, many = rest
        assert context is not None
        assert not many
        assert begun.pop() == sql
        seen.append((sql, values))

    event.listen(target, "before_cursor_execute", before)
    event.listen(target, "after_cursor_execute", after)
    yield seen
    event.remove(target, "before_cursor_execute", before)
    event.remove(target, "after_cursor_execute", after)


CALLS: dict[str, tuple[str, Callable[[SqlStorage], object]]] = {
    "write_logs": ("raw_logs", lambda storage: storage.write_logs([log(7)])),
    "many logs": ("raw_logs", lambda storage: storage.write_logs([log(n) for n in range(MANY)])),
    "again": ("raw_logs", lambda storage: storage.write_logs([log(1)] * 2)),
    "iterator": ("raw_logs", lambda storage: storage.write_logs(iter([log(8)]))),
    "get_log": ("raw_logs", lambda storage: storage.get_log(uid(1))),
    "page by time": ("raw_logs", lambda storage: storage.query_logs_by_time(NOON, NOON + timedelta(days=1))),
    "write_fiber": ("fibers", lambda storage: storage.write_fiber(fiber(7))),
    "update_fiber": ("fibers", lambda storage: storage.update_fiber(fiber(1, "job"))),
    "get_fiber": ("fibers", lambda storage: storage.get_fiber(uid(1))),
    "upsert_fibers": ("fibers", lambda storage: storage.upsert_fibers([fiber(n) for n in range(MANY)])),
    "merge_fibers": ("fiber_merges", lambda storage: storage.merge_fibers({uid(2): uid(1)})),
    "resolve_fibers": ("fiber_merges", lambda storage: storage.resolve_fibers([uid(1)])),
    "write_memberships": ("fiber_memberships", lambda storage: storage.write_memberships([member(7, 1)])),
    "get_fiber_logs": ("fiber_memberships", lambda storage: storage.get_fiber_logs(uid(1))),
    "get_log_fibers": ("fiber_memberships", lambda storage: storage.get_log_fibers(uid(1))),
    "write_batch": ("raw_logs", lambda storage: storage.write_batch(logs=[log(9)], fibers=[fiber(9)])),
    "page": ("raw_logs", lambda storage: storage.logs.page(2)),
    "delete": ("raw_logs", lambda storage: storage.logs.where(Logs.c.log_id == uid(1)).delete()),
    "close": ("fibers", lambda storage: storage.fibers.where(Fibers.c.fiber_id == uid(1)).close()),
    "stream": ("raw_logs", lambda storage: list(storage.logs.iter_records())),
    "arrow": ("raw_logs", lambda storage: storage.logs.to_arrow(2).read_all().num_rows),
    "prune": ("raw_logs", lambda storage: storage.prune(logs=Logs.c.source_id == "web").logs),
    "checkpoint": ("fiberstore_checkpoints", lambda storage: storage.checkpoints.set("a", "1")),
    "version": ("config_versions", lambda storage: storage.versions.register("a: 1").config_version),
}


def fill(storage: SqlStorage) -> None:
    storage.write_logs([log(1), log(2)])
    storage.write_fibers([fiber(1), fiber(2)])
    storage.write_memberships([member(1, 1), member(2, 2)])


@parametrize_mostly_slow("name", CALLS, quick=3)
def test_events_tell_of_a_call_and_change_nothing(storage: SqlStorage, name: str) -> None:
    _, call = CALLS[name]
    fill(storage)
    with listening(storage.engine) as seen:
        told = call(storage)
    assert seen
    rows = storage.stats().rows_written
    empty(storage.engine)
    fill(storage)
    before = storage.stats().rows_written
    untold = call(storage)
    assert _comparable(told) == _comparable(untold)
    assert storage.stats().rows_written - before == rows - (before - rows)


def _comparable(answer: object) -> object:
    text = repr(answer)
    return "" if "ingestion_time" in text else text  # that is another one each time


@pytest.mark.parametrize("rows", [1, MANY])
def test_events_have_the_batch_as_a_parameter(storage: SqlStorage, rows: int) -> None:
    with listening(storage.engine) as seen:
        assert storage.write_logs([log(number) for number in range(rows)]) == rows
    batches = [value for _, values in seen for value in values if isinstance(value, pa.RecordBatch)]
    assert [batch.num_rows for batch in batches] == [rows]


def test_events_have_the_values_of_a_read(storage: SqlStorage) -> None:
    fill(storage)
    with listening(storage.engine) as seen:
        storage.get_log(uid(1))
    ((sql, values),) = seen
    assert "raw_logs" in sql
    assert list(values) == [uid(1)]


def test_events_of_a_session_and_of_a_unit_of_work(storage: SqlStorage) -> None:
    fill(storage)
    with listening(storage.engine) as seen:
        with storage.session() as session:
            LogRepository(session).get_log(uid(1))
        with storage.transaction() as unit:
            unit.get_fiber(uid(1))
    found = [sql for sql, _ in seen if "raw_logs" in sql or "FROM fibers" in sql]
    assert len(found) == 2


def test_errors_are_the_same_while_somebody_listens(storage: SqlStorage) -> None:
    storage.write_fiber(fiber(1))
    failed: list[object] = []
    event.listen(storage.engine, "handle_error", failed.append)
    with listening(storage.engine), pytest.raises(DuplicateError):
        storage.write_fiber(fiber(1))
    with listening(storage.engine), storage.transaction() as unit:
        assert unit.write_logs([log(number) for number in range(MANY)]) == MANY
        assert unit.write_logs([log(number) for number in range(MANY + 1)]) == 1
    assert storage.logs.count() == MANY + 1


def test_echo_shows_the_statements_of_calls(storage: SqlStorage, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
        storage.engine.echo = True
        storage.get_log(uid(1))
        storage.engine.echo = False
        assert "raw_logs" in caplog.text
        caplog.clear()
    storage.get_log(uid(1))
    assert "raw_logs" not in caplog.text


def unit_of_work(storage: SqlStorage) -> None:
    with storage.transaction() as unit:
        unit.write_logs([log(2)])


def session_of_its_own(storage: SqlStorage) -> None:
    with storage.session() as session:
        LogRepository(session).count()


WRITES: dict[str, Callable[[SqlStorage], object]] = {
    "read": lambda storage: storage.logs.count(),
    "append": lambda storage: storage.write_logs([log(1)]),
    "change": lambda storage: storage.fibers.where(Fibers.c.fiber_id == uid(1)).close(),
    "unit": unit_of_work,
    "session": session_of_its_own,
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("disposed", [False, True])
def test_pool_listeners_reach_every_connection(storage: SqlStorage, name: str, disposed: bool) -> None:
    """Also when they are added to a storage that is open."""
    if disposed:
        storage.engine.dispose()
    seen: set[str] = set()
    event.listen(storage.engine, "connect", lambda *_: seen.add("connect"))
    event.listen(storage.engine, "checkout", lambda *_: seen.add("checkout"))
    event.listen(storage.engine, "checkin", lambda *_: seen.add("checkin"))
    for pool in vars(storage).values():
        if isinstance(pool, Pool):
            pool.dispose()
    storage.engine.pool.dispose()
    WRITES[name](storage)
    assert seen >= {"connect", "checkout", "checkin"}


def test_a_function_that_a_listener_adds_is_there_for_what_changes_rows(db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()

        @event.listens_for(storage.engine, "checkout")
        def add(connection: DBAPIConnection, *_others: object) -> None:
            connection.cursor().execute("CREATE OR REPLACE TEMP MACRO twice(a) AS a || a")

        with storage.transaction() as unit:
            assert unit.session.scalar(sa.select(sa.func.twice("ab"))) == "abab"

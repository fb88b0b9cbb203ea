"""Errors about rows that other clients have written."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import pytest
import sqlalchemy as sa

from fiberstore import Fiber, RawLog, SerializationError
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.testing.examples import NOON, fiber, log, member, uid
from tests.support.parameters import parametrize_mostly_slow

Reads: TypeAlias = dict[str, Callable[[], object]]


@pytest.fixture
def storage(any_storage: SqlStorage) -> SqlStorage:
    return any_storage


def test_attribute_key_that_another_client_stored_twice_counts_once(storage: SqlStorage) -> None:
    storage.write_fiber(fiber(1))
    with storage.engine.begin() as connection:
        connection.execute(sa.text("""UPDATE fibers SET attributes = '{"a": 1, "a": 2}'"""))
    assert [(found.value, found.count) for found in storage.fibers.attribute_keys()] == [("/a", 1)]


def test_times_without_end_of_another_client_are_named(storage: SqlStorage) -> None:
    storage.write_logs([log(1)])
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE raw_logs SET timestamp = CAST('infinity' AS TIMESTAMPTZ)"))
    for ask in (lambda: storage.logs.histogram(timedelta(1)), storage.logs.sources):
        with pytest.raises(SerializationError, match="infinity"):
            ask()
    assert storage.logs.histogram(timedelta(days=1), end=NOON) == []


def change(storage: SqlStorage, *statements: str) -> None:
    """Store a log and a fiber, and change them as another client would."""
    storage.write_batch(logs=[log(1)], fibers=[fiber(1)], memberships=[member(1, 1)])
    with storage.engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


TIMES = [
    "'infinity'",
    "'-infinity'",
    "make_timestamptz(12024, 1, 1, 0, 0, 0)",
    "make_timestamptz(-44, 1, 1, 0, 0, 0)",
]


@pytest.mark.parametrize("time", TIMES)
@parametrize_mostly_slow("column", ["timestamp", "ingestion_time"], quick=1)
def test_a_time_of_a_log_that_no_record_holds_is_refused(storage: SqlStorage, column: str, time: str) -> None:
    change(storage, f"UPDATE raw_logs SET {column} = CAST({time} AS TIMESTAMPTZ)")
    assert_logs_are_refused(storage, r"outside the years 1 to 9999|(finite|no) (timestamp|ingestion_time)")


@parametrize_mostly_slow("time", TIMES, quick=2)
def test_a_time_of_a_fiber_that_no_record_holds_is_refused(storage: SqlStorage, time: str) -> None:
    change(storage, f"UPDATE fibers SET last_activity = CAST({time} AS TIMESTAMPTZ)")
    assert_fibers_are_refused(storage, r"outside the years 1 to 9999|no last_activity")


def test_a_log_without_an_ingestion_time_is_refused(storage: SqlStorage) -> None:
    change(storage, "UPDATE raw_logs SET ingestion_time = NULL")
    asks = reads_of_logs(storage)
    del asks["session"]  # whose rows may have NULL
    assert_refused(asks, "ingestion_time (of|in) ")


@pytest.mark.parametrize("number", ["-1", "18446744073709551616", "'NaN'"])
def test_a_config_version_that_no_record_holds_is_refused(
    postgresql_storage: PostgresStorage, number: str
) -> None:
    tables = ("raw_logs", "fibers", "fiber_memberships")
    change(postgresql_storage, *(f"UPDATE {table} SET config_version = {number}" for table in tables))
    says = "stored config_version (is no|.*is outside 0 to)"
    assert_logs_are_refused(postgresql_storage, says)
    assert_fibers_are_refused(postgresql_storage, says)
    memberships = postgresql_storage.memberships
    assert_refused({"iter": lambda: list(memberships.iter_records())}, says)
    assert_refused({"arrow": lambda: list(memberships.to_arrow())}, says)


def assert_logs_are_refused(storage: SqlStorage, says: str) -> None:
    assert_refused(reads_of_logs(storage), says)


def reads_of_logs(storage: SqlStorage) -> Reads:
    def by_session() -> object:
        with storage.session() as session:
            return session.scalars(sa.select(RawLog)).all()

    return {
        "get": lambda: storage.get_log(uid(1)),
        "many": lambda: storage.logs.get_many([uid(1)]),
        "iter": lambda: list(storage.logs.iter_records()),
        "of a fiber": lambda: storage.get_fiber_logs(uid(1)),
        "page": lambda: storage.logs.page(10),
        "tail": lambda: list(storage.logs.tail("", timeout_s=0)),
        "arrow": lambda: list(storage.logs.to_arrow()),
        "session": by_session,
    }


def assert_fibers_are_refused(storage: SqlStorage, says: str) -> None:
    def by_session() -> object:
        with storage.session() as session:
            return session.scalars(sa.select(Fiber)).all()

    reads: Reads = {
        "get": lambda: storage.get_fiber(uid(1)),
        "iter": lambda: list(storage.fibers.iter_records()),
        "of a type": lambda: storage.query_fibers_by_type("request"),
        "page": lambda: storage.fibers.page(10),
        "summaries": lambda: storage.fibers.summaries(10),
        "arrow": lambda: list(storage.fibers.to_arrow()),
        "session": by_session,
    }
    assert_refused(reads, says)


def assert_refused(reads: Reads, says: str) -> None:
    for name, read in reads.items():
        with pytest.raises(SerializationError, match=says):
            pytest.fail(f"{name} gives {read()}")

"""A test of code that writes to a store: each test has an empty one, in memory."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from fiberstore import DuckDBStorage, LogRecord, Logs

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def check_out(storage: DuckDBStorage, request: str) -> None:
    """Do what is tested."""
    storage.write_logs(
        [LogRecord(timestamp=NOON, source_id="shop", raw_text=f"POST /checkout request={request}")]
    )


@pytest.fixture(scope="session")
def database() -> Iterator[DuckDBStorage]:
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        yield storage


@pytest.fixture
def store(database: DuckDBStorage) -> Iterator[DuckDBStorage]:
    yield database
    database.fibers.delete()
    database.logs.delete()
    database.memberships.delete()


def test_checkout_is_logged(store: DuckDBStorage) -> None:
    check_out(store, "7f3a")
    assert store.logs.where(Logs.c.raw_text.contains("request=7f3a")).count() == 1


def test_each_test_begins_with_an_empty_store(store: DuckDBStorage) -> None:
    assert store.logs.count() == 0

"""What queries say of rows that other clients of DuckDB have written."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from fiberstore import DuckDBStorage, SerializationError
from fiberstore.testing.examples import NOON, fiber, log


def test_attribute_key_that_another_client_stored_twice_counts_once(storage: DuckDBStorage) -> None:
    storage.write_fiber(fiber(1))
    with storage.engine.begin() as connection:
        connection.execute(sa.text("""UPDATE fibers SET attributes = '{"a": 1, "a": 2}'"""))
    assert [(found.value, found.count) for found in storage.fibers.attribute_keys()] == [("/a", 1)]


def test_times_without_end_of_another_client_are_named(storage: DuckDBStorage) -> None:
    storage.write_logs([log(1)])
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE raw_logs SET timestamp = 'infinity'"))
    for ask in (lambda: storage.logs.histogram(timedelta(1)), storage.logs.sources):
        with pytest.raises(SerializationError, match="infinity"):
            ask()
    assert storage.logs.histogram(timedelta(days=1), end=NOON) == []

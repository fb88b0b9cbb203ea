"""How many rows get to PostgreSQL, and which connections the calls of a storage use."""

import threading

import pytest
import sqlalchemy as sa

from fiberstore import DatabaseError, PostgresStorage
from fiberstore.testing.examples import log

MANY = range(300)


def prepared_statements(storage: PostgresStorage) -> int:
    with storage._connection(None) as connection:
        ((count,),) = connection.fetch_rows("SELECT count(*) FROM pg_prepared_statements", ())
    return int(count)


def server_processes(storage: PostgresStorage) -> int:
    with storage.engine.connect() as connection:
        found = connection.scalar(
            sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        )
    return int(found or 0) - 1


def test_many_rows_of_which_one_is_stored_already(postgresql_storage: PostgresStorage) -> None:
    storage = postgresql_storage
    storage.write_logs([log(MANY[-1], text="first")])
    assert storage.write_logs([log(number) for number in MANY]) == len(MANY) - 1
    assert storage.logs.count() == len(MANY)
    kept = storage.get_log(log(MANY[-1]).log_id)
    assert kept is not None
    assert kept.raw_text == "first"


def test_many_rows_in_a_transaction_of_which_one_is_stored_already(
    postgresql_storage: PostgresStorage,
) -> None:
    storage = postgresql_storage
    storage.write_logs([log(MANY[-1])])
    with storage.transaction() as transaction:
        assert transaction.logs.write([log(1_000)]) == 1
        assert transaction.logs.write([log(number) for number in MANY]) == len(MANY) - 1
        assert transaction.logs.write([log(1_001)]) == 1
    assert storage.logs.count() == len(MANY) + 2


def test_what_only_reads_leaves_statements_prepared(postgresql_storage: PostgresStorage) -> None:
    storage = postgresql_storage
    for _ in range(10):  # psycopg prepares what it has seen five times
        storage.get_log(log(1).log_id)
    assert prepared_statements(storage) >= 1
    storage.logs.page(10)
    assert prepared_statements(storage) >= 1


def test_calls_one_after_the_other_share_a_connection(postgresql_storage: PostgresStorage) -> None:
    storage = postgresql_storage
    before = server_processes(storage)
    for number in range(10):
        storage.write_logs([log(number)])
        storage.logs.count()
    assert server_processes(storage) == before


def test_calls_wait_for_a_free_connection(postgres_tables_url: str) -> None:
    with PostgresStorage(postgres_tables_url, pool_size=1) as storage:
        rows = storage.logs.iter_records()

        def read_first() -> None:
            next(rows, None)
            rows.close()

        with storage._connection(None):
            reader = threading.Thread(target=read_first)
            reader.start()
        reader.join(timeout=10)
        assert not reader.is_alive()


def test_a_call_that_outlives_its_storage_leaves_no_connection(postgres_tables_url: str) -> None:
    storage = PostgresStorage(postgres_tables_url)
    with storage._connection(None) as connection:
        storage.close()
    assert connection.closed
    with pytest.raises(DatabaseError, match="closed"):
        storage.logs.count()

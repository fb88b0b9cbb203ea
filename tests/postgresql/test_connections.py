"""Numbers of rows that reach PostgreSQL, and the connections that calls of a storage use."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from typing import TYPE_CHECKING, Never, cast
from urllib.parse import quote

import pyarrow as pa
import pytest
import sqlalchemy as sa
from psycopg.errors import InvalidSavepointSpecification
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from fiberstore import (
    ConflictError,
    ConnectionLostError,
    DatabaseError,
    LogRepository,
    PostgresStorage,
    open_storage,
)
from fiberstore.contract.results import Upserted
from fiberstore.postgresql.copy_format import fields
from fiberstore.repositories.storage import Transaction
from fiberstore.sql.connection import Row
from fiberstore.sql.pool import StorePool
from fiberstore.sql.prepared import connection_of
from fiberstore.testing.examples import fiber, log, uid
from tests.support import postgres_server
from tests.support.parameters import parametrize_mostly_slow

if TYPE_CHECKING:
    from fiberstore.postgresql.connection import PostgresConnection

MANY = range(300)


def prepared_statements(storage: PostgresStorage) -> int:
    with storage._sessions.read(None) as session:
        ((count,),) = connection_of(session).fetch_rows("SELECT count(*) FROM pg_prepared_statements", ())
    return int(count)


def server_processes(storage: PostgresStorage) -> int:
    with storage.engine.connect() as connection:
        found = connection.scalar(
            sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        )
    return int(found or 0) - 1


def stream(transaction: Transaction) -> Generator[list[Row]]:
    return connection_of(transaction.session).stream_rows("SELECT log_id FROM raw_logs", (), 1)


def test_many_rows_of_which_one_is_stored_already(postgresql_storage: PostgresStorage) -> None:
    storage = postgresql_storage
    storage.write_logs([log(MANY[-1], text="first")])
    assert storage.write_logs([log(number) for number in MANY]) == len(MANY) - 1
    assert storage.logs.count() == len(MANY)
    kept = storage.get_log(log(MANY[-1]).log_id)
    assert kept is not None
    assert kept.raw_text == "first"


def test_bytes_of_a_column_of_any_length_with_nulls() -> None:
    ids = [None if number % 3 else uid(number).bytes for number in range(10_000)]
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array(ids, pa.binary(16)))
    expected = [b"\xff\xff\xff\xff" if id_ is None else b"\0\0\0\x10" + id_ for id_ in ids]
    for start in (0, 1):  # a column may be a part of another
        found = fields(column.slice(start), is_json=False)
        assert found.to_pylist() == expected[start:]


def test_a_read_goes_on_where_the_statements_of_its_connection_are_gone(
    postgresql_storage: PostgresStorage,
) -> None:
    storage = postgresql_storage
    storage.write_logs([log(1)])
    for _ in range(2):
        assert storage.get_log(uid(1)) is not None
        with storage._sessions.read(None) as session:
            connection = connection_of(session)
            for _ in range(7):  # from the sixth on psycopg has a prepared statement of its own
                connection.write("DELETE FROM raw_logs WHERE false")
            connection.begin()
            connection.rollback()
            connection.write("DELETE FROM raw_logs WHERE false")  # and before the next it drops all there are
        assert prepared_statements(storage) == 0
        assert storage.get_log(uid(1)) is not None


def test_reads_go_on_when_another_client_has_changed_the_type_of_a_column(
    postgres_url: str,
) -> None:
    with PostgresStorage(postgres_url, pool_size=1) as storage:
        storage.init_schema()
        storage.write_logs([log(1)])
        reads: list[Callable[[], object]] = [lambda: storage.get_log(uid(1)), storage.logs.sources]
        with postgres_server.connected(make_url(postgres_url)) as other:
            for type_, read in product((b"text", b"varchar"), reads):
                before = [read() for _ in range(7)]  # from the sixth on psycopg has prepared it
                other.execute(b"ALTER TABLE raw_logs ALTER COLUMN source_id TYPE " + type_)
                assert [read() for _ in range(7)] == before


def test_the_planner_is_set_for_reads_by_ids_unless_the_server_or_the_url_says_otherwise(
    postgres_url: str,
) -> None:
    url = make_url(postgres_url)
    for options, settings in (({}, ("off", "1.1")), ({"options": "-c random_page_cost=3"}, ("off", "3"))):
        with PostgresStorage(url.update_query_dict(options)) as storage, storage.session() as session:
            both = sa.text("SELECT current_setting('jit'), current_setting('random_page_cost')")
            assert tuple(session.execute(both).one()) == settings


def test_threads_that_open_a_store_at_once_keep_one_connection(postgres_url: str) -> None:
    with PostgresStorage(postgres_url) as storage, ThreadPoolExecutor(8) as threads:
        storage.init_schema()
        barrier = threading.Barrier(8)

        def init_schema(_thread: int) -> None:
            barrier.wait()
            storage.init_schema()

        list(threads.map(init_schema, range(8)))
        assert cast("StorePool", storage.engine.pool).checkedin() == 1


def test_the_locks_of_a_client_that_has_gone_amid_a_statement_are_free_soon(postgres_url: str) -> None:
    with PostgresStorage(postgres_url) as storage, PostgresStorage(postgres_url) as gone:
        storage.init_schema()
        with gone.engine.connect() as connection:
            connection.exec_driver_sql("LOCK TABLE fiber_merges")
            driver = cast("PostgresConnection", connection.connection.driver_connection)
            driver.pgconn.send_query(b"SELECT pg_sleep(60)")
            driver.close()
            connection.invalidate()
        assert storage.upsert_fibers([fiber(1)]) == Upserted(1, 0)


def test_a_transaction_is_to_be_run_again_when_another_client_has_changed_the_type_of_a_column(
    postgres_url: str,
) -> None:
    with PostgresStorage(postgres_url, pool_size=1) as storage:
        storage.init_schema()
        storage.write_logs([log(1)])

        def read() -> object:
            with storage.transaction() as unit:
                return unit.logs.sources()

        before = [read() for _ in range(7)]
        with postgres_server.connected(make_url(postgres_url)) as other:
            other.execute(b"ALTER TABLE raw_logs ALTER COLUMN source_id TYPE varchar")
        with pytest.raises(ConflictError, match="another client has altered a table"):
            read()
        assert [read() for _ in range(7)] == before


def test_many_rows_in_a_transaction_of_which_one_is_stored_already(
    postgresql_storage: PostgresStorage,
) -> None:
    storage = postgresql_storage
    storage.write_logs([log(MANY[-1])])
    with storage.transaction() as transaction:
        assert transaction.logs.write_logs([log(1_000)]) == 1
        assert transaction.logs.write_logs([log(number) for number in MANY]) == len(MANY) - 1
        assert transaction.logs.write_logs([log(1_001)]) == 1
    assert storage.logs.count() == len(MANY) + 2


def test_no_savepoint_stays_of_rows_of_which_one_is_stored_already(
    postgresql_storage: PostgresStorage,
) -> None:
    storage = postgresql_storage
    storage.write_logs([log(MANY[-1])])
    with pytest.raises(InvalidSavepointSpecification), storage.transaction() as transaction:
        transaction.logs.write_logs([log(number) for number in MANY])
        connection_of(transaction.session).write("RELEASE fiberstore")


def test_a_transaction_reads_several_streams_at_once(postgresql_storage: PostgresStorage) -> None:
    postgresql_storage.write_logs([log(number) for number in MANY])
    with postgresql_storage.transaction() as transaction:
        one, other = transaction.logs.iter_records(), transaction.logs.iter_records()
        assert sum(first == second for first, second in zip(one, other, strict=True)) == len(MANY)


def test_a_stream_that_outlives_its_transaction_ends_no_other(postgresql_storage: PostgresStorage) -> None:
    postgresql_storage.write_logs([log(number) for number in MANY])
    with postgresql_storage.transaction() as transaction:
        left = stream(transaction)
        next(left)
    with postgresql_storage.transaction() as transaction:  # on the same connection
        read = stream(transaction)
        next(read)
        left.close()
        assert sum(len(rows) for rows in read) == len(MANY) - 1


@pytest.mark.usefixtures("postgresql_storage")  # which is empty
def test_who_may_only_read_resolves_many_fibers(postgres_tables_url: str) -> None:
    with PostgresStorage(postgres_tables_url, read_only=True) as storage:
        assert storage.resolve_fibers([log(number).log_id for number in MANY]) == {}


def test_two_threads_that_take_the_last_idle_connection(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = postgresql_storage._call_pool
    pool.dispose()

    class TakenMeanwhile(list[ConnectionPoolEntry]):
        """It has one when it is looked at, which another thread takes."""

        def __bool__(self) -> bool:
            return True

    monkeypatch.setattr(pool, "_idle", TakenMeanwhile())
    pool.connect().close()


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
            rows.close()  # type: ignore[attr-defined]  # it is a generator

        with storage._sessions.read(None):
            reader = threading.Thread(target=read_first)
            reader.start()
        reader.join(timeout=10)
        assert not reader.is_alive()


def test_a_call_that_outlives_its_storage_leaves_no_connection(postgres_tables_url: str) -> None:
    storage = PostgresStorage(postgres_tables_url)
    with storage._sessions.read(None) as session:
        connection = cast("PostgresConnection", connection_of(session))
        storage.close()
    assert connection.closed
    with pytest.raises(DatabaseError, match="closed"):
        storage.logs.count()


def test_who_finds_no_free_connection_is_told_what_to_do(
    postgres_tables_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PostgresStorage(postgres_tables_url, pool_size=1) as storage:
        monkeypatch.setattr(storage._call_pool, "_timeout", 0.01)
        with (
            storage._sessions.read(None),
            pytest.raises(DatabaseError, match=r"1 are in use; open .* pool_size"),
        ):
            storage.get_log(uid(1))
        assert storage.get_log(uid(999_999)) is None  # now it is free


def test_a_transaction_that_idles_too_long_has_lost_its_connection(
    postgresql_storage: PostgresStorage,
) -> None:
    storage = postgresql_storage
    with storage.session() as session:
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
        session.execute(sa.text("SET idle_in_transaction_session_timeout = '1ms'"))
        lives = sa.text(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")
        with storage.engine.connect() as other:
            while other.scalar(lives):
                other.rollback()  # within a transaction, the view does not change
        with pytest.raises(ConnectionLostError) as lost:
            LogRepository(session).get_log(uid(1))
        assert not lost.value.may_be_stored
    assert storage.get_log(uid(1)) is None


def test_an_interrupt_amid_a_statement_ends_its_transaction_at_once(
    postgresql_storage: PostgresStorage,
) -> None:
    storage = postgresql_storage
    storage.write_fibers([fiber(1)])
    with pytest.raises(KeyboardInterrupt) as kept, storage.transaction() as transaction:
        transaction.fibers.update_fiber(fiber(1, "changed"))
        _interrupt_amid_a_statement(storage, transaction.session)
    assert kept.value.__context__ is None
    storage.update_fiber(fiber(1, "free"))
    with pytest.raises(KeyboardInterrupt), storage._sessions.read(None) as session:
        _interrupt_amid_a_statement(storage, session)
    assert storage.fibers.count() == 1
    assert postgres_server.connections_in_use(storage) == 0


def _interrupt_amid_a_statement(storage: PostgresStorage, session: Session) -> Never:
    """Do what Ctrl-C does where psycopg itself runs Python code, rather than waits for the server."""
    pgconn = cast("PostgresConnection", connection_of(session)).pgconn
    pgconn.send_query(b"SELECT pg_sleep(60)")
    sleeps = sa.text("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = :pid")
    has_begun = None
    while not has_begun:  # to cancel what has not begun is in vain
        with storage.engine.connect() as other:
            has_begun = other.scalar(sleeps, {"pid": pgconn.backend_pid})
    raise KeyboardInterrupt


@pytest.mark.parametrize("error", [None, ValueError(), KeyboardInterrupt()])
def test_a_connection_that_cannot_be_made_ready_is_closed(error: BaseException | None) -> None:
    class Made:
        """A connection of no database."""

        closed = False

        def rollback(self) -> None:
            pass

        def reset(self) -> None:
            if error is not None:
                raise error

        def close(self) -> None:
            self.closed = True

    made = Made()
    pool = StorePool(lambda: made)
    lent = pool.connect()
    with pytest.raises(KeyboardInterrupt) if isinstance(error, KeyboardInterrupt) else nullcontext():
        lent.close()
    assert made.closed == (error is not None)
    assert pool.checkedin() == (error is None)
    assert pool.checkedout() == 0


@parametrize_mostly_slow("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_urls_of_libpq_are_taken(postgres_url: str, scheme: str) -> None:
    url = make_url(postgres_url)
    place = url.host or url.query["host"]
    assert isinstance(place, str)
    with open_storage(f"{scheme}://{url.username}@{quote(place, safe='')}/{url.database}") as storage:
        storage.init_schema()
        assert storage.logs.count() == 0

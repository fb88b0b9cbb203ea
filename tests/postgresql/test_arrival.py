"""The order in which rows arrive, by the numbers of PostgreSQL's transactions."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from fiberstore import CursorError, DatabaseError, LogRecord, PostgresStorage, RawLog
from fiberstore.contract.cursors import Watermark, decode, decode_position, encode, encode_position
from fiberstore.testing.examples import at, fiber, log, stored, uid
from fiberstore.testing.filters import numbers

ROOT = Path(__file__).parents[2]
FILES = sa.text(
    "SELECT array_agg(relfilenode ORDER BY oid) FROM pg_class WHERE relname IN ('raw_logs', 'fibers')"
)


@pytest.fixture
def storage(postgres_url: str) -> Iterator[PostgresStorage]:
    with PostgresStorage(postgres_url) as storage:
        storage.init_schema()
        yield storage


def tailed(storage: PostgresStorage, position: str = "") -> list[int]:
    return [row.log_id.int for row in storage.logs.tail(position, timeout_s=0)]


def tailed_to(storage: PostgresStorage, rows: int) -> str:
    tail = storage.logs.tail("", timeout_s=0)
    for _ in range(rows):
        next(tail)
    return tail.position


def as_restored_elsewhere(storage: PostgresStorage) -> None:
    """Leave the tables as a dump of another cluster does that has counted a billion transactions."""
    with storage.engine.begin() as connection:
        for table in ("raw_logs", "fibers"):
            connection.execute(sa.text(f"UPDATE {table} SET arrived = arrived + 1000000000"))


def test_rows_of_a_restored_dump_are_not_late(storage: PostgresStorage) -> None:
    storage.write_logs([log(number) for number in range(0, 20, 2)])
    as_restored_elsewhere(storage)
    first = storage.logs.page(5)
    storage.write_logs([log(1)])
    second = storage.logs.page(5, first.next)
    assert (numbers(second.late), numbers(second.items)) == ([1], [10, 12, 14, 16, 18])


def test_tail_tells_the_rows_of_a_restored_dump_first(storage: PostgresStorage) -> None:
    storage.write_logs([log(3), log(1)])
    storage.write_fiber(fiber(1))
    as_restored_elsewhere(storage)
    storage.write_logs([log(2)])
    with pytest.raises(DatabaseError, match=r"rows of another cluster.*db upgrade"):
        storage.logs.tail()
    storage.init_schema()
    assert tailed(storage) == [1, 3, 2]


@pytest.mark.parametrize("loss", ["DROP COLUMN arrived", "ALTER COLUMN arrived DROP DEFAULT"])
def test_who_has_dropped_the_column_is_told_how_to_add_it(storage: PostgresStorage, loss: str) -> None:
    for table in ("raw_logs", "fibers"):
        with storage.engine.begin() as connection:
            connection.execute(sa.text(f"ALTER TABLE {table} {loss}"))
        with pytest.raises(DatabaseError, match="no column arrived") as told:
            storage.init_schema()
        with pytest.raises(DatabaseError, match="no column arrived"):
            (storage.logs if table == "raw_logs" else storage.fibers).page(1)
        with storage.engine.begin() as connection:
            connection.execute(sa.text(str(told.value).partition("runs: ")[2]))
        storage.init_schema()
    storage.write_logs([log(2), log(1)])
    storage.write_fiber(fiber(1))
    storage.upsert_fibers([fiber(1, "other")])
    assert tailed(storage) == [1, 2]
    assert numbers(storage.logs.page(1).items) == [1]


def test_a_cursor_of_another_cluster_is_refused(storage: PostgresStorage) -> None:
    storage.write_logs([log(number) for number in range(3)])
    cursor = storage.logs.page(1).next
    assert cursor is not None
    query = repr(storage.logs)
    place = decode(query, cursor)
    for change in ({"number": place.mark.number + 10**9}, {"cluster": 1}, {"cluster": None}):
        elsewhere = replace(place.mark, **change)
        with pytest.raises(CursorError, match="another database"):
            storage.logs.page(1, encode(query, replace(place, mark=elsewhere)))


def test_a_position_of_another_cluster_is_refused(storage: PostgresStorage) -> None:
    tail = storage.logs.tail("", timeout_s=0)
    assert list(storage.logs.tail(tail.position, timeout_s=0)) == []  # of a store without logs
    storage.write_logs([log(number) for number in range(3)])
    for position in (storage.logs.tail(timeout_s=0).position, tailed_to(storage, 2)):
        mark = decode_position(position)
        for change in ({"number": mark.number + 10**9}, {"cluster": 1}, {"cluster": None}):
            with pytest.raises(CursorError, match="another database"):
                storage.logs.tail(encode_position(replace(mark, **change)), timeout_s=0)


def test_tail_waits_for_a_transaction_that_began_before(storage: PostgresStorage) -> None:
    with storage.session() as session:
        session.add(RawLog(log_id=uid(1), timestamp=at(1), source_id="a", raw_text="x", config_version=0))
        session.flush()
        storage.write_logs([log(2)])
        tail = storage.logs.tail("", timeout_s=0)
        assert list(tail) == []  # or the first could not be told in its place any more
        session.commit()
    assert tailed(storage, tail.position) == [1, 2]


def test_a_page_goes_on_beside_a_transaction_and_tells_its_rows_later(storage: PostgresStorage) -> None:
    storage.write_logs([log(number) for number in range(10, 30, 2)])
    with storage.session() as session:
        session.add(RawLog(log_id=uid(11), timestamp=at(11), source_id="a", raw_text="x", config_version=0))
        session.flush()
        first = storage.logs.page(5)
        storage.write_logs([log(13)])
        second = storage.logs.page(2, first.next)
        assert (numbers(second.late), numbers(second.items)) == ([13], [20, 22])
        session.commit()
    third = storage.logs.page(2, second.next)
    assert (numbers(third.late), numbers(third.items)) == ([11], [24, 26])


def test_more_late_rows_than_the_limit_come_at_once_where_one_could_hide_another(
    storage: PostgresStorage,
) -> None:
    storage.write_logs([log(number) for number in range(10)])
    with storage.session() as session:
        session.add(RawLog(log_id=uid(50), timestamp=at(50), source_id="a", raw_text="x", config_version=0))
        session.flush()
        first = storage.logs.page(5)
        storage.write_logs([log(100 + number, -number) for number in range(4)])
        second = storage.logs.page(2, first.next)
        assert sorted(numbers(second.late)) == [100, 101, 102, 103]
        session.rollback()
    third = storage.logs.page(2, second.next)
    assert (numbers(third.late), numbers(third.items)) == ([], [7, 8])


def test_rows_that_a_transaction_wrote_itself_are_not_late_to_its_cursors(storage: PostgresStorage) -> None:
    with storage.transaction() as transaction:
        transaction.logs.write_logs([log(number) for number in range(10)])
        first = transaction.logs.page(5)
    second = storage.logs.page(5, first.next)
    assert (numbers(second.late), numbers(second.items)) == ([], [5, 6, 7, 8, 9])


def test_a_log_that_is_stored_again_arrives_again(storage: PostgresStorage) -> None:
    storage.write_logs([log(1), log(2)])
    storage.logs.where(storage.logs.c.log_id == uid(1)).delete()
    storage.write_logs([log(1)])
    assert tailed(storage) == [2, 1]


def test_logs_of_a_table_that_was_emptied_are_stored_again(storage: PostgresStorage) -> None:
    storage.write_logs([log(1), log(2)])
    with storage.engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE raw_logs"))
    assert storage.write_logs([log(2), log(1)]) == 2
    assert tailed(storage) == [1, 2]


def test_a_long_append_meets_no_conflict_with_another(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiberstore.repositories.access.BATCH_ROWS", 2)

    def logs() -> Iterator[LogRecord]:
        yield from [log(1), log(2)]
        storage.write_logs([log(4), log(5)])
        yield from [log(3), log(4)]

    assert storage.write_logs(logs()) == 3
    assert sorted(tailed(storage)) == [1, 2, 3, 4, 5]


def test_a_tail_goes_on_in_the_middle_of_a_large_batch(storage: PostgresStorage) -> None:
    logs: list[LogRecord] = [stored(number) for number in range(12_000, 0, -1)]  # more than is looked at once
    storage.write_logs(logs)
    from_now = storage.logs.tail(timeout_s=0)
    storage.write_logs([stored(12_001)])
    assert [found.log_id.int for found in from_now] == [12_001]
    tail = storage.logs.tail("", timeout_s=0)
    found = [next(tail).log_id.int for _ in range(1_234)]
    found += tailed(storage, tail.position)
    assert found == [*range(1, 12_002)]


def test_a_tail_of_many_transactions_passes_over_none(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiberstore.postgresql.arrival_order._ROWS_AT_ONCE", 3)
    expected: list[int] = []
    for size in (1, 1, 2, 7, 1, 3, 3, 1, 6, 1):
        batch = range(len(expected) + 1, len(expected) + size + 1)
        storage.write_logs([log(number) for number in reversed(batch)])
        expected += batch
    assert tailed(storage) == expected
    for seen in range(len(expected)):
        assert tailed(storage, tailed_to(storage, seen)) == expected[seen:]


def test_after_an_upgrade_all_old_rows_come_first_and_old_places_are_refused(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIBERSTORE_URL", postgres_url)
    config = Config(ROOT / "alembic.ini")
    command.upgrade(config, "0004")
    with PostgresStorage(postgres_url) as storage:
        storage.write_logs([log(3), log(1)])
        with storage.session() as session:
            (cluster,) = session.scalars(sa.text("SELECT system_identifier FROM pg_control_system()"))
            files = session.scalar(FILES)
        old = Watermark(None, 1, cluster=cluster)
        storage.init_schema()
        with storage.session() as session:
            assert session.scalar(FILES) == files  # nothing was written anew
        with pytest.raises(CursorError, match="db upgrade"):
            storage.logs.tail(encode_position(old), timeout_s=0)
        from_now = storage.logs.tail(timeout_s=0)
        storage.write_logs([log(2)])
        assert tailed(storage) == [1, 3, 2]
        assert [found.log_id for found in from_now] == [uid(2)]
        command.downgrade(config, "0004")
        command.upgrade(config, "head")
    with PostgresStorage(postgres_url) as storage, pytest.raises(CursorError, match="db upgrade"):
        storage.logs.tail(from_now.position, timeout_s=0)

"""Queries on DuckDB beyond the contract: sessions, transactions, and what other clients have stored."""

from functools import reduce
from operator import or_
from pathlib import Path

import pytest
import sqlalchemy as sa

from fiberstore import DatabaseError, DuckDBStorage, Fibers, Logs, RawLog, SerializationError
from fiberstore.testing.examples import at, fiber, log, uid


def test_a_stream_as_arrow_leaves_what_is_half_read_in_the_session_alone(
    storage: DuckDBStorage, tmp_path: Path
) -> None:
    storage.write_logs([log(number) for number in range(5_000)])
    with storage.transaction() as transaction:
        records = transaction.logs.iter_records()
        rows = transaction.session.execute(sa.select(RawLog.log_id))
        first = [next(records).log_id, rows.scalars().fetchmany(1)[0]]
        assert transaction.logs.to_arrow().read_all().num_rows == 5_000
        assert transaction.logs.export(tmp_path / "logs.parquet") == 5_000
        assert [first[0], *(row.log_id for row in records)] == [uid(number) for number in range(5_000)]
        assert len({first[1], *rows.scalars()}) == 5_000


def test_a_transaction_that_has_updated_the_newest_fiber_goes_on(storage: DuckDBStorage) -> None:
    with storage.transaction() as transaction:
        transaction.fibers.write_fibers([fiber(number) for number in range(5)])
    page = storage.fibers.page(2)
    with storage.transaction() as transaction:
        transaction.fibers.update_fiber(fiber(4, "login"))
        met = transaction.fibers.page(2, page.next)
        assert [row.fiber_id for row in met.items] == [uid(2), uid(3)]
        assert met.late == []


@pytest.mark.parametrize("limit", [2**63 - 1, 2**63 - 2])
def test_a_page_may_have_any_size(storage: DuckDBStorage, limit: int) -> None:
    storage.write_logs([log(number) for number in range(3)])
    storage.write_fiber(fiber(1))
    assert len(storage.logs.page(limit).items) == 3
    assert len(storage.logs.page(limit, storage.logs.page(1).next).items) == 2
    assert len(storage.fibers.summaries(limit).items) == 1


def test_many_conditions_may_be_joined_one_after_the_other(storage: DuckDBStorage) -> None:
    storage.write_logs([log(number, text=f"line {number}") for number in range(10)])
    any_of_them = reduce(or_, [Logs.c.raw_text == f"line {number}" for number in range(1_000)])
    assert storage.logs.where(any_of_them).count() == 10
    assert storage.logs.where(any_of_them).page(3).next is not None


def test_conditions_that_are_nested_too_deep_are_refused_when_they_are_made(storage: DuckDBStorage) -> None:
    deepest, condition = None, Logs.c.source_id == "web"
    with pytest.raises(ValueError, match="nested more than 60 deep"):
        for _ in range(100):
            deepest = condition
            condition = ~(condition & (Logs.c.source_id == "db"))
    assert deepest is not None
    storage.write_logs([log(1), log(2)])
    assert storage.logs.where(deepest).count() + storage.logs.where(~deepest).count() == 2
    storage.logs.where(deepest).page(1)


def test_a_condition_that_is_turned_round_twice_is_itself() -> None:
    condition = Fibers.c.closed.is_(True)
    for _ in range(10_000):
        condition = ~condition
    assert repr(condition) == "closed"


def test_fibers_without_end_of_another_client_are_told_not_left_out(storage: DuckDBStorage) -> None:
    with storage.transaction() as transaction:
        transaction.fibers.write_fibers([fiber(number, last=at(100)) for number in range(5)])
    with storage.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE fibers SET last_activity = 'infinity' WHERE fiber_id = :id"), {"id": uid(3)}
        )
    longer = Fibers.c.duration > at(50) - at(0)
    assert storage.fibers.where(longer).count() + storage.fibers.where(~longer).count() == 5
    with pytest.raises(SerializationError, match="infinity"):
        storage.fibers.order_by("longest").page(1)


def test_a_store_without_tables_says_what_makes_them(db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage, pytest.raises(DatabaseError, match=r"init_schema\(\) builds"):
        storage.logs.count()

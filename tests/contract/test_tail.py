"""Promises of a tail beyond the contract: real threads, real files, nothing polled."""

import threading
from itertools import islice
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa

from fiberstore import CursorError, DatabaseError, DuckDBStorage, LogRecord, RawLog
from fiberstore.repositories import LogRepository
from fiberstore.testing.examples import all_logs, at, log, uid


def _written_by(storage: DuckDBStorage, writer: int, batch_rows: int, batches: int) -> None:
    for batch in range(batches):
        first = (writer << 32) + batch * batch_rows
        storage.write_logs([log(first + row, at(row)) for row in range(batch_rows)])


@pytest.mark.slow
def test_nothing_is_missed_or_repeated_while_many_threads_write(store_file: Path) -> None:
    """Commits of these sizes overtake one another: DuckDB shows larger rowids before smaller ones."""
    with DuckDBStorage(store_file, pool_size=8) as storage:
        tail = storage.logs.tail(timeout_s=60)
        sizes = [(1, 100), (3, 100), (10, 60), (1_000, 10), (30_000, 1)]
        total = sum(rows * batches for rows, batches in sizes)

        def follow() -> list[UUID]:
            met: list[UUID] = []
            position = tail.position
            while len(met) < total:
                current = storage.logs.tail(position, timeout_s=60)
                met += [row.log_id for row in islice(current, min(2_777, total - len(met)))]
                position = current.position
            assert list(storage.logs.tail(position, timeout_s=0)) == []
            return met

        writers = [
            threading.Thread(target=_written_by, args=(storage, number, *size))
            for number, size in enumerate(sizes)
        ]
        for writer in writers:
            writer.start()
        met = follow()
        for writer in writers:
            writer.join()
        assert len(met) == len(set(met)) == total


def test_a_write_ends_the_wait(storage: DuckDBStorage) -> None:
    tail = storage.logs.tail(timeout_s=60)
    met: list[LogRecord] = []
    reader = threading.Thread(target=lambda: met.extend(islice(tail, 2)))
    reader.start()
    storage.write_logs([log(1)])
    with storage.transaction() as transaction:
        transaction.logs.write_logs([log(2)])
    reader.join(timeout=30)
    assert met == all_logs(storage)


def test_a_tail_holds_no_connection_while_it_waits(store_file: Path) -> None:
    with DuckDBStorage(store_file, pool_size=1) as storage:
        tail = storage.logs.tail(timeout_s=60)
        storage.write_logs([log(1), log(2)])
        assert next(tail).log_id == uid(1)
        storage.write_logs([log(3)])
        assert [row.log_id for row in islice(tail, 2)] == [uid(2), uid(3)]


def test_a_position_survives_the_file_being_closed_and_copied(store_file: Path, tmp_path: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(number) for number in range(10)])
        tail = storage.logs.tail("", timeout_s=0)
        met = [next(tail) for _ in range(4)]
        storage.backup(tmp_path / "copy.duckdb")
    for path in (store_file, tmp_path / "copy.duckdb"):
        with DuckDBStorage(path) as storage:
            rest = list(storage.logs.tail(tail.position, timeout_s=0))
            assert sorted(met + rest, key=lambda row: row.log_id) == all_logs(storage)


def test_a_position_whose_log_was_deleted_is_refused(storage: DuckDBStorage) -> None:
    storage.write_logs([log(1)])
    tail = storage.logs.tail(timeout_s=60)
    with storage.session() as session:
        session.execute(sa.delete(RawLog))
        session.commit()
    storage.write_logs([log(2)])
    with pytest.raises(CursorError, match="deleted"):
        next(tail)
    with pytest.raises(CursorError, match="deleted"):
        storage.logs.tail(tail.position)


def test_deleted_logs_before_the_position_change_nothing(storage: DuckDBStorage) -> None:
    storage.write_logs([log(number) for number in range(10)])
    tail = storage.logs.tail(timeout_s=0)
    with storage.session() as session:
        session.execute(sa.delete(RawLog).where(RawLog.log_id < uid(9)))
        session.commit()
        session.execute(sa.text("CHECKPOINT"))
    storage.write_logs([log(11)])
    assert [row.log_id for row in tail] == [uid(11)]


def test_a_log_that_moves_comes_again(storage: DuckDBStorage) -> None:
    storage.write_logs([log(1), log(2), log(3)])
    tail = storage.logs.tail(timeout_s=0)
    with storage.session() as session:
        session.execute(sa.update(RawLog).where(RawLog.log_id == uid(1)).values(source_id="moved"))
        session.commit()
    assert [row.source_id for row in tail] == ["moved"]


def test_a_closed_storage_ends_the_wait(db_file: Path) -> None:
    storage = DuckDBStorage(db_file)
    storage.init_schema()
    tail = storage.logs.tail()
    storage.close()
    with pytest.raises(DatabaseError, match="closed"):
        next(tail)


def test_a_transaction_cannot_be_followed(storage: DuckDBStorage) -> None:
    with storage.transaction() as transaction, pytest.raises(DatabaseError, match="one moment only"):
        transaction.logs.tail()
    with storage.session() as session, pytest.raises(DatabaseError, match="one moment only"):
        LogRepository(session).tail()

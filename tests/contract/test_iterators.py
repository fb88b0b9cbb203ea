"""Iterators that need not fit in memory: read while they are written, stored whole or not at all."""

from collections.abc import Iterator
from datetime import timedelta
from operator import length_hint
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import fiberstore.repositories.access
from fiberstore import ConflictError, FiberMembership, LogRecord, PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql import bulk
from fiberstore.sql.bulk import _PART_ROWS
from tests.support.factories import NOON, some_logs
from tests.support.parameters import parametrize_mostly_slow

BATCH_ROWS = 4
ALL_DAY = (NOON, NOON + timedelta(days=1))


@pytest.fixture
def storage(any_storage: SqlStorage) -> SqlStorage:
    return any_storage


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fiberstore.repositories.access, "BATCH_ROWS", BATCH_ROWS)


@parametrize_mostly_slow("count", [0, 4, 5, 23, 1, 3, 8, 9], quick=4)
def test_an_iterator_is_stored_to_its_end(storage: SqlStorage, count: int) -> None:
    logs = some_logs(count)
    assert storage.write_logs(iter(logs)) == count
    assert [log.log_id for log in storage.query_logs_by_time(*ALL_DAY)] == [log.log_id for log in logs]
    memberships = [FiberMembership(log_id=log.log_id, fiber_id=log.log_id, config_version=1) for log in logs]
    assert storage.write_memberships(iter(memberships)) == count
    assert [storage.get_log_fibers(log.log_id) for log in logs] == [[log.log_id] for log in logs]


def test_known_logs_of_an_iterator_are_no_op_wherever_they_come_again(storage: SqlStorage) -> None:
    logs = some_logs(11)
    storage.write_logs(logs[6:7])
    again = [log.model_copy(update={"raw_text": "again"}) for log in logs]
    assert storage.write_logs(iter([*logs, *again])) == 10
    assert [log.raw_text for log in storage.query_logs_by_time(*ALL_DAY)] == [log.raw_text for log in logs]


def test_an_iterator_that_fails_stores_nothing(storage: SqlStorage) -> None:
    def failing() -> Iterator[LogRecord]:
        yield from some_logs(2 * BATCH_ROWS + 1)
        raise KeyError("the source")

    with pytest.raises(KeyError, match="the source"):
        storage.write_logs(failing())
    assert storage.query_logs_by_time(*ALL_DAY) == []
    assert storage.write_logs(some_logs(1)) == 1


def test_a_bad_record_late_in_an_iterator_leaves_nothing_behind(storage: SqlStorage) -> None:
    logs: list[LogRecord] = some_logs(2 * BATCH_ROWS + 1)
    logs[-1] = "not a record"  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="must be a LogRecord"):
        storage.write_logs(iter(logs))
    assert storage.query_logs_by_time(*ALL_DAY) == []


def test_an_iterator_is_read_while_it_is_written_and_seen_only_when_it_ends(
    storage: SqlStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, seen = some_logs(3 * BATCH_ROWS), []
    iterator = iter(logs)
    write = bulk.insert_logs

    def watched(session: Session, rows: list[LogRecord], *stamp: Any) -> int:  # noqa: ANN401
        left = length_hint(iterator)
        seen.append((left, len(storage.query_logs_by_time(*ALL_DAY))))
        return write(session, rows, *stamp)

    monkeypatch.setattr(bulk, "insert_logs", watched)
    assert storage.write_logs(iterator) == len(logs)
    assert seen == [(2 * BATCH_ROWS, 0), (BATCH_ROWS, 0), (0, 0)]


@pytest.mark.parametrize("position", [BATCH_ROWS // 2, 2 * BATCH_ROWS + 1])
def test_errors_of_the_application_pass_through_a_write(storage: SqlStorage, position: int) -> None:
    def failing() -> Iterator[LogRecord]:
        yield from some_logs(position)
        raise OperationalError("of another database", None, ValueError("its own"))

    with pytest.raises(OperationalError, match="of another database"):
        storage.write_logs(failing())
    assert storage.query_logs_by_time(*ALL_DAY) == []


def test_an_iterator_meets_the_same_new_log_of_another(storage: SqlStorage) -> None:
    logs = some_logs(3 * BATCH_ROWS)

    def crossed() -> Iterator[LogRecord]:
        yield from logs[:BATCH_ROWS]
        yield logs[BATCH_ROWS]
        assert storage.write_logs(logs[-1:]) == 1
        yield from logs[BATCH_ROWS + 1 :]

    if isinstance(storage, PostgresStorage):  # which passes over it
        assert storage.write_logs(crossed()) == len(logs) - 1
    else:
        with pytest.raises(ConflictError):
            storage.write_logs(crossed())
        assert [log.log_id for log in storage.query_logs_by_time(*ALL_DAY)] == [logs[-1].log_id]
        assert storage.write_logs(iter(logs)) == len(logs) - 1
    assert len(storage.query_logs_by_time(*ALL_DAY)) == len(logs)


def test_a_bad_value_late_in_a_collection_is_told_of_and_leaves_nothing_behind(storage: SqlStorage) -> None:
    logs = some_logs(3 * _PART_ROWS)
    logs[-1] = logs[-1].model_copy(update={"raw_text": "a\0b"})
    with pytest.raises(ValueError, match="NUL"):
        storage.write_logs(logs)
    logs[-1] = "not a record"  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=f"item {len(logs) - 1} must be a LogRecord, got 'not a record'"):
        storage.write_logs(logs)
    assert storage.query_logs_by_time(*ALL_DAY) == []


def test_a_bad_value_late_in_a_collection_leaves_its_transaction_usable(storage: SqlStorage) -> None:
    first, *logs = some_logs(2 * _PART_ROWS + 2)
    logs[-1] = logs[-1].model_copy(update={"raw_text": "a\0b"})
    with storage.transaction() as transaction:
        transaction.logs.write_logs([first])
        with pytest.raises(ValueError, match="NUL"):
            transaction.logs.write_logs(logs)
        transaction.logs.write_logs(logs[:1])
    assert [log.log_id for log in storage.query_logs_by_time(*ALL_DAY)] == [first.log_id, logs[0].log_id]


def test_a_bad_item_late_in_a_collection_may_speak_of_ctrl_c(storage: SqlStorage) -> None:
    bad: Any = {"text": "job failed: KeyboardInterrupt: stop"}
    with pytest.raises(TypeError, match=r"must be a LogRecord, got .*KeyboardInterrupt"):
        storage.write_logs([*some_logs(2 * _PART_ROWS + 1), bad])
    assert storage.logs.count() == 0


def test_of_equal_ids_far_apart_in_a_collection_the_first_is_stored(storage: SqlStorage) -> None:
    logs = some_logs(3 * _PART_ROWS)
    logs.append(logs[0].model_copy(update={"raw_text": "again"}))
    assert storage.write_logs(logs) == len(logs) - 1
    assert storage.write_logs(logs) == 0
    stored = storage.get_log(logs[0].log_id)
    assert stored is not None
    assert stored.raw_text == logs[0].raw_text


def test_a_collection_of_any_length_is_tried_again_after_a_conflict(
    storage: SqlStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = some_logs(3 * BATCH_ROWS)
    write, calls = bulk.insert_logs, []

    def contended(session: Session, rows: list[LogRecord], *stamp: Any) -> int:  # noqa: ANN401
        calls.append(len(rows))
        if len(calls) == 1:
            raise ConflictError("another was first")
        return write(session, rows, *stamp)

    monkeypatch.setattr(bulk, "insert_logs", contended)
    assert storage.write_logs(logs) == len(logs)
    assert calls == [len(logs)] * 2

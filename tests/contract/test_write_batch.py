"""Batches and upserts: all or nothing, again after a conflict, fibers that change their type among them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given

import fiberstore.duckdb.change_lock
import fiberstore.repositories.access
from fiberstore import CheckpointMove, DuckDBStorage, FiberRecord
from fiberstore.contract.results import BatchCounts, Upserted
from fiberstore.errors import DatabaseError
from fiberstore.records import LogRecord
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql import arrow, bulk
from fiberstore.testing.examples import NOON, at, fiber, log, member, stored, uid


@pytest.fixture
def storage(any_storage: SqlStorage) -> SqlStorage:
    return any_storage


def test_a_batch_is_stored_with_its_checkpoint(storage: SqlStorage) -> None:
    storage.write_fiber(fiber(1))
    changed = fiber(1, "login", {"user": "root"}, last=at(9), closed=True)
    counts = storage.write_batch(
        logs=iter([log(1), log(1), stored(2)]),
        fibers=(row for row in (changed, fiber(2))),
        memberships=[member(1, 1), member(2, 2), member(1, 1)],
        checkpoint=CheckpointMove("web.log", None, "2"),
    )
    assert counts == BatchCounts(2, Upserted(1, 1), 2)
    assert storage.fibers.get_many([uid(1), uid(2)]).items == [changed, fiber(2)]
    assert [row.log_id.int for row in storage.get_fiber_logs(uid(1))] == [1]
    assert storage.get_log(uid(2)) == stored(2)
    assert [(found.name, found.value) for found in storage.checkpoints.all()] == [("web.log", "2")]
    again = storage.write_batch(logs=[log(1)], memberships=[member(1, 1)])
    assert again == storage.write_batch() == BatchCounts(0, Upserted(0, 0), 0)


def test_a_batch_is_made_ready_while_others_change_rows(
    duckdb_storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb_storage.write_fiber(fiber(1))
    real, closed = arrow.texts, fiber(1, closed=True)

    def texts(values: Sequence[str]) -> pa.Array:
        duckdb_storage.update_fiber(closed)
        return real(values)

    monkeypatch.setattr(bulk, "texts", texts)
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0.01)
    monkeypatch.setattr(fiberstore.repositories.access, "RETRY_TIMEOUT_S", 0)
    assert duckdb_storage.write_batch(logs=[log(1)], memberships=[member(1, 1)]).logs == 1
    assert duckdb_storage.get_fiber(uid(1)) == closed


def test_a_batch_that_conflicts_is_written_again(
    duckdb_storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another transaction changes rows for longer than one waits for it."""
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0.01)
    with ThreadPoolExecutor(1) as thread:
        with duckdb_storage.transaction() as transaction:
            transaction.logs.write_logs([log(1, text="first")])
            batch = thread.submit(
                duckdb_storage.write_batch,
                logs=[log(1), log(2)],
                fibers=[fiber(1)],
                checkpoint=CheckpointMove("web.log", None, "2"),
            )
            wait([batch], timeout=0.1)
        assert batch.result(60) == BatchCounts(1, Upserted(1, 0), 0)
    first = duckdb_storage.get_log(uid(1))
    assert first is not None
    assert first.raw_text == "first"
    assert duckdb_storage.stats().retries > 0


def test_logs_of_a_batch_are_stamped_when_it_is_written(storage: SqlStorage) -> None:
    before = datetime.now(UTC)
    storage.write_batch(logs=[log(1)])
    found = storage.get_log(uid(1))
    assert found is not None
    assert before <= found.ingestion_time <= datetime.now(UTC)


rows = st.lists(
    st.builds(
        fiber,
        st.integers(0, 4),
        st.sampled_from(["request", "login", "block"]),
        st.sampled_from([None, 1, {"a": [1]}]),
        closed=st.booleans(),
        config_version=st.sampled_from([0, 2**64 - 1]),
    ),
    unique_by=lambda row: row.fiber_id,
    max_size=5,
)


@given(transactions=st.lists(st.lists(rows, max_size=4), max_size=4))
def test_upserts_replace_what_is_stored_and_store_the_rest(
    storage: SqlStorage, transactions: list[list[list[FiberRecord]]]
) -> None:
    storage.fibers.delete()
    expected: dict[object, FiberRecord] = {}
    for batches in transactions:
        with storage.transaction() as transaction:
            for batch in batches:
                known = sum(row.fiber_id in expected for row in batch)
                assert transaction.fibers.upsert_fibers(batch) == Upserted(len(batch) - known, known)
                expected.update({row.fiber_id: row for row in batch})
        assert {row.fiber_id: row for row in storage.fibers.iter_records()} == expected
    for kind in ("request", "login", "block"):
        found = {row.fiber_id for row in storage.query_fibers_by_type(kind)}
        assert found == {key for key, row in expected.items() if row.fiber_type == kind}


def test_a_read_only_storage_refuses_a_batch(file_storage: DuckDBStorage) -> None:
    path = file_storage.engine.url.database or ""
    file_storage.close()
    with DuckDBStorage(path, read_only=True) as read_only, pytest.raises(DatabaseError, match="read-only"):
        read_only.write_batch(logs=[LogRecord(timestamp=NOON, source_id="web", raw_text="GET /")])

"""Buffered writers: when they flush, how much they hold, and that nothing is lost without a word."""

import logging
import pickle
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

import fiberstore.duckdb.change_lock
import fiberstore.repositories.access
from fiberstore import (
    BufferedWriter,
    BufferFullError,
    CheckpointMove,
    ConflictError,
    DatabaseError,
    DuckDBStorage,
    FiberKey,
    FiberMembership,
    FiberRecord,
    LogRecord,
    StorageClosedError,
    UnwrittenError,
)
from fiberstore.contract.results import BatchCounts
from fiberstore.testing.examples import LONG_TEXT, fiber, log, member, nested, stored, uid
from fiberstore.writer.buffer import RECORD_BYTES, BufferedRecord, checked
from tests.support import writer_programs
from tests.support.parameters import parametrize_mostly_slow

TIMEOUT_S = 60
NEVER_S = 1_000.0
LOG_BYTES = checked(log(1))[1]


class GatedStorage(DuckDBStorage):
    """A storage whose batches wait for a gate, and fail as often as they are told."""

    def __init__(self, target: Path) -> None:
        super().__init__(target)
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.errors: list[Exception] = []
        self.batches: list[list[BufferedRecord]] = []

    def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        keys: Iterable[FiberKey] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        logs, fibers, memberships = list(logs), list(fibers), list(memberships)
        self.arrived.release()
        assert self.gate.wait(TIMEOUT_S)
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append([*logs, *fibers, *memberships])
        return super().write_batch(
            logs=logs, fibers=fibers, memberships=memberships, keys=keys, checkpoint=checkpoint
        )


@pytest.fixture
def gated(opened_store: Path) -> Iterator[GatedStorage]:
    with GatedStorage(opened_store) as storage:
        yield storage


def results(futures: Iterable[Future[None]]) -> list[None]:
    return [future.result(TIMEOUT_S) for future in futures]


def numbers(storage: DuckDBStorage) -> list[int]:
    return [row.log_id.int for row in storage.logs.iter_records()]


# When it flushes


def test_it_flushes_when_there_are_enough_rows(gated: GatedStorage) -> None:
    with BufferedWriter(gated, flush_rows=3, flush_interval_s=NEVER_S) as writer:
        results([writer.write(log(number)) for number in range(3)])
        rest = writer.write(log(3))
        assert [len(batch) for batch in gated.batches] == [3]
        assert not rest.done()
    assert [len(batch) for batch in gated.batches] == [3, 1]
    assert rest.done()


def test_it_flushes_when_there_are_enough_bytes(gated: GatedStorage) -> None:
    with BufferedWriter(gated, flush_bytes=50_000, flush_interval_s=NEVER_S) as writer:
        small = [writer.write(log(number)) for number in range(3)]
        assert gated.batches == []
        results([*small, writer.write(log(3, text="x" * 50_000))])
    assert [len(batch) for batch in gated.batches] == [3, 1]  # no batch is larger, unless one record is


def test_it_flushes_when_the_oldest_has_waited(gated: GatedStorage) -> None:
    with BufferedWriter(gated, flush_interval_s=0.05) as writer:
        for number in range(3):
            writer.write(log(number)).result(TIMEOUT_S)
    assert [len(batch) for batch in gated.batches] == [1, 1, 1]


def test_a_batch_has_no_more_rows_than_said(gated: GatedStorage) -> None:
    gated.gate.clear()
    with BufferedWriter(gated, flush_rows=4, flush_interval_s=NEVER_S) as writer:
        futures = [writer.write(log(number)) for number in range(10)]
        gated.gate.set()
        results(futures[:8])
    assert [len(batch) for batch in gated.batches] == [4, 4, 2]
    assert [record for batch in gated.batches for record in batch] == [log(number) for number in range(10)]


def test_flush_waits_until_all_is_durable(gated: GatedStorage) -> None:
    with BufferedWriter(gated, flush_interval_s=NEVER_S) as writer:
        writer.flush()
        futures = [writer.write(log(number)) for number in range(5)]
        writer.flush()
        assert all(future.done() for future in futures)
        assert numbers(gated) == [0, 1, 2, 3, 4]
        gated.gate.clear()
        late = writer.write(log(5))
        with pytest.raises(TimeoutError, match="1 records are not stored yet"):
            writer.flush(timeout_s=0.01)
        assert not late.done()
        gated.gate.set()
        writer.flush()
        assert late.done()


# What it stores


def test_all_kinds_of_records_are_stored(gated: GatedStorage) -> None:
    gated.write_fiber(fiber(1))
    with BufferedWriter(gated, flush_interval_s=NEVER_S) as writer:
        records: list[BufferedRecord] = [
            fiber(1, "login"), log(1), member(1, 1), fiber(2), stored(2), log(1, text="again"),
            fiber(1, "request", {"n": 1}), member(1, 1), fiber(1, "request", {"n": 2}, closed=True),
        ]  # fmt: skip
        futures = [writer.write(record) for record in records]
        writer.flush()
        assert results(futures) == [None] * len(records)
    assert gated.fibers.get_many([uid(1), uid(2)]).items == [
        fiber(1, "request", {"n": 2}, closed=True),
        fiber(2),
    ]
    assert gated.get_log(uid(2)) == stored(2)
    first = gated.get_log(uid(1))
    assert first is not None
    assert (first.raw_text, first.config_version) == ("GET /", gated.config_version)
    assert gated.get_log_fibers(uid(1)) == [uid(1)]


def test_a_later_batch_replaces_a_fiber(gated: GatedStorage) -> None:
    with BufferedWriter(gated, flush_rows=1) as writer:
        for number in range(5):
            writer.write(fiber(1, attributes={"n": number}))
    assert gated.get_fiber(uid(1)) == fiber(1, attributes={"n": 4})


def test_what_is_done_to_a_record_later_changes_nothing(gated: GatedStorage) -> None:
    record = fiber(1, attributes={"ids": [1]})
    with BufferedWriter(gated, flush_interval_s=NEVER_S) as writer:
        writer.write(record)
        assert isinstance(record.attributes, dict)
        record.attributes["ids"] = object()  # type: ignore[assignment]
    assert gated.get_fiber(uid(1)) == fiber(1, attributes={"ids": [1]})


@parametrize_mostly_slow(
    ("record", "error"),
    [
        (uid(1), TypeError),
        ([log(1)], TypeError),
        (log(1).model_copy(update={"raw_text": "a\0b"}), ValueError),
        (log(1).model_copy(update={"timestamp": log(1).timestamp.replace(tzinfo=None)}), ValueError),
        (stored(1).model_copy(update={"config_version": -1}), ValueError),
        (FiberMembership.model_construct(log_id=uid(1)), TypeError),  # type: ignore[call-arg]
        (fiber(1).model_copy(update={"attributes": float("nan")}), ValueError),
        (member(1, 1).model_copy(update={"log_id": None}), ValueError),
    ],
    quick=4,
)
def test_a_bad_record_is_refused_at_once(gated: GatedStorage, record: Any, error: type[Exception]) -> None:  # noqa: ANN401
    with BufferedWriter(gated, flush_interval_s=NEVER_S) as writer:
        good = writer.write(log(2))
        with pytest.raises(error):
            writer.write(record)
    assert good.result() is None
    assert gated.batches == [[log(2)]]


@pytest.mark.parametrize(
    "options",
    [
        {"flush_rows": 0},
        {"flush_bytes": 0},
        {"buffer_bytes": -1},
        {"flush_interval_s": -0.1},
        {"flush_interval_s": float("nan")},
        {"when_full": "wait"},
    ],
)
def test_arguments_out_of_bounds_are_refused(storage: DuckDBStorage, options: dict[str, Any]) -> None:
    threads = threading.active_count()
    with pytest.raises(ValueError, match=next(iter(options))):
        BufferedWriter(storage, **options)
    assert threading.active_count() == threads


def test_a_future_cannot_be_cancelled(gated: GatedStorage) -> None:
    gated.gate.clear()
    with BufferedWriter(gated, flush_rows=1) as writer:
        future = writer.write(log(1))
        assert not future.cancel()
        gated.gate.set()
    assert future.result() is None
    assert numbers(gated) == [1]


# How much it holds


def test_block_waits_for_room(gated: GatedStorage) -> None:
    gated.gate.clear()
    writer = BufferedWriter(gated, flush_rows=2, flush_interval_s=NEVER_S, buffer_bytes=3 * LOG_BYTES)
    with writer, ThreadPoolExecutor(1) as thread:
        futures = [writer.write(log(number)) for number in range(3)]
        assert gated.arrived.acquire(timeout=TIMEOUT_S)  # two are being written, and count
        blocked = thread.submit(writer.write, log(3))
        assert not wait([blocked], timeout=0.05).done
        gated.gate.set()
        futures.append(blocked.result(TIMEOUT_S))
    assert results(futures) == [None] * 4
    assert numbers(gated) == [0, 1, 2, 3]


def test_one_who_waits_for_room_does_not_wait_for_time_or_rows(gated: GatedStorage) -> None:
    with BufferedWriter(gated, flush_interval_s=NEVER_S, buffer_bytes=3 * LOG_BYTES) as writer:
        for number in range(100):
            writer.write(log(number))
    assert numbers(gated) == list(range(100))


def test_raise_refuses_what_has_no_room(gated: GatedStorage) -> None:
    gated.gate.clear()
    with BufferedWriter(gated, flush_rows=1, buffer_bytes=2 * LOG_BYTES, when_full="raise") as writer:
        futures = [writer.write(log(number)) for number in range(2)]
        with pytest.raises(BufferFullError) as caught:
            writer.write(log(2))
        assert (caught.value.records, caught.value.size_bytes) == (2, 2 * LOG_BYTES)
        assert writer.dropped == 0
        gated.gate.set()
        results(futures)
        writer.flush()
        writer.write(log(3))
    assert numbers(gated) == [0, 1, 3]


def test_drop_counts_what_has_no_room(gated: GatedStorage) -> None:
    gated.gate.clear()
    with BufferedWriter(gated, flush_rows=1, buffer_bytes=2 * LOG_BYTES, when_full="drop") as writer:
        futures = [writer.write(log(number)) for number in range(5)]
        assert writer.dropped == 3
        assert [type(future.exception(0)) for future in futures[2:]] == [BufferFullError] * 3
        gated.gate.set()
        results(futures[:2])
    assert numbers(gated) == [0, 1]


def test_a_record_larger_than_the_buffer_is_taken_alone(gated: GatedStorage) -> None:
    with BufferedWriter(gated, flush_interval_s=NEVER_S, buffer_bytes=10_000) as writer:
        for number in range(3):
            writer.write(log(number))
            writer.write(log(10 + number, text=LONG_TEXT))
    assert numbers(gated) == [0, 1, 2, 10, 11, 12]
    assert (
        max(len(batch) for batch in gated.batches if any(row == log(10, text=LONG_TEXT) for row in batch))
        == 1
    )


@pytest.mark.slow
@parametrize_mostly_slow(
    "record",
    [
        log,
        lambda number: log(number, text=f"{number:09}" * 1_000),
        lambda number: log(number, text="\U0001f600" * number),
        lambda number: fiber(number, attributes={f"key {key}": [number, 1.5] for key in range(50)}),
        lambda number: fiber(number, attributes=nested(30)),
        lambda number: member(number, number),
    ],
)
def test_memory_is_bounded(gated: GatedStorage, record: Callable[[int], BufferedRecord]) -> None:
    buffer_bytes = 4 << 20
    gated.gate.clear()
    with BufferedWriter(gated, flush_rows=10, buffer_bytes=buffer_bytes, when_full="raise") as writer:
        writer.write(record(0))
        assert gated.arrived.acquire(timeout=TIMEOUT_S)
        tracemalloc.start()
        try:
            with pytest.raises(BufferFullError):
                for number in range(1, 100_000):
                    writer.write(record(number))
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gated.gate.set()
        assert buffer_bytes / 8 < held_bytes < 1.1 * buffer_bytes


def test_a_text_counts_with_what_its_characters_need() -> None:
    sizes = [checked(log(1, text=text * 1_000_000))[1] for text in ("x", "\u0416", "\U0001f600")]
    assert [round(size / 1_000_000) for size in sizes] == [1, 2, 4]
    assert checked(member(1, 1))[1] == RECORD_BYTES


# When a flush fails


def test_a_failed_flush_loses_nothing_and_keeps_the_order(
    gated: GatedStorage, caplog: pytest.LogCaptureFixture
) -> None:
    gated.gate.clear()
    gated.errors = [DatabaseError("no space for 'secret'"), ConflictError("once more")]
    with (
        caplog.at_level(logging.WARNING, "fiberstore"),
        BufferedWriter(gated, flush_rows=2, flush_interval_s=0.1) as writer,
    ):
        futures = [writer.write(log(number, text="secret")) for number in range(5)]
        gated.gate.set()
        results(futures)
        writer.flush()
        assert writer.last_error is None
    assert [record for batch in gated.batches for record in batch] == [
        log(number, text="secret") for number in range(5)
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "DatabaseError" in caplog.text
    assert "secret" not in caplog.text


def test_flush_raises_why_it_is_not_durable(storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another transaction changes rows for longer than a batch waits for it."""
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0.01)
    monkeypatch.setattr(fiberstore.repositories.access, "RETRY_TIMEOUT_S", 0.01)
    with BufferedWriter(storage, flush_rows=1) as writer:
        with storage.transaction():
            future = writer.write(fiber(1))
            while writer.last_error is None:
                time.sleep(0.001)
            with pytest.raises(ConflictError, match="another open transaction"):
                writer.flush(timeout_s=0.01)
            assert isinstance(writer.last_error, ConflictError)
            assert not future.done()
        writer.flush()
        assert future.done()
    assert storage.fibers.count() == 1


def test_a_writer_whose_storage_is_closed_takes_no_more(storage: DuckDBStorage) -> None:
    with BufferedWriter(storage, flush_interval_s=NEVER_S) as writer:
        future = writer.write(log(1))
        storage.close()
        with pytest.raises(StorageClosedError):
            writer.flush()
        assert isinstance(future.exception(60), StorageClosedError)
        with pytest.raises(DatabaseError, match="the writer is closed"):
            writer.write(log(2))
        with pytest.raises(UnwrittenError):
            writer.close()


def test_close_gives_back_what_could_not_be_stored(storage: DuckDBStorage, tmp_path: Path) -> None:
    writer = BufferedWriter(storage, flush_interval_s=NEVER_S)
    records: list[BufferedRecord] = [log(2), fiber(1), member(2, 1), log(1)]
    futures = [writer.write(record) for record in records]
    storage.close()
    began_s = time.monotonic()
    with pytest.raises(UnwrittenError, match="4 records") as caught:
        writer.close()
    assert time.monotonic() - began_s < 5  # not tried again until its timeout of 30 s
    assert caught.value.records == records
    assert isinstance(caught.value.__cause__, StorageClosedError)
    assert [future.exception(0) for future in futures] == [writer.last_error] * 4
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert copy.records == records
    writer.close()
    with pytest.raises(DatabaseError, match="storage is closed"):
        writer.flush()
    with DuckDBStorage(tmp_path / "other.duckdb") as other:
        other.init_schema()
        with BufferedWriter(other) as second:
            for record in caught.value.records:
                second.write(record)
        assert numbers(other) == [1, 2]


def test_one_who_waits_for_a_flush_is_told_that_it_was_given_up(gated: GatedStorage) -> None:
    gated.gate.clear()
    gated.errors = [DatabaseError("not today")]
    writer = BufferedWriter(gated, flush_rows=1)
    writer.write(log(1))
    with ThreadPoolExecutor(2) as threads:
        flushing = threads.submit(writer.flush)
        closing = threads.submit(writer.close, 0)
        with pytest.raises(DatabaseError, match="writer is closed"):
            while True:  # until it is closing
                writer.write(log(1))
        gated.gate.set()
        with pytest.raises(DatabaseError, match="not today"):
            flushing.result(TIMEOUT_S)
        with pytest.raises(UnwrittenError):
            closing.result(TIMEOUT_S)


def test_close_tries_again_until_its_time_is_over(gated: GatedStorage) -> None:
    gated.errors = [DatabaseError("not yet"), DatabaseError("not yet")]
    writer = BufferedWriter(gated, flush_interval_s=NEVER_S)
    future = writer.write(log(1))
    writer.close(timeout_s=TIMEOUT_S)
    assert future.result(0) is None
    assert numbers(gated) == [1]


def test_a_read_only_storage_stores_nothing(file_storage: DuckDBStorage) -> None:
    path = file_storage.engine.url.database or ""
    file_storage.close()
    with DuckDBStorage(path, read_only=True) as read_only:
        writer = BufferedWriter(read_only)
        writer.write(log(1))
        with pytest.raises(UnwrittenError) as caught:
            writer.close(timeout_s=0)
    assert caught.value.records == [log(1)]


def test_the_error_of_a_full_buffer_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(BufferFullError(3, 7_500)))  # noqa: S301
    assert (error.records, error.size_bytes) == (3, 7_500)
    assert "3 others, of 7500 bytes" in str(error)


# Threads, and the end


def test_many_threads_write(gated: GatedStorage) -> None:
    with BufferedWriter(gated, flush_rows=50, buffer_bytes=100 * LOG_BYTES) as writer:

        def write(thread: int) -> list[Future[None]]:
            return [writer.write(log(thread * 1_000 + number)) for number in range(200)]

        with ThreadPoolExecutor(8) as threads:
            futures = [future for found in threads.map(write, range(8)) for future in found]
        results(futures)
    expected = [thread * 1_000 + number for thread in range(8) for number in range(200)]
    assert numbers(gated) == expected
    written = [
        record.log_id.int for batch in gated.batches for record in batch if isinstance(record, LogRecord)
    ]
    for thread in range(8):  # each in its order
        own = [number for number in written if number // 1_000 == thread]
        assert own == sorted(own)


def test_close_under_load_keeps_what_it_has_taken(gated: GatedStorage) -> None:
    writer = BufferedWriter(gated, flush_rows=20, buffer_bytes=60 * LOG_BYTES)
    begun = threading.Barrier(5)

    def write(thread: int) -> list[tuple[int, Future[None]]]:
        taken: list[tuple[int, Future[None]]] = []
        for number in range(thread, 10_000_000, 4):
            if number == thread + 200:
                begun.wait(TIMEOUT_S)
            try:
                taken.append((number, writer.write(log(number))))
            except DatabaseError:  # it is closed
                break
        return taken

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(write, thread) for thread in range(4)]
        begun.wait(TIMEOUT_S)
        writer.close()
        taken = [pair for found in running for pair in found.result(TIMEOUT_S)]
    assert all(future.done() and future.exception() is None for _, future in taken)
    assert numbers(gated) == sorted(number for number, _ in taken)


def test_one_who_waits_for_room_is_told_that_it_was_closed(gated: GatedStorage) -> None:
    gated.gate.clear()
    writer = BufferedWriter(gated, flush_rows=1, buffer_bytes=1)
    writer.write(log(1))
    with ThreadPoolExecutor(2) as threads:
        blocked = threads.submit(writer.write, log(2))
        assert not wait([blocked], timeout=0.05).done
        closing = threads.submit(writer.close)
        with pytest.raises(DatabaseError, match="writer is closed"):
            blocked.result(TIMEOUT_S)
        assert not closing.done()
        gated.gate.set()
        closing.result(TIMEOUT_S)
    with pytest.raises(DatabaseError, match="writer is closed"):
        writer.write(log(3))
    assert numbers(gated) == [1]


def test_the_thread_ends(storage: DuckDBStorage) -> None:
    threads = threading.active_count()
    with BufferedWriter(storage):
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads


def test_a_callback_that_would_wait_for_its_own_writer_is_refused(gated: GatedStorage) -> None:
    gated.gate.clear()
    with BufferedWriter(gated, flush_rows=1, buffer_bytes=LOG_BYTES) as writer:
        raised: list[str] = []

        def in_callback(_future: Future[None]) -> None:
            for call in (writer.flush, writer.close, lambda: writer.write(log(2))):
                with pytest.raises(RuntimeError) as caught:
                    call()
                raised.append(str(caught.value))

        future = writer.write(log(1))
        future.add_done_callback(in_callback)
        gated.gate.set()
        writer.flush(TIMEOUT_S)
    assert len(raised) == 3


def test_a_callback_that_raises_does_not_end_the_writer(gated: GatedStorage) -> None:
    def leave(_future: Future[None]) -> None:
        raise SystemExit

    gated.gate.clear()
    with BufferedWriter(gated, flush_rows=2) as writer:
        first = writer.write(log(1))
        first.add_done_callback(leave)
        second = writer.write(log(2))
        gated.gate.set()
        writer.flush(TIMEOUT_S)
        assert (first.result(), second.result()) == (None, None)
        writer.write(log(3))
    assert gated.logs.count() == 3


def test_any_number_of_seconds_can_be_waited_for(gated: GatedStorage) -> None:
    for endless_s in (1e12, 1e300):
        with BufferedWriter(gated, flush_interval_s=endless_s) as writer:
            future = writer.write(log(1))
            with pytest.raises(TimeoutError):
                future.result(0.2)
            writer.flush(endless_s)
            assert future.done()
            writer.flush(float("inf"))


# Other processes


def run(program: str, path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", writer_programs.__name__, program, str(path)],
        capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip


@pytest.mark.slow
def test_what_is_durable_survives_a_kill(db_file: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", writer_programs.__name__, "write_until_killed", str(db_file)],
        stdout=subprocess.PIPE,
    )
    assert program.stdout is not None
    durable = {int(program.stdout.readline()) for _ in range(3_000)}
    program.send_signal(signal.SIGKILL)
    rest = program.stdout.read().decode()
    durable |= {int(line) for line in rest.split("\n")[:-1]}
    program.wait(TIMEOUT_S)
    program.stdout.close()
    with DuckDBStorage(db_file) as storage:
        assert durable <= set(numbers(storage))


@pytest.mark.slow
def test_a_full_disk_loses_nothing(db_file: Path) -> None:
    finished = run("fill_disk", db_file)
    assert finished.stderr.count("Traceback") == 0, finished.stderr
    assert finished.stdout.split("\n") == [
        "flush DatabaseError", "left 5000 True True", "before 0", "after 5000", "",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_writer_that_nobody_closes_is_closed_in_the_end(store_file: Path) -> None:
    finished = run("end_without_close", store_file)
    assert finished.returncode == 0
    assert "Error" not in finished.stderr  # DuckDB's binding may complain of leaks
    with DuckDBStorage(store_file) as storage:
        assert numbers(storage) == [1, 2]


@pytest.mark.slow
def test_what_is_lost_in_the_end_is_said(db_file: Path) -> None:
    finished = run("end_without_storage", db_file)
    assert "UnwrittenError: 1 records are not stored" in finished.stderr
    assert "the storage is closed" in finished.stderr
    assert "secret" not in finished.stderr


@pytest.mark.slow
def test_a_forked_child_cannot_use_the_writer(db_file: Path) -> None:
    finished = run("fork", db_file)
    refused = "DatabaseError the writer belongs to the parent process"
    said = finished.stdout.split("\n")
    assert [line[: len(refused)] for line in said[:2]] == [refused] * 2
    assert said[2:] == ["status 0", "durable True 1", ""]


@pytest.mark.slow
def test_ctrl_c_leaves_the_writer_usable(db_file: Path) -> None:
    finished = run("interrupt", db_file)
    assert finished.stdout.split("\n") == [
        "write interrupted", "flush interrupted", "close interrupted", "1 3 4", "",
    ]  # fmt: skip
    assert finished.returncode == 0, finished.stderr

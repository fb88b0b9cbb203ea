"""Telemetry of calls: counts, log records, hooks, OpenTelemetry."""

import asyncio
import importlib
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fiberstore import (
    AsyncDuckDBStorage,
    ConflictError,
    DuckDBStorage,
    DuplicateError,
    Fiber,
    FiberMembership,
    LogRepository,
    NotFoundError,
    SerializationError,
    StorageError,
    otel,
)
from fiberstore.telemetry import Call, CallStats, StorageStats
from fiberstore.testing.concurrency import together
from tests.support.factories import NOON, a_fiber, some_logs

SECRET = "password=hunter2"  # noqa: S105  # what must not be in a log


@pytest.fixture
def storage(store_file: Path) -> Iterator[DuckDBStorage]:
    """A storage whose first call was ``init_schema``."""
    with DuckDBStorage(store_file) as storage:
        storage.init_schema()
        yield storage


def test_calls_errors_and_rows_are_counted(storage: DuckDBStorage) -> None:
    logs, fiber = some_logs(3), a_fiber()
    storage.write_logs(logs)
    storage.write_logs(logs)
    storage.write_logs(iter(some_logs(2)))
    storage.write_fiber(fiber)
    storage.update_fiber(fiber)
    for _ in range(4):
        storage.get_log(logs[0].log_id)
    with pytest.raises(DuplicateError):
        storage.write_fiber(fiber)
    with pytest.raises(NotFoundError):
        storage.update_fiber(a_fiber())
    storage.upsert_fibers([fiber])
    with pytest.raises(ValueError, match="given twice"):
        storage.upsert_fibers([fiber, fiber])
    with pytest.raises(ValueError, match="which ends itself"):
        storage.merge_fibers({fiber.fiber_id: fiber.fiber_id})
    with pytest.raises(TypeError):
        storage.get_log("no id")  # type: ignore[arg-type]
    stats = storage.stats()
    assert {name: (of.calls, of.errors) for name, of in stats.calls.items()} == {
        "init_schema": (1, 0),
        "write_logs": (3, 0),
        "write_fiber": (2, 1),
        "update_fiber": (2, 1),
        "upsert_fibers": (2, 1),
        "merge_fibers": (1, 1),
        "get_log": (5, 1),
    }
    assert all(of.duration_s > 0 for of in stats.calls.values())
    assert (stats.rows_written, stats.conflicts, stats.retries) == (3 + 2 + 1 + 1 + 1, 0, 0)


def test_each_stream_is_one_call_and_a_transaction_counts_its_own(storage: DuckDBStorage) -> None:
    storage.write_logs(some_logs(5_000))
    list(storage.logs.iter_records())
    list(storage.memberships.iter_records())
    storage.fibers.to_arrow().read_all()
    half_read = storage.logs.iter_records()
    next(half_read)
    del half_read
    storage.logs.to_arrow(7).close()
    list(storage.logs.tail(timeout_s=0))
    storage.logs.iter_records()  # of which nothing is asked
    with storage.transaction() as transaction:
        list(transaction.logs.iter_records())
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE raw_logs SET ingestion_time = NULL"))
    for stream in (lambda: next(storage.logs.iter_records()), storage.logs.to_arrow):
        with pytest.raises(SerializationError):
            stream()
    assert {name: (of.calls, of.errors) for name, of in storage.stats().calls.items()} == {
        "init_schema": (1, 0),
        "write_logs": (1, 0),
        "logs.iter_records": (3, 1),
        "memberships.iter_records": (1, 0),
        "fibers.to_arrow": (1, 0),
        "logs.to_arrow": (2, 1),
        "logs.tail": (2, 0),
        "transaction": (1, 0),
    }


def test_the_time_of_its_reader_is_not_that_of_a_stream(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Call] = []
    passed_s = 0.0
    storage.write_logs(some_logs(5_000))
    storage.on_call(seen.append)
    monkeypatch.setattr("fiberstore.telemetry.time.perf_counter", lambda: passed_s)
    for _ in storage.logs.iter_records():
        passed_s += 1
    with storage.logs.to_arrow(1_000) as reader:
        for _ in reader:
            passed_s += 1
    elapsed_ns = [call.ended_ns - call.began_ns for call in seen]
    assert [call.duration_s for call in seen] == [0, 0]
    assert elapsed_ns == [5_000 * 10**9, 5 * 10**9]


def test_a_new_storage_has_done_nothing(db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage:
        assert storage.stats() == StorageStats()


def test_rows_of_a_transaction_count_once_it_is_committed(storage: DuckDBStorage) -> None:
    fiber = a_fiber()
    with storage.transaction() as transaction:
        transaction.logs.write_logs(some_logs(5))
        transaction.fibers.write_fibers([fiber, a_fiber()])
        transaction.session.add(Fiber(**dict(a_fiber())))
        assert storage.stats().rows_written == 0
    assert storage.stats().rows_written == 8
    with pytest.raises(KeyError), storage.transaction() as transaction:
        transaction.logs.write_logs(some_logs(5))
        raise KeyError
    stats = storage.stats()
    assert stats.rows_written == 8
    assert (stats.calls["transaction"].calls, stats.calls["transaction"].errors) == (2, 1)


def test_threads_are_counted_without_loss(storage: DuckDBStorage) -> None:
    def fail() -> None:
        for _ in range(300):
            with pytest.raises(TypeError):
                storage.get_log("no id")  # type: ignore[arg-type]

    together([fail] * 8)
    assert storage.stats().calls["get_log"].errors == 8 * 300


def test_conflicts_and_retries_are_counted_and_logged(
    storage: DuckDBStorage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiberstore.duckdb.change_lock.LOCK_TIMEOUT_S", 0.01)
    fiber = a_fiber()
    storage.write_fiber(fiber)
    with caplog.at_level(logging.INFO, "fiberstore"), ThreadPoolExecutor(1) as thread:
        with storage.transaction():
            late = thread.submit(storage.update_fiber, fiber)
            while not caplog.records:
                assert not late.done()
        late.result()
    stats = storage.stats()
    assert stats.conflicts == stats.retries >= 1
    assert caplog.records[0].name == "fiberstore.repositories.access"
    assert caplog.records[0].getMessage() == "update_fiber met a conflict and is run again (1)"
    (log,) = some_logs(1)
    with pytest.raises(ConflictError), storage.transaction() as transaction:
        transaction.logs.write_logs([log])
        storage.write_logs([log])
    assert storage.stats().conflicts == stats.conflicts + 1


def test_slow_calls_are_logged_from_the_threshold_on(db_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    for slow_call_s, expected in ((0.0, ["init_schema", "write_logs"]), (3600.0, [])):
        caplog.clear()
        with DuckDBStorage(db_file, slow_call_s=slow_call_s) as storage:
            storage.init_schema()
            storage.write_logs(some_logs(7))
        slow = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [record.getMessage().split()[2] for record in slow] == expected
        if slow:
            assert slow[-1].name == "fiberstore.telemetry"
            assert slow[-1].getMessage().endswith(" s, 7 rows written")
    with pytest.raises(ValueError, match="slow_call_s"):
        DuckDBStorage(db_file, slow_call_s=-1)


def test_checkpoints_and_migrations_are_logged(db_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fiberstore"), DuckDBStorage(db_file, slow_call_s=3600) as storage:
        storage.init_schema()
        storage.write_logs(some_logs(2000))
        wal_bytes = db_file.with_name(f"{db_file.name}.wal").stat().st_size
        with storage.engine.connect() as connection:
            connection.execute(sa.text("CHECKPOINT"))
        storage.write_logs(some_logs(1))
        assert storage.stats().checkpoints == 1
    assert [
        (record.name, record.getMessage()) for record in caplog.records if "fiberstore" in record.name
    ] == [
        ("fiberstore.sql.migrate", "the database is migrated from revision None to 0005"),
        (
            "fiberstore.telemetry",
            f"WAL checkpoint: {wal_bytes} bytes of the write-ahead log are in the file now",
        ),
    ]


def test_growing_is_no_checkpoint(storage: DuckDBStorage) -> None:
    def write() -> None:
        for log in some_logs(20):
            storage.write_logs([log])

    together([write] * 8)
    assert storage.stats().checkpoints == 0


def test_a_log_that_cannot_be_looked_at_spoils_no_call(storage: DuckDBStorage, db_file: Path) -> None:
    storage.write_logs(some_logs(1))
    folder = db_file.parent
    folder.rename(folder.with_name("moved"))
    folder.touch()
    try:
        assert storage.write_logs(some_logs(1)) == 1
    finally:
        folder.unlink()
        folder.with_name("moved").rename(folder)


def test_no_text_and_no_id_is_logged(
    db_file: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    (log,) = (record.model_copy(update={"raw_text": SECRET, "source_id": SECRET}) for record in some_logs(1))
    fiber = a_fiber(fiber_type=SECRET, attributes={SECRET: SECRET})
    with caplog.at_level(logging.DEBUG, "fiberstore"), DuckDBStorage(db_file, slow_call_s=0.0) as storage:
        storage.init_schema()
        storage.write_logs([log, log])
        storage.write_fiber(fiber)
        with pytest.raises(StorageError):
            storage.write_fiber(fiber)
        storage.query_fibers_by_type(SECRET)
        with storage.session() as session:
            LogRepository(session).write_logs(some_logs(1))
            with pytest.raises(ValueError, match="NUL"):
                storage.query_fibers_by_type(f"{SECRET}\0")
    text = "\n".join(caplog.handler.format(record) for record in caplog.records)
    assert "slow call: write_fiber" in text
    for word in (SECRET, str(log.log_id), str(fiber.fiber_id)):
        assert word not in text
    assert capfd.readouterr() == ("", "")  # who has set up no logging sees nothing


def test_hooks_see_every_call_and_cannot_spoil_it(
    storage: DuckDBStorage, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Call] = []

    def broken(_call: Call) -> None:
        raise ZeroDivisionError

    storage.on_call(broken)
    for _ in range(2):
        storage.on_call(seen.append)
    assert storage.write_logs(some_logs(3)) == 3
    with pytest.raises(NotFoundError) as caught:
        storage.update_fiber(a_fiber())
    assert [(call.method, call.rows_written, call.error) for call in seen] == [
        ("write_logs", 3, None),
        ("update_fiber", 0, caught.value),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "a hook failed after write_logs",
        "a hook failed after update_fiber",
    ]


def test_calls_become_spans_and_a_histogram(storage: DuckDBStorage) -> None:
    spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider(metric_readers=[metrics])
    for _ in range(2):
        otel.instrument(storage, tracer_provider=provider, meter_provider=meters)
    with provider.get_tracer("app").start_as_current_span("request") as request:
        storage.write_logs(some_logs(3))
        with pytest.raises(NotFoundError):
            storage.update_fiber(a_fiber())
    written, failed, outer = spans.get_finished_spans()
    for span in (written, failed):
        assert span.parent == request.get_span_context()
        assert span.kind is SpanKind.CLIENT
        assert span.start_time is not None
        assert span.end_time is not None
        assert outer.start_time is not None
        assert outer.start_time <= span.start_time < span.end_time
    assert written.name == "write_logs fiberstore"
    assert dict(written.attributes or {}) == {
        "db.system.name": "duckdb",
        "db.operation.name": "write_logs",
        "fiberstore.rows_written": 3,
        "fiberstore.retries": 0,
    }
    assert (failed.attributes or {})["error.type"] == "NotFoundError"
    assert (written.status.status_code, failed.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    data = metrics.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("db.client.operation.duration", "s")
    points = list(metric.data.data_points)
    assert [point.count for point in points if isinstance(point, HistogramDataPoint)] == [1, 1]
    for point in points:
        assert isinstance(point, HistogramDataPoint)
        assert point.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)


def test_a_span_of_a_stream_belongs_to_who_began_it(storage: DuckDBStorage) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("app")
    storage.write_logs(some_logs(3))
    otel.instrument(storage, tracer_provider=provider)
    with tracer.start_as_current_span("reads") as reads:
        records, reader = storage.logs.iter_records(), storage.logs.to_arrow()
        next(records)
    with tracer.start_as_current_span("drops"):
        del records, reader
    streams = [span for span in spans.get_finished_spans() if span.name.endswith("fiberstore")]
    assert {span.name for span in streams} == {"logs.iter_records fiberstore", "logs.to_arrow fiberstore"}
    for span in streams:
        assert span.parent == reads.get_span_context()
        assert span.status.status_code is StatusCode.UNSET


def test_spans_of_the_async_face_belong_to_the_task(db_file: Path) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))

    async def body() -> None:
        async with AsyncDuckDBStorage(db_file) as storage:
            await storage.init_schema()
            otel.instrument(storage, tracer_provider=provider)

            async def serve(number: int) -> None:
                with provider.get_tracer("app").start_as_current_span(f"request {number}"):
                    await storage.get_log(uuid4())
                    assert [record async for record in storage.logs.iter_records()] == []
                    async with storage.transaction() as transaction:
                        await transaction.memberships.write_memberships(
                            [FiberMembership(log_id=uuid4(), fiber_id=uuid4(), config_version=0)]
                        )

            await asyncio.gather(*(serve(number) for number in range(5)))
            assert storage.stats().calls["get_log"].calls == 5
            assert isinstance(storage.stats().calls["transaction"], CallStats)

    asyncio.run(body())
    finished = spans.get_finished_spans()
    requests = {span.context.span_id: span.name for span in finished if span.name.startswith("request")}
    parents = sorted(
        (requests[span.parent.span_id], span.name) for span in finished if span.parent is not None
    )
    assert parents == sorted(
        (f"request {number}", f"{method} fiberstore")
        for number in range(5)
        for method in ("get_log", "logs.iter_records", "transaction")
    )


def test_pages_are_calls_too(storage: DuckDBStorage) -> None:
    storage.query_logs_by_time(NOON, NOON)
    storage.query_fibers_by_type("a")
    storage.get_fiber_logs(uuid4())
    storage.get_log_fibers(uuid4())
    storage.get_fiber(uuid4())
    assert set(storage.stats().calls) == {
        "init_schema",
        "query_logs_by_time",
        "query_fibers_by_type",
        "get_fiber_logs",
        "get_log_fibers",
        "get_fiber",
    }


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for module, name in (("calls", "instrument"), ("exporter", "LogExporter")):
        monkeypatch.delitem(sys.modules, f"fiberstore.otel.{module}", raising=False)
        with pytest.raises(ModuleNotFoundError, match=r"install fiberstore\[otel\]"):
            getattr(importlib.import_module("fiberstore.otel"), name)
    assert otel.import_logs.__module__ == "fiberstore.otel.otlp_logs"

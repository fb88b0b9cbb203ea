"""``LogExporter``: the logs of OpenTelemetry's SDK in a store."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import fiberstore
from fiberstore import DatabaseError, DuckDBStorage, Fibers
from fiberstore.otel import LogExporter

RESOURCE = Resource({"service.name": "shop", "host.name": "web1"})


class Sink:
    def __init__(self) -> None:
        self.logs: list[fiberstore.LogRecord] = []
        self.is_down = False

    def write(self, logs: list[fiberstore.LogRecord], /) -> None:
        if self.is_down:
            raise DatabaseError("the disk is full")
        self.logs.extend(logs)


@pytest.fixture
def provider() -> Iterator[LoggerProvider]:
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def processor(exporter: LogExporter) -> BatchLogRecordProcessor:
    return BatchLogRecordProcessor(exporter, schedule_delay_millis=1_000_000)


def test_logs_of_the_sdk_are_stored_with_their_traces(
    duckdb_storage: DuckDBStorage, provider: LoggerProvider
) -> None:
    provider.add_log_record_processor(processor(LogExporter(duckdb_storage)))
    logger = provider.get_logger("shop.cart")
    with (
        TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
        .get_tracer("t")
        .start_as_current_span("pay") as span
    ):
        logger.emit(
            LogRecord(
                timestamp=1_714_564_800_000_001_999,
                severity_number=SeverityNumber.WARN2,
                body={"paid": [1, b"\0"]},
                attributes={"amount": 12, "cards": ("a", "b")},
            )
        )
        identifiers = span.get_span_context()
    logger.emit(LogRecord(severity_text="INFO", body="no trace"))
    provider.force_flush()
    trace_id, span_id = f"{identifiers.trace_id:032x}", f"{identifiers.span_id:016x}"
    (line,) = duckdb_storage.get_fiber_logs(UUID(trace_id))
    assert line.source_id == "shop"
    assert line.timestamp.isoformat() == "2024-05-01T12:00:00.000001+00:00"
    assert line.raw_text == (
        'WARN2 {"paid": [1, "AA=="]} amount=12 cards=["a", "b"] otel.scope.name=shop.cart '
        f"host.name=web1 trace_id={trace_id} span_id={span_id}"
    )
    assert duckdb_storage.fibers.where(Fibers.c.keys["span_id"] == span_id).count() == 1
    assert duckdb_storage.logs.count() == 2


def test_logs_of_a_failing_store_are_kept_and_stored_in_order(provider: LoggerProvider) -> None:
    sink = Sink()
    exporter = LogExporter(sink, max_waiting=3)
    provider.add_log_record_processor(processor(exporter))
    logger = provider.get_logger("x")
    sink.is_down = True
    for number in range(4):
        logger.emit(LogRecord(body=str(number)))
        provider.force_flush()
    assert (exporter.dropped, sink.logs) == (1, [])
    sink.is_down = False
    assert exporter.force_flush()
    assert [log.raw_text[0] for log in sink.logs] == ["0", "1", "2"]
    sink.is_down = True
    logger.emit(LogRecord(body="last"))
    provider.shutdown()
    assert [log.raw_text[:4] for log in exporter.unwritten] == ["last"]


def test_a_log_of_odd_values_takes_no_other_with_it(
    duckdb_storage: DuckDBStorage, provider: LoggerProvider
) -> None:
    exporter = LogExporter(duckdb_storage)
    provider.add_log_record_processor(processor(exporter))
    logger = provider.get_logger("shop")
    itself: dict[str, Any] = {}
    itself["itself"] = itself
    odd: dict[Any, Any] = {(1, 2): 3}
    for body in ("first", odd, itself):
        logger.emit(LogRecord(body=body))
    logger.emit(LogRecord(timestamp=1 << 70, body="after the year 9999"))
    logger.emit(LogRecord(body="last"))
    provider.force_flush()
    texts = [log.raw_text.partition(" otel.")[0] for log in duckdb_storage.logs.iter_records()]
    assert texts == ["first", "{(1, 2): 3}", "{'itself': {...}}", "last"]
    assert exporter.dropped == 1


def test_logs_that_the_export_emits_are_not_stored(provider: LoggerProvider) -> None:
    class Talking(Sink):
        def write(self, logs: list[fiberstore.LogRecord], /) -> None:
            super().write(logs)
            logger.emit(LogRecord(body="a statement"))

    sink = Talking()
    exporter = LogExporter(sink)
    provider.add_log_record_processor(processor(exporter))
    logger = provider.get_logger("sqlalchemy")
    logger.emit(LogRecord(body="of the application"))
    provider.force_flush()
    provider.force_flush()
    assert len(sink.logs) == 1
    assert exporter.skipped == 1


def test_arguments_of_the_exporter_are_checked() -> None:
    with pytest.raises(ValueError, match="max_waiting must be"):
        LogExporter(Sink(), max_waiting=0)

"""``LogExporter``: logs of the OpenTelemetry SDK into a store; needs the extra ``fiberstore[otel]``."""

import logging
import threading
from collections.abc import Sequence

try:
    from opentelemetry import context, trace
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "fiberstore.otel.LogExporter needs OpenTelemetry: install fiberstore[otel]"
    ) from error

from fiberstore.checks import check_number
from fiberstore.errors import StorageError
from fiberstore.otel.traced_logs import Line, TracedLog, severity_name, time_of, write_traced
from fiberstore.records import LogRecord
from fiberstore.repositories.storage import SqlStorage
from fiberstore.writer.buffer import LogSink

DEFAULT_MAX_WAITING = 20_000

_logger = logging.getLogger(__name__)


class LogExporter(LogRecordExporter):
    """Stores the logs of the SDK, and their traces as fibers; see ``fiberstore.otel.import_logs`` for both.

    ```python
    provider.add_log_record_processor(BatchLogRecordProcessor(LogExporter(storage)))
    ```

    The SDK forgets a batch that could not be exported. So the exporter keeps it, and stores it with the next
    one, in order; beyond ``max_waiting`` logs, new ones are counted in ``dropped``, and a warning is logged.
    Logs that the storing itself emits are counted in ``skipped``, or each batch would cause another one.

    Args:
        target: Where to: a storage; or what finds the fibers of logs by rules, such as
            ``storage.correlate(rules)``, to which a log's trace id is a part of its text.
        max_waiting: Most logs that are kept while the store fails, >= 1.

    Attributes:
        dropped: Number of logs that were not taken.
        skipped: Number of logs that the storing has emitted.
        unwritten: After ``shutdown()``, the logs that could not be stored, in their order.
    """

    def __init__(self, target: SqlStorage | LogSink, *, max_waiting: int = DEFAULT_MAX_WAITING) -> None:
        check_number("max_waiting", max_waiting, least=1)
        self.dropped = 0
        self.skipped = 0
        self.unwritten: list[LogRecord] = []
        self._target = target
        self._max_waiting = max_waiting
        self._waiting: list[TracedLog] = []
        self._lock = threading.RLock()
        # The SDK keeps no more of a record's context than the ids of its span, so one of our own marks them.
        ids = RandomIdGenerator()
        self._span = trace.NonRecordingSpan(
            trace.SpanContext(ids.generate_trace_id(), ids.generate_span_id(), is_remote=False)
        )

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Store a batch, after what waits since an earlier one; report whether all of it is stored."""
        token = context.attach(trace.set_span_in_context(self._span))
        try:
            with self._lock:
                self._take(batch)
                return self._store()
        finally:
            context.detach(token)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002  # a batch is not interrupted
        """Store what waits; return whether nothing is left."""
        return self.export(()) is LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Try to store what waits once more; what is left is in ``unwritten``, and an error is logged."""
        self.force_flush()
        with self._lock:
            self.unwritten += [item.log for item in self._waiting]
            self._waiting.clear()
        if self.unwritten:
            _logger.error(
                "%d logs are not stored, they are in the exporter's `unwritten`", len(self.unwritten)
            )

    def _take(self, batch: Sequence[ReadableLogRecord]) -> None:
        dropped = 0
        for record in batch:
            if record.log_record.trace_id == self._span.get_span_context().trace_id:
                self.skipped += 1
            elif len(self._waiting) < self._max_waiting:
                try:
                    self._waiting.append(_traced(record))
                except Exception:  # whatever somebody has put into the record, the others are stored
                    self.dropped += 1
                    _logger.warning("a log is dropped, it cannot be stored", exc_info=True)
            else:
                dropped += 1
        self.dropped += dropped
        if dropped:
            _logger.warning("%d logs are dropped: %d wait for the store already", dropped, self._max_waiting)

    def _store(self) -> LogRecordExportResult:
        if not self._waiting:
            return LogRecordExportResult.SUCCESS
        try:
            if isinstance(self._target, SqlStorage):
                write_traced(self._target, self._waiting)
            else:
                self._target.write([item.log for item in self._waiting])
        except StorageError as error:
            _logger.warning(
                "storing failed with %s; %d logs wait for the next batch",
                type(error).__name__,
                len(self._waiting),
            )
            return LogRecordExportResult.FAILURE
        self._waiting.clear()
        return LogRecordExportResult.SUCCESS


def _traced(readable: ReadableLogRecord) -> TracedLog:
    record, scope = readable.log_record, readable.instrumentation_scope
    number = 0 if record.severity_number is None else record.severity_number.value
    line = Line(
        record.severity_text or severity_name(number),
        record.body,
        record.attributes or {},
        record.event_name or "",
        scope.name if scope is not None else "",
        readable.resource.attributes,
        f"{record.trace_id:032x}" if record.trace_id else None,
        f"{record.span_id:016x}" if record.span_id else None,
    )
    log = LogRecord(
        timestamp=time_of(record.timestamp or record.observed_timestamp or 0),
        source_id=line.source_id,
        raw_text=line.text,
    )
    return TracedLog(log, line.trace_id, line.span_id)

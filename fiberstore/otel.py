"""Calls of a storage as OpenTelemetry spans and a metric; needs the extra ``fiberstore[otel]``."""

try:
    from opentelemetry import metrics, trace
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("fiberstore.otel needs OpenTelemetry: install fiberstore[otel]") from error

from fiberstore.aio import AsyncSqlStorage
from fiberstore.storages import SqlStorage
from fiberstore.telemetry import Call

_NS_PER_S = 1_000_000_000


def instrument(
    storage: SqlStorage | AsyncSqlStorage,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> None:
    """Make a span of each call of the storage, and record its duration.

    A span is the child of what is current where the method is called, in a thread or a task. Names and
    attributes follow OpenTelemetry's conventions for database clients; they hold no ids and no text of logs.

    Args:
        storage: The storage; it is told of once.
        tracer_provider: Where spans go. Default: the global one.
        meter_provider: Where the histogram ``db.client.operation.duration`` goes. Default: the global one.
    """
    system = storage.engine.dialect.name
    tracer = trace.get_tracer("fiberstore", tracer_provider=tracer_provider)
    durations = metrics.get_meter("fiberstore", meter_provider=meter_provider).create_histogram(
        "db.client.operation.duration", unit="s", description="Duration of calls of the storage"
    )

    def record(call: Call) -> None:
        attributes: dict[str, str | int] = {"db.system.name": system, "db.operation.name": call.method}
        if call.error is not None:
            attributes["error.type"] = type(call.error).__qualname__
        durations.record(call.duration_s, attributes)
        counts = {"fiberstore.rows_written": call.rows_written, "fiberstore.retries": call.retries}
        span = tracer.start_span(
            f"{call.method} fiberstore",
            kind=trace.SpanKind.CLIENT,
            attributes={**attributes, **counts},
            start_time=call.began_ns,
        )
        if call.error is not None:
            span.set_status(trace.StatusCode.ERROR)
        span.end(call.began_ns + round(call.duration_s * _NS_PER_S))

    storage.on_call(record)

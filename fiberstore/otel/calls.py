"""Calls of a storage as OpenTelemetry spans and a metric; needs the extra ``fiberstore[otel]``."""

try:
    from opentelemetry import metrics, trace
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "fiberstore.otel.instrument needs OpenTelemetry: install fiberstore[otel]"
    ) from error

from fiberstore.aio.storage import AsyncSqlStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.telemetry import Call

# Those of the semantic conventions for database clients; OpenTelemetry's defaults are for milliseconds.
_BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


def instrument(
    storage: SqlStorage | AsyncSqlStorage,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> None:
    """Make a span of each call of the storage, and record its duration.

    A span is the child of what is current where the method is called, in a thread or a task. A stream has one
    span, from its first part to its end; the duration leaves out what its reader takes. Names and attributes
    follow OpenTelemetry's conventions for database clients; they hold no ids and no text of logs.

    Args:
        storage: The storage. Instrumented again with the same providers, it still records each call once.
        tracer_provider: Where spans go. Default: the global one.
        meter_provider: Where the histogram ``db.client.operation.duration`` goes. Default: the global one.
    """
    storage.on_call(_Recorder(storage.engine.dialect.name, tracer_provider, meter_provider))


class _Recorder:
    """A hook that makes spans and measurements; it equals another with the same providers."""

    def __init__(
        self,
        system: str,
        tracer_provider: trace.TracerProvider | None,
        meter_provider: metrics.MeterProvider | None,
    ) -> None:
        self._system = system
        self._providers = (tracer_provider, meter_provider)
        self._tracer = trace.get_tracer("fiberstore", tracer_provider=tracer_provider)
        self._durations = metrics.get_meter("fiberstore", meter_provider=meter_provider).create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of calls of the storage",
            explicit_bucket_boundaries_advisory=_BOUNDS_S,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Recorder) and self._providers == other._providers

    def __hash__(self) -> int:
        return hash(self._providers)

    def __call__(self, call: Call) -> None:
        attributes: dict[str, str | int] = {
            "db.system.name": self._system,
            "db.operation.name": call.method,
        }
        if call.error is not None:
            attributes["error.type"] = type(call.error).__qualname__
        self._durations.record(call.duration_s, attributes)
        counts = {"fiberstore.rows_written": call.rows_written, "fiberstore.retries": call.retries}
        span = self._tracer.start_span(
            f"{call.method} fiberstore",
            kind=trace.SpanKind.CLIENT,
            attributes={**attributes, **counts},
            start_time=call.began_ns,
        )
        if call.error is not None:
            span.set_status(trace.StatusCode.ERROR)
        span.end(call.ended_ns)

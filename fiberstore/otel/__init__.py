"""OpenTelemetry: calls of a storage as spans, logs from the SDK and from OTLP files, fibers as OTLP traces.

``instrument`` and ``LogExporter`` need the extra ``fiberstore[otel]``; the files need nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fiberstore.otel.calls import instrument
    from fiberstore.otel.exporter import LogExporter
    from fiberstore.otel.otlp_logs import OtlpError, OtlpImport, import_logs
    from fiberstore.otel.otlp_traces import TraceExport, export_traces

_HOMES = {
    "LogExporter": "exporter",
    "OtlpError": "otlp_logs",
    "OtlpImport": "otlp_logs",
    "TraceExport": "otlp_traces",
    "export_traces": "otlp_traces",
    "import_logs": "otlp_logs",
    "instrument": "calls",
}

__all__ = [
    "LogExporter",
    "OtlpError",
    "OtlpImport",
    "TraceExport",
    "export_traces",
    "import_logs",
    "instrument",
]


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

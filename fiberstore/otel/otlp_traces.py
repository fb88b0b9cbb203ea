"""Fibers as traces in OTLP/JSON, which Jaeger's page opens."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from os import PathLike
from typing import TypeAlias
from uuid import UUID

from pydantic import JsonValue

from fiberstore.atomic_files import new_file
from fiberstore.contract.queries import Fibers
from fiberstore.keys import key_values
from fiberstore.otel.traced_logs import SERVICE_NAME, TRACE_KEY, UNKNOWN_SERVICE
from fiberstore.records import EPOCH, FiberKey, FiberRecord, StoredLog, to_epoch_us
from fiberstore.repositories.storage import SqlStorage

_Json: TypeAlias = dict[str, JsonValue]

_NS_PER_US = 1_000
_BATCH_FIBERS = 200
_ALL = 1 << 40
_INTERNAL = 1  # the kind of a span
_INT64 = 1 << 63
_TRACE_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class TraceExport:
    """Result of an export of traces.

    Attributes:
        fibers: Fibers in the file.
        logs: Logs in the file; one that is in several fibers counts in each.
        too_old: Fibers that begin before 1970, which are left out: OTLP has no such times.
    """

    fibers: int
    logs: int
    too_old: int


def export_traces(
    storage: SqlStorage,
    path: str | PathLike[str],
    fibers: Fibers | None = None,
    *,
    on_fibers: Callable[[int], None] | None = None,
) -> TraceExport:
    """Write fibers as traces of OTLP/JSON into a new file, which has its name only once it is complete.

    A fiber is a trace: its id is the fiber's only key ``trace_id`` if that is one, else the fiber id. The
    root span, named by the fiber's type, lasts from its first to its last activity; keys are its attributes
    ``fiber.key.NAME``. If several sources have logged, each has a child span from its first to its last log.
    Each log is an event of its source's span, named by its text. A span belongs to the service whose name is
    its ``source_id``; the root, to the source of the first log. Exported again, a fiber has the same ids.

    Args:
        storage: The store.
        path: The new file.
        fibers: Which fibers; None is all.
        on_fibers: Called with the number of fibers written since its last call.

    Raises:
        DatabaseError: The file exists, or cannot be written.
        StorageError: The store failed.
    """
    query: Fibers = storage.fibers if fibers is None else fibers
    count = logs = too_old = 0
    records = query.iter_records()
    separator = ""
    with new_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"resourceSpans":[')
        while batch := list(islice(records, _BATCH_FIBERS)):
            young = [fiber for fiber in batch if fiber.first_activity >= EPOCH]
            too_old += len(batch) - len(young)
            ids = [fiber.fiber_id for fiber in young]
            logs_of, keys_of = storage.logs.by_fiber(ids, _ALL), storage.get_keys(ids)
            services: dict[str, list[JsonValue]] = {}
            for fiber in young:
                lines = logs_of.get(fiber.fiber_id, [])
                logs += len(lines)
                for service, span in _spans(fiber, lines, keys_of[fiber.fiber_id]):
                    services.setdefault(service, []).append(span)
            for service, spans in services.items():
                file.write(f"{separator}\n{_dumped(_resource_spans(service, spans))}")
                separator = ","
            count += len(young)
            if on_fibers is not None:
                on_fibers(len(young))
        file.write("\n]}\n")
    return TraceExport(count, logs, too_old)


def _spans(
    fiber: FiberRecord, logs: Sequence[StoredLog], keys: Sequence[FiberKey]
) -> Iterator[tuple[str, _Json]]:
    """Yield the root span and its children, each with its service."""
    by_source: dict[str, list[StoredLog]] = {}
    for log in logs:
        by_source.setdefault(log.source_id, []).append(log)
    services = list(by_source) or [UNKNOWN_SERVICE]
    trace_id = _trace_id(fiber, keys)
    root_id = _span_id(fiber.fiber_id, "")
    root = _span(trace_id, root_id, fiber.fiber_type, fiber.first_activity, fiber.last_activity)
    root["attributes"] = _attributes(fiber, keys)
    if len(services) == 1:
        yield services[0], {**root, "events": _events(logs)}
        return
    yield services[0], root
    for source_id, lines in by_source.items():
        times = [log.timestamp for log in lines]
        span_id = _span_id(fiber.fiber_id, source_id)
        span = _span(trace_id, span_id, source_id, min(times), max(times))
        yield source_id, {**span, "parentSpanId": root_id, "events": _events(lines)}


def _span(trace_id: str, span_id: str, name: str, first: datetime, last: datetime) -> _Json:
    return {
        "traceId": trace_id,
        "spanId": span_id,
        "name": name,
        "kind": _INTERNAL,
        "startTimeUnixNano": _nanoseconds(first),
        "endTimeUnixNano": _nanoseconds(last),
    }


def _events(logs: Iterable[StoredLog]) -> list[JsonValue]:
    return [
        {
            "timeUnixNano": _nanoseconds(log.timestamp),
            "name": log.raw_text,
            "attributes": [_attribute("log.id", str(log.log_id))],
        }
        for log in logs
    ]


def _attributes(fiber: FiberRecord, keys: Sequence[FiberKey]) -> list[JsonValue]:
    named: dict[str, JsonValue] = {
        "fiber.id": str(fiber.fiber_id),
        "fiber.config_version": f"{fiber.config_version:016x}",
        "fiber.closed": fiber.closed,
    }
    values = key_values(keys)
    for name, texts in values.items():
        named[f"fiber.key.{name}"] = texts[0] if len(texts) == 1 else [*texts]
    if isinstance(fiber.attributes, dict):  # ingest writes the keys there too
        named.update((name, value) for name, value in fiber.attributes.items() if name not in values)
    elif fiber.attributes is not None:
        named["fiber.attributes"] = fiber.attributes
    return [_attribute(name, value) for name, value in named.items()]


def _attribute(name: str, value: JsonValue) -> _Json:
    return {"key": name, "value": _any_value(value)}


def _any_value(value: JsonValue) -> _Json:  # noqa: PLR0911  # as many as there are kinds
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return {"intValue": str(value)}
    if isinstance(value, int | float):
        return {"doubleValue": float(value)}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_any_value(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [_attribute(name, item) for name, item in value.items()]}}
    return {}


def _resource_spans(service: str, spans: list[JsonValue]) -> _Json:
    return {
        "resource": {"attributes": [_attribute(SERVICE_NAME, service)]},
        "scopeSpans": [{"scope": {"name": "fiberstore"}, "spans": spans}],
    }


def _trace_id(fiber: FiberRecord, keys: Sequence[FiberKey]) -> str:
    given = [key.value.lower() for key in keys if key.name == TRACE_KEY]
    if len(given) == 1 and _TRACE_ID.fullmatch(given[0]) and given[0].strip("0"):
        return given[0]
    return fiber.fiber_id.hex if fiber.fiber_id.int else _digest(fiber.fiber_id, "trace", 16)


def _span_id(fiber_id: UUID, source_id: str) -> str:
    return _digest(fiber_id, source_id, 8)


def _digest(fiber_id: UUID, text: str, size_bytes: int) -> str:
    return hashlib.blake2b(fiber_id.bytes + text.encode(), digest_size=size_bytes).hexdigest()


def _nanoseconds(time: datetime) -> str:
    return str(to_epoch_us(time) * _NS_PER_US)


def _dumped(value: _Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

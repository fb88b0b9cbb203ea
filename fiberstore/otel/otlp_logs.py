"""Logs from files of OTLP/JSON, as the collector's file exporter writes them."""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from fiberstore.checks import check_number
from fiberstore.ids import stable_log_id
from fiberstore.json_text import MOST_NESTED, check_nesting
from fiberstore.otel.traced_logs import Line, TracedLog, severity_name, time_of, write_traced
from fiberstore.records import LogRecord
from fiberstore.repositories.storage import SqlStorage

DEFAULT_BATCH_ROWS = 10_000
_BATCH_CHARACTERS = 1 << 25
_MOST_LEVELS = 3 * MOST_NESTED + 10  # an array in an array is three levels of OTLP/JSON
_TOO_DEEP = "a value is nested too deeply"

_Object: TypeAlias = dict[str, Any]
_T = TypeVar("_T")

_SIGNALS = ("resourceSpans", "resourceMetrics", "resourceProfiles")
_ID_DIGITS = {"traceId": 32, "spanId": 16}
_UINT64 = 1 << 64


class OtlpError(ValueError):
    """A file that is no OTLP/JSON; the message names file, line and fix."""


@dataclass(frozen=True, slots=True)
class OtlpImport:
    """Result of an import of OTLP logs.

    Attributes:
        logs_read: Log records in the file.
        logs_new: Those that were not stored before.
        fibers_new: Traces that were not stored before.
        memberships_new: Memberships that were not stored before.
        without_time: Log records that have no time, which are left out.
        other_signals: Lines of spans, metrics or profiles, which are left out.
        is_complete: False if the last line is cut off, as while the collector writes; it is left out.
    """

    logs_read: int = 0
    logs_new: int = 0
    fibers_new: int = 0
    memberships_new: int = 0
    without_time: int = 0
    other_signals: int = 0
    is_complete: bool = True


def import_logs(
    storage: SqlStorage,
    path: str | PathLike[str],
    *,
    batch_rows: int = DEFAULT_BATCH_ROWS,
) -> OtlpImport:
    """Store the logs of a file of OTLP/JSON, and their traces as fibers.

    The file has one object a line, as the collector's file exporter writes it, or is one object. It is read
    line by line. A log's ``source_id`` is the service's name (``unknown_service`` without one), its text the
    severity, the body, and every attribute of record, scope and resource as ``name=value``; its time, cut off
    to µs, is the time of the record or, if that is 0, of its observation.

    A trace is a fiber of type ``trace`` whose id is the trace id; ``trace_id`` and ``span_id`` are its keys.
    Log ids are made from a record's place in the file, so that reading the file again, or grown, adds only
    what is new. Each batch is one transaction.

    Args:
        storage: Where to; its schema is up to date.
        path: The file.
        batch_rows: Most logs in one transaction, >= 1. Text counts too: 32 million characters end a batch.

    Raises:
        OtlpError: The file is no OTLP/JSON. Batches before that stay stored.
        OSError: The file cannot be read.
        StorageError: The store failed. Batches before that stay stored.
    """
    check_number("batch_rows", batch_rows, least=1)
    reader = _Reader(Path(path))
    logs = fibers = memberships = 0
    for batch in _batches(reader.records(), batch_rows):
        counts = write_traced(storage, batch)
        logs += counts.logs
        fibers += counts.fibers.new
        memberships += counts.memberships
    return OtlpImport(
        reader.position,
        logs,
        fibers,
        memberships,
        reader.without_time,
        reader.other_signals,
        reader.is_complete,
    )


class _MalformedError(Exception):
    """A part of an object is not as the protocol has it."""


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.position = 0
        self.without_time = 0
        self.other_signals = 0
        self.is_complete = True

    def records(self) -> Iterator[TracedLog]:
        for number, request in self._requests():
            try:
                yield from self._logs_of(request)
            except _MalformedError as error:
                raise OtlpError(f"{self._path}, line {number}: {error}") from None
            except RecursionError:
                raise OtlpError(f"{self._path}, line {number}: {_TOO_DEEP}") from None

    def _requests(self) -> Iterator[tuple[int, _Object]]:
        """Yield each object with the number of its first line."""
        is_first = True
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    request = _parsed(line)
                except ValueError as error:
                    if is_first:  # it may be the beginning of an object of several lines
                        yield number, self._whole(number, line + file.read())
                        return
                    if not line.endswith(b"\n") and not file.peek(1):
                        self.is_complete = False
                        return
                    raise OtlpError(f"{self._path}, line {number}: {_reason(error)}") from None
                is_first = False
                yield number, self._object(number, request)

    def _whole(self, number: int, text: bytes) -> _Object:
        try:
            return self._object(number, _parsed(text))
        except ValueError as error:
            if isinstance(error, OtlpError):
                raise
            line = number + getattr(error, "lineno", 1) - 1
            raise OtlpError(f"{self._path}, line {line}: {_reason(error)}") from None

    def _object(self, number: int, request: object) -> _Object:
        if isinstance(request, dict) and (not request or "resourceLogs" in request):
            return request
        if isinstance(request, dict) and any(signal in request for signal in _SIGNALS):
            self.other_signals += 1
            return {}
        raise OtlpError(
            f"{self._path}, line {number}: no object with resourceLogs, but {json.dumps(request):.80}; "
            "give a file of OTLP/JSON, as the collector's file exporter writes it"
        )

    def _logs_of(self, request: _Object) -> Iterator[TracedLog]:
        for of_resource in _objects(request, "resourceLogs"):
            resource = _attributes(_object(of_resource, "resource"))
            for of_scope in _objects(of_resource, "scopeLogs"):
                scope = _text(_object(of_scope, "scope"), "name")
                for record in _objects(of_scope, "logRecords"):
                    log = self._log_of(record, scope, resource)
                    self.position += 1
                    if log is None:
                        self.without_time += 1
                    else:
                        yield log

    def _log_of(self, record: _Object, scope: str, resource: dict[str, object]) -> TracedLog | None:
        time_ns = _uint64(record, "timeUnixNano") or _uint64(record, "observedTimeUnixNano")
        if not time_ns:
            return None
        line = Line(
            _text(record, "severityText") or severity_name(_uint64(record, "severityNumber")),
            _value(_object(record, "body")),
            _attributes(record),
            _text(record, "eventName"),
            scope,
            resource,
            _id(record, "traceId"),
            _id(record, "spanId"),
        )
        timestamp, source_id, text = time_of(time_ns), line.source_id, line.text
        log_id = stable_log_id(source_id, self.position, text, timestamp)
        log = LogRecord(timestamp=timestamp, source_id=source_id, raw_text=text, log_id=log_id)
        return TracedLog(log, line.trace_id, line.span_id)


def _batches(records: Iterable[TracedLog], batch_rows: int) -> Iterator[list[TracedLog]]:
    batch: list[TracedLog] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.log.raw_text)
        if len(batch) >= batch_rows or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _parsed(text: bytes) -> object:
    try:
        decoded = text.decode("utf-8-sig")
        check_nesting(decoded, _MOST_LEVELS)
        return json.loads(decoded)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "no UTF-8; give a file that is neither compressed nor of another encoding"
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON at column {error.colno}: {error.msg}; each line must be one object, or the file one"
    return f"no JSON: {error}"


def _objects(owner: _Object, name: str) -> list[_Object]:
    what = "a list of objects"
    found = _given(owner, name, list, what)
    if not all(isinstance(item, dict) for item in found):
        raise _MalformedError(f"{name} must be {what}, got {found!r:.80}")
    return found


def _object(owner: _Object, name: str) -> _Object:
    return _given(owner, name, dict, "an object")


def _text(owner: _Object, name: str) -> str:
    return _given(owner, name, str, "text")


def _given(owner: _Object, name: str, kind: type[_T], what: str) -> _T:
    """Return a part of an object, or an empty one where it is missing."""
    found = owner.get(name)
    if found is None:
        return kind()
    if not isinstance(found, kind):
        raise _MalformedError(f"{name} must be {what}, got {found!r:.80}")
    return found


def _uint64(owner: _Object, name: str) -> int:
    found = owner.get(name)
    if found is None:
        return 0
    if isinstance(found, str) and re.fullmatch("[0-9]{1,20}", found):
        found = int(found)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < _UINT64:
        raise _MalformedError(f"{name} must be a whole number, 0 to 2**64 - 1, got {owner[name]!r:.80}")
    return found


def _id(owner: _Object, name: str) -> str | None:
    digits = _ID_DIGITS[name]
    found = _text(owner, name).lower()
    if not found.strip("0"):
        return None
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", found):
        raise _MalformedError(
            f"{name} must be {digits} hex digits, got {owner[name]!r:.80}; OTLP/JSON has no base64 here"
        )
    return found


def _attributes(owner: _Object, name: str = "attributes") -> dict[str, object]:
    return {_text(item, "key"): _value(_object(item, "value")) for item in _objects(owner, name)}


def _value(value: _Object) -> object:
    """Return the Python value of an ``AnyValue``; a kind that this release does not know is None."""
    for kind, found in value.items():
        if kind in ("stringValue", "boolValue", "doubleValue"):
            if not isinstance(found, str | bool | int | float):
                raise _MalformedError(f"{kind} must be a single value, got {found!r:.80}")
            return found
        if kind == "intValue":
            if not re.fullmatch("-?[0-9]{1,19}", str(found)):
                raise _MalformedError(f"intValue must be a whole number, got {found!r:.80}")
            return int(found)
        if kind == "arrayValue":
            return [_value(item) for item in _objects(_object(value, kind), "values")]
        if kind == "kvlistValue":
            return _attributes(_object(value, kind), "values")
        if kind == "bytesValue":
            try:
                return base64.b64decode(_text(value, kind), validate=True)
            except binascii.Error:
                raise _MalformedError(f"bytesValue must be base64, got {found!r:.80}") from None
    return None

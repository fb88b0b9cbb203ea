"""Log records of OpenTelemetry as lines of a store, and their traces as fibers."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from fiberstore.contract.results import BatchCounts, Upserted
from fiberstore.escaping import escape_unstorable
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, LogRecord, from_epoch_us
from fiberstore.repositories.storage import SqlStorage

FIBER_TYPE = "trace"
TRACE_KEY = "trace_id"
SPAN_KEY = "span_id"
SERVICE_NAME = "service.name"
UNKNOWN_SERVICE = "unknown_service"

_NS_PER_US = 1_000
_SEVERITIES = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
_STEPS = 4  # of each severity: INFO, INFO2, INFO3, INFO4


@dataclass(frozen=True, slots=True)
class TracedLog:
    """A log, and where it was logged.

    Attributes:
        log: The log.
        trace_id: 32 hex digits, or None.
        span_id: 16 hex digits, or None.
    """

    log: LogRecord
    trace_id: str | None
    span_id: str | None


class Line(NamedTuple):
    """Parts of a log record, as the protocol names them.

    Attributes:
        severity: Text, such as ``"ERROR"``; empty if it is not known.
        body: Text, or any other value.
        attributes: Of the record.
        event_name: Empty for a record that is no event.
        scope: Name of the instrumentation scope: the logger.
        resource: Attributes of the resource.
        trace_id: 32 hex digits, or None.
        span_id: 16 hex digits, or None.
    """

    severity: str
    body: object
    attributes: Mapping[str, object]
    event_name: str
    scope: str
    resource: Mapping[str, object]
    trace_id: str | None
    span_id: str | None

    @property
    def source_id(self) -> str:
        """Name of the service."""
        name = self.resource.get(SERVICE_NAME)
        return escape_unstorable(_word(name) if name else UNKNOWN_SERVICE)

    @property
    def text(self) -> str:
        """All parts as one line: ``ERROR card declined amount=12 trace_id=…``."""
        named = {
            **({"event_name": self.event_name} if self.event_name else {}),
            **self.attributes,
            **({"otel.scope.name": self.scope} if self.scope else {}),
            **{name: value for name, value in self.resource.items() if name != SERVICE_NAME},
            **({TRACE_KEY: self.trace_id} if self.trace_id else {}),
            **({SPAN_KEY: self.span_id} if self.span_id else {}),
        }
        body = "" if self.body is None else _word(self.body)
        pairs = [f"{name}={_quoted(value)}" for name, value in named.items()]
        return escape_unstorable(" ".join(part for part in (self.severity, body, *pairs) if part))


def severity_name(number: int) -> str:
    """Return the name of a severity number of the protocol; empty for 0 and what it does not know."""
    kind, step = divmod(number - 1, _STEPS)
    if not 0 <= kind < len(_SEVERITIES):
        return ""
    return _SEVERITIES[kind] + (str(step + 1) if step else "")


def time_of(time_ns: int) -> datetime:
    """Return the time of a number of ns since 1970, cut off to µs."""
    return from_epoch_us(time_ns // _NS_PER_US)


def write_traced(storage: SqlStorage, traced: Sequence[TracedLog]) -> BatchCounts:
    """Store logs and the fibers of their traces, in one transaction; what is stored already adds nothing.

    A trace is a fiber of type ``trace`` whose id is the trace id, with the keys ``trace_id`` and ``span_id``.
    Its activity covers its logs, whatever the order in which they come; the other fields of a fiber that is
    stored stay as they are. The logs of a trace that was merged into another fiber join the survivor. A new
    fiber has the config version that is active, or that of the storage.
    """
    with storage.transaction() as transaction:
        logs = transaction.write_logs([item.log for item in traced])
        with_trace = [item for item in traced if item.trace_id is not None]
        if not with_trace:
            return BatchCounts(logs, Upserted(0, 0), 0)
        trace_ids = dict.fromkeys(item.trace_id for item in with_trace if item.trace_id)
        own_ids = {trace_id: UUID(hex=trace_id) for trace_id in trace_ids}
        places = transaction.resolve_fibers(own_ids.values())
        stored = {fiber.fiber_id: fiber for fiber in transaction.fibers.get_many(set(places.values())).items}
        active = transaction.versions.active()
        version = storage.config_version if active is None else active.config_version
        fibers: dict[UUID, FiberRecord] = {}
        keys: dict[tuple[UUID, str, str], FiberKey] = {}
        memberships = []
        for item in sorted(with_trace, key=lambda item: (item.log.timestamp, item.log.log_id)):
            trace_id = item.trace_id or ""
            fiber_id = places.get(own_ids[trace_id], own_ids[trace_id])
            log = item.log
            known = fibers.get(fiber_id) or stored.get(fiber_id)
            if known is None:
                known = _fiber(fiber_id, trace_id, version, log)
            elif not known.first_activity <= log.timestamp <= known.last_activity:
                times = {
                    "first_activity": min(known.first_activity, log.timestamp),
                    "last_activity": max(known.last_activity, log.timestamp),
                }
                known = known.model_copy(update=times)
            fibers[fiber_id] = known
            for name, value in ((TRACE_KEY, trace_id), (SPAN_KEY, item.span_id)):
                if value is not None and (fiber_id, name, value) not in keys:
                    keys[fiber_id, name, value] = FiberKey(
                        fiber_id=fiber_id,
                        name=name,
                        value=value,
                        first_timestamp=log.timestamp,
                        first_log_id=log.log_id,
                    )
            memberships.append(
                FiberMembership(log_id=log.log_id, fiber_id=fiber_id, config_version=known.config_version)
            )
        changed = [fiber for fiber in fibers.values() if fiber != stored.get(fiber.fiber_id)]
        return BatchCounts(
            logs,
            transaction.upsert_fibers(changed, widen=True),
            transaction.write_memberships(memberships),
            transaction.write_keys(keys.values()),
        )


def _fiber(fiber_id: UUID, trace_id: str, config_version: int, log: LogRecord) -> FiberRecord:
    return FiberRecord(
        fiber_id=fiber_id,
        fiber_type=FIBER_TYPE,
        config_version=config_version,
        attributes={TRACE_KEY: trace_id},
        first_activity=log.timestamp,
        last_activity=log.timestamp,
    )


def _quoted(value: object) -> str:
    word = _word(value)
    is_plain = word.isprintable() and not set(' "=\\') & set(word)
    return word if is_plain or not isinstance(value, str) else _json(word)


def _word(value: object) -> str:
    return value if isinstance(value, str) else _json(value)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) else repr(value)


_encode = json.JSONEncoder(ensure_ascii=False, default=_plain).encode


def _json(value: object) -> str:
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, or an object that holds itself
        return repr(value)

"""Records to write, values that are easily damaged, and a look at everything a storage holds."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from uuid import UUID

from pydantic import JsonValue

from fiberstore.contract.lifecycle import FiberBatchStorage, LifecycleStorage
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.contract.storage import Storage
from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
BEGIN_OF_TIME = datetime.min.replace(tzinfo=UTC)
END_OF_TIME = datetime.max.replace(tzinfo=UTC)


class ClocksGoBack(tzinfo):
    """A zone in the night its summer time ends: every local time comes twice, told apart by ``fold``."""

    def utcoffset(self, dt: datetime | None) -> timedelta:
        """Return -4 h for the first time round, -5 h for the second."""
        return timedelta(hours=-5 if dt is not None and dt.fold else -4)

    def dst(self, dt: datetime | None) -> timedelta:
        """Return the offset of summer time."""
        return self.utcoffset(dt) + timedelta(hours=5)

    def tzname(self, _dt: datetime | None) -> str:
        """Return a name."""
        return "clocks go back"


# Compare what comes back with their form in UTC: Python holds a time that comes twice equal to no other.
INSTANTS: dict[str, datetime] = {
    "the first": BEGIN_OF_TIME,
    "the first, in the east": datetime(1, 1, 1, 15, tzinfo=timezone(timedelta(hours=14))),
    "before standard time": datetime(1883, 11, 18, 12, 3, 58, 7, tzinfo=UTC),
    "1 µs before 1970": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    "1970": datetime(1970, 1, 1, tzinfo=UTC),
    "1 µs after 1970": datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    "leap day": NOON,
    "999,999 µs": NOON + timedelta(microseconds=999_999),
    "where a float loses the µs": datetime(2286, 11, 20, 17, 46, 39, 999_999, tzinfo=UTC),
    "quarter hours east": datetime(2024, 7, 1, 0, 0, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    "west": datetime(2024, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=-12))),
    "offset of 30 s": datetime(2024, 5, 5, 5, tzinfo=timezone(timedelta(seconds=30))),
    "offset of 1 µs": datetime(2024, 5, 5, 5, tzinfo=timezone(MICROSECOND)),
    "01:30 in summer time": datetime(2024, 11, 3, 1, 30, tzinfo=ClocksGoBack()),
    "01:30 once more": datetime(2024, 11, 3, 1, 30, tzinfo=ClocksGoBack(), fold=1),
    "the last, in the west": datetime(9999, 12, 31, 11, 59, 59, tzinfo=timezone(timedelta(hours=-12))),
    "the last": END_OF_TIME,
}

IN_UTC = {name: when.astimezone(UTC) for name, when in INSTANTS.items()}

# In the order of their 128 bits. Signed halves, or bytes turned round, would sort them otherwise.
IDS: tuple[UUID, ...] = (
    UUID("00000000-0000-0000-0000-000000000000"),
    UUID("00000000-0000-0000-0000-000000000001"),
    UUID("00000000-0000-0000-8000-000000000000"),
    UUID("00000000-0000-0001-0000-000000000000"),
    UUID("018df4c3-5e00-7000-8000-000000000000"),  # version 7
    UUID("3b241101-e2bb-4255-8caf-4136c566a962"),  # version 4
    UUID("7fffffff-ffff-ffff-ffff-ffffffffffff"),
    UUID("80000000-0000-0000-0000-000000000000"),
    UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479"),  # version 4
    UUID("ff000000-0000-0000-0000-000000000000"),
    UUID("ffffffff-ffff-ffff-ffff-ffffffffffff"),
)

TEXTS: tuple[str, ...] = (
    "",
    " ",
    " spaces around ",
    "\t",
    "http",
    "HTTP",
    "htt_",
    "h%",
    "line one\nline two",
    "line one\r\nline two\r",
    "\v\f\x1b[31m\x7f\x85\u2028",
    "it's",
    'a "quoted" word',
    "'; DROP TABLE raw_logs; --",
    "$1 ? :name %s %(name)s {0} \\N \\",
    "\\u0041 \\x41 \\0",
    "NULL",
    "nan",
    "007",
    "{}",
    "caf\u00e9",  # one code point
    "cafe\u0301",  # e and a combining accent: another text
    "stra\u00dfe",
    "\u0130\u0131",
    "\u05e9\u05dc\u05d5\u05dd \u200f\u202eabc\u202c",
    "\u65e5\u672c\u8a9e",
    "\U0001f469\u200d\U0001f680 \U0001f1e6\U0001f1fa",
    "\ufeff",
    "\ufffe\uffff\U0010ffff",
)
LONG_TEXT = "a long line, \u2026 " * 65_536  # more than 1 MB, whichever way it is counted

ATTRIBUTES: tuple[JsonValue, ...] = (
    None, {}, [], "", "null", '{"a": 1}', 0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64, -(10**40), True, False,
    1.0, -0.0, 0.1, 1e16, 5e-324, 1.7976931348623157e308, [None], [1, 1.0, True, "1", [[]], {}],
    {"": None, " ": "", "a": {"b": {"c": [{"d": []}]}}}, {"z": 1, "a": 2, "A": 3},
    {"$": 1, "$.a": 2, "/": 3, "/a/b": 4, "a.b": 5, 'quo"te': 6, "it's": 7, "[0]": 8, "*": 9, "\\": 10},
    {"é": 1, "e\u0301": 2}, {"escapes": '\b\f\n\r\t"\\/\x1f\x7f\u2028', "not an escape": "\\u0000 \\n"},
    list(TEXTS), {text: text for text in TEXTS}, {"long": LONG_TEXT},
    {f"key {number}": number for number in range(1_000)},
)  # fmt: skip


def nested(depth: int) -> JsonValue:
    """Return lists and objects in one another, that many levels deep."""
    value: JsonValue = "the bottom"
    for level in range(depth):
        value = [value] if level % 2 else {"deeper": value}
    return value


def uid(number: int) -> UUID:
    """Return an id that sorts by that number."""
    return UUID(int=number)


def at(seconds: float) -> datetime:
    """Return an instant, counted from a noon."""
    return NOON + timedelta(seconds=seconds)


def log(
    number: int, when: datetime | float | None = None, *, source: str = "web", text: str = "GET /"
) -> LogRecord:
    """Return a log with that id, logged then: at an instant, or seconds from noon, by default its number."""
    when = number if when is None else when
    timestamp = when if isinstance(when, datetime) else at(when)
    return LogRecord(log_id=uid(number), timestamp=timestamp, source_id=source, raw_text=text)


def stored(
    number: int, config_version: int = 3, *, text: str = "GET /", ingested: datetime = NOON
) -> StoredLog:
    """Return a log with that id, as a storage would return it."""
    return StoredLog(
        log_id=uid(number),
        timestamp=at(number),
        source_id="web",
        raw_text=text,
        ingestion_time=ingested,
        config_version=config_version,
    )


def fiber(
    number: int,
    kind: str = "request",
    attributes: JsonValue = None,
    *,
    first: datetime | None = None,
    last: datetime | None = None,
    closed: bool = False,
    config_version: int = 3,
) -> FiberRecord:
    """Return a fiber with that id; it begins that many seconds after noon, if it is not said when."""
    first = first or at(number)
    return FiberRecord(
        fiber_id=uid(number),
        fiber_type=kind,
        config_version=config_version,
        attributes=attributes,
        first_activity=first,
        last_activity=last or first,
        closed=closed,
    )


def member(log_number: int, fiber_number: int, config_version: int = 3) -> FiberMembership:
    """Return the membership of one log in one fiber."""
    return FiberMembership(log_id=uid(log_number), fiber_id=uid(fiber_number), config_version=config_version)


def all_logs(storage: Storage) -> list[StoredLog]:
    """Return every log of a small store."""
    return storage.query_logs_by_time(BEGIN_OF_TIME, END_OF_TIME, 1_000_000)


def all_rows(storage: Storage) -> tuple[object, ...]:
    """Return everything that a test of refused input has stored, or might have by mistake."""
    return (
        all_logs(storage),
        [storage.query_fibers_by_type(kind) for kind in ("request", "login")],
        [storage.get_fiber(uid(number)) for number in (1, 2, 8)],
        [storage.get_log_fibers(uid(number)) for number in (1, 2, 8)],
        [storage.get_fiber_logs(uid(number)) for number in (1, 2, 8, 9)],
    )


def pinned(storage: LifecycleStorage) -> tuple[list[int], list[int]]:
    """Return the numbers of the logs and of the fibers that are pinned."""
    logs = storage.logs.where(Logs.c.pinned).iter_records()
    fibers = storage.fibers.where(Fibers.c.pinned).iter_records()
    return [row.log_id.int for row in logs], [row.fiber_id.int for row in fibers]


def checkpoint(storage: LifecycleStorage, name: str) -> str | None:
    """Return the value of a checkpoint; None without one."""
    found = storage.checkpoints.get(name)
    return None if found is None else found.value


def joins(storage: LifecycleStorage) -> list[tuple[int, int]]:
    """Return the numbers of the log and of the fiber of every membership."""
    return [(row.log_id.int, row.fiber_id.int) for row in storage.memberships.iter_records()]


def everything(storage: LifecycleStorage) -> tuple[object, ...]:
    """Return all that a small store holds, apart from where merged fibers have gone."""
    return (
        list(storage.logs.iter_records()),
        list(storage.fibers.iter_records()),
        list(storage.memberships.iter_records()),
        pinned(storage),
        storage.checkpoints.all(),
        storage.versions.all(),
    )


def write_fibers(storage: Storage, fibers: Sequence[FiberRecord]) -> None:
    """Store new fibers, in one call where the storage has one for many."""
    if isinstance(storage, FiberBatchStorage):
        storage.write_fibers(fibers)
    else:
        for row in fibers:
            storage.write_fiber(row)

"""The records that go in and come out: frozen pydantic models, checked where a value enters.

Text (``source_id``, ``raw_text``, ``fiber_type`` and every string in ``attributes``) is any Unicode text
that UTF-8 can hold, except the NUL character: lone surrogates have no UTF-8 form, and NUL has no place in
the text of most databases. Both are refused. Everything else comes back as it went in, whatever its length.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Self, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from fiberstore.checks import MAX_CONFIG_VERSION, as_utc, check_id, check_text
from fiberstore.errors import SerializationError
from fiberstore.ids import new_log_id
from fiberstore.json_text import dump_json

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MICROSECOND = timedelta(microseconds=1)
EARLIEST_US = (datetime.min.replace(tzinfo=UTC) - EPOCH) // MICROSECOND
"""The first µs of the year 1, in µs since 1970."""
LATEST_US = (datetime.max.replace(tzinfo=UTC) - EPOCH) // MICROSECOND
"""The last µs of the year 9999."""
_set = object.__setattr__  # past the models' own, which are frozen
_BEYOND_MICROSECONDS = re.compile(r"[.,][0-9]{6}([0-9]+)")
_UNITS_US = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "min": 60_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
_DURATION = re.compile(rf"(-?[0-9]{{1,20}})(?:\.([0-9]{{1,20}}))? ?({'|'.join(_UNITS_US)})")


def parse_instant(text: str) -> datetime:
    """Return the datetime of a text in ISO 8601; it may be naive.

    Raises:
        ValueError: It is no such text, or finer than 1 µs, which ``datetime.fromisoformat`` would cut off.
    """
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not ISO 8601, such as 2024-12-10T06:55:46Z") from None
    if any(map(int, _BEYOND_MICROSECONDS.findall(text))):
        raise ValueError(f"{text!r} is finer than 1 µs; write at most 6 decimals")
    return parsed


def parse_duration(text: str) -> timedelta:
    """Return the duration that a text names, exactly: ``500ms``, ``1.5h``, ``5min``.

    Raises:
        ValueError: It names none, one that is finer than 1 µs, or one that a ``timedelta`` cannot hold.
    """
    parts = _DURATION.fullmatch(text)
    if parts is None:
        raise ValueError(
            f"{text!r:.100} is no duration; give one such as '250ms', '5s', '5min', '1.5h', '1d'"
        )
    decimals = parts[2] or ""
    span_us, rest = divmod(int(parts[1] + decimals) * _UNITS_US[parts[3]], 10 ** len(decimals))
    if rest:
        raise ValueError(f"{text!r} is finer than 1 µs")
    try:
        return timedelta(microseconds=span_us)
    except OverflowError:
        raise ValueError(f"{text!r} is too long; 999999999d is the longest") from None


def to_epoch_us(time: datetime) -> int:
    """Return an aware datetime as a number of µs since 1970."""
    return (time - EPOCH) // MICROSECOND


def from_epoch_us(value: int | None) -> datetime:
    """Return the datetime of a number of µs since 1970, in UTC.

    Raises:
        SerializationError: It lies outside the years 1 to 9999; None is what drivers give for 'infinity'.
    """
    if value is None:
        raise SerializationError("stored timestamp NULL or 'infinity' is outside the years 1 to 9999")
    try:
        return EPOCH + timedelta(0, 0, value)
    except OverflowError:
        raise SerializationError(f"stored timestamp {value} µs is outside the years 1 to 9999") from None


def _storable(value: JsonValue) -> JsonValue:
    dump_json(value)
    return value


def _validated_time(value: object, validate: ValidatorFunctionWrapHandler) -> datetime:
    return as_utc(value if isinstance(value, datetime) else validate(value))


class _InMicroseconds:
    """Marks a field of datetimes: pydantic would cut off what is finer, of text and of subclasses."""

    @staticmethod
    def __get_pydantic_core_schema__(source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        datetimes = core_schema.datetime_schema(tz_constraint="aware", microseconds_precision="error")
        return core_schema.json_or_python_schema(
            core_schema.no_info_after_validator_function(as_utc, datetimes),
            core_schema.no_info_wrap_validator_function(_validated_time, datetimes),
        )


Utc = Annotated[datetime, _InMicroseconds]
Text = Annotated[str, AfterValidator(check_text)]
Id = Annotated[UUID, Field(strict=False)]
VersionNumber = Annotated[int, Field(ge=0, le=MAX_CONFIG_VERSION)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class LogRecord(_Record):
    """One log line, as a reader of log files hands it over.

    Attributes:
        timestamp: When the line was logged: timezone-aware, exact to 1 µs, kept in UTC.
        source_id: Where it was logged.
        raw_text: The line.
        log_id: Its key. Left out, it is a UUIDv7 made from ``timestamp``, so that ids sort like the log;
            ``fiberstore.stable_log_id`` makes one that is the same whenever the line is read again.
    """

    timestamp: Utc
    source_id: Text
    raw_text: Text
    log_id: Id = Field(default_factory=lambda data: new_log_id(data["timestamp"]))


class StoredLog(LogRecord):
    """A log line as the store returns it.

    Attributes:
        ingestion_time: When it was stored.
        config_version: Version of the configuration it was stored under, 0 to 2**64 - 1.
    """

    ingestion_time: Utc
    config_version: VersionNumber


class FiberRecord(_Record):
    """A group of related log lines: one request, one login, one block.

    Attributes:
        fiber_id: Its key.
        fiber_type: What kind of fiber it is.
        config_version: Version of the configuration that made it, 0 to 2**64 - 1.
        attributes: Any JSON value; None is stored as SQL NULL.
        first_activity: Time of its first line.
        last_activity: Time of its last line, not before ``first_activity``.
        closed: Whether it takes no more lines.

    Raises:
        SerializationError: ``attributes`` is not a JSON value.
    """

    fiber_id: Id
    fiber_type: Text
    config_version: VersionNumber
    attributes: Annotated[JsonValue, AfterValidator(_storable)] = None
    first_activity: Utc
    last_activity: Utc
    closed: bool = False

    if not TYPE_CHECKING:  # a type checker sees the signature that pydantic makes from the fields

        def __init__(self, **values: object) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                wrong = error.errors(include_url=False, include_input=False)
                if all(item["loc"][:1] == ("attributes",) for item in wrong):
                    place = ".".join(map(str, wrong[0]["loc"]))[:200]
                    raise SerializationError(f"{place}: {wrong[0]['msg']}") from error
                raise

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first_activity > self.last_activity:
            raise ValueError(
                f"first_activity {self.first_activity.isoformat()} is after "
                f"last_activity {self.last_activity.isoformat()}"
            )
        return self


class FiberMembership(_Record):
    """One log line's place in one fiber.

    Attributes:
        log_id: The line.
        fiber_id: The fiber; neither needs to be stored yet.
        config_version: Version of the configuration that joined them, 0 to 2**64 - 1.
    """

    log_id: Id
    fiber_id: Id
    config_version: VersionNumber


class FiberKey(_Record):
    """A key of a fiber: a name and a text that its lines have in common, such as ``request`` and ``7f3a``.

    Attributes:
        fiber_id: The fiber.
        name: At least one character.
        value: The text.
        first_timestamp: Time of the fiber's first line that has the key.
        first_log_id: That line; None if it is not known.
        starts: True if a rule begins a new fiber at that line (``start = true``).
    """

    fiber_id: Id
    name: Annotated[Text, Field(min_length=1)]
    value: Text
    first_timestamp: Utc
    first_log_id: Id | None = None
    starts: bool = False


def log_key(after: LogRecord | tuple[datetime, UUID] | None) -> tuple[datetime, UUID] | None:
    """Return the key of a log, or the key that is given instead, checked; None is none.

    Raises:
        TypeError: It is neither a log nor a pair of a datetime and a UUID.
        ValueError: Its datetime is naive.
    """
    if isinstance(after, LogRecord):
        after = (after.timestamp, after.log_id)
    return None if after is None else _checked_key(after, "a LogRecord or its (timestamp, log_id)")


def fiber_key(after: FiberRecord | tuple[datetime, UUID] | None) -> tuple[datetime, UUID] | None:
    """Do for fibers what ``log_key`` does for logs."""
    if isinstance(after, FiberRecord):
        after = (after.first_activity, after.fiber_id)
    return None if after is None else _checked_key(after, "a FiberRecord or its (first_activity, fiber_id)")


def _checked_key(key: object, expected: str) -> tuple[datetime, UUID]:
    if not isinstance(key, tuple) or len(key) != 2:  # noqa: PLR2004  # the two of the type
        raise TypeError(f"after must be {expected}, got {key!r:.200}")
    time, id_ = key
    check_id(id_)
    return as_utc(time), id_


Record = TypeVar("Record", LogRecord, StoredLog, FiberRecord, FiberMembership, FiberKey)


def construct_unvalidated(kind: type[Record], values: dict[str, object]) -> Record:
    """Make a record of values that the database holds or that were checked: nothing is checked again.

    It does what pydantic's ``model_construct`` does for a model with all its fields given, in half the time.
    """
    record = object.__new__(kind)
    _set(record, "__dict__", values)
    _set(record, "__pydantic_fields_set__", set(values))
    _set(record, "__pydantic_extra__", None)
    _set(record, "__pydantic_private__", None)
    return record

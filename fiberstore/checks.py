"""Checks of arguments, each where a value enters."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

MAX_CONFIG_VERSION = 2**64 - 1
MAX_ROWS = 2**63 - 1


def as_utc(value: datetime) -> datetime:
    """Return the same instant in UTC.

    Raises:
        TypeError: The value is no datetime.
        ValueError: The datetime is naive, lies outside the years 1 to 9999 in UTC, or is of a subclass that
            is finer than 1 µs, as that of pandas is.
    """
    if type(value) is not datetime:
        value = _plain_datetime(value)
    if value.tzinfo is UTC:
        return value
    if value.utcoffset() is None:
        raise ValueError(f"{value} is naive; give it a time zone, for example tzinfo=datetime.UTC")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{value} is outside the years 1 to 9999 in UTC") from None


def _plain_datetime(value: datetime) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"expected a timezone-aware datetime, got {value!r}")
    if value != value:  # noqa: PLR0124  # the NaT of pandas
        raise ValueError(f"{value} is no time")
    plain = datetime.combine(value.date(), value.timetz())
    if plain != value:
        raise ValueError(f"{value} is finer than 1 µs; round it, with pandas by .round('us')")
    return plain


def check_duration(name: str, value: timedelta) -> timedelta:
    """Return the duration, as a plain ``timedelta``.

    Raises:
        TypeError: It is no ``timedelta``.
        ValueError: It is of a subclass that is finer than 1 µs, as that of pandas is.
    """
    if type(value) is timedelta:
        return value
    if not isinstance(value, timedelta):
        raise TypeError(f"{name} must be a datetime.timedelta, got {value!r:.200}")
    plain = timedelta(value.days, value.seconds, value.microseconds)
    if plain != value:
        raise ValueError(f"{name} {value} is finer than 1 µs; round it, with pandas by .round('us')")
    return plain


def check_id(value: UUID) -> None:
    """Raise ``TypeError`` unless the value is a ``uuid.UUID``."""
    if not isinstance(value, UUID):
        raise TypeError(f"expected a uuid.UUID, got {value!r}; uuid.UUID(text) makes one")


def check_config_version(value: int) -> None:
    """Raise ``ValueError`` unless the value is an ``int`` from 0 to 2**64 - 1."""
    if type(value) is not int or not 0 <= value <= MAX_CONFIG_VERSION:
        raise ValueError(f"config_version must be an int from 0 to 2**64 - 1, got {value!r}")


def check_number(name: str, value: int, *, least: int = 0) -> None:
    """Check an argument that is a number of rows, bytes, threads or connections.

    Raises:
        ValueError: It is less than ``least``, or does not fit in 63 bits.
        TypeError: It is not an ``int``.
    """
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > MAX_ROWS:
        raise ValueError(f"{name} must be at most 2**63 - 1, got {value}")


def check_page(limit: int, offset: int) -> None:
    """Check the two numbers of a page; see ``check_number``."""
    check_number("limit", limit)
    check_number("offset", offset)


def check_text(value: str) -> str:
    """Return the text if the store can keep it unchanged.

    Raises:
        ValueError: It holds a NUL or a lone surrogate.
        TypeError: It is no text.
    """
    if not isinstance(value, str):
        raise TypeError(f"expected a str, got {value!r:.200}")
    if "\0" in value:
        raise ValueError(f"NUL at character {value.index(chr(0))}; remove or escape it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"lone surrogate {value[error.start]!r} at character {error.start} has no UTF-8 form; "
                "decode the bytes with errors='backslashreplace' instead of 'surrogateescape'"
            ) from None
    return value


def check_seconds(argument: str, value: float) -> None:
    """Raise ``TypeError`` unless the value is a number, ``ValueError`` if it is negative or NaN."""
    if type(value) not in (int, float):
        raise TypeError(f"{argument} must be a number of seconds, got {value!r}")
    if not value >= 0:
        raise ValueError(f"{argument} must be at least 0, got {value}")

"""Times as people write and read them: ``1h``, ``yesterday``, ``2024-05-01``, in the zone of ``--tz``."""

import re
from contextvars import ContextVar
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

HELP = "2024-05-01T12:00Z, 2024-05-01, 14:30, yesterday, or 1h for an hour ago."

_zone: ContextVar[tzinfo] = ContextVar("zone", default=UTC)

_CLOCK = re.compile(r"\d\d?:\d\d(?::\d\d(?:\.\d{1,6})?)?", re.ASCII)
_AGO = re.compile(r"-?[0-9.]+ ?[a-z]+")
_DAYS = {"today": timedelta(0), "yesterday": timedelta(days=1)}


def parse_time(text: str) -> datetime:
    """Return the instant that a text names.

    Args:
        text: ISO 8601, a date alone for its midnight; a time of today; ``now``, ``today``, ``yesterday``; or
            a duration, for so long ago. What names no zone is in that of ``--tz``.

    Raises:
        typer.BadParameter: It names none.
    """
    from fiberstore.records import parse_duration, parse_instant  # a list of commands needs no pydantic

    zone = _zone.get()
    now = datetime.now(zone)
    if text == "now":
        return now
    if text in _DAYS:
        return datetime.combine(now.date() - _DAYS[text], time(), zone)
    try:
        if _CLOCK.fullmatch(text):
            padded = text if text[1] != ":" else f"0{text}"
            return datetime.combine(now.date(), time.fromisoformat(padded), zone)
        if _AGO.fullmatch(text):
            return now.astimezone(UTC) - abs(parse_duration(text))  # the clock may have been set meanwhile
        parsed = parse_instant(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; a time is {HELP}") from error
    except OverflowError:
        raise typer.BadParameter(f"{text!r} ago was before the year 1; give a shorter one") from None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=zone)


def utc(instant: datetime) -> str:
    """Return a time in ISO 8601 and UTC, with as many groups of three decimals as it needs."""
    return _iso(instant.astimezone(UTC).replace(tzinfo=None)) + "Z"


def shown_time(instant: datetime) -> str:
    """Return a time as it is shown, in the zone of ``--tz``."""
    zone = _zone.get()
    if zone is UTC:
        return utc(instant)
    try:
        return _iso(instant.astimezone(zone))
    except OverflowError:  # near the first time or the last, which that zone does not have
        return utc(instant)


def shown_second(instant: datetime) -> str:
    """Return a time as it is shown, without its fraction."""
    return shown_time(instant.replace(microsecond=0))


def use_zone(name: str | None) -> str | None:
    """Read and show times in a zone from here on.

    Args:
        name: An IANA name, ``UTC``, or ``local`` for the machine's own; None is UTC.

    Raises:
        typer.BadParameter: The machine knows no such zone.
    """
    _zone.set(_find_zone(name))
    return name


Zone = Annotated[
    str | None,
    typer.Option(
        "--tz",
        envvar="FIBERSTORE_TZ",
        metavar="ZONE",
        is_eager=True,  # before the times that other options name
        callback=use_zone,
        help="Zone of the times that are shown, and of those given without one: Europe/Berlin, or local; UTC "
        "by default. Times in JSON stay UTC.",
    ),
]


class _MachineZone(tzinfo):
    """The machine's zone, by its rules at each time: the offset of now is not that of half a year ago."""

    def utcoffset(self, when: datetime | None) -> timedelta | None:
        """Return the offset of a local time."""
        if when is None:
            return None
        try:
            return when.replace(tzinfo=None).astimezone().utcoffset()
        except (OverflowError, ValueError, OSError):  # near the first time or the last
            return datetime.now().astimezone().utcoffset()

    def dst(self, _when: datetime | None) -> None:
        """Return None: it is not known which part of the offset is that of summer."""

    def tzname(self, when: datetime | None) -> str | None:
        """Return the abbreviation of the zone at a local time."""
        return None if when is None else when.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, when: datetime) -> datetime:
        """Return the local time of a time in UTC."""
        instant = when.replace(tzinfo=UTC)
        try:
            local = instant.astimezone().replace(tzinfo=None)
            is_second = local.astimezone() != instant  # of the two passes of an hour that comes twice
        except (ValueError, OSError) as error:
            raise OverflowError(str(error)) from error
        return local.replace(tzinfo=self, fold=is_second)


def _find_zone(name: str | None) -> tzinfo:
    if name is None or name.upper() == "UTC":
        return UTC
    if name == "local":
        return _MachineZone()
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        raise typer.BadParameter(
            f"{name!r} is no time zone that this machine knows; give one such as Europe/Berlin, UTC, or local"
        ) from error


def _iso(instant: datetime) -> str:
    decimals = "microseconds" if instant.microsecond % 1000 else "milliseconds"
    return instant.isoformat(timespec=decimals if instant.microsecond else "seconds")

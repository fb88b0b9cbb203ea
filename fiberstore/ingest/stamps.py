"""Stamps: texts that say when a line was logged, and the clock that dates them in the order of their file.

A format is one of ``datetime.strptime``, whose names of months are English whatever the machine speaks, or a
word: ``iso8601``, ``epoch_s``, ``epoch_ms``, ``epoch_us``, ``epoch_ns``. A fraction of a second after a sign
may be left out; what is finer than 1 µs is cut off.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import NamedTuple

from fiberstore.checks import as_utc

EPOCH_DIGITS = {"epoch_s": 0, "epoch_ms": 3, "epoch_us": 6, "epoch_ns": 9}
NAMED_FORMATS = ("iso8601", *EPOCH_DIGITS)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SAMPLE = datetime(2024, 11, 23, 10, 20, 30, tzinfo=UTC)
_MICROSECOND_DIGITS = 6
_LEAP_SECOND = 60
_LEAP_MINUTE = 59
_LAST_MICROSECOND = 999_999
_PIVOT = 69  # of years of two digits, as in POSIX
_TWELVE = 12
_LEAP_YEAR = 2024
_LEAP_YEARS_APART = 8

_JITTER = timedelta(seconds=10)
_LATE_WITHIN_HOURS = timedelta(hours=3)
_LATE = timedelta(days=31)
_MODIFIED_EARLY = timedelta(days=1)

_MONTHS = ["january", "february", "march", "april", "may", "june"]
_MONTHS += ["july", "august", "september", "october", "november", "december"]
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_OFFSET = r"Z|[+-]\d\d(?::?[0-5]\d(?::?[0-5]\d)?)?"
_DIRECTIVES = {
    "Y": r"(?P<Y>\d{4})",
    "y": r"(?P<y>\d\d)",
    "m": r"(?P<m>1[0-2]|0[1-9]|[1-9])",
    "d": r"(?P<d>3[01]|[12]\d|0[1-9]|[1-9]| [1-9])",
    "j": r"(?P<j>36[0-6]|3[0-5]\d|[12]\d\d|0[1-9]\d|00[1-9]|[1-9]\d|0[1-9]|[1-9])",
    "H": r"(?P<H>2[0-3]|[01]\d|\d)",
    "I": r"(?P<I>1[0-2]|0[1-9]|[1-9])",
    "M": r"(?P<M>[0-5]\d|\d)",
    "S": r"(?P<S>6[01]|[0-5]\d|\d)",
    "p": r"(?P<p>[AP]M)",
    "b": rf"(?P<b>{'|'.join(month[:3] for month in _MONTHS)})",
    "B": rf"(?P<B>{'|'.join(_MONTHS)})",
    "a": rf"(?:{'|'.join(day[:3] for day in _DAYS)})",
    "A": rf"(?:{'|'.join(_DAYS)})",
    "z": rf"(?P<z>{_OFFSET})",
    "Z": r"(?P<Z>[A-Z]{1,5})",
    "%": "%",
}
_ISO8601 = re.compile(
    r"(?P<Y>\d{4})-?(?P<m>\d\d)-?(?P<d>\d\d)[T ](?P<H>\d\d):?(?P<M>\d\d)(?::?(?P<S>\d\d)(?:[.,](?P<f>\d+))?)?"
    rf" ?(?P<z>{_OFFSET}|UTC|GMT)?",
    re.ASCII | re.IGNORECASE,
)
_SECOND_FRACTION = re.compile(r"(?<=\d:\d\d:\d\d)[.,](\d+)", re.ASCII)


class NoZoneError(ValueError):
    """A stamp without a zone, of a source without one."""


def format_has(stamp_format: str, directives: str) -> bool:
    """Return whether a format of ``datetime.strptime`` has one of the directives, given by their letters."""
    return any(letter in directives for letter in re.findall("%(.)", stamp_format))


def has_year(stamp_format: str) -> bool:
    """Return whether the stamps of a format carry their year."""
    return stamp_format in NAMED_FORMATS or format_has(stamp_format, "YyGcx")


def has_zone(stamp_format: str) -> bool:
    """Return whether the stamps of a format need no time zone; those of ``iso8601`` may, each for itself."""
    return stamp_format in NAMED_FORMATS or format_has(stamp_format, "z")


def check_format(value: str) -> str:
    """Check the format of a stamp.

    Raises:
        ValueError: It is none, or its stamps would leave the day, the month or the half of the day open.
    """
    if value in NAMED_FORMATS:
        return value
    if "%" not in value:
        raise ValueError(
            f"{value!r} is no format; use {', '.join(NAMED_FORMATS)}, or directives of datetime.strptime"
        )
    if format_has(value, "I") and not format_has(value, "p"):
        raise ValueError("%I without %p leaves open which half of the day is meant; use %H, or add %p")
    full = value if has_year(value) else f"%Y {value}"
    try:
        parsed = datetime.strptime(_SAMPLE.strftime(full), full)  # noqa: DTZ007 - only its date is looked at
    except (ValueError, re.error) as error:
        hint = " or epoch_s, epoch_ms for numbers since 1970" if format_has(value, "sQ") else ""
        raise ValueError(f"{error}; use the directives of Python's datetime.strptime{hint}") from error
    if parsed.date() != _SAMPLE.date():
        raise ValueError(f"{value!r} has no full date; it needs the day and the month, as in '%b %d'")
    return value


class _Time(NamedTuple):
    """Time of a stamp: its local time, in 2024 if it has no year, and what it says on its zone."""

    local: datetime
    has_year: bool
    offset: timedelta | None = None
    zone_name: str | None = None
    is_leap_second: bool = False


class Clock:
    """Dates the stamps of one file, or of several that continue one another, in their order.

    A stamp without a year gets the one in which it is at most 31 days before those already read, else after
    them. A jump ahead of more than 31 days counts as where the file has come to once a second line confirms
    it, so one odd stamp does not move the lines after it. Where the zone has an hour twice, a step back of
    more than 10 s means its second pass. A time that the zone skips counts on from before the gap.

    Args:
        formats: Tried one after the other.
        zone: Zone of stamps without one.
        offset: How far the clock that wrote the stamps is ahead.
    """

    def __init__(self, formats: Sequence[str], zone: tzinfo | None, offset: timedelta = timedelta(0)) -> None:
        self._parsers = [_parser(stamp_format) for stamp_format in formats]
        self._zone = zone
        self._offset = offset
        self._cuts_fraction = all(map(_may_end_in_fraction, formats))
        self._mark: datetime | None = None
        self._years = _Years(None)
        self._last_whole: str | None = None
        self._last: tuple[_Time, datetime, datetime | None] = (_Time(_EPOCH, has_year=True), _EPOCH, None)
        self._parse = lru_cache(maxsize=256)(self._parse_uncached)
        self._instants = lru_cache(maxsize=1024)(self._instants_uncached)

    def begin(self, year: int | None, until: datetime | None = None) -> None:
        """Say of what year the first stamp without a year is.

        Args:
            year: The year; None for the latest one that lies before ``until``.
            until: The latest time that may be: when the file was last written.
        """
        self._years = _Years(year, until)
        self._last_whole = None

    def first_year(self, stamp: str, near: datetime | None, until: datetime | None = None) -> int | None:
        """Return the year of a stamp that begins a file, None if the stamp carries it.

        Args:
            stamp: The stamp.
            near: A time from which the stamp is less than half a year away; without one it is the latest
                before ``until``.
            until: The latest time that may be.

        Raises:
            ValueError: It fits no format, or is no time.
        """
        time = self._parse(self._whole(stamp)[0])
        if time.has_year:
            return None
        return _Years(None, until, near).choose_first(lambda year: self._instants(time, year)[0])

    def read(self, stamp: str) -> datetime:
        """Return the time of the next stamp, in UTC.

        Raises:
            NoZoneError: It has no zone, and there is none for it.
            ValueError: It fits no format, or is no time.
        """
        whole, fraction = self._whole(stamp)
        if whole != self._last_whole or self._years.is_moving:
            self._last = self._find(whole)
            self._last_whole = whole
        time, first, second = self._last
        if fraction and not time.is_leap_second:
            fine = timedelta(microseconds=_microseconds(fraction))
            first, second = first + fine, second and second + fine
        return self._advance(first, second) - self._offset

    def _find(self, whole: str) -> tuple[_Time, datetime, datetime | None]:
        time = self._parse(whole)
        if time.has_year:
            return time, *self._instants(time, time.local.year)
        year = self._years.choose(lambda year: self._instants(time, year)[0])
        return time, *self._instants(time, year)

    def _advance(self, first: datetime, second: datetime | None) -> datetime:
        mark = self._mark
        time = first
        if second is not None and mark is not None and _JITTER < mark - first < _LATE_WITHIN_HOURS:
            time = second
        if mark is None or not mark - _LATE_WITHIN_HOURS < time < mark:
            self._mark = time
        return time

    def _whole(self, stamp: str) -> tuple[str, str]:
        """Cut off the fraction, so that what is left is the same for all stamps of a second."""
        if self._cuts_fraction:
            found = _SECOND_FRACTION.search(stamp)
            if found:
                return stamp[: found.start()] + stamp[found.end() :], found[1]
        return stamp, ""

    def _parse_uncached(self, whole: str) -> _Time:
        for parse in self._parsers[:-1]:
            try:
                return parse(whole)
            except ValueError:
                continue
        return self._parsers[-1](whole)

    def _instants_uncached(self, time: _Time, year: int) -> tuple[datetime, datetime | None]:
        """Return the instant of a time in a year, and the second one if the zone has that time twice."""
        local = time.local if time.has_year else time.local.replace(year=year)
        if time.offset is not None:
            return as_utc(local.replace(tzinfo=timezone(time.offset))), None
        if self._zone is None:
            raise NoZoneError("has no zone")
        first = local.replace(tzinfo=self._zone)
        if time.zone_name is not None:
            return self._named(first, time.zone_name), None
        second = first.replace(fold=1)
        earlier, later = as_utc(first), as_utc(second)
        return earlier, later if later > earlier else None

    def _named(self, local: datetime, name: str) -> datetime:
        if name in {"UTC", "GMT", "Z"}:
            return local.replace(tzinfo=UTC)
        for fold in (0, 1):
            candidate = local.replace(fold=fold)
            if candidate.tzname() == name:
                return as_utc(candidate)
        for month in range(1, _TWELVE + 1):
            other = local.replace(month=month, day=1)
            if other.tzname() == name:
                return as_utc(local.replace(tzinfo=timezone(other.utcoffset() or timedelta(0))))
        raise ValueError(f"{self._zone} has no zone called {name!r}")


class _Years:
    """Chooses the years of stamps that have none; the class ``Clock`` says how."""

    def __init__(self, year: int | None, until: datetime | None = None, near: datetime | None = None) -> None:
        self._year = year
        self._near_first = near
        self._reached: datetime | None = None
        self._until = until + _MODIFIED_EARLY if until is not None else None
        self._ahead: datetime | None = None

    @property
    def is_moving(self) -> bool:
        """True if an equal stamp would confirm a jump ahead."""
        return self._ahead is not None

    def choose(self, instant: Callable[[int], datetime]) -> int:
        """Return the year of the next stamp, given its instant in any year.

        Raises:
            ValueError: The stamp is no date in the years that might be meant.
        """
        reached = self._reached
        if reached is None:
            year = self.choose_first(instant)
            self._reached = instant(year)
            return year
        year = self._near(instant, reached)
        self._move(instant(year), reached)
        return year

    def choose_first(self, instant: Callable[[int], datetime]) -> int:
        """Return the year of the first stamp.

        Raises:
            ValueError: The stamp is no date in the years that might be meant.
        """
        if self._year is not None:
            return self._year
        near = self._near_first
        if near is not None:
            around: list[int] = sorted(
                range(near.year - 1, near.year + 2), key=lambda year: abs(_middle(year, instant) - near)
            )
            return _possible(instant, around, lambda time: self._until is None or time <= self._until)
        until = self._until or datetime.now(UTC) + _MODIFIED_EARLY
        years = range(until.year, until.year - _LEAP_YEARS_APART - 1, -1)
        return _possible(instant, years, lambda time: time <= until)

    def _near(self, instant: Callable[[int], datetime], reached: datetime) -> int:
        begin, until = reached - _LATE, self._until
        years = range(begin.year, begin.year + 2)
        year = _possible(instant, years, lambda time: time >= begin)
        if until is not None and instant(year) > until:
            return _possible(instant, (year - 1, year), lambda _: True)
        return year

    def _move(self, time: datetime, reached: datetime) -> None:
        ahead = self._ahead
        if time - reached <= _LATE:
            self._reached, self._ahead = max(time, reached), None
        elif ahead is None or time < ahead - _LATE:
            self._ahead = time
        elif time <= ahead + _LATE:
            self._reached, self._ahead = max(time, ahead), None
        else:
            self._reached, self._ahead = ahead, time


def _middle(year: int, instant: Callable[[int], datetime]) -> datetime:
    """Return the instant in the year, or the middle of the year if there is none."""
    try:
        return instant(year)
    except ValueError:
        return datetime(year, 7, 1, tzinfo=UTC)


def _possible(
    instant: Callable[[int], datetime], years: Sequence[int], fits: Callable[[datetime], bool]
) -> int:
    """Return the first year in which the instant is one and fits; else any in which it is one."""
    possible = []
    for year in years:
        try:
            time = instant(year)
        except ValueError:
            continue
        if fits(time):
            return year
        possible.append(year)
    if possible:
        return possible[-1]
    raise ValueError(f"no such day in {' or '.join(map(str, sorted(years)))}")


def _parser(stamp_format: str) -> Callable[[str], _Time]:
    if stamp_format in EPOCH_DIGITS:
        digits = EPOCH_DIGITS[stamp_format]
        return lambda stamp: _parse_epoch(stamp, digits)
    if stamp_format == "iso8601":
        return lambda stamp: _from_match(_ISO8601.fullmatch(stamp))
    if set(re.findall("%(.)", stamp_format)) <= {*_DIRECTIVES, "f"}:
        regex = re.compile(_regex(stamp_format), re.ASCII | re.IGNORECASE)
        return lambda stamp: _from_match(regex.fullmatch(stamp))
    return lambda stamp: _parse_strptime(stamp, stamp_format)


def _regex(stamp_format: str) -> str:
    parts = []
    for sign, directive, space, other in re.findall(r"([.,:]?)%(.)|(\s+)|(.)", stamp_format, re.DOTALL):
        if directive == "f":
            parts.append(f"(?:{re.escape(sign)}(?P<f>[0-9]+))?" if sign else "(?P<f>[0-9]+)")
        elif directive:
            parts.append(re.escape(sign) + _DIRECTIVES[directive])
        else:
            parts.append(r"\s+" if space else re.escape(other))
    return "".join(parts)


def _may_end_in_fraction(stamp_format: str) -> bool:
    """Return whether the fraction stands after ``H:MM:SS``."""
    return stamp_format == "iso8601" or bool(re.search("%H:%M:%S[.,]%f", stamp_format))


def _from_match(match: re.Match[str] | None) -> _Time:
    if match is None:
        raise ValueError("its form differs")
    found = {name: text for name, text in match.groupdict().items() if text is not None}
    has_year = "Y" in found or "y" in found
    year = int(found["Y"]) if "Y" in found else _full_year(int(found["y"])) if "y" in found else _LEAP_YEAR
    if "j" in found:
        date = datetime(year, 1, 1) + timedelta(days=int(found["j"]) - 1)  # noqa: DTZ001 - local time
        month, day = date.month, date.day
    else:
        month, day = _month(found), int(found["d"])
    second, fine = int(found.get("S", 0)), _microseconds(found.get("f", ""))
    is_leap_second = second >= _LEAP_SECOND and int(found.get("M", 0)) == _LEAP_MINUTE
    if is_leap_second:
        second, fine = _LEAP_SECOND - 1, _LAST_MICROSECOND
    local = datetime(year, month, day, _hour(found), int(found.get("M", 0)), second, fine)  # noqa: DTZ001
    offset, name = found.get("z"), found.get("Z")
    return _Time(
        local, has_year, None if offset is None else _offset(offset), name and name.upper(), is_leap_second
    )


def _month(found: Mapping[str, str]) -> int:
    if "m" in found:
        return int(found["m"])
    name = (found.get("b") or found["B"]).lower()[:3]
    return [month[:3] for month in _MONTHS].index(name) + 1


def _hour(found: Mapping[str, str]) -> int:
    if "I" in found:
        return int(found["I"]) % _TWELVE + (_TWELVE if found["p"].upper() == "PM" else 0)
    return int(found.get("H", 0))


def _full_year(year: int) -> int:
    return year + (1900 if year >= _PIVOT else 2000)


def _offset(text: str) -> timedelta:
    if text[0] not in "+-":
        return timedelta(0)
    digits = text[1:].replace(":", "").ljust(_MICROSECOND_DIGITS, "0")
    size = timedelta(hours=int(digits[:2]), minutes=int(digits[2:4]), seconds=int(digits[4:]))
    return -size if text[0] == "-" else size


def _microseconds(fraction: str) -> int:
    return int(fraction[:_MICROSECOND_DIGITS].ljust(_MICROSECOND_DIGITS, "0"))


def _parse_epoch(stamp: str, digits: int) -> _Time:
    number = re.fullmatch(r"(-?[0-9]+)(?:\.([0-9]+))?", stamp)
    if number is None:
        raise ValueError("is no number")
    fine = (number[2] or "").ljust(_MICROSECOND_DIGITS, "0")
    scaled = int(number[1] + fine)
    exponent = _MICROSECOND_DIGITS - digits - len(fine)
    microseconds = scaled * 10**exponent if exponent >= 0 else scaled // 10**-exponent
    try:
        local = (_EPOCH + timedelta(microseconds=microseconds)).replace(tzinfo=None)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999") from None
    return _Time(local, has_year=True, offset=timedelta(0))


def _parse_strptime(stamp: str, stamp_format: str) -> _Time:
    is_full = has_year(stamp_format)
    full = stamp_format if is_full else f"%Y {stamp_format}"
    time = datetime.strptime(stamp if is_full else f"{_LEAP_YEAR} {stamp}", full)  # noqa: DTZ007 - local
    return _Time(time.replace(tzinfo=None), is_full, time.utcoffset())

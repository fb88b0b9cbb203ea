"""Stamps: texts that say when a line was logged, and the clock that dates them in the order of their file.

A format is one of ``datetime.strptime``, whose names of months are English whatever the machine speaks, or a
word: ``iso8601``, ``epoch_s``, ``epoch_ms``, ``epoch_us``, ``epoch_ns``. A fraction of a second after a sign
may be left out; what is finer than 1 µs is cut off.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from fiberstore.checks import as_utc
from fiberstore.records import EARLIEST_US, EPOCH, LATEST_US, MICROSECOND, to_epoch_us

EPOCH_DIGITS = {"epoch_s": 0, "epoch_ms": 3, "epoch_us": 6, "epoch_ns": 9}
NAMED_FORMATS = ("iso8601", *EPOCH_DIGITS)

_SAMPLE = datetime(2024, 11, 23, 10, 20, 30, tzinfo=UTC)
_MICROSECOND_DIGITS = 6
_LEAP_SECOND = 60
_LEAP_MINUTE = 59
_LAST_MICROSECOND = 999_999
_PIVOT = 69  # of years of two digits, as in POSIX
_TWELVE = 12
_LEAP_YEAR = 2024
_LEAP_YEARS_APART = 8

_SECOND_US = 1_000_000
_DAY_US = 24 * 3600 * _SECOND_US
_JITTER_US = 10 * _SECOND_US
_LATE_HOURS_US = 3 * 3600 * _SECOND_US
_LATE_US = 31 * _DAY_US
_LAST_OF_MINUTE = timedelta(seconds=59)
_LAST_OF_MINUTE_US = 59 * _SECOND_US
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
_SECONDS = re.compile(r"([0-5]\d)(?:[.,](\d+))?((?!\d).*)", re.ASCII | re.DOTALL)


ClockState: TypeAlias = tuple[int | None, int | None, int | None]
"""What a clock has learned from the stamps before; times in µs since 1970."""


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


_UNIX_EPOCH = _Time(datetime(1970, 1, 1), has_year=True, offset=timedelta(0))  # noqa: DTZ001 - local time


class _Parsed(NamedTuple):
    """A stamp that was read.

    Attributes:
        minute: The minute of its time.
        rest_us: What its time is after the minute, in µs.
        place: Where its seconds stand, if they are two digits after a colon; else -1.
        has_fraction: The seconds have a fraction right after them.
    """

    minute: _Time
    rest_us: int
    place: int = -1
    has_fraction: bool = False


class Clock:
    """Dates the stamps of one file, or of several that continue one another, in their order.

    A stamp without a year gets the one in which it is at most 31 days before those already read, else after
    them. A jump ahead of more than 31 days counts as where the file has come to once a second line confirms
    it, so one odd stamp does not move the lines after it. Where the zone has an hour twice, a step back of
    more than 10 s means its second pass. A time that the zone skips counts on from before the gap.

    Most stamps are like the one before: only those of another minute are parsed.

    Args:
        formats: Tried one after the other.
        zone: Zone of stamps without one.
        offset: How far the clock that wrote the stamps is ahead.

    Attributes:
        before: Its state before the last stamp that was read.
    """

    def __init__(self, formats: Sequence[str], zone: tzinfo | None, offset: timedelta = timedelta(0)) -> None:
        self._parsers = [_parser(stamp_format) for stamp_format in formats]
        self._zone = zone
        self._offset_us = offset // MICROSECOND
        self._mark_us: int | None = None
        self._years = _Years(None)
        self._last: str | None = None
        self._last_us = 0
        self.before: ClockState = (None, None, None)
        self._before, self._after = "\0", ""  # what stands before and after the seconds of the last minute
        self._minute, self._has_fraction = _UNIX_EPOCH, False
        self._begins = lru_cache(maxsize=1024)(self._begins_uncached)

    def begin(self, year: int | None, until: datetime | None = None) -> None:
        """Say of what year the first stamp without a year is.

        Args:
            year: The year; None for the latest one that lies before ``until``.
            until: The latest time that may be: when the file was last written.
        """
        self._years = _Years(year, until)
        self._last = None

    @property
    def state(self) -> ClockState:
        """State to continue from."""
        return self._mark_us, self._years.reached_us, self._years.ahead_us

    @state.setter
    def state(self, state: ClockState) -> None:
        self._mark_us, self._years.reached_us, self._years.ahead_us = state
        self._last, self.before = None, state

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
        minute, rest_us = self._parse(stamp)
        if minute.has_year:
            return None
        return _Years(None, until, near).choose_first(lambda year: self._instants(minute, rest_us, year)[0])

    def read(self, stamp: str) -> int:
        """Return the time of the next stamp, in µs since 1970.

        Raises:
            NoZoneError: It has no zone, and there is none for it.
            ValueError: It fits no format, or is no time.
        """
        if stamp != self._last or self._years.is_moving:
            self._last_us = self._find(stamp)
            self._last = stamp
        return self._last_us

    def _find(self, stamp: str) -> int:
        self.before = self.state
        minute, rest_us = self._parse(stamp)
        if minute.has_year:
            year = minute.local.year
        else:
            year = self._years.choose(lambda year: self._instants(minute, rest_us, year)[0])
        time_us = self._advance(*self._instants(minute, rest_us, year)) - self._offset_us
        if not EARLIEST_US <= time_us <= LATEST_US:
            raise ValueError("is outside the years 1 to 9999")
        return time_us

    def _advance(self, first_us: int, second_us: int | None) -> int:
        mark_us = self._mark_us
        time_us = first_us
        if second_us is not None and mark_us is not None and _JITTER_US < mark_us - first_us < _LATE_HOURS_US:
            time_us = second_us
        if mark_us is None or not mark_us - _LATE_HOURS_US < time_us < mark_us:
            self._mark_us = time_us
        return time_us

    def _parse(self, stamp: str) -> tuple[_Time, int]:
        """Return the minute of a stamp, and what its time is after it in µs."""
        if stamp.startswith(self._before):
            found = _SECONDS.fullmatch(stamp, len(self._before))
            if found and found[3] == self._after and (found[2] is not None) == self._has_fraction:
                return self._minute, int(found[1]) * _SECOND_US + _microseconds(found[2])
        parsed = self._parse_all(stamp)
        place = parsed.place
        if place >= 0 and (found := _SECONDS.fullmatch(stamp, place)):
            self._before, self._after = stamp[:place], found[3]
            self._minute, self._has_fraction = parsed.minute, parsed.has_fraction
        return parsed.minute, parsed.rest_us

    def _parse_all(self, stamp: str) -> _Parsed:
        for parse in self._parsers[:-1]:
            try:
                return parse(stamp)
            except ValueError:
                continue
        return self._parsers[-1](stamp)

    def _instants(self, minute: _Time, rest_us: int, year: int) -> tuple[int, int | None]:
        """Return the instant of a time in a year, and the second one if the zone has that time twice."""
        first_us, second_us, is_whole = self._begins(minute, year)
        if not is_whole:  # the zone's clocks were changed within the minute
            fine = timedelta(microseconds=rest_us)
            first_us, second_us = self._of_local(minute._replace(local=minute.local + fine), year)
            return first_us, second_us
        return first_us + rest_us, None if second_us is None else second_us + rest_us

    def _begins_uncached(self, minute: _Time, year: int) -> tuple[int, int | None, bool]:
        """Return the instants at which a minute begins, and True if it is as long as all others."""
        first_us, second_us = self._of_local(minute, year)
        last = minute._replace(local=minute.local + _LAST_OF_MINUTE)
        try:
            first_last_us, second_last_us = self._of_local(last, year)
        except ValueError:
            return first_us, second_us, False
        is_whole = first_last_us - first_us == _LAST_OF_MINUTE_US
        if second_us is None or second_last_us is None:
            return first_us, second_us, is_whole and second_us == second_last_us
        return first_us, second_us, is_whole and second_last_us - second_us == _LAST_OF_MINUTE_US

    def _of_local(self, time: _Time, year: int) -> tuple[int, int | None]:
        local = time.local if time.has_year else time.local.replace(year=year)
        if time.offset is not None:
            return to_epoch_us(as_utc(local.replace(tzinfo=timezone(time.offset)))), None
        if self._zone is None:
            raise NoZoneError("has no zone")
        first = local.replace(tzinfo=self._zone)
        if time.zone_name is not None:
            return to_epoch_us(self._named(first, time.zone_name)), None
        earlier_us, later_us = to_epoch_us(as_utc(first)), to_epoch_us(as_utc(first.replace(fold=1)))
        return earlier_us, later_us if later_us > earlier_us else None

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
    """Chooses the years of stamps that have none; the class ``Clock`` says how.

    Attributes:
        reached_us: Latest time that counts, in µs since 1970.
        ahead_us: Time to which the last stamp has jumped.
    """

    def __init__(self, year: int | None, until: datetime | None = None, near: datetime | None = None) -> None:
        self._year = year
        self._near_first = near
        self.reached_us: int | None = None
        self._until_us = None if until is None else to_epoch_us(until + _MODIFIED_EARLY)
        self.ahead_us: int | None = None
        self._last_year: int | None = None

    @property
    def is_moving(self) -> bool:
        """True if an equal stamp would confirm a jump ahead."""
        return self.ahead_us is not None

    def choose(self, instant: Callable[[int], int]) -> int:
        """Return the year of the next stamp, given its instant in any year, in µs since 1970.

        Raises:
            ValueError: The stamp is no date in the years that might be meant.
        """
        reached_us = self.reached_us
        if reached_us is None:
            year = self.choose_first(instant)
            self.reached_us = instant(year)
            return year
        if self._last_year is not None and self._goes_on(instant, reached_us, self._last_year):
            return self._last_year
        year, time_us = self._near(instant, reached_us)
        self._move(time_us, reached_us)
        self._last_year = year
        return year

    def _goes_on(self, instant: Callable[[int], int], reached_us: int, year: int) -> bool:
        """Return True if no other year than the last one is near, and take note of the instant in it."""
        try:
            time_us = instant(year)
        except ValueError:
            return False
        until_us = self._until_us
        if (
            self.ahead_us is not None
            or not -_LATE_US <= time_us - reached_us <= _LATE_US
            or (until_us is not None and time_us > until_us)
            or not 0 <= year - _year_of((reached_us - _LATE_US) // _DAY_US) <= 1
        ):
            return False
        if time_us > reached_us:
            self.reached_us = time_us
        return True

    def choose_first(self, instant: Callable[[int], int]) -> int:
        """Return the year of the first stamp.

        Raises:
            ValueError: The stamp is no date in the years that might be meant.
        """
        if self._year is not None:
            return self._year
        near, until_us = self._near_first, self._until_us
        if near is not None:
            near_us = to_epoch_us(near)
            around: list[int] = sorted(
                range(near.year - 1, near.year + 2), key=lambda year: abs(_middle(year, instant) - near_us)
            )
            return _possible(instant, around, lambda time_us: until_us is None or time_us <= until_us)[0]
        if until_us is None:
            until_us = to_epoch_us(datetime.now(UTC) + _MODIFIED_EARLY)
        last = _year_of(until_us // _DAY_US)
        years = range(last, last - _LEAP_YEARS_APART - 1, -1)
        return _possible(instant, years, lambda time_us: time_us <= until_us)[0]

    def _near(self, instant: Callable[[int], int], reached_us: int) -> tuple[int, int]:
        begin_us, until_us = reached_us - _LATE_US, self._until_us
        begin_year = _year_of(begin_us // _DAY_US)
        year, time_us = _possible(instant, (begin_year, begin_year + 1), lambda time_us: time_us >= begin_us)
        if until_us is not None and time_us > until_us:
            return _possible(instant, (year - 1, year), lambda _: True)
        return year, time_us

    def _move(self, time_us: int, reached_us: int) -> None:
        ahead_us = self.ahead_us
        if time_us - reached_us <= _LATE_US:
            self.reached_us, self.ahead_us = max(time_us, reached_us), None
        elif ahead_us is None or time_us < ahead_us - _LATE_US:
            self.ahead_us = time_us
        elif time_us <= ahead_us + _LATE_US:
            self.reached_us, self.ahead_us = max(time_us, ahead_us), None
        else:
            self.reached_us, self.ahead_us = ahead_us, time_us


@lru_cache(maxsize=64)
def _year_of(day: int) -> int:
    """Return the year of a day, given as their number since 1970."""
    return (EPOCH + timedelta(days=day)).year


def _middle(year: int, instant: Callable[[int], int]) -> int:
    """Return the instant in the year, or the middle of the year if there is none."""
    try:
        return instant(year)
    except ValueError:
        return to_epoch_us(datetime(year, 7, 1, tzinfo=UTC))


def _possible(
    instant: Callable[[int], int], years: Sequence[int], fits: Callable[[int], bool]
) -> tuple[int, int]:
    """Return the first year in which the instant is one and fits, and it; else any in which it is one."""
    possible = []
    for year in years:
        try:
            time_us = instant(year)
        except ValueError:
            continue
        if fits(time_us):
            return year, time_us
        possible.append((year, time_us))
    if possible:
        return possible[-1]
    raise ValueError(f"no such day in {' or '.join(map(str, sorted(years)))}")


def _parser(stamp_format: str) -> Callable[[str], _Parsed]:
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
            point = "[.,]" if sign in {".", ","} else re.escape(sign)
            parts.append(f"(?:{point}(?P<f>[0-9]+))?" if sign else "(?P<f>[0-9]+)")
        elif directive:
            parts.append(re.escape(sign) + _DIRECTIVES[directive])
        else:
            parts.append(r"\s+" if space else re.escape(other))
    return "".join(parts)


def _from_match(match: re.Match[str] | None) -> _Parsed:
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
    minute, second, fine = int(found.get("M", 0)), int(found.get("S", 0)), _microseconds(found.get("f"))
    if second >= _LEAP_SECOND:
        if minute != _LEAP_MINUTE:
            raise ValueError("second must be in 0..59")
        second, fine = _LEAP_SECOND - 1, _LAST_MICROSECOND
    local = datetime(year, month, day, _hour(found), minute)  # noqa: DTZ001
    offset, name = found.get("z"), found.get("Z")
    time = _Time(local, has_year, None if offset is None else _offset(offset), name and name.upper())
    place = match.start("S") if "S" in found else -1
    has_fraction = "f" in found and match.string[match.end("S") : match.start("f")] in {".", ","}
    if place < 1 or match.string[place - 1] != ":" or (has_fraction != ("f" in found)):
        place = -1
    return _Parsed(time, second * _SECOND_US + fine, place, has_fraction)


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


def _microseconds(fraction: str | None) -> int:
    return 0 if not fraction else int(fraction[:_MICROSECOND_DIGITS].ljust(_MICROSECOND_DIGITS, "0"))


def _parse_epoch(stamp: str, digits: int) -> _Parsed:
    number = re.fullmatch(r"(-?[0-9]+)(?:\.([0-9]+))?", stamp)
    if number is None:
        raise ValueError("is no number")
    fine = (number[2] or "").ljust(_MICROSECOND_DIGITS, "0")
    scaled = int(number[1] + fine)
    exponent = _MICROSECOND_DIGITS - digits - len(fine)
    time_us = scaled * 10**exponent if exponent >= 0 else scaled // 10**-exponent
    if not EARLIEST_US <= time_us <= LATEST_US:
        raise ValueError("is outside the years 1 to 9999")
    return _Parsed(_UNIX_EPOCH, time_us)


def _parse_strptime(stamp: str, stamp_format: str) -> _Parsed:
    is_full = has_year(stamp_format)
    full = stamp_format if is_full else f"%Y {stamp_format}"
    time = datetime.strptime(stamp if is_full else f"{_LEAP_YEAR} {stamp}", full)  # noqa: DTZ007 - local
    minute = time.replace(tzinfo=None, second=0, microsecond=0)
    rest_us = time.second * _SECOND_US + time.microsecond
    return _Parsed(_Time(minute, is_full, time.utcoffset()), rest_us)

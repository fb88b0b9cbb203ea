"""Counts in buckets of time, with the empty buckets between them."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from fiberstore.checks import as_utc, check_duration
from fiberstore.contract.queries import MOST_BUCKETS
from fiberstore.contract.results import Bucket
from fiberstore.errors import SerializationError
from fiberstore.records import MICROSECOND, from_epoch_us, to_epoch_us
from fiberstore.sql.functions import EpochMicroseconds

_YEAR_1_US = to_epoch_us(datetime.min.replace(tzinfo=UTC))

_UNITS_US = (
    (86_400_000_000, "d"),
    (3_600_000_000, "h"),
    (60_000_000, "min"),
    (1_000_000, "s"),
    (1_000, "ms"),
    (1, "us"),
)


class Histogram:
    """Buckets of one width; see ``TimedQuery.histogram``.

    Args:
        width: Of a bucket.
        start: The first instant that counts, or None.
        end: The last one, or None.

    Raises:
        ValueError: The width is not positive, or a datetime is naive.
        TypeError: One is of another type.
    """

    def __init__(self, width: timedelta, start: datetime | None, end: datetime | None) -> None:
        width = check_duration("width", width)
        if width <= timedelta(0):
            raise ValueError(f"width must be more than 0, got {width}")
        self._width_us = width // MICROSECOND
        self._start = None if start is None else as_utc(start)
        self._end = None if end is None else as_utc(end)

    def counts(
        self, rows: sa.Select[Any], time: sa.ColumnElement[datetime], group: sa.ColumnElement[str] | None
    ) -> sa.Select[Any]:
        """Return the statement whose rows ``buckets`` takes.

        Args:
            rows: What to count, without columns.
            time: When it was.
            group: What it is counted under; None counts all together.
        """
        us, width_us = EpochMicroseconds(time), self._width_us
        past_us = sa.func.mod(us, width_us)  # negative before 1970
        past_us = sa.func.mod(past_us + width_us, width_us)
        if self._start is not None:
            rows = rows.where(time >= self._start)
        if self._end is not None:
            rows = rows.where(time <= self._end)
        cut = rows.add_columns(
            (us - past_us).label("start_us"), (sa.null() if group is None else group).label("value")
        ).subquery()
        key = (cut.c.start_us, cut.c.value)
        return sa.select(*key, sa.func.count()).group_by(*key).order_by(*key).limit(MOST_BUCKETS + 1)

    def buckets(self, counts: Iterable[tuple[int | None, str | None, int]], *, grouped: bool) -> list[Bucket]:
        """Return the counts as buckets, with those of 0.

        Raises:
            ValueError: There are too many, or one begins before the year 1.
            SerializationError: A stored time lies outside the years 1 to 9999.
        """
        found = {}
        for start_us, group, count in counts:
            if start_us is None:
                raise SerializationError("stored timestamp 'infinity' is outside the years 1 to 9999")
            found[start_us, group] = count
        starts_us = self._starts_us([start_us for start_us, _ in found])
        names = sorted({group for _, group in found if group is not None})
        groups = names if grouped else [None]
        if not groups:  # or all the steps of time would be gone through in vain
            return []
        if len(starts_us) * len(groups) > MOST_BUCKETS:
            raise ValueError(
                f"there would be more than {MOST_BUCKETS:,} buckets of width {_text(self._width_us)}; "
                "give a larger width, or a start and an end that are closer together"
            )
        return [
            Bucket(from_epoch_us(start_us), group, found.get((start_us, group), 0))
            for start_us in starts_us
            for group in groups
        ]

    def _starts_us(self, found_us: list[int]) -> range:
        """Return where the buckets begin, given where those begin in which there is something."""
        if self._start is not None and self._end is not None and self._start > self._end:
            return range(0)
        first_us = min(found_us, default=None) if self._start is None else self._floor_us(self._start)
        last_us = max(found_us, default=None) if self._end is None else self._floor_us(self._end)
        if first_us is None or last_us is None:
            return range(0)
        if first_us < _YEAR_1_US:
            raise ValueError(
                f"the first bucket of width {_text(self._width_us)} would begin before the year 1; "
                "give a later start or another width"
            )
        return range(first_us, last_us + 1, self._width_us)

    def _floor_us(self, time: datetime) -> int:
        return to_epoch_us(time) // self._width_us * self._width_us


def _text(width_us: int) -> str:
    """Return a width in the largest unit that it is a whole number of."""
    unit, name = next((unit, name) for unit, name in _UNITS_US if width_us % unit == 0)
    return f"{width_us // unit}{name}"


def check_group(by: str | None, name: str) -> None:
    """Raise ``ValueError`` unless the counts are grouped by the column of that name, or by none."""
    if by not in (None, name):
        raise ValueError(f"by must be {name!r} or None, got {by!r}")

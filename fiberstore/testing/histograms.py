"""Counts in buckets of time."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest

from fiberstore.contract.queries import MOST_BUCKETS, Fibers, Logs, QueryStorage
from fiberstore.contract.results import Bucket
from fiberstore.testing.examples import (
    BEGIN_OF_TIME,
    END_OF_TIME,
    MICROSECOND,
    NOON,
    at,
    fiber,
    log,
    member,
    uid,
)
from fiberstore.testing.invalid_arguments import check_refusal

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND, _MINUTE, _DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)


def _seconds(buckets: Iterable[Bucket]) -> list[tuple[float, str | None, int]]:
    """Return the buckets with their beginnings in seconds from noon."""
    return [((bucket.start - NOON).total_seconds(), bucket.group, bucket.count) for bucket in buckets]


class HistogramsContract:
    """``logs.histogram`` and ``fibers.histogram``."""

    def test_histogram_of_nothing_is_empty(self, storage: QueryStorage) -> None:
        for query in (storage.logs, storage.fibers):
            assert query.histogram(_DAY) == []
            assert query.histogram(_DAY, start=NOON) == query.histogram(_DAY, end=NOON) == []
        assert storage.logs.histogram(_DAY, by="source_id", start=NOON, end=at(99)) == []
        assert storage.fibers.histogram(_DAY, by="fiber_type", start=NOON, end=at(99)) == []
        all_time = {"start": BEGIN_OF_TIME, "end": END_OF_TIME}
        assert storage.logs.histogram(MICROSECOND, by="source_id", **all_time) == []

    def test_histogram_of_nothing_between_two_times_has_zeros(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, 9.0)])
        zeros = [(0, None, 0), (2, None, 0), (4, None, 0)]
        for query in (storage.logs, storage.fibers):
            assert _seconds(query.histogram(2 * _SECOND, start=at(1), end=at(4))) == zeros

    def test_histogram_counts_each_log_once_and_fills_the_gaps(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, 0.0), log(2, 0.0), log(3, 1.999999), log(4, 2.0), log(5, 9.5)])
        assert _seconds(storage.logs.histogram(2 * _SECOND)) == [
            (0, None, 3),
            (2, None, 1),
            (4, None, 0),
            (6, None, 0),
            (8, None, 1),
        ]
        assert storage.logs.order_by("newest").histogram(2 * _SECOND) == storage.logs.histogram(2 * _SECOND)

    def test_histogram_by_group_has_every_group_in_every_bucket(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, 0.0, source="web"), log(2, 4.0, source="web"), log(3, 4.5, source="Db")])
        assert _seconds(storage.logs.histogram(2 * _SECOND, by="source_id")) == [
            (0, "Db", 0),
            (0, "web", 1),
            (2, "Db", 0),
            (2, "web", 0),
            (4, "Db", 1),
            (4, "web", 1),
        ]

    def test_histogram_has_only_groups_that_occur_in_its_range(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, 0.0, source="web"), log(2, 3.0, source="db"), log(3, 5.0, source="db")])
        found = storage.logs.histogram(2 * _SECOND, by="source_id", start=at(1))
        assert _seconds(found) == [(0, "db", 0), (2, "db", 1), (4, "db", 1)]

    def test_histogram_of_fibers_counts_their_first_activity(self, storage: QueryStorage) -> None:
        storage.write_fiber(fiber(1, "request", first=at(0), last=at(500)))
        storage.write_fiber(fiber(2, "login", first=at(125)))
        storage.write_fiber(fiber(3, "request", first=at(125)))
        assert _seconds(storage.fibers.histogram(_MINUTE)) == [(0, None, 1), (60, None, 0), (120, None, 2)]
        by_type = storage.fibers.order_by("most_logs").histogram(2 * _MINUTE, by="fiber_type")
        assert _seconds(by_type) == [
            (0, "login", 0),
            (0, "request", 1),
            (120, "login", 1),
            (120, "request", 1),
        ]

    def test_histogram_counts_only_what_the_query_has(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, 0.0, source="db"), log(2, 2.0), log(3, 4.0), log(4, 6.0, source="db")])
        storage.write_fiber(fiber(1, "request"))
        storage.write_fiber(fiber(2, "login"))
        storage.write_memberships([member(3, 1), member(3, 2)])
        web = storage.logs.where(Logs.c.source_id == "web")
        assert _seconds(web.histogram(2 * _SECOND)) == [(2, None, 1), (4, None, 1)]
        joined = storage.logs.where(Logs.c.fibers.contains(uid(1), uid(2)))
        assert _seconds(joined.histogram(2 * _SECOND, by="source_id")) == [(4, "web", 1)]
        logins = storage.fibers.where(Fibers.c.fiber_type == "login")
        assert _seconds(logins.histogram(_SECOND, by="fiber_type")) == [(2, "login", 1)]

    def test_histogram_counts_from_start_to_end_inclusive(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, number) for number in range(10)])
        every = storage.logs.histogram(4 * _SECOND, start=at(2), end=at(8))
        assert _seconds(every) == [(0, None, 2), (4, None, 4), (8, None, 1)]
        inner = storage.logs.histogram(4 * _SECOND, start=at(2) + MICROSECOND, end=at(8) - MICROSECOND)
        assert _seconds(inner) == [(0, None, 1), (4, None, 4)]
        assert _seconds(storage.logs.histogram(4 * _SECOND, start=at(9))) == [(8, None, 1)]
        assert _seconds(storage.logs.histogram(4 * _SECOND, end=at(0))) == [(0, None, 1)]
        assert _seconds(storage.logs.histogram(4 * _SECOND, start=at(3), end=at(3))) == [(0, None, 1)]

    def test_histogram_begins_and_ends_with_the_buckets_of_start_and_end(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, 5.0)])
        found = storage.logs.histogram(2 * _SECOND, start=at(-3), end=at(8))
        assert _seconds(found) == [(second, None, int(second == 4)) for second in range(-4, 9, 2)]
        only_start = storage.logs.histogram(2 * _SECOND, by="source_id", start=at(1))
        assert _seconds(only_start) == [(0, "web", 0), (2, "web", 0), (4, "web", 1)]
        only_end = storage.logs.histogram(2 * _SECOND, end=at(6))
        assert _seconds(only_end) == [(4, None, 1), (6, None, 0)]

    def test_histogram_from_start_after_end_is_empty(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, 5.0)])
        for width in (_SECOND, _DAY):
            assert storage.logs.histogram(width, start=at(6), end=at(5)) == []
            assert storage.logs.histogram(width, by="source_id", start=at(6), end=at(4)) == []

    def test_histogram_of_start_and_end_in_another_zone_is_the_same(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, 5.0)])
        zone = timezone(timedelta(hours=5, minutes=45))
        found = storage.logs.histogram(_SECOND, start=at(4).astimezone(zone), end=at(6).astimezone(zone))
        assert _seconds(found) == [(4, None, 0), (5, None, 1), (6, None, 0)]
        assert all(bucket.start.tzinfo is UTC for bucket in found)

    def test_histogram_has_buckets_before_1970(self, storage: QueryStorage) -> None:
        ages_us = (-20_000_000, -10_000_001, -10_000_000, -9_999_999, -1, 0, 1, 9_999_999, 10_000_000)
        storage.write_logs([log(number, _EPOCH + age * MICROSECOND) for number, age in enumerate(ages_us)])
        found = storage.logs.histogram(10 * _SECOND)
        assert [((bucket.start - _EPOCH) // _SECOND, bucket.count) for bucket in found] == [
            (-20, 2),
            (-10, 3),
            (0, 3),
            (10, 1),
        ]
        early = storage.logs.histogram(10 * _SECOND, start=_EPOCH - 15 * _SECOND, end=_EPOCH - MICROSECOND)
        assert [((bucket.start - _EPOCH) // _SECOND, bucket.count) for bucket in early] == [
            (-20, 1),
            (-10, 3),
        ]

    @pytest.mark.parametrize(
        "width",
        [MICROSECOND, 7 * MICROSECOND, timedelta(hours=7, microseconds=1), timedelta(days=7), 999 * _DAY],
    )
    def test_histogram_buckets_are_at_multiples_of_any_width(
        self, storage: QueryStorage, width: timedelta
    ) -> None:
        first = _EPOCH + (NOON - _EPOCH) // width * width
        storage.write_logs([log(1, first), log(2, first - MICROSECOND), log(3, first + width)])
        found = storage.logs.histogram(width)
        assert [(bucket.start, bucket.count) for bucket in found] == [
            (first - width, 1),
            (first, 1),
            (first + width, 1),
        ]

    def test_histogram_reaches_to_both_ends_of_time(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, BEGIN_OF_TIME), log(2, END_OF_TIME)])
        days = (END_OF_TIME - BEGIN_OF_TIME).days
        found = storage.logs.histogram(_DAY, end=BEGIN_OF_TIME)
        assert found == [Bucket(BEGIN_OF_TIME, None, 1)]
        (last,) = storage.logs.histogram(_DAY, start=END_OF_TIME)
        assert last == Bucket(BEGIN_OF_TIME + days * _DAY, None, 1)
        assert storage.logs.histogram(timedelta.max, start=NOON) == [Bucket(_EPOCH, None, 1)]

    def test_histogram_of_a_bucket_before_the_year_1_is_refused(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, BEGIN_OF_TIME)])
        for width in (999 * _DAY, timedelta.max):
            with pytest.raises(ValueError, match="year 1"):
                storage.logs.histogram(width)
        with pytest.raises(ValueError, match="year 1"):
            storage.fibers.histogram(999 * _DAY, start=BEGIN_OF_TIME, end=at(0))

    def test_histogram_of_too_many_buckets_is_refused(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, 0.0), log(2, MOST_BUCKETS - 1, source="db")])
        assert len(storage.logs.histogram(_SECOND)) == MOST_BUCKETS
        assert len(storage.logs.histogram(2 * _SECOND, by="source_id")) == MOST_BUCKETS
        too_many: list[dict[str, Any]] = [
            {"by": "source_id"},
            {"end": at(MOST_BUCKETS)},
            {"start": at(-1)},
            {"start": BEGIN_OF_TIME, "end": END_OF_TIME},
            {"start": at(MOST_BUCKETS), "end": at(2 * MOST_BUCKETS)},
        ]
        for arguments in too_many:
            with pytest.raises(ValueError, match="100,000 buckets of width"):
                storage.logs.histogram(_SECOND, **arguments)
        with pytest.raises(ValueError, match="100,000"):
            storage.logs.histogram(MICROSECOND)

    def test_histogram_of_a_wrong_width_raises(self, storage: QueryStorage) -> None:
        for query in (storage.logs, storage.fibers):
            check_refusal(query.histogram, ValueError, "width", timedelta(0), -MICROSECOND, timedelta.min)
            check_refusal(query.histogram, TypeError, "width", 60, 1.0, "1h", None)

    def test_histogram_of_wrong_times_or_groups_raises(self, storage: QueryStorage) -> None:
        naive = NOON.replace(tzinfo=None)
        for query in (storage.logs, storage.fibers):
            with pytest.raises(ValueError, match="naive"):
                query.histogram(_DAY, start=naive)
            with pytest.raises(ValueError, match="naive"):
                query.histogram(_DAY, end=naive)
            with pytest.raises(TypeError):
                query.histogram(_DAY, end=cast("datetime", "2024-01-01"))
            for by in ("raw_text", "", "log_id"):
                with pytest.raises(ValueError, match="by must be"):
                    query.histogram(_DAY, by=cast("Any", by))
        with pytest.raises(ValueError, match="by must be"):
            storage.logs.histogram(_DAY, by=cast("Any", "fiber_type"))

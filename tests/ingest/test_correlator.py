"""Correlation in a database: any order of lines, batches, repeats and producers gives the same fibers."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiberstore.contract.queries import Fibers, Logs
from fiberstore.ids import stable_fiber_id
from fiberstore.ingest import Correlator, Rules, parse_rules
from fiberstore.ingest.occurrences import PatternSearch
from fiberstore.records import FiberRecord, LogRecord
from fiberstore.repositories.storage import SqlStorage
from tests.support.correlation import Line, plain_fibers
from tests.support.databases import empty

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
GAP_S = 4
LETTERS = "".join(
    f"""
[[fibers.words.patterns]]
regex = '\\b(?P<{letter}>{letter})\\b'
[[fibers.words.patterns]]
regex = '\\b(?P<{letter}>{letter})\\b.*start'
start = true
[[fibers.words.patterns]]
regex = '\\b(?P<{letter}>{letter})\\b.*close'
close = true
[[fibers.words.patterns]]
regex = '\\b(?P<{letter}>{letter})\\b.*grace'
close = true
close_grace = "2s"
"""
    for letter in "abc"
)
RULES = parse_rules(
    f"""
[sources.any]
[fibers.words]
max_gap = "{GAP_S}s"
{LETTERS}
[fibers.blocks]
max_gap = "infinite"
[[fibers.blocks.patterns]]
regex = 'x(?P<block>\\d)(?P<note>[!?])?'
key = ["block"]
each = true
[[fibers.blocks.patterns]]
regex = 'x(?P<block>\\d)end'
each = true
close = true
"""
)


@pytest.fixture
def storage(any_storage: SqlStorage) -> SqlStorage:
    return any_storage


def log(second: int, text: str, number: int = 0) -> LogRecord:
    return LogRecord(
        log_id=UUID(int=number) if number else None,
        timestamp=NOON + timedelta(seconds=second), source_id="any", raw_text=text,
    )  # fmt: skip


def fibers_of(storage: SqlStorage, rules: Rules = RULES) -> dict[str, Counter[frozenset[UUID]]]:
    """The fibers of each type, as sets of logs."""
    return {
        name: Counter(
            frozenset(found.log_id for found in storage.get_fiber_logs(fiber.fiber_id))
            for fiber in storage.query_fibers_by_type(name)
        )
        for name in rules.fibers
    }


def plain_lines(logs: Sequence[LogRecord], name: str, rules: Rules = RULES) -> list[Line]:
    search = PatternSearch(rules)
    return [
        Line((log.timestamp - NOON) // timedelta(seconds=1), log.log_id, tuple(found))
        for log in logs
        if (found := [one for kind, one in search.find(log.source_id, log.raw_text) if kind == name])
    ]


def expected(logs: Sequence[LogRecord], rules: Rules = RULES) -> dict[str, Counter[frozenset[UUID]]]:
    """The fibers of the definition."""
    found = {}
    for name, rule in rules.fibers.items():
        max_gap = None if rule.max_gap is None else rule.max_gap // timedelta(seconds=1)
        fibers = plain_fibers(plain_lines(logs, name, rules), max_gap)
        found[name] = Counter(fiber.log_ids for fiber in fibers)
    return found


def texts(storage: SqlStorage, name: str) -> list[list[str]]:
    """The texts of each fiber's lines, sorted."""
    return sorted(
        [found.raw_text for found in storage.get_fiber_logs(fiber.fiber_id)]
        for fiber in storage.query_fibers_by_type(name)
    )


WORDS = st.lists(
    st.sampled_from([*"aabbc", "start", "close", "grace", "x1", "x2", "x2!", "x1end", "x3?"]),
    min_size=1, max_size=4,
).map(" ".join)  # fmt: skip


@st.composite
def batches(draw: Any) -> list[list[LogRecord]]:  # noqa: ANN401
    """Logs in batches of any order, some of them twice."""
    found = draw(st.lists(st.tuples(st.integers(0, 20), WORDS), min_size=1, max_size=14))
    logs = draw(st.permutations([log(second, text, n) for n, (second, text) in enumerate(found, 1)]))
    logs += draw(st.lists(st.sampled_from(logs), max_size=3))
    cuts = sorted(draw(st.sets(st.integers(0, len(logs)), max_size=4)))
    return [logs[a:b] for a, b in zip([0, *cuts], [*cuts, len(logs)], strict=True) if a < b]


def check(storage: SqlStorage, logs: Sequence[LogRecord]) -> None:
    """Compare the store with the definition, and each record with its lines."""
    assert fibers_of(storage) == expected(logs)
    watermark = max(
        (log.timestamp for log in logs if PatternSearch(RULES).find(log.source_id, log.raw_text)),
        default=NOON,
    )
    for name, rule in RULES.fibers.items():
        max_gap = None if rule.max_gap is None else rule.max_gap // timedelta(seconds=1)
        plain = plain_fibers(plain_lines(logs, name), max_gap)
        for fiber in storage.query_fibers_by_type(name):
            members = frozenset(found.log_id for found in storage.get_fiber_logs(fiber.fiber_id))
            assert any(described(one, watermark, rule.max_gap) == record(fiber) for one in plain
                       if one.log_ids == members)  # fmt: skip


def record(fiber: FiberRecord) -> tuple[Any, ...]:
    assert isinstance(fiber.attributes, dict)
    keys = {(name, text) for name, values in fiber.attributes.items() for text in values}
    return keys, fiber.first_activity, fiber.last_activity, fiber.closed


def described(plain: Any, watermark: datetime, max_gap: timedelta | None) -> tuple[Any, ...]:  # noqa: ANN401
    shown = {pair for _, one in plain.occurrences for pair in (*map(tuple, one.keys), *one.attributes)}
    times = [NOON + timedelta(seconds=line.second) for line, _ in plain.occurrences]
    silent = max_gap is not None and max(times) + max_gap < watermark
    return shown, min(times), max(times), silent or plain.end is not None


def test_batches_in_any_order_give_the_fibers_of_the_definition(storage: SqlStorage) -> None:
    @given(batches())
    def check_batches(given: list[list[LogRecord]]) -> None:
        empty(storage.engine)
        logs: dict[UUID, LogRecord] = {}
        given_ids: dict[UUID, tuple[str, UUID]] = {}
        for batch in given:
            Correlator(storage, RULES).write(batch)
            logs.update((one.log_id, one) for one in batch)
            check(storage, [*logs.values()])
            for name in RULES.fibers:
                for fiber in storage.query_fibers_by_type(name):
                    for found in storage.get_fiber_logs(fiber.fiber_id):
                        for match in range(4):
                            made = stable_fiber_id(name, RULES.config_version, found.log_id, match)
                            if made == fiber.fiber_id:
                                given_ids[made] = (name, found.log_id)
        resolved = storage.resolve_fibers(given_ids)
        assert resolved.keys() == given_ids.keys()
        for id_, (_, log_id) in given_ids.items():
            assert resolved[id_] in storage.get_log_fibers(log_id)

    check_batches()


def test_producers_in_threads_equal_one(storage: SqlStorage) -> None:
    logs = [log(n // 5, f"{'abc'[n % 3]} {'abc'[n // 7 % 3]} x{n % 4}", n + 1) for n in range(200)]
    correlator = Correlator(storage, RULES)
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(correlator.write, [logs[start::10] for start in range(10)]))
    assert sum(one.logs_new for one in counts) == len(logs)
    assert fibers_of(storage) == expected(logs)

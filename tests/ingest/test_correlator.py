"""Correlation in a database: any order of lines, batches, repeats and producers gives the same fibers."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from fiberstore import AsyncDuckDBStorage, DatabaseError, DuckDBStorage, PostgresStorage, open_storage
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.ids import stable_fiber_id
from fiberstore.ingest import CorrelationCounts, Rules, parse_rules, reprocess
from fiberstore.ingest.occurrences import PatternSearch
from fiberstore.ingest.storage import CorrelatingStorage
from fiberstore.records import FiberRecord, LogRecord
from fiberstore.repositories.storage import SqlStorage
from tests.support.correlation import Line, PlainFiber, plain_fibers, shown
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
def storage(any_storage: SqlStorage) -> CorrelatingStorage:
    assert isinstance(any_storage, CorrelatingStorage)
    return any_storage


def log(second: int, text: str, number: int) -> LogRecord:
    return LogRecord(
        log_id=UUID(int=number),
        timestamp=NOON + timedelta(seconds=second), source_id="any", raw_text=text,
    )  # fmt: skip


def fibers_of(storage: CorrelatingStorage, rules: Rules = RULES) -> dict[str, Counter[frozenset[int]]]:
    """The fibers of each type, as sets of logs."""
    return {
        name: Counter(
            frozenset(found.log_id.int for found in storage.get_fiber_logs(fiber.fiber_id))
            for fiber in storage.query_fibers_by_type(name)
        )
        for name in rules.fibers
    }


def plain_lines(logs: Sequence[LogRecord], name: str, rules: Rules = RULES) -> list[Line]:
    search = PatternSearch(rules)
    return [
        Line((log.timestamp - NOON) // timedelta(seconds=1), log.log_id.int, tuple(found))
        for log in logs
        if (found := [one for kind, one in search.find(log.source_id, log.raw_text) if kind == name])
    ]


def expected(logs: Sequence[LogRecord], rules: Rules = RULES) -> dict[str, Counter[frozenset[int]]]:
    """The fibers of the definition."""
    found = {}
    for name, rule in rules.fibers.items():
        max_gap = None if rule.max_gap is None else rule.max_gap // timedelta(seconds=1)
        fibers = plain_fibers(plain_lines(logs, name, rules), max_gap)
        found[name] = Counter(fiber.log_ids for fiber in fibers)
    return found


def texts(storage: CorrelatingStorage, name: str) -> list[list[str]]:
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


def check(storage: CorrelatingStorage, logs: Sequence[LogRecord]) -> None:
    """Compare the store with the definition, and each record with its lines."""
    assert fibers_of(storage) == expected(logs)
    log_time = max(
        (log.timestamp for log in logs if PatternSearch(RULES).find(log.source_id, log.raw_text)),
        default=NOON,
    )
    for name, rule in RULES.fibers.items():
        max_gap = None if rule.max_gap is None else rule.max_gap // timedelta(seconds=1)
        plain = plain_fibers(plain_lines(logs, name), max_gap)
        for fiber in storage.query_fibers_by_type(name):
            members = frozenset(found.log_id.int for found in storage.get_fiber_logs(fiber.fiber_id))
            assert any(described(one, log_time, rule.max_gap) == record(fiber) for one in plain
                       if one.log_ids == members)  # fmt: skip


def record(fiber: FiberRecord) -> tuple[object, ...]:
    return shown(fiber), fiber.first_activity, fiber.last_activity, fiber.closed


def described(plain: PlainFiber, log_time: datetime, max_gap: timedelta | None) -> tuple[object, ...]:
    shown = {pair for _, one in plain.occurrences for pair in (*map(tuple, one.keys), *one.attributes)}
    times = [NOON + timedelta(seconds=line.second) for line, _ in plain.occurrences]
    silent = max_gap is not None and max(times) + max_gap < log_time
    return shown, min(times), max(times), silent or plain.end is not None


def test_batches_in_any_order_give_the_fibers_of_the_definition(storage: CorrelatingStorage) -> None:
    @given(batches())
    def check_batches(given: list[list[LogRecord]]) -> None:
        empty(storage.engine)
        logs: dict[UUID, LogRecord] = {}
        given_ids: dict[UUID, tuple[str, UUID]] = {}
        for batch in given:
            storage.correlate(RULES).write(batch)
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


def test_producers_in_threads_equal_one(storage: CorrelatingStorage) -> None:
    logs = some_logs()
    correlator = storage.correlate(RULES)
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(correlator.write, [logs[start::10] for start in range(10)]))
    assert sum(one.logs_new for one in counts) == len(logs)
    assert fibers_of(storage) == expected(logs)


PRODUCER = """
import sys
from fiberstore import PostgresStorage
from tests.ingest.test_correlator import produce
with PostgresStorage(sys.argv[1]) as storage:
    print("ready", flush=True)
    produce(storage, 0)
"""


def produce(storage: CorrelatingStorage, half: int) -> None:
    """Write every other batch of the logs."""
    correlator = storage.correlate(RULES)
    for start in range(half, 20, 2):
        correlator.write(some_logs()[start::20])


def some_logs() -> list[LogRecord]:
    return [log(n // 5, f"{'abc'[n % 3]} {'abc'[n // 7 % 3]} x{n % 4}", n + 1) for n in range(200)]


@pytest.mark.slow
def test_producers_in_processes_equal_one(
    postgresql_storage: PostgresStorage, postgres_tables_url: str
) -> None:
    command = [sys.executable, "-c", PRODUCER, postgres_tables_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        produce(postgresql_storage, 1)
    assert other.returncode == 0
    assert fibers_of(postgresql_storage) == expected(some_logs())


def test_tasks_write_logs_with_their_fibers(tmp_path: Path) -> None:
    async def write() -> list[CorrelationCounts]:
        async with AsyncDuckDBStorage(tmp_path / "store.duckdb") as storage:
            await storage.init_schema()
            correlator = storage.correlate(RULES)
            return await asyncio.gather(
                *(correlator.write(iter(some_logs()[start::4])) for start in range(4))
            )

    counts = asyncio.run(write())
    with DuckDBStorage(tmp_path / "store.duckdb") as storage:
        assert fibers_of(storage) == expected(some_logs())
        assert sum(one.memberships_new for one in counts) >= storage.memberships.count() > 200
        active = storage.versions.active()
        assert active is not None
        assert active.config_version == RULES.config_version


def test_a_log_that_is_written_again_changes_nothing(storage: CorrelatingStorage) -> None:
    correlator = storage.correlate(RULES)
    first = correlator.write([log(1, "a x1", 1), log(1, "a x1", 1), log(2, "nothing", 2)])
    assert first == CorrelationCounts(logs_new=2, fibers_new=2, memberships_new=2)
    assert storage.correlate(RULES).write([log(1, "a x1", 1)]) == CorrelationCounts()
    with pytest.raises(TypeError, match="item 0 must be a LogRecord"):
        correlator.write(["a"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="parse_rules"):
        storage.correlate("rules.toml")  # type: ignore[arg-type]


def test_a_fiber_that_was_deleted_is_begun_anew(storage: CorrelatingStorage) -> None:
    correlator = storage.correlate(RULES)
    correlator.write([log(1, "a", 1), log(2, "a", 2)])
    storage.fibers.where(Fibers.c.fiber_type == "words").delete()
    assert correlator.write([log(3, "a", 3)]).fibers_new == 1
    assert texts(storage, "words") == [["a"]]


def test_a_fiber_without_logs_that_a_late_log_ends_takes_no_more_logs(storage: CorrelatingStorage) -> None:
    correlator = storage.correlate(RULES)
    logs = [log(1, "a", 1), log(4, "a b", 2)]
    correlator.write(logs)
    (emptied,) = storage.query_fibers_by_type("words")
    storage.logs.delete()
    later = [log(2, "a close", 3), log(4, "a", 4), log(4, "b", 5)]
    for one in later:
        correlator.write([one])
    assert storage.get_keys([emptied.fiber_id]) == {emptied.fiber_id: []}
    storage.fibers.where(Fibers.c.fiber_id == emptied.fiber_id).delete()
    assert fibers_of(storage) == expected(later)


@pytest.mark.parametrize("database", ["db_file", "postgres_url"])
def test_errors_of_the_database_are_those_of_the_storage(
    request: pytest.FixtureRequest, database: str
) -> None:
    with open_storage(str(request.getfixturevalue(database))) as storage:
        assert isinstance(storage, CorrelatingStorage)
        storage.init_schema()
        with storage.session() as session:
            session.execute(sa.text("DROP TABLE fiber_keys"))
            session.commit()
        for run in (
            lambda: storage.correlate(RULES).write([log(1, "a", 1)]),
            lambda: reprocess(storage, RULES),
        ):
            with pytest.raises(DatabaseError, match="fiber_keys"):
                run()


def test_the_id_of_a_deleted_log_is_given_once(storage: CorrelatingStorage) -> None:
    correlator = storage.correlate(RULES)
    first, last, start = log(1, "a", 1), log(4, "a", 2), log(2, "a start", 3)
    correlator.write([first, last])
    storage.logs.where(Logs.c.log_id == first.log_id).delete()
    correlator.write([start])
    correlator.write([first])
    assert fibers_of(storage) == expected([first, start, last])
    assert all(len(keys) == 1 for keys in storage.get_keys(
        fiber.fiber_id for fiber in storage.query_fibers_by_type("words")
    ).values())  # fmt: skip


def test_memberships_that_a_killed_drop_left_join_nothing(storage: CorrelatingStorage) -> None:
    correlator = storage.correlate(RULES)
    logs = [log(1, "a", 1), log(2, "a b", 2)]
    correlator.write(logs)
    memberships = list(storage.memberships.iter_records())
    storage.fibers.delete()
    storage.write_memberships(memberships)
    for one in logs:
        correlator.write([one])
    (fiber,) = storage.query_fibers_by_type("words")
    assert [key.name for key in storage.get_keys([fiber.fiber_id])[fiber.fiber_id]] == ["a", "b"]
    assert texts(storage, "words") == [["a", "a b"]]


def test_of_logs_of_one_id_the_stored_one_has_the_keys(storage: CorrelatingStorage) -> None:
    counts = storage.correlate(RULES).write([log(1, "nothing", 1), log(1, "a", 1)])
    assert counts == CorrelationCounts(logs_new=1)


def test_fibers_that_were_merged_by_hand_stay_one(storage: CorrelatingStorage) -> None:
    correlator = storage.correlate(RULES)
    correlator.write([log(1, "a", 1), log(1, "b", 2)])
    older, newer = storage.query_fibers_by_type("words")
    storage.merge_fibers({newer.fiber_id: older.fiber_id})
    correlator.write([log(2, "b again", 3)])
    assert texts(storage, "words") == [["a", "b", "b again"]]
    assert storage.resolve_fibers([newer.fiber_id]) == {newer.fiber_id: older.fiber_id}


def test_what_others_wrote_into_attributes_stays(storage: CorrelatingStorage) -> None:
    correlator = storage.correlate(RULES)
    correlator.write([log(1, "a", 1)])
    (fiber,) = storage.query_fibers_by_type("words")
    assert isinstance(fiber.attributes, dict)
    storage.update_fiber(fiber.model_copy(update={"attributes": {**fiber.attributes, "owner": "Zoë"}}))
    correlator.write([log(2, "a b", 2)])
    (fiber,) = storage.query_fibers_by_type("words")
    assert fiber.attributes == {"owner": "Zoë", "a": ["a"], "b": ["b"]}


def test_a_batch_takes_as_many_statements_however_many_lines_it_has(storage: CorrelatingStorage) -> None:
    correlator = storage.correlate(RULES)
    counts = []
    statements: list[str] = []
    sa.event.listen(
        storage.engine,
        "before_cursor_execute",
        lambda _c, _k, statement, *_rest: statements.append(statement),
    )
    for start, lines in ((0, 20), (1_000, 20), (2_000, 600)):
        statements.clear()
        correlator.write([log(start + n // 2, f"a b x{n % 3}", start + n + 1) for n in range(lines)])
        counts.append(len(statements))
    assert counts[1] == counts[2]
    assert 0 < counts[1] < 60

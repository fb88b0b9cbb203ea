"""A copy converges: whatever is written to the source between its steps, both are equal once it is quiet."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings

from fiberstore import Base, DuckDBStorage, FiberRecord, Fibers, Logs, Memberships, StorageError, copy_store
from fiberstore.copying.checksums import COPY_PREFIX
from fiberstore.copying.copy import Copied
from fiberstore.ingest import Rules, load_rules, reprocess
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.testing.examples import NOON, fiber, log, member, uid
from tests.ingest.test_reprocess import RULES
from tests.support.databases import empty

MOST_RUNS = 2

Rows = dict[str, set[tuple[object, ...]]]


@dataclass(frozen=True)
class Write:
    """A call on the source, and its text for the report of a failure."""

    name: str
    arguments: tuple[object, ...]
    call: Callable[..., object]

    def __repr__(self) -> str:
        return f"{self.name}{self.arguments}"


def write(
    name: str, call: Callable[..., object], *arguments: st.SearchStrategy[object]
) -> st.SearchStrategy[Write]:
    return st.tuples(*arguments).map(lambda given: Write(name, given, call))


log_numbers, fiber_numbers = st.integers(1, 5), st.integers(1, 4)
some_logs, some_fibers = st.sets(log_numbers, min_size=1), st.sets(fiber_numbers, min_size=1)
pairs = st.sets(st.tuples(log_numbers, fiber_numbers), min_size=1, max_size=6)
versions, texts = st.sampled_from([3, 4]), st.sampled_from(["a", "secret", "é"])
seconds = st.sampled_from([-5, 0, 5])


def logs_of(store: SqlStorage, numbers: set[int]) -> Logs:
    return store.logs.where(Logs.c.log_id.in_([uid(number) for number in numbers]))


def fibers_of(store: SqlStorage, numbers: set[int]) -> Fibers:
    return store.fibers.where(Fibers.c.fiber_id.in_([uid(number) for number in numbers]))


def memberships_of(store: SqlStorage, numbers: set[int]) -> Memberships:
    return store.memberships.where(Memberships.c.log_id.in_([uid(number) for number in numbers]))


def records(versions: st.SearchStrategy[int]) -> st.SearchStrategy[FiberRecord]:
    first = seconds.map(lambda when: NOON + timedelta(seconds=when))
    return st.builds(
        fiber, fiber_numbers, texts, seconds, first=first, closed=st.booleans(), config_version=versions
    )


def join(store: SqlStorage, held: set[tuple[int, int]], version: int) -> None:
    """Write memberships of stored fibers."""
    stored = numbers_of(store)
    store.write_memberships(
        [member(number, of_fiber, version) for number, of_fiber in held if of_fiber in stored]
    )


def numbers_of(store: SqlStorage) -> set[int]:
    return {record.fiber_id.int for record in store.fibers.iter_records()}


def store_whole(store: SqlStorage, held: set[tuple[int, int]], text: str, version: int) -> None:
    store.write_batch(
        logs=[log(number, text=text) for number in {number for number, _ in held}],
        fibers=[fiber(number, config_version=version) for number in {number for _, number in held}],
        memberships=[member(number, of_fiber, version) for number, of_fiber in held],
    )


def merge(store: SqlStorage, losers: set[int], survivor: int) -> None:
    stored = numbers_of(store)
    store.merge_fibers({uid(loser): uid(survivor) for loser in (losers & stored) - {survivor}})


def merge_for_good(store: SqlStorage, losers: set[int], survivor: int) -> None:
    """Merge fibers that were never merged before: of one that was, a store forgets where it has gone."""
    with store.engine.connect() as connection:
        merged = set(connection.scalars(sa.select(Base.metadata.tables["fiber_merges"].c.fiber_id)))
    if uid(survivor) not in merged:
        merge(store, {loser for loser in losers if uid(loser) not in merged}, survivor)


def additions(versions: st.SearchStrategy[int]) -> list[st.SearchStrategy[Write]]:
    """Return writes that take nothing away."""
    return [
        write("store", store_whole, pairs, texts, versions),
        write(
            "write_logs",
            lambda store, numbers, text, when: store.write_logs(
                [log(number, number + when, text=text) for number in numbers]
            ),
            *(some_logs, texts, seconds),
        ),
        write("write_fiber", lambda store, number: store.write_fiber(fiber(number)), fiber_numbers),
        write("upsert", lambda store, record: store.upsert_fibers([record]), records(versions)),
        write("join", join, pairs, versions),
        write("close", lambda store, numbers: fibers_of(store, numbers).close(), some_fibers),
        write("reopen", lambda store, numbers: fibers_of(store, numbers).reopen(), some_fibers),
        write("pin fibers", lambda store, numbers: fibers_of(store, numbers).pin(), some_fibers),
        write("pin logs", lambda store, numbers: logs_of(store, numbers).pin(), some_logs),
        write("set", lambda store, *moved: store.checkpoints.set(*moved), st.sampled_from(["a", "b"]), texts),
        write("register", lambda store, content: store.versions.register(content), texts),
        write("activate", lambda store, version: store.versions.activate(version), versions | st.none()),
    ]


def removals() -> list[st.SearchStrategy[Write]]:
    """Return writes of which a store keeps no trace, or that change what was written first."""
    return [
        *(3 * [write("merge", merge, some_fibers, fiber_numbers)]),
        write("delete logs", lambda store, numbers: logs_of(store, numbers).delete(), some_logs),
        write("delete fibers", lambda store, numbers: fibers_of(store, numbers).delete(), some_fibers),
        write(
            "delete memberships", lambda store, numbers: memberships_of(store, numbers).delete(), some_logs
        ),
        write("redact", lambda store, numbers: logs_of(store, numbers).redact("secret"), some_logs),
        write("unpin fibers", lambda store, numbers: fibers_of(store, numbers).unpin(), some_fibers),
        write("unpin logs", lambda store, numbers: logs_of(store, numbers).unpin(), some_logs),
        write(
            "prune fibers",
            lambda store, when: store.prune(
                fibers=Fibers.c.first_activity < NOON + timedelta(seconds=when), step_rows=1
            ),
            seconds,
        ),
        write(
            "prune logs",
            lambda store, when: store.prune(
                logs=Logs.c.timestamp < NOON + timedelta(seconds=when), step_rows=1
            ),
            seconds,
        ),
        write("delete", lambda store, name: store.checkpoints.delete(name), st.sampled_from(["a", "b"])),
        write("drop", lambda store, version: store.versions.drop(version), versions),
        write("reprocess", lambda store: reprocess(store, WEB_RULES[0], batch_rows=2)),
    ]


WEB_RULES: list[Rules] = []


class StoppedError(Exception):
    """A copy is stopped in the middle, as by a kill."""


def histories(writes: list[st.SearchStrategy[Write]]) -> st.SearchStrategy[list[list[Write]]]:
    """Give the writes between the steps of a copy."""
    return st.lists(st.lists(st.one_of(writes), max_size=3), min_size=2, max_size=14)


def rows_of(storage: SqlStorage) -> Rows:
    """Return every row of every table but the progress of copies, with its key first."""
    with storage.engine.connect() as connection:
        rows: Rows = {
            name: {tuple(map(repr, row)) for row in connection.execute(sa.select(table))}
            for name, table in Base.metadata.tables.items()
        }
    rows["fiber_checkpoints"] = {row for row in rows["fiber_checkpoints"] if COPY_PREFIX not in str(row[0])}
    return rows


def by_key(rows: set[tuple[object, ...]], table: str) -> dict[tuple[object, ...], tuple[object, ...]]:
    width = len(Base.metadata.tables[table].primary_key)
    return {row[:width]: row for row in rows}


def live(
    source: SqlStorage,
    destination: SqlStorage,
    history: list[list[Write]],
    *,
    batch_rows: int,
    stops: set[int],
    mirror: bool,
) -> None:
    """Copy the source while it is written; at each stop, the copy is stopped and run again."""
    steps = deque(enumerate(history))

    def step() -> bool:
        """Make the writes of the next step; return True if the copy is to be stopped there."""
        number, writes = steps.popleft()
        for made in writes:
            with suppress(StorageError, ValueError):
                made.call(source, *made.arguments)
        return number in stops

    def on_rows(_step: str, _rows: int) -> None:
        if steps and step():
            raise StoppedError

    store_whole(source, {(1, 1), (2, 2), (3, 3), (4, 3)}, "a", 3)
    while steps:
        step()
        with suppress(StoppedError):
            copy_store(
                source, destination, batch_rows=batch_rows, max_passes=3, mirror=mirror, on_rows=on_rows
            )


def rest(source: SqlStorage, destination: SqlStorage, *, mirror: bool = False) -> Copied:
    for _ in range(MOST_RUNS):
        copied = copy_store(source, destination, mirror=mirror)
        if copied.is_equal:
            break
    assert copied.has_ended
    return copied


def check_differences(source: SqlStorage, destination: SqlStorage, copied: Copied) -> None:
    """Check that the destination lacks nothing, and that what differs is counted."""
    wanted, found = rows_of(source), rows_of(destination)
    for table in Base.metadata.tables:
        ours, theirs = by_key(wanted[table], table), by_key(found[table], table)
        assert ours.keys() <= theirs.keys(), table
        changed = sum(theirs[key] != row for key, row in ours.items())
        if table not in ("raw_logs", "fiber_memberships"):  # whose first write wins
            assert not changed, table
        more = len(theirs) - len(ours)
        assert (table in copied.differing) == bool(more or changed), table
        if table in copied.differing:
            told = copied.differences[table]
            assert told.only_destination - told.only_source == more, table  # another time is another place
            assert told.only_source + told.changed == changed, table
            assert told.keys, table
    fibers = {row[0] for row in found["fibers"]}
    strays = {row for row in found["fiber_memberships"] if row[1] not in fibers}
    held = by_key(wanted["fiber_memberships"], "fiber_memberships").keys()
    assert {row[:2] for row in strays} <= held  # of no fiber are only those that the source has so, too


Example = tuple[list[list[Write]], int, set[int], bool]


def examples(writes: list[st.SearchStrategy[Write]]) -> st.SearchStrategy[Example]:
    return st.tuples(
        histories(writes), st.integers(1, 4), st.sets(st.integers(0, 13), max_size=2), st.booleans()
    )


def check_additions(stores: tuple[SqlStorage, SqlStorage], example: Example) -> None:
    source, destination = stores
    empty(source.engine)
    empty(destination.engine)
    history, batch_rows, stops, _ = example
    live(source, destination, history, batch_rows=batch_rows, stops=stops, mirror=False)
    copied = rest(source, destination)
    assert copied.differences == {}
    assert rows_of(destination) == rows_of(source)


def check_everything(stores: tuple[SqlStorage, SqlStorage], example: Example) -> None:
    source, destination = stores
    empty(source.engine)
    empty(destination.engine)
    history, batch_rows, stops, mirror = example
    live(source, destination, history, batch_rows=batch_rows, stops=stops, mirror=mirror)
    check_differences(source, destination, rest(source, destination))
    copied = rest(source, destination, mirror=True)
    assert copied.is_equal
    assert copied.differences == {}
    assert rows_of(destination) == rows_of(source)


three = st.just(3)
of_additions = [
    *additions(three),
    *(4 * [write("merge", merge_for_good, some_fibers, fiber_numbers)]),
    write(
        "write_memberships",  # also of no fiber
        lambda store, held: store.write_memberships([member(*pair) for pair in held]),
        pairs,
    ),
]
of_everything = [*additions(versions), *removals()]

few = settings(deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))
many = settings(deadline=None, max_examples=3_000, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def web_rules(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    path.write_text(RULES.replace("key=", ""))
    WEB_RULES[:] = [load_rules(path, check_files=False)]


@pytest.fixture(scope="module")
def two_stores() -> Iterator[tuple[SqlStorage, SqlStorage]]:
    with DuckDBStorage(":memory:") as one, DuckDBStorage(":memory:") as other:
        one.init_schema()
        other.init_schema()
        yield one, other


@pytest.mark.slow
@few
@given(examples(of_additions))
def test_additions_and_merges_converge(two_stores: tuple[SqlStorage, SqlStorage], example: Example) -> None:
    check_additions(two_stores, example)


@pytest.mark.slow
@few
@given(examples(of_everything))
def test_everything_converges_with_mirror(
    two_stores: tuple[SqlStorage, SqlStorage], example: Example
) -> None:
    check_everything(two_stores, example)


@pytest.mark.long
@pytest.mark.timeout(0)
@many
@given(examples(of_additions))
def test_many_additions_and_merges_converge(
    two_stores: tuple[SqlStorage, SqlStorage], example: Example
) -> None:
    check_additions(two_stores, example)


@pytest.mark.long
@pytest.mark.timeout(0)
@many
@given(examples(of_everything))
def test_many_of_everything_converge_with_mirror(
    two_stores: tuple[SqlStorage, SqlStorage], example: Example
) -> None:
    check_everything(two_stores, example)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("from_postgresql", [True, False])
def test_postgresql_converges(postgres_tables_url: str, db_file: Path, from_postgresql: bool) -> None:
    with DuckDBStorage(db_file) as one, PostgresStorage(postgres_tables_url) as other:
        one.init_schema()
        stores: tuple[SqlStorage, SqlStorage] = (other, one) if from_postgresql else (one, other)

        @few
        @given(examples(of_additions), examples(of_everything))
        def both(some: Example, others: Example) -> None:
            check_additions(stores, some)
            check_everything(stores, others)

        both()

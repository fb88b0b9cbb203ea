"""Generations of fibers: what the registry keeps, how two differ, and what readers see of a switch."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from uuid import UUID

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import given

from fiberstore import DatabaseError, DuckDBStorage, config_version
from fiberstore.contract.queries import Fibers, Logs, Memberships
from fiberstore.contract.results import ChangeKind, Deleted, FiberChange, GenerationDiff
from fiberstore.errors import CursorError, VersionNotFoundError
from fiberstore.sql.models import MergedFiber, PinnedFiber
from fiberstore.testing.concurrency import together
from fiberstore.testing.examples import TEXTS, fiber, log, member, uid
from tests.support.parameters import parametrize_mostly_slow

OLD, NEW = 3, 2**64 - 1
LOGS = range(6)
KINDS: tuple[ChangeKind, ...] = ("split", "merged", "moved", "new", "gone")


def write_generations(storage: DuckDBStorage, *, fibers: int = 4) -> None:
    """Store two generations of as many fibers, each with a log of its own."""
    storage.write_logs([log(number) for number in range(fibers)])
    for version, first in ((OLD, 100), (NEW, 200)):
        storage.write_fibers([fiber(first + n, f"v{version}", config_version=version) for n in range(fibers)])
        storage.write_memberships([member(n, first + n, version) for n in range(fibers)])


# The registry


@parametrize_mostly_slow("content", [*TEXTS, "a = 1\r\n# é"], quick=2)
def test_content_is_kept_as_it_is(storage: DuckDBStorage, tmp_path: Path, content: str) -> None:
    registered = storage.versions.register(content)
    assert (registered.content, registered.config_version) == (content, config_version(content))
    assert not registered.active
    assert storage.versions.register(content.encode()) == registered
    (tmp_path / "rules").write_bytes(content.encode())
    assert storage.versions.register(tmp_path / "rules") == registered
    assert storage.versions.get(registered.config_version) == registered
    assert storage.versions.all() == [registered]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"a\xff", ValueError, "byte 1 of it \\(0xff\\) is not UTF-8"),
        (b"a\0", ValueError, "NUL at character 1"),
        ("a\0", ValueError, "NUL at character 1"),
        ("\ud800", ValueError, "lone surrogate"),
        (None, TypeError, "expected a str"),
        (7, TypeError, "expected a str"),
        (bytearray(b"a"), TypeError, "expected a str"),
    ],
)
def test_content_that_is_no_text_is_refused(
    storage: DuckDBStorage, content: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        storage.versions.register(content)
    assert storage.versions.all() == []


def test_a_file_that_is_not_there_is_no_content(storage: DuckDBStorage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.versions.register(tmp_path / "rules")


@pytest.mark.parametrize("version", [True, 1.0, "1", -1, 2**64])
def test_what_is_no_version_is_refused(storage: DuckDBStorage, version: int) -> None:
    versions = storage.versions
    calls: list[Callable[[], object]] = [
        lambda: versions.get(version), lambda: versions.activate(version), lambda: versions.drop(version),
        lambda: versions.diff(version, 1), lambda: versions.diff(1, version),
        lambda: versions.register("a", parent=version),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="config_version must be an int from 0"):
            call()
    assert versions.all() == []


def test_an_unknown_version_is_not_found(storage: DuckDBStorage) -> None:
    write_generations(storage)
    calls: list[Callable[[], object]] = [
        lambda: storage.versions.activate(8), lambda: storage.versions.drop(8),
        lambda: storage.versions.diff(OLD, 8), lambda: storage.versions.diff(8, OLD),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(VersionNotFoundError) as caught:
            call()
        assert caught.value.config_version == 8
    assert storage.versions.get(8) is None
    assert storage.versions.active() is None


def test_the_parent_is_the_active_version_or_the_one_given(storage: DuckDBStorage) -> None:
    versions = storage.versions
    first = versions.register("first")
    assert first.parent is None
    versions.activate(first.config_version)
    second = versions.register("second")
    third = versions.register("third", parent=second.config_version)
    fourth = versions.register("fourth", parent=12345)
    assert [second.parent, third.parent, fourth.parent] == [
        first.config_version,
        second.config_version,
        12345,
    ]
    assert versions.register("second", parent=12345) == second
    assert [found.content for found in versions.all()] == ["first", "second", "third", "fourth"]


def test_activate_returns_the_version_to_go_back_to(storage: DuckDBStorage) -> None:
    write_generations(storage)
    versions = storage.versions
    assert versions.activate(None) is None
    assert versions.activate(OLD) is None
    before = versions.activate(NEW)
    assert before is not None
    assert (before.config_version, before.active, before.content) == (OLD, True, None)
    again = versions.activate(NEW)
    assert again == versions.active() == versions.get(NEW)
    assert [found.config_version for found in versions.all() if found.active] == [NEW]
    versions.activate(before.config_version)
    last = versions.activate(None)
    assert last is not None
    assert last.config_version == OLD
    assert versions.active() is None
    assert not any(found.active for found in versions.all())


def test_several_switches_in_one_transaction_are_one(storage: DuckDBStorage) -> None:
    write_generations(storage)
    with storage.transaction() as transaction:
        for version in (OLD, NEW, OLD, OLD, None, NEW):
            transaction.versions.activate(version)
    active = storage.versions.active()
    assert active is not None
    assert active.config_version == NEW
    with pytest.raises(RuntimeError, match="undone"), storage.transaction() as transaction:
        transaction.versions.activate(OLD)
        raise RuntimeError("undone")
    assert storage.versions.active() == active


def test_the_database_itself_allows_one_active_version(storage: DuckDBStorage) -> None:
    storage.versions.activate(storage.versions.register("a").config_version)
    insert = "INSERT INTO fiber_config_versions (config_version, created_at, active) VALUES (1, now(), "
    for value in ("true", "false"):
        with pytest.raises(sa.exc.IntegrityError), storage.engine.begin() as connection:
            connection.exec_driver_sql(f"{insert}{value})")
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(f"{insert}NULL)")
    with pytest.raises(sa.exc.IntegrityError), storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE fiber_config_versions SET active = true WHERE config_version = 1")
    assert [found.content for found in storage.versions.all() if found.active] == ["a"]


def test_threads_that_register_and_activate_meet_no_conflict(storage: DuckDBStorage) -> None:
    write_generations(storage)

    def switch(version: int | None) -> None:
        for _ in range(8):
            storage.versions.register("same")
            storage.versions.activate(version)

    def read() -> None:
        for _ in range(16):
            assert sum(found.active for found in storage.versions.all()) <= 1

    together(
        [lambda: switch(OLD), lambda: switch(NEW), lambda: switch(None), lambda: switch(OLD), read, read]
    )
    assert len(storage.versions.all()) == 3


# How two differ


@st.composite
def generations(draw: st.DrawFn) -> list[dict[int, tuple[str, frozenset[int]]]]:
    """Draw two generations: for each fiber its type and its logs, of which the last two are not stored."""
    held = st.tuples(st.sampled_from("ab"), st.frozensets(st.sampled_from([*LOGS, 97, 98]), max_size=4))
    found = []
    for first in (100, 200):
        fibers = draw(st.lists(held, max_size=5))
        numbers = draw(st.permutations(range(first, first + 5)))
        found.append(dict(zip(numbers, fibers, strict=False)))
    if draw(st.booleans()):  # what is the same
        found[1].update({number + 150: fiber for number, fiber in islice(found[0].items(), 2)})
    return found


def brute_force(
    old: dict[int, tuple[str, frozenset[int]]], new: dict[int, tuple[str, frozenset[int]]]
) -> GenerationDiff:
    """Compare fiber by fiber, as ``Versions.diff`` says."""
    olds, news = (
        {number: (kind, logs & frozenset(LOGS)) for number, (kind, logs) in fibers.items()}
        for fibers in (old, new)
    )
    same = [(o, n) for o in olds for n in news if olds[o] == news[n] and olds[o][1]]
    same_old, same_new = {o for o, _ in same}, {n for _, n in same}
    edges = [
        (o, n)
        for o in olds.keys() - same_old
        for n in news.keys() - same_new
        if olds[o][0] == news[n][0] and olds[o][1] & news[n][1]
    ]
    of_old = {o: sorted(n for other, n in edges if other == o) for o in olds}
    of_new = {n: sorted(o for o, other in edges if other == n) for n in news}
    changes = [
        *(("split", [o], linked) for o, linked in of_old.items() if len(linked) > 1),
        *(("merged", linked, [n]) for n, linked in of_new.items() if len(linked) > 1),
        *(("moved", [o], [n]) for o, n in edges if of_old[o] == [n] and of_new[n] == [o]),
        *(("new", [], [n]) for n in news if n not in same_new and not of_new[n]),
        *(("gone", [o], []) for o in olds if o not in same_old and not of_old[o]),
    ]
    changes.sort(key=lambda change: (KINDS.index(change[0]), (change[1] or change[2])[0], change[2]))
    types = {number: kind for number, (kind, _) in (*old.items(), *new.items())}
    return GenerationDiff(
        len(same_old),
        {kind: sum(change[0] == kind for change in changes) for kind in KINDS},
        [
            FiberChange(kind, types[(o or n)[0]], list(map(uid, o)), list(map(uid, n)))  # type: ignore[arg-type]
            for kind, o, n in changes
        ],
    )


@pytest.fixture(scope="module")
def shared() -> Iterator[DuckDBStorage]:
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        storage.write_logs([log(number) for number in LOGS])
        for version in (OLD, NEW):
            storage.write_fibers([fiber(1000 + version % 7, config_version=version)])
            storage.versions.activate(version)  # so that both are known without fibers
        storage.versions.activate(None)
        yield storage


@pytest.mark.slow
@given(generations(), st.integers(0, 6))
def test_a_diff_is_what_comparing_every_pair_finds(
    shared: DuckDBStorage, drawn: list[dict[int, tuple[str, frozenset[int]]]], limit: int
) -> None:
    for version, fibers in zip((OLD, NEW), drawn, strict=True):
        shared.versions.drop(version)
        shared.write_fibers([fiber(n, kind, config_version=version) for n, (kind, _) in fibers.items()])
        shared.write_memberships(
            [member(number, n, version) for n, (_, logs) in fibers.items() for number in logs]
        )
    expected = brute_force(*drawn)
    assert shared.versions.diff(OLD, NEW) == expected
    some = shared.versions.diff(OLD, NEW, limit)
    assert (some.unchanged, some.counts) == (expected.unchanged, expected.counts)
    assert some.changes == expected.changes[:limit]


def test_a_diff_with_itself_has_no_change(storage: DuckDBStorage) -> None:
    write_generations(storage)
    assert storage.versions.diff(OLD, OLD) == GenerationDiff(4, dict.fromkeys(KINDS, 0), [])
    with pytest.raises(ValueError, match="limit"):
        storage.versions.diff(OLD, OLD, -1)


# What is dropped


def test_a_dropped_generation_leaves_the_other_and_the_logs(storage: DuckDBStorage) -> None:
    write_generations(storage)
    storage.fibers.pin()
    storage.logs.pin()
    with storage.session() as session:
        session.add(MergedFiber(fiber_id=uid(150), survivor_id=uid(100)))
        session.add(MergedFiber(fiber_id=uid(250), survivor_id=uid(200)))
        session.commit()
    storage.write_memberships([member(0, 777, OLD), member(0, 778, NEW), member(1, 102, NEW)])
    storage.versions.activate(NEW)
    storage.checkpoints.set("mine", "1")
    kept = [uid(number) for number in (200, 201, 202, 203, 778)]
    expected = list(storage.memberships.where(Memberships.c.fiber_id.in_(kept)).iter_records())
    assert storage.versions.drop(OLD) == Deleted(0, 4, 6)
    assert [found.fiber_id.int for found in storage.fibers.iter_records()] == [200, 201, 202, 203]
    assert list(storage.memberships.iter_records()) == expected
    assert storage.logs.count() == storage.logs.where(Logs.c.pinned).count() == 4
    assert storage.fibers.where(Fibers.c.pinned).count() == 4
    with storage.session() as session:
        assert session.scalars(sa.select(MergedFiber.fiber_id)).all() == [uid(250)]
        assert session.scalar(sa.select(sa.func.count()).select_from(PinnedFiber)) == 4
    assert storage.checkpoints.get("mine") is not None
    assert storage.versions.get(OLD) is not None


def test_the_active_generation_is_not_dropped(storage: DuckDBStorage) -> None:
    write_generations(storage)
    storage.versions.activate(OLD)
    with pytest.raises(DatabaseError, match=f"{OLD:016x} .* is the active one.*activate another first"):
        storage.versions.drop(OLD)
    assert storage.fibers.where(Fibers.c.config_version == OLD).count() == 4
    storage.versions.activate(NEW)
    assert storage.versions.drop(OLD).fibers == 4
    assert storage.versions.get(OLD) is not None
    assert storage.versions.drop(OLD) == Deleted(0, 0, 0)


# What readers see of a switch


@pytest.mark.slow
def test_readers_see_one_whole_generation_at_a_time(storage: DuckDBStorage) -> None:
    count = 60
    write_generations(storage, fibers=count)
    storage.versions.activate(OLD)
    active = storage.fibers.where(Fibers.c.config_version.is_active())
    pairs = storage.memberships.where(Memberships.c.config_version.is_active())
    is_over = threading.Event()

    def read() -> int:
        seen = 0
        while not is_over.is_set():
            assert active.count() == count
            assert pairs.count() == count
            assert len({found.fiber_type for found in active.iter_records()}) == 1
            assert [found.count for found in active.types()] == [count]
            page = active.summaries(limit=count)
            assert {summary.fiber.fiber_type for summary in page.items} in ({f"v{OLD}"}, {f"v{NEW}"})
            assert [summary.log_count for summary in page.items] == [1] * count
            seen += 1
        return seen

    def switch() -> None:
        for version in islice(cycle((NEW, OLD)), 60):
            storage.versions.activate(version)

    def make_another() -> None:
        for number in range(40):
            storage.write_batch(
                logs=[log(5_000 + number)],
                fibers=[fiber(5_000 + number, "other", config_version=8)],
                memberships=[member(5_000 + number, 5_000 + number, 8)],
            )

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        writers = [pool.submit(switch), pool.submit(make_another)]
        try:
            for writer in writers:
                writer.result()
        finally:
            is_over.set()
        assert all(reader.result() > 0 for reader in readers)


@pytest.mark.parametrize("direction", ["next", "previous"])
def test_a_walk_ends_where_another_generation_begins(storage: DuckDBStorage, direction: str) -> None:
    write_generations(storage)
    storage.versions.activate(OLD)
    active = storage.fibers.where(Fibers.c.config_version.is_active())
    page = active.page(limit=1)
    if direction == "previous":
        page = active.page(1, page.next)
    cursor = getattr(page, direction)
    assert active.page(1, cursor).items
    for version in (NEW, None):
        storage.versions.activate(version)
        for ask in (active.page, active.summaries):
            with pytest.raises(CursorError, match="another config version has become the active one"):
                ask(1, cursor)
    storage.versions.activate(OLD)
    assert active.page(1, cursor).items
    with pytest.raises(CursorError, match="another query"):
        storage.fibers.page(1, cursor)


def test_a_walk_goes_on_where_its_query_does_not_depend_on_the_generation(storage: DuckDBStorage) -> None:
    write_generations(storage)
    storage.versions.activate(OLD)
    is_active = Fibers.c.config_version.is_active()
    of_active = Logs.c.fibers.any(is_active)
    same: list[Logs | Fibers] = [
        storage.fibers,
        storage.fibers.where(Fibers.c.config_version == OLD),
        storage.logs,
    ]
    same_cursors = [query.page(1).next for query in same]
    others: list[Logs | Fibers] = [
        storage.fibers.where(~is_active), storage.fibers.where(is_active | Fibers.c.closed),
        storage.fibers.where(Fibers.c.logs.any(of_active)), storage.logs.where(~of_active | of_active),
    ]  # fmt: skip
    other_cursors = [query.page(1).next for query in others]
    assert all(other_cursors)
    storage.versions.activate(NEW)
    for query, cursor in zip(same, same_cursors, strict=True):
        assert query.page(1, cursor).items
    for other, cursor in zip(others, other_cursors, strict=True):
        with pytest.raises(CursorError, match="another config version"):
            other.page(1, cursor)
    assert storage.fibers.where(~is_active).page(1).items[0].fiber_id == UUID(int=100)

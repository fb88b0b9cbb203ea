"""``prune()``: what goes and what stays, compared with a model that is short enough to be seen right."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from fiberstore import DatabaseError, DuckDBStorage, Fibers, LogRecord, Logs
from fiberstore.contract.conditions import Condition
from fiberstore.contract.results import Pruned
from fiberstore.records import FiberRecord, StoredLog
from fiberstore.repositories import prune_plan
from fiberstore.sql.models import MergedFiber, RawLog
from fiberstore.testing.examples import NOON, at, fiber, log, member, uid
from tests.support.parameters import parametrize_mostly_slow

MANY = 400_000
FIBERS, LOGS, TIMES = range(1, 6), range(1, 8), range(4)
EVERY_FIBER, EVERY_LOG = Fibers.c.last_activity >= at(0), Logs.c.timestamp >= at(0)


@pytest.fixture
def storage(file_storage: DuckDBStorage) -> DuckDBStorage:
    """A storage on a file of its own, whose size is looked at."""
    return file_storage


@dataclass(frozen=True)
class Model:
    """A store: numbers of fibers and logs, each with its time, and what else there is."""

    fibers: dict[int, int]
    logs: dict[int, int]
    memberships: frozenset[tuple[int, int]]
    pinned_fibers: frozenset[int]
    pinned_logs: frozenset[int]

    def write(self, storage: DuckDBStorage) -> None:
        storage.fibers.delete()
        storage.logs.delete()
        storage.memberships.delete()
        storage.write_logs([log(number, time, text=f"é{number}") for number, time in self.logs.items()])
        storage.write_fibers(
            [
                fiber(number, kind_of(number), first=at(0), last=at(time))
                for number, time in self.fibers.items()
            ]
        )
        storage.write_memberships([member(*pair) for pair in self.memberships])
        storage.fibers.where(Fibers.c.fiber_id.in_(map(uid, self.pinned_fibers))).pin()
        storage.logs.where(Logs.c.log_id.in_(map(uid, self.pinned_logs))).pin()

    def pruned(self, may_go: "MayGo") -> "Model":
        fibers = {
            number: time
            for number, time in self.fibers.items()
            if number in self.pinned_fibers or not may_go.fiber(self, number)
        }
        held = {log for log, fiber in self.memberships if fiber in fibers}
        were_held = {log for log, fiber in self.memberships if fiber in self.fibers}
        logs = {
            number: time
            for number, time in self.logs.items()
            if number in held | self.pinned_logs or not (number in were_held or may_go.log(self, number))
        }
        return replace(
            self,
            fibers=fibers,
            logs=logs,
            memberships=frozenset(
                (log, fiber)
                for log, fiber in self.memberships
                if not (fiber in self.fibers.keys() - fibers.keys() or log in self.logs.keys() - logs.keys())
            ),
        )

    def difference(self, after: "Model") -> tuple[int, int, int, int]:
        gone = self.logs.keys() - after.logs.keys()
        return (
            len(self.fibers) - len(after.fibers),
            len(self.memberships) - len(after.memberships),
            len(gone),
            sum(len(f"é{number}".encode()) for number in gone),
        )


@dataclass(frozen=True)
class MayGo:
    """Conditions, as the store and as the model take them."""

    fibers: Condition[FiberRecord] | None
    fiber: Callable[[Model, int], bool]
    logs: Condition[StoredLog] | None
    log: Callable[[Model, int], bool]


def kind_of(number: int) -> str:
    return "odd" if number % 2 else "even"


def never(_model: Model, _number: int) -> bool:
    return False


def always(_model: Model, _number: int) -> bool:
    return True


def is_odd(_model: Model, number: int) -> bool:
    return kind_of(number) == "odd"


def has_odd_company(model: Model, number: int) -> bool:
    """Tell whether a stored log of the fiber is in a stored fiber of an odd number."""
    logs = {log for log, fiber in model.memberships if fiber == number and log in model.logs}
    return any(log in logs and fiber in model.fibers and fiber % 2 for log, fiber in model.memberships)


def stored(storage: DuckDBStorage, model: Model) -> Model:
    """Return the stored rows as a model."""
    with storage.session() as session:

        def ids(sql: str) -> list[tuple[int, ...]]:
            rows = session.execute(sa.text(sql))
            return [
                tuple(value.int if isinstance(value, UUID) else round(value) for value in row) for row in rows
            ]

        zero = int(at(0).timestamp())
        return Model(
            dict(ids(f"SELECT fiber_id, epoch(last_activity) - {zero} FROM fibers")),  # type: ignore[arg-type]
            dict(ids(f"SELECT log_id, epoch(timestamp) - {zero} FROM raw_logs")),  # type: ignore[arg-type]
            frozenset(ids("SELECT log_id, fiber_id FROM fiber_memberships")),  # type: ignore[arg-type]
            model.pinned_fibers,
            model.pinned_logs,
        )


@st.composite
def models(draw: st.DrawFn) -> Model:
    fibers = draw(st.dictionaries(st.sampled_from(FIBERS), st.sampled_from(TIMES), min_size=2))
    logs = draw(st.dictionaries(st.sampled_from(LOGS), st.sampled_from(TIMES), min_size=3))
    return Model(
        fibers,
        logs,
        draw(st.frozensets(st.tuples(st.sampled_from(LOGS), st.sampled_from(FIBERS)), min_size=3)),
        frozenset(draw(st.sets(st.sampled_from(FIBERS), max_size=2)) & fibers.keys()),
        frozenset(draw(st.sets(st.sampled_from(LOGS), max_size=2)) & logs.keys()),
    )


ODD: Condition[FiberRecord] = Fibers.c.fiber_type == "odd"
ODD_COMPANY: Condition[FiberRecord] = Fibers.c.logs.any(Logs.c.fibers.any(ODD))

# Rules that ask for rows which they delete, so that another call would find another set.
RELATED: list[tuple[Condition[FiberRecord] | None, Callable[[Model, int], bool]]] = [
    (ODD_COMPANY, has_odd_company),
    (~ODD_COMPANY, lambda model, number: not has_odd_company(model, number)),
    (ODD | ~ODD_COMPANY, lambda model, number: bool(number % 2) or not has_odd_company(model, number)),
]


@st.composite
def choices(draw: st.DrawFn, *, related: bool) -> MayGo:
    limit = draw(st.sampled_from(TIMES))
    fiber_choices: list[tuple[Condition[FiberRecord] | None, Callable[[Model, int], bool]]] = [
        (None, never),
        (EVERY_FIBER, always),
        (Fibers.c.last_activity < at(limit + 1), lambda model, number: model.fibers[number] < limit + 1),
        (ODD, is_odd),
        *(RELATED if related else []),
    ]
    log_choices: list[tuple[Condition[StoredLog] | None, Callable[[Model, int], bool]]] = [
        (None, never),
        (EVERY_LOG, always),
        (Logs.c.timestamp < at(limit), lambda model, number: model.logs[number] < limit),
    ]
    given = [MayGo(*one, *other) for one in fiber_choices for other in log_choices]
    return draw(st.sampled_from(given[1:]))  # the first is neither


@pytest.fixture(scope="module")
def memory() -> Iterator[DuckDBStorage]:
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        yield storage


# Fiber 1 goes, 2 is pinned, 3 is younger, and 5 is not stored. Log 1 is in 1 alone, 2 is in 1 and pinned,
# 3 and 4 are in 1 and in one that stays, 5 is in 5, 6 in none, and of 7 there is only a membership in 1.
BY_HAND = Model(
    {1: 0, 2: 0, 3: 3},
    {1: 3, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0},
    frozenset({(1, 1), (1, 5), (2, 1), (3, 1), (3, 2), (4, 1), (4, 3), (5, 5), (7, 1), (7, 5)}),
    frozenset({2}),
    frozenset({2}),
)


def test_fibers_go_with_the_logs_that_only_they_hold(memory: DuckDBStorage) -> None:
    BY_HAND.write(memory)
    done = memory.prune(fibers=Fibers.c.last_activity < at(2))
    assert counts(done) == (1, 6, 1, 3)
    assert stored(memory, BY_HAND) == replace(
        BY_HAND,
        fibers={2: 0, 3: 3},
        logs={2: 0, 3: 0, 4: 0, 5: 0, 6: 0},
        memberships=frozenset({(3, 2), (4, 3), (5, 5), (7, 5)}),
    )


def test_logs_go_that_no_stored_fiber_holds(memory: DuckDBStorage) -> None:
    BY_HAND.write(memory)
    done = memory.prune(logs=Logs.c.timestamp < at(2))
    assert counts(done) == (0, 1, 2, 6)
    assert stored(memory, BY_HAND) == replace(
        BY_HAND, logs={1: 3, 2: 0, 3: 0, 4: 0}, memberships=BY_HAND.memberships - {(5, 5)}
    )


@given(models(), choices(related=True), st.integers(1, 5))
def test_what_goes_is_what_the_model_says_in_steps_of_any_size(
    memory: DuckDBStorage, model: Model, may_go: MayGo, step_rows: int
) -> None:
    after = model.pruned(may_go)
    model.write(memory)
    foreseen = memory.prune(fibers=may_go.fibers, logs=may_go.logs, dry_run=True)
    assert stored(memory, model) == model
    done = memory.prune(fibers=may_go.fibers, logs=may_go.logs, step_rows=step_rows)
    assert stored(memory, model) == after
    assert (done.fibers, done.memberships, done.logs, done.text_bytes) == model.difference(after)
    assert done == foreseen


@given(models(), choices(related=False), st.integers(1, 3))
def test_what_ended_early_goes_on_to_the_same_end(
    memory: DuckDBStorage, model: Model, may_go: MayGo, max_steps: int
) -> None:
    after = model.pruned(may_go)
    model.write(memory)
    total = [0, 0, 0, 0]
    seen: list[Pruned] = []
    while True:
        done = memory.prune(
            fibers=may_go.fibers, logs=may_go.logs, step_rows=2, max_steps=max_steps, on_step=seen.append
        )
        total = [a + b for a, b in zip(total, counts(done), strict=True)]
        if done.is_complete:
            break
        assert len(seen) == max_steps
        assert counts(seen[-1]) == counts(done)
        seen.clear()
        # What has gone so far leaves nothing half: what is left comes to the same end.
        assert stored(memory, model).pruned(may_go) == after
    assert stored(memory, model) == after
    assert tuple(total) == model.difference(after)


def counts(done: Pruned) -> tuple[int, int, int, int]:
    return done.fibers, done.memberships, done.logs, done.text_bytes


def test_the_oldest_go_first_and_a_step_is_as_large_as_said(storage: DuckDBStorage) -> None:
    storage.write_logs([log(number, number) for number in range(1, 13)])
    storage.write_fibers([fiber(1, last=at(20)), fiber(2, last=at(10)), fiber(3, last=at(30))])
    storage.write_memberships([member(number, 1 + number % 3) for number in range(1, 10)])
    steps: list[Pruned] = []
    done = storage.prune(fibers=EVERY_FIBER, logs=EVERY_LOG, step_rows=3, max_steps=1, on_step=steps.append)
    assert not done.is_complete
    assert storage.get_fiber(uid(2)) is None
    assert [step.logs for step in steps] == [3]
    storage.prune(fibers=EVERY_FIBER, logs=EVERY_LOG, step_rows=3, on_step=steps.append)
    # 10, 11 and 12 are in no fiber, and as old as they are.
    assert [step.logs for step in steps[1:]] == [3, 6, 9]
    assert storage.logs.count() == 0


def test_a_fiber_with_more_logs_than_a_step_goes_in_one(storage: DuckDBStorage) -> None:
    storage.write_logs([log(number) for number in range(1, 9)])
    storage.write_fibers([fiber(1), fiber(2)])
    storage.write_memberships([member(number, 1) for number in range(1, 9)])
    steps: list[Pruned] = []
    storage.prune(fibers=EVERY_FIBER, step_rows=2, on_step=steps.append)
    assert [(step.fibers, step.logs) for step in steps] == [(1, 8), (2, 8)]


def test_exactly_as_many_steps_as_it_takes_are_complete(storage: DuckDBStorage) -> None:
    storage.write_logs([log(number) for number in range(3)])
    assert not storage.prune(logs=EVERY_LOG, step_rows=1, max_steps=2).is_complete
    assert storage.prune(logs=EVERY_LOG, step_rows=1, max_steps=1).is_complete


def test_each_step_looks_anew_at_pins(storage: DuckDBStorage) -> None:
    storage.write_logs([log(number) for number in range(1, 4)])
    storage.write_fibers([fiber(number) for number in range(1, 4)])
    storage.write_memberships([member(number, number) for number in range(1, 4)])

    def pin_the_last(_done: Pruned) -> None:
        storage.fibers.where(Fibers.c.fiber_id == uid(3)).pin()

    done = storage.prune(fibers=EVERY_FIBER, step_rows=1, on_step=pin_the_last)
    assert (done.fibers, done.logs, done.is_complete) == (2, 2, True)
    assert storage.get_log(uid(3)) is not None


def test_old_ids_of_merged_fibers_go_with_the_survivor(storage: DuckDBStorage) -> None:
    storage.write_fibers([fiber(2), fiber(4)])
    with storage.session() as session:
        session.add_all(
            [
                MergedFiber(fiber_id=uid(1), survivor_id=uid(2)),
                MergedFiber(fiber_id=uid(3), survivor_id=uid(4)),
            ]
        )
        session.commit()
    storage.prune(fibers=Fibers.c.fiber_id == uid(2))
    with storage.session() as session:
        assert session.scalars(sa.select(MergedFiber.fiber_id)).all() == [uid(3)]


@pytest.mark.slow
def test_the_space_is_free_in_the_file_afterwards(storage: DuckDBStorage, db_file: Path) -> None:
    fill(storage)
    full = storage.prune(logs=Logs.c.timestamp < at(1))
    done = storage.prune(logs=Logs.c.timestamp < at(MANY // 4 * 3))
    assert done.logs == MANY // 4 * 3 - 1
    assert done.text_bytes == done.logs * 64
    assert done.file_bytes == db_file.stat().st_size
    assert done.free_bytes > full.free_bytes + 0.4 * (full.file_bytes - full.free_bytes)


@pytest.mark.slow
def test_max_bytes_deletes_the_oldest_until_the_file_uses_no_more(storage: DuckDBStorage) -> None:
    fill(storage)
    full = storage.prune(logs=Logs.c.timestamp < at(1))
    used = full.file_bytes - full.free_bytes
    assert storage.prune(max_bytes=used // 4, dry_run=True).logs == pytest.approx(MANY * 0.75, rel=0.1)
    assert storage.logs.count() == MANY - 1
    done = storage.prune(max_bytes=used // 4)
    assert done.is_complete
    assert (
        done.file_bytes - done.free_bytes < used * 0.6
    )  # DuckDB keeps parts of indexes, and of groups of rows
    assert used // 4 * 0.6 < storage.compact().bytes_after < used // 4 * 1.1
    with storage.session() as session:
        oldest = session.scalar(sa.select(sa.func.min(RawLog.timestamp)))
    assert oldest == at(MANY - storage.logs.count())  # the oldest went, and no other


@pytest.mark.slow
@parametrize_mostly_slow("step_rows", [700, 50_000])
def test_max_bytes_does_not_empty_a_store_for_space_that_duckdb_keeps(
    storage: DuckDBStorage, step_rows: int
) -> None:
    storage.write_logs(long_logs(20_000))
    full = storage.prune(logs=Logs.c.timestamp < at(1))
    used = full.file_bytes - full.free_bytes
    done = storage.prune(max_bytes=used // 2, step_rows=step_rows)
    assert done.is_complete
    assert done.logs == pytest.approx(10_000, rel=0.15)
    assert storage.prune(max_bytes=used // 2).logs == 0


def test_max_bytes_that_the_pinned_alone_exceed_ends(storage: DuckDBStorage) -> None:
    storage.write_logs(long_logs(2_000))
    storage.logs.where(Logs.c.timestamp < at(1_000)).pin()
    done = storage.prune(max_bytes=1)
    assert (done.logs, done.is_complete) == (1_000, True)
    assert storage.logs.count() == 1_000


def test_max_bytes_counts_steps_and_goes_on(storage: DuckDBStorage) -> None:
    storage.write_logs(long_logs(8_000))
    first = storage.prune(max_bytes=1_000_000, step_rows=100, max_steps=2)
    assert (first.logs, first.is_complete) == (200, False)


def test_max_bytes_spares_what_does_not_meet_the_conditions(storage: DuckDBStorage) -> None:
    storage.write_logs(long_logs(3_000))
    storage.write_fiber(fiber(1))
    done = storage.prune(fibers=Fibers.c.fiber_type == "none", logs=Logs.c.timestamp < at(500), max_bytes=1)
    assert (done.fibers, done.logs, done.is_complete) == (0, 500, True)


@pytest.mark.parametrize("dry_run", [True, False])
def test_max_bytes_in_memory_is_refused(memory: DuckDBStorage, dry_run: bool) -> None:
    with pytest.raises(DatabaseError, match="in memory"):
        memory.prune(max_bytes=1, dry_run=dry_run)


def test_a_store_that_is_only_read_can_be_asked_what_would_go(store_file: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(1)])
    with DuckDBStorage(store_file, read_only=True) as storage:
        assert storage.prune(logs=EVERY_LOG, dry_run=True).logs == 1
        assert storage.prune(max_bytes=1, dry_run=True).logs == 1
        with pytest.raises(DatabaseError, match="read-only"):
            storage.prune(logs=EVERY_LOG)
        with pytest.raises(DatabaseError, match="read-only"):
            storage.prune(max_bytes=1)


def test_a_failing_on_step_leaves_the_steps_before(storage: DuckDBStorage) -> None:
    storage.write_logs([log(number) for number in range(3)])

    def fail(_done: Pruned) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        storage.prune(logs=EVERY_LOG, step_rows=1, on_step=fail)
    assert storage.logs.count() == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_a_full_temporary_folder_is_told_and_nothing_goes(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_logs([log(1)])
    monkeypatch.setattr(prune_plan, "SpooledTemporaryFile", partial(Path("/dev/full").open, "r+b"))
    with pytest.raises(DatabaseError, match=r"No space left on device.*TMPDIR"):
        storage.prune(logs=EVERY_LOG)
    assert storage.logs.count() == 1


def test_a_prune_is_one_call_of_the_statistics(storage: DuckDBStorage) -> None:
    storage.write_logs([log(number) for number in range(3)])
    storage.prune(logs=EVERY_LOG, step_rows=1)
    calls = storage.stats().calls
    assert calls["prune"].calls == 1
    assert calls["prune.step"].calls == 3


def fill(storage: DuckDBStorage) -> None:
    """Write many logs, one each second."""
    begin = int(NOON.timestamp())
    with storage.session() as session:
        session.execute(
            sa.text(
                f"INSERT INTO raw_logs SELECT uuid(), to_timestamp({begin} + n), 'web', sha256(n::VARCHAR), "
                f"now(), 3 FROM range({MANY}) numbers(n)"
            )
        )
        session.commit()


def long_text(number: int) -> str:
    return "".join(sha256(f"{number}/{part}".encode()).hexdigest() for part in range(6))


def long_logs(number: int) -> list[LogRecord]:
    return [log(n, n, text=long_text(n)) for n in range(number)]

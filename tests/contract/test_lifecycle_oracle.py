"""DuckDB, PostgreSQL and the oracle agree on what a storage goes through in its life, whatever that is."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fiberstore import DuckDBStorage, FiberKey, FiberMembership, FiberRecord, StorageError, StoredLog
from fiberstore.contract.conditions import Condition, Not, Or
from fiberstore.contract.lifecycle import CheckpointMove, LifecycleStorage
from fiberstore.contract.queries import Fibers, Logs, Memberships
from fiberstore.contract.results import Checkpoint, ConfigVersion, Pruned
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.testing.diffs import NEW, OLD, store
from fiberstore.testing.examples import IDS, NOON
from tests.contract.test_query_oracle import (
    attributes,
    conditions,
    fiber_records,
    ids,
    log_records,
    memberships,
    patterns,
    texts,
    versions,
)
from tests.support.databases import empty
from tests.support.oracle import MemoryStorage

# Few versions and contents, so that calls meet each other's.
fibers = fiber_records(attributes).flatmap(
    lambda fiber: st.sampled_from([0, 1, 2**63]).map(
        lambda version: fiber.model_copy(update={"config_version": version})
    )
)
log_lists = st.lists(log_records, max_size=4)
fiber_lists = st.lists(fibers, max_size=4, unique_by=lambda fiber: fiber.fiber_id)
membership_lists = st.lists(memberships, max_size=6)
contents = st.sampled_from(["", "é", "rules"])
asked_versions = st.sampled_from([0, 1, 2**63, 7]) | contents.map(
    lambda content: MemoryStorage().versions.register(content).config_version
)
names = st.sampled_from(["at", "é", ""])
values = st.none() | st.sampled_from(["1", "2", ""])


key_names, key_texts = st.sampled_from(["a", "é"]), st.sampled_from(["", "a", "ab", "é+"])
fiber_keys = st.builds(
    FiberKey,
    fiber_id=ids,
    name=key_names,
    value=key_texts,
    first_timestamp=st.sampled_from([NOON, NOON + timedelta(seconds=1)]),
    first_log_id=st.none() | ids,
).map(lambda key: key.model_copy(update={"starts": bool(key.first_log_id and key.first_log_id.int % 2)}))


def with_pins(record: type, depth: int = 2) -> st.SearchStrategy[Condition[Any]]:
    """Give a condition that may ask for pins and for the active version, too."""
    c = Fibers.c.keys
    more: dict[str, list[Condition[Any]]] = {
        "StoredLog": [Logs.c.pinned, ~Logs.c.pinned, Logs.c.fibers.any(Fibers.c.pinned)],
        "FiberRecord": [
            Fibers.c.pinned,
            Fibers.c.config_version.is_active(),
            ~Fibers.c.config_version.is_active(),
            Fibers.c.logs.any(Logs.c.pinned),
            c["a"] == "a",
            c["a"] != "ab",
            c["é"].in_(["", "é+"]),
            c["a"].startswith("a") & ~c["é"].exists(),
        ],
        "FiberMembership": [Memberships.c.config_version.is_active()],
    }
    return conditions(record, depth) | st.sampled_from(more[record.__name__]) | everything(record)


def everything(record: type) -> st.SearchStrategy[Condition[Any]]:
    return st.just(Not(record, Or(record, ())))


class Life(RuleBasedStateMachine):
    """Does everything to both; the answers, or the classes of the errors, and what is left are the same."""

    store: ClassVar[SqlStorage]

    def __init__(self) -> None:
        super().__init__()
        self.oracle = MemoryStorage()

    @initialize(logs=log_lists, fibers=fiber_lists, memberships=membership_lists)
    def begin(
        self, logs: list[StoredLog], fibers: list[FiberRecord], memberships: list[FiberMembership]
    ) -> None:
        empty(self.store.engine)
        self.write_batch(logs, fibers, memberships, None)

    @rule(
        logs=log_lists,
        fibers=fiber_lists,
        memberships=membership_lists,
        move=st.none() | st.builds(CheckpointMove, names, values, contents),
    )
    def write_batch(
        self,
        logs: list[StoredLog],
        fibers: list[FiberRecord],
        memberships: list[FiberMembership],
        move: CheckpointMove | None,
    ) -> None:
        self.both(
            lambda store: store.write_batch(
                logs=logs, fibers=fibers, memberships=memberships, checkpoint=move
            )
        )

    @rule(fibers=st.lists(fibers, max_size=4))
    def write_fibers(self, fibers: list[FiberRecord]) -> None:
        self.both(lambda store: store.write_fibers(fibers))

    @rule(fibers=st.lists(fibers, max_size=4), widen=st.booleans())
    def upsert_fibers(self, fibers: list[FiberRecord], widen: bool) -> None:
        self.both(lambda store: store.upsert_fibers(fibers, widen=widen))

    @rule(condition=with_pins(FiberRecord), action=st.sampled_from(["close", "reopen", "pin", "unpin"]))
    def change_fibers(self, condition: Condition[FiberRecord], action: str) -> None:
        self.both(lambda store: getattr(store.fibers.where(condition), action)())

    @rule(condition=with_pins(StoredLog), action=st.sampled_from(["pin", "unpin"]))
    def change_logs(self, condition: Condition[StoredLog], action: str) -> None:
        self.both(lambda store: getattr(store.logs.where(condition), action)())

    @rule(
        condition=with_pins(StoredLog),
        pattern=patterns | st.sampled_from([".", "[a-z]+", r"\s+", "(?m)$\n^", r"\b", "(a)|(b)"]),
        replacement=texts | st.sampled_from(["\\1", "\\0", "[redacted]", ""]),
    )
    def redact(self, condition: Condition[StoredLog], pattern: str, replacement: str) -> None:
        self.both(lambda store: store.logs.where(condition).redact(pattern, replacement))

    @rule(condition=with_pins(StoredLog, 1))
    def delete_logs(self, condition: Condition[StoredLog]) -> None:
        self.both(lambda store: store.logs.where(condition, ~Logs.c.log_id.in_(IDS[::4])).delete())

    @rule(condition=with_pins(FiberRecord, 1))
    def delete_fibers(self, condition: Condition[FiberRecord]) -> None:
        self.both(lambda store: store.fibers.where(condition, ~Fibers.c.fiber_id.in_(IDS[::4])).delete())

    @rule(condition=with_pins(FiberMembership, 1))
    def delete_memberships(self, condition: Condition[FiberMembership]) -> None:
        self.both(lambda store: store.memberships.where(condition).delete())

    @rule(survivors=st.dictionaries(ids, ids, max_size=2))
    def merge_any(self, survivors: dict[UUID, UUID]) -> None:
        self.both(lambda store: store.merge_fibers(survivors))

    @rule(data=st.data())
    def merge_stored(self, data: st.DataObject) -> None:
        stored = [fiber.fiber_id for fiber in self.oracle.fibers.iter_records()]
        if len(stored) > 1:
            survivor = data.draw(st.sampled_from(stored))
            losers = data.draw(st.sets(st.sampled_from(stored), max_size=3)) - {survivor}
            self.both(lambda store: store.merge_fibers(dict.fromkeys(losers, survivor)))

    @rule(data=st.data(), strange=st.lists(fiber_keys, max_size=1))
    def write_keys(self, data: st.DataObject, strange: list[FiberKey]) -> None:
        stored = [fiber.fiber_id for fiber in self.oracle.fibers.iter_records()]
        of_stored = fiber_keys.map(
            lambda key: key.model_copy(update={"fiber_id": stored[key.fiber_id.int % len(stored)]})
        )
        keys = data.draw(st.lists(of_stored, max_size=5)) if stored else []
        self.both(lambda store: store.write_keys(keys))
        self.both(lambda store: store.write_keys(strange))

    @rule(name=key_names, value=key_texts, limit=st.integers(0, 3))
    def ask_for_keys(self, name: str, value: str, limit: int) -> None:
        self.both(lambda store: store.query_fibers_by_key(name, value, limit))
        self.both(lambda store: (store.fibers.key_names(), store.fibers.key_values(name, value[:1])))

    @rule(name=names, expected=values, value=contents)
    def move_checkpoint(self, name: str, expected: str | None, value: str) -> None:
        self.both(lambda store: store.checkpoints.compare_and_set(name, expected, value))

    @rule(name=names)
    def delete_checkpoint(self, name: str) -> None:
        self.both(lambda store: store.checkpoints.delete(name))

    @rule(content=contents, parent=st.none() | versions)
    def register(self, content: str, parent: int | None) -> None:
        self.both(lambda store: store.versions.register(content, parent=parent))

    @rule(version=asked_versions | st.none())
    def activate(self, version: int | None) -> None:
        self.both(lambda store: store.versions.activate(version))

    @rule(version=asked_versions)
    def drop(self, version: int) -> None:
        self.both(lambda store: store.versions.drop(version))

    @rule(
        fibers=st.none() | with_pins(FiberRecord),
        logs=st.none() | with_pins(StoredLog),
        step_rows=st.sampled_from([1, 2, 50]),
    )
    def prune(
        self, fibers: Condition[FiberRecord] | None, logs: Condition[StoredLog] | None, step_rows: int
    ) -> None:
        def as_foreseen(store: LifecycleStorage) -> Pruned:
            plan = store.prune(fibers=fibers, logs=logs, dry_run=True)
            done = store.prune(fibers=fibers, logs=logs, step_rows=step_rows)
            assert replace(plan, file_bytes=0, free_bytes=0) == replace(done, file_bytes=0, free_bytes=0)
            return done

        self.both(as_foreseen)

    def both(self, call: Callable[[LifecycleStorage], object]) -> None:
        assert outcome(self.store, call) == outcome(self.oracle, call)
        assert content(self.store) == content(self.oracle)


def outcome(store: LifecycleStorage, call: Callable[[LifecycleStorage], object]) -> object:
    try:
        return comparable(call(store))
    except (StorageError, ValueError) as error:
        return type(error)


def content(store: LifecycleStorage) -> list[object]:
    """Return all there is: records, pins, where old ids lead, checkpoints and versions."""
    return [
        list(store.logs.iter_records()),
        list(store.fibers.iter_records()),
        list(store.memberships.iter_records()),
        [log.log_id for log in store.logs.where(Logs.c.pinned).iter_records()],
        [fiber.fiber_id for fiber in store.fibers.where(Fibers.c.pinned).iter_records()],
        store.resolve_fibers(IDS[::2]),
        store.get_keys(IDS[::2]),
        [comparable(checkpoint) for checkpoint in store.checkpoints.all()],
        sorted(map(comparable, store.versions.all()), key=repr),
        comparable(store.versions.active()),
    ]


def comparable(value: object) -> object:
    """Return the value without what may differ: when each was called, and how large its database is."""
    if isinstance(value, Pruned):
        return replace(value, file_bytes=0, free_bytes=0)
    if isinstance(value, Checkpoint):
        return replace(value, updated_at=NOON)
    if isinstance(value, ConfigVersion):
        return replace(value, created_at=NOON)
    return value


@pytest.fixture(
    scope="module", autouse=True, params=["duckdb", pytest.param("postgresql", marks=pytest.mark.slow)]
)
def store_of_all(request: pytest.FixtureRequest) -> Iterator[SqlStorage]:
    if request.param == "postgresql":
        opened: SqlStorage = PostgresStorage(request.getfixturevalue("postgres_tables_url"))
    else:
        opened = DuckDBStorage(":memory:")
    with opened as store:
        store.init_schema()
        Life.store = store
        yield store


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.mark.timeout(600)  # a failure is made small first, which takes minutes
def test_the_store_and_the_oracle_agree_whatever_happens() -> None:
    run(examples=4, steps=12)


logs_of_fibers = st.lists(st.lists(st.integers(1, 6), max_size=4), max_size=4)


def check_diff(store_of_all: SqlStorage, old: list[list[int]], new: list[list[int]], limit: int) -> None:
    both: list[LifecycleStorage] = [store_of_all, MemoryStorage()]
    empty(store_of_all.engine)
    for one in both:
        of_old, of_new = (
            {first + number: logs for number, logs in enumerate(fibers)}
            for first, fibers in ((1, old), (11, new))
        )
        store(one, of_old, of_new)
        store(one, {7: [1], 8: [2]}, {17: [1, 2]}, "login")
    found, expected = (one.versions.diff(OLD, NEW, limit) for one in both)
    assert found == expected


@settings(deadline=None, max_examples=5)
@given(logs_of_fibers, logs_of_fibers, st.integers(0, 9))
def test_changes_between_versions_are_the_same(
    store_of_all: SqlStorage, old: list[list[int]], new: list[list[int]], limit: int
) -> None:
    check_diff(store_of_all, old, new, limit)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(logs_of_fibers, logs_of_fibers, st.integers(0, 9))
def test_changes_between_versions_are_the_same_for_very_many(
    store_of_all: SqlStorage, old: list[list[int]], new: list[list[int]], limit: int
) -> None:
    check_diff(store_of_all, old, new, limit)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_the_store_and_the_oracle_agree_whatever_happens_for_long(long_form: bool) -> None:
    run(examples=300 if long_form else 12, steps=25)

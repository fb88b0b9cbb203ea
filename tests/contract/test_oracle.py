"""DuckDB, PostgreSQL and the oracle agree, call by call, whatever is called in whatever order."""

import json
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar, cast
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from pydantic import JsonValue

from fiberstore import (
    DuckDBStorage,
    FiberMembership,
    FiberRecord,
    LogRecord,
    Storage,
    StorageError,
    StoredLog,
)
from fiberstore.checks import MAX_CONFIG_VERSION, as_utc
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.testing.examples import (
    ATTRIBUTES,
    BEGIN_OF_TIME,
    END_OF_TIME,
    IDS,
    INSTANTS,
    NOON,
    TEXTS,
    ClocksGoBack,
    fiber,
    log,
    member,
)
from tests.support.databases import empty
from tests.support.oracle import MemoryStorage
from tests.support.parameters import parametrize_mostly_slow

CONFIG_VERSION = 7
KINDS = ("request", "login", "", "it's", "caf\u00e9", "cafe\u0301")


def in_range(when: datetime) -> bool:
    try:
        as_utc(when)
    except ValueError:
        return False
    return True


# Few ids, times and types, so that calls meet each other's rows.
ids = st.sampled_from(IDS[::2])
asked_ids = ids | st.just(cast("UUID", "no id"))
texts = st.sampled_from(TEXTS) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
kinds = st.sampled_from(KINDS)
asked_kinds = kinds | texts | st.sampled_from(["NUL \0", "\ud800", cast("str", None)])
zones = st.sampled_from(
    [UTC, ClocksGoBack(), *(timezone(timedelta(minutes=minutes)) for minutes in (-720, -210, 345, 840))]
)
times = (
    st.sampled_from([NOON, NOON + timedelta(microseconds=1), NOON + timedelta(hours=1)])
    | st.sampled_from(list(INSTANTS.values()))
    | st.datetimes(timezones=zones, allow_imaginary=False).filter(in_range)
)
asked_times = times | st.sampled_from(
    [NOON.replace(tzinfo=None), datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))]
)
versions = st.integers(0, MAX_CONFIG_VERSION) | st.sampled_from([0, 2**63, MAX_CONFIG_VERSION])
asked_keys = st.none() | st.tuples(asked_times, asked_ids)
numbers = st.integers(0, 4) | st.sampled_from([1_000, 2**63 - 1, 2**63, -1, True])
attributes: st.SearchStrategy[JsonValue] = st.sampled_from(ATTRIBUTES) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
log_records = st.builds(LogRecord, log_id=ids, timestamp=times, source_id=texts, raw_text=texts)
stored_logs = st.builds(
    StoredLog,
    log_id=ids,
    timestamp=times,
    source_id=texts,
    raw_text=texts,
    ingestion_time=times,
    config_version=versions,
)
log_batches: st.SearchStrategy[Sequence[LogRecord]] = st.lists(log_records | stored_logs, max_size=6)
memberships = st.lists(
    st.builds(FiberMembership, log_id=ids, fiber_id=ids, config_version=versions), max_size=8
)


@st.composite
def fibers(draw: st.DrawFn) -> FiberRecord:
    first, last = sorted((draw(times), draw(times)), key=as_utc)
    return FiberRecord(
        fiber_id=draw(ids),
        fiber_type=draw(kinds),
        config_version=draw(versions),
        attributes=draw(attributes),
        first_activity=first,
        last_activity=last,
        closed=draw(st.booleans()),
    )


class Agreement(RuleBasedStateMachine):
    """Makes every call on both; the answers, or the classes of the errors, must be the same."""

    def __init__(self) -> None:
        super().__init__()
        self.oracle = MemoryStorage(config_version=CONFIG_VERSION)
        self.store = self.open()
        self.stamped: dict[UUID, tuple[datetime, datetime]] = {}

    def open(self) -> SqlStorage:
        return DuckDBStorage(":memory:", config_version=CONFIG_VERSION)

    @initialize()
    def begin(self) -> None:
        self.store.init_schema()

    @rule()
    def init_schema(self) -> None:
        self.both(lambda store: store.init_schema())

    @rule(batch=log_batches)
    def write_logs(self, batch: Sequence[LogRecord]) -> None:
        first = {row.log_id: row for row in reversed(batch)}
        stamped = [
            key
            for key, row in first.items()
            if not isinstance(row, StoredLog) and self.oracle.get_log(key) is None
        ]
        before = datetime.now(UTC)
        self.both(lambda store: store.write_logs(batch))
        self.stamped |= dict.fromkeys(stamped, (before, datetime.now(UTC)))

    @rule(batch=log_batches, wrong=st.sampled_from([None, fiber(1), member(1, 1)]))
    def write_logs_and_something_else(self, batch: Sequence[LogRecord], wrong: object) -> None:
        self.both(lambda store: store.write_logs([*batch, cast("LogRecord", wrong)]))

    @rule(log_id=asked_ids)
    def get_log(self, log_id: UUID) -> None:
        self.both(lambda store: store.get_log(log_id))

    @rule(start=asked_times, end=asked_times, limit=numbers, offset=numbers, after=asked_keys)
    def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int,
        offset: int,
        after: tuple[datetime, UUID] | None,
    ) -> None:
        self.both(lambda store: store.query_logs_by_time(start, end, limit, offset, after=after))

    @rule(limit=numbers, offset=numbers, after=asked_keys)
    def query_all_logs(self, limit: int, offset: int, after: tuple[datetime, UUID] | None) -> None:
        self.both(
            lambda store: store.query_logs_by_time(BEGIN_OF_TIME, END_OF_TIME, limit, offset, after=after)
        )

    @rule(row=fibers() | st.just(cast("FiberRecord", log(1))))
    def write_fiber(self, row: FiberRecord) -> None:
        self.both(lambda store: store.write_fiber(row))

    @rule(row=fibers() | st.just(cast("FiberRecord", log(1))))
    def update_fiber(self, row: FiberRecord) -> None:
        self.both(lambda store: store.update_fiber(row))

    @rule(fiber_id=asked_ids)
    def get_fiber(self, fiber_id: UUID) -> None:
        self.both(lambda store: store.get_fiber(fiber_id))

    @rule(kind=asked_kinds, limit=numbers, offset=numbers, after=asked_keys)
    def query_fibers_by_type(
        self, kind: str, limit: int, offset: int, after: tuple[datetime, UUID] | None
    ) -> None:
        self.both(lambda store: store.query_fibers_by_type(kind, limit, offset, after=after))

    @rule(batch=memberships)
    def write_memberships(self, batch: Sequence[FiberMembership]) -> None:
        self.both(lambda store: store.write_memberships(batch))

    @rule(batch=memberships, wrong=st.sampled_from([None, fiber(1), log(1)]))
    def write_memberships_and_something_else(self, batch: Sequence[FiberMembership], wrong: object) -> None:
        self.both(lambda store: store.write_memberships([*batch, cast("FiberMembership", wrong)]))

    @rule(log_id=asked_ids)
    def get_log_fibers(self, log_id: UUID) -> None:
        self.both(lambda store: store.get_log_fibers(log_id))

    @rule(fiber_id=asked_ids, limit=numbers, offset=numbers, after=asked_keys)
    def get_fiber_logs(
        self, fiber_id: UUID, limit: int, offset: int, after: tuple[datetime, UUID] | None
    ) -> None:
        self.both(lambda store: store.get_fiber_logs(fiber_id, limit, offset, after=after))

    def teardown(self) -> None:
        try:
            self.both(lambda store: store.query_logs_by_time(BEGIN_OF_TIME, END_OF_TIME))
            self.both(lambda store: [store.query_fibers_by_type(kind) for kind in KINDS])
            self.both(lambda store: [store.get_log_fibers(key) for key in IDS[::2]])
        finally:
            self.store.close()

    def both(self, call: Callable[[Storage], object]) -> None:
        assert self.outcome(self.store, call) == self.outcome(self.oracle, call)

    def outcome(self, store: Storage, call: Callable[[Storage], object]) -> object:
        try:
            return self.comparable(call(store))
        except (StorageError, TypeError, ValueError) as error:
            return type(error)

    def comparable(self, value: object) -> object:
        """Return the value without what may differ: when each has stamped a log. 1 is not 1.0."""
        if isinstance(value, list):
            return [self.comparable(item) for item in value]
        if isinstance(value, FiberRecord):
            return {**dict(value), "attributes": json.dumps(value.attributes)}
        if isinstance(value, StoredLog) and value.log_id in self.stamped:
            before, after = self.stamped[value.log_id]
            assert before <= value.ingestion_time <= after
            return {**dict(value), "ingestion_time": "stamped"}
        return value


class FileAgreement(Agreement):
    """The same with a file, which is closed and opened again now and then."""

    def open(self) -> DuckDBStorage:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store.duckdb"
        return DuckDBStorage(self.path, config_version=CONFIG_VERSION)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = DuckDBStorage(self.path, config_version=CONFIG_VERSION)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.folder.cleanup()


class PostgresAgreement(Agreement):
    """The same on a server, where JSONB keeps the values of attributes, but not their spelling or order."""

    url: ClassVar[str]

    def open(self) -> SqlStorage:
        store = PostgresStorage(self.url, config_version=CONFIG_VERSION)
        empty(store.engine)
        return store

    def comparable(self, value: object) -> object:
        return dict(value) if isinstance(value, FiberRecord) else super().comparable(value)


def run(machine: type[Agreement], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.timeout(600)  # a failure is made small first, which takes minutes
@parametrize_mostly_slow("machine", [Agreement, FileAgreement])
def test_duckdb_and_the_oracle_agree_after_any_calls(machine: type[Agreement]) -> None:
    run(machine, examples=6, steps=25)


@pytest.mark.timeout(600)
def test_postgresql_and_the_oracle_agree_after_any_calls(postgres_tables_url: str) -> None:
    PostgresAgreement.url = postgres_tables_url
    run(PostgresAgreement, examples=4, steps=25)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_postgresql_and_the_oracle_agree_after_very_many_calls(
    postgres_tables_url: str, long_form: bool
) -> None:
    PostgresAgreement.url = postgres_tables_url
    run(PostgresAgreement, examples=200 if long_form else 10, steps=40)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("machine", [Agreement, FileAgreement])
def test_duckdb_and_the_oracle_agree_after_very_many_calls(machine: type[Agreement], long_form: bool) -> None:
    run(machine, examples=200 if long_form else 10, steps=40)

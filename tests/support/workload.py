"""Callers that change and read a few fibers of one store by every face, and note what they were told."""

import asyncio
import gc
import itertools
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, TypeVar
from uuid import UUID, uuid4

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from fiberstore import (
    AsyncDuckDBStorage,
    ConflictError,
    DatabaseError,
    DuckDBStorage,
    Fiber,
    FiberMembership,
    FiberRecord,
    LogRecord,
    Membership,
    SqlStorage,
    StoredLog,
    copy_store,
)
from fiberstore.aio.storage import AsyncTransaction
from fiberstore.aio.workers import OneWorker
from fiberstore.doctor import examine
from fiberstore.repositories.storage import Transaction
from tests.support.serializability_checker import (
    Change,
    Entry,
    Outcome,
    Read,
    Values,
    contradictions,
    stale_register,
)

JOURNAL = datetime(2030, 1, 1, tzinfo=UTC)  # the time of the journal's logs is their position, in µs
JOURNAL_END = JOURNAL + timedelta(days=1)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
ACCOUNTS = 2  # these fibers are never deleted, and pass tokens to each other
TOKENS = 10
FIBERS = 6
CHANGES = ["raise", "raise", "raise", "close", "retype", "transfer", "join", "merge"]
TYPES = ["new", "type 0", "type 1"]
APPENDED = datetime(2026, 1, 1, tzinfo=UTC)
APPENDED_END = APPENDED + timedelta(hours=1)
APPENDED_AT_ONCE = 20
BOARD = 99  # a fiber that is written over and over by single calls
OLDER_ENTRIES = 50
P = ParamSpec("P")
T = TypeVar("T")


def fiber_id(number: int) -> UUID:
    return UUID(int=number + 1)


def record(number: int, value: JsonValue) -> FiberRecord:
    """Return the record of a fiber's value in the history."""
    assert isinstance(value, dict)
    return FiberRecord(
        fiber_id=fiber_id(number),
        fiber_type=str(value["type"]),
        config_version=1,
        attributes={name: value[name] for name in ("raises", "tokens", "born")},
        first_activity=NOON,
        last_activity=NOON,
        closed=bool(value["closed"]),
    )


def value_of(fiber: FiberRecord | None) -> JsonValue:
    """Return the value of a fiber in the history."""
    if fiber is None:
        return None
    assert isinstance(fiber.attributes, dict)
    return {**fiber.attributes, "type": fiber.fiber_type, "closed": fiber.closed}


def value_of_logs(logs: Sequence[StoredLog]) -> JsonValue:
    return [*sorted(log.log_id.hex for log in logs)] or None


def newborn(position: int, tokens: int = 0, type_: str = "new") -> JsonValue:
    return {"raises": 0, "tokens": tokens, "born": position, "type": type_, "closed": False}


def position_of(logs: Sequence[StoredLog]) -> int:
    """Return the position of the newest of some logs of the journal."""
    return (logs[-1].timestamp - JOURNAL) // timedelta(microseconds=1) if logs else 0


class Plan:
    """Plan of a call: the fibers it reads, and what it makes of them."""

    def __init__(self, rng: random.Random, call: int, kinds: Sequence[str]) -> None:
        self.call = call
        self.kind = rng.choice(kinds)
        numbers = range(FIBERS)
        if self.kind == "transfer":
            numbers = range(ACCOUNTS)
        elif self.kind in ("join", "merge", "delete"):
            numbers = range(ACCOUNTS, FIBERS)
        self.numbers = rng.sample(numbers, 2 if self.kind in ("transfer", "merge") else 1)
        self.new_log = LogRecord(timestamp=NOON, source_id="load", raw_text=f"call {call}", log_id=uuid4())

    def after(self, before: Values, position: int) -> dict[str, JsonValue]:
        """Return the changed fields; a fiber that is missing is made anew instead."""
        first, last = f"fiber {self.numbers[0]}", f"fiber {self.numbers[-1]}"
        for name in (first, last):
            if before[name] is None:
                return {name: newborn(position)}
        one, other = before[first], before[last]
        assert isinstance(one, dict)
        assert isinstance(other, dict)
        logs = [f"logs {number}" for number in self.numbers]
        after: dict[str, JsonValue] = {}
        match self.kind:
            case "raise":
                after[first] = _plus(one, "raises", 1)
            case "close":
                after[first] = one | {"closed": not one["closed"]}
            case "retype":
                after[first] = one | {"type": TYPES[TYPES.index(str(one["type"])) - 1]}
            case "transfer":
                after = {first: _plus(one, "tokens", -1), last: _plus(other, "tokens", 1)}
            case "join":
                after = {
                    first: _plus(one, "raises", 1),
                    logs[0]: _union(before[logs[0]], [self.new_log.log_id.hex]),
                }
            case "merge":
                after = {first: None, logs[0]: None, logs[1]: _union(before[logs[0]], before[logs[1]])}
            case "delete":
                after = {first: None, logs[0]: None}
        return after


def _plus(fiber: dict[str, JsonValue], counter: str, step: int) -> JsonValue:
    count = fiber[counter]
    assert isinstance(count, int)
    return fiber | {counter: count + step}


def _union(one: JsonValue, other: JsonValue) -> JsonValue:
    ids = {str(id_) for part in (one, other) if isinstance(part, list) for id_ in part}
    return [*sorted(ids)] or None


def some_appended(rng: random.Random) -> list[LogRecord]:
    """Make a batch that any page may cut in two."""
    text = str(uuid4())
    return [
        LogRecord(
            timestamp=APPENDED + timedelta(seconds=rng.randrange(3600)),
            source_id="append",
            raw_text=text,
            log_id=uuid4(),
        )
        for _ in range(APPENDED_AT_ONCE)
    ]


class _Here(OneWorker):
    """Runs what it is given at once, so that one coroutine serves threads and tasks."""

    def __init__(self) -> None:
        pass

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return work(*args, **kwargs)


def at_once(coroutine: Coroutine[object, None, T]) -> T:
    """Return the result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("it waits")


def _here(transaction: Transaction) -> AsyncTransaction:
    return AsyncTransaction(transaction, _Here())


# An IntegrityError is a conflict too: a fiber that a session has seen missing was made anew meanwhile.
CONFLICTS = (ConflictError, OperationalError, IntegrityError)


class Abandoned(Exception):  # noqa: N818  # it is no error
    """The caller changes its mind inside a block."""


class Walk:
    """Pages one after the other, in which no log may be missing or come twice.

    Args:
        known: Ids of logs that were there before.
    """

    def __init__(self, known: set[UUID]) -> None:
        self.last: tuple[datetime, UUID] = (datetime.min.replace(tzinfo=UTC), UUID(int=0))
        self.is_over = False
        self._missing = known

    def add(self, page: Sequence[StoredLog]) -> None:
        keys = [self.last, *((log.timestamp, log.log_id) for log in page)]
        assert keys == sorted(set(keys)), "a page repeats a log, or is out of order"
        self._missing = self._missing - {log.log_id for log in page}
        self.last = keys[-1]
        self.is_over = not page
        assert not (self.is_over and self._missing), "a walk by pages misses logs"


@contextmanager
def never_too_late() -> Iterator[None]:
    """See that a unit of work is not refused over changed rows: it has waited before it read."""
    try:
        yield
    except ConflictError as error:
        assert "rows were changed" not in str(error)  # noqa: PT017  # other conflicts are none of its business
        raise


class Load:
    """The calls on one store, and the history of them.

    Whatever takes a position in the journal changes a row that is there, be it one that it has just inserted:
    transactions that only append wait for nobody and are in no order.

    Args:
        storage: Where they go, with its tables and nothing else.
    """

    def __init__(self, storage: SqlStorage) -> None:
        self.storage = storage
        self.changes: list[Change] = []
        self.reads: list[Read] = []
        self.board_writes: list[tuple[Change, JsonValue]] = []
        self.board_reads: list[Read] = []
        self.appends: list[tuple[Change, list[LogRecord]]] = []
        self._calls = itertools.count(1)
        self._positions: dict[int, int] = {}
        self.raised: dict[int, tuple[str, JsonValue]] = {}  # by each call, which fiber of which birth
        self._copying = threading.Lock()
        self._entered: list[int] = [0]  # positions that are known to be stored
        first = newborn(0, type_="board")
        storage.write_fiber(record(BOARD, first))
        self.board_writes.append((Change(0, 0, 0, Outcome.DONE), first))
        with self.call() as call, storage.transaction() as transaction:
            fibers = {f"fiber {number}": newborn(1, TOKENS) for number in range(ACCOUNTS)}
            at_once(self._enter(_here(transaction), Entry(1, call, {}, fibers)))
            for number in range(ACCOUNTS):
                transaction.fibers.write_fiber(record(number, newborn(1, TOKENS)))

    @cached_property
    def copy(self) -> DuckDBStorage:
        """Destination of copies of the store."""
        copy = DuckDBStorage(":memory:")
        copy.init_schema()
        return copy

    def newest(self) -> int:
        """Return a position that is known to be stored."""
        return max(self._entered[-50:])

    def next_call(self) -> int:
        return next(self._calls)

    @contextmanager
    def call(self) -> Iterator[int]:
        """Note the outcome of a change that enters itself into the journal."""
        call = self.next_call()
        with self.noted(self.changes.append, call):
            yield call
            self._entered.append(self._positions[call])

    @contextmanager
    def noted(self, note: Callable[[Change], None], call: int = 0) -> Iterator[None]:
        """Note the outcome of a change; conflicts and what is abandoned end here."""
        begin, outcome = time.monotonic(), Outcome.UNKNOWN
        try:
            yield
            outcome = Outcome.DONE
        except (*CONFLICTS, Abandoned):
            outcome = Outcome.FAILED
        finally:
            note(Change(call, begin, time.monotonic(), outcome))

    async def _enter(self, transaction: AsyncTransaction, entry: Entry) -> None:
        self._positions[entry.call] = entry.position
        time_ = JOURNAL + timedelta(microseconds=entry.position)
        text = entry.to_text()
        await transaction.logs.write_logs(
            [LogRecord(timestamp=time_, source_id="journal", raw_text=text, log_id=uuid4())]
        )

    async def _position(self, transaction: AsyncTransaction, entered: int) -> int:
        """Return the last position; look for one before ``entered`` too, which would be an old snapshot's."""
        start = JOURNAL + timedelta(microseconds=entered - OLDER_ENTRIES)
        return position_of(await transaction.logs.query_logs_by_time(start, JOURNAL_END, limit=10_000))

    async def _values(self, transaction: AsyncTransaction, numbers: Collection[int]) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = {}
        for number in numbers:
            values[f"fiber {number}"] = value_of(await transaction.fibers.get_fiber(fiber_id(number)))
            logs = await transaction.memberships.get_fiber_logs(fiber_id(number))
            values[f"logs {number}"] = value_of_logs(logs)
        return values

    async def _begin(self, transaction: AsyncTransaction, plan: Plan) -> Entry:
        """Read, decide, and enter it."""
        position = await self._position(transaction, self.newest()) + 1
        before = await self._values(transaction, plan.numbers)
        entry = Entry(position, plan.call, before, plan.after(before, position))
        await self._enter(transaction, entry)
        for name, value in entry.after.items():
            was = before[name]
            if isinstance(value, dict) and isinstance(was, dict) and value["raises"] != was["raises"]:
                self.raised[plan.call] = name, value["born"]
        return entry

    async def _write_logs(self, transaction: AsyncTransaction, plan: Plan, entry: Entry) -> None:
        if plan.kind == "join" and f"logs {plan.numbers[0]}" in entry.after:
            await transaction.logs.write_logs([plan.new_log])
            place = FiberMembership(
                log_id=plan.new_log.log_id, fiber_id=fiber_id(plan.numbers[0]), config_version=1
            )
            await transaction.memberships.write_memberships([place])
        if plan.kind == "merge" and f"logs {plan.numbers[0]}" in entry.after:
            await transaction.fibers.merge_fibers({fiber_id(plan.numbers[0]): fiber_id(plan.numbers[1])})

    async def change(self, transaction: AsyncTransaction, plan: Plan, rng: random.Random) -> None:
        """Make one change by the repositories of a transaction."""
        entry = await self._begin(transaction, plan)
        await self._write_logs(transaction, plan, entry)
        for name, value in entry.after.items():
            what, number = name.split()
            if what == "fiber" and value is not None:
                if entry.before[name] is None:
                    await transaction.fibers.write_fiber(record(int(number), value))
                await transaction.fibers.update_fiber(record(int(number), value))
        if rng.random() < 0.1:
            raise Abandoned

    def change_rows(self, session: Session, plan: Plan) -> None:
        """Make one change by rows of an ORM session, which writes only the columns that differ."""
        transaction = _here(Transaction(session, 0))
        entry = at_once(self._begin(transaction, plan))
        at_once(self._write_logs(transaction, plan, entry))
        for name, value in entry.after.items():
            what, number = name.split()
            row = session.get(Fiber, fiber_id(int(number)))
            if what == "fiber" and value is not None:
                fields = dict(record(int(number), value))
                if row is None:
                    session.add(Fiber(**fields))
                    session.flush()
                    at_once(transaction.fibers.update_fiber(record(int(number), value)))
                else:
                    row.attributes, row.closed = fields["attributes"], fields["closed"]
                    row.fiber_type = fields["fiber_type"]
            elif what == "fiber" and row is not None:
                session.delete(row)
                session.execute(sa.delete(Membership).where(Membership.fiber_id == row.fiber_id))
        session.flush()

    def change_by_transaction(self, rng: random.Random) -> None:
        with self.call() as call, never_too_late(), self.storage.transaction() as transaction:
            plan = Plan(rng, call, CHANGES)
            at_once(self.change(_here(transaction), plan, rng))

    def change_by_session(self, rng: random.Random) -> None:
        with self.call() as call, self.storage.session() as session:
            self.change_rows(session, Plan(rng, call, [*CHANGES, "delete"]))
            if rng.random() < 0.1:
                raise Abandoned
            session.commit()

    def forget_a_session(self, rng: random.Random) -> None:
        """Leave a session with changes to the garbage collector."""
        with self.call() as call:
            session = self.storage.session()
            forgotten = weakref.ref(session)
            with suppress(*CONFLICTS):  # which would hold the session
                self.change_rows(session, Plan(rng, call, [*CHANGES, "delete"]))
            del session
            while forgotten() is not None:  # another thread may be collecting, and then this one does not
                gc.collect()
            raise Abandoned

    async def look_twice(self, transaction: AsyncTransaction) -> None:
        """Read everything in one snapshot, and again."""
        begin, entered = time.monotonic(), self.newest()
        looks = []
        for _ in range(2):
            position = await self._position(transaction, entered)
            looks.append((position, await self._values(transaction, range(FIBERS))))
        assert looks[0] == looks[1], "one snapshot, two answers"
        position, seen = looks[0]
        self.reads.append(Read(begin, time.monotonic(), seen, position))

    def read_by_transaction(self, _rng: random.Random) -> None:
        with suppress(ConflictError), self.storage.transaction() as transaction:
            at_once(self.look_twice(_here(transaction)))

    def read_by_session(self, _rng: random.Random) -> None:
        with self.storage.session() as session:
            at_once(self.look_twice(_here(Transaction(session, 0))))

    def read_by_calls(self, rng: random.Random) -> None:
        number, type_ = rng.randrange(FIBERS), rng.choice(TYPES)
        begin = time.monotonic()
        fiber = self.storage.get_fiber(fiber_id(number))
        self.note_read(begin, {f"fiber {number}": value_of(fiber)})
        begin = time.monotonic()
        logs = self.storage.get_fiber_logs(fiber_id(number))
        self.note_read(begin, {f"logs {number}": value_of_logs(logs)})
        begin = time.monotonic()
        fibers = self.storage.query_fibers_by_type(type_)
        self.note_read(begin, {f"fiber {found.fiber_id.int - 1}": value_of(found) for found in fibers})

    def note_read(self, begin: float, seen: Values) -> None:
        self.reads.append(Read(begin, time.monotonic(), seen))

    def write_the_board(self, _rng: random.Random) -> None:
        value = newborn(self.next_call(), type_="board")
        with self.noted(lambda change: self.board_writes.append((change, value))):
            self.storage.update_fiber(record(BOARD, value))

    def read_the_board(self, _rng: random.Random) -> None:
        begin = time.monotonic()
        value = value_of(self.storage.get_fiber(fiber_id(BOARD)))
        self.board_reads.append(Read(begin, time.monotonic(), {"board": value}))

    def append_logs(self, rng: random.Random) -> None:
        batch = some_appended(rng)
        with self.noted(lambda change: self.appends.append((change, batch))):
            assert self.storage.write_logs(batch) == len(batch)

    def walk_pages(self, rng: random.Random) -> None:
        """Read all that was appended, page by page; then all at once."""
        known = self.acknowledged_appends()
        size = rng.randrange(20, 200)
        walk = Walk(known)
        walk.add(self.storage.query_logs_by_time(APPENDED, APPENDED_END, size))
        while not walk.is_over:
            walk.add(self.storage.query_logs_by_time(APPENDED, APPENDED_END, size, after=walk.last))
        offset = len(known) // 2
        rest = self.storage.query_logs_by_time(APPENDED, APPENDED_END, 10**6, offset)
        assert len(rest) >= len(known) - offset, "a page by offset misses logs"
        everything = self.storage.query_logs_by_time(APPENDED, APPENDED_END, 10**6)
        assert set(Counter(log.raw_text for log in everything).values()) <= {APPENDED_AT_ONCE}, "half a batch"

    def acknowledged_appends(self) -> set[UUID]:
        done = [batch for change, batch in list(self.appends) if change.outcome is Outcome.DONE]
        return {log.log_id for batch in done for log in batch}

    def steps(self) -> list[Callable[[random.Random], None]]:
        """Return every kind of call of the plain face, the usual ones more than once."""
        return [
            *[self.change_by_transaction] * 6,
            *[self.change_by_session] * 6,
            self.forget_a_session,
            self.read_by_transaction,
            *[self.read_by_session] * 2,
            *[self.read_by_calls] * 4,
            *[self.write_the_board] * 2,
            *[self.read_the_board] * 2,
            *[self.append_logs] * 2,
            self.walk_pages,
        ]

    def steps_of_storage(self) -> list[Callable[[random.Random], None]]:
        """Return those without changes by sessions, which on a server wait for nobody, in no order."""
        by_sessions = (self.change_by_session, self.forget_a_session)
        return [step for step in self.steps() if step not in by_sessions]

    def back_up(self, _rng: random.Random) -> None:
        """Read everything from a backup, which is one snapshot."""
        assert isinstance(self.storage, DuckDBStorage)
        begin, entered = time.monotonic(), self.newest()
        with TemporaryDirectory() as folder:
            self.storage.backup(Path(folder) / "backup.duckdb")
            end = time.monotonic()
            with (
                DuckDBStorage(Path(folder) / "backup.duckdb", read_only=True) as backup,
                backup.transaction() as unit,
            ):
                position = at_once(self._position(_here(unit), entered))
                seen = at_once(self._values(_here(unit), range(FIBERS)))
        self.reads.append(Read(begin, end, seen, position))

    def compact(self, _rng: random.Random) -> None:
        assert isinstance(self.storage, DuckDBStorage)
        try:
            self.storage.compact()
        except DatabaseError as error:  # the sessions of the others
            assert "needs the file for itself" in str(error) or "compacted already" in str(error)  # noqa: PT017

    def copy_and_examine(self, rng: random.Random) -> None:
        if self._copying.acquire(blocking=False):
            try:
                copy_store(self.storage, self.copy, mirror=rng.random() < 0.5)
                examine(self.storage)
            finally:
                self._copying.release()

    def steps_beside(self) -> list[Callable[[random.Random], None]]:
        """Return the calls that look at a whole store, and the usual ones."""
        return [*self.steps() * 2, self.back_up, self.back_up, self.compact, self.copy_and_examine]

    def problems_beside(self) -> list[str]:
        """Compare a copy with the store, and examine both, when all calls have ended."""
        copied = copy_store(self.storage, self.copy, mirror=True)
        found = [finding.text for of in (self.storage, self.copy) for finding in examine(of)]
        return found if copied.is_equal else [f"the copy differs: {copied.differences}", *found]

    def problems(self, storage: SqlStorage) -> list[str]:
        """Compare what the callers were told with what is stored, when all calls have ended."""
        self.storage = storage
        self.read_the_board(random.Random())
        self.walk_pages(random.Random(1))
        journal = [
            Entry.from_text(log.raw_text) for log in storage.query_logs_by_time(JOURNAL, JOURNAL_END, 10**6)
        ]
        with storage.session() as session:
            final = at_once(self._values(_here(Transaction(session, 0)), range(FIBERS)))
        found = contradictions(self.changes, self.reads, journal, final)
        found += stale_register(self.board_writes, self.board_reads, "board")
        return found + self._wrong_counters(journal, final) + self._wrong_appends(storage)

    def _wrong_counters(self, journal: Sequence[Entry], final: Values) -> list[str]:
        """Count the raises of each fiber that lives in the end, since it was made."""
        done = {change.call for change in self.changes if change.outcome is Outcome.DONE}
        done |= {entry.call for entry in journal}  # those whose callers do not know
        raises = Counter(born for call, born in self.raised.items() if call in done)
        found = []
        for name, value in final.items():
            if name.startswith("fiber") and isinstance(value, dict):
                expected = raises[name, value["born"]]
                if value["raises"] != expected:
                    found.append(f"{name} was raised {expected} times, and holds {value}")
        return found

    def _wrong_appends(self, storage: SqlStorage) -> list[str]:
        stored = {log.log_id for log in storage.query_logs_by_time(APPENDED, APPENDED_END, 10**6)}
        found = []
        for change, batch in self.appends:
            there = len(stored & {log.log_id for log in batch})
            whole = APPENDED_AT_ONCE
            expected = {Outcome.DONE: (whole,), Outcome.FAILED: (0,), Outcome.UNKNOWN: (0, whole)}
            if there not in expected[change.outcome]:
                found.append(f"of the batch of {change} {there} logs are stored")
        return found


class TaskLoad:
    """The same calls by ``AsyncDuckDBStorage``, as tasks of which some are cancelled.

    Args:
        load: Notes what they are told; its own calls are made on threads beside the tasks.
        storage: On the same store.
    """

    def __init__(self, load: Load, storage: AsyncDuckDBStorage) -> None:
        self._load = load
        self._storage = storage

    async def run(self, seed: str, count: int) -> None:
        """Make some calls one after the other, and cancel one of eight at any point."""
        rng = random.Random(seed)
        for _ in range(count):
            task = asyncio.ensure_future(rng.choice(self._steps())(rng))
            if rng.random() < 0.125:
                for _ in range(rng.randrange(40)):
                    await asyncio.sleep(0)
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _steps(self) -> list[Callable[[random.Random], Coroutine[object, None, None]]]:
        return [
            *[self._change] * 6,
            *[self._change_by_session] * 2,
            self._read_by_transaction,
            *[self._read_by_calls] * 4,
            *[self._write_the_board] * 2,
            *[self._append_logs] * 2,
            self._walk_pages,
        ]

    async def _change(self, rng: random.Random) -> None:
        with self._load.call() as call, never_too_late():
            async with self._storage.transaction() as transaction:
                await self._load.change(transaction, Plan(rng, call, CHANGES), rng)

    async def _change_by_session(self, rng: random.Random) -> None:
        await asyncio.shield(asyncio.to_thread(self._load.change_by_session, random.Random(rng.random())))

    async def _read_by_transaction(self, _rng: random.Random) -> None:
        with suppress(ConflictError):
            async with self._storage.transaction() as transaction:
                await self._load.look_twice(transaction)

    async def _read_by_calls(self, rng: random.Random) -> None:
        number = rng.randrange(FIBERS)
        begin = time.monotonic()
        fiber = await self._storage.get_fiber(fiber_id(number))
        self._load.note_read(begin, {f"fiber {number}": value_of(fiber)})
        begin = time.monotonic()
        logs = await self._storage.get_fiber_logs(fiber_id(number))
        self._load.note_read(begin, {f"logs {number}": value_of_logs(logs)})
        begin = time.monotonic()
        fibers = await self._storage.query_fibers_by_type(rng.choice(TYPES))
        self._load.note_read(begin, {f"fiber {found.fiber_id.int - 1}": value_of(found) for found in fibers})

    async def _write_the_board(self, _rng: random.Random) -> None:
        value = newborn(self._load.next_call(), type_="board")
        with self._load.noted(lambda change: self._load.board_writes.append((change, value))):
            await self._storage.update_fiber(record(BOARD, value))
        begin = time.monotonic()
        seen = value_of(await self._storage.get_fiber(fiber_id(BOARD)))
        self._load.board_reads.append(Read(begin, time.monotonic(), {"board": seen}))

    async def _append_logs(self, rng: random.Random) -> None:
        batch = some_appended(rng)
        with self._load.noted(lambda change: self._load.appends.append((change, batch))):
            await self._storage.write_logs(batch)

    async def _walk_pages(self, _rng: random.Random) -> None:
        known = self._load.acknowledged_appends()
        walk = Walk(known)
        walk.add(await self._storage.query_logs_by_time(APPENDED, APPENDED_END, 100))
        while not walk.is_over:
            walk.add(await self._storage.query_logs_by_time(APPENDED, APPENDED_END, 100, after=walk.last))

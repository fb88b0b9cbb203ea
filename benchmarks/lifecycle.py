"""Every call of ``docs/lifecycle.md`` on a store of a million logs, and who waits for it meanwhile.

``python -m benchmarks.lifecycle`` copies one store for each call, and runs the call beside four threads:
one reads a log by its id, one appends a log, one updates a fiber, and one does nothing but sleep for 1 ms. It
prints how long the call took, how many times as long as ``compact()`` of the same store, and the longest that
each of the four has waited beside it; the last tells what Python and the machine take of the others' waits.
The first row is without any call. With ``--postgresql URL``, of a server on which databases can be made, the
same follows on a copy of the store in PostgreSQL.
"""

import argparse
import gc
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from benchmarks.query_bench import build
from fiberstore import (
    ConflictError,
    DuckDBStorage,
    FiberRecord,
    Fibers,
    LogRecord,
    Logs,
    Memberships,
    PostgresStorage,
)
from fiberstore.copying.copy import copy_store
from fiberstore.ingest.reprocess import reprocess
from fiberstore.ingest.rules import load_rules
from fiberstore.repositories.storage import SqlStorage

_NOON = datetime(2024, 12, 10, 12, tzinfo=UTC)
_LATER = datetime(2025, 1, 1, tzinfo=UTC)
_QUIET_S = 2.0
_RULES = r"""
[fibers.tens]
max_gap = "infinite"
"""
_SOURCE = """
[sources.source-{number:02d}]
path = "source-{number:02d}.log"
timestamp = '^(?P<ts>\\S+)'
format = "%Y-%m-%dT%H:%M:%S%z"
[[fibers.tens.patterns]]
source = "source-{number:02d}"
regex = '^(?P<ten>\\d+)\\d '
"""
_SOURCES = 12


@dataclass
class Waits:
    """Durations of the calls of one thread.

    Attributes:
        longest_s: Longest duration, in seconds.
        conflicts: Calls that ended with ``ConflictError``, which says to retry.
    """

    longest_s: float = 0.0
    conflicts: int = 0

    def __str__(self) -> str:
        conflicts = f" ({self.conflicts} conflicts)" if self.conflicts else ""
        return f"{self.longest_s * 1e3:,.0f}{conflicts}"


@dataclass
class Store:
    """A copy of the store that a call is run on.

    Attributes:
        storage: Open.
        log_ids: Of its logs, in the order of time.
        fiber_ids: Of its fibers.
        rules: A rules file for its lines.
        fibers: All its fibers, closed.
        waits: Of those who use it meanwhile, by what they do.
    """

    storage: SqlStorage
    log_ids: Sequence[UUID]
    fiber_ids: Sequence[UUID]
    rules: Path
    fibers: list[FiberRecord]
    waits: dict[str, Waits] = field(default_factory=dict)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Read, append, change and sleep in a thread each until the block ends."""
        fiber = self.storage.get_fiber(self.fiber_ids[-1])
        assert fiber is not None
        numbers, ended = count(), threading.Event()

        def append() -> object:
            time_ = _LATER + timedelta(seconds=next(numbers))
            return self.storage.write_logs([LogRecord(timestamp=time_, source_id="new", raw_text="appended")])

        users: dict[str, Callable[[], object]] = {
            "read": lambda: self.storage.get_log(self.log_ids[-1]),
            "append": append,
            "change": lambda: self.storage.upsert_fibers([fiber]),
            "sleep": lambda: time.sleep(0.001),
        }

        self.waits = {name: Waits() for name in users}

        def use(name: str) -> None:
            waits = self.waits[name]
            while not ended.is_set():
                begin = time.perf_counter()
                try:
                    users[name]()
                except ConflictError:
                    waits.conflicts += 1
                waits.longest_s = max(waits.longest_s, time.perf_counter() - begin)
                ended.wait(0.01)

        threads = [threading.Thread(target=use, args=(name,)) for name in users]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()


Call = tuple[str, Callable[[Store], object]]


def calls() -> Iterator[Call]:
    """Give the name and the function of every call."""
    yield "nothing", lambda _: time.sleep(_QUIET_S)
    yield "compact", lambda store: store.storage.compact()
    old_fibers, old_logs = Fibers.c.last_activity < _NOON, Logs.c.timestamp < _NOON
    yield "upsert_fibers, all", lambda store: store.storage.upsert_fibers(store.fibers)
    yield "fibers.close(), all that are open", lambda store: store.storage.fibers.close()
    yield "fibers.reopen(), all that are closed", lambda store: store.storage.fibers.reopen()
    yield "fibers.pin(), all", lambda store: store.storage.fibers.pin()
    yield "merge_fibers, every second into the one before", _merge
    yield (
        "prune(dry_run), half by age",
        lambda store: store.storage.prune(fibers=old_fibers, logs=old_logs, dry_run=True),
    )
    yield "prune, half by age", lambda store: store.storage.prune(fibers=old_fibers, logs=old_logs)
    yield (
        "prune, half by age, step_rows=1_000_000",
        lambda store: store.storage.prune(fibers=old_fibers, logs=old_logs, step_rows=1_000_000),
    )
    yield "prune, one of four types", lambda store: store.storage.prune(fibers=Fibers.c.fiber_type == "job")
    yield "prune, to half the size", _prune_to_half
    yield "logs.delete(), half", lambda store: store.storage.logs.where(old_logs).delete()
    yield "fibers.delete(), half", lambda store: store.storage.fibers.where(old_fibers).delete()
    yield (
        "memberships.delete(), of one version",
        lambda store: store.storage.memberships.where(Memberships.c.config_version == 1).delete(),
    )
    yield "logs.redact(), three of four", lambda store: store.storage.logs.redact("user|login", "[who]")
    yield (
        "checkpoints.compare_and_set",
        lambda store: store.storage.checkpoints.compare_and_set("a", None, "b"),
    )
    yield "versions.activate", lambda store: store.storage.versions.activate(1)
    yield "reprocess", _reprocess
    yield "versions.diff, with as many", _diff
    yield "versions.drop", _drop


def _merge(store: Store) -> object:
    ids = store.fiber_ids[:-2]
    return store.storage.merge_fibers(dict(zip(ids[1::2], ids[::2], strict=False)))


def _prune_to_half(store: Store) -> object:
    used = store.storage.prune(logs=Logs.c.timestamp < datetime(1970, 1, 1, tzinfo=UTC))
    return store.storage.prune(max_bytes=(used.file_bytes - used.free_bytes) // 2)


def _reprocess(store: Store) -> int:
    rules = load_rules(store.rules, check_files=False)
    store.storage.versions.activate(1)
    reprocess(store.storage, rules)
    return rules.config_version


def _diff(store: Store) -> object:
    return store.storage.versions.diff(1, load_rules(store.rules, check_files=False).config_version)


def _drop(store: Store) -> object:
    return store.storage.versions.drop(load_rules(store.rules, check_files=False).config_version)


_ON_TWO_GENERATIONS = ("versions.diff", "versions.drop")


@dataclass(frozen=True)
class Sources:
    """The stores that are copied.

    Attributes:
        folder: Where they are: one.duckdb has one generation of fibers, two.duckdb two.
        log_ids: Of their logs, in the order of time.
        fiber_ids: Of the fibers of the first generation.
        rules: A rules file for their lines.
    """

    folder: Path
    log_ids: list[UUID]
    fiber_ids: list[UUID]
    rules: Path

    def store(self, storage: SqlStorage) -> Store:
        """Return the arguments of a call on a copy."""
        fibers = [fiber.model_copy(update={"closed": True}) for fiber in storage.fibers.iter_records()]
        gc.freeze()  # the garbage collector is not to look through what no program would have
        return Store(storage, self.log_ids, self.fiber_ids, self.rules, fibers)

    @contextmanager
    def in_duckdb(self, name: str) -> Iterator[SqlStorage]:
        """Open a copy of the store of that name."""
        if name == "two" and not (self.folder / "two.duckdb").exists():
            shutil.copy(self.folder / "one.duckdb", self.folder / "two.duckdb")
            with DuckDBStorage(self.folder / "two.duckdb") as storage:
                _reprocess(self.store(storage))
        copy = self.folder / "copy.duckdb"
        shutil.copy(self.folder / f"{name}.duckdb", copy)
        with DuckDBStorage(copy, slow_call_s=1e6) as storage:
            yield storage
        copy.unlink()


Copies = Callable[[str], AbstractContextManager[SqlStorage]]


@contextmanager
def _postgresql_copies(sources: Sources, server_url: str) -> Iterator[Copies]:
    """Give copies of the stores in databases of a server, which are dropped afterwards."""
    server = make_url(server_url).set(drivername="postgresql+psycopg")
    databases = {name: f"fiberstore_lifecycle_{name}" for name in ("one", "two", "copy")}

    def run(statement: str, database: str | None = server.database) -> None:
        url = server.set(database=database)
        with sa.create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql(statement)

    def opened(name: str) -> PostgresStorage:
        url = server.set(database=databases[name]).render_as_string(hide_password=False)
        return PostgresStorage(url, slow_call_s=1e6)

    @contextmanager
    def copy(name: str) -> Iterator[SqlStorage]:
        run(f"DROP DATABASE IF EXISTS {databases['copy']} WITH (FORCE)")
        run(f"CREATE DATABASE {databases['copy']} TEMPLATE {databases[name]}")
        with opened("copy") as storage:
            yield storage

    try:
        for name in ("one", "two"):
            run(f"CREATE DATABASE {databases[name]}")
            with sources.in_duckdb(name) as source, opened(name) as storage:
                storage.init_schema()
                copy_store(source, storage)
            run("VACUUM (ANALYZE)", databases[name])  # as autovacuum would within minutes
        yield copy
    finally:
        for database in databases.values():
            run(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")


def main() -> None:
    """Build the store, run every call, print a table for each engine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lifecycle", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small store: does every call work?")
    parser.add_argument("--only", default="", metavar="TEXT", help="only calls whose name holds this")
    parser.add_argument("--postgresql", metavar="URL", help="also in PostgreSQL, on this server")
    arguments = parser.parse_args()
    logs = 10_000 if arguments.quick else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rules = folder / "rules.toml"
        rules.write_text("".join(_SOURCE.format(number=number) for number in range(_SOURCES)) + _RULES)
        sources = Sources(folder, *build(folder / "one.duckdb", logs), rules)
        gc.freeze()  # to look through the ids would stop all threads for most of a second, again and again
        _print_table("DuckDB", sources, sources.in_duckdb, arguments.only)
        if arguments.postgresql:
            with _postgresql_copies(sources, arguments.postgresql) as copies:
                _print_table("PostgreSQL", sources, copies, arguments.only)


def _print_table(engine: str, sources: Sources, copies: Copies, only: str) -> None:
    print(
        f"| {engine}, {len(sources.log_ids):,} logs, {len(sources.fiber_ids):,} fibers | s | times compact "
        "| longest read, ms | append, ms | change, ms | sleep, ms |\n|---|---|---|---|---|---|---|"
    )
    compact_s = None
    for name, call in calls():
        if only not in name and name != "compact":
            continue
        with copies("two" if name.startswith(_ON_TWO_GENERATIONS) else "one") as storage:
            store = sources.store(storage)
            with store.in_use():
                begin = time.perf_counter()
                outcome = ""
                try:
                    call(store)
                except ConflictError:
                    outcome = " (ConflictError)"
                took_s = time.perf_counter() - begin
        if name == "compact":
            compact_s = took_s
        times = f"{took_s / compact_s:.1f}" if compact_s else ""
        waits = " | ".join(map(str, store.waits.values()))
        print(f"| {name}{outcome} | {took_s:.2f} | {times} | {waits} |", flush=True)


if __name__ == "__main__":
    main()

"""Mixed load on one store file, and what has to stay level meanwhile.

    python -m tests.support.long_run --minutes 60

Threads and tasks write, change, read, fail, open and close for a round at a time. The amount of live data is
kept level: the clock of the logs is the number of logs, and what is older than the newest ``LIVE_LOGS`` of
them is deleted. Between two rounds nothing runs, so that threads and file descriptors can be counted exactly.
"""

import argparse
import asyncio
import gc
import random
import statistics
import sys
import tempfile
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from fiberstore import (
    AsyncDuckDBStorage,
    DuckDBStorage,
    DuplicateError,
    Fiber,
    FiberMembership,
    FiberRecord,
    LogRecord,
    Membership,
    NotFoundError,
    RawLog,
)
from tests.support.factories import a_fiber

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
LIVE_LOGS = 20_000
WORKERS = 4
ROUNDS = 60
CHECKPOINT_THRESHOLD_MB = 4
MIB = 2**20
MOST_FILE_BYTES = 40 * MIB


@dataclass(frozen=True)
class Sample:
    """Measurements between two rounds."""

    elapsed_s: float
    calls: int
    written_logs: int
    live_logs: int
    rss_bytes: int
    file_bytes: int
    wal_bytes: int
    threads: int
    descriptors: int

    def __str__(self) -> str:
        return (
            f"{self.elapsed_s:7.0f} s  {self.calls:8} calls  {self.written_logs:9} logs written  "
            f"{self.live_logs:6} live  RSS {self.rss_bytes / MIB:6.1f}  "
            f"file {self.file_bytes / MIB:5.1f}  WAL {self.wal_bytes / MIB:4.1f} MiB  "
            f"{self.threads} threads  {self.descriptors} descriptors"
        )


def growth(samples: Sequence[Sample]) -> list[str]:
    """Tell what grew between an early window and the last one; nothing if all stayed level.

    The first third of the samples is the warm-up: each connection keeps up to 256 statements, and
    every thread meets every call. Then:

    * Memory: the median of the sixth of the samples that follows, and of the last sixth. 15 % and 16 MiB more
      are allowed: a single round moves it by 20 MiB, with the size of what it wrote and of the garbage that
      Python's and DuckDB's allocators keep. In an hour that is 1 MiB a minute.
    * File: never above ``MOST_FILE_BYTES``. DuckDB frees deleted rows when a checkpoint rewrites their row
      group, so the file swings between the size of the live rows (10 MiB) and theirs and a row group's
      (122,880 rows, 30 MiB); it does not depend on how much was written.
    * WAL: never above twice the threshold of checkpoints. One that finds it passed runs at the next commit.
    * Threads and file descriptors: none more in the last sixth than in that other. Nothing runs meanwhile.
    """
    sixth = len(samples) // 6
    early, last = samples[2 * sixth : 3 * sixth], samples[-sixth:]
    found = []
    before, after = (statistics.median(sample.rss_bytes for sample in window) for window in (early, last))
    if after > 1.15 * before + 16 * MIB:
        found.append(f"rss_bytes grew from {before:.0f} to {after:.0f}")
    for name, bound in (("file_bytes", MOST_FILE_BYTES), ("wal_bytes", 2 * CHECKPOINT_THRESHOLD_MB * MIB)):
        most = max(getattr(sample, name) for sample in samples)
        if most > bound:
            found.append(f"{name} reached {most}")
    for name in ("threads", "descriptors"):
        most_before, most_after = (max(getattr(s, name) for s in window) for window in (early, last))
        if most_after > most_before:
            found.append(f"{name} grew from {most_before} to {most_after}")
    return found


class MixedLoad:
    """The calls, in a mix by chance, and what they share.

    Args:
        path: Where the store file is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.target = f"duckdb:///{path}?checkpoint_threshold={CHECKPOINT_THRESHOLD_MB}MB"
        self.storage = DuckDBStorage(self.target)
        self.storage.init_schema()
        self.done: Counter[str] = Counter()
        self._kept = a_fiber(fiber_type="kept", last_activity=datetime(2200, 1, 1, tzinfo=UTC))
        self.storage.write_fiber(self._kept)
        self._clock_lock = threading.Lock()
        self._now = 0
        self._recent: deque[FiberRecord] = deque(maxlen=300)
        self._steps: list[tuple[int, Callable[[random.Random], None]]] = [
            (20, self.write_logs),
            (20, self.write_fiber_with_logs),
            (20, self.update_fiber),
            (5, self.merge_fibers),
            (15, self.change_by_session),
            (20, self.read_pages),
            (20, self.read_by_key),
            (10, self.fail),
            (3, self.drop_a_session),
            (2, self.open_a_second_storage),
            (2, self.call_from_tasks),
            (2, self.checkpoint),
            (2, self.delete_old_rows),
        ]

    def close(self) -> None:
        self.storage.close()

    def run_round(self, seconds: float, seed: int) -> None:
        """Run steps on all workers until the time is over, then delete what is old."""
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(WORKERS) as threads:
            for work in [threads.submit(self._work, end, f"{seed}/{n}") for n in range(WORKERS)]:
                work.result()
        self.delete_old_rows(random.Random(seed))

    def _work(self, end: float, seed: str) -> None:
        rng = random.Random(seed)
        weights, steps = zip(*self._steps, strict=True)
        counts: Counter[str] = Counter()
        while time.monotonic() < end:
            (step,) = rng.choices(steps, weights)
            step(rng)
            counts[step.__name__] += 1
        self.done.update(counts)

    def sample(self, elapsed_s: float) -> Sample:
        """Measure, while nothing runs."""
        gc.collect()
        with self.storage.session() as session:
            live_logs = session.scalar(sa.select(sa.func.count()).select_from(RawLog)) or 0
        status = Path("/proc/self/status").read_text()
        rss_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        wal = Path(f"{self.path}.wal")
        return Sample(
            elapsed_s=elapsed_s,
            calls=self.done.total(),
            written_logs=self._now,
            live_logs=live_logs,
            rss_bytes=rss_kib * 1024,
            file_bytes=self.path.stat().st_size,
            wal_bytes=wal.stat().st_size if wal.exists() else 0,
            threads=sum(1 for _ in Path("/proc/self/task").iterdir()),
            descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        )

    def _next_numbers(self, count: int) -> range:
        with self._clock_lock:
            self._now += count
            return range(self._now - count, self._now)

    def _time(self, number: int) -> datetime:
        return EPOCH + timedelta(milliseconds=number)

    def _logs(self, rng: random.Random, count: int) -> list[LogRecord]:
        """Make logs, half of the batches with ids in the order of time and half with ids by chance."""
        ids: dict[str, UUID] = {}
        by_chance = rng.random() < 0.5
        logs = []
        for number in self._next_numbers(count):
            if by_chance:
                ids = {"log_id": uuid4()}
            text = f"line {number} {rng.randbytes(30).hex()}"
            source_id = f"source {number % 7}"
            logs.append(LogRecord(timestamp=self._time(number), source_id=source_id, raw_text=text, **ids))
        return logs

    def write_logs(self, rng: random.Random) -> None:
        logs = self._logs(rng, rng.choice([1, 10, 2_000]))
        assert self.storage.write_logs(logs) == len(logs)

    def _fiber(self, rng: random.Random, logs: Sequence[LogRecord]) -> FiberRecord:
        return FiberRecord(
            fiber_id=uuid4(),
            fiber_type=f"type {rng.randrange(5)}",
            config_version=1,
            attributes={"raises": 0, "key": rng.randbytes(20).hex()},
            first_activity=logs[0].timestamp,
            last_activity=logs[-1].timestamp,
        )

    def write_fiber_with_logs(self, rng: random.Random) -> None:
        logs = self._logs(rng, 20)
        fiber = self._fiber(rng, logs)
        with self.storage.transaction() as transaction:
            transaction.logs.write_logs(logs)
            transaction.fibers.write_fiber(fiber)
            transaction.memberships.write_memberships(
                FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1) for log in logs
            )
        self._recent.append(fiber)

    def _some_fiber(self, rng: random.Random) -> FiberRecord:
        if not self._recent:
            self.write_fiber_with_logs(rng)
        return rng.choice(list(self._recent))

    def update_fiber(self, rng: random.Random) -> None:
        fiber = self._some_fiber(rng)
        change = {"attributes": {"raises": rng.random()}, "closed": rng.random() < 0.5}
        with suppress(NotFoundError):  # merged, or old
            self.storage.update_fiber(fiber.model_copy(update=change))

    def merge_fibers(self, rng: random.Random) -> None:
        loser, survivor = self._some_fiber(rng), self._some_fiber(rng)
        if loser == survivor:
            return
        with suppress(NotFoundError):  # merged, or old
            self.storage.merge_fibers({loser.fiber_id: survivor.fiber_id})

    def change_by_session(self, rng: random.Random) -> None:
        """Change an indexed column by an ORM session, again while it conflicts."""
        fiber_id = self._some_fiber(rng).fiber_id
        while True:
            try:
                with self.storage.session() as session, session.begin():
                    row = session.get(Fiber, fiber_id)
                    if row is not None:
                        row.fiber_type = f"type {rng.randrange(5)}"
                return
            except OperationalError:
                continue

    def read_pages(self, rng: random.Random) -> None:
        end = self._time(self._now)
        start = end - timedelta(milliseconds=rng.randrange(5_000))
        page = self.storage.query_logs_by_time(start, end, 500)
        while page:
            page = self.storage.query_logs_by_time(start, end, 500, after=page[-1])
        self.storage.query_logs_by_time(start, end, 50, offset=rng.randrange(2_000))
        self.storage.query_fibers_by_type(f"type {rng.randrange(5)}", 100)

    def read_by_key(self, rng: random.Random) -> None:
        fiber = self._some_fiber(rng)
        self.storage.get_fiber(fiber.fiber_id)
        for log in self.storage.get_fiber_logs(fiber.fiber_id)[:3]:
            self.storage.get_log(log.log_id)
            self.storage.get_log_fibers(log.log_id)

    def fail(self, rng: random.Random) -> None:
        """Do what raises, each thing with its own error."""
        with pytest.raises(DuplicateError):
            self.storage.write_fiber(self._kept)
        with pytest.raises(NotFoundError):
            self.storage.update_fiber(a_fiber())
        with pytest.raises(ValueError, match="naive"):
            self.storage.query_logs_by_time(datetime(2024, 1, 1), EPOCH)  # noqa: DTZ001
        with pytest.raises(KeyError), self.storage.transaction() as transaction:
            transaction.logs.write_logs(self._logs(rng, 5))
            raise KeyError
        with self.storage.session() as session, pytest.raises(DBAPIError):
            session.execute(sa.text(f"SELECT no_such_column_{rng.randrange(10**9)} FROM fibers"))
        with self.storage.session() as session:
            for _ in range(150):  # texts that no cache has seen, long enough to be missed if they were kept
                session.execute(sa.text(f"SELECT {rng.randrange(10**9)} /* {'x' * 8_000} */"))

    def drop_a_session(self, _rng: random.Random) -> None:
        """Leave a session to the garbage collector, its transaction open and a change in it."""
        session = self.storage.session()
        forgotten = weakref.ref(session)
        with suppress(OperationalError):
            session.execute(sa.update(Fiber).where(Fiber.fiber_id == uuid4()).values(closed=True))
        del session
        while forgotten() is not None:  # another thread may be collecting, and then this one does not
            gc.collect()

    def open_a_second_storage(self, rng: random.Random) -> None:
        with DuckDBStorage(self.target, pool_size=2) as second:
            second.init_schema()
            second.write_logs(self._logs(rng, 10))
            second.query_fibers_by_type("type 1", 10)

    def call_from_tasks(self, rng: random.Random) -> None:
        asyncio.run(self._call_from_tasks(rng))

    async def _call_from_tasks(self, rng: random.Random) -> None:
        async def write_fiber(storage: AsyncDuckDBStorage) -> None:
            logs = self._logs(rng, 5)
            async with storage.transaction() as transaction:
                await transaction.logs.write_logs(logs)
                await transaction.fibers.write_fiber(self._fiber(rng, logs))

        async with AsyncDuckDBStorage(self.target, pool_size=2) as storage:
            tasks = [asyncio.ensure_future(write_fiber(storage)) for _ in range(6)]
            tasks += [asyncio.ensure_future(self._read(storage, self._some_fiber(rng))) for _ in range(6)]
            await tasks[0]
            for task in rng.sample(tasks, 4):
                task.cancel()
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(end, Exception):
                    raise end

    async def _read(self, storage: AsyncDuckDBStorage, fiber: FiberRecord) -> None:
        await storage.get_fiber(fiber.fiber_id)
        await storage.get_fiber_logs(fiber.fiber_id)

    def checkpoint(self, _rng: random.Random) -> None:
        with (
            suppress(OperationalError),
            self.storage.engine.connect() as connection,
        ):  # others may change rows
            connection.exec_driver_sql("CHECKPOINT")

    def delete_old_rows(self, _rng: random.Random) -> None:
        """Delete what is older than the newest ``LIVE_LOGS`` logs, again while it conflicts."""
        oldest = self._time(self._now - LIVE_LOGS)
        is_old = RawLog.timestamp < oldest
        while True:
            try:
                with self.storage.session() as session, session.begin():
                    log_ids = sa.select(RawLog.log_id).where(is_old)
                    session.execute(sa.delete(Membership).where(Membership.log_id.in_(log_ids)))
                    session.execute(sa.delete(RawLog).where(is_old))
                    session.execute(sa.delete(Fiber).where(Fiber.last_activity < oldest))
                return
            except OperationalError:
                continue


def run(path: Path, seconds: float, rounds: int, seed: int, say: Callable[[str], object]) -> list[Sample]:
    """Put load on a new store.

    Args:
        path: Where the store file is made.
        seconds: How long.
        rounds: In how many rounds; there is a sample after each.
        seed: Of the chances. What the threads do at once differs all the same.
        say: Is given the figures of the start, the middle and the end.
    """
    begin = time.monotonic()
    samples = []
    with closing(MixedLoad(path)) as load:
        for number in range(rounds):
            load.run_round(seconds / rounds, seed + number)
            samples.append(load.sample(time.monotonic() - begin))
            if number in (0, rounds // 3, rounds // 2, rounds - 1):
                say(str(samples[-1]))
        say(", ".join(f"{count} {name}" for name, count in load.done.most_common()))
    return samples


def main() -> None:
    """Run from the command line; the exit code is 1 if something grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--all", action="store_true", help="print every sample")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    say(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store.duckdb")
        samples = run(path, arguments.minutes * 60, ROUNDS, arguments.seed, say)
    if arguments.all:
        say("\n".join(map(str, samples)))
    found = growth(samples)
    say("\n".join(found) or "all stayed level")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

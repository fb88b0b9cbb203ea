"""Programs for test_disk.py: each runs in a process of its own, which may be killed or crash."""

import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pyarrow.compute  # noqa: F401  # now: who becomes nobody may not be able to read it later

from fiberstore import DuckDBStorage, FiberMembership, LogRecord, StorageError
from tests.support.factories import NOON, a_fiber

LOGS, FIBERS = 100, 10
TRIAL_TIMEOUT_S = 60
NOBODY = 65534


def say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def logs(batch: int, count: int = LOGS, length: int = 100) -> list[LogRecord]:
    return [
        LogRecord(
            log_id=UUID(int=batch * 1_000_000 + number),
            timestamp=NOON + timedelta(seconds=batch),
            source_id="api",
            raw_text=os.urandom(length // 2).hex(),
        )
        for number in range(count)
    ]


def fill(path: str) -> None:
    """Two batches in the file and one in the log; then die."""
    for batch in range(3):
        storage = DuckDBStorage(path)
        storage.init_schema()
        written = logs(batch)
        storage.write_logs(written)
        fibers = [a_fiber(fiber_id=UUID(int=batch * FIBERS + number)) for number in range(FIBERS)]
        for fiber in fibers:
            storage.write_fiber(fiber)
        storage.write_memberships(
            FiberMembership(log_id=log.log_id, fiber_id=fibers[number % FIBERS].fiber_id, config_version=1)
            for number, log in enumerate(written)
        )
        if batch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        storage.close()


def read_all(storage: DuckDBStorage) -> list[object]:
    """Return the rows of a scan, and those of every read by key."""
    day = timedelta(days=1)
    found = storage.query_logs_by_time(NOON - day, NOON + day, limit=10_000)
    rows: list[object] = [log.model_dump_json() for log in found]
    rows += [fiber.model_dump_json() for fiber in storage.query_fibers_by_type("request", limit=10_000)]
    for batch in range(3):
        for number in range(LOGS):
            log_id = UUID(int=batch * 1_000_000 + number)
            log = storage.get_log(log_id)
            rows += [log and log.model_dump_json(), str(storage.get_log_fibers(log_id))]
        for number in range(FIBERS):
            fiber_id = UUID(int=batch * FIBERS + number)
            fiber = storage.get_fiber(fiber_id)
            rows.append(fiber and fiber.model_dump_json())
            rows.append([log.model_dump_json() for log in storage.get_fiber_logs(fiber_id)])
    return rows


def read(path: str) -> dict[str, str]:
    stage = "open"
    try:
        with DuckDBStorage(path) as storage:
            stage = "read"
            storage.init_schema()
            rows = read_all(storage)
    except StorageError as error:
        return {"stage": stage, "error": type(error).__name__, "text": str(error)}
    return {"stage": "done", "rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}


def trials() -> None:
    """For each path on stdin read all of it in a child, and print what came of it."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.alarm(TRIAL_TIMEOUT_S)
            say(read(line.rstrip("\n")))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            say({"stage": "died", "error": f"status {status}"})


def write_until_full(path: str, limit_bytes: str, threshold: str, threads: str, end: str) -> None:
    """Write batches until calls have failed, and print which were acknowledged and which raised what."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.alarm(TRIAL_TIMEOUT_S)
    storage = DuckDBStorage(f"duckdb:///{path}?checkpoint_threshold={threshold}")
    storage.init_schema()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes), unlimited[1]))
    result: dict[str, object] = {}

    def write(thread: int) -> tuple[list[int], dict[int, list[str]]]:
        acknowledged, raised = [], {}
        for batch in range(thread * 1000, thread * 1000 + 500):
            try:
                storage.write_logs(logs(batch, 50, 400))
                acknowledged.append(batch)
            except StorageError as error:
                raised[batch] = [type(error).__name__, str(error)]
                if len(raised) == 3:
                    break
        return acknowledged, raised

    with ThreadPoolExecutor(int(threads)) as pool:
        answers = list(pool.map(write, range(int(threads))))
    result["acknowledged"] = [batch for acknowledged, _ in answers for batch in acknowledged]
    result["raised"] = {batch: error for _, raised in answers for batch, error in raised.items()}
    try:
        result["read"] = len(storage.query_logs_by_time(NOON, NOON + timedelta(days=1), limit=1_000_000))
    except StorageError as error:
        result["read"] = str(error)
    if end == "reopen":
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        storage.close()
        with DuckDBStorage(path) as storage:
            result["written after"] = storage.write_logs(logs(999_999, 1))
    say(result)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    storage.close()


def create_in(path: str, limit_bytes: str) -> None:
    """Create a storage where files cannot become that long; print the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes), resource.RLIM_INFINITY))
    say(_error_of(lambda: DuckDBStorage(path).init_schema()))


def as_nobody(path: str) -> None:
    """Open, read and write as somebody who may not write the folder; print what each raised."""
    from fiberstore.sql import bulk, migrate  # noqa: F401  # nobody may not be able to read the library

    DuckDBStorage(":memory:").init_schema()
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    signal.alarm(TRIAL_TIMEOUT_S)
    answers: dict[str, object] = {}
    answers["create"] = _error_of(lambda: DuckDBStorage(f"{path}.new"))

    def write() -> None:
        with DuckDBStorage(path) as storage:
            answers["read"] = _error_of(lambda: read_all(storage))
            storage.write_logs(logs(5))

    def open_read_only() -> None:
        with DuckDBStorage(path, read_only=True) as storage:
            answers["rows"] = len(storage.query_logs_by_time(NOON, NOON + timedelta(days=1)))

    answers["write"] = _error_of(write)
    answers["read only"] = _error_of(open_read_only)
    say(answers)


def write_and_checkpoint(path: str, first: str) -> None:
    """Write from three threads while a fourth checkpoints, until killed; print each acknowledged batch."""
    import sqlalchemy as sa

    storage = DuckDBStorage(f"duckdb:///{path}?checkpoint_threshold=200KB")
    storage.init_schema()

    def write(thread: int) -> None:
        for batch in range(int(first) + thread, int(first) + 10_000, 3):
            storage.write_logs(logs(batch, 7))
            os.write(1, f"{batch}\n".encode())

    def checkpoint() -> None:
        while True:
            with storage.engine.connect() as connection:
                connection.execute(sa.text("CHECKPOINT"))

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write, thread) for thread in range(3)] + [pool.submit(checkpoint)]
        for task in running:
            task.result()


def _error_of(work: Callable[[], object]) -> list[str] | None:
    try:
        work()
    except StorageError as error:
        return [type(error).__name__, str(error)]
    return None


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {
        program.__name__: program
        for program in (fill, trials, write_until_full, create_in, as_nobody, write_and_checkpoint)
    }
    programs[sys.argv[1]](*sys.argv[2:])

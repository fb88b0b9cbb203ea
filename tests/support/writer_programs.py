"""Programs for test_writer.py: each runs in a process of its own, which may be killed or just end."""

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import cast

import fiberstore.writer.threaded
from fiberstore import BufferedWriter, DuckDBStorage, StorageError, UnwrittenError
from fiberstore.testing.examples import fiber, log, uid
from fiberstore.writer.buffer import BufferedRecord

TIMEOUT_S = 60


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def opened(path: str, query: str = "") -> DuckDBStorage:
    storage = DuckDBStorage(f"duckdb:///{path}{query}")
    storage.init_schema()
    return storage


def write_until_killed(path: str) -> None:
    """Print the number of each record that is durable, from four threads, while they write more."""
    writer = BufferedWriter(opened(path), flush_interval_s=0.01, flush_rows=50, buffer_bytes=1 << 20)

    def durable(number: int) -> Callable[[Future[None]], None]:
        return lambda future: say(number) if future.exception() is None else None

    def write(thread: int) -> None:
        for number in range(thread, 10_000_000, 4):
            writer.write(log(number)).add_done_callback(durable(number))

    for thread in range(4):
        threading.Thread(target=write, args=(thread,)).start()


def fill_disk(path: str) -> None:
    """Write where the file cannot grow, until it fails; then print what a second storage has after all."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    storage = opened(path, "?checkpoint_threshold=1GB")
    limit_bytes, unlimited = 2_000_000, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, unlimited[1]))
    writer = BufferedWriter(storage, flush_rows=100)
    futures = [writer.write(log(number, text=os.urandom(500).hex())) for number in range(5_000)]
    while True:
        try:
            writer.flush(timeout_s=1)
        except TimeoutError:
            continue
        except StorageError as error:
            say("flush", type(error).__name__)
            break
    try:
        writer.close(timeout_s=0)
    except UnwrittenError as error:
        left = error.records
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    durable = sum(future.exception(TIMEOUT_S) is None for future in futures)
    in_order = [cast("object", record) for record in left] == sorted(left, key=_number)
    say("left", len(left) + durable, in_order, 0 < len(left) < 5_000)
    storage.close()
    with opened(path) as again, BufferedWriter(again) as other:
        say("before", again.logs.count() - durable)
        for record in left:
            other.write(record)
        other.flush()
        say("after", again.logs.count())


def _number(record: BufferedRecord) -> int:
    return getattr(record, "log_id", uid(0)).int


def end_without_close(path: str) -> None:
    writer = BufferedWriter(opened(path), flush_interval_s=1_000)
    writer.write(log(1))
    writer.write(log(2))


def end_without_storage(path: str) -> None:
    fiberstore.writer.threaded._EXIT_TIMEOUT_S = 0.0
    storage = opened(path)
    writer = BufferedWriter(storage, flush_interval_s=1_000)
    writer.write(log(1, text="secret"))
    storage.close()


def fork(path: str) -> None:
    storage = opened(path)
    with BufferedWriter(storage, flush_interval_s=1_000) as writer:
        future = writer.write(log(1))
        calls: list[Callable[[], object]] = [lambda: writer.write(log(2)), writer.flush]
        with writer._lock:  # as the thread may hold it at any time
            child = os.fork()
        if child == 0:
            for call in calls:
                try:
                    call()
                except StorageError as error:
                    say(type(error).__name__, error)
            sys.exit(0)  # to close the writer is the parent's affair
        _, status = os.waitpid(child, 0)
        say("status", status)
        writer.flush(TIMEOUT_S)
        say("durable", future.done(), storage.logs.count())


def interrupt(path: str) -> None:
    """Press Ctrl-C while the main thread waits for room, for a flush, and for the end."""
    storage = opened(path)
    writer = BufferedWriter(storage, flush_rows=1, buffer_bytes=1)
    holder = storage.transaction()
    holder.__enter__()  # what the writer changes waits for it
    writer.write(fiber(1))
    waits: list[tuple[str, Callable[[], object]]] = [
        ("write", lambda: writer.write(fiber(2))),
        ("flush", writer.flush),
        ("close", writer.close),
    ]
    for name, wait in waits:
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            wait()
        except KeyboardInterrupt:
            say(name, "interrupted")
        if name == "flush":
            holder.__exit__(None, None, None)
            writer.write(fiber(3)).result(TIMEOUT_S)
            holder = storage.transaction()
            holder.__enter__()
            writer.write(fiber(4))
    holder.__exit__(None, None, None)
    writer.close()
    say(*(row.fiber_id.int for row in storage.fibers.iter_records()))


if __name__ == "__main__":
    signal.alarm(100)
    programs = {
        program.__name__: program
        for program in (
            write_until_killed,
            fill_disk,
            end_without_close,
            end_without_storage,
            fork,
            interrupt,
        )
    }
    programs[sys.argv[1]](*sys.argv[2:])

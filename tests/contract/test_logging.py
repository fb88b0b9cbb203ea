"""``fiberstore.logging.Handler``: what is logged is stored, and nothing is lost without a word."""

import asyncio
import gc
import logging
import logging.config
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fiberstore import (
    AsyncBufferedWriter,
    AsyncDuckDBStorage,
    BufferedWriter,
    BufferFullError,
    DuckDBStorage,
    Fibers,
    LogRecord,
)
from fiberstore.ingest import parse_rules
from fiberstore.ingest.storage import CorrelatingStorage
from fiberstore.logging import Handler
from fiberstore.testing.examples import fiber, log
from fiberstore.writer.buffer import RECORD_BYTES

TIMEOUT_S = 60


class Sink:
    """Takes logs, as a correlator does; its gate holds the writer's thread up, and it fails as it is told."""

    def __init__(self) -> None:
        self.logs: list[LogRecord] = []
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.error: Exception | None = None

    def write(self, logs: list[LogRecord], /) -> None:
        self.arrived.release()
        assert self.gate.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        self.logs.extend(logs)

    @property
    def texts(self) -> list[str]:
        return [log.raw_text for log in self.logs]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("shop.cart")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield logger
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def sink() -> Sink:
    return Sink()


def small(sink: Sink, records: int) -> BufferedWriter:
    """Return a writer with room for so many records, each in a batch of its own."""
    return BufferedWriter(sink, flush_rows=1, buffer_bytes=records * (RECORD_BYTES + 500))


def full(sink: Sink, logger: logging.Logger, handler: Handler) -> None:
    """Fill the room of three records while the sink lets none through."""
    logger.addHandler(handler)
    sink.gate.clear()
    for number in range(3):
        logger.info("kept %d", number)
    assert sink.arrived.acquire(timeout=TIMEOUT_S)


def test_records_are_stored_as_they_are_formatted(storage: DuckDBStorage, logger: logging.Logger) -> None:
    with closing(Handler(storage)) as handler:
        logger.addHandler(handler)
        logger.info("GET %s %d", "/cart", 200)
        logger.debug("below the level")
        try:
            raise KeyError("17")
        except KeyError:
            logger.exception("cart is gone")
        handler.flush()
        first, second = storage.logs.page().items
        assert (first.source_id, first.raw_text) == ("shop.cart", "INFO shop.cart: GET /cart 200")
        assert second.raw_text.startswith("ERROR shop.cart: cart is gone\nTraceback (most recent call last)")
        assert second.raw_text.endswith("KeyError: '17'")
    assert (handler.dropped, handler.skipped, handler.unwritten) == (0, 0, [])


def test_records_keep_their_time_and_order(sink: Sink, logger: logging.Logger) -> None:
    with closing(Handler(sink, source_id="api")) as handler:
        handler.setFormatter(logging.Formatter("%(message)s user=%(user)s", defaults={"user": "-"}))
        for number in range(3):
            values = {"created": 1_700_000_000.25, "name": "x", "msg": number, "user": "ann"}
            handler.handle(logging.makeLogRecord(values))
    assert sink.texts == ["0 user=ann", "1 user=ann", "2 user=ann"]
    assert {row.timestamp for row in sink.logs} == {datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC)}
    assert {row.source_id for row in sink.logs} == {"api"}
    assert sorted(sink.logs, key=lambda row: row.log_id) == sink.logs
    assert [LogRecord(**dict(row)) for row in sink.logs] == sink.logs


def test_odd_text_is_escaped(storage: DuckDBStorage, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(Handler(storage)) as handler:
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.handle(logging.makeLogRecord({"name": "shop", "msg": "a\0b \ud800 é\n\x1b[31m"}))
        values = {"name": "shop.cart", "levelname": "INFO", "msg": "%d of %s", "args": ("no number",)}
        handler.handle(logging.makeLogRecord(values))
        handler.handle(logging.makeLogRecord({"name": "n\0\udc80", "msg": "named"}))
        handler.handle(logging.makeLogRecord({"created": float("nan"), "msg": "at no time"}))
    assert {
        row.source_id: row.raw_text for row in storage.logs.iter_records() if row.raw_text == "named"
    } == {"n\\x00\\udc80": "named"}
    texts = {row.raw_text for row in storage.logs.iter_records()}
    assert texts == {
        "a\\x00b \\ud800 é\n\x1b[31m",
        "INFO shop.cart: '%d of %s' ('no number',)",
        "named",
    }
    assert handler.dropped == 1  # the record without a time
    assert capsys.readouterr().err.count("--- Logging error ---") == 2


def test_filters_decide_what_is_stored(sink: Sink, logger: logging.Logger) -> None:
    with closing(Handler(sink)) as handler:
        logger.addHandler(handler)
        handler.addFilter(lambda record: record.levelno >= logging.WARNING)
        handler.setLevel(logging.ERROR)
        logger.warning("below the level of the handler")
        handler.setLevel(logging.NOTSET)
        logger.info("not let through")
        logger.error("let through")
    assert sink.texts == ["ERROR shop.cart: let through"]


def test_callers_wait_no_longer_than_was_chosen(
    sink: Sink, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    lost: list[str] = []
    with closing(
        Handler(
            small(sink, 3), max_wait_s=0, on_unwritten=lambda logs: lost.extend(log.raw_text for log in logs)
        )
    ) as handler:
        handler.setFormatter(logging.Formatter("%(message)s"))
        full(sink, logger, handler)
        for number in range(3):
            logger.info("lost %d", number)
        sink.gate.set()
        handler.flush()
        logger.info("kept at last")
    assert lost == ["lost 0", "lost 1", "lost 2"]
    assert handler.dropped == 3
    assert sink.texts == ["kept 0", "kept 1", "kept 2", "kept at last"]
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("fiberstore.logging: records are dropped from now on: BufferFullError: ")
    assert told[1:] == ["fiberstore.logging: records dropped: 3"]


def test_callers_wait_as_long_as_was_chosen(sink: Sink, logger: logging.Logger) -> None:
    with closing(Handler(small(sink, 3), max_wait_s=TIMEOUT_S)) as handler:
        full(sink, logger, handler)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(logger.info, "waits")
            sink.gate.set()
            waiting.result(TIMEOUT_S)
    assert handler.dropped == 0
    assert len(sink.logs) == 4


def test_a_writer_that_drops_is_told_of_too(
    sink: Sink, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = BufferedWriter(sink, flush_rows=1, buffer_bytes=3 * (RECORD_BYTES + 500), when_full="drop")
    with closing(Handler(writer)) as handler:
        full(sink, logger, handler)
        logger.info("lost")
        sink.gate.set()
    assert (handler.dropped, writer.dropped, len(sink.logs)) == (1, 1, 3)
    assert "records are dropped" in capsys.readouterr().err


def test_what_the_writing_itself_logs_is_not_stored(
    storage: DuckDBStorage, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Handler(storage)) as handler:
        logger.addHandler(handler)
        storage.engine.echo = True
        statements = logging.getLogger("sqlalchemy.engine")
        statements.addHandler(handler)
        try:
            storage.on_call(lambda _call: logger.warning("in the writer's thread"))
            for number in range(3):
                logger.info("record %d", number)
                handler.flush()
        finally:
            storage.engine.echo = False
            statements.removeHandler(handler)
        assert storage.logs.count() == 3
    assert handler.skipped >= 3
    assert capsys.readouterr().err.count("in the writer's thread") >= 3


def test_code_that_runs_anywhere_may_log(sink: Sink, logger: logging.Logger) -> None:
    rest = 500

    def collected(phase: str, _info: dict[str, int]) -> None:
        nonlocal rest
        if phase == "stop" and rest:  # or each record would cause another
            rest -= 1
            logger.info("collected")

    threshold = gc.get_threshold()
    with closing(Handler(BufferedWriter(sink, flush_rows=50), max_wait_s=TIMEOUT_S)) as handler:
        logger.addHandler(handler)
        gc.callbacks.append(collected)
        gc.set_threshold(1)
        try:
            while rest:
                logger.info("record")
            handler.flush()
        finally:
            gc.set_threshold(*threshold)
            gc.callbacks.remove(collected)
    assert handler.dropped == 0
    # In the writer's thread, too, where nothing that is logged is stored.
    assert sum(text.endswith(": collected") for text in sink.texts) + handler.skipped == 500


def test_threads_log_at_once(storage: DuckDBStorage, logger: logging.Logger) -> None:
    with closing(Handler(BufferedWriter(storage, flush_rows=40))) as handler:
        logger.addHandler(handler)

        def produce(number: int) -> None:
            for n in range(50):
                logger.info("%d %d", number, n)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(produce, range(4)))
    texts = [row.raw_text for row in storage.logs.iter_records()]
    assert sorted(texts) == sorted(f"INFO shop.cart: {number} {n}" for number in range(4) for n in range(50))


def test_records_of_a_store_that_is_gone_are_handed_back(
    storage: DuckDBStorage, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    back: list[LogRecord] = []
    handler = Handler(BufferedWriter(storage, flush_interval_s=1_000), on_unwritten=back.extend)
    logger.addHandler(handler)
    for number in range(3):
        logger.info("record %d", number)
    storage.close()
    handler.close()
    logger.info("too late")
    handler.close()
    assert [row.raw_text[-8:] for row in handler.unwritten] == ["record 0", "record 1", "record 2"]
    assert back[:-1] == handler.unwritten
    assert back[-1].raw_text == "INFO shop.cart: too late"
    told = capsys.readouterr().err
    assert "records not stored: 3 (StorageClosedError: the storage is closed)" in told
    assert "records are dropped from now on: DatabaseError: the writer is closed" in told


def test_what_is_handed_back_may_be_logged(
    sink: Sink, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    def hand_back(logs: list[LogRecord]) -> None:
        logger.info("handed back %d", len(logs))
        raise OSError("the file of last resort is gone")

    with closing(Handler(small(sink, 3), max_wait_s=0, on_unwritten=hand_back)) as handler:
        full(sink, logger, handler)
        logger.info("lost")
        sink.gate.set()
    assert handler.dropped == 2
    assert "on_unwritten has failed" in capsys.readouterr().err


def test_a_new_configuration_closes_the_handler(sink: Sink, logger: logging.Logger) -> None:
    config: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(message)s"}},
        "handlers": {"store": {"class": "fiberstore.logging.Handler", "target": sink, "formatter": "plain"}},
        "loggers": {"shop.cart": {"handlers": ["store"], "propagate": False}},
    }
    logging.config.dictConfig(config)
    logger.info("to the first")
    sink.error = OSError("not now")
    logger.info("to the second")
    sink.error = None
    logging.config.dictConfig(config)
    logger.info("to the third")
    for handler in logger.handlers:
        handler.close()
    assert sink.texts == ["to the first", "to the second", "to the third"]


def test_arguments_of_the_handler_are_checked(sink: Sink) -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_wait_s must be"):
            Handler(sink, max_wait_s=wrong)


def test_targets_of_writers_are_checked(sink: Sink, db_file: Path) -> None:
    class AsyncSink:
        async def write(self, logs: list[LogRecord], /) -> None:
            """Not called: a writer with a thread refuses a coroutine."""

    with closing(DuckDBStorage(db_file)) as storage:
        targets: list[Any] = [None, "store.duckdb", AsyncSink(), AsyncDuckDBStorage]
        for target in targets:
            with pytest.raises(TypeError, match=r"LifecycleStorage or a method write\(logs\), got"):
                Handler(target)
        targets = [None, sink, storage]
        for target in targets:
            with pytest.raises(TypeError, match="AsyncLifecycleStorage or an asynchronous method"):
                AsyncBufferedWriter(target)


def test_a_writer_to_what_finds_fibers_takes_logs_only(sink: Sink) -> None:
    with BufferedWriter(sink) as writer:
        done = writer.write(log(1))
        with pytest.raises(TypeError, match="expected a LogRecord, as the fibers are found by rules"):
            writer.write(fiber(1))
        writer.flush()
        done.result(TIMEOUT_S)
    assert sink.logs == [log(1)]


def test_a_writer_waits_for_room_as_long_as_it_is_told(sink: Sink) -> None:
    with small(sink, 2) as writer:
        sink.gate.clear()
        writer.write(log(1))
        writer.write(log(2))
        with pytest.raises(BufferFullError):
            writer.write(log(3), timeout_s=0)
        sink.gate.set()
        writer.write(log(4), timeout_s=TIMEOUT_S)
    assert sink.logs == [log(1), log(2), log(4)]
    assert writer.dropped == 0


PROGRAM = """
    import logging, os, sys
    from fiberstore import open_storage
    from fiberstore.logging import Handler

    storage = open_storage(sys.argv[1])
    storage.init_schema()
    logging.getLogger().addHandler(Handler(storage))
    logging.warning("in the parent")
"""
FORK = """
    child = os.fork()
    if not child:
        logging.warning("in the child")
        logging.shutdown()
        os._exit(0)
    os.waitpid(child, 0)
    logging.warning("after the child")
"""


def run(program: str, db_file: Path) -> tuple[list[str], str]:
    command = [sys.executable, "-c", textwrap.dedent(program), str(db_file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    with DuckDBStorage(db_file, read_only=True) as storage:
        return [row.raw_text for row in storage.logs.iter_records()], ended.stderr


@pytest.mark.slow
def test_records_are_stored_when_the_program_ends(store_file: Path) -> None:
    texts, told = run(PROGRAM, store_file)
    assert texts == ["WARNING root: in the parent"]
    assert "fiberstore.logging" not in told


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_records_of_a_forked_child_are_told_of(store_file: Path) -> None:
    texts, told = run(textwrap.dedent(PROGRAM) + textwrap.dedent(FORK), store_file)
    assert texts == ["WARNING root: in the parent", "WARNING root: after the child"]
    assert "the writer belongs to the parent process" in told
    assert "records dropped: 1" in told


RULES = """
[fibers.request]
max_gap = "60s"
[[fibers.request.patterns]]
regex = 'request=(?P<request>\\w+)'
"""


def test_records_find_their_fibers_at_once(any_storage: CorrelatingStorage, logger: logging.Logger) -> None:
    writer = BufferedWriter(any_storage.correlate(parse_rules(RULES)), flush_rows=5)
    with closing(Handler(writer, max_wait_s=TIMEOUT_S)) as handler:
        logger.addHandler(handler)
        for number in range(20):
            logger.info("step of request=r%d", number % 2)
        handler.flush()
        for name in ("r0", "r1"):
            (found,) = any_storage.fibers.where(Fibers.c.keys["request"] == name).page().items
            assert len(any_storage.get_fiber_logs(found.fiber_id)) == 10


def test_an_async_writer_finds_fibers_at_once(db_file: Path) -> None:
    async def write() -> None:
        async with AsyncDuckDBStorage(db_file) as storage:
            await storage.init_schema()
            async with AsyncBufferedWriter(storage.correlate(parse_rules(RULES))) as writer:
                await writer.write(log(1, text="request=r1"))
                with pytest.raises(TypeError, match="expected a LogRecord"):
                    await writer.write(fiber(1))
            assert await storage.fibers.where(Fibers.c.keys["request"] == "r1").count() == 1

    asyncio.run(write())

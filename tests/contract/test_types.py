"""Types of both faces, as type checkers see them.

The gate's mypy reads this file, too: there, ``assert_type`` tells what it infers, and it complains of each
``type: ignore`` that ignores nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta
from typing import assert_type

import pyarrow as pa
import pytest

from fiberstore import AsyncDuckDBStorage, DuckDBStorage, FiberRecord, Logs, Page, StoredLog
from fiberstore.aio.queries import AsyncFibers, AsyncLogs
from fiberstore.aio.streams import AsyncLogTail
from fiberstore.contract.results import Bucket, Found
from fiberstore.testing.examples import uid

MINUTE = timedelta(minutes=1)


def test_types_of_the_face_that_blocks() -> None:
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        assert_type(storage.get_log(uid(1)), StoredLog | None)
        assert_type(storage.logs.page(), Page[StoredLog])
        assert_type(storage.fibers.order_by("longest").page(), Page[FiberRecord])
        assert_type(storage.fibers.get_many([]), Found[FiberRecord])
        assert_type(storage.logs.histogram(MINUTE, by="source_id"), list[Bucket])
        assert_type(storage.logs.iter_records(), Iterator[StoredLog])
        with pytest.raises(ValueError, match="longset"):
            storage.fibers.order_by("longset")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="longest"):
            storage.logs.order_by("longest")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="fiber_type"):
            storage.logs.histogram(MINUTE, by="fiber_type")  # type: ignore[arg-type]


def test_types_of_the_face_in_coroutines() -> None:
    async def use() -> None:
        async with AsyncDuckDBStorage(":memory:") as storage:
            await storage.init_schema()
            assert_type(await storage.get_log(uid(1)), StoredLog | None)
            assert_type(storage.logs.where(Logs.c.source_id == "web"), AsyncLogs)
            assert_type(await storage.logs.page(), Page[StoredLog])
            assert_type(storage.fibers.order_by("longest"), AsyncFibers)
            assert_type(await storage.fibers.page(), Page[FiberRecord])
            assert_type(await storage.fibers.get_many([]), Found[FiberRecord])
            assert_type(await storage.logs.histogram(MINUTE, by="source_id"), list[Bucket])
            assert_type(storage.logs.iter_records(), AsyncGenerator[StoredLog, None])
            assert_type(storage.logs.to_arrow(), AsyncGenerator[pa.RecordBatch, None])
            assert_type(await storage.logs.tail(timeout_s=0), AsyncLogTail)
            async with storage.transaction() as transaction:
                assert_type(await transaction.logs.count(), int)
            with pytest.raises(ValueError, match="longset"):
                storage.fibers.order_by("longset")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="fiber_type"):
                await storage.logs.histogram(MINUTE, by="fiber_type")  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="log_id"):
                await storage.get_log()  # type: ignore[call-arg]

    asyncio.run(use())

"""The threads behind the async face, where a cancellation meets a thread that comes free."""

import asyncio
import threading
from pathlib import Path

import pytest

from fiberstore import AsyncDuckDBStorage
from fiberstore.aio.workers import Worker
from fiberstore.telemetry import Call
from fiberstore.testing.examples import log
from tests.support.parameters import parametrize_mostly_slow


@parametrize_mostly_slow("turns", range(5), quick=2)
def test_a_cancellation_is_not_lost_when_a_thread_comes_free(
    db_file: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    async def run() -> None:
        async with AsyncDuckDBStorage(db_file, pool_size=1) as store:
            await store.init_schema()
            await store.write_logs([log(number) for number in range(5_000)])
            stream = store.logs.iter_records()
            await anext(stream)  # holds the only thread
            waiting = asyncio.create_task(store.logs.count())
            await asyncio.sleep(0)
            idle = store._workers._idle
            give_back = idle.put_nowait

            def cancel_after(rest: int) -> None:
                if rest:
                    asyncio.get_running_loop().call_soon(cancel_after, rest - 1)
                else:
                    waiting.cancel()

            def give_back_and_cancel(worker: Worker | None) -> None:
                give_back(worker)
                cancel_after(turns)

            with monkeypatch.context() as patch:
                patch.setattr(idle, "put_nowait", give_back_and_cancel)
                await stream.aclose()
                await asyncio.wait([waiting], timeout=30)
            assert waiting.cancelled() or not waiting.cancelling()
            assert await store.logs.count() == 5_000

    asyncio.run(run())


def test_a_call_that_outlives_its_loop_ends_quietly(db_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun, may_end = threading.Event(), threading.Event()
    storage = AsyncDuckDBStorage(db_file, pool_size=1)

    def on_call(_call: Call) -> None:
        begun.set()
        may_end.wait()

    async def run() -> asyncio.Task[None]:
        storage.on_call(on_call)
        task = asyncio.ensure_future(storage.init_schema())
        await asyncio.to_thread(begun.wait)
        return task

    assert asyncio.run(run()).cancelled()
    may_end.set()
    storage._workers._workers[0].stop()
    storage._wrapped.close()
    assert caplog.records == []

"""Single records through a ``BufferedWriter``, which works on any storage."""

from concurrent.futures import wait

import pytest

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.errors import BufferFullError
from fiberstore.testing.concurrency import together
from fiberstore.testing.examples import all_logs, fiber, log, member, uid
from fiberstore.writer.threaded import BufferedWriter

NEVER_S = 3_600.0
SOON_S = 30.0


class WritersContract:
    """Promises of the buffered writer."""

    def test_a_record_is_stored_when_its_future_is_done(self, storage: LifecycleStorage) -> None:
        with BufferedWriter(storage, flush_rows=3, flush_interval_s=NEVER_S) as writer:
            futures = [writer.write(record) for record in (log(1), fiber(2), member(1, 2))]
            assert not wait(futures, SOON_S).not_done
            assert storage.get_log(uid(1)) is not None
            assert storage.get_fiber(uid(2)) == fiber(2)
            assert storage.get_log_fibers(uid(1)) == [uid(2)]

    def test_records_that_are_few_are_stored_after_a_while(self, storage: LifecycleStorage) -> None:
        with BufferedWriter(storage, flush_interval_s=0.01) as writer:
            writer.write(log(1)).result(SOON_S)
            assert storage.logs.count() == 1

    def test_flush_waits_for_all_that_was_written(self, storage: LifecycleStorage) -> None:
        with BufferedWriter(storage, flush_interval_s=NEVER_S) as writer:
            futures = [writer.write(log(number)) for number in range(20)]
            assert storage.logs.count() == 0
            writer.flush(SOON_S)
            assert all(future.done() for future in futures)
            assert storage.logs.count() == 20

    def test_close_stores_the_rest(self, storage: LifecycleStorage) -> None:
        writer = BufferedWriter(storage, flush_interval_s=NEVER_S)
        future = writer.write(log(1))
        writer.close()
        assert future.done()
        assert storage.logs.count() == 1

    def test_the_last_of_several_states_of_a_fiber_is_stored(self, storage: LifecycleStorage) -> None:
        with BufferedWriter(storage, flush_interval_s=NEVER_S) as writer:
            futures = [writer.write(fiber(1, kind)) for kind in ("request", "login", "job")]
        assert all(future.done() for future in futures)
        assert storage.get_fiber(uid(1)) == fiber(1, "job")

    def test_a_bad_record_is_refused_and_spoils_no_other(self, storage: LifecycleStorage) -> None:
        with BufferedWriter(storage, flush_interval_s=NEVER_S) as writer:
            writer.write(log(1))
            with pytest.raises(ValueError, match="NUL"):
                writer.write(log(2).model_copy(update={"raw_text": "a\0b"}))
            writer.write(log(3))
        assert [row.log_id for row in all_logs(storage)] == [uid(1), uid(3)]

    def test_without_room_a_writer_raises_or_drops_as_it_was_told(self, storage: LifecycleStorage) -> None:
        with BufferedWriter(storage, flush_interval_s=NEVER_S, buffer_bytes=1, when_full="raise") as raising:
            raising.write(log(1))
            with pytest.raises(BufferFullError):
                raising.write(log(2))
        with BufferedWriter(storage, flush_interval_s=NEVER_S, buffer_bytes=1, when_full="drop") as dropping:
            dropping.write(log(3))
            dropped = dropping.write(log(4))
            assert isinstance(dropped.exception(), BufferFullError)
            assert dropping.dropped == 1
        assert [row.log_id for row in all_logs(storage)] == [uid(1), uid(3)]

    def test_many_threads_may_write_and_wait_for_room(self, storage: LifecycleStorage) -> None:
        with BufferedWriter(storage, flush_rows=7, buffer_bytes=20_000) as writer:

            def write(first: int) -> None:
                for number in range(first, first + 25):
                    writer.write(log(number))

            together([lambda first=first: write(first) for first in range(0, 100, 25)])  # type: ignore[misc]
        assert [row.log_id.int for row in all_logs(storage)] == list(range(100))

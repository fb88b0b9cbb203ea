"""Work that Ctrl-C does not tear: only the main thread gets ``KeyboardInterrupt``, and that at any point."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

T = TypeVar("T")
_ASK_AGAIN_S = 0.05


class Interruption:
    """Flag by which shielded work learns of Ctrl-C."""

    def __init__(self) -> None:
        self._requested = False
        self._stop: Callable[[], None] | None = None

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if the work is to end; for places where it can."""
        if self._requested:
            raise KeyboardInterrupt

    @contextmanager
    def calling(self, stop: Callable[[], None]) -> Iterator[None]:
        """Have ``stop`` called, again and again, while the block runs and the work is to end."""
        self._stop = stop
        try:
            self.check()
            yield
        finally:
            self._stop = None

    def request(self) -> None:
        """Ask the work to end."""
        self._requested = True
        stop = self._stop
        if stop is not None:
            stop()


_current: ContextVar[Interruption | None] = ContextVar("fiberstore_interruption", default=None)


def shielded(work: Callable[[Interruption], T]) -> T:
    """Run the work where no ``KeyboardInterrupt`` can tear it, and return its result.

    After Ctrl-C the work is asked to end, and ``KeyboardInterrupt`` is raised once it has.
    """
    if threading.current_thread() is not threading.main_thread():
        return work(_current.get() or Interruption())
    interruption, let_go, done = Interruption(), threading.Event(), threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        let_go.wait()
        try:
            _current.set(interruption)
            interruption.check()
            results.append(work(interruption))
        except BaseException as error:  # noqa: BLE001  # it is raised below
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=copy_context().run, args=(run,), name="fiberstore-shielded")
    try:
        thread.start()
        let_go.set()
        done.wait()
    except BaseException:
        interruption.request()
        if let_go.is_set():  # otherwise the thread may not be there, or finds nothing to do
            _wait(done, interruption)
        let_go.set()
        raise
    if errors:
        raise errors[0]
    return results[0]


def _wait(done: threading.Event, interruption: Interruption) -> None:
    while True:
        try:
            while not done.wait(_ASK_AGAIN_S):
                interruption.request()
        except KeyboardInterrupt:  # one is on its way already
            continue
        return

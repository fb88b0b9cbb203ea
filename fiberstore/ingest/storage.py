"""Storages that correlate logs as they store them."""

from collections.abc import Iterable

from fiberstore.aio.face import Face
from fiberstore.aio.storage import AsyncSqlStorage
from fiberstore.ingest.correlator import CorrelationCounts, Correlator
from fiberstore.ingest.rules import Rules
from fiberstore.records import LogRecord
from fiberstore.repositories.storage import SqlStorage


class CorrelatingStorage(SqlStorage):
    """A ``SqlStorage`` that correlates logs as it stores them."""

    def correlate(self, rules: Rules) -> Correlator:
        """Return an object that writes logs together with their fibers.

        Args:
            rules: Which logs belong together. Their sources need no files; ``parse_rules`` reads them from a
                text, ``load_rules`` from a file.

        Raises:
            TypeError: ``rules`` are no ``Rules``, but the path of a file, for example.
        """
        return Correlator(self, rules)


class AsyncCorrelator(Face, of=Correlator):
    """``Correlator`` in coroutines: any number of tasks may use one."""

    _wrapped: Correlator

    async def write(self, logs: Iterable[LogRecord]) -> CorrelationCounts:
        return await self._threads.run(self._wrapped.write, list(logs))


class AsyncCorrelatingStorage(AsyncSqlStorage):
    """A ``CorrelatingStorage`` in coroutines."""

    _wrapped: CorrelatingStorage

    def correlate(self, rules: Rules) -> AsyncCorrelator:
        """Return an object that writes logs together with their fibers; see ``CorrelatingStorage``."""
        return AsyncCorrelator(self._wrapped.correlate(rules), self._threads)

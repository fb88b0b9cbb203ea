"""Logs into a store together with their fibers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from fiberstore.contract.queries import Fibers
from fiberstore.ingest.correlate import correlate
from fiberstore.ingest.occurrences import Found, PatternSearch
from fiberstore.ingest.rules import Rules
from fiberstore.ingest.stored_fibers import StoredFibers
from fiberstore.ingest.sweep import Item, line_item
from fiberstore.records import EARLIEST_US, MICROSECOND, LogRecord, to_epoch_us
from fiberstore.repositories import LogRepository
from fiberstore.repositories.access import retried, uncollected
from fiberstore.repositories.storage import SqlStorage, Transaction
from fiberstore.sql.bulk import NewLog, checked, first_of_each, new_logs
from fiberstore.sql.correlation import FiberKind, joined_logs
from fiberstore.sql.translate import translate_errors


class Searched(NamedTuple):
    """Logs that have keys.

    Attributes:
        logs: The logs, each once.
        found: The occurrences of each.
    """

    logs: Sequence[NewLog]
    found: Sequence[Found]


@dataclass(frozen=True, slots=True)
class CorrelationCounts:
    """Rows that a batch of logs has brought.

    Attributes:
        logs_new: Logs that were not stored before.
        fibers_new: Fibers that began.
        memberships_new: Memberships that were not stored before.
    """

    logs_new: int = 0
    fibers_new: int = 0
    memberships_new: int = 0


class FiberJoiner:
    """Joins logs to the stored fibers of rules, within a transaction.

    Args:
        rules: Which logs belong together.

    Attributes:
        patterns: The search for their keys, which counts.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.patterns = PatternSearch(rules)
        self._uncounted = PatternSearch(rules)

    def search(self, logs: Sequence[NewLog]) -> Searched:
        """Find the keys of logs; of several of one id, of the first."""
        ids = [log_id for _, log_id, _, _ in logs]
        if len(set(ids)) < len(ids):
            logs = first_of_each(logs, ids)
        found = [self.patterns.find(source_id, raw_text) for _, _, source_id, raw_text in logs]
        if not all(found):
            logs = [log for log, occurrences in zip(logs, found, strict=True) if occurrences]
            found = [occurrences for occurrences in found if occurrences]
        return Searched(logs, found)

    def are_alike(self, log: NewLog, other: NewLog) -> bool:
        """Return True if fibers are the same with the one log as with the other."""
        find = self._uncounted.find
        return log[0] == other[0] and find(log[2], log[3]) == find(other[2], other[3])

    def join(
        self,
        transaction: Transaction,
        searched: Searched,
        *,
        renew: bool = False,
        complete: bool = False,
        gone: Sequence[NewLog] = (),
    ) -> CorrelationCounts:
        """Join logs to fibers, but for those that these rules have joined to one of its type.

        Args:
            transaction: Keeps others from changing fibers.
            searched: The logs with their keys.
            renew: Make the fibers anew that a release before has made of the logs.
            complete: Join also logs that may be in some of several fibers of a type.
            gone: Logs that were deleted; their fibers are made anew.
        """
        version = self._rules.config_version
        known = joined_logs(transaction.session, [log_id for _, log_id, _, _ in searched.logs], version)
        new: dict[str, list[Item]] = {name: [] for name in self._rules.fibers}
        old: dict[str, list[Item]] = {name: [] for name in self._rules.fibers}
        left: dict[str, list[Item]] = {name: [] for name in self._rules.fibers}
        for time_us, log_id, source_id, raw_text in gone:
            for name, occurrence in self._uncounted.find(source_id, raw_text):
                left[name].append(line_item(time_us, log_id, occurrence))
        now_us = to_epoch_us(datetime.now(UTC))
        log_time_us = EARLIEST_US
        for (time_us, log_id, _, _), found in zip(searched.logs, searched.found, strict=True):
            if log_time_us < time_us <= now_us:
                log_time_us = time_us
            for name, occurrence in found:
                is_known = bool(known) and (log_id, name) in known
                if is_known and complete:
                    is_known = [other for other, _ in found].count(name) == 1
                lines = old if is_known else new
                lines[name].append(line_item(time_us, log_id, occurrence))
        stores = {
            name: StoredFibers(
                transaction.session,
                FiberKind(name, version, None if rule.max_gap is None else rule.max_gap // MICROSECOND),
                self._uncounted,  # lines that are read again count once
            )
            for name, rule in self._rules.fibers.items()
        }
        log_time_us = max([log_time_us, *(store.latest_until(now_us) for store in stores.values())])
        fibers_new = memberships_new = 0
        for name, store in stores.items():
            if new[name] or left[name] or (renew and old[name]):
                changes = correlate(store, new[name], [*left[name], *(old[name] if renew else ())])
                begun, joined = store.write(changes, log_time_us)
                fibers_new += begun
                memberships_new += joined
            store.close_silent(log_time_us)
        return CorrelationCounts(0, fibers_new, memberships_new)

    def register(self, transaction: Transaction) -> None:
        """Register the rules, and let them become the active version if they are the first."""
        if self._rules.content is None:
            return
        transaction.versions.register(self._rules.content)
        others = transaction.fibers.where(Fibers.c.config_version != self._rules.config_version)
        if transaction.versions.active() is None and not others.count(at_most=1):
            transaction.versions.activate(self._rules.config_version)


class Correlator:
    """Writes logs and joins them to fibers by rules, as they come; ``storage.correlate(rules)`` makes one.

    The fibers depend on the stored logs and the rules alone, not on the order in which logs are written:
    ``docs/correlation.md`` defines them. So any number of threads may use one correlator, and any number of
    correlators and processes one store; nothing is kept in memory between two calls.

    What else the fibers depend on: a log that is deleted joins nothing any more. A fiber that was deleted is
    begun anew by the logs that come later. Fibers that were merged by hand stay one until a late log ends or
    begins a fiber among their lines. Whether a fiber is ``closed`` depends on the clock, as a time in the
    future closes none.

    Args:
        storage: Its schema is up to date.
        rules: Which logs belong together. They are registered with the first logs, and become the active
            version if none is, and no fibers of another are stored.

    Raises:
        TypeError: ``rules`` are no ``Rules``, but the path of a file, for example.
    """

    def __init__(self, storage: SqlStorage, rules: Rules) -> None:
        if not isinstance(rules, Rules):
            raise TypeError(f"expected Rules, got {rules!r:.200}; read them by load_rules or parse_rules")
        self._storage = storage
        self._config_version = rules.config_version
        self._joiner = FiberJoiner(rules)
        self._is_registered = False

    def write(self, logs: Iterable[LogRecord]) -> CorrelationCounts:
        """Store logs, their fibers, keys and memberships, all or none.

        A log that is stored already is not stored again, and one that these rules have joined to a fiber
        changes nothing.

        Args:
            logs: Of any sources and times. Their ``source_id`` is a name of the rules' sources; logs of
                others are searched for the patterns that name no source.

        Raises:
            TypeError: An item is not a ``LogRecord``.
            ConflictError: Others kept the store, or wrote the same logs, for too long.
            StorageError: The database failed.
        """
        batch = checked(list(logs), LogRecord)

        def store(transaction: Transaction) -> int:
            return LogRepository(transaction.session, config_version=self._config_version).write_logs(batch)

        return self._write(self._joiner.search(new_logs(batch)), store)

    def _write(
        self,
        searched: Searched,
        store: Callable[[Transaction], int],
        prepare: Callable[[Transaction], Sequence[NewLog]] | None = None,
    ) -> CorrelationCounts:
        """Store and join logs in a transaction, which ``prepare`` begins; all is repeated at a conflict.

        ``prepare`` returns logs that it has deleted, and whose fibers are to be made anew.
        """
        with uncollected():
            return retried("correlate", partial(self._write_once, searched, store, prepare))

    def _write_once(
        self,
        searched: Searched,
        store: Callable[[Transaction], int],
        prepare: Callable[[Transaction], Sequence[NewLog]] | None,
    ) -> CorrelationCounts:
        with self._storage.transaction() as transaction, translate_errors():
            gone = () if prepare is None else prepare(transaction)
            if not self._is_registered:
                self._joiner.register(transaction)
            counts = self._joiner.join(transaction, searched, gone=gone)
            logs_new = store(transaction)
        self._is_registered = True
        return replace(counts, logs_new=logs_new)

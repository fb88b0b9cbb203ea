"""Log files into a store: read, correlate, write, one transaction for each batch of lines."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fiberstore.contract.queries import Fibers
from fiberstore.ingest.correlate import Correlator
from fiberstore.ingest.reader import read_sources
from fiberstore.ingest.rules import Rules
from fiberstore.records import FiberKey, FiberRecord, LogRecord
from fiberstore.repositories import LogRepository
from fiberstore.repositories.storage import SqlStorage, Transaction

if TYPE_CHECKING:
    from uuid import UUID

DEFAULT_BATCH_ROWS = 10_000
_BATCH_CHARACTERS = 1 << 25


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Progress of an ingest.

    Attributes:
        logs_read: Records read from the files.
        logs_new: Those that were not stored before.
        fibers_new: Fibers that began.
        memberships_new: Memberships that were not stored before.
    """

    logs_read: int = 0
    logs_new: int = 0
    fibers_new: int = 0
    memberships_new: int = 0


def ingest(
    storage: SqlStorage,
    rules: Rules,
    *,
    batch_rows: int = DEFAULT_BATCH_ROWS,
    on_bytes: Callable[[int], None] | None = None,
    on_batch: Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Read all files of the rules into the store.

    Each batch is stored whole, with its logs, fibers and memberships, or not at all. Lines that these rules
    (by ``rules.config_version``) have put into a fiber before are skipped, and the fibers they left open are
    resumed. So reading files again adds nothing. A run that was killed and started again ends in the same
    state as one that was not. A file that has grown, or the next one of a rotated log, is added.

    The rules are registered with the first batch (see ``storage.versions``). Their version becomes the active
    one if none is, and no fibers of another are stored. So changed rules do not take over by themselves:
    their fibers stand beside the others until ``storage.versions.activate`` is called.

    Others may change the store meanwhile. A fiber that they delete, and that more lines join, is stored
    again, with these lines only; what joins one that they have merged goes to the survivor.

    One ingest at a time for each rules file: two would each begin the fibers anew.

    Args:
        storage: Where to; its schema is up to date.
        rules: What to read, and how to correlate it.
        batch_rows: Most records in one transaction, >= 1. Text counts too: 32 million characters end a batch.
        on_bytes: Called with the number of bytes read since its last call.
        on_batch: Called after each batch, when it is on disk.

    Returns:
        What was done in all.

    Raises:
        IngestError: A file cannot be read by its rules. Batches before that stay stored.
        StorageError: The store failed. Batches before that stay stored.
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
    with storage.transaction() as transaction:
        correlator = Correlator(rules, transaction.fibers.query_open(rules.config_version))
    report = IngestReport()
    for batch in _batches(read_sources(rules, on_bytes), batch_rows):
        report = _store(storage, rules, correlator, batch, report)
        if on_batch is not None:
            on_batch(report)
    if not report.logs_read:
        with storage.transaction() as transaction:
            _register(transaction, rules)
    return report


def _register(transaction: Transaction, rules: Rules) -> None:
    if rules.content is None:
        return
    transaction.versions.register(rules.content)
    others = transaction.fibers.where(Fibers.c.config_version != rules.config_version)
    if transaction.versions.active() is None and not others.count(at_most=1):
        transaction.versions.activate(rules.config_version)


def _store(
    storage: SqlStorage, rules: Rules, correlator: Correlator, batch: list[LogRecord], before: IngestReport
) -> IngestReport:
    with storage.transaction() as transaction:
        if not before.logs_read:
            _register(transaction, rules)
        logs = LogRepository(transaction.session, config_version=rules.config_version)
        fibers_new, memberships_new = join(transaction, rules, correlator, batch)
        return IngestReport(
            logs_read=before.logs_read + len(batch),
            logs_new=before.logs_new + logs.write_logs(batch),
            fibers_new=before.fibers_new + fibers_new,
            memberships_new=before.memberships_new + memberships_new,
        )


def join(
    transaction: Transaction, rules: Rules, correlator: Correlator, batch: Sequence[LogRecord]
) -> tuple[int, int]:
    """Put those logs into fibers that these rules have not put into one yet, and store the fibers.

    A fiber that others have deleted since is stored anew, for these logs; of one that they have made part of
    another, the logs go there.

    Returns:
        How many fibers, and how many memberships, are new.
    """
    known = transaction.memberships.joined((log.log_id for log in batch), rules.config_version)
    for log in batch:
        if log.log_id in known:
            correlator.skip(log)
        else:
            correlator.add(log)
    changes = correlator.drain()
    fibers = transaction.fibers
    fibers_new = fibers.write_fibers(changes.new)
    places: dict[UUID, UUID] = {}
    if fibers.update_fibers(changes.updated) < len(changes.updated):  # others have deleted or merged some
        places = fibers.resolve_fibers(fiber.fiber_id for fiber in changes.updated)
        fibers.write_fibers(changes.updated)
    fibers.write_keys(_keys([*changes.new, *changes.updated]))
    stored = fibers.resolve_fibers(changes.merged)
    fibers.merge_fibers({old: new for old, new in changes.merged.items() if stored.get(old) == old})
    memberships_new = transaction.memberships.write_memberships(changes.memberships)
    for fiber_id, place in places.items():  # one at a time, as a place may be among those that go on
        for survivor in fibers.resolve_fibers([place]).values():
            if survivor != fiber_id:
                fibers.merge_fibers({fiber_id: survivor})
    return fibers_new, memberships_new


def _keys(fibers: Iterable[FiberRecord]) -> Iterator[FiberKey]:
    """Yield the keys that the attributes of fibers are; where the use of each begins is not known."""
    for fiber in fibers:
        attributes = fiber.attributes if isinstance(fiber.attributes, dict) else {}
        for name, texts in attributes.items():
            for text in texts if isinstance(texts, list) else []:
                yield FiberKey(
                    fiber_id=fiber.fiber_id,
                    name=name,
                    value=str(text),
                    first_timestamp=fiber.first_activity,
                )


def _batches(logs: Iterable[LogRecord], batch_rows: int) -> Iterator[list[LogRecord]]:
    batch: list[LogRecord] = []
    characters = 0
    for log in logs:
        batch.append(log)
        characters += len(log.raw_text)
        if len(batch) >= batch_rows or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

"""Log files into a store: read, correlate, write, one transaction for each batch of lines."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fiberstore.ingest.correlator import Correlator
from fiberstore.ingest.reader import read_sources
from fiberstore.ingest.rules import Rules, require_files
from fiberstore.records import LogRecord
from fiberstore.repositories.storage import SqlStorage

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

    Each batch is stored whole, with its logs, fibers, keys and memberships, or not at all. Lines that these
    rules (by ``rules.config_version``) have put into a fiber before change nothing, so reading files again
    adds nothing. The fibers do not depend on the order in which files and runs bring the lines:
    ``Correlator`` says what else they depend on. A run that was killed and started again ends in the same
    state as one that was not. A file that has grown, the next one of a rotated log, and one of an earlier
    time are added.

    The rules are registered with the first batch (see ``storage.versions``). Their version becomes the active
    one if none is, and no fibers of another are stored. So changed rules do not take over by themselves:
    their fibers stand beside the others until ``storage.versions.activate`` is called.

    Args:
        storage: Where to; its schema is up to date.
        rules: What to read, and how to correlate it.
        batch_rows: Most records in one transaction, >= 1. Text counts too: 32 million characters end a batch.
        on_bytes: Called with the number of bytes read since its last call.
        on_batch: Called after each batch, when it is on disk.

    Returns:
        What was done in all.

    Raises:
        RulesError: The rules name no file for a source; nothing was read.
        IngestError: A file cannot be read by its rules. Batches before that stay stored.
        StorageError: The store failed. Batches before that stay stored.
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
    require_files(rules)
    correlator = Correlator(storage, rules)
    report = IngestReport()
    for batch in _batches(read_sources(rules, on_bytes), batch_rows):
        counts = correlator.write(batch)
        report = IngestReport(
            report.logs_read + len(batch),
            report.logs_new + counts.logs_new,
            report.fibers_new + counts.fibers_new,
            report.memberships_new + counts.memberships_new,
        )
        if on_batch is not None:
            on_batch(report)
    if not report.logs_read:
        correlator.write([])  # registers the rules
    return report


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

"""Log files into a store: read, correlate, write, one transaction for each batch of lines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from fiberstore.contract.queries import Fibers, Logs
from fiberstore.errors import CheckpointError
from fiberstore.ingest.correlator import CorrelationCounts, Correlator
from fiberstore.ingest.counts import SourceCounts
from fiberstore.ingest.known_files import KnownFiles, Tail, places_from_text, places_to_text
from fiberstore.ingest.occurrences import PatternSearch
from fiberstore.ingest.reader import IngestError, LogReader
from fiberstore.ingest.rules import Rules, Source, require_files
from fiberstore.records import EARLIEST_US, StoredLog, to_epoch_us
from fiberstore.repositories.access import uncollected
from fiberstore.repositories.storage import SqlStorage, Transaction
from fiberstore.repositories.versions import read_checkpoint
from fiberstore.sql.bulk import NewLog, insert_new_logs
from fiberstore.sql.correlation import forget_firsts

DEFAULT_BATCH_ROWS = 20_000
_BATCH_CHARACTERS = 1 << 25


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Progress of an ingest.

    Attributes:
        logs_read: Records read from the files.
        logs_new: Those that were not stored before.
        fibers_new: Fibers that began.
        memberships_new: Memberships that were not stored before.
        sources: What became of the lines of each source.
        matches: Matches of each pattern, by fiber type, in the lines that were read.
    """

    logs_read: int = 0
    logs_new: int = 0
    fibers_new: int = 0
    memberships_new: int = 0
    sources: Mapping[str, SourceCounts] = field(default_factory=dict, compare=False)
    matches: Mapping[str, Sequence[int]] = field(default_factory=dict, compare=False)

    def warnings(self, rules: Rules) -> list[str]:
        """Return sentences on what the rules may have got wrong, and on lines that were left out."""
        found = [
            text
            for name, counts in self.sources.items()
            for text in _source_warnings(name, rules.sources[name], counts)
        ]
        if self.logs_read:
            found += self._pattern_warnings(rules)
        if not rules.fibers:
            found.append("the rules have no fiber type, so no line joins another: add [fibers.NAME] to them")
        return found

    def _pattern_warnings(self, rules: Rules) -> Iterator[str]:
        for name, fiber_type in rules.fibers.items():
            for pattern, matches in zip(fiber_type.patterns, self.matches.get(name, ()), strict=False):
                read = [
                    name
                    for name, counts in self.sources.items()
                    if counts.records and not counts.continued and pattern.reads(name)
                ]
                if read and not matches:
                    sources = ", ".join(read)
                    yield (
                        f"pattern '{pattern.regex.pattern}' of fibers.{name} matched no line of {sources}; "
                        "correct its regex, or remove it"
                    )


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
    time are added. A record that stood last in its file and has grown since is replaced by the whole one.

    Only what is new in a file is read. The checkpoint ``ingest SOURCE`` holds how the files of a source
    begin, which tells them from each other; ``read VERSION SOURCE`` holds how far these rules have read them.
    A file is read whole if the log that stood last is not stored any more, or another line stands in its
    place. To restore other logs or fibers that were deleted, delete the second checkpoint.

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
        IngestError: A file cannot be read by its rules, or another run reads files of the same source at the
            same time. Batches before that stay stored.
        StorageError: The store failed. Batches before that stay stored.
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
    require_files(rules)
    correlator = _FileCorrelator(storage, rules)
    with storage.transaction() as transaction:
        known = _load_known(transaction, rules)
    reader = LogReader(rules, known, on_bytes)
    report = IngestReport(sources=reader.counts)
    for batch in _batches(reader.logs(), batch_rows):
        reader.note_places()
        counts = correlator.write_files(batch, known)
        report = IngestReport(
            report.logs_read + len(batch),
            report.logs_new + counts.logs_new,
            report.fibers_new + counts.fibers_new,
            report.memberships_new + counts.memberships_new,
            sources=reader.counts,
            matches=correlator.patterns.matches,
        )
        for name, keyless in correlator.patterns.keyless.items():
            if name in reader.counts:
                reader.counts[name].keyless = keyless
        if on_batch is not None:
            on_batch(report)
    if not report.logs_read:
        correlator.write([])  # registers the rules
    reader.note_places()
    if any(files.dropped for files in known.values()):
        correlator.write_files([], known)
    if not all(files.is_saved for files in known.values()):
        with storage.transaction() as transaction:
            _save_known(transaction, known, rules.config_version)
    return report


class _FileCorrelator(Correlator):
    @property
    def patterns(self) -> PatternSearch:
        return self._joiner.patterns

    def write_files(self, batch: Sequence[NewLog], known: Mapping[str, KnownFiles]) -> CorrelationCounts:
        """Write logs of files, together with what is known of the files by then."""

        def prepare(transaction: Transaction) -> list[NewLog]:
            _save_known(transaction, known, self._config_version)
            return self._delete_tails(transaction, batch, known)

        def store(transaction: Transaction) -> int:
            return insert_new_logs(transaction.session, batch, self._config_version, datetime.now(UTC))

        counts = self._write(self._joiner.search(batch), store, prepare)
        for files in known.values():
            files.note_saved()
        return counts

    def _delete_tails(
        self, transaction: Transaction, batch: Sequence[NewLog], known: Mapping[str, KnownFiles]
    ) -> list[NewLog]:
        """Delete records that stood last in their files and have grown since, and fibers that had no others.

        The batch has them whole, by other ids. A record that was cut may have had other keys, and have joined
        fibers by them: such records are returned, as their fibers are to be made anew.
        """
        cut = []
        for known_tail, log in _grown_tails(batch, known):
            tail = transaction.logs.get_log(known_tail.log_id)
            if tail is None or not _has_grown(tail, known_tail, log):
                continue
            fiber_ids = transaction.memberships.get_log_fibers(tail.log_id)
            transaction.logs.where(Logs.c.log_id == tail.log_id).delete()
            empty = [id_ for id_ in fiber_ids if not transaction.memberships.get_fiber_logs(id_, limit=1)]
            transaction.fibers.where(Fibers.c.fiber_id.in_(empty)).delete()
            left = transaction.fibers.where(Fibers.c.fiber_id.in_([*set(fiber_ids).difference(empty)]))
            before = (to_epoch_us(tail.timestamp), tail.log_id.int, tail.source_id, tail.raw_text)
            is_same = self._joiner.are_alike(before, log)
            if not is_same:
                cut.append(before)
            for fiber in left.iter_records():
                is_known_alike = is_same and fiber.config_version == self._config_version
                same_id = tail.log_id.int if is_known_alike else None
                forget_firsts(transaction.session, [fiber.fiber_id.int], same_id)
        return cut


def check(rules: Rules, on_bytes: Callable[[int], None] | None = None) -> IngestReport:
    """Read all files of the rules and search them, and store nothing.

    Args:
        rules: What to read, and how to correlate it.
        on_bytes: Called with the number of bytes read since its last call.

    Returns:
        What was read; ``sources`` also have the first records in which no pattern found a key.

    Raises:
        RulesError: The rules name no file for a source; nothing was read.
        IngestError: A file cannot be read by its rules.
    """
    require_files(rules)
    reader, patterns = LogReader(rules, on_bytes=on_bytes), PatternSearch(rules)
    for _, _, source_id, raw_text in reader.logs():
        if not patterns.find(source_id, raw_text):
            reader.counts[source_id].keep("keyless", raw_text)
    for name, counts in reader.counts.items():
        counts.keyless = patterns.keyless[name]
    records = sum(counts.records for counts in reader.counts.values())
    return IngestReport(records, sources=reader.counts, matches=patterns.matches)


def _load_known(transaction: Transaction, rules: Rules) -> dict[str, KnownFiles]:
    known = {}
    for name, source in rules.sources.items():
        checkpoint = transaction.checkpoints.get(f"ingest {name}") if source.path else None
        known[name] = KnownFiles() if checkpoint is None else KnownFiles.from_text(checkpoint.value)
        read = transaction.checkpoints.get(read_checkpoint(rules.config_version, name))
        places = {} if read is None else places_from_text(read.value)
        ids = [UUID(place.log_id) for place in places.values()]
        stored = {log.log_id for log in transaction.logs.where(Logs.c.log_id.in_(ids)).iter_records()}
        known[name].places = {file: place for file, place in places.items() if UUID(place.log_id) in stored}
    return known


def _save_known(transaction: Transaction, known: Mapping[str, KnownFiles], config_version: int) -> None:
    for name, files in known.items():
        if files.files:
            try:
                transaction.checkpoints.compare_and_set(f"ingest {name}", files.saved, files.to_text())
            except CheckpointError as error:
                raise IngestError(
                    f"another run reads files of source {name!r} at the same time; nothing of this batch was "
                    "stored. Let one run end before the next begins"
                ) from error
        if files.places:
            transaction.checkpoints.set(read_checkpoint(config_version, name), places_to_text(files.places))


def _grown_tails(batch: Sequence[NewLog], known: Mapping[str, KnownFiles]) -> Iterator[tuple[Tail, NewLog]]:
    """Yield the logs that were cut, and what they have become: a log, or a line that is none."""
    for name, files in known.items():
        for tail, line in files.dropped:
            yield tail, (EARLIEST_US, 0, name, line)
    if any(files.replaced for files in known.values()):
        for log in batch:
            if (grown := known[log[2]].replaced.get(log[1])) is not None:
                yield grown, log


def _has_grown(stored: StoredLog, tail: Tail, log: NewLog) -> bool:
    """Return False if the line is not the one that was cut: its file has been changed.

    Of a log that was redacted since, the text is not known, and the time decides.
    """
    time_us = to_epoch_us(stored.timestamp)
    if not tail.is_of(stored.source_id, stored.raw_text, time_us):
        return log[0] == time_us
    is_log, text = log[1] != 0, stored.raw_text.removesuffix("\r")  # of a line end that was cut
    return (log[3].startswith(text) and (is_log or log[3] != text)) or (is_log and text.startswith(log[3]))


def _source_warnings(name: str, source: Source, counts: SourceCounts) -> Iterator[str]:
    if counts.unstamped * 2 > counts.lines and source.record_start is None:
        yield (
            f"{name}: {counts.unstamped:,} of {counts.lines:,} lines have no stamp, and were joined to the "
            f"line before; if they have one, correct sources.{name}.timestamp"
        )
    for number, what in (
        (counts.bad_stamps, "stamps that are no time, whose lines have the time of the line before"),
        (
            counts.guessed_years,
            f"files whose year is of their own time or earlier lines, not sources.{name}.year",
        ),
        (counts.dropped, "lines left out by drop"),
        (counts.nul_bytes, "NUL bytes left out before lines"),
        (counts.held_back, "last lines that are not whole yet, left for later"),
    ):
        if number:
            yield f"{name}: {what}: {number:,}"


def _batches(logs: Iterator[NewLog], batch_rows: int) -> Iterator[list[NewLog]]:
    """Yield logs in batches; each is yielded once it is known whether its last one ended its file."""
    following = next(logs, None)
    while following is not None:
        batch: list[NewLog] = []
        characters = 0
        with uncollected():
            while following is not None and len(batch) < batch_rows and characters < _BATCH_CHARACTERS:
                batch.append(following)
                characters += len(following[3])
                following = next(logs, None)
        yield batch

"""Stored logs into fibers, by other rules than those they came in by."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from uuid import uuid4

from fiberstore.contract.conditions import Condition
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.errors import CursorError, DatabaseError, VersionNotFoundError
from fiberstore.ingest.correlator import CorrelationCounts, FiberJoiner
from fiberstore.ingest.pipeline import DEFAULT_BATCH_ROWS
from fiberstore.ingest.rules import Rules
from fiberstore.records import StoredLog
from fiberstore.repositories.access import uncollected
from fiberstore.repositories.storage import SqlStorage, Transaction
from fiberstore.repositories.versions import reprocess_checkpoint
from fiberstore.sql.bulk import new_logs
from fiberstore.sql.correlation import has_unknown_firsts, settle_unknown_firsts
from fiberstore.sql.translate import translate_errors

_BEGINNING = ""
_CHOSEN = "chosen"
# Most logs of a transaction, which keeps others from changing rows for 0.1 s.
_PART_LOGS = 5_000


@dataclass(frozen=True, slots=True)
class ReprocessReport:
    """Progress of a reprocessing.

    Attributes:
        logs_read: Logs read from the store, those that were passed over too.
        fibers_new: Fibers that began.
        memberships_new: Memberships that were not stored before.
        fibers_kept: Fibers of the version before that were copied, as none of the chosen logs is in them.
    """

    logs_read: int = 0
    fibers_new: int = 0
    memberships_new: int = 0
    fibers_kept: int = 0


def reprocess(
    storage: SqlStorage,
    rules: Rules,
    *,
    logs: Condition[StoredLog] | None = None,
    from_version: int | None = None,
    again: bool = False,
    batch_rows: int = DEFAULT_BATCH_ROWS,
    on_batch: Callable[[ReprocessReport], None] | None = None,
) -> ReprocessReport:
    """Make the generation of fibers that these rules see in the stored logs, beside those that are there.

    The rules are registered, and do not become the active ones: ``storage.versions.diff`` compares, and
    ``storage.versions.activate`` switches. The log files are not read; rules that ``load_rules`` has read
    with ``check_files=False`` will do. Meanwhile others may read, ingest and change what they like, by these
    rules too; each 5,000 logs are a transaction, and keep others from changing rows for that time. The fibers
    are those that ``ingest`` makes of the files: ``Correlator`` says what they depend on.

    The checkpoint ``reprocess VERSION`` moves with each batch. So a run that was killed and started again
    ends in the same state as one that was not, and a later run adds what was stored since, late logs too.
    Once the newest log that the last run knew of was deleted, it reads all logs again, and passes over those
    that are in fibers of this version. ``storage.versions.drop`` deletes the checkpoint.

    Fibers of these rules that an older release has made, which went by the order of reading, are made anew:
    as long as there are some, a run reads all logs. ``ingest`` makes those anew that its new lines meet.

    With ``logs``, only those get new fibers, and the others keep theirs: the fibers of the version before are
    copied into the new one, under new ids, in one transaction. A fiber that has both chosen logs and others
    is made anew, with all its logs. A kept fiber and a new one that share a key become one where these rules
    say so. Readers go from one whole generation to the other by ``versions.activate``.

    One run at a time for each version: another takes over, and ends the first.

    Args:
        storage: Its schema is up to date.
        rules: How to correlate the logs; also those of the active version, for logs that other ways than
            ``ingest`` have brought.
        logs: Which logs get new fibers; all by default.
        from_version: Whose fibers the other logs keep; the active version by default. Only with ``logs``.
        again: Delete what these rules have made, and begin anew. Not for the active version.
        batch_rows: Most logs that are read at once, >= 1, and so many late ones.
        on_batch: Called after each batch, when it is on disk.

    Returns:
        What was done in all.

    Raises:
        ValueError: ``from_version`` is given without ``logs``, or is that of the rules.
        VersionNotFoundError: ``from_version`` is not known.
        DatabaseError: These rules have made fibers for another choice of logs, or are to begin anew and are
            the active ones.
        DatabaseError: No choice is given, and these rules, which are not the active ones, have made fibers
            for one: the kept fibers would stay as they are.
        DatabaseError: Fibers of other versions are stored and none is active, so that those who ask for the
            active version would see none, and all others would see two generations at once.
        CheckpointError: Another run for this version has begun, or the version was dropped meanwhile.
        StorageError: The store failed. Batches before that stay stored.
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
    if from_version is not None and logs is None:
        raise ValueError("from_version says whose fibers the logs keep that are not chosen; give logs, too")
    if again:
        with storage.transaction() as transaction:  # nothing is dropped for a run that cannot begin
            _check_one_is_active(transaction, rules)
            if logs is not None:
                _Choice(transaction, rules, logs, from_version)
        with suppress(VersionNotFoundError):
            storage.versions.drop(rules.config_version)
    report = ReprocessReport()
    with storage.transaction() as transaction, translate_errors():
        _check_one_is_active(transaction, rules)
        choice = None if logs is None else _Choice(transaction, rules, logs, from_version)
        if choice is None:
            _check_none_is_kept(transaction, rules)
        if rules.content is not None:
            transaction.versions.register(rules.content)
        if choice is not None and not choice.is_begun(transaction):
            report = ReprocessReport(fibers_kept=choice.keep_others(transaction))
        run = _Run(storage, rules, transaction, choice)
    while not run.is_over:
        report = run.step(batch_rows, report)
        if on_batch is not None:
            on_batch(report)
    return report


class _Choice:
    """The logs that get new fibers, while the others keep those of the version before."""

    def __init__(
        self, transaction: Transaction, rules: Rules, logs: Condition[StoredLog], from_version: int | None
    ) -> None:
        active = transaction.versions.active()
        before = active.config_version if from_version is None and active is not None else from_version
        if before is None:
            raise DatabaseError(
                "no config version is active; give from_version, whose fibers other logs keep"
            )
        if before == rules.config_version:
            raise ValueError(
                f"these rules are config version {before:016x}, from which the other logs are to keep their "
                "fibers; change the rules, or give another from_version"
            )
        transaction.versions.check_known(before)
        self._before = Fibers.c.config_version == before
        self._has_chosen = Fibers.c.logs.any(logs)
        self._rules = rules
        self.logs = logs | Logs.c.fibers.any(self._before & self._has_chosen)
        digest = sha256(f"{before:016x} {logs!r}".encode()).hexdigest()
        self.mark = f"{_CHOSEN} {digest[:16]}"

    def is_begun(self, transaction: Transaction) -> bool:
        """Return True if the fibers of other logs are kept already.

        Raises:
            DatabaseError: These rules have made fibers for another choice.
        """
        version = self._rules.config_version
        checkpoint = transaction.checkpoints.get(reprocess_checkpoint(version))
        if checkpoint is not None and checkpoint.value.partition(" ")[2] == self.mark:
            return True
        if transaction.fibers.where(Fibers.c.config_version == version).count(at_most=1):
            raise DatabaseError(
                f"config version {version:016x} has fibers already, made for another choice of logs; "
                "begin anew with again=True (--again)"
            )
        return False

    def keep_others(self, transaction: Transaction) -> int:
        """Copy the fibers that have none of the chosen logs; return how many there are."""
        kept = transaction.fibers.where(self._before, ~self._has_chosen)
        return kept.copy_to(self._rules.config_version)


class _Run:
    """A walk through the stored logs.

    The checkpoint value is ``<run id> <cursor of the next page>``. After the last page the cursor is kept, so
    that reading it again returns rows stored since, at its end or late. Chosen logs are read from the first
    one by each run; instead of a cursor, the value tells which they are.
    """

    def __init__(
        self, storage: SqlStorage, rules: Rules, transaction: Transaction, choice: _Choice | None
    ) -> None:
        self.is_over = False
        self._storage = storage
        self._rules = rules
        self._choice = choice
        self._logs = storage.logs if choice is None else storage.logs.where(choice.logs)
        self._name = reprocess_checkpoint(rules.config_version)
        self._joiner = FiberJoiner(rules)
        self._renews = has_unknown_firsts(transaction.session, rules.config_version)
        checkpoint = transaction.checkpoints.get(self._name)
        self._id = uuid4().hex
        self._place = _BEGINNING
        if checkpoint is not None and not self._renews and choice is None:
            self._place = checkpoint.value.partition(" ")[2]
        transaction.checkpoints.set(self._name, self._at(self._place))

    def step(self, batch_rows: int, before: ReprocessReport) -> ReprocessReport:
        """Read a page, and store its fibers and memberships."""
        place = self._place
        try:
            page = self._logs.page(batch_rows, place or None)
        except CursorError:  # the newest log it knew of was deleted
            place = _BEGINNING
            page = self._logs.page(batch_rows)
        logs = [*page.late, *page.items]
        following = place if page.next is None else page.next
        done = before
        # The checkpoint moves with the last part: the logs of a part that is joined twice are passed over.
        for first in range(0, max(len(logs), 1), _PART_LOGS):
            part, is_last = logs[first : first + _PART_LOGS], first + _PART_LOGS >= len(logs)
            counts = self._join(part, following if is_last else self._place, settle=is_last and not page.next)
            if counts is None:
                return done  # some were deleted since: read the page again
            done = replace(
                done,
                fibers_new=done.fibers_new + counts.fibers_new,
                memberships_new=done.memberships_new + counts.memberships_new,
            )
        self._place = following
        self.is_over = page.next is None
        return replace(done, logs_read=done.logs_read + len(logs))

    def _join(self, logs: Sequence[StoredLog], following: str, *, settle: bool) -> CorrelationCounts | None:
        """Store the fibers and memberships of logs; return None if one of them is not stored any more."""
        with uncollected():
            searched = self._joiner.search(new_logs(logs))
            with self._storage.transaction() as transaction, translate_errors():
                if not _are_stored(transaction, logs):
                    return None
                checkpoints = transaction.checkpoints
                checkpoints.compare_and_set(self._name, self._at(self._place), self._at(following))
                # A log may be in a kept fiber, and in one of the same type that is made anew.
                counts = self._joiner.join(
                    transaction, searched, renew=self._renews, complete=self._choice is not None
                )
                if self._renews and settle:
                    settle_unknown_firsts(transaction.session, self._rules.config_version)
        return counts

    def _at(self, place: str) -> str:
        return f"{self._id} {place if self._choice is None else self._choice.mark}"


def _check_one_is_active(transaction: Transaction, rules: Rules) -> None:
    if transaction.versions.active() is not None:
        return
    others = transaction.fibers.where(Fibers.c.config_version != rules.config_version)
    for fiber in others.page(limit=1).items:
        version = fiber.config_version
        raise DatabaseError(
            f"fibers of config version {version:016x} ({version}) are stored, and no version is active: "
            "readers would see two generations at once; first activate the one that they are to see, by "
            f"`fiberstore activate {version:016x}` or versions.activate({version})"
        )


def _check_none_is_kept(transaction: Transaction, rules: Rules) -> None:
    """Check that no fiber of another version is kept for logs that a run before has not chosen.

    With the active version the run continues, and joins the logs that have no fiber: others read its fibers,
    so that it cannot begin anew.

    Raises:
        DatabaseError: A run before has chosen logs.
    """
    version = rules.config_version
    checkpoint = transaction.checkpoints.get(reprocess_checkpoint(version))
    active = transaction.versions.active()
    if checkpoint is None or (active is not None and active.config_version == version):
        return
    if checkpoint.value.partition(" ")[2].startswith(f"{_CHOSEN} "):
        raise DatabaseError(
            f"config version {version:016x} was made for a choice of logs, and the others keep their fibers; "
            "give the same choice again (--where), or begin anew with again=True (--again)"
        )


def _are_stored(transaction: Transaction, logs: Sequence[StoredLog]) -> bool:
    return transaction.logs.where(Logs.c.log_id.in_([log.log_id for log in logs])).count() == len(logs)

"""``TransactionState``: what a connection remembers of its transaction."""

from dataclasses import dataclass
from enum import Enum

from fiberstore.duckdb.statements import Effects


class Begun(Enum):
    """Progress of a transaction."""

    NO = 0
    YES = 1  # no snapshot yet: DuckDB takes it at the first statement
    SNAPSHOT = 2


@dataclass(slots=True)
class TransactionState:
    """State of a transaction, or of a statement that is one of its own.

    Attributes:
        begun: How far it has come.
        changes_at_snapshot: ``ChangeLock.changes`` when its snapshot was taken.
        is_aborted: DuckDB takes no more statements of it, and keeps nothing.
        changes_rows: It may have changed or deleted rows.
        appends_rows: It may have appended rows.
        writes: It may write to the write-ahead log.
    """

    begun: Begun = Begun.NO
    changes_at_snapshot: int = 0
    is_aborted: bool = False
    changes_rows: bool = False
    appends_rows: bool = False
    writes: bool = False

    @property
    def is_open(self) -> bool:
        """True between BEGIN and its end."""
        return self.begun is not Begun.NO

    def note(self, effects: Effects, *, creates: bool, changes: int) -> bool:
        """Note a statement that is about to run.

        Args:
            effects: Its possible effects.
            creates: It is a CREATE.
            changes: ``ChangeLock.changes``, for the statement that takes the snapshot.

        Returns:
            True if it or one before it may write.
        """
        if self.begun is Begun.YES:
            self.changes_at_snapshot, self.begun = changes, Begun.SNAPSHOT
        self.changes_rows |= effects.changes_rows
        self.appends_rows |= effects.appends_rows
        writes = self.appends_rows or effects.changes_rows or creates
        self.writes |= writes
        return writes

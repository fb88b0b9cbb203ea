"""``WriteSignal``: tells tails that a write of this process has ended.

Tails and pages go by the order in which rows arrive, ``rowid``. From DuckDB 2.0.1 on, a commit appends its
rows and becomes visible under one lock, so a snapshot that sees a row sees all rows before it. Earlier
releases showed rows of a large commit that was on its way; ``tests/duckdb/test_duckdb.py`` watches for it.
"""

from queue import SimpleQueue

from fiberstore.duckdb.fork_guard import PerDatabase
from fiberstore.sql.holds import Registry


class WriteSignal(PerDatabase):
    """The ends of writes to one database, from all connections of this process."""

    def __init__(self) -> None:
        self._listeners = Registry[SimpleQueue[None]]()

    def listen(self) -> SimpleQueue[None]:
        """Return a queue that gets an item when a write ends; after an interrupt it may miss one."""
        return self._listeners.add(SimpleQueue())

    def note_end(self) -> None:
        """Notify all listeners that a write has ended, committed or not."""
        for listener in self._listeners.alive():
            bell = listener()
            if bell is not None and bell.empty():
                bell.put(None)

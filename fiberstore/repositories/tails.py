"""Logs in the order they are stored."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from fiberstore.appends import Appends
from fiberstore.cursors import decode_position, encode_position
from fiberstore.engine import check_seconds
from fiberstore.queries import LogTail
from fiberstore.records import StoredLog

_ROWS_AT_ONCE = 1_000
_LONGEST_WAIT_S = 1.0  # then it looks whether the storage is still open


@dataclass(frozen=True, slots=True)
class News:
    """What has arrived after some log.

    Attributes:
        logs: The first logs of a query, in the order they were stored.
        newest_id: The log up to which these are all; None if there is none at all.
        appends: The writes to the database.
        ended: How many of them had ended before.
    """

    logs: list[StoredLog]
    newest_id: UUID | None
    appends: Appends
    ended: int


Asking: TypeAlias = Callable[[UUID | None, int], News]
"""Returns at most so many logs that arrived after the log of that id; None is the place before all."""


class SqlTail(LogTail):
    """``LogTail`` on a storage. While it waits it holds no connection.

    Nobody but this process writes the database while it has it open, so a write of its own ends the wait.
    """

    def __init__(self, asking: Asking, position: str | None, timeout_s: float | None) -> None:
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
        self._asking = asking
        self._timeout_s = timeout_s
        self._batch: deque[StoredLog] = deque()
        if position is None:
            self._news = asking(None, 0)
        else:  # one that leads nowhere is told now
            self._news = asking(decode_position(position), _ROWS_AT_ONCE)
            self._batch.extend(self._news.logs)
        self._seen_id = self._news.newest_id if not self._batch else decode_position(position or "")

    @property
    def position(self) -> str:
        """See ``LogTail.position``."""
        return encode_position(self._seen_id)

    def __next__(self) -> StoredLog:
        until_s = math.inf if self._timeout_s is None else time.monotonic() + self._timeout_s
        while not self._batch:
            self._news = self._asking(self._news.newest_id, _ROWS_AT_ONCE)
            self._batch.extend(self._news.logs)
            if not self._batch:
                self._seen_id = self._news.newest_id
                rest_s = until_s - time.monotonic()
                if rest_s <= 0:
                    raise StopIteration
                self._news.appends.wait_for_more(self._news.ended, min(rest_s, _LONGEST_WAIT_S))
        log = self._batch.popleft()
        self._seen_id = log.log_id if self._batch else self._news.newest_id
        return log

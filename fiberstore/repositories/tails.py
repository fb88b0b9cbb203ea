"""Logs in the order they are stored."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fiberstore.appends import Appends
from fiberstore.cursors import NOTHING_SEEN, Mark, decode_position, encode_position
from fiberstore.engine import check_seconds
from fiberstore.queries import LogTail
from fiberstore.records import StoredLog

_ROWS_AT_ONCE = 1_000
_LONGEST_WAIT_S = 1.0  # then it looks whether the storage is still open


@dataclass(frozen=True, slots=True)
class News:
    """What has arrived after some log.

    Attributes:
        logs: The first logs of a query, in the order they were stored, each with its place in it.
        mark: The place up to which these are all.
        appends: The writes to the database.
        ended: How many of them had ended before.
    """

    logs: list[tuple[StoredLog, Mark]]
    mark: Mark
    appends: Appends
    ended: int


Asking: TypeAlias = Callable[[Mark, int], News]
"""Returns at most so many logs that arrived after a place."""


class SqlTail(LogTail):
    """``LogTail`` on a storage. While it waits it holds no connection.

    Nobody but this process writes the database while it has it open, so a write of its own ends the wait.
    """

    def __init__(self, asking: Asking, position: str | None, timeout_s: float | None) -> None:
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
        self._asking = asking
        self._timeout_s = timeout_s
        self._batch: deque[tuple[StoredLog, Mark]] = deque()
        if position is None:
            self._news = asking(NOTHING_SEEN, 0)
            self._seen = self._news.mark
        else:  # one that leads nowhere is told now
            self._seen = decode_position(position)
            self._take(asking(self._seen, _ROWS_AT_ONCE))

    @property
    def position(self) -> str:
        """See ``LogTail.position``."""
        return encode_position(self._seen)

    def __next__(self) -> StoredLog:
        until_s = math.inf if self._timeout_s is None else time.monotonic() + self._timeout_s
        while not self._batch:
            self._take(self._asking(self._seen, _ROWS_AT_ONCE))
            if not self._batch:
                rest_s = until_s - time.monotonic()
                if rest_s <= 0:
                    raise StopIteration
                self._news.appends.wait_for_more(self._news.ended, min(rest_s, _LONGEST_WAIT_S))
        log, self._seen = self._batch.popleft()
        if not self._batch:
            self._seen = self._news.mark
        return log

    def _take(self, news: News) -> None:
        self._news = news
        self._batch.extend(news.logs)
        if not self._batch:
            self._seen = news.mark

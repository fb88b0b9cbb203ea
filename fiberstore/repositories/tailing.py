"""Logs in the order they are stored."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fiberstore.checks import check_seconds
from fiberstore.contract.cursors import Watermark, decode_position, encode_position
from fiberstore.contract.queries import LogTail
from fiberstore.records import StoredLog

_ROWS_AT_ONCE = 4_096  # lines may be long
_LONGEST_WAIT_S = 1.0  # then it looks whether the storage is still open


@dataclass(frozen=True, slots=True)
class Arrived:
    """The logs of a query that have arrived after some log.

    Attributes:
        logs: The first logs of a query, in the order they were stored, each with its place in it.
        mark: The place up to which these are all.
        wait: Waits for more of them, but not longer than so many seconds.
    """

    logs: list[tuple[StoredLog, Watermark]]
    mark: Watermark
    wait: Callable[[float], object]


Asking: TypeAlias = Callable[[Watermark | None, int], Arrived]
"""Returns at most so many logs that arrived after a place, or after now."""


class SqlTail(LogTail):
    """``LogTail`` on a storage. While it waits it holds no connection."""

    def __init__(self, asking: Asking, position: str | None, timeout_s: float | None) -> None:
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
        self._asking = asking
        self._timeout_s = timeout_s
        self._batch: deque[tuple[StoredLog, Watermark]] = deque()
        if position is None:
            self._take(asking(None, _ROWS_AT_ONCE))
        else:  # one that leads nowhere is told now
            self._seen = decode_position(position)
            self._take(asking(self._seen, _ROWS_AT_ONCE))

    @property
    def position(self) -> str:
        return encode_position(self._seen)

    def __next__(self) -> StoredLog:
        until_s = math.inf if self._timeout_s is None else time.monotonic() + self._timeout_s
        while not self._batch:
            self._take(self._asking(self._seen, _ROWS_AT_ONCE))
            if not self._batch:
                rest_s = until_s - time.monotonic()
                if rest_s <= 0:
                    raise StopIteration
                self._news.wait(min(rest_s, _LONGEST_WAIT_S))
        log, self._seen = self._batch.popleft()
        if not self._batch:
            self._seen = self._news.mark
        return log

    def _take(self, news: Arrived) -> None:
        self._news = news
        self._batch.extend(news.logs)
        if not self._batch:
            self._seen = news.mark

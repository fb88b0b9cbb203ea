"""The order in which rows were stored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.contract.cursors import Watermark

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows that were committed after a watermark.

    Attributes:
        condition: Is true of them.
        mark: The watermark up to which these are all.
        wait: Waits for more of them, but not longer than so many seconds.
    """

    condition: sa.ColumnElement[bool]
    mark: Watermark
    wait: Callable[[float], object]


class CommitOrder(ABC):
    """The order in which the rows of a table were committed.

    Attributes:
        number: The number of a row in it, which a ``Watermark`` holds.
        order: What to order by.
    """

    number: sa.ColumnElement[int]
    order: Sequence[sa.ColumnElement[Any]]

    @abstractmethod
    def snapshot(self, session: Session, since: Watermark | None) -> AbstractContextManager[Watermark]:
        """Let all statements of the block see the same, and give its watermark.

        Args:
            session: In a transaction, its snapshot is that of the block.
            since: The mark that an earlier snapshot has left, or None.

        Raises:
            CursorError: What ``since`` has seen is not known any more.
        """

    @abstractmethod
    def new_rows(self, session: Session, since: Watermark | None) -> AbstractContextManager[NewRows]:
        """Let all statements of the block see the same, and tell what is new in it, without gaps.

        Args:
            session: Without an open transaction.
            since: Up to where all was seen; None is now, after which nothing is there yet.

        Raises:
            CursorError: What ``since`` has seen is not known any more.
        """

    @abstractmethod
    def watermark_at(self, session: Session, id_: UUID) -> Watermark:
        """Return the watermark just after the row with this id, which must exist."""

    @abstractmethod
    def is_new(self, session: Session, since: Watermark) -> sa.ColumnElement[bool]:
        """Return a condition that is true of the rows that a snapshot has not seen.

        Raises:
            CursorError: What it has seen is not known any more.
        """

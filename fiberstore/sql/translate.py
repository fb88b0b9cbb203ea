"""The one place that makes a storage's errors of SQLAlchemy's and the drivers'.

Each engine registers what its driver raises; so a program needs no driver but its own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NamedTuple

from fiberstore.errors import DatabaseError, StorageError


class _Driver(NamedTuple):
    root: type[Exception]
    translate: Callable[[BaseException], StorageError]
    is_interrupt: Callable[[BaseException], bool]


_drivers: list[_Driver] = []


def register_driver(
    root: type[Exception],
    translate: Callable[[BaseException], StorageError],
    is_interrupt: Callable[[BaseException], bool] = lambda _error: False,
) -> None:
    """Have a driver's errors translated from now on.

    Args:
        root: Root class of its errors.
        translate: Makes a storage's error of one of them.
        is_interrupt: Tells Ctrl-C where the driver raises it as something else.
    """
    _drivers.append(_Driver(root, translate, is_interrupt))


class _Translation:
    """Context manager of ``translate_errors``; a generator would take longer, and each call needs several."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            _raise_translated(error)


_TRANSLATION = _Translation()


def translate_errors() -> AbstractContextManager[None]:
    """Raise the storage's errors instead of SQLAlchemy's and the drivers', each with its cause chained."""
    return _TRANSLATION


def _raise_translated(error: Exception) -> None:
    from sqlalchemy import exc  # takes long, and few programs that import this module see an error

    if any(driver.is_interrupt(error) for driver in _drivers):
        raise KeyboardInterrupt from error
    match error:
        case exc.DBAPIError():
            raise _storage_error(error.orig or error) from error
        case exc.StatementError(orig=StorageError() | ValueError() | TypeError() as refused):
            raise refused from refused.__cause__  # a column type has refused a value
        case exc.TimeoutError():
            raise DatabaseError(f"no free connection in the pool: {first_line(error)}") from error
        case exc.SQLAlchemyError():
            raise DatabaseError(first_line(error)) from error
    if any(isinstance(error, driver.root) for driver in _drivers):
        raise _storage_error(error) from error


def _storage_error(error: BaseException) -> StorageError:
    for driver in _drivers:
        if isinstance(error, driver.root):
            return driver.translate(error)
    return DatabaseError(first_line(error))


def first_line(error: BaseException) -> str:
    """Return the first line of a driver's message, or the name of the error's class."""
    return str(error).strip().partition("\n")[0] or type(error).__name__

"""Loaders of PostgreSQL's values for the repositories, in place of psycopg's.

They are for results in the binary format, which only this package requests. Sessions of SQLAlchemy get a
JSONB, and a time that no ``datetime`` holds, as text; the column types make values or errors of it.
"""

from datetime import datetime
from functools import lru_cache
from struct import Struct

from psycopg import DataError
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.types.datetime import TimestamptzLoader

from fiberstore.errors import SerializationError

_EPOCH_US = 946_684_800_000_000
_INFINITE = (-(2**63), 2**63 - 1)
_int64 = Struct("!q")
_numeric_head = Struct("!hhHh")
_int16 = Struct("!h")
_DIGIT = 10_000
_NEGATIVE = 0x4000
_NO_NUMBER = 0xC000


class EpochMicrosecondsLoader(Loader):
    """A TIMESTAMPTZ as µs since 1970, also one that no ``datetime`` holds."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int | None:
        """Return the number; None for 'infinity', as in DuckDB."""
        us: int = _int64.unpack(data)[0]
        return None if us in _INFINITE else us + _EPOCH_US


class TimeOrTextLoader(TimestamptzLoader):
    """A TIMESTAMPTZ as a ``datetime``, or as text if none holds it, as in DuckDB."""

    def load(self, data: Buffer) -> datetime:
        """Return the datetime or the text."""
        try:
            return super().load(data)
        except DataError:
            return bytes(data).decode()  # type: ignore[return-value]


class IntegerLoader(Loader):
    """A NUMERIC that is a config version, or is calculated of times, as an int."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        """Return the number.

        Raises:
            SerializationError: It has a fraction, or is none.
        """
        return _integer(bytes(data))


@lru_cache  # there are few config versions
def _integer(data: bytes) -> int:
    count, weight, sign, _ = _numeric_head.unpack_from(data)
    if count > weight + 1 or sign & _NO_NUMBER == _NO_NUMBER:
        raise SerializationError("a stored config_version is no whole number; another client wrote it")
    value = 0
    for position in range(count):
        value = value * _DIGIT + int(_int16.unpack_from(data, 8 + 2 * position)[0])
    value *= _DIGIT ** (weight + 1 - count) if count else 1
    return -value if sign == _NEGATIVE else value


class JsonTextLoader(Loader):
    """A JSONB as its text."""

    def load(self, data: Buffer) -> str:
        """Return the text."""
        return bytes(data).decode()


class JsonBinaryLoader(Loader):
    """A JSONB in the binary format, which has a version before the text, as its text."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        """Return the text."""
        return bytes(data[1:]).decode()


def register(context: AdaptContext) -> None:
    """Let the cursors of a connection make these of the values."""
    adapters = context.adapters
    if adapters is not None:
        adapters.register_loader("timestamptz", EpochMicrosecondsLoader)
        adapters.register_loader("timestamptz", TimeOrTextLoader)
        adapters.register_loader("numeric", IntegerLoader)
        adapters.register_loader("jsonb", JsonTextLoader)
        adapters.register_loader("jsonb", JsonBinaryLoader)

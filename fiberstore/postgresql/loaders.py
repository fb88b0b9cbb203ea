"""What the repositories take of PostgreSQL's values, which psycopg would make into other objects.

They are for results in the binary format, which only this package asks for, and for JSONB in both: the column
type for SQLAlchemy takes its text.
"""

from struct import Struct

from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format

_EPOCH_US = 946_684_800_000_000
_int64 = Struct("!q")
_numeric_head = Struct("!hhHh")
_int16 = Struct("!h")
_DIGIT = 10_000
_NEGATIVE = 0x4000
_NO_NUMBER = 0xC000


class EpochUs(Loader):
    """A TIMESTAMPTZ as µs since 1970, also one that no ``datetime`` holds."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        """Return the number."""
        us: int = _int64.unpack(data)[0]
        return us + _EPOCH_US


class Integer(Loader):
    """A NUMERIC without a fraction as an int."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        """Return the number.

        Raises:
            ValueError: It has a fraction, or is none.
        """
        count, weight, sign, _ = _numeric_head.unpack_from(data)
        if count > weight + 1 or sign & _NO_NUMBER == _NO_NUMBER:
            raise ValueError("expected a whole number, got another NUMERIC")
        value = 0
        for position in range(count):
            value = value * _DIGIT + _int16.unpack_from(data, 8 + 2 * position)[0]
        value *= _DIGIT ** (weight + 1 - count) if count else 1
        return -value if sign == _NEGATIVE else value


class JsonText(Loader):
    """A JSONB as its text."""

    def load(self, data: Buffer) -> str:
        """Return the text."""
        return bytes(data).decode()


class JsonBinary(Loader):
    """A JSONB in the binary format, which has a version before the text, as its text."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        """Return the text."""
        return bytes(data[1:]).decode()


def register(context: AdaptContext) -> None:
    """Let the cursors of a connection make these of the values."""
    adapters = context.adapters
    if adapters is not None:
        adapters.register_loader("timestamptz", EpochUs)
        adapters.register_loader("numeric", Integer)
        adapters.register_loader("jsonb", JsonText)
        adapters.register_loader("jsonb", JsonBinary)

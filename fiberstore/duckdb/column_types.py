"""DuckDB's column types as SQLAlchemy's: those duckdb-engine lacks, and any by its name in the catalog."""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, TypeAlias, cast

import sqlalchemy as sa
from duckdb_engine.datatypes import (
    HugeInteger,
    Map,
    Struct,
    TinyInteger,
    UBigInteger,
    UHugeInteger,
    UInteger,
    Union,
    USmallInteger,
    UTinyInteger,
    VarInt,
)
from sqlalchemy.dialects.postgresql import ENUM, INTERVAL, TIME, TIMESTAMP
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import TypeCompiler

ColumnType: TypeAlias = sa.types.TypeEngine[Any]
SchemaTarget: TypeAlias = sa.Engine | sa.Connection | MockConnection


class FixedArray(sa.types.UserDefinedType[Any]):
    """``ARRAY``: tuples of one length, as in ``FLOAT[3]``.

    Args:
        item_type: Type of the items.
        size: Number of items, >= 1.
    """

    cache_ok = True

    def __init__(self, item_type: ColumnType | type[ColumnType], size: int) -> None:
        self.item_type: ColumnType = sa.types.to_instance(item_type)
        self.size = size


@compiles(FixedArray, "duckdb")
def _fixed_array(type_: FixedArray, compiler: TypeCompiler, **options: Any) -> str:
    return f"{compiler.process(type_.item_type, **options)}[{type_.size}]"


class _Named(sa.types.UserDefinedType[Any]):
    """A type that has a name only."""

    cache_ok = True
    name: str

    def get_col_spec(self, **_options: object) -> str:
        return self.name


class Bit(_Named):
    """``BIT``: a text of zeros and ones."""

    name = "BIT"


class TimestampNs(_Named):
    """``TIMESTAMP_NS``: a time without zone; the driver drops what is below 1 µs."""

    name = "TIMESTAMP_NS"


class TimeNs(_Named):
    """``TIME_NS``: a time of day; the driver drops what is below 1 µs."""

    name = "TIME_NS"


class NativeEnum(ENUM):
    """``ENUM``; without a name its values stand in the column, and there is no type to create or drop."""

    def create(self, bind: SchemaTarget, checkfirst: bool = True, **options: Any) -> None:
        """Create the type, if it has a name."""
        if self.name:
            super().create(bind, checkfirst=checkfirst, **options)

    def drop(self, bind: SchemaTarget, checkfirst: bool = True, **options: Any) -> None:
        """Drop the type, if it has a name."""
        if self.name:
            super().drop(bind, checkfirst=checkfirst, **options)


class ExactNumeric(sa.Numeric[Any]):
    """``DECIMAL`` as the driver has it, exact to the last digit; floats only if they are asked for.

    An expression that SQLAlchemy takes for a number of this kind, such as an average, may be a float.
    """

    def bind_processor(self, dialect: Dialect) -> None:
        """Do nothing: the driver knows ``Decimal``."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Return a ``Decimal``, or a float without ``asdecimal``."""
        del dialect, coltype
        if not self.asdecimal:
            return lambda value: None if value is None else float(value)
        places = self._effective_decimal_return_scale

        def as_decimal(value: Decimal | float | None) -> Decimal | None:
            if isinstance(value, float):
                return Decimal(f"{value:.{places}f}")
            return None if value is None else Decimal(value)

        return as_decimal


class InexactFloat(sa.Float[Any]):
    """``FLOAT`` or ``DOUBLE``, also as ``Decimal``."""

    def bind_processor(self, dialect: Dialect) -> None:
        """Do nothing: the driver knows both."""


_PLAIN: dict[str, ColumnType] = {
    "BIGINT": sa.BIGINT(),
    "BIGNUM": VarInt(),
    "BIT": Bit(),
    "BLOB": sa.LargeBinary(),
    "BOOLEAN": sa.BOOLEAN(),
    "DATE": sa.DATE(),
    "DOUBLE": sa.DOUBLE(),
    "FLOAT": sa.REAL(),
    "HUGEINT": HugeInteger(),
    "INTEGER": sa.INTEGER(),
    "INTERVAL": INTERVAL(),
    "JSON": sa.JSON(),
    "SMALLINT": sa.SMALLINT(),
    "TIME": TIME(),
    "TIME WITH TIME ZONE": TIME(timezone=True),
    "TIMESTAMP": TIMESTAMP(),
    "TIMESTAMP WITH TIME ZONE": TIMESTAMP(timezone=True),
    "TIMESTAMP_MS": TIMESTAMP(precision=3),
    "TIMESTAMP_NS": TimestampNs(),
    "TIMESTAMP_S": TIMESTAMP(precision=0),
    "TIME_NS": TimeNs(),
    "TINYINT": TinyInteger(),
    "UBIGINT": UBigInteger(),
    "UHUGEINT": UHugeInteger(),
    "UINTEGER": UInteger(),
    "USMALLINT": USmallInteger(),
    "UTINYINT": UTinyInteger(),
    "UUID": sa.UUID(),
    "VARCHAR": sa.VARCHAR(),
}
_TOKEN = re.compile(
    r"""\s*(?: (?P<quoted>"(?:[^"]|"")*") | (?P<text>'(?:[^']|'')*') | (?P<size>\[\d*\]) | (?P<mark>[(),])
    | (?P<word>[^\s"'(),\[]+) )""",
    re.VERBOSE,
)


def column_type(data_type: str) -> ColumnType | None:
    """Return the type that the catalog names, such as ``STRUCT(a INTEGER[], b VARCHAR)``.

    Returns:
        The type; None if it is one that this release does not know.
    """
    reader = _Reader(data_type)
    try:
        found = reader.type_()
    except _UnknownTypeError:
        return None
    return found if reader.is_at_end() else None


class _UnknownTypeError(Exception):
    pass


class _Reader:
    """Reads a type from its name, token by token."""

    def __init__(self, data_type: str) -> None:
        self._tokens = list(_TOKEN.finditer(data_type))
        self._next = 0
        self._is_whole = sum(len(found[0]) for found in self._tokens) == len(data_type.rstrip())

    def is_at_end(self) -> bool:
        return self._is_whole and self._next == len(self._tokens)

    def type_(self) -> ColumnType:
        name = self._words()
        found = self._with_arguments(name) if self._take("(") else _PLAIN.get(name)
        if found is None:
            raise _UnknownTypeError(name)
        while size := self._peek("size"):
            self._next += 1
            found = FixedArray(found, int(size[1:-1])) if len(size) > len("[]") else _list_of(found)
        return found

    def _with_arguments(self, name: str) -> ColumnType:
        match name:
            case "DECIMAL":
                precision, scale = self._separated(lambda: int(self._any()))
                return sa.NUMERIC(precision, scale)
            case "ENUM":
                return NativeEnum(*self._separated(lambda: _unquoted(self._any())))
            case "MAP":
                key, value = self._separated(self.type_)
                return cast("ColumnType", Map(key, value))
            case "STRUCT" | "UNION":
                fields = dict(self._separated(lambda: (_unquoted(self._any()), self.type_())))
                return cast("ColumnType", (Struct if name == "STRUCT" else Union)(fields))
        raise _UnknownTypeError(name)

    def _separated(self, read: Callable[[], Any]) -> Iterator[Any]:
        items = [read()]
        while self._take(","):
            items.append(read())
        if not self._take(")"):
            raise _UnknownTypeError
        return iter(items)

    def _words(self) -> str:
        words = []
        while word := self._peek("word"):
            words.append(word)
            self._next += 1
        return " ".join(words)

    def _any(self) -> str:
        if self._next == len(self._tokens):
            raise _UnknownTypeError
        self._next += 1
        return self._tokens[self._next - 1][0].strip()

    def _take(self, mark: str) -> bool:
        found = self._peek("mark") == mark
        self._next += found
        return found

    def _peek(self, kind: str) -> str | None:
        return self._tokens[self._next][kind] if self._next < len(self._tokens) else None


def _unquoted(token: str) -> str:
    quote = token[:1]
    return token[1:-1].replace(quote * 2, quote) if quote in ("'", '"') else token


def _list_of(item: ColumnType) -> ColumnType:
    if isinstance(item, sa.ARRAY):
        return sa.ARRAY(item.item_type, dimensions=(item.dimensions or 1) + 1)
    return sa.ARRAY(item)

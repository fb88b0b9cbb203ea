"""Checksums of the tables of a store, by which stores on any backends can be compared.

A table is identified by its number of rows and by a checksum that does not depend on their order: the sum,
modulo 2**128, of a hash of each row. A row is hashed by its values as text, however a database keeps them:
ids in hex, times in µs since 1970, and JSON with sorted keys and with numbers by their value, because a
database may give ``1e16`` back as ``10000000000000000``, or ``-0.0`` as ``0.0``.
"""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import sqlalchemy as sa

from fiberstore.contract.queries import Query
from fiberstore.records import to_epoch_us
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.conditions import FIBERS, KEYS, LOGS, MEMBERSHIPS
from fiberstore.sql.models import (
    EndedFiber,
    MergedFiber,
    NamedCheckpoint,
    PinnedFiber,
    PinnedLog,
    RegisteredVersion,
    identity_of,
)
from fiberstore.sql.translate import translate_errors

if TYPE_CHECKING:
    import pyarrow as pa

OnRows: TypeAlias = Callable[[str, int], None]
Key: TypeAlias = tuple[Any, ...]
"""What a row is ordered by; its last items are the primary key."""

COPY_PREFIX = "fiberstore copy "
"""Checkpoints whose name begins so tell how far a copy has come; they are not part of what a store holds."""

VERSIONS, CHECKPOINTS, MERGES, FIBER_PINS, LOG_PINS, ENDS = (
    model.metadata.tables[model.__tablename__]
    for model in (RegisteredVersion, NamedCheckpoint, MergedFiber, PinnedFiber, PinnedLog, EndedFiber)
)
LIFECYCLE_TABLES = (VERSIONS, CHECKPOINTS, MERGES, FIBER_PINS, LOG_PINS, ENDS)
_PLAIN_TABLES = (*LIFECYCLE_TABLES, KEYS)  # of which no query makes records

_ORDERS = {
    LOGS.name: ("timestamp", "log_id"),
    FIBERS.name: ("first_activity", "fiber_id"),
    MEMBERSHIPS.name: ("log_id", "fiber_id"),
}
_HASH_BYTES = 16
_MODULUS = 2 ** (8 * _HASH_BYTES)
_BATCH_ROWS = 4_096  # lines may be long
_NO_VALUE = "null"


@dataclass(frozen=True, slots=True)
class TableChecksum:
    """Number and checksum of the rows of one table.

    Attributes:
        rows: How many rows it has.
        checksum: Of its rows in any order, 32 hex digits; 0 of none.
    """

    rows: int
    checksum: str


def table_checksums(storage: SqlStorage, *, on_rows: OnRows | None = None) -> dict[str, TableChecksum]:
    """Read a whole store, in bounded memory, and return the checksum of each table by its name.

    Each table is read in a snapshot of its own. Progress of copies is left out, see ``COPY_PREFIX``.

    Args:
        storage: The store.
        on_rows: Called with the name of a table and how many more of its rows were read.

    Raises:
        StorageError: The database failed, or holds what no record can hold.
    """
    rows: dict[str, Iterable[Sequence[bytes]]] = {
        name: map(_of_batch, record_batches(query)) for name, query in _queries(storage).items()
    }
    for table in _PLAIN_TABLES:
        rows[table.name] = map(_of_rows, _lifecycle_rows_of(storage, table))
    return {name: _sum(name, batches, on_rows) for name, batches in rows.items()}


def keyed_rows(
    storage: SqlStorage, name: str, *, on_rows: OnRows | None = None
) -> Generator[tuple[Key, bytes]]:
    """Yield each row of a table as its key and its digest, by ascending keys.

    Args:
        storage: The store.
        name: The name of the table.
        on_rows: Called with the name and how many more of its rows were read.
    """
    if name in _ORDERS:
        batches = record_batches(_queries(storage)[name])
        keyed = ((_keys(batch, _ORDERS[name]), _of_batch(batch)) for batch in batches)
    else:
        (table,) = (table for table in _PLAIN_TABLES if table.name == name)
        width = len(identity_of(table))
        batches_of = _lifecycle_rows_of(storage, table)
        keyed = (([tuple(row[:width]) for row in rows], _of_rows(rows)) for rows in batches_of)
    for keys, rows in keyed:
        yield from zip(keys, _digests(rows), strict=True)
        if on_rows is not None:
            on_rows(name, len(keys))


def record_batches(query: Query[Any]) -> "Iterator[pa.RecordBatch]":
    """Yield the rows of a query as Arrow batches; see ``Query.to_arrow``."""
    with query.to_arrow(_BATCH_ROWS) as reader:
        yield from reader


def lifecycle_rows(
    connection: sa.Connection, table: sa.Table, batch_rows: int
) -> Iterator[Sequence[sa.Row[Any]]]:
    """Yield the rows of a table by what identifies them, ascending, in lists of limited length."""
    statement = sa.select(table).order_by(*identity_of(table))
    if table is CHECKPOINTS:
        statement = statement.where(~CHECKPOINTS.c.name.startswith(COPY_PREFIX, autoescape=True))
    return partitions(connection, statement, batch_rows)


def partitions(
    connection: sa.Connection, statement: sa.Select[Any], batch_rows: int
) -> Iterator[Sequence[sa.Row[Any]]]:
    """Yield the rows of a statement in lists of limited length."""
    in_parts = statement.execution_options(yield_per=batch_rows)
    with translate_errors(), connection.execute(in_parts) as rows:  # who reads only some of them ends it
        yield from rows.partitions()


def canonical_json(text: str | None) -> str:
    """Return the same text for every JSON text of a value; that of null, and of no value, is ``null``."""
    if text is None:
        return _NO_VALUE
    return _encode(_DECODER.decode(text))


def _exact(digits: str) -> float | int:
    number = float(digits)
    return int(Decimal(digits)) if number.is_integer() else number


_DECODER = json.JSONDecoder(parse_float=_exact)
_encode = json.JSONEncoder(sort_keys=True).encode


def _lifecycle_rows_of(storage: SqlStorage, table: sa.Table) -> Iterator[Sequence[sa.Row[Any]]]:
    with translate_errors(), storage.engine.connect() as connection:
        yield from lifecycle_rows(connection, table, _BATCH_ROWS)


def _queries(storage: SqlStorage) -> dict[str, Query[Any]]:
    return {LOGS.name: storage.logs, FIBERS.name: storage.fibers, MEMBERSHIPS.name: storage.memberships}


def _keys(batch: "pa.RecordBatch", names: Sequence[str]) -> list[Key]:
    return list(zip(*(_plain(batch[name]).to_pylist() for name in names), strict=True))


def _sum(name: str, batches: Iterable[Sequence[bytes]], on_rows: OnRows | None) -> TableChecksum:
    rows = total = 0
    for batch in batches:
        total += sum(map(int.from_bytes, _digests(batch)))
        rows += len(batch)
        if on_rows is not None:
            on_rows(name, len(batch))
    return TableChecksum(rows, f"{total % _MODULUS:0{2 * _HASH_BYTES}x}")


def _digests(rows: Sequence[bytes]) -> list[bytes]:
    return [blake2b(row, digest_size=_HASH_BYTES).digest() for row in rows]


def _of_batch(batch: "pa.RecordBatch") -> list[bytes]:
    """Serialize records for hashing: their values, separated by NUL, which no text holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [_as_text(name, batch[name]) for name in batch.schema.names]
    separator = pa.scalar("\0", pa.large_string())
    joined = pc.binary_join_element_wise(*columns, separator, null_handling="replace", null_replacement="\0")
    rows: list[bytes] = joined.cast(pa.large_binary()).to_pylist()
    return rows


def _as_text(name: str, values: "pa.Array") -> "pa.Array":
    import pyarrow as pa

    if name == "attributes":
        return pa.array(map(canonical_json, values.to_pylist()), pa.large_string())
    return _plain(values).cast(pa.large_string())


def _plain(values: "pa.Array") -> "pa.Array":
    """Return times as µs since 1970, and other values as they are."""
    import pyarrow as pa

    return values.view(pa.int64()) if pa.types.is_timestamp(values.type) else values


def _of_rows(rows: Sequence[sa.Row[Any]]) -> list[bytes]:
    return ["\0".join(map(_canonical, row)).encode() for row in rows]


def _canonical(value: UUID | datetime | str | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"={value}"  # an empty text is not the same as none
    if isinstance(value, datetime):
        value = to_epoch_us(value)
    return str(value)

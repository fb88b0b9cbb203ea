"""Tables written anew, without what was deleted from them."""

from fiberstore.errors import translate_errors
from fiberstore.lifecycle import Compacted
from fiberstore.models import Base
from fiberstore.postgresql.arrivals import ARRIVALS
from fiberstore.postgresql.connection import Connection

_TABLES = [*Base.metadata.tables, *ARRIVALS]


def compact(connection: Connection) -> Compacted:
    """See ``LifecycleStorage.compact``.

    Args:
        connection: One outside a transaction.
    """
    with translate_errors():
        before = _size_bytes(connection)
        for table in _TABLES:
            connection.write(f"VACUUM (FULL, ANALYZE) {table}")
        return Compacted(before, _size_bytes(connection))


def _size_bytes(connection: Connection) -> int:
    sql = "SELECT sum(pg_total_relation_size(name::regclass))::bigint FROM unnest($1::text[]) AS name"
    ((size_bytes,),) = connection.fetch_rows(sql, [_TABLES])
    return int(size_bytes)

"""The tables that note the order in which rows are stored; see ``arrival_order``."""

from fiberstore.sql.connection import StoreConnection

ARRIVALS = {"log_arrivals": "log_id", "fiber_arrivals": "fiber_id"}


def renumber_restored(connection: StoreConnection) -> None:
    """Let the rows of a dump that was restored in another cluster come before all that is stored since.

    A dump keeps the numbers of the transactions that stored the rows, and another cluster counts its own.
    Rows that a statement sees have smaller numbers than the next transaction of their cluster.

    Args:
        connection: One outside a transaction.
    """
    for table in ARRIVALS:
        from_elsewhere = "xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        ((is_there,),) = connection.fetch_rows("SELECT to_regclass($1) IS NOT NULL", [table])
        if not is_there:
            continue
        rows = f"{table} WHERE {from_elsewhere}"
        ((is_restored,),) = connection.fetch_rows(f"SELECT EXISTS (SELECT FROM {rows})", ())  # noqa: S608  # ours
        if is_restored:
            connection.write(f"UPDATE {table} SET xid = 0 WHERE {from_elsewhere}")  # noqa: S608  # ours

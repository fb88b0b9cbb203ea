"""The statements that spread the tables over the nodes of a distributed engine.

Logs and memberships are placed by ``log_id``, so that the join behind ``get_fiber_logs`` stays on one node
where the engine can keep it there; fibers by ``fiber_id``. Ids of logs begin with their time, so they are
hashed: placed by range, all new rows would go to one node. docs/distribution.md has the rules of each engine.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from fiberstore.errors import DatabaseError
from fiberstore.postgresql import check_driver, create_engine
from fiberstore.sql.engine import is_postgresql
from fiberstore.sql.models import Base
from fiberstore.sql.translate import translate_errors

if TYPE_CHECKING:
    import psycopg  # only a server needs the driver, to print the statements takes none

    from fiberstore.postgresql.connection import Connection

DistributedEngine: TypeAlias = Literal["citus", "cockroachdb", "yugabytedb"]

DISTRIBUTION_COLUMNS = {
    "raw_logs": "log_id",
    "fiber_memberships": "log_id",
    "fibers": "fiber_id",
    "fiber_keys": "fiber_id",
    "fiber_ends": "fiber_id",
}
"""The column that places the rows of each large table."""

KEYED_TABLES = tuple(name for name in DISTRIBUTION_COLUMNS if Base.metadata.tables[name].primary_key)
"""Those with a primary key; CockroachDB and YugabyteDB spread the rows of the others by themselves."""

SMALL_TABLES = ("fiber_config_versions", "fiber_checkpoints", "fiber_merges", "fiber_pins", "log_pins")
"""The tables that every node may have a copy of."""

_NAMES: dict[DistributedEngine, str] = {
    "citus": "Citus",
    "cockroachdb": "CockroachDB",
    "yugabytedb": "YugabyteDB",
}
# Two tables with as many tablets have the same bounds of the hash of log_id.
_TABLETS = 16
_TIME_INDEX = "idx_raw_logs_timestamp"
_ARRIVALS = {"raw_logs": "log_arrivals", "fibers": "fiber_arrivals"}


def distribution_statements(engine: DistributedEngine) -> list[str]:
    """Return the statements for an engine, in their order; each is to run in a transaction of its own.

    They can be run again: on Citus and YugabyteDB they change nothing then, on CockroachDB they build indexes
    once more.

    Args:
        engine: Citus and CockroachDB distribute the tables that ``init_schema`` has made. YugabyteDB places a
            table when it is made, so there they come before ``init_schema``, which then adds the rest.

    Raises:
        ValueError: It is another engine.
    """
    match engine:
        case "citus":
            return _citus()
        case "cockroachdb":
            return _cockroachdb()
        case "yugabytedb":
            return _yugabytedb()
    raise ValueError(f"engine must be one of {', '.join(get_args(DistributedEngine))}, got {engine!r}")


def distribute(
    url: str, engine: DistributedEngine, on_notice: Callable[[str], None] | None = None
) -> Iterator[str]:
    """Run the statements for an engine on its server; yield each when it has run.

    What has run stays when a later one fails; run all of them again then.

    Args:
        url: ``postgresql+psycopg://…``, for all three.
        engine: See ``distribution_statements``.
        on_notice: Called with each notice of the server, such as that a table exists already.

    Raises:
        ValueError: It is the URL of something else.
        DatabaseError: The server cannot be reached, is another engine, or refuses a statement.
    """
    statements = distribution_statements(engine)
    with _connected(url) as connection, translate_errors():
        if on_notice is not None:
            connection.add_notice_handler(lambda notice: on_notice(notice.message_primary or ""))
        _check_engine(connection, engine)
        for statement in statements:
            connection.execute(statement.encode())
            yield statement


@contextmanager
def _connected(url: str) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    if not is_postgresql(url):
        raise ValueError(
            "only a server is distributed, not a file; give a URL such as postgresql+psycopg://host/database"
        )
    check_driver()
    engine = create_engine(url)
    try:
        with translate_errors():
            pooled = engine.raw_connection()
        with closing(pooled):
            connection = cast("Connection", pooled.dbapi_connection)
            connection.autocommit = True
            yield connection
    finally:
        engine.dispose()


def _check_engine(connection: "psycopg.Connection[tuple[object, ...]]", engine: DistributedEngine) -> None:
    has_citus = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").rowcount > 0
    ((version,),) = connection.execute("SELECT version()").fetchall()
    found = engine_of(str(version), has_citus=has_citus)
    if found == engine:
        return
    name = _NAMES[found] if found else str(version).partition(" on ")[0]
    advice = "run CREATE EXTENSION citus in its database" if engine == "citus" else "give the URL of one"
    raise DatabaseError(f"the server is {name}, not {_NAMES[engine]}; {advice}")


def engine_of(version: str, *, has_citus: bool) -> DistributedEngine | None:
    """Return which engine a server is, or None of another, such as PostgreSQL alone.

    Args:
        version: What ``SELECT version()`` returns.
        has_citus: Whether ``pg_extension`` has a row for ``citus``.
    """
    if version.startswith("CockroachDB"):
        return "cockroachdb"
    if "-YB-" in version:
        return "yugabytedb"
    return "citus" if has_citus else None


def _citus() -> list[str]:
    """Distribute the large tables, and give every node a copy of the small ones.

    These are joined to large ones by either id, and ``UNIQUE (active)`` holds over all rows; copies allow it.
    """
    # Fibers and memberships are joined by fiber_id, which places only the fibers.
    allow_joins = (
        "DO $$ BEGIN EXECUTE format("
        "'ALTER DATABASE %I SET citus.enable_repartition_joins = on', current_database()); END $$"
    )
    return [
        # Citus distributes no table that has triggers.
        *(
            f"DROP TRIGGER IF EXISTS {arrivals}_{event} ON {table}"
            for table, arrivals in _ARRIVALS.items()
            for event in ("add", "remove", "clear")
        ),
        "DROP TRIGGER IF EXISTS fiber_arrivals_renew ON fibers",
        _distribute("raw_logs", colocate_with="none"),
        _distribute("fiber_memberships", colocate_with="raw_logs"),
        _distribute("fibers", colocate_with="none"),
        _distribute("fiber_keys", colocate_with="fibers"),
        _distribute("fiber_ends", colocate_with="fibers"),
        *map(_copy_to_every_node, SMALL_TABLES),
        allow_joins,
    ]


def _distribute(table: str, *, colocate_with: str) -> str:
    return (
        f"SELECT create_distributed_table('{table}', '{DISTRIBUTION_COLUMNS[table]}', "  # noqa: S608
        f"colocate_with => '{colocate_with}') WHERE NOT EXISTS (SELECT FROM pg_dist_partition "
        f"WHERE logicalrelid = '{table}'::regclass AND partmethod = 'h')"
    )


def _copy_to_every_node(table: str) -> str:
    return (
        f"SELECT create_reference_table('{table}') WHERE NOT EXISTS (SELECT FROM pg_dist_partition "  # noqa: S608
        f"WHERE logicalrelid = '{table}'::regclass AND repmodel = 't')"
    )


def _cockroachdb() -> list[str]:
    """Hash the primary keys and the index on time; rows of two tables cannot be kept together."""
    return [
        *(
            # Together, for ALTER PRIMARY KEY would keep an index in the old order, where all new rows meet.
            f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey, "
            f"ADD CONSTRAINT {table}_pkey PRIMARY KEY ({', '.join(_key(table))}) USING HASH"
            for table in KEYED_TABLES
        ),
        f"DROP INDEX IF EXISTS {_TIME_INDEX}",
        f"CREATE INDEX {_TIME_INDEX} ON raw_logs (timestamp) USING HASH",
    ]


def _yugabytedb() -> list[str]:
    """Make the large tables, and the index on time, which would be a hash of it by default, in its order."""
    return [
        *map(_create_hashed, KEYED_TABLES),
        f"CREATE INDEX IF NOT EXISTS {_TIME_INDEX} ON raw_logs (timestamp ASC)",
    ]


def _create_hashed(table: str) -> str:
    create = sa.schema.CreateTable(Base.metadata.tables[table], if_not_exists=True)
    plain = " ".join(str(create.compile(dialect=postgresql.dialect())).split())  # type: ignore[no-untyped-call]
    first, *others = _key(table)
    key = ", ".join([f"{first} HASH", *(f"{other} ASC" for other in others)])
    hashed = plain.replace(f"PRIMARY KEY ({', '.join(_key(table))})", f"PRIMARY KEY ({key})")
    return f"{hashed} SPLIT INTO {_TABLETS} TABLETS"


def _key(table: str) -> list[str]:
    return [column.name for column in Base.metadata.tables[table].primary_key]

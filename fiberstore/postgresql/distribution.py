"""The statements that spread the tables over the nodes of a Citus cluster.

Logs and memberships are placed by ``log_id``, so that the join behind ``get_fiber_logs`` stays on one node;
fibers by ``fiber_id``. docs/distribution.md says what Citus keeps of the contract.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, cast

from fiberstore.errors import DatabaseError
from fiberstore.postgresql import check_driver, create_engine
from fiberstore.postgresql.citus import has_citus
from fiberstore.sql.engine import is_postgresql
from fiberstore.sql.translate import translate_errors

if TYPE_CHECKING:
    # Only a server needs the driver, to print the statements takes none.
    from fiberstore.postgresql.connection import PostgresConnection

DISTRIBUTION_COLUMNS = {
    "raw_logs": "log_id",
    "fiber_memberships": "log_id",
    "log_pins": "log_id",
    "fibers": "fiber_id",
    "fiber_keys": "fiber_id",
    "fiber_ends": "fiber_id",
    "fiber_pins": "fiber_id",
}
"""The column that places the rows of each distributed table."""

# A batch goes to each shard by a connection of its own, and Citus keeps one to a worker by default: with 32
# shards, a batch of 100 takes it some fifteen times as long as with these.
SHARDS = KEPT_CONNECTIONS = 8

SMALL_TABLES = ("fiber_config_versions", "fiber_checkpoints", "fiber_merges")
"""The tables that every node has a copy of."""


# Citus distributes no table with triggers, and lets nobody name one on a table that it has distributed.
_DROP_TRIGGER = (
    "DO $$ BEGIN IF EXISTS (SELECT FROM pg_trigger WHERE tgname = 'fibers_arrive_again' "
    "AND tgrelid = 'fibers'::regclass) THEN DROP TRIGGER fibers_arrive_again ON fibers; END IF; END $$"
)


def distribution_statements() -> list[str]:
    """Return the statements, in their order; run again, they change nothing.

    Each is to run in a transaction of its own, after ``init_schema``.
    """
    return [
        _DROP_TRIGGER,
        f"SET citus.shard_count = {SHARDS}",
        _distribute("raw_logs", colocate_with="none"),
        _distribute("fiber_memberships", colocate_with="raw_logs"),
        _distribute("log_pins", colocate_with="raw_logs"),
        _distribute("fibers", colocate_with="none"),
        _distribute("fiber_keys", colocate_with="fibers"),
        _distribute("fiber_ends", colocate_with="fibers"),
        _distribute("fiber_pins", colocate_with="fibers"),
        *map(_copy_to_every_node, SMALL_TABLES),
        _set_in_database("citus.max_cached_conns_per_worker", KEPT_CONNECTIONS),
        _set_in_database("citus.enable_repartition_joins", "on"),  # for what sessions join by fiber_id
    ]


def distribute(url: str, on_notice: Callable[[str], None] | None = None) -> Iterator[str]:
    """Run the statements on a coordinator; yield each when it has run.

    What has run stays when a later one fails; run all of them again then.

    Args:
        url: ``postgresql+psycopg://…``.
        on_notice: Called with each notice of the server.

    Raises:
        ValueError: It is the URL of something else.
        DatabaseError: The server cannot be reached, has no Citus, or refuses a statement.
    """
    with _connected(url) as connection, translate_errors():
        if on_notice is not None:
            connection.add_notice_handler(lambda notice: on_notice(notice.message_primary or ""))
        if not has_citus(connection):
            raise DatabaseError("the database has no Citus; run CREATE EXTENSION citus in it")
        for statement in distribution_statements():
            connection.execute(statement.encode())
            yield statement


@contextmanager
def _connected(url: str) -> Iterator["PostgresConnection"]:
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
            connection = cast("PostgresConnection", pooled.dbapi_connection)
            connection.autocommit = True
            yield connection
    finally:
        engine.dispose()


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


def _set_in_database(name: str, value: object) -> str:
    return f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {name} = {value}', current_database()); END $$"

"""The statements for Citus, on a PostgreSQL server with functions that refuse what Citus does."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.sql import visitors

from fiberstore.checks import MAX_ROWS
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.errors import DatabaseError
from fiberstore.postgresql import PostgresStorage, create_engine
from fiberstore.postgresql.distribution import (
    DISTRIBUTION_COLUMNS,
    SMALL_TABLES,
    distribute,
    distribution_statements,
)
from fiberstore.repositories import memberships
from fiberstore.sql import migrate
from fiberstore.sql.conditions import to_sql
from fiberstore.sql.models import Base
from fiberstore.testing.examples import NOON, at, fiber, log
from fiberstore.testing.filters import numbers
from tests.support.command_line import Run, runner
from tests.support.postgres_server import plain

DISTRIBUTES = re.compile("SELECT create_").match

# What Citus refuses, by its documentation or as seen.
CITUS = """
CREATE TABLE pg_dist_partition (
    logicalrelid regclass PRIMARY KEY, partmethod "char", repmodel "char", partkey text, colocationid int
);
CREATE SEQUENCE colocation;
CREATE FUNCTION refuse_unplaceable(placed regclass) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = placed) THEN
        RAISE 'table "%" is already distributed', placed;
    END IF;
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = placed AND NOT tgisinternal) THEN
        RAISE 'cannot distribute relation "%" because it has triggers', placed;
    END IF;
END $$;
CREATE FUNCTION create_distributed_table(
    placed regclass, by_column text, method text DEFAULT 'hash', colocate_with text DEFAULT 'default'
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    number int2;
    type oid;
    place int := nextval('colocation');
BEGIN
    PERFORM refuse_unplaceable(placed);
    SELECT attnum, atttypid INTO STRICT number, type
        FROM pg_attribute WHERE attrelid = placed AND attname = by_column AND attnum > 0;
    IF EXISTS (
        SELECT FROM pg_index WHERE indrelid = placed AND indisunique AND NOT number = ANY (indkey)
    ) THEN
        RAISE 'cannot create constraint on "%": unique without the distribution column', placed;
    END IF;
    IF colocate_with NOT IN ('none', 'default') THEN
        SELECT colocationid INTO STRICT place FROM pg_dist_partition JOIN pg_attribute
            ON attrelid = logicalrelid AND attname = partkey AND atttypid = type
            WHERE logicalrelid = colocate_with::regclass AND partmethod = 'h';
    END IF;
    INSERT INTO pg_dist_partition VALUES (placed, 'h', 's', by_column, place);
    RAISE NOTICE 'distributed %', placed;
END $$;
CREATE FUNCTION create_reference_table(placed regclass) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    PERFORM refuse_unplaceable(placed);
    INSERT INTO pg_dist_partition VALUES (placed, 'n', 't', NULL, nextval('colocation'));
END $$;
CREATE FUNCTION citus_total_relation_size(placed regclass) RETURNS bigint LANGUAGE sql AS $$
    SELECT pg_total_relation_size(placed) + 1000000000
$$;
CREATE FUNCTION refuse_triggers() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM pg_dist_partition WHERE partmethod = 'h') THEN
        RAISE 'triggers are not supported on distributed tables';
    END IF;
END $$;
CREATE EVENT TRIGGER refuse_triggers ON ddl_command_start WHEN TAG IN ('DROP TRIGGER')
    EXECUTE FUNCTION refuse_triggers();
SET allow_system_table_mods = on;
INSERT INTO pg_extension VALUES (65000, 'citus', 10, 2200, false, '0', NULL, NULL);
"""


@pytest.fixture
def empty(postgres_url: str) -> Iterator[sa.Engine]:
    """A database of its own, without tables."""
    engine = create_engine(postgres_url)
    yield engine
    engine.dispose()


@pytest.fixture
def filled(empty: sa.Engine) -> sa.Engine:
    """A database with the tables."""
    migrate.upgrade(empty)
    return empty


@pytest.fixture
def citus(filled: sa.Engine) -> Iterator[sa.Engine]:
    """A schema with the tables, on what is Citus as far as it can be."""
    execute(filled, CITUS)
    yield filled
    execute(filled, "SET allow_system_table_mods = on", "DELETE FROM pg_extension WHERE extname = 'citus'")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def execute(engine: sa.Engine, *statements: str) -> None:
    with psycopg.connect(plain(engine.url), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def shown(engine: sa.Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def described(engine: sa.Engine) -> dict[str, object]:
    inspector = sa.inspect(engine)
    return {
        name: (
            [
                (column["name"], str(column["type"]), column["nullable"])
                for column in inspector.get_columns(name)
            ],
            inspector.get_pk_constraint(name),
            sorted((index["name"] or "", index["column_names"]) for index in inspector.get_indexes(name)),
        )
        for name in inspector.get_table_names()
    }


# ---------------------------------------------------------------- the rules, of the models


def test_every_table_has_a_place() -> None:
    assert {*DISTRIBUTION_COLUMNS, *SMALL_TABLES} == set(Base.metadata.tables)


@pytest.mark.parametrize("name", [name for name in DISTRIBUTION_COLUMNS if name != "fiber_keys"])
def test_what_is_unique_in_a_large_table_contains_the_column_that_places_it(name: str) -> None:
    table = Base.metadata.tables[name]
    unique = [
        set(each.columns.keys())
        for each in table.constraints
        if isinstance(each, sa.PrimaryKeyConstraint | sa.UniqueConstraint)
    ]
    unique += [set(index.columns.keys()) for index in table.indexes if index.unique]
    assert unique
    assert all(DISTRIBUTION_COLUMNS[name] in columns for columns in unique)
    assert next(iter(table.primary_key)).name == DISTRIBUTION_COLUMNS[name]


def test_no_constraint_leads_from_one_table_to_another() -> None:
    assert not any(table.foreign_keys for table in Base.metadata.tables.values())


def test_logs_and_memberships_are_placed_by_columns_of_one_type() -> None:
    logs, joined = (
        Base.metadata.tables[name].c[DISTRIBUTION_COLUMNS[name]] for name in ("raw_logs", "fiber_memberships")
    )
    assert str(logs.type) == str(joined.type)


LOGS_OF_MEMBERSHIPS = {("fiber_memberships", "raw_logs", "log_id", "log_id")}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (memberships._FOUND, LOGS_OF_MEMBERSHIPS),
        (to_sql(Fibers.c.logs.any(Logs.c.source_id == "a")), LOGS_OF_MEMBERSHIPS),
        (to_sql(Logs.c.fibers.any(Fibers.c.fiber_type == "a")), set()),
    ],
    ids=["get_fiber_logs", "logs.any", "fibers.any"],
)
def test_tables_are_joined_by_what_places_both(
    statement: sa.ClauseElement, expected: set[tuple[str, ...]]
) -> None:
    joins = {
        (left.table.name, right.table.name, left.name, right.name)
        for each in visitors.iterate(statement)
        if isinstance(each, sa.BinaryExpression)
        for left, right in [(each.left, each.right)]
        if isinstance(left, sa.Column) and isinstance(right, sa.Column)
    }
    assert joins == expected


# ---------------------------------------------------------------- Citus


def test_the_statements_for_citus_keep_its_rules(citus: sa.Engine) -> None:
    execute(citus, *distribution_statements())
    with citus.connect() as connection:
        rows = connection.execute(
            sa.text("SELECT logicalrelid::text, partkey, repmodel, colocationid FROM pg_dist_partition")
        )
        placed = {name: (column, model, place) for name, column, model, place in rows}
    assert {name: column for name, (column, _, _) in placed.items() if column} == DISTRIBUTION_COLUMNS
    assert {name for name, (_, model, _) in placed.items() if model == "t"} == set(SMALL_TABLES)
    assert placed["raw_logs"][2] == placed["fiber_memberships"][2] != placed["fibers"][2]
    assert placed["fibers"][2] == placed["fiber_keys"][2]


def test_citus_may_be_distributed_again(citus: sa.Engine) -> None:
    for _ in range(2):
        assert list(distribute(shown(citus))) == distribution_statements()


def test_citus_keeps_connections_to_few_shards(citus: sa.Engine) -> None:
    statements = list(distribute(shown(citus)))
    assert statements.index("SET citus.shard_count = 8") < statements.index(
        next(filter(DISTRIBUTES, statements))
    )
    with citus.connect() as connection:
        kept = connection.scalars(
            sa.text(
                "SELECT unnest(setconfig) FROM pg_db_role_setting "
                "JOIN pg_database AS d ON d.oid = setdatabase WHERE datname = current_database()"
            )
        ).all()
    assert {"citus.max_cached_conns_per_worker=8", "citus.enable_repartition_joins=on"} <= {*kept}


def test_sizes_are_those_of_the_shards(citus: sa.Engine) -> None:
    with PostgresStorage(shown(citus)) as storage:
        assert storage.prune(max_bytes=10**9, dry_run=True).file_bytes < 10**6
        list(distribute(shown(citus)))
        assert 3 * 10**9 < storage.prune(max_bytes=10**9, dry_run=True).file_bytes < 4 * 10**9
        assert storage.compact().bytes_after > 10**10 - 10**9


def test_limit_and_offset_are_together_a_number_that_citus_can_take(filled: sa.Engine) -> None:
    taken = []
    with PostgresStorage(shown(filled)) as storage:
        sa.event.listen(storage.engine, "before_cursor_execute", lambda *said: taken.append(said[3]))
        assert storage.query_logs_by_time(NOON, at(9), limit=MAX_ROWS, offset=7) == []
    assert all(sum(value for value in values if isinstance(value, int)) <= MAX_ROWS for values in taken)
    assert MAX_ROWS - 7 in taken[-1]


def test_on_citus_no_row_is_taken_for_one_of_another_cluster(citus: sa.Engine) -> None:
    with PostgresStorage(shown(citus)) as storage:
        storage.write_logs([log(1)])
        execute(citus, f"UPDATE raw_logs SET arrived = {2**60}")
        storage.init_schema()
    with citus.connect() as connection:
        assert connection.execute(sa.text("SELECT arrived FROM raw_logs")).scalar() == 2**60


def test_without_the_trigger_a_fiber_of_another_type_is_told_as_late(citus: sa.Engine) -> None:
    list(distribute(shown(citus)))
    with PostgresStorage(shown(citus)) as storage:
        logins = storage.fibers.where(Fibers.c.fiber_type == "login")
        storage.write_fibers([fiber(number, "login" if number < 3 else "request") for number in range(5)])
        of_all, of_type = storage.fibers.page(2), logins.page(2)
        storage.update_fiber(fiber(3, "login", first=at(-2)))
        storage.upsert_fibers([fiber(4, "login", first=at(-1))])
        for query, before in ((storage.fibers, of_all), (logins, of_type)):
            assert numbers(query.page(2, before.next).late) == [3, 4]


def test_a_trigger_of_ours_is_dropped_for_citus_and_no_other(citus: sa.Engine) -> None:
    trigger = "CREATE TRIGGER of_another AFTER INSERT ON fiber_memberships EXECUTE FUNCTION {}"
    execute(citus, trigger.format("suppress_redundant_updates_trigger()"))
    with pytest.raises(DatabaseError, match=r"fiber_memberships.*because it has triggers"):
        list(distribute(shown(citus)))


# ---------------------------------------------------------------- servers, and the command


def test_another_server_is_refused_and_left_alone(filled: sa.Engine, run: Run) -> None:
    before = described(filled)
    result = run("db", "distribute", "--apply", "--db", shown(filled))
    assert (result.code, result.out) == (1, "")
    assert "the database has no Citus" in result.err
    assert described(filled) == before


def test_the_command_prints_the_statements(run: Run) -> None:
    result = run("db", "distribute")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [f"{each};" for each in distribution_statements()]


def test_the_command_runs_the_statements_and_passes_notices_on(citus: sa.Engine, run: Run) -> None:
    for notice in ("fiberstore: distributed raw_logs\n", ""):
        result = run("db", "distribute", "--apply", "--db", shown(citus))
        assert result.code == 0
        assert result.out.splitlines() == [f"{each};" for each in distribution_statements()]
        assert notice in result.err
    with citus.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM pg_dist_partition")).scalar() == 10


def test_a_database_without_the_tables_is_told_what_makes_them(citus: sa.Engine) -> None:
    Base.metadata.drop_all(citus)
    with pytest.raises(DatabaseError, match=r'"fibers" does not exist\. init_schema'):
        list(distribute(shown(citus)))


def test_what_goes_by_the_order_of_arrival_is_refused_where_nothing_notes_it(filled: sa.Engine) -> None:
    with PostgresStorage(shown(filled)) as storage:
        storage.write_logs([log(number) for number in range(3)])
        execute(filled, "ALTER TABLE raw_logs DROP COLUMN arrived", "ALTER TABLE fibers DROP COLUMN arrived")
        for refused in (
            lambda: storage.logs.page(1),
            lambda: storage.logs.tail(timeout_s=0),
            storage.fibers.summaries,
        ):
            with pytest.raises(DatabaseError, match="no column arrived"):
                refused()
        assert len(storage.query_logs_by_time(NOON, at(9))) == 3
        assert len(list(storage.logs.iter_records())) == 3


def test_a_password_is_in_no_message(tmp_path: Path) -> None:
    for url in (
        "postgresql+psycopg://user:secret@127.0.0.1:1/store",
        "postgresql+psycopg://user:x@127.0.0.1:secret/store",
        f"postgresql+psycopg://user:secret@/store?host={tmp_path}",
        "mysql://user:secret@127.0.0.1/store",
    ):
        with pytest.raises((DatabaseError, ValueError)) as caught:
            list(distribute(url))
        assert "secret" not in str(caught.value)

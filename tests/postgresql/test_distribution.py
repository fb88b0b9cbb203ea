"""The statements for distributed engines: checked against the engines' rules, which no engine here runs.

A PostgreSQL server stands in for Citus, with functions of the same names that refuse what Citus refuses. Of
the other engines' statements it runs what is left without their own words.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.sql import visitors

from fiberstore.contract.queries import Fibers, Logs
from fiberstore.errors import DatabaseError
from fiberstore.postgresql import PostgresStorage, create_engine
from fiberstore.postgresql.distribution import (
    DISTRIBUTION_COLUMNS,
    KEYED_TABLES,
    SMALL_TABLES,
    DistributedEngine,
    distribute,
    distribution_statements,
    engine_of,
)
from fiberstore.repositories import memberships
from fiberstore.sql import migrate
from fiberstore.sql.conditions import to_sql
from fiberstore.sql.models import Base
from fiberstore.testing.examples import NOON, at, log
from tests.support.command_line import Run, runner
from tests.support.postgres_server import plain

# What create_distributed_table and create_reference_table refuse, by the documentation of Citus.
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
END $$;
CREATE FUNCTION create_reference_table(placed regclass) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    PERFORM refuse_unplaceable(placed);
    INSERT INTO pg_dist_partition VALUES (placed, 'n', 't', NULL, nextval('colocation'));
END $$;
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


@pytest.mark.parametrize("name", KEYED_TABLES)
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


@pytest.mark.parametrize(
    "statement",
    [memberships._FOUND, to_sql(Fibers.c.logs.any(Logs.c.source_id == "a"))],
    ids=["get_fiber_logs", "logs.any"],
)
def test_logs_are_joined_to_memberships_by_what_places_both(statement: sa.ClauseElement) -> None:
    joins = {
        (left.table.name, right.table.name, left.name, right.name)
        for each in visitors.iterate(statement)
        if isinstance(each, sa.BinaryExpression)
        for left, right in [(each.left, each.right)]
        if isinstance(left, sa.Column) and isinstance(right, sa.Column)
    }
    assert joins == {("fiber_memberships", "raw_logs", "log_id", "log_id")}


# ---------------------------------------------------------------- Citus


def test_the_statements_for_citus_keep_its_rules(citus: sa.Engine) -> None:
    execute(citus, *distribution_statements("citus"))
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
        assert list(distribute(shown(citus), "citus")) == distribution_statements("citus")


def test_triggers_on_arrivals_are_dropped_for_citus_and_no_others(citus: sa.Engine) -> None:
    function = "suppress_redundant_updates_trigger()"
    trigger = f"CREATE OR REPLACE TRIGGER {{}} AFTER INSERT ON {{}} EXECUTE FUNCTION {function}"
    for table, arrivals in [("raw_logs", "log_arrivals"), ("fibers", "fiber_arrivals")]:
        execute(citus, *(trigger.format(f"{arrivals}_{event}", table) for event in ("add", "remove")))
    execute(citus, *distribution_statements("citus"))
    execute(citus, "TRUNCATE pg_dist_partition", trigger.format("of_another", "fiber_memberships"))
    with pytest.raises(DatabaseError, match=r"fiber_memberships.*because it has triggers"):
        list(distribute(shown(citus), "citus"))


# ---------------------------------------------------------------- CockroachDB


def test_what_cockroachdb_hashes_is_the_keys_and_the_time(filled: sa.Engine) -> None:
    """Without its own words, its statements leave the tables as they were."""
    statements = distribution_statements("cockroachdb")
    hashed = [statement for statement in statements if statement.endswith(" USING HASH")]
    assert len(hashed) == len(KEYED_TABLES) + 1
    before = described(filled)
    for _ in range(2):
        execute(filled, *(statement.removesuffix(" USING HASH") for statement in statements))
        assert described(filled) == before


# ---------------------------------------------------------------- YugabyteDB


def without_sharding(statement: str) -> str:
    return re.sub(r" (HASH|ASC)(?=[,)])| SPLIT INTO \d+ TABLETS$", "", statement)


def test_the_tables_for_yugabytedb_are_those_of_the_schema(empty: sa.Engine) -> None:
    Base.metadata.create_all(empty)
    expected = described(empty)
    Base.metadata.drop_all(empty)
    for _ in range(2):
        execute(empty, *map(without_sharding, distribution_statements("yugabytedb")))
    assert set(described(empty)) == set(KEYED_TABLES)
    Base.metadata.create_all(empty)
    for table in Base.metadata.tables.values():
        for index in table.indexes:
            index.create(empty, checkfirst=True)
    assert described(empty) == expected


def test_yugabytedb_hashes_the_columns_that_place_the_rows() -> None:
    found = {}
    for statement in distribution_statements("yugabytedb")[:-1]:
        (place,) = re.findall(
            r"^CREATE TABLE IF NOT EXISTS (\w+) .* PRIMARY KEY \((\w+) HASH[,)].* SPLIT INTO (\d+) TABLETS$",
            statement,
        )
        found[place[0]] = place[1:]
    assert {name: column for name, (column, _) in found.items()} == {
        name: DISTRIBUTION_COLUMNS[name] for name in KEYED_TABLES
    }
    assert found["raw_logs"] == found["fiber_memberships"]


# ---------------------------------------------------------------- servers, and the command


@pytest.mark.parametrize(
    ("version", "has_citus", "engine"),
    [
        ("PostgreSQL 18.1 on x86_64-pc-linux-gnu, compiled by gcc", False, None),
        ("PostgreSQL 18.1 on x86_64-pc-linux-gnu, compiled by gcc", True, "citus"),
        ("CockroachDB CCL v26.1.0 (x86_64-pc-linux-gnu, built 2026/02/01 go1.25)", False, "cockroachdb"),
        ("PostgreSQL 15.12-YB-2025.2.0.0-b0 on x86_64-pc-linux-gnu, compiled by clang", False, "yugabytedb"),
    ],
)
def test_an_engine_is_known_by_what_it_says(version: str, has_citus: bool, engine: str | None) -> None:
    assert engine_of(version, has_citus=has_citus) == engine


@pytest.mark.parametrize("engine", ["citus", "cockroachdb", "yugabytedb"])
def test_another_server_is_refused_and_left_alone(
    filled: sa.Engine, run: Run, engine: DistributedEngine
) -> None:
    before = described(filled)
    result = run("db", "distribute", "--engine", engine, "--apply", "--db", shown(filled))
    assert (result.code, result.out) == (1, "")
    assert re.search("the server is PostgreSQL 18[.0-9]+, not (Citus|CockroachDB|YugabyteDB); ", result.err)
    assert described(filled) == before


@pytest.mark.parametrize("engine", ["citus", "cockroachdb", "yugabytedb"])
def test_the_command_prints_the_statements(run: Run, engine: DistributedEngine) -> None:
    result = run("db", "distribute", "--engine", engine)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [f"{each};" for each in distribution_statements(engine)]


def test_the_command_runs_the_statements_and_passes_notices_on(citus: sa.Engine, run: Run) -> None:
    for _ in range(2):
        result = run("db", "distribute", "--engine", "citus", "--apply", "--db", shown(citus))
        assert result.code == 0
        assert result.out.splitlines() == [f"{each};" for each in distribution_statements("citus")]
    assert 'fiberstore: trigger "log_arrivals_add" for relation "raw_logs" does not exist' in result.err
    with citus.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM pg_dist_partition")).scalar() == 10


def test_a_database_without_the_tables_is_told_what_makes_them(citus: sa.Engine) -> None:
    Base.metadata.drop_all(citus)
    with pytest.raises(DatabaseError, match=r'"raw_logs" does not exist\. init_schema'):
        list(distribute(shown(citus), "citus"))


def test_what_goes_by_the_order_of_arrival_is_refused_where_nothing_notes_it(citus: sa.Engine) -> None:
    with PostgresStorage(shown(citus)) as storage:
        storage.write_logs([log(number) for number in range(3)])
        cursor = storage.logs.page(1).next
        list(distribute(shown(citus), "citus"))
        for refused in (
            lambda: storage.logs.page(1, cursor),
            lambda: storage.logs.page(1),
            lambda: storage.logs.tail(timeout_s=0),
            storage.fibers.summaries,
        ):
            with pytest.raises(DatabaseError, match="does not note"):
                refused()
        assert len(storage.query_logs_by_time(NOON, at(9))) == 3
        assert len(list(storage.logs.iter_records())) == 3


def test_an_engine_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="one of citus, cockroachdb, yugabytedb, got 'oracle'"):
        distribution_statements(cast("DistributedEngine", "oracle"))


def test_a_password_is_in_no_message(tmp_path: Path) -> None:
    for url in (
        "postgresql+psycopg://user:secret@127.0.0.1:1/store",
        "postgresql+psycopg://user:x@127.0.0.1:secret/store",
        f"postgresql+psycopg://user:secret@/store?host={tmp_path}",
        "mysql://user:secret@127.0.0.1/store",
    ):
        with pytest.raises((DatabaseError, ValueError)) as caught:
            list(distribute(url, "citus"))
        assert "secret" not in str(caught.value)

"""The schema: one path, in both directions, on new databases and on ones that were there before."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from shutil import copytree

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import make_url

from fiberstore import Base, DatabaseError, DuckDBStorage, SchemaVersionError, open_storage
from fiberstore.opening import create_engine
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql import migrate, revisions
from fiberstore.testing.examples import log, uid
from tests.support import postgres_server
from tests.support.parameters import parametrize_mostly_slow

ROOT = Path(__file__).parents[2]

PLAIN_DDL = """
CREATE TABLE IF NOT EXISTS raw_logs (
    log_id UUID PRIMARY KEY, timestamp TIMESTAMPTZ NOT NULL, source_id VARCHAR NOT NULL,
    raw_text VARCHAR NOT NULL, ingestion_time TIMESTAMPTZ DEFAULT now(), config_version UBIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS fibers (
    fiber_id UUID PRIMARY KEY, fiber_type VARCHAR NOT NULL, config_version UBIGINT NOT NULL,
    attributes JSON, first_activity TIMESTAMPTZ NOT NULL,
    last_activity TIMESTAMPTZ NOT NULL, closed BOOLEAN NOT NULL DEFAULT FALSE);
CREATE TABLE IF NOT EXISTS fiber_memberships (
    log_id UUID NOT NULL, fiber_id UUID NOT NULL, config_version UBIGINT NOT NULL,
    PRIMARY KEY (log_id, fiber_id));
CREATE INDEX IF NOT EXISTS idx_raw_logs_timestamp ON raw_logs (timestamp);
CREATE INDEX IF NOT EXISTS idx_memberships_fiber ON fiber_memberships (fiber_id);
CREATE TABLE IF NOT EXISTS sources (name VARCHAR);
INSERT INTO raw_logs VALUES
    ('00000000-0000-0000-0000-000000000001', '2024-01-01 00:00:00+00', 'old', 'line', now(), 7);
"""


def plain_ddl(engine: sa.Engine) -> str:
    """Return the same in the types that an engine has."""
    if engine.dialect.name == "duckdb":
        return PLAIN_DDL
    types = {"VARCHAR": 'TEXT COLLATE "C"', "UBIGINT": "NUMERIC(20)", "JSON": "JSONB"}
    return re.sub("VARCHAR|UBIGINT|JSON", lambda found: types[found[0]], PLAIN_DDL)


def run(engine: sa.Engine, statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements.strip().rstrip(";").split(";"):
            connection.execute(sa.text(statement))


def catalog(engine: sa.Engine) -> list[tuple[str, ...]]:
    """Return every column, index and constraint of the three tables."""
    if engine.dialect.name == "postgresql":
        return postgresql_catalog(engine)
    tables = "table_name IN ('raw_logs', 'fibers', 'fiber_memberships') ORDER BY ALL"
    queries = (
        (
            "SELECT table_name, column_name, column_index, data_type, is_nullable, column_default "
            f"FROM duckdb_columns() WHERE {tables}"
        ),
        f"SELECT table_name, index_name, is_unique, expressions FROM duckdb_indexes() WHERE {tables}",
        (
            "SELECT table_name, constraint_type, constraint_column_names "
            f"FROM duckdb_constraints() WHERE {tables}"
        ),
    )
    with engine.connect() as connection:
        return [tuple(map(str, row)) for query in queries for row in connection.execute(sa.text(query))]


def postgresql_catalog(engine: sa.Engine) -> list[tuple[str, ...]]:
    inspector, dialect = sa.inspect(engine), engine.dialect
    found: list[tuple[str, ...]] = []
    for table in sorted({"raw_logs", "fibers", "fiber_memberships"} & set(inspector.get_table_names())):
        for column in inspector.get_columns(table):
            if column["name"] == "arrived":  # which only PostgreSQL has, and no model
                continue
            facts = (column["name"], column["type"].compile(dialect), column["nullable"], column["default"])
            found.append((table, *map(str, facts)))
        indexes = [index for index in inspector.get_indexes(table) if index["column_names"] != ["arrived"]]
        found += [(table, str(index)) for index in indexes]
        found += [(table, str(inspector.get_pk_constraint(table)))]
        found += [(table, str(check)) for check in inspector.get_check_constraints(table)]
    return found


def tables(engine: sa.Engine) -> set[str]:
    return set(sa.inspect(engine).get_table_names())


# For what does not depend on how a database changes its tables.
MOSTLY_DUCKDB = pytest.mark.parametrize(
    "target", ["duckdb", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(params=["duckdb", "postgresql"])
def target(request: pytest.FixtureRequest) -> str:
    """A database that does not exist yet, or one without tables."""
    name = {"duckdb": "db_file", "postgresql": "postgres_url"}[request.param]
    return str(request.getfixturevalue(name))


@pytest.fixture
def unmade(target: str) -> Iterator[SqlStorage]:
    """A storage without tables."""
    with open_storage(target) as storage:
        yield storage


@pytest.fixture
def config(target: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The checkout's alembic.ini, with the database in the environment and the output in a buffer."""
    monkeypatch.setenv("FIBERSTORE_URL", target)
    return Config(ROOT / "alembic.ini", stdout=StringIO(), output_buffer=StringIO())


def printed(config: Config) -> str:
    assert isinstance(config.stdout, StringIO)
    assert isinstance(config.output_buffer, StringIO)
    return config.stdout.getvalue() + config.output_buffer.getvalue()


def test_there_is_one_head() -> None:
    assert migrate.head() == revisions.newest(revisions.migrations()) == "0005"


def test_a_store_of_this_release_opens_without_alembic(target: str) -> None:
    program = """
import sys
from fiberstore import open_storage
open_storage(sys.argv[1]).init_schema()
print("alembic" in sys.modules)
"""
    run = [sys.executable, "-c", program, target]
    printed = [subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert printed == ["True\n", "False\n"]


def test_migrations_build_what_the_models_describe(target: str, config: Config) -> None:
    engine = create_engine(target)
    migrate.upgrade(engine)
    migrated = catalog(engine)
    assert len(migrated) > 20
    assert migrate.differences(engine) == []
    engine.dispose()
    command.downgrade(config, "base")
    Base.metadata.create_all(engine)
    assert migrated == catalog(engine)
    engine.dispose()


def test_the_catalog_is_the_one_of_the_plain_ddl(unmade: SqlStorage) -> None:
    run(unmade.engine, plain_ddl(unmade.engine))
    plain = catalog(unmade.engine)
    unmade.init_schema()
    ours = catalog(unmade.engine)
    assert set(plain) < set(ours)
    added = str(sorted(set(ours) - set(plain)))
    indexes = 3 if unmade.engine.dialect.name == "postgresql" else 2
    assert len(set(ours) - set(plain)) == indexes
    assert "idx_fibers_type" in added
    assert "idx_raw_logs_source" in added


def test_up_down_up(config: Config, target: str) -> None:
    command.upgrade(config, "head")
    command.current(config)
    assert "0005 (head)" in printed(config)
    command.check(config)
    command.downgrade(config, "base")
    engine = create_engine(target)
    assert tables(engine) == {revisions.VERSION_TABLE}
    engine.dispose()
    command.upgrade(config, "head")
    engine = create_engine(target)
    assert migrate.differences(engine) == []
    engine.dispose()


@pytest.mark.slow
def test_the_command_line_takes_the_database_from_x(target: str) -> None:
    url = target if "://" in target else f"duckdb:///{target}"
    environment = {key: value for key, value in os.environ.items() if key != "FIBERSTORE_URL"}
    answer = subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url={url}", "upgrade", "head"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    with open_storage(target, read_only=True) as storage:
        assert migrate.differences(storage.engine) == []


def test_a_database_that_cannot_be_opened_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    (tmp_path / "text.duckdb").write_text("no database" * 1_000)
    for name, trouble in (("text.duckdb", "text.duckdb"), ("nowhere/x.duckdb", "nowhere does not exist")):
        monkeypatch.setenv("FIBERSTORE_URL", str(tmp_path / name))
        with pytest.raises(CommandError, match=trouble):
            command.current(Config(ROOT / "alembic.ini", stdout=StringIO()))


def test_history_and_offline_sql(config: Config) -> None:
    command.history(config)
    assert "0001" in printed(config)
    command.upgrade(config, "head", sql=True)
    sql = printed(config)
    assert "CREATE TABLE IF NOT EXISTS raw_logs" in sql
    is_postgresql = os.environ["FIBERSTORE_URL"].startswith("postgresql")
    assert ("config_version NUMERIC(20, 0)" in sql) == ("CREATE TRIGGER" in sql) == is_postgresql
    assert ("config_version UBigInt" in sql) != is_postgresql


@pytest.mark.parametrize("target", ["postgresql"], indirect=True)
def test_offline_sql_builds_what_the_migrations_build(config: Config, target: str) -> None:
    command.upgrade(config, "head", sql=True)
    with postgres_server.connected(make_url(target)) as connection:
        connection.execute(printed(config).encode())
    with open_storage(target) as storage:
        assert migrate.differences(storage.engine) == []
        storage.init_schema()
        storage.write_logs([log(1)])
        assert [row.log_id for row in storage.logs.tail("", timeout_s=0)] == [uid(1)]
    command.downgrade(config, "0005:base", sql=True)
    assert "DROP TRIGGER" in printed(config)


def test_without_a_database_alembic_says_how_to_name_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIBERSTORE_URL")
    with pytest.raises(CommandError, match="FIBERSTORE_URL"):
        command.current(config)


@pytest.mark.parametrize(
    "target", ["duckdb", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
def test_autogenerate_writes_a_migration_that_imports_nothing_of_fiberstore(
    config: Config, target: str, tmp_path: Path
) -> None:
    copytree(ROOT / "migrations", tmp_path / "migrations")
    config.set_main_option("script_location", str(tmp_path / "migrations"))
    command.upgrade(config, "head")
    with open_storage(target) as storage, storage.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE fibers"))
    command.revision(config, "fibers again", rev_id="9000", autogenerate=True)
    text = (tmp_path / "migrations" / "versions" / "9000_fibers_again.py").read_text()
    assert "import fiberstore" not in text.split('"""')[2]
    assert "fiberstore." not in text
    assert "UBigInteger()" in text
    command.upgrade(config, "head")
    command.check(config)
    with open_storage(target) as storage:
        assert migrate.differences(storage.engine) == []


@MOSTLY_DUCKDB
def test_check_sees_a_missing_index(config: Config, target: str) -> None:
    with open_storage(target) as storage:
        storage.init_schema()
        with storage.engine.begin() as connection:
            connection.execute(sa.text("DROP INDEX idx_fibers_type"))
        assert migrate.differences(storage.engine) == ["index idx_fibers_type on fibers is missing"]
    with pytest.raises(CommandError, match="idx_fibers_type"):
        command.check(config)


def test_differences_are_sentences() -> None:
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        with storage.engine.begin() as connection:
            for statement in (
                "DROP INDEX idx_fibers_type",
                "ALTER TABLE fibers RENAME closed TO finished",
                "ALTER TABLE fibers ALTER config_version TYPE INTEGER",
                "ALTER TABLE fibers ALTER first_activity DROP NOT NULL",
                "CREATE INDEX mine ON fibers (last_activity)",
                "DROP TABLE log_pins",
                "DROP TABLE fiber_memberships",
                (
                    "CREATE TABLE fiber_memberships (log_id UUID REFERENCES raw_logs, fiber_id UUID, "
                    "config_version UBIGINT NOT NULL, PRIMARY KEY (log_id, fiber_id))"
                ),
            ):
                connection.execute(sa.text(statement))
        assert sorted(migrate.differences(storage.engine)) == [
            "column fibers.closed is missing",
            "column fibers.config_version has type INTEGER(), and should have UnsignedBigInt()",
            "column fibers.finished is not fiberstore's",
            "column fibers.first_activity has nullable True, and should have False",
            "foreign key from fiber_memberships to raw_logs is not fiberstore's",
            "index idx_fibers_type on fibers is missing",
            "index idx_memberships_fiber on fiber_memberships is missing",
            "index mine on fibers is not fiberstore's",
            "table log_pins is missing",
        ]


def test_init_schema_twice_and_from_many_threads(unmade: SqlStorage) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: unmade.init_schema(), range(16)))
    unmade.init_schema()
    assert migrate.differences(unmade.engine) == []


def test_a_database_made_by_plain_ddl_is_adopted_with_its_rows(unmade: SqlStorage) -> None:
    run(unmade.engine, plain_ddl(unmade.engine))
    unmade.init_schema()
    assert migrate.differences(unmade.engine) == []
    assert "sources" in tables(unmade.engine)
    with unmade.session() as session:
        assert session.execute(sa.text("SELECT source_id, config_version FROM raw_logs")).all() == [
            ("old", 7)
        ]
    assert [log.source_id for log in unmade.logs.tail("", timeout_s=0)] == ["old"]


@parametrize_mostly_slow(
    ("change", "complaint"),
    [
        ("ALTER TABLE fibers RENAME COLUMN closed TO finished", "finished"),
        ("ALTER TABLE fibers ALTER config_version TYPE INTEGER", "INTEGER"),
        ("ALTER TABLE fibers ALTER closed DROP NOT NULL", "closed"),
        ("DROP TABLE fibers; CREATE TABLE fibers (fiber_id UUID)", "fibers"),
    ],
)
@MOSTLY_DUCKDB
def test_tables_of_another_shape_are_left_alone(unmade: SqlStorage, change: str, complaint: str) -> None:
    run(unmade.engine, plain_ddl(unmade.engine) + change)
    assert_left_alone(unmade, complaint)


# What would order texts by the rules of a language, or keep other numbers and other JSON.
@parametrize_mostly_slow(
    ("change", "complaint"),
    [
        ("raw_logs ALTER source_id TYPE TEXT", "'source_id TEXT NOT NULL'"),
        ('raw_logs ALTER source_id TYPE VARCHAR COLLATE "C"', "'source_id VARCHAR COLLATE \"C\" NOT NULL'"),
        ("fibers ALTER config_version TYPE BIGINT", "'config_version BIGINT NOT NULL'"),
        ("fibers ALTER config_version TYPE NUMERIC", "'config_version NUMERIC NOT NULL'"),
        ("fibers ALTER attributes TYPE JSON", "'attributes JSON'"),
        (
            "fibers ALTER first_activity TYPE TIMESTAMP",
            "'first_activity TIMESTAMP WITHOUT TIME ZONE NOT NULL'",
        ),
    ],
    quick=2,
)
def test_tables_of_other_types_of_postgresql_are_left_alone(
    postgres_url: str, change: str, complaint: str
) -> None:
    with open_storage(postgres_url) as storage:
        run(storage.engine, f"{plain_ddl(storage.engine)} ALTER TABLE {change}")
        assert_left_alone(storage, re.escape(complaint) + ".* should be; rename it or alter it")


@MOSTLY_DUCKDB
def test_tables_without_their_primary_key_are_left_alone(unmade: SqlStorage) -> None:
    run(unmade.engine, plain_ddl(unmade.engine).replace(",\n    PRIMARY KEY (log_id, fiber_id)", ""))
    assert_left_alone(unmade, "primary key")


@parametrize_mostly_slow(
    ("replaced", "by", "more", "complaint"),
    [
        (" raw_text ([^,]*)", r" raw_text \1 UNIQUE", "", "constraints"),
        (
            " log_id UUID NOT NULL",
            r" log_id UUID NOT NULL REFERENCES raw_logs",
            "",
            "a foreign key to raw_logs",
        ),
        ("", "", "CREATE UNIQUE INDEX mine ON raw_logs (source_id)", "the unique index mine"),
        (" raw_text ([^,]*)", r" raw_text \1 CHECK (raw_text <> '')", "", "constraints"),
        ("", "", "CREATE INDEX idx_fibers_type ON fibers (closed)", "idx_fibers_type"),
        ("", "", "CREATE UNIQUE INDEX idx_fibers_type ON fibers (fiber_type)", "idx_fibers_type"),
        ("", "", "CREATE INDEX idx_fibers_type ON sources (name)", "idx_fibers_type"),
    ],
)
def test_constraints_and_indexes_of_another_make_are_refused(
    *, unmade: SqlStorage, replaced: str, by: str, more: str, complaint: str
) -> None:
    run(unmade.engine, re.sub(replaced, by, plain_ddl(unmade.engine), count=1) + more)
    assert_left_alone(unmade, complaint)


# To DuckDB, a name in other case is the same, and a collation is no part of a type.
@parametrize_mostly_slow(
    ("replaced", "by", "complaint"),
    [
        ("source_id VARCHAR", "source_id VARCHAR COLLATE NOCASE", 'source_id VARCHAR COLLATE "NOCASE"'),
        ("raw_text VARCHAR", "raw_text VARCHAR COLLATE NOCASE.NOACCENT", 'COLLATE "NOCASE.NOACCENT"'),
        ("EXISTS fibers", 'EXISTS "Fibers"', 'table Fibers .* ALTER TABLE "Fibers" RENAME TO fibers'),
        ("source_id VARCHAR", '"Source_ID" VARCHAR', "Source_ID VARCHAR NOT NULL"),
        (
            "idx_raw_logs_timestamp",
            '"Idx_Raw_Logs_Timestamp"',
            "index idx_raw_logs_timestamp .* drop it",
        ),
    ],
)
def test_collations_and_spellings_of_another_make_are_refused(
    db_file: Path, replaced: str, by: str, complaint: str
) -> None:
    with DuckDBStorage(db_file) as storage:
        run(storage.engine, PLAIN_DDL.replace(replaced, by, 1))
        assert_left_alone(storage, complaint)


def assert_left_alone(storage: SqlStorage, complaint: str) -> None:
    before = catalog(storage.engine)
    with pytest.raises(DatabaseError, match=complaint) as refused:
        storage.init_schema()
    assert "\n" not in str(refused.value)
    assert catalog(storage.engine) == before
    assert revisions.VERSION_TABLE not in tables(storage.engine)


def test_the_package_may_lie_in_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = copytree(ROOT / "migrations", tmp_path / "100% odd" / "migrations")
    monkeypatch.setattr(revisions, "migrations", lambda: folder)
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        assert migrate.differences(storage.engine) == []


def test_a_version_table_that_makes_no_sense_is_an_error_of_the_database() -> None:
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        with storage.engine.begin() as connection:
            connection.execute(sa.text(f"INSERT INTO {revisions.VERSION_TABLE} VALUES ('9000')"))
        with pytest.raises(DatabaseError, match=revisions.VERSION_TABLE):
            storage.init_schema()


@MOSTLY_DUCKDB
def test_an_unknown_revision_is_refused_and_left_alone(config: Config, target: str) -> None:
    with open_storage(target) as storage:
        storage.init_schema()
        with storage.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE {revisions.VERSION_TABLE} SET version_num = '9999'"))
        before = catalog(storage.engine)
        with pytest.raises(SchemaVersionError, match="9999") as caught:
            storage.init_schema()
        assert (caught.value.found, caught.value.known) == ("9999", "0005")
        assert catalog(storage.engine) == before
    with pytest.raises(CommandError, match="9999"):
        command.upgrade(config, "head")


@pytest.mark.parametrize("is_additive", [True, False])
def test_a_newer_revision_is_tolerated_if_it_only_adds(
    target: str, is_additive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / "migrations"
    copytree(ROOT / "migrations", newer)
    for number, earlier, additive in (("9000", "0005", True), ("9001", "9000", is_additive)):
        (newer / "versions" / f"{number}_newer.py").write_text(
            f"from alembic import op\nadditive = {additive}\n"
            f"revision, down_revision = '{number}', '{earlier}'\n"
            f"def upgrade():\n    op.execute('CREATE TABLE of_{number} (a INTEGER)')\n"
        )
    with monkeypatch.context() as patch, open_storage(target) as storage:
        patch.setattr(revisions, "migrations", lambda: newer)
        storage.init_schema()
    with open_storage(target) as storage:
        if is_additive:
            storage.init_schema()
            storage.write_logs([log(1)])
        else:
            with pytest.raises(SchemaVersionError):
                storage.init_schema()
        assert {"of_9000", "of_9001"} <= tables(storage.engine)


def test_a_failed_migration_leaves_no_trace(
    unmade: SqlStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    migrations = copytree(ROOT / "migrations", tmp_path / "migrations")
    (migrations / "versions" / "9000_bad.py").write_text(
        "from alembic import op\nrevision = '9000'\ndown_revision = '0005'\n"
        "def upgrade():\n    op.execute('CREATE TABLE half (a INTEGER)')\n    op.execute('nonsense')\n"
    )
    monkeypatch.setattr(revisions, "migrations", lambda: migrations)
    with pytest.raises(DatabaseError, match="syntax error"):
        unmade.init_schema()
    assert tables(unmade.engine) == set()
    with unmade.session() as session:
        assert migrate.current(session.connection()) is None


def test_tables_that_are_there_are_adopted_with_their_rows(target: str) -> None:
    with open_storage(target) as storage:
        Base.metadata.create_all(storage.engine)
        registered = storage.versions.register("rules")
        storage.init_schema()
        assert storage.versions.get(registered.config_version) == registered
        assert migrate.differences(storage.engine) == []
        Base.metadata.create_all(storage.engine)  # and the other way round


@MOSTLY_DUCKDB
def test_tables_that_are_others_are_left_alone(target: str) -> None:
    with open_storage(target) as storage:
        with storage.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE fiber_pins (own INTEGER)"))
        with pytest.raises(DatabaseError, match=r"column fiber_pins\.own is not fiberstore's"):
            storage.init_schema()
        assert tables(storage.engine) == {"fiber_pins"}


@MOSTLY_DUCKDB
def test_alembic_of_a_host_application_does_not_collide(target: str) -> None:
    with open_storage(target) as storage:
        with storage.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
            connection.execute(sa.text("INSERT INTO alembic_version VALUES ('theirs')"))
        storage.init_schema()
        with storage.session() as session:
            assert (
                session.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "theirs"
            )

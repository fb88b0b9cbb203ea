"""The schema: one path, in both directions, on new databases and on ones that were there before."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from shutil import copytree

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from fiberstore import Base, DatabaseError, DuckDBStorage, SchemaVersionError, create_engine, schema

ROOT = Path(__file__).parents[1]

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


def catalog(engine: sa.Engine) -> list[tuple[str, ...]]:
    """Return every column, index and constraint of the three tables."""
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


def tables(engine: sa.Engine) -> set[str]:
    return set(sa.inspect(engine).get_table_names())


@pytest.fixture
def config(db_file: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The checkout's alembic.ini, with the database in the environment and the output in a buffer."""
    monkeypatch.setenv("FIBERSTORE_URL", str(db_file))
    return Config(ROOT / "alembic.ini", stdout=StringIO(), output_buffer=StringIO())


def printed(config: Config) -> str:
    assert isinstance(config.stdout, StringIO)
    assert isinstance(config.output_buffer, StringIO)
    return config.stdout.getvalue() + config.output_buffer.getvalue()


def test_there_is_one_head() -> None:
    assert schema.head() == "0003"


def test_migrations_build_what_the_models_describe() -> None:
    migrated, created = create_engine(":memory:"), create_engine(":memory:")
    schema.upgrade(migrated)
    Base.metadata.create_all(created)
    assert catalog(migrated) == catalog(created)
    assert len(catalog(migrated)) > 20
    assert schema.differences(migrated) == []


def test_the_catalog_is_the_one_of_the_plain_ddl() -> None:
    migrated, plain = create_engine(":memory:"), create_engine(":memory:")
    schema.upgrade(migrated)
    with plain.begin() as connection:
        for statement in PLAIN_DDL.strip().rstrip(";").split(";")[:-2]:
            connection.execute(sa.text(statement))
    ours = catalog(migrated)
    assert set(catalog(plain)) < set(ours)
    assert {row[1] for row in set(ours) - set(catalog(plain))} == {"idx_fibers_type", "idx_raw_logs_source"}


def test_up_down_up(config: Config, db_file: Path) -> None:
    command.upgrade(config, "head")
    command.current(config)
    assert "0003 (head)" in printed(config)
    command.check(config)
    command.downgrade(config, "base")
    engine = create_engine(db_file)
    assert tables(engine) == {schema.VERSION_TABLE}
    engine.dispose()
    command.upgrade(config, "head")
    engine = create_engine(db_file)
    assert schema.differences(engine) == []
    engine.dispose()


def test_the_command_line_takes_the_database_from_x(db_file: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "FIBERSTORE_URL"}
    answer = subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url=duckdb:///{db_file}", "upgrade", "head"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    with DuckDBStorage(db_file, read_only=True) as storage:
        assert schema.differences(storage.engine) == []


def test_history_and_offline_sql(config: Config) -> None:
    command.history(config)
    assert "0001" in printed(config)
    command.upgrade(config, "head", sql=True)
    assert "CREATE TABLE IF NOT EXISTS raw_logs" in printed(config)


def test_without_a_database_alembic_says_how_to_name_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIBERSTORE_URL")
    with pytest.raises(CommandError, match="FIBERSTORE_URL"):
        command.current(config)


def test_autogenerate_writes_a_migration_that_imports_nothing_of_fiberstore(
    config: Config, db_file: Path, tmp_path: Path
) -> None:
    copytree(ROOT / "migrations", tmp_path / "migrations")
    config.set_main_option("script_location", str(tmp_path / "migrations"))
    command.upgrade(config, "head")
    with DuckDBStorage(db_file) as storage, storage.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE fibers"))
    command.revision(config, "fibers again", rev_id="9000", autogenerate=True)
    text = (tmp_path / "migrations" / "versions" / "9000_fibers_again.py").read_text()
    assert "import fiberstore" not in text.split('"""')[2]
    assert "fiberstore." not in text
    assert "UBigInteger()" in text
    command.upgrade(config, "head")
    command.check(config)
    with DuckDBStorage(db_file) as storage:
        assert schema.differences(storage.engine) == []


def test_check_sees_a_missing_index(config: Config, db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        with storage.engine.begin() as connection:
            connection.execute(sa.text("DROP INDEX idx_fibers_type"))
        assert schema.differences(storage.engine) == ["index idx_fibers_type on fibers is missing"]
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
                "DROP TABLE fiber_memberships",
            ):
                connection.execute(sa.text(statement))
        assert sorted(schema.differences(storage.engine)) == [
            "column fibers.closed is missing",
            "column fibers.config_version has type INTEGER(), and should have UnsignedBigInt()",
            "column fibers.finished is not fiberstore's",
            "column fibers.first_activity has nullable True, and should have False",
            "index idx_fibers_type on fibers is missing",
            "index idx_memberships_fiber on fiber_memberships is missing",
            "index mine on fibers is not fiberstore's",
            "table fiber_memberships is missing",
        ]


def test_init_schema_twice_and_from_many_threads() -> None:
    with DuckDBStorage(":memory:") as storage:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: storage.init_schema(), range(16)))
        storage.init_schema()
        assert schema.differences(storage.engine) == []


def test_a_database_made_by_plain_ddl_is_adopted_with_its_rows() -> None:
    with DuckDBStorage(":memory:") as storage:
        with storage.engine.begin() as connection:
            for statement in PLAIN_DDL.strip().rstrip(";").split(";"):
                connection.execute(sa.text(statement))
        storage.init_schema()
        assert schema.differences(storage.engine) == []
        assert "sources" in tables(storage.engine)
        with storage.session() as session:
            assert session.execute(sa.text("SELECT source_id, config_version FROM raw_logs")).all() == [
                ("old", 7)
            ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("ALTER TABLE fibers RENAME COLUMN closed TO finished", "finished"),
        ("ALTER TABLE fibers ALTER config_version TYPE INTEGER", "INTEGER"),
        ("ALTER TABLE fibers ALTER closed DROP NOT NULL", "closed"),
        ("DROP TABLE fibers; CREATE TABLE fibers (fiber_id UUID)", "fibers"),
    ],
)
def test_tables_of_another_shape_are_left_alone(change: str, complaint: str) -> None:
    with DuckDBStorage(":memory:") as storage:
        with storage.engine.begin() as connection:
            for statement in f"{PLAIN_DDL.strip()}{change}".split(";"):
                connection.execute(sa.text(statement))
        before = catalog(storage.engine)
        with pytest.raises(DatabaseError, match=complaint):
            storage.init_schema()
        assert catalog(storage.engine) == before
        assert schema.VERSION_TABLE not in tables(storage.engine)


def test_tables_without_their_primary_key_are_left_alone() -> None:
    with DuckDBStorage(":memory:") as storage:
        with storage.engine.begin() as connection:
            for statement in (
                PLAIN_DDL.replace(",\n    PRIMARY KEY (log_id, fiber_id)", "").strip().split(";")[:-1]
            ):
                connection.execute(sa.text(statement))
        with pytest.raises(DatabaseError, match="primary key"):
            storage.init_schema()


@pytest.mark.parametrize(
    ("ddl", "complaint"),
    [
        (PLAIN_DDL.replace("raw_text VARCHAR NOT NULL", "raw_text VARCHAR NOT NULL UNIQUE"), "constraints"),
        (PLAIN_DDL.replace("raw_text VARCHAR", "raw_text VARCHAR CHECK (raw_text <> '')"), "constraints"),
        (PLAIN_DDL + "CREATE INDEX idx_fibers_type ON fibers (closed);", "idx_fibers_type"),
        (PLAIN_DDL + "CREATE UNIQUE INDEX idx_fibers_type ON fibers (fiber_type);", "idx_fibers_type"),
        (PLAIN_DDL + "CREATE INDEX idx_fibers_type ON sources (name);", "idx_fibers_type"),
    ],
)
def test_constraints_and_indexes_of_another_make_are_refused(ddl: str, complaint: str) -> None:
    with DuckDBStorage(":memory:") as storage:
        with storage.engine.begin() as connection:
            for statement in ddl.strip().rstrip(";").split(";"):
                connection.execute(sa.text(statement))
        with pytest.raises(DatabaseError, match=complaint):
            storage.init_schema()
        assert schema.VERSION_TABLE not in tables(storage.engine)


def test_the_package_may_lie_in_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = copytree(ROOT / "migrations", tmp_path / "100% odd" / "migrations")
    monkeypatch.setattr(schema, "_migrations", lambda: folder)
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        assert schema.differences(storage.engine) == []


def test_a_version_table_that_makes_no_sense_is_an_error_of_the_database() -> None:
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        with storage.engine.begin() as connection:
            connection.execute(sa.text(f"INSERT INTO {schema.VERSION_TABLE} VALUES ('9000')"))
        with pytest.raises(DatabaseError, match=schema.VERSION_TABLE):
            storage.init_schema()


def test_an_unknown_revision_is_refused_and_left_alone(config: Config, db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        with storage.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
        before = catalog(storage.engine)
        with pytest.raises(SchemaVersionError, match="9999") as caught:
            storage.init_schema()
        assert (caught.value.found, caught.value.known) == ("9999", "0003")
        assert catalog(storage.engine) == before
    with pytest.raises(CommandError, match="9999"):
        command.upgrade(config, "head")


def test_a_failed_migration_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    migrations = copytree(ROOT / "migrations", tmp_path / "migrations")
    (migrations / "versions" / "9000_bad.py").write_text(
        "from alembic import op\nrevision = '9000'\ndown_revision = '0003'\n"
        "def upgrade():\n    op.execute('CREATE TABLE half (a INTEGER)')\n    op.execute('nonsense')\n"
    )
    monkeypatch.setattr(schema, "_migrations", lambda: migrations)
    with DuckDBStorage(":memory:") as storage:
        with pytest.raises(DatabaseError, match="syntax error"):
            storage.init_schema()
        assert tables(storage.engine) == set()
        with storage.session() as session:
            assert schema.current(session.connection()) is None


def test_alembic_of_a_host_application_does_not_collide(db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage:
        with storage.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
            connection.execute(sa.text("INSERT INTO alembic_version VALUES ('theirs')"))
        storage.init_schema()
        with storage.session() as session:
            assert (
                session.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "theirs"
            )

"""Features of the dialect that duckdb-engine lacks."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from fiberstore import FiberMembership, MembershipRepository, create_engine
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.duckdb.statements import effects_of


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    __table_args__ = (sa.Index("idx_items_kind", "kind"),)

    item_id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str]


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    engine = create_engine(":memory:")
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(
            Item(item_id=number, kind="even" if number % 2 == 0 else "odd") for number in range(500)
        )
    yield engine
    engine.dispose()


def test_reflection_finds_columns_keys_and_indexes(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE wide (a UUID, b TIMESTAMPTZ NOT NULL DEFAULT now(), c UBIGINT, d JSON, "
                "e DECIMAL(10, 2), f INTEGER[], g VARCHAR UNIQUE, CHECK (c > 3), PRIMARY KEY (b, a))"
            )
        )
        connection.execute(sa.text('CREATE UNIQUE INDEX wide_two ON wide (c, "b")'))
        connection.execute(sa.text("CREATE INDEX wide_lower ON wide (lower(g))"))
    inspector = sa.inspect(engine)
    columns = {column["name"]: column for column in inspector.get_columns("wide")}
    assert [column["type"].compile(engine.dialect) for column in columns.values()] == [
        "UUID", "TIMESTAMP WITH TIME ZONE", "UBigInt", "JSON", "NUMERIC(10, 2)", "INTEGER[]", "VARCHAR",
    ]  # fmt: skip
    assert [name for name, column in columns.items() if not column["nullable"]] == ["a", "b"]
    assert columns["b"]["default"] == "now()"
    assert inspector.get_pk_constraint("wide")["constrained_columns"] == ["b", "a"]
    assert [found["column_names"] for found in inspector.get_unique_constraints("wide")] == [["g"]]
    assert len(inspector.get_check_constraints("wide")) == 1
    indexes = {index["name"]: index for index in inspector.get_indexes("wide")}
    assert indexes["wide_two"]["column_names"] == ["c", "b"]
    assert indexes["wide_two"]["unique"]
    assert indexes["wide_lower"]["column_names"] == [None]


def test_metadata_reflect_sees_every_table(engine: sa.Engine) -> None:
    metadata = sa.MetaData()
    metadata.reflect(engine)
    assert {index.name for index in metadata.tables["items"].indexes} == {"idx_items_kind"}
    assert list(metadata.tables["items"].primary_key.columns.keys()) == ["item_id"]


def test_reflecting_a_table_that_is_not_there_raises(engine: sa.Engine) -> None:
    with pytest.raises(sa.exc.NoSuchTableError):
        sa.inspect(engine).get_columns("nothing")


def test_foreign_keys_and_comments_are_reflected(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE part (item BIGINT REFERENCES items (item_id))"))
        connection.execute(sa.text("COMMENT ON TABLE part IS 'of an item'"))
    inspector = sa.inspect(engine)
    assert inspector.get_foreign_keys("part")[0]["referred_table"] == "items"
    assert inspector.get_table_comment("part")["text"] == "of an item"


def test_compiled_statements_are_cached(engine: sa.Engine) -> None:
    with Session(engine) as session:
        for number in (1, 2):
            session.scalars(sa.select(Item).where(Item.item_id == number)).all()
        result = session.connection().execute(sa.select(Item.kind).where(Item.item_id == 3))
        result.all()
        again = session.connection().execute(sa.select(Item.kind).where(Item.item_id == 4))
        assert again.context.cache_hit.name == "CACHE_HIT"


def test_a_stale_orm_update_raises(engine: sa.Engine) -> None:
    with Session(engine) as session:
        item = session.get_one(Item, 7)
        session.execute(sa.text("DELETE FROM items WHERE item_id = 7"))
        item.kind = "gone"
        with pytest.raises(StaleDataError):
            session.flush()


def test_row_counts_are_true(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        assert connection.execute(sa.update(Item).where(Item.item_id < 10).values(kind="low")).rowcount == 10
        assert connection.execute(sa.delete(Item).where(Item.item_id < 3)).rowcount == 3
        many = connection.execute(sa.insert(Item), [{"item_id": 1, "kind": "a"}, {"item_id": 2, "kind": "b"}])
        assert many.rowcount == 2


def test_two_open_core_results_do_not_mix(engine: sa.Engine) -> None:
    ids = sa.select(Item.item_id).order_by(Item.item_id)
    kinds = sa.select(Item.kind).order_by(Item.item_id)
    with engine.connect() as connection:
        first = connection.execute(ids)
        seen = [first.fetchone()]
        second = connection.execute(kinds)
        assert [row[0] for row in second.fetchmany(3)] == ["even", "odd", "even"]
        seen += first.fetchmany(2)
        assert [row[0] for row in seen if row] == [0, 1, 2]
        assert len(second.all()) == 497
        assert [row[0] for row in first] == list(range(3, 500))


def test_queries_inside_a_loop_over_a_result_leave_it_alone(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        seen = [
            (number, connection.execute(sa.select(Item.kind).where(Item.item_id == number)).scalar_one())
            for (number,) in connection.execute(sa.select(Item.item_id).order_by(Item.item_id))
        ]
    assert seen == [(number, "even" if number % 2 == 0 else "odd") for number in range(500)]


def test_yield_per_with_queries_and_updates_in_between(engine: sa.Engine) -> None:
    with Session(engine) as session:
        seen = []
        items = sa.select(Item).where(Item.item_id < 120).order_by(Item.item_id)
        for item in session.scalars(items.execution_options(yield_per=50)):
            session.scalars(sa.select(Item.kind).where(Item.item_id == item.item_id)).all()
            session.execute(
                sa.text("UPDATE items SET kind = 'seen' WHERE item_id = :id"), {"id": item.item_id}
            )
            seen.append(item.item_id)
        assert seen == list(range(120))


def test_a_result_that_is_open_at_commit_stays_readable(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        result = connection.execute(sa.select(Item.item_id).order_by(Item.item_id))
        result.fetchmany(10)
        connection.commit()
        assert [row[0] for row in result] == list(range(10, 500))


def test_a_result_that_is_open_at_rollback_is_closed(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        result = connection.execute(sa.select(Item.item_id))
        connection.rollback()
        with pytest.raises(DBAPIError, match="closed by a rollback"):
            result.fetchall()


def test_a_failed_transaction_cannot_be_committed(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sa.insert(Item).values(item_id=1000, kind="new"))
        with pytest.raises(DBAPIError):
            connection.execute(sa.text("SELECT nonsense"))
        with pytest.raises(ProgrammingError, match="nothing of it can be kept"):
            connection.commit()
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).where(Item.item_id == 1000)) == 0


def test_no_connection_goes_back_with_an_open_transaction(engine: sa.Engine) -> None:
    connection = engine.connect()
    connection.execute(sa.delete(Item))
    connection.close()
    with engine.connect() as other:
        assert other.scalar(sa.select(sa.func.count(Item.item_id))) == 500
        other.execute(sa.update(Item).values(kind="free"))


def test_a_session_recovers_after_a_failed_flush(engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.add(Item(item_id=1, kind="duplicate"))
        with pytest.raises(sa.exc.IntegrityError):
            session.flush()
        session.rollback()
        session.add(Item(item_id=501, kind="new"))
        session.commit()
        assert session.get_one(Item, 501).kind == "new"


def test_connections_are_in_utc_whatever_the_machine(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT current_setting('TimeZone')")) == "UTC"


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE t SET a = 1",
        "WITH x AS (SELECT 1) UPDATE t SET a = 1",
        "DELETE FROM t",
        "TRUNCATE t",
        "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
        "INSERT OR REPLACE INTO t VALUES (1)",
        "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE",
        "SELECT 1; UPDATE t SET a = 1",
        "WITH x AS (UPDATE t SET a = 1 RETURNING a) SELECT * FROM x",
        "EXPLAIN ANALYZE DELETE FROM t",
        "INSERT OR/**/REPLACE INTO t VALUES (1)",
        "PREPARE p AS UPDATE t SET a = 1",
        "EXECUTE p",
    ],
)
def test_statements_that_change_rows_are_recognised(sql: str) -> None:
    assert effects_of(sql).changes_rows


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "FROM t",
        "INSERT INTO t VALUES (1)",
        "INSERT OR IGNORE INTO t VALUES (1)",
        "INSERT INTO t VALUES ($1) ON CONFLICT DO NOTHING",
        "CREATE TABLE t (updated INTEGER, deleted BOOLEAN)",
        "SELECT replace(a, 'b', 'c') FROM t",
    ],
)
def test_statements_that_only_append_or_read_are_too(sql: str) -> None:
    assert not effects_of(sql).changes_rows


def test_a_setting_leads_names_to_other_tables_unless_it_cannot() -> None:
    assert effects_of("SET schema = 'other'").may_shadow
    assert not effects_of("SET enable_external_access = false").may_shadow
    assert effects_of("SET enable_external_access = false; SET schema = 'other'").may_shadow


def test_a_plain_duckdb_client_of_this_process_is_kept_out(tmp_path: Path) -> None:
    engine = create_engine(tmp_path / "store.duckdb")
    with engine.connect(), pytest.raises(duckdb.ConnectionException, match="different configuration"):
        duckdb.connect(tmp_path / "store.duckdb")
    engine.dispose()


def test_ctrl_c_in_a_statement_is_a_keyboard_interrupt(engine: sa.Engine) -> None:
    connection: object = engine.raw_connection().dbapi_connection
    assert isinstance(connection, DuckDBConnection)
    with pytest.raises(KeyboardInterrupt), connection._driver():
        raise RuntimeError("Query interrupted")  # what DuckDB raises
    with pytest.raises(RuntimeError, match="other"), connection._driver():
        raise RuntimeError("other")


def test_other_duckdb_engines_of_the_process_keep_their_dialect() -> None:
    urls = ("duckdb:///:memory:", "duckdb+fiberstore:///:memory:x")
    modules = [type(sa.create_engine(url).dialect).__module__ for url in urls]
    assert modules == ["duckdb_engine", "fiberstore.duckdb.dialect"]


def test_a_repository_on_another_dialect_is_refused() -> None:
    nowhere = UUID(int=0)
    engine = sa.create_engine("sqlite://")
    with Session(engine) as session, pytest.raises(TypeError, match="create_engine"):
        MembershipRepository(session).write_memberships(
            [FiberMembership(log_id=nowhere, fiber_id=nowhere, config_version=0)]
        )
    engine.dispose()


def _table(engine: sa.Engine, *columns: sa.Column[Any]) -> sa.Table:
    table = sa.Table("made", sa.MetaData(), *columns)
    table.create(engine)
    return table


def test_keys_count_by_themselves_and_their_sequence_goes_with_the_table(engine: sa.Engine) -> None:
    table = _table(
        engine,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("number", sa.BigInteger, sa.Identity(start=10, increment=5)),
    )
    with engine.begin() as connection:
        connection.execute(table.insert(), [{}, {}])
        assert connection.execute(table.insert()).inserted_primary_key == (3,)
        assert connection.execute(sa.select(table.c.number)).scalars().all() == [10, 15, 20]
    assert sa.inspect(engine).get_sequence_names() == ["made_id_seq", "made_number_seq"]
    table.drop(engine)
    assert sa.inspect(engine).get_sequence_names() == []


def test_numbers_that_always_count_are_refused(engine: sa.Engine) -> None:
    with pytest.raises(sa.exc.CompileError, match="leave always=True out"):
        _table(engine, sa.Column("id", sa.Integer, sa.Identity(always=True), primary_key=True))


def test_decimals_are_exact_unless_floats_are_asked_for(engine: sa.Engine) -> None:
    table = _table(
        engine,
        sa.Column("exact", sa.Numeric(38, 2)),
        sa.Column("near", sa.Numeric(38, 2, asdecimal=False)),
        sa.Column("float", sa.Float),
    )
    number = Decimal("9007199254740993.01")
    with engine.begin() as connection:
        connection.execute(table.insert().values(exact=number, near=number, float=0.1))
        (row,) = connection.execute(sa.select(table))
        assert row == (number, float(number), 0.1)
        assert connection.scalar(sa.select(sa.func.avg(table.c.exact))) == Decimal(float(number))


def test_types_of_the_catalog_are_reflected_and_made_again(engine: sa.Engine) -> None:
    types = [
        "BIGNUM", "BIT", "BLOB", "BOOLEAN", "DATE", "DECIMAL(18,3)", "DOUBLE", "ENUM('x', 'it''s')", "FLOAT",
        "FLOAT[2][]", "FLOAT[3]", "HUGEINT", "INTEGER[][]", "INTERVAL", "JSON", "MAP(VARCHAR, INTEGER)",
        'STRUCT("a b" INTEGER, c VARCHAR[])', "TIME WITH TIME ZONE", "TIME", "TIMESTAMP", "TIMESTAMP_NS",
        "TIME_NS", "TINYINT", "UHUGEINT", "UINTEGER", "UNION(n INTEGER, s VARCHAR)", "USMALLINT", "UTINYINT",
        "UUID",
    ]  # fmt: skip
    with engine.begin() as connection:
        columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(types))
        connection.execute(sa.text(f"CREATE TABLE many ({columns})"))
    reflected = sa.Table("many", sa.MetaData(), autoload_with=engine)
    reflected.name = "again"
    reflected.create(engine)
    with engine.connect() as connection:
        found = connection.scalars(
            sa.text("SELECT data_type FROM duckdb_columns() WHERE table_name = 'again' ORDER BY column_index")
        )
        assert found.all() == types


def test_a_type_that_is_not_known_is_reflected_with_a_warning(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE odd (a VARIANT)"))
    with pytest.warns(sa.exc.SAWarning, match="VARIANT"):
        sa.inspect(engine).get_columns("odd")


def test_native_enumerations(engine: sa.Engine) -> None:
    metadata = sa.MetaData()
    mood: sa.Column[Any] = sa.Column("mood", sa.Enum("sad", "ok", name="moods"))
    table = sa.Table("made", metadata, mood, sa.Column("b", sa.Enum("x", name=None)))
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.insert().values(mood="ok", b="x"))
        assert connection.scalar(sa.select(table.c.mood)) == "ok"
    column = sa.inspect(engine).get_columns("made")[0]["type"]
    assert isinstance(column, sa.Enum)
    assert (column.name, column.enums) == ("moods", ["sad", "ok"])
    metadata.drop_all(engine)
    metadata.create_all(engine)  # the type is gone, too


def test_what_duckdb_has_not_is_refused_before_it_ends_the_transaction(engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.add(Item(item_id=900, kind="new"))
        session.flush()
        with pytest.raises(sa.exc.InvalidRequestError, match="no savepoints"), session.begin_nested():
            session.connection()
        with pytest.raises(sa.exc.CompileError, match="no FOR UPDATE"):
            session.scalars(sa.select(Item).with_for_update())
        session.commit()
        assert session.get(Item, 900) is not None
    with engine.connect() as connection:
        with pytest.raises(sa.exc.InvalidRequestError, match="two phases"):
            connection.begin_twophase()
        with pytest.raises(sa.exc.ArgumentError, match="AUTOCOMMIT"):
            connection.execution_options(isolation_level="SERIALIZABLE")


def test_autocommit_is_an_isolation_level(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.get_isolation_level() == "AUTOCOMMIT"
        connection.execute(sa.insert(Item).values(item_id=901, kind="new"))
        with engine.connect() as other:
            assert other.get_isolation_level() == "REPEATABLE READ"
            assert other.scalar(sa.select(Item.kind).where(Item.item_id == 901)) == "new"


def test_names_of_two_schemas_and_temporary_ones_are_kept_apart(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE SCHEMA side; CREATE TABLE side.part (a INTEGER PRIMARY KEY)"))
        connection.execute(
            sa.text("CREATE TEMP TABLE passing (a INTEGER); CREATE VIEW seen AS SELECT 1 AS one")
        )
        connection.execute(sa.text("CREATE TEMP VIEW glimpsed AS SELECT 2 AS two"))
        inspector = sa.inspect(connection)
        assert inspector.get_schema_names() == ["main", "side"]
        assert inspector.get_table_names() == ["items"]
        assert inspector.get_table_names("side") == ["part"]
        assert inspector.get_temp_table_names() == ["passing"]
        assert inspector.get_view_names() == ["seen"]
        assert inspector.get_temp_view_names() == ["glimpsed"]
        assert inspector.get_view_definition("seen") == "SELECT 1 AS one"
        assert [inspector.has_table(name) for name in ("items", "part", "passing", "seen")] == [
            True, False, True, True,
        ]  # fmt: skip
        assert inspector.has_table("part", "side")
        for ask in (inspector.get_pk_constraint, inspector.get_indexes, inspector.get_foreign_keys):
            with pytest.raises(sa.exc.NoSuchTableError):
                ask("part")
        assert inspector.get_multi_columns(schema="side")["side", "part"] == inspector.get_columns(
            "part", "side"
        )
        metadata = sa.MetaData()
        metadata.reflect(connection)
        assert set(metadata.tables) == {"items"}


def test_a_value_that_the_driver_refuses_does_not_end_the_transaction(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sa.insert(Item).values(item_id=902, kind="new"))
        with pytest.raises(DBAPIError, match="Unable to transform"):
            connection.execute(sa.text("SELECT :value"), {"value": object()})
        connection.commit()
        assert connection.scalar(sa.select(Item.kind).where(Item.item_id == 902)) == "new"

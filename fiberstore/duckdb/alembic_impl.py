"""DuckDB for Alembic, which has no implementation of its own for it.

The dialect registers it once Alembic is there, unless the application has one already.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import sqlalchemy as sa
from alembic.ddl import impl
from alembic.ddl.base import ColumnComment, RenameTable, format_column_name, format_table_name
from alembic.ddl.impl import DefaultImpl
from alembic.operations import BatchOperations, Operations
from alembic.operations.batch import ApplyBatchImpl
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import quoted_name
from sqlalchemy.dialects.postgresql.named_types import NamedType
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import DDLCompiler

_OLD_BOOLEANS = {"CAST('f' AS BOOLEAN)": "false", "CAST('t' AS BOOLEAN)": "true"}  # of DuckDB 1.x


class DuckDBImpl(DefaultImpl):
    """DuckDB: DDL is transactional, and an index keeps most of it from its table.

    What DuckDB refuses to alter is made anew with all its rows, as Alembic's batch mode does it, unless other
    tables refer to it. A script in SQL text has the plain statements.
    """

    transactional_ddl = True

    def alter_column(
        self, table_name: str, column_name: str, *, schema: str | None = None, **changes: Any
    ) -> None:
        """Change a column."""
        alters = any(changes.get(change) is not None for change in ("nullable", "name", "type_"))
        if not (alters and self._is_blocked(table_name, schema, column_name)):
            super().alter_column(table_name, column_name, schema=schema, **changes)
            return
        with self._made_anew(table_name, schema) as batch:
            batch.alter_column(column_name, new_column_name=changes.pop("name", None), **changes)

    def add_column(
        self, table_name: str, column: sa.Column[Any], *, schema: str | None = None, **options: Any
    ) -> None:
        """Add a column."""
        if column.nullable or not self._is_blocked(table_name, schema):
            super().add_column(table_name, column, schema=schema, **options)
            return
        with self._made_anew(table_name, schema) as batch:
            batch.add_column(column)

    def drop_column(
        self, table_name: str, column: sa.Column[Any], *, schema: str | None = None, **options: Any
    ) -> None:
        """Drop a column, and the indexes on it."""
        if not self._is_blocked(table_name, schema, column.name):
            super().drop_column(table_name, column, schema=schema, **options)
            return
        with self._made_anew(table_name, schema) as batch:
            for index in sa.inspect(self._bound).get_indexes(table_name, schema):
                if column.name in index["column_names"]:
                    batch.drop_index(cast("str", index["name"]))
            batch.drop_column(column.name)

    def drop_index(self, index: sa.Index, **options: Any) -> None:
        """Drop an index; DuckDB refuses changes of its columns until the end of the transaction."""
        super().drop_index(index, **options)
        if index.table is not None:
            self._unindexed.add((index.table.schema, index.table.name))

    def add_constraint(self, const: Any, **options: Any) -> None:
        """Add a constraint, for which DuckDB has no statement."""
        if self.as_sql:
            super().add_constraint(const, **options)
            return
        const.name = const.name or f"of_{'_'.join(const.columns.keys())}"  # DuckDB gives it another
        with self._made_anew(const.table.name, const.table.schema) as batch:
            batch.impl.add_constraint(const)

    def drop_constraint(self, const: sa.Constraint, **options: Any) -> None:
        """Drop a constraint, by the name that DuckDB has given it."""
        if self.as_sql:
            super().drop_constraint(const, **options)
            return
        with self._made_anew(const.table.name, const.table.schema) as batch:
            batch.impl.drop_constraint(const)

    def rename_table(
        self, old_table_name: str, new_table_name: str | quoted_name, schema: str | quoted_name | None = None
    ) -> None:
        """Rename a table, with its indexes on it."""
        indexes: set[sa.Index] = set()
        if not self.as_sql:
            table = sa.Table(old_table_name, sa.MetaData(), schema=schema, autoload_with=self._bound)
            indexes = set(table.indexes)
            for index in indexes:
                self.drop_index(index)
            table.name = new_table_name
        super().rename_table(old_table_name, new_table_name, schema)
        for index in indexes:
            self.create_index(index)

    def prep_table_for_batch(self, batch_impl: ApplyBatchImpl, table: sa.Table) -> None:
        """Hand the comment and the sequences of a table on to the one that takes its place."""
        if batch_impl.new_table is not None and batch_impl.new_table.comment is None:
            batch_impl.new_table.comment = table.comment
        if self.as_sql:
            return
        for found in sa.inspect(self._bound).get_columns(table.name, table.schema):
            for columns in (table.c, batch_impl.columns) if _is_counter(found["default"]) else ():
                if found["name"] in columns:
                    column = columns[found["name"]]
                    column.server_default = sa.DefaultClause(sa.text(str(found["default"])))

    def compare_type(self, inspector_column: sa.Column[Any], metadata_column: sa.Column[Any]) -> bool:
        """Tell whether two types differ, by the names that DuckDB has for them."""
        found, expected = map(self._type_sql, (inspector_column, metadata_column))
        return found != expected and self._type_name(found) != self._type_name(expected)

    def compare_server_default(
        self,
        inspector_column: sa.Column[Any],  # noqa: ARG002
        metadata_column: sa.Column[Any],
        rendered_metadata_default: str | None,  # noqa: ARG002
        rendered_inspector_default: str | None,
    ) -> bool:
        """Tell whether two defaults differ, as DuckDB writes them."""
        found = _OLD_BOOLEANS.get(rendered_inspector_default or "", rendered_inspector_default)
        compiler = self.dialect.ddl_compiler(self.dialect, None)  # type: ignore[arg-type]  # nothing to compile
        expected = compiler.get_column_default_string(metadata_column)
        if found is None:
            found = self._counted_by(metadata_column)
        if found is None or expected is None or found == expected:
            return found != expected
        return found != self._default_as_kept(self._type_sql(metadata_column), expected)

    def autogen_column_reflect(
        self, _inspector: sa.Inspector, _table: sa.Table, column_info: dict[str, Any]
    ) -> None:
        """Leave out the sequence that a column counts by: neither a plain key nor an identity names it."""
        if _is_counter(column_info["default"]):
            column_info["default"] = None

    def _compare_identity_default(
        self, metadata_identity: sa.Identity | None, _inspector_identity: object
    ) -> tuple[set[str], set[str], bool]:
        """Tell whether a column that should count does not; the options of its sequence are not compared."""
        column = None if metadata_identity is None else metadata_identity.column
        return set(), set(), column is not None and self._counted_by(column) is None

    def correct_for_autogen_constraints(
        self,
        conn_uniques: set[sa.UniqueConstraint],
        conn_indexes: set[sa.Index],  # noqa: ARG002
        metadata_unique_constraints: set[sa.UniqueConstraint],
        metadata_indexes: set[sa.Index],  # noqa: ARG002
    ) -> None:
        """Pair unique constraints by their columns: DuckDB gives them names of its own."""
        found = {tuple(unique.columns.keys()): unique for unique in conn_uniques}
        for unique in list(metadata_unique_constraints):
            if same := found.pop(tuple(unique.columns.keys()), None):
                conn_uniques.discard(same)
                metadata_unique_constraints.discard(unique)

    @property
    def _bound(self) -> sa.Connection:
        assert self.connection is not None  # noqa: S101  # a comparison has one
        return self.connection

    @property
    def _unindexed(self) -> set[tuple[str | None, str]]:
        """Tables of which the transaction has dropped an index."""
        return cast("set[tuple[str | None, str]]", self.__dict__.setdefault("unindexed", set()))

    def _is_blocked(self, table_name: str, schema: str | None, column_name: str = "") -> bool:
        """Tell whether DuckDB alters no column because of an index, or not this one for a constraint."""
        if self.as_sql:
            return False
        inspector = sa.inspect(self._bound)
        if (schema, table_name) in self._unindexed or inspector.get_indexes(table_name, schema):
            return True
        constrained = [
            inspector.get_pk_constraint(table_name, schema)["constrained_columns"],
            *(unique["column_names"] for unique in inspector.get_unique_constraints(table_name, schema)),
            *(key["constrained_columns"] for key in inspector.get_foreign_keys(table_name, schema)),
        ]
        return any(column_name in columns for columns in constrained)

    @contextmanager
    def _made_anew(self, table_name: str, schema: str | None) -> Iterator[BatchOperations]:
        foreign_keys = sa.inspect(self._bound).get_multi_foreign_keys(schema=schema)
        for (_, other), keys in foreign_keys.items():
            referred = {(key["referred_schema"], key["referred_table"]) for key in keys}
            if other != table_name and (schema, table_name) in referred:
                raise CommandError(
                    f"DuckDB cannot change {table_name} so while {other} refers to it by a foreign key; drop "
                    f"that foreign key first, and add it again afterwards"
                )
        operations = Operations(MigrationContext.configure(self._bound))
        reflect: dict[str, Any] = {"listeners": [("column_reflect", _keep_type)]}
        with operations.batch_alter_table(
            table_name, schema, recreate="always", reflect_kwargs=reflect
        ) as batch:
            yield batch

    def _counted_by(self, column: sa.Column[Any]) -> str | None:
        """Return the default by which a column of the database counts; None if it does not."""
        for found in sa.inspect(self._bound).get_columns(column.table.name, column.table.schema):
            if found["name"] == column.name and _is_counter(found["default"]):
                return found["default"]
        return None

    def _type_sql(self, column: sa.Column[Any]) -> str:
        type_ = column.type.dialect_impl(self.dialect)
        if isinstance(type_, sa.TypeDecorator):
            type_ = type_.impl_instance
        if isinstance(type_, sa.Enum) and type_.native_enum:  # its values, whether the name is there or not
            type_ = sa.Enum(*type_.enums).dialect_impl(self.dialect)
        return self.dialect.type_compiler_instance.process(type_)

    def _type_name(self, type_sql: str) -> str:
        return cast("str", self._bound.scalar(sa.text(f"SELECT typeof(CAST(NULL AS {type_sql}))")))

    def _default_as_kept(self, type_sql: str, default: str) -> str | None:
        table = "fiberstore_default"
        self._bound.execute(sa.text(f"CREATE TEMP TABLE {table} (a {type_sql} DEFAULT {default})"))
        try:
            columns = sa.inspect(self._bound).get_columns(table)
        finally:
            self._bound.execute(sa.text(f"DROP TABLE {table}"))
        return columns[0]["default"]


def _keep_type(_inspector: sa.Inspector, _table: sa.Table, column: ReflectedColumn) -> None:
    """Create no type with a table that is made anew, and drop none with the old one: both have the same."""
    if isinstance(column["type"], NamedType):
        column["type"].create_type = False


def _is_counter(default: str | None) -> bool:
    return default is not None and default.startswith("nextval(")


@compiles(RenameTable, "duckdb")
def _rename_table(element: RenameTable, compiler: DDLCompiler, **_options: object) -> str:
    """Rename a table within its schema, which DuckDB does not take before the new name."""
    table = format_table_name(compiler, element.table_name, element.schema)
    return f"ALTER TABLE {table} RENAME TO {format_table_name(compiler, element.new_table_name, None)}"


@compiles(ColumnComment, "duckdb")
def _column_comment(element: ColumnComment, compiler: DDLCompiler, **_options: object) -> str:
    table = format_table_name(compiler, element.table_name, element.schema)
    column = format_column_name(compiler, element.column_name)
    comment = "NULL"
    if element.comment is not None:
        comment = compiler.sql_compiler.render_literal_value(element.comment, sa.String())
    return f"COMMENT ON COLUMN {table}.{column} IS {comment}"


# With `__dialect__` in its body, the class would take the place of an application's own.
DuckDBImpl.__dialect__ = "duckdb"
impl._impls.setdefault("duckdb", DuckDBImpl)

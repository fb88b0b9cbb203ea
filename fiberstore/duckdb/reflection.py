"""Reflection from DuckDB's catalog, for SQLAlchemy's inspector.

A schema is one of the connection's database, or ``database.schema`` of an attached one. Without a schema it
is the one in which the connection looks for tables, and before it the temporary one.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypedDict, TypeVar, Unpack

import sqlalchemy as sa
from sqlalchemy.engine import reflection
from sqlalchemy.engine.interfaces import (
    ReflectedCheckConstraint,
    ReflectedColumn,
    ReflectedForeignKeyConstraint,
    ReflectedIndex,
    ReflectedPrimaryKeyConstraint,
    ReflectedTableComment,
    ReflectedUniqueConstraint,
    TableKey,
)
from sqlalchemy.engine.reflection import ObjectKind, ObjectScope, ReflectionDefaults
from sqlalchemy.exc import NoSuchTableError

from fiberstore.duckdb.column_types import ColumnType, NativeEnum, column_type

T = TypeVar("T")
_Rows: TypeAlias = Sequence[sa.Row[*tuple[Any, ...]]]
_Found: TypeAlias = Iterable[tuple[TableKey, T]]

_HERE = "current_database()"
_RELATIONS = """
SELECT database_name, schema_name, table_name AS name, temporary, comment, sql, FALSE AS is_view
FROM duckdb_tables() WHERE NOT internal
UNION ALL
SELECT database_name, schema_name, view_name, temporary, comment, sql, TRUE
FROM duckdb_views() WHERE NOT internal
"""
_VIEW = re.compile(
    r'CREATE\s+(?:TEMP\w*\s+)?VIEW\s+(?:"(?:[^"]|"")*"|[^"\s(.])+(?:\.(?:"(?:[^"]|"")*"|[^"\s(.])+)*\s*'
    r"(?:\((?:\"(?:[^\"]|\"\")*\"|[^\")])*\)\s*)?AS\s+(.*?);?\s*",
    re.DOTALL | re.IGNORECASE,
)


class _Chosen(TypedDict, total=False):
    """Relations that a call of ``get_multi_*`` is about."""

    filter_names: Collection[str] | None
    scope: ObjectScope
    kind: ObjectKind
    info_cache: dict[Any, Any]
    unreflectable: dict[Any, Any]


class _Place(NamedTuple):
    """A schema, as names of the catalog; None for the database that the connection is in."""

    database: str | None
    schema: str | None


class _Part(NamedTuple):
    """Rows of the catalog that belong to a relation.

    Attributes:
        function: The table function; without one, each relation has one row.
        columns: Columns to select; the first is not NULL where there is a row.
        order: Column to order by.
    """

    function: str
    columns: str
    order: str


_RELATION = _Part("", "found.comment, found.sql", "found.name")
_COLUMNS = _Part(
    "duckdb_columns()",
    "column_name, data_type, is_nullable, column_default, is_generated, generation_expression, "
    "part.comment AS column_comment",
    "column_index",
)
_INDEXES = _Part(
    "duckdb_indexes()", "index_name, is_unique, expressions::VARCHAR[] AS expressions", "index_name"
)


class CatalogReflection:
    """The part of a dialect that reflects; each ``get_multi_*`` is one look into the catalog."""

    default_schema_name: str | None

    @reflection.cache
    def get_schema_names(self, connection: sa.Connection, **_kw: object) -> list[str]:
        """List the schemas of the connection's database, then those of attached ones."""
        rows = connection.execute(
            sa.text(
                f"SELECT database_name, database_name = {_HERE} AS here, schema_name "  # noqa: S608  # constants
                "FROM duckdb_schemas() WHERE database_name NOT IN ('system', 'temp') "
                "ORDER BY here DESC, database_name, schema_name"
            )
        )
        return [row.schema_name if row.here else f"{row.database_name}.{row.schema_name}" for row in rows]

    def has_schema(self, connection: sa.Connection, schema_name: str, **options: Any) -> bool:
        """Tell whether there is such a schema."""
        return schema_name in self.get_schema_names(connection, **options)

    @reflection.cache
    def get_table_names(
        self, connection: sa.Connection, schema: str | None = None, **_kw: object
    ) -> list[str]:
        """List the tables of a schema."""
        return self._names(connection, schema, ObjectScope.DEFAULT, ObjectKind.TABLE)

    @reflection.cache
    def get_view_names(
        self, connection: sa.Connection, schema: str | None = None, **_kw: object
    ) -> list[str]:
        """List the views of a schema."""
        return self._names(connection, schema, ObjectScope.DEFAULT, ObjectKind.VIEW)

    @reflection.cache
    def get_temp_table_names(
        self, connection: sa.Connection, schema: str | None = None, **_kw: object
    ) -> list[str]:
        """List the connection's temporary tables."""
        return self._names(connection, schema, ObjectScope.TEMPORARY, ObjectKind.TABLE)

    @reflection.cache
    def get_temp_view_names(
        self, connection: sa.Connection, schema: str | None = None, **_kw: object
    ) -> list[str]:
        """List the connection's temporary views."""
        return self._names(connection, schema, ObjectScope.TEMPORARY, ObjectKind.VIEW)

    def get_materialized_view_names(self, *_arguments: object, **_kw: object) -> list[str]:
        """Return nothing: DuckDB has no materialized views."""
        return []

    @reflection.cache
    def get_view_definition(
        self, connection: sa.Connection, view_name: str, schema: str | None = None, **_kw: object
    ) -> str:
        """Return the SELECT of a view."""
        for row in self._rows(connection, schema, filter_names=[view_name], kind=ObjectKind.VIEW):
            stated = _VIEW.fullmatch(row.sql)
            return stated[1] if stated else row.sql
        raise NoSuchTableError(view_name)

    @reflection.cache
    def has_table(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> bool:
        """Tell whether there is such a table or view."""
        if not isinstance(table_name, str):  # pandas asks this of a SELECT, too
            raise TypeError(f"a table's name is text, not {type(table_name).__name__}")
        return bool(self._rows(connection, schema, filter_names=[table_name]))

    def has_multi_table(
        self, connection: sa.Connection, table_names: Sequence[str], schema: str | None = None, **_kw: object
    ) -> _Found[bool]:
        """Tell of each table whether it is there."""
        rows = self._rows(connection, schema, filter_names=table_names)
        found = {row.name for row in rows}
        return [((schema, name), name in found) for name in table_names]

    @reflection.cache
    def has_index(
        self,
        connection: sa.Connection,
        table_name: str,
        index_name: str,
        schema: str | None = None,
        **options: Any,
    ) -> bool:
        """Tell whether a table has such an index."""
        if not self.has_table(connection, table_name, schema, **options):
            return False
        return any(index["name"] == index_name for index in self.get_indexes(connection, table_name, schema))

    @reflection.cache
    def get_sequence_names(
        self, connection: sa.Connection, schema: str | None = None, **_kw: object
    ) -> list[str]:
        """List the sequences of a schema."""
        rows = self._objects(connection, "sequence_name", "duckdb_sequences()", "NOT temporary", schema)
        return [row.sequence_name for row in rows]

    @reflection.cache
    def has_sequence(
        self, connection: sa.Connection, sequence_name: str, schema: str | None = None, **_kw: object
    ) -> bool:
        """Tell whether there is such a sequence."""
        return sequence_name in self.get_sequence_names(connection, schema)

    @reflection.cache
    def has_type(
        self, connection: sa.Connection, type_name: str, schema: str | None = None, **_kw: object
    ) -> bool:
        """Tell whether somebody has created a type of that name."""
        rows = self._objects(connection, "type_name", "duckdb_types()", "NOT internal", schema)
        return any(row.type_name == type_name for row in rows)

    def _load_enums(self, connection: sa.Connection, schema: str | None = None, **_kw: object) -> list[Any]:
        rows = self._objects(
            connection, "type_name, labels", "duckdb_types()", "logical_type = 'ENUM'", schema
        )
        return [
            {"name": row.type_name, "schema": schema, "visible": schema is None, "labels": list(row.labels)}
            for row in rows
            if row.type_name != "enum"
        ]

    def get_multi_columns(
        self, connection: sa.Connection, *, schema: str | None = None, **chosen: Unpack[_Chosen]
    ) -> _Found[list[ReflectedColumn]]:
        """Reflect the columns of tables and views, in their order."""
        enums = {tuple(enum["labels"]): enum["name"] for enum in self._load_enums(connection, schema)}
        return self._reflect(connection, _COLUMNS, lambda row: _column(row, enums), schema, chosen)

    def get_multi_pk_constraint(
        self, connection: sa.Connection, *, schema: str | None = None, **chosen: Unpack[_Chosen]
    ) -> _Found[ReflectedPrimaryKeyConstraint]:
        """Reflect the primary keys."""
        return [
            (key, found[0] if found else ReflectionDefaults.pk_constraint())
            for key, found in self._constraints(
                connection,
                "PRIMARY KEY",
                lambda row: ReflectedPrimaryKeyConstraint(
                    name=row.constraint_name, constrained_columns=list(row.constraint_column_names)
                ),
                schema,
                chosen,
            )
        ]

    def get_multi_unique_constraints(
        self, connection: sa.Connection, *, schema: str | None = None, **chosen: Unpack[_Chosen]
    ) -> _Found[list[ReflectedUniqueConstraint]]:
        """Reflect the unique constraints, with the names that DuckDB has given them."""
        return self._constraints(
            connection,
            "UNIQUE",
            lambda row: ReflectedUniqueConstraint(
                name=row.constraint_name, column_names=list(row.constraint_column_names)
            ),
            schema,
            chosen,
        )

    def get_multi_foreign_keys(
        self, connection: sa.Connection, *, schema: str | None = None, **chosen: Unpack[_Chosen]
    ) -> _Found[list[ReflectedForeignKeyConstraint]]:
        """Reflect the foreign keys, which stay within a schema."""
        return self._constraints(
            connection,
            "FOREIGN KEY",
            lambda row: ReflectedForeignKeyConstraint(
                name=row.constraint_name,
                constrained_columns=list(row.constraint_column_names),
                referred_schema=schema,
                referred_table=row.referenced_table,
                referred_columns=list(row.referenced_column_names),
                options={},
            ),
            schema,
            chosen,
        )

    def get_multi_check_constraints(
        self, connection: sa.Connection, *, schema: str | None = None, **chosen: Unpack[_Chosen]
    ) -> _Found[list[ReflectedCheckConstraint]]:
        """Reflect the check constraints, with the names that DuckDB has given them."""
        return self._constraints(
            connection,
            "CHECK",
            lambda row: ReflectedCheckConstraint(
                name=row.constraint_name, sqltext=_without_parentheses(row.expression)
            ),
            schema,
            chosen,
        )

    def get_multi_indexes(
        self, connection: sa.Connection, *, schema: str | None = None, **chosen: Unpack[_Chosen]
    ) -> _Found[list[ReflectedIndex]]:
        """Reflect the secondary indexes; an expression stands where a column's name would."""
        names = {
            key: {column["name"] for column in columns}
            for key, columns in self.get_multi_columns(connection, schema=schema, **chosen)
        }
        return [
            (key, [_index(row, names[key]) for row in rows])
            for key, rows in self._reflect(connection, _INDEXES, lambda row: row, schema, chosen)
        ]

    def get_multi_table_comment(
        self, connection: sa.Connection, *, schema: str | None = None, **chosen: Unpack[_Chosen]
    ) -> _Found[ReflectedTableComment]:
        """Reflect the comments on tables and views."""
        rows = self._rows(connection, schema, **chosen)
        return [((schema, row.name), ReflectedTableComment(text=row.comment)) for row in rows]

    def get_multi_table_options(
        self, connection: sa.Connection, *, schema: str | None = None, **chosen: Unpack[_Chosen]
    ) -> _Found[dict[str, object]]:
        """Return nothing of each table: DuckDB's tables have no options."""
        return [((schema, row.name), {}) for row in self._rows(connection, schema, **chosen)]

    @reflection.cache
    def get_columns(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedColumn]:
        """Reflect the columns of a table or view, in their order."""
        return _only(self.get_multi_columns, connection, table_name, schema)

    @reflection.cache
    def get_pk_constraint(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> ReflectedPrimaryKeyConstraint:
        """Reflect the primary key."""
        return _only(self.get_multi_pk_constraint, connection, table_name, schema)

    @reflection.cache
    def get_unique_constraints(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedUniqueConstraint]:
        """Reflect the unique constraints."""
        return _only(self.get_multi_unique_constraints, connection, table_name, schema)

    @reflection.cache
    def get_foreign_keys(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedForeignKeyConstraint]:
        """Reflect the foreign keys."""
        return _only(self.get_multi_foreign_keys, connection, table_name, schema)

    @reflection.cache
    def get_check_constraints(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedCheckConstraint]:
        """Reflect the check constraints."""
        return _only(self.get_multi_check_constraints, connection, table_name, schema)

    @reflection.cache
    def get_indexes(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedIndex]:
        """Reflect the secondary indexes."""
        return _only(self.get_multi_indexes, connection, table_name, schema)

    @reflection.cache
    def get_table_comment(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> ReflectedTableComment:
        """Reflect the comment on a table."""
        return _only(self.get_multi_table_comment, connection, table_name, schema)

    @reflection.cache
    def get_table_options(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> dict[str, object]:
        """Return nothing: DuckDB's tables have no options."""
        return _only(self.get_multi_table_options, connection, table_name, schema)

    def _place(self, schema: str | None) -> _Place:
        database, found = self.identifier_preparer._separate(schema)  # type: ignore[attr-defined]  # the dialect's
        return _Place(database, found or self.default_schema_name)

    def _names(
        self, connection: sa.Connection, schema: str | None, scope: ObjectScope, kind: ObjectKind
    ) -> list[str]:
        return [row.name for row in self._rows(connection, schema, scope=scope, kind=kind)]

    def _rows(
        self,
        connection: sa.Connection,
        schema: str | None,
        part: _Part = _RELATION,
        *,
        filter_names: Collection[str] | None = None,
        scope: ObjectScope = ObjectScope.ANY,
        kind: ObjectKind = ObjectKind.ANY,
        **_unused: object,
    ) -> _Rows:
        """Return rows of relations, each as often as a part has rows for it, and at least once.

        Args:
            connection: The connection.
            schema: The schema.
            part: Rows that belong to the relations.
            filter_names: Names of relations; all without it.
            scope: Temporary relations, others, or both; the temporary ones come last.
            kind: Tables, views, or both.
        """
        place = self._place(schema)
        join = part.function and (
            f"LEFT JOIN {part.function} AS part ON part.database_name = found.database_name "
            "AND part.schema_name = found.schema_name AND part.table_name = found.name"
        )
        statement = sa.text(
            f"SELECT found.name, found.temporary, {part.columns} FROM ({_RELATIONS}) AS found {join} "  # noqa: S608
            f"WHERE (found.database_name = coalesce(:database, {_HERE}) AND found.schema_name = :schema "
            "OR found.temporary AND :with_temporary) AND list_contains(:temporary, found.temporary) "
            "AND list_contains(:views, found.is_view) "
            "AND (:names IS NULL OR list_contains(:names, found.name)) "
            f"ORDER BY found.temporary, found.name, {part.order}"
        )
        parameters = {
            **place._asdict(),
            "with_temporary": schema is None,
            "temporary": _flags(scope, ObjectScope.DEFAULT, ObjectScope.TEMPORARY),
            "views": _flags(kind, ObjectKind.TABLE, ObjectKind.VIEW),
            "names": None if filter_names is None else list(filter_names),
        }
        return connection.execute(statement, parameters).all()

    def _reflect(
        self,
        connection: sa.Connection,
        part: _Part,
        reflected: Callable[[sa.Row[*tuple[Any, ...]]], T],
        schema: str | None,
        chosen: _Chosen,
    ) -> list[tuple[TableKey, list[T]]]:
        first = part.columns.partition(",")[0]
        found: dict[str, tuple[bool, list[T]]] = {}
        for row in self._rows(connection, schema, part, **chosen):
            # A temporary relation hides another of its name.
            if row.name not in found or found[row.name][0] != row.temporary:
                found[row.name] = row.temporary, []
            if getattr(row, first) is not None:
                found[row.name][1].append(reflected(row))
        return [((schema, name), items) for name, (_temporary, items) in found.items()]

    def _constraints(
        self,
        connection: sa.Connection,
        kind: str,
        reflected: Callable[[sa.Row[*tuple[Any, ...]]], T],
        schema: str | None,
        chosen: _Chosen,
    ) -> list[tuple[TableKey, list[T]]]:
        part = _Part(
            f"(FROM duckdb_constraints() WHERE constraint_type = '{kind}')",
            "constraint_name, constraint_column_names, expression, referenced_table, referenced_column_names",
            "constraint_index",
        )
        return self._reflect(connection, part, reflected, schema, chosen)

    def _objects(
        self, connection: sa.Connection, columns: str, objects: str, which: str, schema: str | None
    ) -> _Rows:
        place = self._place(schema)
        query = (
            f"SELECT {columns} FROM {objects} WHERE {which} AND schema_name = :schema "  # noqa: S608  # constants
            f"AND database_name = coalesce(:database, {_HERE}) ORDER BY 1"
        )
        parameters = {"schema": place.schema, "database": place.database}
        return connection.execute(sa.text(query), parameters).all()


def _flags(chosen: ObjectScope | ObjectKind, *bits: ObjectScope | ObjectKind) -> list[bool]:
    return [value for value, bit in zip((False, True), bits, strict=True) if bit in chosen]


def _only(
    multi: Callable[..., _Found[T]], connection: sa.Connection, table_name: str, schema: str | None
) -> T:
    chosen = {"filter_names": [table_name], "scope": ObjectScope.ANY, "kind": ObjectKind.ANY}
    found = [items for _key, items in multi(connection, schema=schema, **chosen)]
    if not found:
        raise NoSuchTableError(f"{schema}.{table_name}" if schema else table_name)
    return found[-1]  # the temporary one, if there is


def _column(row: sa.Row[*tuple[Any, ...]], enums: dict[tuple[str, ...], str]) -> ReflectedColumn:
    column = ReflectedColumn(
        name=row.column_name,
        type=_known_type(row.data_type, row.column_name, enums),
        nullable=row.is_nullable,
        default=None if row.is_generated else row.column_default,
        comment=row.column_comment,
        autoincrement=(row.column_default or "").startswith("nextval("),
    )
    if row.is_generated:
        sqltext = _without_cast(row.generation_expression, row.data_type)
        column["computed"] = {"sqltext": sqltext, "persisted": False}
    return column


def _known_type(data_type: str, column: str, enums: dict[tuple[str, ...], str]) -> ColumnType:
    found = column_type(data_type)
    if found is None:
        sa.util.warn(f"Did not recognize type {data_type!r} of column {column!r}")
        return sa.types.NullType()
    if isinstance(found, NativeEnum):  # the catalog does not tell by which name it was used
        found.name = enums.get(tuple(found.enums))
    return found


def _index(row: sa.Row[*tuple[Any, ...]], columns: set[str]) -> ReflectedIndex:
    names = [text.strip("'").strip('"') for text in row.expressions]  # DuckDB quotes reserved words twice
    plain: list[str | None] = [text if text in columns else None for text in names]
    index = ReflectedIndex(name=row.index_name, unique=row.is_unique, column_names=plain)
    if None in plain:
        index["expressions"] = [_without_parentheses(text) for text in names]
    return index


def _without_cast(expression: str, data_type: str) -> str:
    """Return an expression without the cast to its column's type that DuckDB puts around it."""
    end = f" AS {data_type})"
    if expression.startswith("CAST(") and expression.endswith(end):
        expression = expression.removeprefix("CAST(").removesuffix(end)
    return _without_parentheses(expression)


def _without_parentheses(expression: str) -> str:
    """Return an expression without parentheses around the whole of it."""
    depth = 0
    if not (expression.startswith("(") and expression.endswith(")")):
        return expression
    for found in re.finditer(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[()]""", expression):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth == 0:
            whole = found.end() == len(expression)
            return _without_parentheses(expression[1:-1]) if whole else expression
    return expression

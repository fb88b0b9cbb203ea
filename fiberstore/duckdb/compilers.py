"""SQL of statements, tables and types in the words of DuckDB, where PostgreSQL's do not fit.

DuckDB has neither SERIAL nor IDENTITY: a column that counts by itself gets a sequence of its own, with the
name that PostgreSQL would give it, made and dropped in the statement that makes and drops the table.
"""

from collections.abc import Callable, Sequence
from typing import Any, Never

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.base import PGCompiler, PGDDLCompiler, PGTypeCompiler
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateTable, DropTable

_FLOAT_DIGITS = 24  # of FLOAT, binary


def json_pointer(path: str | int | Sequence[str | int]) -> str:
    """Return a path into a JSON document as DuckDB takes no part of it for a wildcard.

    That is a JSON pointer (RFC 6901), which has no index from the end: a path with one is in DuckDB's own
    form.
    """
    parts = (path,) if isinstance(path, str | int) else path
    if any(isinstance(part, int) and part < 0 for part in parts):
        return "$" + "".join(map(_step, parts))
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts) or "$"


def _step(part: str | int) -> str:
    if isinstance(part, int):
        return f"[#{part}]" if part < 0 else f"[{part}]"
    if '"' in part or "\\" in part:
        raise ValueError(f"the key {part!r} cannot stand in a JSON path with a negative index")
    return f'."{part}"'


class _JsonPath:
    """A key, an index or a path of both, bound as text."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        del dialect
        return json_pointer

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        quoted = sa.String().literal_processor(dialect)
        return lambda path: quoted(json_pointer(path))


class JsonKey(_JsonPath, sa.JSON.JSONStrIndexType):
    """A key of a JSON object."""


class JsonIndex(_JsonPath, sa.JSON.JSONIntIndexType):
    """An index of a JSON list, negative from its end."""


class JsonPath(_JsonPath, sa.JSON.JSONPathType):
    """A path of keys and indexes."""


class DuckDBCompiler(PGCompiler):
    """SQL of statements."""

    def for_update_clause(self, select: sa.Select[Any], **_options: object) -> Never:
        """Refuse row locks, of which DuckDB has none."""
        del select
        raise CompileError(
            "DuckDB has no FOR UPDATE; leave with_for_update() out: to change a row that another transaction "
            "has changed meanwhile fails as a conflict"
        )

    visit_json_path_getitem_op_binary = PGCompiler.visit_json_getitem_op_binary  # a path is found as a key is

    def visit_regexp_match_op_binary(
        self, binary: sa.BinaryExpression[Any], operator: object, **options: Any
    ) -> str:  # fmt: skip
        """Search for a pattern; DuckDB's ``~`` matches whole texts."""
        del operator
        arguments = [self.process(side, **options) for side in (binary.left, binary.right)]
        if binary.modifiers["flags"] is not None:
            arguments.append(self.render_literal_value(binary.modifiers["flags"], sa.String()))
        return f"regexp_matches({', '.join(arguments)})"

    def visit_not_regexp_match_op_binary(
        self, binary: sa.BinaryExpression[Any], operator: object, **options: Any
    ) -> str:  # fmt: skip
        """Tell that a pattern is found nowhere."""
        return f"NOT {self.visit_regexp_match_op_binary(binary, operator, **options)}"


class DuckDBDDLCompiler(PGDDLCompiler):
    """SQL of tables."""

    def visit_create_table(self, create: CreateTable, **options: Any) -> str:
        """Make the sequences of a table's columns, and the table."""
        table = create.element
        kind = "TEMPORARY " if {"TEMP", "TEMPORARY"} & {word.upper() for word in table._prefixes} else ""
        sequences = "".join(
            f"\nCREATE {kind}SEQUENCE IF NOT EXISTS {name} {self._options_of(column)}".rstrip() + ";"
            for column in table.columns
            if (name := self._sequence(column))
        )
        created: str = super().visit_create_table(create, **options)
        return sequences + created

    def visit_drop_table(self, drop: DropTable, **options: Any) -> str:
        """Drop the table, and the sequences of its columns."""
        dropped: str = super().visit_drop_table(drop, **options)
        names = filter(None, map(self._sequence, drop.element.columns))
        return dropped + "".join(f";\nDROP SEQUENCE IF EXISTS {name}" for name in names)

    def get_column_specification(self, column: sa.Column[Any], **_options: object) -> str:
        """Define a column."""
        type_ = self.dialect.type_compiler_instance.process(column.type, type_expression=column)
        default = self.get_column_default_string(column)
        words = [
            self.preparer.format_column(column),
            type_,
            default and f"DEFAULT {default}",
            "" if column.computed is None else self.process(column.computed),
            "" if column.nullable else "NOT NULL",
        ]
        return " ".join(filter(None, words))

    def get_column_default_string(self, column: sa.Column[Any]) -> str | None:
        """Return the default, which may be the next number of the column's sequence."""
        name = self._sequence(column)
        if name:
            return f"nextval({self.sql_compiler.render_literal_value(name, sa.String())})"
        default: str | None = super().get_column_default_string(column)
        return default

    def visit_computed_column(self, generated: sa.Computed, **_options: object) -> str:
        """Define a computed column, which DuckDB does not store."""
        if generated.persisted:
            raise CompileError("DuckDB stores no computed columns; leave persisted=True out")
        text = self.sql_compiler.process(generated.sqltext, include_table=False, literal_binds=True)
        return f"GENERATED ALWAYS AS ({text}) VIRTUAL"

    def _sequence(self, column: sa.Column[Any]) -> str | None:
        """Return the name of the sequence that a column counts by, in SQL; None for most columns."""
        table, default = column.table, column.default
        if column.identity is None and (
            column is not table._autoincrement_column
            or column.server_default is not None
            or not (default is None or (isinstance(default, sa.Sequence) and default.optional))
        ):
            return None
        if column.identity is not None and column.identity.always:
            raise CompileError(
                f"{table.name}.{column.name}: DuckDB refuses no numbers that are given; leave always=True out"
            )
        # As SQLAlchemy's dialect of PostgreSQL asks for it, where it fetches a number itself.
        length = 29
        table_part = table.name[: length + max(0, length - len(column.name))]
        column_part = column.name[: length + max(0, length - len(table_part))]
        name: str = self.preparer.format_sequence(
            sa.Sequence(f"{table_part}_{column_part}_seq", schema=table.schema)
        )
        return name

    def _options_of(self, column: sa.Column[Any]) -> str:
        options = "" if column.identity is None else self.get_identity_options(column.identity)
        return str(options)


class DuckDBTypeCompiler(PGTypeCompiler):
    """SQL of types."""

    def process(self, type_: sa.types.TypeEngine[Any], **options: Any) -> str:
        """Return a type's SQL; duckdb-engine's types need a preparer, which SQLAlchemy does not hand on."""
        options.setdefault("identifier_preparer", self.dialect.identifier_preparer)
        found: str = super().process(type_, **options)
        return found

    def visit_FLOAT(self, type_: sa.Float[Any], **_options: object) -> str:  # noqa: N802  # SQLAlchemy's
        """Return the type that keeps a Python float, unless fewer digits are asked for."""
        return "FLOAT" if type_.precision is not None and type_.precision <= _FLOAT_DIGITS else "DOUBLE"

    def visit_ENUM(self, type_: sa.Enum, identifier_preparer: Any = None, **options: Any) -> str:  # noqa: N802  # SQLAlchemy's
        """Return the name of an enumeration, or its values if it has none."""
        if type_.name:
            found: str = super().visit_ENUM(type_, identifier_preparer, **options)
            return found
        quoted = sa.String().literal_processor(self.dialect)
        return f"ENUM({', '.join(map(quoted, type_.enums))})"

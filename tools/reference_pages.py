"""Generated parts of the reference: the help of each command, and the tables with their columns.

`docs/conf.py` puts them where a page has a marker such as `<!-- generated: tables -->`.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from unittest import mock

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from typer.main import get_group

from fiberstore.cli import main
from fiberstore.cli.app import app
from fiberstore.cli.index import COMMANDS
from fiberstore.duckdb.dialect import FiberstoreDialect
from fiberstore.sql.models import Base

COLUMNS = "80"
MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def fill(page: str) -> str:
    """Return a page with its generated parts in place of their markers."""
    return MARKER.sub(lambda marker: "\n".join(PARTS[marker[1]]()), page)


def without_fences(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a docstring with blocks of reStructuredText in place of fenced ones."""
    indent = ""
    is_code = False
    for line in lines:
        if fence := re.fullmatch(r"(\s*)```(\w*)", line):
            is_code = not is_code
            indent = fence[1]
            yield from (["", f"{indent}.. code-block:: {fence[2] or 'text'}", ""] if is_code else [""])
        else:
            yield f"{indent}    {line.removeprefix(indent)}".rstrip() if is_code else line


def commands() -> Iterator[str]:
    """Yield the help of each command, as the command prints it."""
    with mock.patch.dict(os.environ, {"COLUMNS": COLUMNS, "TERM": "dumb", "NO_COLOR": "1"}):
        group = get_group(app)
        loaded = (
            each
            for name in COMMANDS
            for each in _names(group.resolve_command(None, [name])[1], (name,))  # type: ignore[arg-type]
        )
        for name in ((), *loaded):
            yield f"## `{' '.join(('fiberstore', *name))}`\n\n```text\n{_help(name)}\n```\n"


def _names(command: object, name: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield name
    for each, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _names(inner, (*name, each))


def _help(name: tuple[str, ...]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*name, "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().strip("\n").splitlines())


def tables() -> Iterator[str]:
    """Yield a section for each table: its model, its columns on both engines, and its indexes."""
    duckdb, postgres = FiberstoreDialect(), postgresql.dialect()  # type: ignore[no-untyped-call]
    models = {mapper.local_table: mapper.class_ for mapper in Base.registry.mappers}
    for table in Base.metadata.tables.values():
        model = models[table]
        about = (model.__doc__ or "").replace("``", "`")
        yield f"## `{table.name}`\n\n{about}\n\nModel: `{model.__name__}`.\n"
        yield "| column | DuckDB | PostgreSQL | null | |"
        yield "|---|---|---|---|---|"
        for column in table.columns:
            types = [column.type.compile(dialect=dialect) for dialect in (duckdb, postgres)]
            null = "yes" if column.nullable else "no"
            key = "primary key" if column.primary_key else ""
            yield f"| `{column.name}` | `{types[0]}` | `{types[1]}` | {null} | {key} |"
        yield ""
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            on = ", ".join(f"`{column.name}`" for column in index.columns)
            yield f"- Index `{index.name}` on {on}{_engine(index)}"
        yield ""


def _engine(index: sa.Index) -> str:
    return " (PostgreSQL only)" if index.info.get("engine") == "postgresql" else ""


PARTS = {"commands": commands, "tables": tables}

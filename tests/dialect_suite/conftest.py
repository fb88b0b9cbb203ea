"""SQLAlchemy's own tests of a dialect, on ``duckdb+fiberstore``.

They need pytest for themselves, as SQLAlchemy's plugin decides what is collected:
``pytest -c tests/dialect_suite/pytest.ini tests/dialect_suite``. ``tests/duckdb/test_dialect_suite.py`` runs
it as a slow test. What fails stands in ``known_failures.txt`` below its reason, and must fail.
"""

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.testing import provision

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403  # its hooks
from sqlalchemy.testing.plugin.pytestplugin import (  # noqa: E402
    pytest_collection_modifyitems as _collect,
)


def pytest_collection_modifyitems(  # type: ignore[no-redef]  # it stands in for SQLAlchemy's
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Let SQLAlchemy collect, and expect the known failures."""
    _collect(session, config, items)
    reasons = _known_failures()
    for item in items:
        name = f"{item.cls.__name__.partition('_')[0]}.{item.name}"  # type: ignore[attr-defined]  # of a method
        if reason := reasons.pop(name, None):  # DuckDB's, which known_failures.txt has above the test's name
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    if reasons and not config.option.keyword:
        raise pytest.UsageError(f"known_failures.txt names tests that are not there: {', '.join(reasons)}")


def _known_failures() -> dict[str, str]:
    """Return the reason why each known failure fails, by ``Class.test[parameters]``."""
    reasons, reason = {}, ""
    for line in (Path(__file__).parent / "known_failures.txt").read_text().splitlines():
        if line.startswith("# "):
            reason = line.removeprefix("# ")
        elif not line:
            reason = ""
        elif not reason:
            raise pytest.UsageError(f"known_failures.txt: {line} has no reason above it")
        else:
            reasons[line] = reason
    return reasons


@provision.temp_table_keyword_args.for_db("duckdb")  # type: ignore[untyped-decorator]
def _temporary_table_arguments(_config: object, _engine: sa.Engine) -> dict[str, list[str]]:
    return {"prefixes": ["TEMPORARY"]}


@provision.post_configure_engine.for_db("duckdb")  # type: ignore[untyped-decorator]
def _create_schemas(_url: sa.URL, engine: sa.Engine, _follower: str | None) -> None:
    with engine.begin() as connection:
        for schema in ("test_schema", "test_schema_2"):
            connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))

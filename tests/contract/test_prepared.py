"""A statement that was compiled before is sent with its own values, and with none of an earlier one."""

import gc
from typing import Any
from uuid import uuid4
from weakref import ref

import pytest
import sqlalchemy as sa

from fiberstore.contract.conditions import Condition
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.conditions import FIBERS, LOGS, among, to_sql
from fiberstore.sql.prepared import compiled, connection_of
from fiberstore.testing.examples import NOON

FIBER, LOG = Fibers.c, Logs.c
ATTRIBUTES = FIBER.attributes
SHORT, LONG = [uuid4()], [uuid4() for _ in range(60)]

# Conditions of one kind, which no two values may mix up.
SAME_KINDS: dict[str, list[Condition[Any]]] = {
    "compare": [LOG.source_id == "a", LOG.source_id == "b"],
    "times": [LOG.timestamp >= NOON, LOG.timestamp >= NOON.replace(hour=1)],
    "in": [LOG.source_id.in_(["a"]), LOG.source_id.in_(["b", "c"]), LOG.source_id.in_([])],
    "in many": [LOG.log_id.in_(SHORT), LOG.log_id.in_(LONG), LOG.log_id.in_(LONG[1:])],
    "text": [LOG.raw_text.contains("a"), LOG.raw_text.contains("b")],
    "pattern": [LOG.raw_text.regexp_match(pattern) for pattern in ("a", "^a", "a+", "b+", "^b+$")],
    "pointer": [ATTRIBUTES[pointer] == "x" for pointer in ("/a", "/b", "/a/b", "/a/c", "/0", "/01", "")],
    "attribute": [ATTRIBUTES["/a"] == value for value in ("x", "y", 1, 2, 2**60, 2**60 + 1, 0.5, True, None)],
    "exists": [ATTRIBUTES[pointer].exists() for pointer in ("/a", "/b", "/1", "/-1")],
    "items": [ATTRIBUTES[pointer].contains(value) for pointer, value in (("/a", "x"), ("/b", "y"), ("", 1))],
    "keys": [FIBER.keys["user"] == "a", FIBER.keys["host"] == "b", FIBER.keys["user"].startswith("c")],
    "joined": [FIBER.logs.contains(*SHORT), FIBER.logs.contains(*LONG[:2])],
    "not, and, or": [
        ~(FIBER.fiber_type == kind) & ((FIBER.config_version == version) | (ATTRIBUTES["/a"] == kind))
        for kind, version in (("a", 1), ("b", 2))
    ],
}


@pytest.mark.parametrize("kind", SAME_KINDS)
def test_values_are_those_of_the_statement(any_storage: SqlStorage, kind: str) -> None:
    with any_storage.session() as session:
        dialect = connection_of(session).statement_dialect
        for condition in SAME_KINDS[kind] * 2:
            statement = sa.select(sa.func.count()).where(to_sql(condition)).limit(len(repr(condition)))
            anew = statement.compile(dialect=dialect).construct_expanded_state()
            assert compiled(session, statement) == (anew.statement, list(anew.positional_parameters))


def test_values_that_change_rows_are_those_of_the_statement(any_storage: SqlStorage) -> None:
    with any_storage.session() as session:
        for closed, version in ((True, 1), (False, 2), (True, 3)):
            change = sa.update(FIBERS).values(closed=closed).where(FIBERS.c.config_version == version)
            assert compiled(session, change)[1] == [closed, version]


def test_a_statement_that_differs_in_values_is_not_compiled_again(any_storage: SqlStorage) -> None:
    with any_storage.session() as session:
        first, second = (
            compiled(session, sa.select(*LOGS.c).where(to_sql(condition)))[0]
            for condition in SAME_KINDS["compare"]
        )
        assert first is second


@pytest.mark.usefixtures("collects_garbage")
def test_large_values_are_not_kept(any_storage: SqlStorage) -> None:
    ids = [uuid4() for _ in range(2_000)]
    one = ref(ids[0])
    with any_storage.session() as session:
        sql, _ = compiled(session, sa.select(*LOGS.c).where(among(LOGS.c.log_id, ids)))
    assert "log_id" in sql
    del ids, _
    gc.collect()
    assert one() is None

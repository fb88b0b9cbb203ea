"""DuckDB, PostgreSQL and the oracle find the same records, whatever is stored and whatever is asked."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypeVar, cast
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import JsonValue

from fiberstore import DuckDBStorage, FiberMembership, FiberRecord, StoredLog
from fiberstore.checks import MAX_CONFIG_VERSION
from fiberstore.contract.columns import Attribute, Column, OrderedColumn, TextColumn
from fiberstore.contract.conditions import Condition, Scalar
from fiberstore.contract.queries import FiberOrder, Fibers, LogOrder, Logs, Memberships, Query, QueryStorage
from fiberstore.contract.results import FiberSummary, Page
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.testing.examples import ATTRIBUTES, IDS, IN_UTC, MICROSECOND, NOON, TEXTS
from fiberstore.testing.filters import numbers
from fiberstore.testing.query_pages import Paged, walk
from tests.support.databases import empty
from tests.support.oracle import MemoryStorage

Q = TypeVar("Q")

Rows: TypeAlias = tuple[list[StoredLog], list[FiberRecord], list[FiberMembership]]

LOG_ORDERS: tuple[LogOrder, ...] = ("oldest", "newest")
FIBER_ORDERS: tuple[FiberOrder, ...] = ("oldest", "newest", "longest", "most_logs")
# Few of each, so that conditions meet what is stored.
ids = st.sampled_from(IDS[::2])
keys = st.sampled_from(
    ["", "a", "A", "0", "1", "01", "-", "$", "*", "a/b", "a~b", "~1", "é", 'q"', "\\", "[0]"]
)
short = st.sampled_from([*TEXTS, "a", "b", "1", "true", "null", "\U00010000", "\uffff", "é%_\\'"])
texts = short | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
times = st.sampled_from([*IN_UTC.values(), NOON + MICROSECOND, NOON + timedelta(hours=1)])
versions = st.sampled_from([0, 1, 2**53, 2**53 + 1, 2**63, MAX_CONFIG_VERSION])
edges = [0, 1, -1, 2**31, *(2**bits + by for bits in (53, 62, 63) for by in (-1, 0, 1)), 2**64 - 1]
bounds = st.sampled_from([*edges, *(-edge for edge in edges if edge <= 2**63)]) | st.integers(
    -(2**63), 2**64 - 1
)
floats = st.sampled_from([0.1, 1.0, 1.5, -0.0, 1e16, 2.0**53, 2.0**53 + 2, 2.0**63, 5e-324, -(2.0**63)])
asked_numbers = bounds | floats | st.floats(-(2.0**63), 2.0**63)
stored_numbers = (
    asked_numbers
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**64, 2**64 + 1, -(2**63) - 1, 10**30, 1e300])
)
attributes: st.SearchStrategy[JsonValue] = st.sampled_from(ATTRIBUTES[:-2]) | st.recursive(
    st.none() | st.booleans() | stored_numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | texts, inner, max_size=4),
    max_leaves=8,
)


def as_pointer(path: list[str]) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)


pointers = st.lists(keys | texts, max_size=2).map(as_pointer)


@st.composite
def fiber_records(draw: st.DrawFn, attributes: st.SearchStrategy[JsonValue] = attributes) -> FiberRecord:
    first, last = sorted([draw(times), draw(times)])
    return FiberRecord(
        fiber_id=draw(ids),
        fiber_type=draw(texts),
        config_version=draw(versions),
        attributes=draw(attributes),
        first_activity=first,
        last_activity=last,
        closed=draw(st.booleans()),
    )


log_records = st.builds(
    StoredLog,
    log_id=ids,
    timestamp=times,
    source_id=texts,
    raw_text=texts,
    ingestion_time=times,
    config_version=versions,
)
memberships = st.builds(FiberMembership, log_id=ids, fiber_id=ids, config_version=versions)

patterns = st.sampled_from(
    [
        "",
        "a",
        "(?i)A",
        "^.*$",
        "^$",
        "e.t",
        r"\d+",
        "[^a-z]",
        r"\s",
        "(?s)one.line",
        "(?m)^line",
        "é",
        "(a|b)+?",
    ]
) | texts.map(lambda text: r"\Q" + text.replace(r"\E", "") + r"\E")


def compared(
    column: OrderedColumn[Any, Any], values: st.SearchStrategy[Any]
) -> st.SearchStrategy[Condition[Any]]:
    return st.one_of(
        st.builds(lambda value: column == value, values),
        st.builds(lambda value: column != value, values),
        st.builds(lambda value: column < value, values),
        st.builds(lambda value: column <= value, values),
        st.builds(lambda value: column > value, values),
        st.builds(lambda value: column >= value, values),
        st.builds(column.between, values, values),
        st.builds(column.in_, st.lists(values, max_size=4)),
    )


def equal(
    column: Column[Any, Any] | Attribute, values: st.SearchStrategy[Any]
) -> st.SearchStrategy[Condition[Any]]:
    return st.one_of(
        st.builds(lambda value: column == value, values),
        st.builds(lambda value: column != value, values),
        st.builds(column.in_, st.lists(values, max_size=4)),
    )


def about_text(column: TextColumn[Any]) -> st.SearchStrategy[Condition[Any]]:
    parts = texts.flatmap(lambda text: st.sampled_from([text, text[:1], text[1:3]]))
    return st.one_of(
        equal(column, texts),
        st.builds(column.contains, parts),
        st.builds(column.startswith, parts),
        st.builds(column.regexp_match, patterns),
    )


def about_attribute(pointer: str) -> st.SearchStrategy[Condition[FiberRecord]]:
    attribute = Attribute(pointer)
    ordered = cast("OrderedColumn[Any, Any]", attribute)
    scalars: st.SearchStrategy[Scalar] = st.none() | st.booleans() | asked_numbers | texts
    return st.one_of(
        st.just(attribute.exists()),
        equal(attribute, scalars),
        compared(ordered, asked_numbers | texts),
        st.builds(attribute.contains, scalars),
    )


some_ids = st.lists(ids, max_size=3)
of_log: st.SearchStrategy[Condition[Any]] = st.one_of(
    equal(Logs.c.log_id, ids),
    compared(Logs.c.timestamp, times),
    compared(Logs.c.ingestion_time, times),
    compared(Logs.c.config_version, versions),
    about_text(Logs.c.source_id),
    about_text(Logs.c.raw_text),
    some_ids.map(lambda some: Logs.c.fibers.contains(*some)),
)
of_fiber: st.SearchStrategy[Condition[Any]] = st.one_of(
    equal(Fibers.c.fiber_id, ids),
    about_text(Fibers.c.fiber_type),
    compared(Fibers.c.config_version, versions),
    compared(Fibers.c.first_activity, times),
    compared(Fibers.c.last_activity, times),
    compared(
        Fibers.c.duration,
        st.sampled_from([timedelta(0), MICROSECOND, -MICROSECOND, timedelta(hours=1), timedelta.max]),
    ),
    st.builds(Fibers.c.activity.overlaps, times, times),
    st.builds(Fibers.c.closed.is_, st.booleans()),
    some_ids.map(lambda some: Fibers.c.logs.contains(*some)),
    pointers.flatmap(about_attribute),
    pointers.flatmap(about_attribute),
)
of_membership: st.SearchStrategy[Condition[Any]] = st.one_of(
    equal(Memberships.c.log_id, ids),
    equal(Memberships.c.fiber_id, ids),
    compared(Memberships.c.config_version, versions),
)


@st.composite
def conditions(draw: st.DrawFn, record: type, depth: int = 3) -> Condition[Any]:
    """Give a condition of any kind; one on fibers may hold one on logs, which may hold one on fibers ..."""
    kind = draw(st.sampled_from(["one", "not", "and", "or", "any"])) if depth else "one"
    if kind == "any" and record is StoredLog:
        return Logs.c.fibers.any(draw(conditions(FiberRecord, depth - 1)))
    if kind == "any" and record is FiberRecord:
        return Fibers.c.logs.any(draw(conditions(StoredLog, depth - 1)))
    if kind == "not":
        return ~draw(conditions(record, depth - 1))
    if kind in ("and", "or"):
        one, other = draw(conditions(record, depth - 1)), draw(conditions(record, depth - 1))
        return one & other if kind == "and" else one | other
    of = {"StoredLog": of_log, "FiberRecord": of_fiber, "FiberMembership": of_membership}
    return draw(of[record.__name__])


@pytest.fixture(
    scope="module", params=["duckdb", pytest.param("postgresql", marks=pytest.mark.slow)], name="sql_store"
)
def store_of_engine(request: pytest.FixtureRequest) -> Iterator[SqlStorage]:
    if request.param == "postgresql":
        opened: SqlStorage = PostgresStorage(request.getfixturevalue("postgres_tables_url"))
    else:
        opened = DuckDBStorage(":memory:")
    with opened as store:
        store.init_schema()
        yield store


@st.composite
def stores(draw: st.DrawFn, attributes: st.SearchStrategy[JsonValue] = attributes) -> Rows:
    return (
        draw(st.lists(log_records, max_size=6, unique_by=lambda log: log.log_id)),
        draw(st.lists(fiber_records(attributes), max_size=6, unique_by=lambda fiber: fiber.fiber_id)),
        draw(st.lists(memberships, max_size=8)),
    )


def in_jsonb(value: JsonValue) -> JsonValue:
    """Return a value as JSONB keeps it, which has no -0.0."""
    if isinstance(value, dict):
        return {key: in_jsonb(item) for key, item in value.items()}
    if isinstance(value, list):
        return [in_jsonb(item) for item in value]
    return 0.0 if value == 0.0 and isinstance(value, float) else value


def filled(
    sql_store: SqlStorage,
    rows: Rows,
) -> list[QueryStorage]:
    """Return the oracle and an emptied store, with these rows in both."""
    logs, fibers, joins = rows
    if isinstance(sql_store, PostgresStorage):
        fibers = [fiber.model_copy(update={"attributes": in_jsonb(fiber.attributes)}) for fiber in fibers]
    oracle = MemoryStorage()
    empty(sql_store.engine)
    for store in (oracle, sql_store):
        store.write_logs(logs)
        store.write_memberships(joins)
    for fiber in fibers:
        oracle.write_fiber(fiber)
    with sql_store.transaction() as transaction:
        transaction.fibers.write_fibers(fibers)
    return [oracle, sql_store]


def answers(query: Query[Any]) -> tuple[list[Any], int, list[int]]:
    return list(query.iter_records()), query.count(), [query.count(at_most) for at_most in (0, 1, 3)]


def pages(query: Paged, limit: int) -> list[list[int]]:
    return [numbers(page.items) for page in walk(query, limit)]


def check(asked: list[tuple[Query[Any], Query[Any]]]) -> None:
    for found, expected in asked:
        try:
            told = answers(found)
        except ValueError as error:
            assert "which PostgreSQL does not know" in str(error)  # noqa: PT017  # few patterns are refused
            continue
        assert told == answers(expected)
        if isinstance(found, Logs | Fibers) and isinstance(expected, Logs | Fibers):
            assert pages(found, 2) == pages(expected, 2)


@given(stores(), st.lists(conditions(StoredLog), min_size=1, max_size=3), st.sampled_from(LOG_ORDERS))
def test_logs_are_the_same(
    sql_store: SqlStorage, rows: Rows, asked: list[Condition[StoredLog]], order: LogOrder
) -> None:
    oracle, store = filled(sql_store, rows)
    check([(store.logs.where(one).order_by(order), oracle.logs.where(one).order_by(order)) for one in asked])


@given(stores(), st.lists(conditions(FiberRecord), min_size=1, max_size=3), st.sampled_from(FIBER_ORDERS))
def test_fibers_are_the_same(
    sql_store: SqlStorage, rows: Rows, asked: list[Condition[FiberRecord]], order: FiberOrder
) -> None:
    oracle, store = filled(sql_store, rows)
    check(
        [(store.fibers.where(one).order_by(order), oracle.fibers.where(one).order_by(order)) for one in asked]
    )


@given(stores(), st.lists(conditions(FiberMembership), min_size=1, max_size=3))
def test_memberships_are_the_same(
    sql_store: SqlStorage, rows: Rows, asked: list[Condition[FiberMembership]]
) -> None:
    oracle, store = filled(sql_store, rows)
    check([(store.memberships.where(one), oracle.memberships.where(one)) for one in asked])


# Between pages: what is written, or None for another page back.
meanwhile = st.lists(st.lists(log_records, max_size=3) | fiber_records() | st.none(), max_size=8)


@given(
    stores(),
    st.sampled_from(
        [("logs", order) for order in LOG_ORDERS] + [("fibers", order) for order in FIBER_ORDERS[:3]]
    ),
    st.integers(1, 3),
    meanwhile,
)
def test_pages_are_the_same_whatever_is_written_meanwhile(
    sql_store: SqlStorage,
    rows: Rows,
    asked: tuple[str, str],
    limit: int,
    steps: list[list[StoredLog] | FiberRecord | None],
) -> None:
    both = filled(sql_store, rows)
    table, order = asked
    queries = [getattr(store, table).order_by(order) for store in both]
    now: list[Page[Any]] = [query.page(limit) for query in queries]
    for step in steps:
        for store in both:
            if isinstance(step, FiberRecord):
                write = store.write_fiber if store.get_fiber(step.fiber_id) is None else store.update_fiber
                write(step)
            for log in step if isinstance(step, list) else ():  # rows of one call may be late in any order
                store.write_logs([log])
        cursors = [page.previous if step is None else page.next for page in now]
        now = [query.page(limit, cursor) for query, cursor in zip(queries, cursors, strict=True)]
        expected, found = now
        assert (found.items, found.late) == (expected.items, expected.late)
        assert (found.next is None, found.previous is None) == (
            expected.next is None,
            expected.previous is None,
        )


def same(both: list[Q], ask: Callable[[Q], object]) -> None:
    """Assert that the oracle and the store give the same answer, or both refuse the question."""

    def answer(query: Q) -> object:
        try:
            return ask(query)
        except ValueError:
            return ValueError

    expected, found = map(answer, both)
    assert found == expected


def asked(query: Query[Any], condition: Condition[Any] | None) -> Any:  # noqa: ANN401  # of the query's class
    return query if condition is None else query.where(condition)


def arrow_rows(query: Query[Any], batch_rows: int) -> tuple[object, list[dict[str, object]]]:
    reader = query.to_arrow(batch_rows)
    batches = list(reader)
    assert all(batch.num_rows <= batch_rows for batch in batches)
    rows = [row for batch in batches for row in batch.to_pylist()]
    for row in rows:
        if row.get("attributes") is not None:  # JSONB keeps no order of keys
            row["attributes"] = json.loads(row["attributes"])
    return reader.schema, rows


few_ids = st.lists(ids, max_size=4)
days = 719_162  # from the year 1 to 1970
widths = st.sampled_from(
    [MICROSECOND, timedelta(hours=1), timedelta(1_000, microseconds=7), timedelta(days // 2), timedelta.max]
)
ranges = st.fixed_dictionaries({}, optional={"start": times, "end": times})


@given(
    rows=stores(),
    condition=conditions(StoredLog) | st.none(),
    order=st.sampled_from(LOG_ORDERS),
    some=few_ids,
    limit=st.integers(0, 3),
    within=st.sampled_from([None, "source", "fibers"]),
)
def test_logs_by_ids_and_neighbours_and_batches_are_the_same(
    *,
    sql_store: SqlStorage,
    rows: Rows,
    condition: Condition[StoredLog] | None,
    order: LogOrder,
    some: list[UUID],
    limit: int,
    within: Literal["source", "fibers"] | None,
) -> None:
    both = [asked(store.logs, condition).order_by(order) for store in filled(sql_store, rows)]
    same(both, lambda logs: logs.get_many(some))
    same(both, lambda logs: list(logs.by_fiber(some, limit).items()))
    same(both, lambda logs: [logs.context(id_, limit, 3 - limit, within=within) for id_ in some])
    same(both, lambda logs: arrow_rows(logs, limit + 1))
    same(both, lambda logs: sorted(logs.tail("", timeout_s=0), key=lambda log: log.log_id))


@given(
    rows=stores(),
    condition=conditions(FiberRecord) | st.none(),
    order=st.sampled_from(FIBER_ORDERS),
    some=few_ids,
    limit=st.integers(0, 3),
    points=st.integers(0, 9),
)
def test_fibers_by_ids_and_summaries_and_timelines_are_the_same(
    *,
    sql_store: SqlStorage,
    rows: Rows,
    condition: Condition[FiberRecord] | None,
    order: FiberOrder,
    some: list[UUID],
    limit: int,
    points: int,
) -> None:
    both = [asked(store.fibers, condition).order_by(order) for store in filled(sql_store, rows)]
    same(both, lambda fibers: fibers.get_many(some))
    same(both, lambda fibers: list(fibers.by_log(some).items()))
    same(both, lambda fibers: summaries(fibers, limit + 1))
    same(both, lambda fibers: fibers.timeline(limit, points))
    same(both, lambda fibers: arrow_rows(fibers, limit + 1))


def summaries(fibers: Fibers, limit: int) -> list[list[FiberSummary]]:
    page = fibers.summaries(limit)
    found = [page.items]
    while page.next is not None:
        page = fibers.summaries(limit, page.next)
        found.append(page.items)
    return found


@given(stores(), conditions(FiberMembership) | st.none(), st.integers(1, 3))
def test_batches_of_memberships_are_the_same(
    sql_store: SqlStorage, rows: Rows, condition: Condition[FiberMembership] | None, batch_rows: int
) -> None:
    both = [asked(store.memberships, condition) for store in filled(sql_store, rows)]
    same(both, lambda memberships: arrow_rows(memberships, batch_rows))


@given(
    rows=stores(),
    of_logs=conditions(StoredLog, 1) | st.none(),
    of_fibers=conditions(FiberRecord, 1) | st.none(),
    width=widths,
    between=ranges,
)
def test_counts_are_the_same(
    *,
    sql_store: SqlStorage,
    rows: Rows,
    of_logs: Condition[StoredLog] | None,
    of_fibers: Condition[FiberRecord] | None,
    width: timedelta,
    between: dict[str, Any],
) -> None:
    stores = filled(sql_store, rows)
    logs = [asked(store.logs, of_logs) for store in stores]
    same(logs, lambda query: query.sources())
    same(logs, lambda query: query.histogram(width, **between))
    same(logs, lambda query: query.histogram(width, by="source_id", **between))
    fibers = [asked(store.fibers, of_fibers) for store in stores]
    same(fibers, lambda query: query.types())
    same(fibers, lambda query: query.histogram(width, **between))
    same(fibers, lambda query: query.histogram(width, by="fiber_type", **between))


@given(
    stores(attributes | attributes.map(lambda value: {"a": value})),
    conditions(FiberRecord, 1) | st.none(),
    st.sampled_from(["", "/a", "/a/a", "/a/0"]) | pointers,
    st.integers(0, 3),
)
def test_attributes_are_the_same(
    sql_store: SqlStorage,
    rows: Rows,
    condition: Condition[FiberRecord] | None,
    pointer: str,
    limit: int,
) -> None:
    both = [asked(store.fibers, condition) for store in filled(sql_store, rows)]
    same(both, lambda fibers: fibers.attribute_keys(pointer))
    expected, found = (fibers.attribute_values(pointer) for fibers in both)
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    assert [value.count for value in found] == [value.count for value in expected]
    if all(is_printed_alike(value.value) for value in expected):
        assert list(map(repr, found)) == list(map(repr, expected))
    for fibers, every in zip(both, (expected, found), strict=True):
        assert fibers.attribute_values(pointer, limit) == every[:limit]


def is_printed_alike(value: Scalar) -> bool:
    """Tell whether Python and DuckDB write a value as the same JSON text."""
    return value.isprintable() if isinstance(value, str) else not isinstance(value, float)


@given(
    stores(), conditions(StoredLog, 1) | st.none(), st.lists(st.lists(log_records, max_size=3), max_size=4)
)
def test_tails_are_the_same(
    sql_store: SqlStorage,
    rows: Rows,
    condition: Condition[StoredLog] | None,
    written: list[list[StoredLog]],
) -> None:
    stores = filled(sql_store, rows)
    queries = [asked(store.logs, condition) for store in stores]
    following = [query.tail(timeout_s=0) for query in queries]
    positions = [tail.position for tail in following]
    for batch in written:
        for store in stores:
            store.write_logs(batch)
        again = [
            query.tail(position, timeout_s=0) for query, position in zip(queries, positions, strict=True)
        ]
        expected, found = (sorted(tail, key=lambda log: log.log_id) for tail in following)
        assert found == expected
        same(again, lambda tail: sorted(tail, key=lambda log: log.log_id))
        positions = [tail.position for tail in again]

"""ORM queries as an application would write them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.exc import InvalidRequestError, StatementError
from sqlalchemy.orm import Session, selectinload

from fiberstore import (
    Fiber,
    FiberMembership,
    FiberRecord,
    LogRecord,
    Membership,
    RawLog,
    SerializationError,
)
from fiberstore.repositories.storage import SqlStorage
from tests.support.parameters import parametrize_mostly_slow

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def session(any_storage: SqlStorage) -> Iterator[Session]:
    """A store of three requests with 1, 2 and 3 lines, one login without lines, and a line of no fiber."""
    with any_storage as storage:
        for number in (1, 2, 3):
            logs = [
                LogRecord(
                    timestamp=NOON + timedelta(minutes=number, seconds=second),
                    source_id=source,
                    raw_text=source,
                )
                for second, source in enumerate(["api", "db", "api"][:number])
            ]
            fiber = FiberRecord(
                fiber_id=UUID(int=number), fiber_type="request", config_version=7,
                attributes={"user": f"u{number}", "status": 200 + number, "tags": ["a", number]},
                first_activity=logs[0].timestamp, last_activity=logs[-1].timestamp, closed=number == 1,
            )  # fmt: skip
            with storage.transaction() as transaction:
                transaction.logs.write_logs(logs)
                transaction.fibers.write_fiber(fiber)
                transaction.memberships.write_memberships(
                    FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=7)
                    for log in logs
                )
        storage.write_fiber(
            FiberRecord(
                fiber_id=UUID(int=9),
                fiber_type="login",
                config_version=7,
                first_activity=NOON,
                last_activity=NOON,
            )
        )
        storage.write_logs([LogRecord(timestamp=NOON, source_id="noise", raw_text="noise")])
        with storage.session() as session:
            yield session


@pytest.fixture
def bare(any_storage: SqlStorage) -> Iterator[Session]:
    """A session on a store without rows."""
    with any_storage.session() as session:
        yield session


def test_join_logs_and_fibers(session: Session) -> None:
    statement = (
        sa.select(Fiber.fiber_id, RawLog.source_id)
        .join(Membership, Membership.fiber_id == Fiber.fiber_id)
        .join(RawLog, RawLog.log_id == Membership.log_id)
        .where(RawLog.source_id == "db")
        .order_by(Fiber.fiber_id)
    )
    assert session.execute(statement).all() == [(UUID(int=2), "db"), (UUID(int=3), "db")]


def test_relationships_lead_both_ways_in_time_order(session: Session) -> None:
    fiber = session.get_one(Fiber, UUID(int=3))
    assert [log.source_id for log in fiber.logs] == ["api", "db", "api"]
    assert [log.timestamp for log in fiber.logs] == sorted(log.timestamp for log in fiber.logs)
    assert fiber.logs[0].fibers == [fiber]
    assert session.scalars(sa.select(RawLog).where(RawLog.source_id == "noise")).one().fibers == []


def test_relationships_are_for_reading(session: Session) -> None:
    fiber = session.get_one(Fiber, UUID(int=2))
    for change in (fiber.logs.pop, lambda: fiber.logs[0].fibers.append(fiber)):
        with pytest.raises(InvalidRequestError, match="add or delete a Membership"):
            change()


def test_relationships_load_eagerly_in_one_more_statement(session: Session) -> None:
    fibers = session.scalars(
        sa.select(Fiber).options(selectinload(Fiber.logs)).order_by(Fiber.fiber_id)
    ).all()
    assert [len(fiber.logs) for fiber in fibers] == [1, 2, 3, 0]


def test_relationships_filter(session: Session) -> None:
    with_db = (
        sa.select(Fiber.fiber_id).where(Fiber.logs.any(RawLog.source_id == "db")).order_by(Fiber.fiber_id)
    )
    assert session.scalars(with_db).all() == [UUID(int=2), UUID(int=3)]


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        (Fiber.attributes["user"].as_string() == "u2", [2]),
        (Fiber.attributes["status"].as_integer() > 201, [2, 3]),
        (Fiber.attributes["tags"][1].as_integer() == 3, [3]),
        (Fiber.attributes.is_(None), [9]),
    ],
)
def test_filter_on_attributes(session: Session, condition: sa.ColumnElement[bool], found: list[int]) -> None:
    statement = sa.select(Fiber.fiber_id).where(condition).order_by(Fiber.fiber_id)
    assert session.scalars(statement).all() == [UUID(int=number) for number in found]


def test_columns_are_compared_with_and_changed_by_values_of_other_types(session: Session) -> None:
    version, first = Fiber.config_version, Fiber.first_activity
    hour = timedelta(hours=1)
    one = sa.select(
        first + hour, Fiber.last_activity - first, version * 2, version - 10, version + Decimal("0.5")
    ).where(Fiber.fiber_id == UUID(int=3))
    begun = NOON + timedelta(minutes=3)
    (row,) = session.execute(one)
    assert row == (begun + hour, timedelta(seconds=2), 14, -3, Decimal("7.5"))
    assert row[0].tzinfo is UTC
    conditions = version > Decimal("6.5"), version > -1, version < 7.5, first < first + hour
    assert session.scalar(sa.select(sa.func.count()).where(*conditions).select_from(Fiber)) == 4


def test_a_sum_may_leave_the_bounds_of_its_column(session: Session) -> None:
    most = 2**64 - 1
    session.add_all(
        Fiber(
            fiber_id=uuid4(), fiber_type="most", config_version=most, first_activity=NOON, last_activity=NOON
        )
        for _ in range(2)
    )
    total = sa.select(sa.func.sum(Fiber.config_version), sa.func.max(Fiber.config_version + 1))
    assert session.execute(total.where(Fiber.fiber_type == "most")).one() == (2 * most, most + 1)


def test_a_path_leads_into_attributes(bare: Session) -> None:
    nested: JsonValue = {"user": {"name": "ann", "tags": ["a", {"k": 7}]}, "a/b": {"c~d": 1}}
    bare.add(
        Fiber(
            fiber_id=UUID(int=1), fiber_type="t", config_version=0, attributes=nested,
            first_activity=NOON, last_activity=NOON,
        )
    )  # fmt: skip
    at = Fiber.attributes
    found = bare.execute(
        sa.select(
            at["user", "name"].as_string(), at["user", "tags", 1], at["user", "tags", -1, "k"].as_integer(),
            at["a/b", "c~d"].as_integer(), at["user"]["tags"][0].as_string(), at["user", "none"].as_string(),
        ).where(at["user", "name"].as_string() == "ann")
    )  # fmt: skip
    assert found.one() == ("ann", {"k": 7}, 7, 1, "a", None)


def test_aggregate_per_type(session: Session) -> None:
    statement = (
        sa.select(
            Fiber.fiber_type, sa.func.count(sa.distinct(Fiber.fiber_id)), sa.func.count(Membership.log_id)
        )
        .outerjoin(Membership, Membership.fiber_id == Fiber.fiber_id)
        .group_by(Fiber.fiber_type)
        .order_by(Fiber.fiber_type)
    )
    assert session.execute(statement).all() == [("login", 1, 0), ("request", 3, 6)]


def test_longest_fibers_first(session: Session) -> None:
    span = Fiber.last_activity - Fiber.first_activity
    assert session.scalars(sa.select(Fiber.fiber_id).order_by(span.desc(), Fiber.fiber_id)).first() == UUID(
        int=3
    )


def test_rows_written_by_the_orm_read_back_as_records(bare: Session) -> None:
    log_id, east = uuid4(), timezone(timedelta(hours=5, minutes=30))
    bare.add(
        RawLog(
            log_id=log_id,
            timestamp=NOON.astimezone(east),
            source_id="orm",
            raw_text="é",
            config_version=2**64 - 1,
        )
    )
    bare.commit()
    row = bare.get_one(RawLog, log_id, populate_existing=True)
    assert (row.timestamp, row.timestamp.tzinfo, row.config_version) == (NOON, UTC, 2**64 - 1)
    assert row.ingestion_time is not None
    assert row.ingestion_time.tzinfo is UTC


@parametrize_mostly_slow(
    "value", [None, 0, "", [], {}, {"a": None}, 10**40, 0.1, "\\u0000", [[[]]], True], quick=6
)
def test_any_json_value_comes_back(bare: Session, value: JsonValue) -> None:
    fiber = Fiber(
        fiber_id=uuid4(),
        fiber_type="t",
        config_version=0,
        attributes=value,
        first_activity=NOON,
        last_activity=NOON,
    )
    bare.add(fiber)
    bare.commit()
    assert bare.get_one(Fiber, fiber.fiber_id, populate_existing=True).attributes == value
    is_null = bare.scalar(
        sa.text("SELECT attributes IS NULL FROM fibers WHERE fiber_id = :id"), {"id": fiber.fiber_id}
    )
    assert is_null == (value is None)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("timestamp", NOON.replace(tzinfo=None), ValueError),
        ("config_version", -1, ValueError),
        ("config_version", 2**64, ValueError),
        ("config_version", 1.5, TypeError),
        ("raw_text", "a\0b", ValueError),
        ("source_id", "\ud800", ValueError),
    ],
)
def test_the_orm_refuses_what_records_refuse(
    bare: Session, field: str, value: object, error: type[Exception]
) -> None:
    good: dict[str, object] = {"timestamp": NOON, "source_id": "s", "raw_text": "t", "config_version": 0}
    bare.add(RawLog(log_id=uuid4(), **(good | {field: value})))
    with pytest.raises(StatementError) as caught:
        bare.flush()
    assert isinstance(caught.value.orig, error)


def test_the_orm_refuses_nan(session: Session) -> None:
    session.get_one(Fiber, UUID(int=9)).attributes = float("nan")
    with pytest.raises(StatementError) as caught:
        session.flush()
    assert isinstance(caught.value.orig, SerializationError)

"""The tables as SQLAlchemy ORM classes: logs, fibers and memberships, keys, and those of their lifecycle.

The types refuse on the way in what the records refuse, so that rows written through the ORM read back as
records. There are no foreign keys: a membership may come before its log and its fiber.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.sql.compiler import SQLCompiler

from fiberstore.checks import MAX_CONFIG_VERSION, as_utc, check_text
from fiberstore.errors import SerializationError
from fiberstore.json_text import dump_json, load_json
from fiberstore.records import from_epoch_us


class _TimeComparator(sa.TypeDecorator.Comparator[datetime], sa.TIMESTAMP.Comparator[datetime]):
    """Operators of a time; a time and a duration make a time of the same type."""

    def _adapt_expression(self, op: Any, other_comparator: Any) -> tuple[Any, Any]:  # noqa: ANN401
        op, type_ = super()._adapt_expression(op, other_comparator)
        return op, self.type if isinstance(type_, sa.DateTime) else type_


class Timestamp(sa.TypeDecorator[datetime]):
    """``TIMESTAMPTZ``: aware datetimes in any zone in, UTC out, exact to 1 µs."""

    impl = sa.TIMESTAMP(timezone=True)
    cache_ok = True
    comparator_factory = _TimeComparator

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a naive datetime, which DuckDB would read in the session's time zone."""
        del dialect
        return None if value is None else as_utc(value)

    def coerce_compared_value(self, op: object, value: object) -> sa.types.TypeEngine[Any]:
        """Take a duration for one, as in ``Fiber.last_activity - timedelta(hours=1)``; else for a time."""
        del op
        return sa.Interval() if isinstance(value, timedelta) else self

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the datetime in ``datetime.UTC`` (DuckDB's own has a zone of pytz)."""
        del dialect
        return None if value is None else stored_time(value)


def stored_time(value: object) -> datetime:
    """Return in ``datetime.UTC`` what a driver hands out for a ``TIMESTAMPTZ``, also as µs since 1970.

    Raises:
        SerializationError: It lies outside the years 1 to 9999.
    """
    if isinstance(value, datetime) and value.tzinfo is UTC:
        return value
    if value is None or isinstance(value, int):
        return from_epoch_us(value)
    if not isinstance(value, datetime) or value.tzinfo is None:  # then it is text, or 'infinity'
        raise SerializationError(f"stored timestamp {value} is outside the years 1 to 9999")
    return value.astimezone(UTC)


class _UBigInt(sa.types.UserDefinedType[int]):
    """DuckDB's ``UBIGINT``, which SQLAlchemy does not know."""

    cache_ok = True

    def get_col_spec(self, **_options: object) -> str:
        return "UBIGINT"


class _Number(sa.types.UserDefinedType[Any]):
    """Result of a calculation with whole numbers: an int if it is whole, as PostgreSQL's are not."""

    cache_ok = True

    def get_col_spec(self, **_options: object) -> str:
        return "NUMERIC"

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        del dialect, coltype
        return lambda value: int(value) if isinstance(value, Decimal) and value == int(value) else value


class _NumberComparator(sa.TypeDecorator.Comparator[int]):
    """Operators of a whole number; what they calculate may be out of the column's bounds."""

    def _adapt_expression(self, op: Any, other_comparator: object) -> tuple[Any, sa.types.TypeEngine[Any]]:  # noqa: ANN401
        del other_comparator
        return op, _Number()


class UnsignedBigInt(sa.TypeDecorator[int]):
    """``UBIGINT``: 0 to 2**64 - 1."""

    impl = _UBigInt().with_variant(sa.Numeric(20, 0), "postgresql")  # which has no unsigned integers
    cache_ok = True
    comparator_factory = _NumberComparator

    def coerce_compared_value(self, op: object, value: object) -> sa.types.TypeEngine[Any]:
        """Take other numbers for what they are: the column may be compared and multiplied with them."""
        del op
        is_other = isinstance(value, Decimal | float) or (
            type(value) is int and not 0 <= value <= MAX_CONFIG_VERSION
        )
        return _Number() if is_other else self

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Refuse what DuckDB would round or wrap: booleans, floats, text, and numbers out of range."""
        del dialect
        if value is None:
            return None
        if type(value) is not int:
            raise TypeError(f"expected an int, got {value!r}")
        if not 0 <= value <= MAX_CONFIG_VERSION:
            raise ValueError(f"expected 0 to 2**64 - 1, got {value}")
        return value

    def process_result_value(self, value: Decimal | int | None, dialect: Dialect) -> int | None:
        """Return an int, whatever the driver makes of the number; a sum may be out of bounds."""
        del dialect
        if value is None:
            return None
        if value != value:  # noqa: PLR0124  # the NaN of a NUMERIC
            raise SerializationError("a stored config_version is no whole number; another client wrote it")
        return int(value)


def check_stored_version(value: int) -> int:
    """Return the number, which PostgreSQL does not keep others from storing out of bounds.

    Raises:
        SerializationError: It is not within 0 to 2**64 - 1.
    """
    if 0 <= value <= MAX_CONFIG_VERSION:
        return value
    raise SerializationError(
        f"stored config_version {value} is outside 0 to 2**64 - 1; another client wrote it"
    )


class Text(sa.TypeDecorator[str]):
    """``VARCHAR``: text that UTF-8 can hold, without NUL; in the order of its code points."""

    impl = sa.String().with_variant(sa.Text(collation="C"), "postgresql")
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Refuse NUL and lone surrogates."""
        del dialect
        return None if value is None else check_text(value)


class Json(sa.JSON):
    """``JSON``, or ``JSONB``: any JSON value; None is SQL NULL, ``sqlalchemy.JSON.NULL`` is JSON's null."""

    def __init__(self) -> None:
        super().__init__(none_as_null=True)

    def bind_processor(self, dialect: Dialect) -> Callable[[object], str | None]:
        """Refuse NaN, Infinity and what is not JSON."""
        del dialect
        return _dump

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Refuse NaN and Infinity, which DuckDB accepts from other clients."""
        del dialect, coltype
        return load_json


@compiles(Json, "postgresql")
def _jsonb(_type: Json, _compiler: SQLCompiler, **_options: object) -> str:
    return "JSONB"


def _dump(value: JsonValue | object) -> str | None:
    return "null" if value is sa.JSON.NULL else dump_json(value)  # type: ignore[arg-type]  # dump_json checks it


class Base(DeclarativeBase):
    """The declarative base; ``Base.metadata`` describes the schema that the migrations build."""


@sa.event.listens_for(Base, "load", propagate=True)
@sa.event.listens_for(Base, "refresh", propagate=True)
def _check_version(loaded: Base, *_context: object) -> None:
    """Refuse a row whose version is out of bounds; the column's type cannot tell it from a sum of many."""
    version = loaded.__dict__.get("config_version")
    if version is not None:
        check_stored_version(version)


class RawLog(Base):
    """A row of ``raw_logs``."""

    __tablename__ = "raw_logs"
    __table_args__ = (
        sa.Index("idx_raw_logs_timestamp", "timestamp"),
        sa.Index("idx_raw_logs_source", "source_id"),
    )

    log_id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)
    timestamp: Mapped[datetime] = mapped_column(Timestamp)
    source_id: Mapped[str] = mapped_column(Text)
    raw_text: Mapped[str] = mapped_column(Text)
    ingestion_time: Mapped[datetime | None] = mapped_column(Timestamp, server_default=sa.func.now())
    config_version: Mapped[int] = mapped_column(UnsignedBigInt)

    fibers: Mapped[list["Fiber"]] = relationship(
        secondary="fiber_memberships",
        primaryjoin="RawLog.log_id == foreign(Membership.log_id)",
        secondaryjoin="foreign(Membership.fiber_id) == Fiber.fiber_id",
        order_by="Fiber.first_activity, Fiber.fiber_id",
        viewonly=True,
    )


class Fiber(Base):
    """A row of ``fibers``."""

    __tablename__ = "fibers"
    __table_args__ = (
        sa.Index("idx_fibers_type", "fiber_type"),
        # Of DuckDB, a scan of these columns is as fast.
        sa.Index(
            "idx_fibers_activity", "config_version", "fiber_type", "closed", "last_activity",
            info={"engine": "postgresql"},
        ).ddl_if("postgresql"),
    )  # fmt: skip

    fiber_id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)
    fiber_type: Mapped[str] = mapped_column(Text)
    config_version: Mapped[int] = mapped_column(UnsignedBigInt)
    attributes: Mapped[JsonValue] = mapped_column(Json, nullable=True)
    first_activity: Mapped[datetime] = mapped_column(Timestamp)
    last_activity: Mapped[datetime] = mapped_column(Timestamp)
    closed: Mapped[bool] = mapped_column(server_default=sa.false())

    logs: Mapped[list[RawLog]] = relationship(
        secondary="fiber_memberships",
        primaryjoin="Fiber.fiber_id == foreign(Membership.fiber_id)",
        secondaryjoin="foreign(Membership.log_id) == RawLog.log_id",
        order_by="RawLog.timestamp, RawLog.log_id",
        viewonly=True,
    )


class Membership(Base):
    """A row of ``fiber_memberships``: one log in one fiber."""

    __tablename__ = "fiber_memberships"
    __table_args__ = (sa.Index("idx_memberships_fiber", "fiber_id"),)

    log_id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)
    fiber_id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)
    config_version: Mapped[int] = mapped_column(UnsignedBigInt)


class RegisteredVersion(Base):
    """A row of ``fiber_config_versions``: one config version; at most one is active."""

    __tablename__ = "fiber_config_versions"
    __table_args__ = (sa.UniqueConstraint("active"), sa.CheckConstraint("active"))

    config_version: Mapped[int] = mapped_column(UnsignedBigInt, primary_key=True, autoincrement=False)
    content_hash: Mapped[str | None] = mapped_column(Text)
    content: Mapped[str | None] = mapped_column(Text)
    parent: Mapped[int | None] = mapped_column(UnsignedBigInt)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    active: Mapped[bool | None]  # true or NULL, of which a unique column may have many


class NamedCheckpoint(Base):
    """A row of ``fiber_checkpoints``: a named place that an application has come to."""

    __tablename__ = "fiber_checkpoints"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)


class MergedFiber(Base):
    """A row of ``fiber_merges``: a fiber that is no more, and the one it has become part of."""

    __tablename__ = "fiber_merges"

    fiber_id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)
    survivor_id: Mapped[UUID] = mapped_column(sa.Uuid)


class PinnedFiber(Base):
    """A row of ``fiber_pins``: a fiber that retention keeps, with its logs."""

    __tablename__ = "fiber_pins"

    fiber_id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)


class PinnedLog(Base):
    """A row of ``log_pins``: a log that retention keeps."""

    __tablename__ = "log_pins"

    log_id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)


class KeyedFiber(Base):
    """A row of ``fiber_keys``: one key of one fiber, once.

    The database has no primary key here: one over texts makes writing five times as slow. Who writes rows
    takes ``Lock.CHANGES``, so that no row is there twice.
    """

    __tablename__ = "fiber_keys"
    __table_args__ = (
        sa.Index("idx_fiber_keys_hash", "hash"),
        # DuckDB finds the rows of a fiber as fast by its zone maps, and writes and deletes faster without.
        sa.Index("idx_fiber_keys_fiber", "fiber_id", info={"engine": "postgresql"}).ddl_if("postgresql"),
    )

    fiber_id: Mapped[UUID] = mapped_column(sa.Uuid)
    name: Mapped[str] = mapped_column(Text)
    value: Mapped[str] = mapped_column(Text)
    hash: Mapped[int] = mapped_column(sa.BigInteger)  # ids.key_hash(name, value)
    first_timestamp: Mapped[datetime] = mapped_column(Timestamp)
    first_log_id: Mapped[UUID | None] = mapped_column(sa.Uuid)  # None: not known
    starts: Mapped[bool]

    __mapper_args__ = {"primary_key": [fiber_id, name, value]}  # noqa: RUF012  # SQLAlchemy's own way


class EndedFiber(Base):
    """A row of ``fiber_ends``: where a rule ends a fiber, of those that one ends.

    The fiber takes lines before this time, and of this time those before a log id; all if there is none.
    """

    __tablename__ = "fiber_ends"

    fiber_id: Mapped[UUID] = mapped_column(sa.Uuid, primary_key=True)
    timestamp: Mapped[datetime] = mapped_column(Timestamp)
    before_log_id: Mapped[UUID | None] = mapped_column(sa.Uuid)


@sa.event.listens_for(Fiber.logs, "append")
@sa.event.listens_for(Fiber.logs, "remove")
@sa.event.listens_for(RawLog.fibers, "append")
@sa.event.listens_for(RawLog.fibers, "remove")
def _refuse_change(*_arguments: object) -> None:
    """Refuse a change that the session would drop."""
    raise InvalidRequestError("Fiber.logs and RawLog.fibers are for reading; add or delete a Membership")


BELONGINGS = tuple(
    Base.metadata.tables[model.__tablename__] for model in (PinnedFiber, KeyedFiber, EndedFiber)
)
"""Tables of rows that belong to one fiber, named by their column ``fiber_id``, and go with it."""

MERGES = Base.metadata.tables[MergedFiber.__tablename__]

TABLES_BESIDE = {name: f"fiberstore_anew_{name}" for name in Base.metadata.tables}
"""Names of the tables that an engine writes beside the store's, to put them in their place."""


def identity_of(table: sa.Table) -> Sequence[sa.ColumnElement[Any]]:
    """Return the columns that tell the rows of a table apart: its primary key, if the database has one."""
    (mapper,) = (mapper for mapper in Base.registry.mappers if mapper.local_table is table)
    return mapper.primary_key

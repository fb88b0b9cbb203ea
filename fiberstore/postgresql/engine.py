"""``create_engine()``: a SQLAlchemy engine on one PostgreSQL database."""

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool

from fiberstore.engine import (
    DEFAULT_POOL_SIZE,
    POOL_TIMEOUT_S,
    check_least,
    check_seconds,
    leave_pool_to_parent,
)
from fiberstore.records import check_text

DRIVER = "postgresql+fiberstore"
_DRIVERS = ("postgresql", "postgresql+psycopg", DRIVER)
_CONNECT_TIMEOUT_S = 10


def create_engine(
    url: str | URL,
    *,
    read_only: bool = False,
    pool_size: int = DEFAULT_POOL_SIZE,
    pool_timeout_s: float = POOL_TIMEOUT_S,
) -> sa.Engine:
    """Return an engine whose sessions see one snapshot for each transaction (REPEATABLE READ), in UTC.

    Args:
        url: ``postgresql+psycopg://user:password@host:port/database``, with libpq's parameters as its query;
            what is left out, libpq takes from its environment and its files.
        read_only: Let the server refuse what writes.
        pool_size: Connections the pool keeps, and at most has; >= 1. Default 8.
        pool_timeout_s: Seconds to wait for a free connection before ``TimeoutError``. Default 30.

    Raises:
        ValueError: It is no such URL, or a number is out of bounds.
    """
    check_least("pool_size", pool_size, 1)
    check_seconds("pool_timeout_s", pool_timeout_s)
    parsed = _parsed(url)
    arguments: dict[str, object] = {}
    if "connect_timeout" not in parsed.query:
        arguments["connect_timeout"] = _CONNECT_TIMEOUT_S
    if read_only:
        options = parsed.query.get("options", "")
        arguments["options"] = f"{options} -c default_transaction_read_only=on".strip()
    engine = sa.create_engine(
        parsed,
        isolation_level="REPEATABLE READ",
        connect_args=arguments,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout_s,
        pool_pre_ping=True,  # which asks the dialect, not the server
        hide_parameters=True,
    )
    leave_pool_to_parent(engine)
    return engine


def _parsed(url: str | URL) -> URL:
    try:
        parsed = make_url(url if isinstance(url, URL) else check_text(url))
    except (ArgumentError, ValueError):
        raise ValueError(  # which must not show what may be a password
            "the target is no database URL; write postgresql+psycopg://user:password@host:5432/database, and "
            "%40 for an @ in the password"
        ) from None
    if parsed.drivername not in _DRIVERS:
        raise ValueError(
            f"{parsed.drivername}:// is not supported; use postgresql+psycopg://, or duckdb:/// for a file"
        )
    return parsed.set(drivername=DRIVER)

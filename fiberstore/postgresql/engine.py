"""``create_engine()``: a SQLAlchemy engine on one PostgreSQL database."""

from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from fiberstore.checks import check_number, check_seconds
from fiberstore.sql.engine import DEFAULT_POOL_SIZE, POOL_TIMEOUT_S, leave_pool_to_parent, made_url
from fiberstore.sql.pool import StorePool

DRIVER = "postgresql+fiberstore"
READ_ONLY = "-c default_transaction_read_only=on"
_DRIVERS = ("postgresql", "postgres", "postgresql+psycopg", DRIVER)
_CONNECT_TIMEOUT_S = 10
_PLACE = ("host", "port")


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
            what is left out, libpq takes from its environment and its files. As in libpq, ``postgres://`` is
            the same, and a host may be the folder of a socket, with %2F for its slashes.
        read_only: Let the server refuse what writes.
        pool_size: Connections the pool keeps, and at most has; >= 1. Default 8.
        pool_timeout_s: Seconds to wait for a free connection before ``TimeoutError``. Default 30.

    Raises:
        ValueError: It is no such URL, or a number is out of bounds.
        TypeError: It is neither text nor a URL.
    """
    check_number("pool_size", pool_size, least=1)
    check_seconds("pool_timeout_s", pool_timeout_s)
    parsed = _parsed(url)
    # Of the query, the engine's URL keeps what says where the server is: it is shown, and what else is in
    # there may be secret.
    arguments: dict[str, object] = {name: value for name, value in parsed.query.items() if name not in _PLACE}
    arguments.setdefault("connect_timeout", str(_CONNECT_TIMEOUT_S))
    if read_only:
        arguments["options"] = f"{arguments.get('options', '')} {READ_ONLY}".strip()
    try:
        engine = sa.create_engine(
            parsed.difference_update_query(arguments),
            isolation_level="REPEATABLE READ",
            connect_args=arguments,
            poolclass=StorePool,
            pool_size=pool_size,
            pool_timeout=pool_timeout_s,
            pool_pre_ping=True,  # which asks the dialect, not the server
            hide_parameters=True,
        )
    except ArgumentError as error:
        raise ValueError(f"the hosts and ports of the URL make no sense: {error}") from error
    leave_pool_to_parent(engine)
    return engine


def _parsed(url: str | URL) -> URL:
    if not isinstance(url, str | URL):
        raise TypeError(f"the target must be a str, got {type(url).__name__}")
    parsed = url if isinstance(url, URL) else _made(url)
    if parsed is None:
        raise ValueError(  # which must not show what may be a password
            "the target is no database URL; write postgresql+psycopg://user:password@host:5432/database, and "
            "%40 for an @ in the password"
        )
    if parsed.drivername not in _DRIVERS:
        raise ValueError(
            f"{parsed.drivername}:// is not supported; use postgresql+psycopg://, or duckdb:/// for a file"
        )
    parsed = parsed.set(drivername=DRIVER)
    if parsed.host and "%" in parsed.host:  # as libpq has it: a folder of sockets, its slashes as %2F
        parsed = parsed.set(host="").update_query_dict({"host": unquote(parsed.host)})
    return parsed


def _made(text: str) -> URL | None:
    """Return the URL; None where it is none, or has an @ in its password and would be parted there."""
    return None if "\0" in text or text.partition("?")[0].count("@") > 1 else made_url(text)

"""``create_engine()``: a SQLAlchemy engine on one DuckDB database, with a pool of connections to it."""

import os
import uuid
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL

from fiberstore.checks import check_number, check_seconds, check_text
from fiberstore.errors import DatabaseError
from fiberstore.sql.engine import DEFAULT_POOL_SIZE, POOL_TIMEOUT_S, leave_pool_to_parent, made_url
from fiberstore.sql.pool import StorePool
from fiberstore.sql.translate import translate_errors

DEFAULT_CHECKPOINT_THRESHOLD_BYTES = 128 * 2**20
DRIVER = "duckdb+fiberstore"


def create_engine(
    target: str | os.PathLike[str],
    *,
    read_only: bool = False,
    pool_size: int = DEFAULT_POOL_SIZE,
    pool_timeout_s: float = POOL_TIMEOUT_S,
    threads: int | None = None,
    memory_limit_bytes: int | None = None,
    checkpoint_threshold_bytes: int = DEFAULT_CHECKPOINT_THRESHOLD_BYTES,
) -> sa.Engine:
    """Return an engine whose connections all see one DuckDB database, in UTC.

    DuckDB keeps one instance of a database in a process: a second engine on the same file must have the
    same settings. The database of ``":memory:"`` is shared by all connections of its engine and by no other
    engine; it ends with ``engine.dispose()``.

    Args:
        target: A path, a ``duckdb:///`` URL (its query may hold DuckDB settings), or ``":memory:"``.
        read_only: Open an existing file for reading. It works while nobody has the file open for writing.
        pool_size: Connections the pool keeps, and at most has; >= 1. Default 8.
        pool_timeout_s: Seconds to wait for a free connection before ``TimeoutError``. Default 30.
        threads: Worker threads of DuckDB, >= 1, for all connections together. Default: one for each core.
        memory_limit_bytes: Memory DuckDB may use before it spills to disk. Default: 80 % of the machine's.
        checkpoint_threshold_bytes: Size of the write-ahead log at which a commit moves it into the file. Each
            time, indexes whose keys are spread out (random ids) are written anew. A larger one writes faster
            and takes longer to open after a crash: about 1 s for each 64 MB. Default: 128 MiB.

    Raises:
        ValueError: The target is not one for DuckDB, or a number is out of bounds.
        DatabaseError: The target's folder does not exist, or the target is a folder. What else may be wrong
            with a file is said by the first connection.
    """
    url = _url(target)
    check_number("pool_size", pool_size, least=1)
    check_seconds("pool_timeout_s", pool_timeout_s)
    in_memory = (url.database or "").startswith(":memory:")
    if in_memory and read_only:
        raise ValueError("a database in memory is empty at first; it cannot be read_only")
    if not in_memory:
        _check_path(Path(url.database or ""), read_only=read_only)
    engine = sa.create_engine(
        url,
        connect_args={
            "read_only": read_only,
            "config": _settings(threads, memory_limit_bytes, checkpoint_threshold_bytes),
        },
        poolclass=StorePool,
        pool_size=pool_size,
        pool_timeout=pool_timeout_s,
    )
    leave_pool_to_parent(engine)
    if in_memory:
        _keep_alive(engine)
    return engine


def _url(target: str | os.PathLike[str]) -> URL:
    text = check_text(os.fspath(target))
    if "://" not in text:
        if not text:
            raise ValueError('the target is empty; give a path, a duckdb:/// URL or ":memory:"')
        url = URL.create(DRIVER, database=text)
    else:
        made = made_url(text)
        if made is None:
            is_secret = "@" in text or "?" in text  # there may be a password in it
            shown = f"{text.partition('://')[0]}://…" if is_secret else text
            raise ValueError(f"{shown!r} is not a database URL; give a path or a duckdb:/// URL")
        url = made
        if url.drivername not in ("duckdb", DRIVER):
            raise ValueError(f"{url.drivername}:// is not supported; give a path or a duckdb:/// URL")
        if url.host or url.username or url.password or url.port:
            raise ValueError(
                f"{url.set(query={}).render_as_string()!r} names a host; a file's path stands after three "
                "slashes, as in duckdb:///store.duckdb"
            )
        url = url.set(drivername=DRIVER, database=url.database or ":memory:")
    if not (url.database or "").startswith(":memory:"):
        # The process may chdir; and DuckDB keeps the log of a link beside the link or beside its target.
        return url.set(database=os.path.realpath(url.database or ""))
    if url.database == ":memory:":
        # By this name DuckDB shares the database between connections; without one, each gets its own.
        url = url.set(database=f":memory:{uuid.uuid4().hex}")
    return url


def _check_path(path: Path, *, read_only: bool) -> None:
    try:
        if path.is_dir():
            raise DatabaseError(f"{path} is a folder; give the path of a file in it")
        if not path.parent.is_dir():
            raise DatabaseError(f"the folder {path.parent} does not exist; create it first")
        if path.exists() and not path.is_file():
            raise DatabaseError(f"{path} is no regular file; give another path")
        if read_only and not path.exists():
            raise DatabaseError(
                f"{path} does not exist; a read-only store must be there: `fiberstore ingest` makes one"
            )
    except OSError as error:
        raise DatabaseError(f"{path} cannot be opened: {error.strerror}") from error


def _settings(
    threads: int | None, memory_limit_bytes: int | None, checkpoint_threshold_bytes: int
) -> dict[str, str]:
    given = {
        "threads": ("threads", threads, 1, ""),
        "memory_limit_bytes": ("memory_limit", memory_limit_bytes, 1, "B"),
        "checkpoint_threshold_bytes": ("checkpoint_threshold", checkpoint_threshold_bytes, 0, "B"),
    }
    settings = {}
    for argument, (setting, value, least, unit) in given.items():
        if value is None:
            continue
        check_number(argument, value, least=least)
        settings[setting] = f"{value}{unit}"
    return settings


def _keep_alive(engine: sa.Engine) -> None:
    """Hold a connection outside the pool: an in-memory database ends with its last one."""
    with translate_errors():
        anchor = engine.raw_connection()
    anchor.detach()
    event.listen(engine, "engine_disposed", lambda _engine: anchor.close())

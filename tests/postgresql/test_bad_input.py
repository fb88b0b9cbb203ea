"""Errors of a PostgreSQL server: the right class, its place and the fix, and no password in it."""

import logging
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from fiberstore import DatabaseError, StorageError, open_async_storage, open_storage
from fiberstore.errors import CannotConnectError
from fiberstore.opening import create_engine
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.testing.examples import all_rows, fiber, log, member, uid
from tests.support import postgres_server
from tests.support.parameters import parametrize_mostly_slow

SECRET = "s3cr3t"  # noqa: S105
PASSWORD = f"{SECRET}-Pässword@:/"


def text_of(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def without_password(url: URL) -> URL:
    return URL.create(url.drivername, url.username, None, url.host, url.port, url.database, url.query)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Return an error and those it came from, also the ones that a traceback leaves out."""
    while error is not None:
        yield error
        if error.__cause__ is not None and error.__context__ is not error.__cause__:
            yield from chain(error.__context__)
        error = error.__cause__ or error.__context__


def assert_refused(
    call: Callable[[], object],
    kind: type[Exception],
    says: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Check the class of an error, the words in it, and that neither it nor a log has the password."""
    with caplog.at_level(logging.DEBUG), pytest.raises(kind) as caught:
        call()
    assert type(caught.value) in ((kind, CannotConnectError) if kind is DatabaseError else (kind,))
    for words in says:
        assert words in str(caught.value)
    for error in chain(caught.value):
        for told in (str(error), repr(error), *getattr(error, "__notes__", ())):
            assert SECRET not in told
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caplog.text


# ---------------------------------------------------------------- connecting


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Listen on a port, and answer what a client says first as a server in some state does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(1_000)
                    client.sendall(answer)
                    while client.recv(1_000):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def message(kind: bytes, content: bytes) -> bytes:
    """Return a message as PostgreSQL's protocol has it."""
    return kind + (len(content) + 4).to_bytes(4, "big") + content


STARTING_UP = message(b"E", b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0")
VERSION_13 = (
    message(b"R", bytes(4))
    + message(b"S", b"server_version\x0013.22\0")
    + message(b"S", b"server_encoding\0UTF8\0")
    + message(b"S", b"client_encoding\0UTF8\0")
    + message(b"Z", b"I")
)


class Server(NamedTuple):
    """A server with what is refused: URLs of roles and databases."""

    url: URL  # of a role that may connect, with its password
    unlimited: URL  # of the superuser
    no_connections: URL
    no_login: URL
    closed_database: URL
    latin1: URL
    sql_ascii: URL
    starting_up_port: int
    old_port: int
    plain_port: int


@pytest.fixture(scope="module")
def server(postgres_server_url: URL) -> Iterator[Server]:
    server = postgres_server_url
    with ExitStack() as stack:

        def role(options: str) -> str:
            return stack.enter_context(postgres_server.role(server, PASSWORD, options))

        def database(encoding: str = "UTF8") -> URL:
            return make_url(stack.enter_context(postgres_server.database(server, encoding)))

        user = role("LOGIN")  # which cannot be dropped while it has rights in a database
        url = database().set(username=user, password=PASSWORD)
        closed = database()
        with postgres_server.connected(closed) as connection:
            name = sql.Identifier(closed.database or "")
            connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(name))
        yield Server(
            url=url,
            unlimited=server.set(database=url.database),
            no_connections=url.set(username=role("LOGIN CONNECTION LIMIT 0")),
            no_login=url.set(username=role("NOLOGIN")),
            closed_database=url.set(database=closed.database),
            latin1=url.set(database=database("LATIN1").database),
            sql_ascii=url.set(database=database("SQL_ASCII").database),
            starting_up_port=stack.enter_context(answering(STARTING_UP)),
            old_port=stack.enter_context(answering(VERSION_13)),
            plain_port=stack.enter_context(answering(b"N")),
        )


def on_port(server: Server, port: int, **query: str) -> URL:
    return server.url.set(host="127.0.0.1", port=port, query=query)


class Refusal(NamedTuple):
    """A URL that nobody can connect with, and what is said of it beside the place."""

    name: str
    url: Callable[[Server], URL]
    says: tuple[str, ...]


CHECK_PLACE, CHECK_PASSWORD = "check the host and the port", "check the user and the password"
REFUSALS = [
    Refusal(
        "nobody listens", lambda s: on_port(s, 1), ("127.0.0.1, port 1", "Connection refused", CHECK_PLACE)
    ),
    Refusal(
        "no such host",
        lambda s: s.url.set(host="nowhere.invalid", query={}),
        ("on nowhere.invalid, port", "failed to resolve", CHECK_PLACE),
    ),
    Refusal(
        "no host name at all",
        lambda s: s.url.set(host="n" * 70, query={}),
        ("on nnn", "label too long", CHECK_PLACE),
    ),
    Refusal(
        "no such socket",
        lambda s: s.url.set(query={"host": "/no/folder"}),
        ("on /no/folder, port", "No such file or directory", CHECK_PLACE),
    ),
    Refusal(
        "wrong password",
        lambda s: s.url.set(password=PASSWORD + "!"),
        ("password authentication failed", CHECK_PASSWORD),
    ),
    Refusal(
        "wrong password in the query",
        lambda s: without_password(s.url).update_query_dict({"password": PASSWORD + "!"}),
        ("password authentication failed", CHECK_PASSWORD),
    ),
    Refusal("no password", lambda s: without_password(s.url), ("no password supplied", CHECK_PASSWORD)),
    Refusal(
        "no such role", lambda s: s.url.set(username="no_such_role"), ("'no_such_role'", "check the user")
    ),
    Refusal("no login", lambda s: s.no_login, ("is not permitted to log in", "ALTER ROLE … LOGIN")),
    Refusal("no such database", lambda s: s.url.set(database="none"), ("does not exist", "CREATE DATABASE")),
    Refusal(
        "closed database", lambda s: s.closed_database, ("permission denied", "GRANT CONNECT ON DATABASE")
    ),
    Refusal("no connections", lambda s: s.no_connections, ("too many connections", "smaller pool_size")),
    Refusal(
        "starting up",
        lambda s: on_port(s, s.starting_up_port, sslmode="disable"),
        ("the database system is starting up", "try again"),
    ),
    Refusal(
        "too old",
        lambda s: on_port(s, s.old_port, sslmode="disable"),
        ("is PostgreSQL 13", "needs 14 or newer; upgrade it"),
    ),
    Refusal(
        "no TLS",
        lambda s: on_port(s, s.plain_port, sslmode="require"),
        ("does not support SSL", "use another sslmode"),
    ),
    Refusal("LATIN1", lambda s: s.latin1, ("keeps its text in LATIN1", "ENCODING 'UTF8'")),
    Refusal("SQL_ASCII", lambda s: s.sql_ascii, ("keeps its text in SQL_ASCII", "ENCODING 'UTF8'")),
    Refusal(
        "unknown parameter",
        lambda s: s.url.update_query_dict({"no_such_parameter": "1"}),
        ('"no_such_parameter"', "parameters of libpq"),
    ),
    Refusal("no number", lambda s: s.url.update_query_dict({"connect_timeout": "soon"}), ("'soon'",)),
    Refusal("no sslmode", lambda s: s.url.update_query_dict({"sslmode": "perhaps"}), ('"perhaps"',)),
    Refusal(
        "unknown setting",
        lambda s: s.url.update_query_dict({"options": "-c no_such_setting=1"}),
        ('"no_such_setting"',),
    ),
]


def place(url: URL) -> tuple[str, ...]:
    return (f"database {url.database!r} on ", f", as user {url.username!r}")


@pytest.mark.parametrize("opener", [open_storage, open_async_storage])
@pytest.mark.parametrize("refusal", REFUSALS, ids=[refusal.name for refusal in REFUSALS])
def test_a_connection_is_refused(
    server: Server,
    refusal: Refusal,
    opener: Callable[[str], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = refusal.url(server)
    assert_refused(lambda: opener(text_of(url)), DatabaseError, (*refusal.says, *place(url)), caplog)


@pytest.mark.slow  # 2 s is the shortest time that libpq waits
def test_a_host_that_does_not_answer_is_not_waited_for(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # which accepts nobody
        port = listener.getsockname()[1]
        url = on_port(server, port, sslmode="disable", connect_timeout="2")
        says = (f"127.0.0.1, port {port}", CHECK_PLACE, *place(url))
        assert_refused(lambda: open_storage(text_of(url)), DatabaseError, says, caplog)


def test_passwords_of_the_environment_are_not_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = text_of(without_password(server.url))
    wrong = PASSWORD + "!"
    monkeypatch.setenv("PGPASSWORD", wrong)
    assert_refused(lambda: open_storage(url), DatabaseError, (CHECK_PASSWORD,), caplog)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    open_storage(url).close()
    monkeypatch.delenv("PGPASSWORD")
    passwords = tmp_path / "passwords"
    passwords.write_text("*:*:*:*:" + wrong.replace(":", "\\:"))
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    assert_refused(lambda: open_storage(url), DatabaseError, (CHECK_PASSWORD,), caplog)


@pytest.mark.parametrize("in_query", [False, True])
def test_a_storage_that_is_open_does_not_show_its_password(
    server: Server, caplog: pytest.LogCaptureFixture, *, in_query: bool
) -> None:
    url = server.url
    if in_query:
        url = without_password(url).update_query_dict({"password": PASSWORD})
    with caplog.at_level(logging.DEBUG), open_storage(text_of(url)) as storage:
        engine = storage.engine
        engine.echo = "debug"
        with pytest.raises(StorageError):  # other tests of this file may have made the tables
            storage.merge_fibers({uid(1): uid(2)})
        with storage.session() as session:
            bound = session.connection()
            shown = [
                storage,
                engine,
                engine.url,
                engine.pool,
                session,
                bound,
                bound.connection.dbapi_connection,
            ]
            shown += [engine.pool.status(), engine.url.render_as_string()]
        for thing in shown:
            assert SECRET not in repr(thing)
            assert SECRET not in str(thing)
    assert caplog.records
    assert SECRET not in caplog.text


# ---------------------------------------------------------------- targets

NO_URL, NOT_SUPPORTED = (
    "write postgresql+psycopg://user:password@host:5432/database",
    " is not supported; use postgresql+psycopg://",
)
TARGETS = [
    (f"postgresql+psycopg://user:{PASSWORD}@host/database", NO_URL),
    ("postgresql+psycopg://user:a@s3cr3t@host/database", "%40 for an @ in the password"),
    ("postgresql+psycopg://user:password@host:s3cr3t/database", NO_URL),
    ("postgresql+psycopg://user:s3cr3t@host:/database", NO_URL),
    ("postgresql:user:s3cr3t@host/database", NO_URL),
    ("postgresql:/user:s3cr3t@host/database", NO_URL),
    ("postgresql//user:s3cr3t@host/database", NO_URL),
    ("postgresql+psycopg//user:s3cr3t@host/database", NO_URL),
    ("postgresql+psycopg://user:s3cr3t\0@host/database", NO_URL),
    ("POSTGRESQL://user:s3cr3t@host/database", "POSTGRESQL://" + NOT_SUPPORTED),
    ("postgresql+asyncpg://user:s3cr3t@host/database", "postgresql+asyncpg://" + NOT_SUPPORTED),
    ("postgresql+psycopg2://user:s3cr3t@host/database", "postgresql+psycopg2://" + NOT_SUPPORTED),
    ("mysql://user:s3cr3t@host/database", "mysql:// is not supported"),
    ("mysql://user:s3cr3t@host:port/database", "is not a database URL"),
    ("duckdb://user:s3cr3t@host/file.duckdb?password=s3cr3t", "names a host"),
    ("postgresql+psycopg://host:1/database?port=many", "hosts and ports"),
]  # fmt: skip


@pytest.mark.parametrize("opener", [open_storage, open_async_storage, create_engine])
@pytest.mark.parametrize(("target", "says"), TARGETS)
def test_a_target_is_refused(
    opener: Callable[[str], object], target: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert_refused(lambda: opener(target), ValueError, (says,), caplog)


@pytest.mark.parametrize("opener", [open_storage, open_async_storage, create_engine])
@pytest.mark.parametrize("target", [None, 7, b"postgresql://user:s3cr3t@host/database"])
def test_a_target_of_another_type_is_refused(
    opener: Callable[[object], object], target: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert_refused(lambda: opener(target), TypeError, (type(target).__name__,), caplog)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"pool_size": 0}, ValueError, "pool_size must be at least 1, got 0"),
        ({"pool_size": "8"}, TypeError, "pool_size must be an int, got '8'"),
        ({"config_version": -1}, ValueError, "got -1"),
        ({"slow_call_s": float("nan")}, ValueError, "slow_call_s must be at least 0, got nan"),
    ],
)
def test_an_argument_of_opening_is_refused(
    server: Server,
    options: dict[str, object],
    error: type[Exception],
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert_refused(lambda: PostgresStorage(server.url, **options), error, (says,), caplog)  # type: ignore[arg-type]


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for opener in (open_storage, open_async_storage, create_engine):
        with pytest.raises(DatabaseError, match=r"pip install 'fiberstore\[postgresql\]'"):
            opener("postgresql+psycopg://host/database")


def test_a_file_may_have_a_name_like_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("postgresql").mkdir()
    with open_storage("postgresql/logs.duckdb") as storage:
        storage.init_schema()
    assert Path("postgresql/logs.duckdb").exists()


# ---------------------------------------------------------------- rights


class Rights(NamedTuple):
    """A call of a role with some rights, and what it says."""

    name: str
    grants: str
    call: Callable[[SqlStorage], object]
    says: tuple[str, ...]


def begin(storage: SqlStorage) -> None:
    with storage.transaction():
        pass


READS = "GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
WRITES = [
    ("write_logs", lambda storage: storage.write_logs([log(2)])),
    ("write_logs in bulk", lambda storage: storage.write_logs([log(number) for number in range(200)])),
    ("write_fiber", lambda storage: storage.write_fiber(fiber(2))),
    ("update_fiber", lambda storage: storage.update_fiber(fiber(1, closed=True))),
    ("upsert_fibers", lambda storage: storage.upsert_fibers([fiber(1, closed=True)])),
    ("write_memberships", lambda storage: storage.write_memberships([member(2, 1)])),
    ("write_batch", lambda storage: storage.write_batch(logs=[log(2)], memberships=[member(2, 1)])),
    ("delete", lambda storage: storage.logs.delete()),
    ("redact", lambda storage: storage.logs.redact("GET")),
    ("checkpoint", lambda storage: storage.checkpoints.set("name", "1")),
    ("register", lambda storage: storage.versions.register("rules")),
]
RIGHTS = [
    Rights("no schema", "", lambda storage: storage.logs.count(), ('"raw_logs" does not exist', "USAGE")),
    Rights("no schema to create in", "", lambda storage: storage.init_schema(), ("search_path",)),
    Rights(
        "no SELECT",
        "GRANT USAGE ON SCHEMA public TO {role}",
        lambda storage: storage.logs.count(),
        ("permission denied for table raw_logs", "GRANT"),
    ),
    Rights("transaction", READS, begin, ("permission denied for table", "GRANT")),
    Rights("compact", READS, lambda storage: storage.compact(), ("rights of the tables' owner",)),
    *(Rights(name, READS, call, ("permission denied for table", "GRANT")) for name, call in WRITES),
]


@pytest.fixture(scope="module")
def owned(server: Server) -> Iterator[PostgresStorage]:
    """A storage of the superuser's, with some rows, where others have no rights at all."""
    with PostgresStorage(server.unlimited) as storage:
        storage.init_schema()
        storage.write_batch(logs=[log(1)], fibers=[fiber(1)], memberships=[member(1, 1)])
        yield storage


@parametrize_mostly_slow("rights", RIGHTS, quick=8, ids=[rights.name for rights in RIGHTS])
def test_a_call_without_rights_is_refused(
    server: Server, owned: PostgresStorage, rights: Rights, caplog: pytest.LogCaptureFixture
) -> None:
    before = all_rows(owned)
    role = server.url.username
    with postgres_server.connected(server.unlimited) as connection:
        connection.execute(
            f"REVOKE ALL ON SCHEMA public FROM PUBLIC; DROP OWNED BY {role}; "
            f"{rights.grants.format(role=role)}".encode()
        )
    with open_storage(text_of(server.url)) as storage:
        assert_refused(lambda: rights.call(storage), DatabaseError, rights.says, caplog)
        if rights.grants == READS:
            assert all_rows(storage) == before
            storage.init_schema()  # there is nothing to do
    assert all_rows(owned) == before


def test_tables_are_not_made_without_the_right_to(
    postgres_server_url: URL, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_url(postgres_url)
    with postgres_server.role(postgres_server_url, PASSWORD) as role:
        with postgres_server.connected(url) as connection:
            connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        with open_storage(text_of(url.set(username=role, password=PASSWORD))) as storage:
            says = ("permission denied for schema public", "USAGE and CREATE on the schema")
            assert_refused(storage.init_schema, DatabaseError, says, caplog)


@pytest.mark.parametrize(("name", "call"), WRITES, ids=[name for name, _ in WRITES])
def test_a_read_only_storage_refuses_to_write(
    server: Server, owned: PostgresStorage, name: str, call: Callable[[SqlStorage], object]
) -> None:
    before = all_rows(owned)
    with open_storage(text_of(server.unlimited), read_only=True) as storage:
        assert all_rows(storage) == before
        with pytest.raises(DatabaseError, match=r"in a read-only transaction.* opened with read_only=True"):
            call(storage)
    assert all_rows(owned) == before

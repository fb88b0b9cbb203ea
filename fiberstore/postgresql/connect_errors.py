"""Errors of a server that cannot be reached or refuses a connection; never with a password in them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from psycopg import pq

from fiberstore.errors import CannotConnectError

# Before there is a connection, an error has no code, only text: of libpq, or of the server in English.
_ADVICE = [
    (re.compile(pattern), advice)
    for pattern, advice in (
        (
            (
                r"Connection refused|No such file|failed to resolve host|'idna' codec|label too long|"
                r"timeout expired|No route"
            ),
            "check the host and the port, and that the server runs and can be reached from here",
        ),
        (r"password authentication failed|no password supplied", "check the user and the password"),
        (r'database ".*" does not exist', "check its name, or make it: CREATE DATABASE … TEMPLATE template0"),
        (r'role ".*" does not exist', "check the user, or make it: CREATE ROLE … LOGIN"),
        (r'role ".*" is not permitted to log in', "allow it: ALTER ROLE … LOGIN"),
        (r"permission denied for database", "its owner can allow it: GRANT CONNECT ON DATABASE … TO …"),
        (
            r"too many (connections|clients)|remaining connection slots",
            "close some, open the storages with a smaller pool_size, or raise the limit",
        ),
        (r"starting up|shutting down|not yet accepting|recovery mode", "try again when it is ready"),
        (r"no pg_hba\.conf entry", "let the server admit the user from here, in its pg_hba.conf"),
        (r"does not support SSL", "use another sslmode, or set the server up for TLS"),
        (r"invalid connection option", "the query of the URL holds parameters of libpq"),
    )
]


class Target(NamedTuple):
    """Connection target without credentials; ``str(target)`` is safe to print."""

    database: str
    host: str
    port: str
    user: str

    def __str__(self) -> str:
        return f"database {self.database!r} on {self.host}, port {self.port}, as user {self.user!r}"


def target_of(options: Mapping[str, object]) -> Target:
    """Return the target of a connection, by its options, libpq's environment and libpq's defaults.

    Args:
        options: Parameters of libpq by their names.
    """
    known: dict[str, object] = {}
    for default in pq.Conninfo.get_defaults():
        known[default.keyword.decode()] = default.val.decode() if default.val else None
    known.update(options)
    user = known.get("user") or "the user of this process"
    return Target(
        database=str(known.get("dbname") or user),
        host=str(known.get("host") or known.get("hostaddr") or "this machine"),
        port=str(known.get("port") or 5432),
        user=str(user),
    )


def connect_error(error: Exception, target: Target) -> CannotConnectError:
    """Translate an error of connecting, with advice."""
    reason = str(error).strip().partition("\n")[0]
    advice = next((f"; {advice}" for pattern, advice in _ADVICE if pattern.search(reason)), "")
    return CannotConnectError(f"cannot connect to {target}: {reason}{advice}")

"""The servers that speak PostgreSQL's protocol, and where they differ from it.

What is said of others than PostgreSQL was taken from their documentation, and not run: docs/distribution.md
has the sources.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Server:
    """A kind of server.

    Attributes:
        name: What it is called.
        isolation_level: At which all statements of a transaction see one snapshot.
        has_table_locks: Whether ``LOCK TABLE`` keeps others out; without, all transactions are serializable.
        has_staging: Whether it has temporary tables, to copy many rows into.
    """

    name: str
    isolation_level: str = "REPEATABLE READ"
    has_table_locks: bool = True
    has_staging: bool = True


POSTGRESQL = Server("PostgreSQL")
YUGABYTEDB = Server("YugabyteDB")
COCKROACHDB = Server("CockroachDB", isolation_level="SERIALIZABLE", has_table_locks=False, has_staging=False)


def server_of(version: str) -> Server:
    """Return the server that gives this text for ``version()``."""
    if version.startswith("CockroachDB"):
        return COCKROACHDB
    return YUGABYTEDB if "-YB-" in version else POSTGRESQL

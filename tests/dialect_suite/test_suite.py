"""SQLAlchemy's tests of a dialect."""

from sqlalchemy.testing.suite import *  # noqa: F403
from sqlalchemy.testing.suite import JoinTest as _JoinTest


class JoinTest(_JoinTest):  # type: ignore[no-redef]
    """Joins, of rows that stay: DuckDB deletes no row that one it has just deleted referred to."""

    run_inserts = "once"
    run_deletes = None  # type: ignore[assignment]

"""A small store of requests and clients, ingested from two log files, for tests of commands."""

from pathlib import Path

import sqlalchemy as sa

from fiberstore import DuckDBStorage, Fiber, Membership, RawLog

RULES = r"""
[sources.web]
path = "web.log"
timestamp = '^\S+'
format = "%Y-%m-%dT%H:%M:%S%z"

[sources.db]
path = "db.log"
timestamp = '^\S+'
format = "%Y-%m-%dT%H:%M:%S%z"

[fibers.request]
max_gap = "60s"
[[fibers.request.patterns]]
source = "web"
regex = 'request=(?P<request>\w+)'
[[fibers.request.patterns]]
source = "db"
regex = 'request=(?P<request>\w+)'

[fibers.client]
max_gap = "infinite"
[[fibers.client.patterns]]
source = "web"
regex = 'from (?P<client>\w+)'
"""
WEB = """\
2024-05-01T10:00:00Z request=a1 from ann
2024-05-01T10:00:01Z request=b2 from bob
2024-05-01T10:05:00Z request=c3 from ann
  continued
"""
DB = """\
2024-05-01T10:00:00Z request=a1 [bold]select[/bold] \x1b[31mred\x07 \x9b2J\ttab \u202eback
2024-05-01T10:00:02Z request=a1 [/] :smile: done
"""


def write_files(folder: Path) -> Path:
    (folder / "web.log").write_text(WEB)
    (folder / "db.log").write_text(DB)
    rules = folder / "rules.toml"
    rules.write_text(RULES)
    return rules


def row_counts(db: Path) -> tuple[int, ...]:
    with DuckDBStorage(db, read_only=True) as storage, storage.session() as session:
        return tuple(
            session.scalars(sa.select(sa.func.count()).select_from(model)).one()
            for model in (RawLog, Fiber, Membership)
        )

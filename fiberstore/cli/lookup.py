"""Lookups of the command line beyond queries: ids and versions by their beginning, statistics."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, Session

from fiberstore.cli.stores import has_table, store_name
from fiberstore.contract.conditions import Condition, KeyExists, KeyIn
from fiberstore.contract.queries import Fibers
from fiberstore.contract.results import ConfigVersion, FiberSummary
from fiberstore.errors import DatabaseError, StorageError
from fiberstore.records import FiberKey, FiberRecord
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql import revisions
from fiberstore.sql.correlation import has_unknown_firsts
from fiberstore.sql.engine import IN_MEMORY
from fiberstore.sql.models import Fiber, KeyedFiber, Membership, MergedFiber, RawLog, RegisteredVersion
from fiberstore.sql.translate import translate_errors

_ID_DIGITS = 32
_VERSION_DIGITS = 16
_MOST_CANDIDATES = 5

Key: TypeAlias = KeyIn | KeyExists
"""What ``--key`` asks for: a value of a name, or any."""


@dataclass(frozen=True, slots=True)
class FiberCount:
    """Numbers of open and closed fibers of one type."""

    fiber_type: str
    open: int
    closed: int


@dataclass(frozen=True, slots=True)
class VersionCount:
    """Numbers of logs and fibers of one config version, which is given in hex digits."""

    config_version: str
    active: bool
    logs: int
    fibers: int


@dataclass(frozen=True, slots=True)
class Generation:
    """A config version, registered or only found among fibers, and how many fibers it has."""

    config_version: int
    fibers: int
    registered: ConfigVersion | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """Content of a store.

    Attributes:
        file: The database file, or the URL of the database on a server; None for a database in memory.
        file_bytes: Size of the file and of the write-ahead log beside it, or of the database on a server.
        revision: The revision of the schema.
        tables: Rows by table.
        first: Time of the first log; None without logs.
        last: Time of the last log.
        sources: Logs by source.
        fiber_types: Fibers by type.
        config_versions: Logs and fibers by config version.
    """

    file: str | None
    file_bytes: int
    revision: str | None
    tables: dict[str, int]
    first: datetime | None
    last: datetime | None
    sources: dict[str, int]
    fiber_types: list[FiberCount]
    config_versions: list[VersionCount]

    def rows(self) -> Iterator[tuple[str, str, object]]:
        """Yield what is counted, of what name, and the number or text."""
        if self.file:
            yield "file_bytes", self.file, self.file_bytes
        yield "revision", "", self.revision
        for name, rows in self.tables.items():
            yield "rows", name, rows
        if self.first and self.last:
            yield "time", "first", self.first
            yield "time", "last", self.last
        for name, logs in self.sources.items():
            yield "source_logs", name, logs
        for count in self.fiber_types:
            yield "open_fibers", count.fiber_type, count.open
            yield "closed_fibers", count.fiber_type, count.closed
        for version in self.config_versions:
            yield "config_version_logs", version.config_version, version.logs
            yield "config_version_fibers", version.config_version, version.fibers
            yield "config_version_active", version.config_version, version.active


def find_log_id(storage: SqlStorage, digits: str) -> UUID:
    """Find the one log id that begins with these hex digits.

    Raises:
        StorageError: There is none, or more than one.
    """
    return _only(_ids(storage, RawLog.log_id, digits), digits, "log", "fiberstore logs lists them")


def find_fiber_id(storage: SqlStorage, digits: str) -> UUID:
    """Find the one fiber id that begins with these hex digits; of a merged fiber, the survivor.

    Raises:
        StorageError: There is none, or more than one.
    """
    found = _ids(storage, Fiber.fiber_id, digits)
    if not found and len(digits) == _ID_DIGITS and has_lifecycle(storage):
        survivors = (  # `resolve_fibers` reads a batch, which a store without access to the outside does not
            sa.select(Fiber.fiber_id)
            .join(MergedFiber, MergedFiber.survivor_id == Fiber.fiber_id)
            .where(MergedFiber.fiber_id == UUID(digits))
        )
        with translate_errors(), storage.session() as session:
            found = session.scalars(survivors).all()
    return _only(found, digits, "fiber", "fiberstore fibers lists them")


def _ids(storage: SqlStorage, column: InstrumentedAttribute[UUID], digits: str) -> Sequence[UUID]:
    first, last = (UUID(digits.ljust(_ID_DIGITS, fill)) for fill in "0f")
    statement = sa.select(column).where(column.between(first, last)).order_by(column)
    with translate_errors(), storage.session() as session:
        return session.scalars(statement.limit(_MOST_CANDIDATES + 1)).all()


def _only(found: Sequence[UUID], digits: str, thing: str, hint: str) -> UUID:
    if not found:
        is_whole = len(digits) == _ID_DIGITS
        what = f"the id {UUID(digits)}" if is_whole else f"an id that begins with {digits}"
        raise StorageError(f"no {thing} has {what}; {hint}")
    if len(found) > 1:
        raise _ambiguous(digits, "ids", [*map(str, found)])
    return found[0]


def find_fiber(storage: SqlStorage, digits: str) -> FiberSummary:
    """Find the one fiber whose id begins with these hex digits.

    Raises:
        StorageError: There is none, or more than one.
    """
    fiber_id = find_fiber_id(storage, digits)
    found = storage.fibers.where(Fibers.c.fiber_id == fiber_id).summaries(1).items
    if not found:
        raise StorageError(f"fiber {fiber_id} was deleted meanwhile; fiberstore fibers lists those there are")
    return found[0]


def find_fibers(storage: SqlStorage, key: Key, version: int | None) -> Iterator[FiberSummary]:
    """Yield the fibers of a config version, or of all, that have a key, by ``(first_activity, fiber_id)``.

    Raises:
        StorageError: There is none.
    """
    query = storage.fibers.where(*_with_key(key, version))
    page = query.summaries()
    if not page.items:
        raise StorageError(explain_no_fiber(storage, key, version))
    yield from page.items
    while page.next is not None:
        page = query.summaries(cursor=page.next)
        yield from page.items


def has_fiber(storage: SqlStorage, key: Key, version: int | None) -> bool:
    """Return whether a fiber of a config version, or of any, has a key."""
    return storage.fibers.where(*_with_key(key, version)).count(at_most=1) > 0


def explain_no_fiber(storage: SqlStorage, key: Key, version: int | None) -> str:
    """Return the message that no fiber of a config version, or of any, has a key, with what to do."""
    name = key.name
    what = f"the key {name}={key.values[0]}" if isinstance(key, KeyIn) else f"a key of the name {name}"
    if version is not None and (others := storage.fibers.where(key).count()):
        return (
            f"no fiber of config version {shown_version(version)} has {what}, but {others} of other "
            "versions: fiberstore fibers --version all shows them"
        )
    if not has_fiber(storage, Fibers.c.keys[name].exists(), None):
        return f"no fiber has {what}; fiberstore keys lists the names of keys"
    return f"no fiber has {what}; fiberstore keys {name} lists the values"


def _with_key(key: Key, version: int | None) -> list[Condition[FiberRecord]]:
    return [key] if version is None else [key, Fibers.c.config_version == version]


def has_keys(storage: SqlStorage) -> bool:
    """Return whether the store has the table of keys."""
    return has_table(storage, KeyedFiber)


def check_keys(storage: SqlStorage) -> None:
    """Raise ``DatabaseError`` unless the store has the table of keys."""
    if not has_keys(storage):
        raise DatabaseError(
            f"{store_name(storage)} has the tables of an older release, without keys; "
            "fiberstore db upgrade brings them up to date"
        )


def keys_of(storage: SqlStorage, fiber_ids: Iterable[UUID]) -> dict[UUID, list[FiberKey]]:
    """Return the keys of fibers; none of a store of an older release."""
    return storage.get_keys(fiber_ids) if has_keys(storage) else {}


def _ambiguous(digits: str, what: str, found: Sequence[str]) -> StorageError:
    named = ", ".join(found[:_MOST_CANDIDATES])
    more = " and more" if len(found) > _MOST_CANDIDATES else ""
    return StorageError(f"{digits} is the beginning of several {what}, give more digits: {named}{more}")


def shown_version(config_version: int) -> str:
    """Return a config version as it is shown and given: 16 hex digits."""
    return f"{config_version:0{_VERSION_DIGITS}x}"


def has_lifecycle(storage: SqlStorage) -> bool:
    """Return whether the store has the tables of the lifecycle."""
    return has_table(storage, RegisteredVersion)


def find_version(storage: SqlStorage, digits: str) -> int:
    """Return the config version, registered or of fibers, that begins with these hex digits.

    Raises:
        StorageError: There is none, or more than one.
    """
    first, last = (int(digits.ljust(_VERSION_DIGITS, fill), 16) for fill in "0f")
    columns = [Fiber.config_version, *([RegisteredVersion.config_version] if has_lifecycle(storage) else [])]
    statement = sa.union(
        *(sa.select(column).distinct().where(column.between(first, last)) for column in columns)
    )
    with translate_errors(), storage.session() as session:
        found = sorted(session.scalars(statement))
    if not found:
        begins = "is" if len(digits) == _VERSION_DIGITS else "begins with"
        raise StorageError(f"no config version {begins} {digits}; fiberstore versions lists them")
    if len(found) > 1:
        raise _ambiguous(digits, "config versions", [*map(shown_version, found)])
    return found[0]


def active_version(storage: SqlStorage) -> int | None:
    """Return the active config version; None if none is, or the store is too old to have one."""
    active = storage.versions.active() if has_lifecycle(storage) else None
    return None if active is None else active.config_version


def find_generation(storage: SqlStorage, name: str | None) -> int | None:
    """Return the config version whose fibers are meant, None for those of all.

    Args:
        storage: The store.
        name: Hex digits, ``"active"`` or ``"all"``; None is the active version if there is one.

    Raises:
        StorageError: There is no such version.
    """
    if name == "all":
        return None
    if name is not None and name != "active":
        return find_version(storage, name)
    active = active_version(storage)
    if active is None and name is not None:
        raise StorageError("no config version is active; fiberstore activate VERSION makes one so")
    return active


def collect_generations(storage: SqlStorage) -> list[Generation]:
    """Return the config versions: the registered ones in the order of time, then those only fibers have."""
    registered = storage.versions.all() if has_lifecycle(storage) else []
    with translate_errors(), storage.session() as session:
        fibers = _counts(session, Fiber.config_version)
    known = [
        Generation(version.config_version, fibers.pop(version.config_version, 0), version)
        for version in registered
    ]
    return [*known, *(Generation(version, count, None) for version, count in fibers.items())]


def find_outdated_fibers(storage: SqlStorage) -> list[int]:
    """Return the registered config versions with fibers of a release before keys had a table."""
    with translate_errors(), storage.session() as session:
        versions = session.scalars(
            sa.select(RegisteredVersion.config_version).order_by("config_version")
        ).all()
        return [version for version in versions if has_unknown_firsts(session, version)]


def count_memberships(storage: SqlStorage, version: int) -> int:
    """Count the memberships that go when a generation is dropped: its own, and those of its fibers."""
    fibers = sa.select(Fiber.fiber_id).where(Fiber.config_version == version)
    its_own = sa.or_(Membership.config_version == version, Membership.fiber_id.in_(fibers))
    with translate_errors(), storage.session() as session:
        return session.scalars(sa.select(sa.func.count()).select_from(Membership).where(its_own)).one()


def _revision(storage: SqlStorage, session: Session) -> str | None:
    if revisions.is_newest(storage.engine):
        return revisions.newest(revisions.migrations())
    from fiberstore.sql import migrate

    return migrate.current(session.connection())


def collect_statistics(storage: SqlStorage) -> Statistics:
    """Count what the store holds."""
    active = active_version(storage)
    sources = sorted(storage.logs.sources(), key=lambda source: source.value)
    still_open, closed = (
        {one.value: one.count for one in storage.fibers.where(condition).types()}
        for condition in (~Fibers.c.closed, Fibers.c.closed)
    )
    with translate_errors(), storage.session() as session:
        logs, fibers = (_counts(session, table.config_version) for table in (RawLog, Fiber))
        file, file_bytes = _file(storage, session)
        revision = _revision(storage, session)
    return Statistics(
        file=file,
        file_bytes=file_bytes,
        revision=revision,
        tables={
            RawLog.__tablename__: storage.logs.count(),
            Fiber.__tablename__: storage.fibers.count(),
            Membership.__tablename__: storage.memberships.count(),
        },
        first=min((source.first_seen for source in sources), default=None),
        last=max((source.last_seen for source in sources), default=None),
        sources={source.value: source.count for source in sources},
        fiber_types=[
            FiberCount(name, still_open.get(name, 0), closed.get(name, 0))
            for name in sorted(still_open.keys() | closed.keys())
        ],
        config_versions=[
            VersionCount(shown_version(one), one == active, logs.get(one, 0), fibers.get(one, 0))
            for one in sorted(logs.keys() | fibers.keys() | ({active} if active is not None else set()))
        ],
    )


def _counts(session: Session, column: InstrumentedAttribute[int]) -> dict[int, int]:
    rows = session.execute(sa.select(column, sa.func.count()).group_by(column).order_by(column))
    return {row[0]: row[1] for row in rows}


def _file(storage: SqlStorage, session: Session) -> tuple[str | None, int]:
    """Return the name and the size of what a store is in."""
    name = store_name(storage)
    if storage.engine.dialect.name == "postgresql":
        size = sa.select(sa.func.pg_database_size(sa.func.current_database()))
        return name, session.scalars(size).one()
    if name.startswith(IN_MEMORY):
        return None, 0
    file = Path(name)
    log = file.with_name(f"{file.name}.wal")
    return name, file.stat().st_size + (log.stat().st_size if log.exists() else 0)

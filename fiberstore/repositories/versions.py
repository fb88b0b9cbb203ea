"""Config versions, and the generations of fibers they have made."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from fiberstore.checks import check_config_version, check_number, check_text
from fiberstore.contract.lifecycle import Versions
from fiberstore.contract.results import ConfigVersion, Deleted, GenerationDiff
from fiberstore.errors import DatabaseError, VersionNotFoundError
from fiberstore.records import from_epoch_us
from fiberstore.repositories.access import MANY_ROWS, Going, SessionAccess, session_access
from fiberstore.repositories.diff import diff
from fiberstore.repositories.query import (
    belongings_of,
    count_up_to,
    delete_rows,
    execute_write,
    kept_ids,
    one_snapshot,
    rows_worth_a_new_table,
    select_rows,
)
from fiberstore.sql.conditions import FIBERS, MEMBERSHIPS
from fiberstore.sql.functions import TimeUs
from fiberstore.sql.models import Fiber, Membership, NamedCheckpoint, RegisteredVersion
from fiberstore.sql.prepared import connection_of
from fiberstore.sql.support import GoingRows
from fiberstore.versioning import config_version as version_of

T = TypeVar("T")

_STEP_ROWS = 20_000
_COLUMNS: list[Any] = [
    RegisteredVersion.config_version,
    RegisteredVersion.content_hash,
    RegisteredVersion.content,
    RegisteredVersion.parent,
    TimeUs(RegisteredVersion.created_at),
    RegisteredVersion.active,
]
_ROWS = sa.select(*_COLUMNS).order_by(RegisteredVersion.created_at, RegisteredVersion.config_version)


class VersionRepository(Versions):
    """The config versions of a database.

    Args:
        session: As for ``LogRepository``.
    """

    def __init__(self, session: Session | SessionAccess) -> None:
        self._sessions = session_access(session)

    def register(self, content: bytes | str | Path, *, parent: int | None = None) -> ConfigVersion:
        text = _checked_content(content)
        data = text.encode()
        if parent is not None:
            check_config_version(parent)

        def work(session: Session) -> ConfigVersion:
            return _register(
                session, version_of(data), content=text, content_hash=sha256(data).hexdigest(), parent=parent
            )

        return self._change("register", work)

    def get(self, config_version: int) -> ConfigVersion | None:
        check_config_version(config_version)
        with self._sessions.read("versions.get") as session:
            return _get(session, config_version)

    def all(self) -> list[ConfigVersion]:
        with self._sessions.read("versions.all") as session:
            return _versions(session, _ROWS)

    def active(self) -> ConfigVersion | None:
        with self._sessions.read("versions.active") as session:
            return _active(session)

    def activate(self, config_version: int | None) -> ConfigVersion | None:
        if config_version is not None:
            check_config_version(config_version)

        def work(session: Session) -> ConfigVersion | None:
            before = _active(session)
            if config_version is not None:
                _ensure(session, config_version)
            if config_version == (None if before is None else before.config_version):
                return before
            execute_write(
                session,
                sa.update(RegisteredVersion).where(RegisteredVersion.active.is_(True)).values(active=None),
            )
            if config_version is not None:
                chosen = RegisteredVersion.config_version == config_version
                execute_write(session, sa.update(RegisteredVersion).where(chosen).values(active=True))
            return before

        return self._change("activate", work)

    def diff(self, old: int, new: int, limit: int = 1_000) -> GenerationDiff:
        check_config_version(old)
        check_config_version(new)
        check_number("limit", limit)
        with self._sessions.read("versions.diff") as session, one_snapshot(session):
            for version in (old, new):
                _check_known(session, version)
            return diff(session, old, new, limit)

    def drop(self, config_version: int) -> Deleted:
        check_config_version(config_version)

        def left(session: Session) -> int:
            is_one = Membership.config_version == config_version
            return rows_worth_a_new_table(session, MEMBERSHIPS, is_one)

        of_version = sa.select(Fiber.fiber_id).where(Fiber.config_version == config_version)
        going_fibers = Going(
            lambda session: count_up_to(session, of_version, MANY_ROWS),
            lambda _: nullcontext(belongings_of(lambda fiber_id: fiber_id.in_(of_version))),
        )
        going_memberships = Going(
            left, lambda _: nullcontext([GoingRows(MEMBERSHIPS, _without_fiber(config_version))])
        )
        fibers, memberships = self._change(
            "drop", lambda session: _drop_fibers(session, config_version), going_fibers
        )
        while step := self._change(
            "drop", lambda session: _drop_memberships(session, config_version), going_memberships
        ):
            memberships += step
        return Deleted(0, fibers, memberships)

    def check_known(self, config_version: int) -> None:
        """Check that a version is registered or has fibers.

        Raises:
            VersionNotFoundError: Neither.
        """
        check_config_version(config_version)
        with self._sessions.read(None) as session:
            _check_known(session, config_version)

    def _change(self, method: str, work: Callable[[Session], T], going: Going | None = None) -> T:
        return self._sessions.write(f"versions.{method}", work, going=going)


def reprocess_checkpoint(config_version: int) -> str:
    """Return the name of the checkpoint that tells how far stored logs were read for a version."""
    return f"reprocess {config_version:016x}"


def read_checkpoint(config_version: int, source_id: str = "") -> str:
    """Return the name of the checkpoint that tells how far files of a source were read for a version."""
    return f"read {config_version:016x} {source_id}"


def _checked_content(content: bytes | str | Path) -> str:
    data = content.read_bytes() if isinstance(content, Path) else content
    if not isinstance(data, bytes):
        return check_text(data)
    try:
        return check_text(data.decode())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the content of a version is kept as text, and byte {error.start} of it "
            f"({data[error.start]:#04x}) is not UTF-8; save it as UTF-8"
        ) from error


def _register(
    session: Session,
    version: int,
    *,
    content: str | None = None,
    content_hash: str | None = None,
    parent: int | None = None,
) -> ConfigVersion:
    known = _get(session, version)
    if known is not None and (known.content is not None or content is None):
        return known
    if known is not None:  # by its fibers only
        is_known = RegisteredVersion.config_version == version
        change = sa.update(RegisteredVersion).where(is_known)
        execute_write(session, change.values(content=content, content_hash=content_hash))
        return replace(known, content=content, content_hash=content_hash)
    if parent is None and (active := _active(session)) is not None:
        parent = active.config_version
    new = ConfigVersion(version, content_hash, content, parent, datetime.now(UTC), active=False)
    execute_write(session, insert(RegisteredVersion).values({**asdict(new), "active": None}))
    return new


def _ensure(session: Session, version: int) -> None:
    """Register a version that has fibers; see ``_check_known``."""
    _check_known(session, version)
    _register(session, version)


def _check_known(session: Session, version: int) -> None:
    """Check that a version is registered or has fibers.

    Raises:
        VersionNotFoundError: Neither.
    """
    if _get(session, version) is not None:
        return
    one_fiber = sa.select(sa.literal(1)).where(Fiber.config_version == version).limit(1)
    if not list(select_rows(session, one_fiber)):
        raise VersionNotFoundError(version)


def _drop_fibers(session: Session, version: int) -> tuple[int, int]:
    """Delete the fibers of a version, but their memberships of that version.

    So readers see the whole generation or none of it, and the store is not kept from others for long: DuckDB
    lets nobody read or write while it commits, which takes it 11 s for a million memberships.

    Returns:
        How many fibers, and how many memberships, were deleted.
    """
    _ensure(session, version)
    active = _active(session)
    if active is not None and active.config_version == version:
        raise DatabaseError(
            f"config version {version:016x} ({version}) is the active one, which readers use; activate "
            "another first, or none by `fiberstore activate --none` or versions.activate(None)"
        )
    is_of_version = sa.or_(
        NamedCheckpoint.name == reprocess_checkpoint(version),
        NamedCheckpoint.name.startswith(read_checkpoint(version)),
    )
    execute_write(session, sa.delete(NamedCheckpoint).where(is_of_version))
    with kept_ids(session, sa.select(Fiber.fiber_id).where(Fiber.config_version == version)) as ids:
        for table, which, _ in belongings_of(ids.hold):
            delete_rows(session, table, which)
        others = sa.and_(ids.hold(MEMBERSHIPS.c.fiber_id), Membership.config_version != version)
        memberships = execute_write(session, sa.delete(Membership).where(others))
        return delete_rows(session, FIBERS, ids.hold(FIBERS.c.fiber_id)), memberships


def _drop_memberships(session: Session, version: int) -> int:
    """Delete memberships of a version, unless its fibers are made again; return how many.

    That is all of them in a transaction that writes alone, and otherwise as many as nobody waits for long.
    """
    identity = connection_of(session).support.membership_id
    going = _without_fiber(version)
    if connection_of(session).writes_alone:
        return delete_rows(session, MEMBERSHIPS, going)
    some = sa.select(*identity).select_from(Membership).where(going).limit(_STEP_ROWS)
    return execute_write(session, sa.delete(Membership).where(sa.tuple_(*identity).in_(some)))


def _without_fiber(version: int) -> sa.ColumnElement[bool]:
    stored = sa.select(Fiber.fiber_id).where(Fiber.config_version == version)
    return sa.and_(MEMBERSHIPS.c.config_version == version, MEMBERSHIPS.c.fiber_id.not_in(stored))


def _get(session: Session, version: int) -> ConfigVersion | None:
    found = _versions(session, _ROWS.where(RegisteredVersion.config_version == version))
    return found[0] if found else None


def _active(session: Session) -> ConfigVersion | None:
    found = _versions(session, _ROWS.where(RegisteredVersion.active.is_(True)))
    return found[0] if found else None


def _versions(session: Session, rows: sa.Select[Any]) -> list[ConfigVersion]:
    return [
        ConfigVersion(version, content_hash, content, parent, from_epoch_us(created_us), active is True)
        for version, content_hash, content, parent, created_us, active in select_rows(session, rows)
    ]

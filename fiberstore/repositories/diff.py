"""Comparison of the fibers of two config versions, by the logs they hold."""

from typing import Any, TypeAlias, get_args

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.orm import Session

from fiberstore.contract.results import ChangeKind, FiberChange, GenerationDiff
from fiberstore.repositories.query import select_rows
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS
from fiberstore.sql.functions import array_of, sorted_array

_Column: TypeAlias = sa.ColumnElement[Any]
_CHANGES: tuple[ChangeKind, ...] = get_args(ChangeKind)
_UNCHANGED = "unchanged"
_KINDS = (*_CHANGES, _UNCHANGED)


def diff(session: Session, old: int, new: int, limit: int) -> GenerationDiff:
    """Compare two versions; see ``Versions.diff``."""
    counts: dict[str, int] = {}
    changes = []
    for rank, fiber_type, old_ids, new_ids, place, total in select_rows(session, _changes(old, new, limit)):
        counts[_KINDS[rank]] = total
        if _KINDS[rank] != _UNCHANGED and place <= limit:
            changes.append(FiberChange(_CHANGES[rank], fiber_type, old_ids, new_ids))
    return GenerationDiff(
        counts.get(_UNCHANGED, 0), {kind: counts.get(kind, 0) for kind in _CHANGES}, changes
    )


def _changes(old: int, new: int, limit: int) -> sa.Select[Any]:
    """Select the first changes in their order, and at least one of each kind, each with the number of all.

    Unchanged fibers are a last kind.
    """
    found = sa.union_all(*_of_each_kind(old, new)).subquery()
    first = sa.func.coalesce(_first(found.c.old_ids), _first(found.c.new_ids))
    order = (found.c.rank, first, _first(found.c.new_ids))
    placed = sa.select(
        *found.c,
        sa.func.row_number().over(order_by=order).label("place"),
        sa.func.count().over(partition_by=found.c.rank).label("total"),
        sa.func.row_number().over(partition_by=found.c.rank, order_by=order).label("place_in_kind"),
    ).subquery()
    wanted = sa.or_(placed.c.place <= limit, placed.c.place_in_kind == 1)
    return sa.select(*list(placed.c)[:-1]).where(wanted).order_by(placed.c.place)


def _of_each_kind(old: int, new: int) -> list[sa.Select[Any]]:
    """Select the changes of each kind.

    The pairs of fibers that share logs are the edges of a graph: where one has several, its fiber was split
    or merged.
    """
    same, edges = _same_and_edges(old, new)
    fiber_id, kind = FIBERS.c.fiber_id, edges.c.fiber_type
    none = sa.cast(array([], type_=fiber_id.type), ARRAY(fiber_id.type))
    return [
        _select("split", kind, array_of(edges.c.old_id), sorted_array(edges.c.new_id))
        .where(edges.c.of_old > 1)
        .group_by(kind, edges.c.old_id),
        _select("merged", kind, sorted_array(edges.c.old_id), array_of(edges.c.new_id))
        .where(edges.c.of_new > 1)
        .group_by(kind, edges.c.new_id),
        _select("moved", kind, array_of(edges.c.old_id), array_of(edges.c.new_id))
        .where(edges.c.of_old == 1, edges.c.of_new == 1),
        _select("new", FIBERS.c.fiber_type, none, array_of(fiber_id))
        .where(*_alone(new, same.c.new_id, edges.c.new_id)),
        _select("gone", FIBERS.c.fiber_type, array_of(fiber_id), none)
        .where(*_alone(old, same.c.old_id, edges.c.old_id)),
        _select(_UNCHANGED, same.c.fiber_type, array_of(same.c.old_id), none).distinct(),
    ]  # fmt: skip


def _select(kind: str, fiber_type: _Column, old_ids: _Column, new_ids: _Column) -> sa.Select[Any]:
    rank = sa.literal(_KINDS.index(kind))
    columns = {"rank": rank, "fiber_type": fiber_type, "old_ids": old_ids, "new_ids": new_ids}
    return sa.select(*(column.label(name) for name, column in columns.items()))


def _alone(version: int, *linked: _Column) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of the fibers of a version that are in none of these columns of ids."""
    in_none = [FIBERS.c.fiber_id.not_in(sa.select(ids)) for ids in linked]
    return [FIBERS.c.config_version == version, *in_none]


def _same_and_edges(old: int, new: int) -> tuple[sa.CTE, sa.CTE]:
    """Return the pairs of an old and a new fiber with the same logs, and of others that share logs."""
    olds, news = _held(old, "old_held"), _held(new, "new_held")
    old_sizes, new_sizes = _sizes(olds, "old_sizes"), _sizes(news, "new_sizes")
    shared = (
        sa.select(
            olds.c.fiber_type, olds.c.fiber_id.label("old_id"), news.c.fiber_id.label("new_id"),
            sa.func.count().label("logs"),
        )
        .join(news, sa.and_(news.c.log_id == olds.c.log_id, news.c.fiber_type == olds.c.fiber_type))
        .group_by(olds.c.fiber_type, olds.c.fiber_id, news.c.fiber_id)
        .cte("shared")
    )  # fmt: skip
    same = (
        sa.select(shared)
        .join(old_sizes, old_sizes.c.fiber_id == shared.c.old_id)
        .join(new_sizes, new_sizes.c.fiber_id == shared.c.new_id)
        .where(shared.c.logs == old_sizes.c.logs, shared.c.logs == new_sizes.c.logs)
        .cte("same")
    )
    edges = (
        sa.select(
            shared.c.fiber_type, shared.c.old_id, shared.c.new_id,
            sa.func.count().over(partition_by=shared.c.old_id).label("of_old"),
            sa.func.count().over(partition_by=shared.c.new_id).label("of_new"),
        )
        .where(shared.c.old_id.not_in(sa.select(same.c.old_id)))
        .where(shared.c.new_id.not_in(sa.select(same.c.new_id)))
        .cte("edges")
    )  # fmt: skip
    return same, edges


def _held(version: int, name: str) -> sa.CTE:
    """Return the stored logs that the fibers of a version hold."""
    return (
        sa.select(FIBERS.c.fiber_type, FIBERS.c.fiber_id, MEMBERSHIPS.c.log_id)
        .join(MEMBERSHIPS, MEMBERSHIPS.c.fiber_id == FIBERS.c.fiber_id)
        .join(LOGS, LOGS.c.log_id == MEMBERSHIPS.c.log_id)
        .where(FIBERS.c.config_version == version)
        .cte(name)
    )


def _sizes(held: sa.CTE, name: str) -> sa.CTE:
    return sa.select(held.c.fiber_id, sa.func.count().label("logs")).group_by(held.c.fiber_id).cte(name)


def _first(ids: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.type_coerce(ids, ARRAY(FIBERS.c.fiber_id.type))[1]

"""Comparison of the fibers of two config versions, by the logs they hold."""

from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.orm import Session

from fiberstore.contract.lifecycle import ChangeKind, FiberChange, GenerationDiff
from fiberstore.repositories.query import select_rows
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS
from fiberstore.sql.functions import array_of, sorted_array

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

    Unchanged fibers are a last kind. The pairs of fibers that share logs are the edges of a graph: where one
    has several, its fiber was split or merged.
    """
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
    same_old, same_new = sa.select(same.c.old_id), sa.select(same.c.new_id)
    edges = (
        sa.select(
            shared.c.fiber_type, shared.c.old_id, shared.c.new_id,
            sa.func.count().over(partition_by=shared.c.old_id).label("of_old"),
            sa.func.count().over(partition_by=shared.c.new_id).label("of_new"),
        )
        .where(shared.c.old_id.not_in(same_old), shared.c.new_id.not_in(same_new))
        .cte("edges")
    )  # fmt: skip
    id_type = FIBERS.c.fiber_id.type
    none = sa.cast(array([], type_=id_type), ARRAY(id_type))
    of_kind: dict[str, sa.Select[Any]] = {
        "split": sa.select(edges.c.fiber_type, array_of(edges.c.old_id), sorted_array(edges.c.new_id))
        .where(edges.c.of_old > 1)
        .group_by(edges.c.fiber_type, edges.c.old_id),
        "merged": sa.select(edges.c.fiber_type, sorted_array(edges.c.old_id), array_of(edges.c.new_id))
        .where(edges.c.of_new > 1)
        .group_by(edges.c.fiber_type, edges.c.new_id),
        "moved": sa.select(edges.c.fiber_type, array_of(edges.c.old_id), array_of(edges.c.new_id)).where(
            edges.c.of_old == 1, edges.c.of_new == 1
        ),
        "new": sa.select(FIBERS.c.fiber_type, none, array_of(FIBERS.c.fiber_id)).where(
            *_alone(new, same_new, sa.select(edges.c.new_id))
        ),
        "gone": sa.select(FIBERS.c.fiber_type, array_of(FIBERS.c.fiber_id), none).where(
            *_alone(old, same_old, sa.select(edges.c.old_id))
        ),
        _UNCHANGED: sa.select(same.c.fiber_type, array_of(same.c.old_id), none).distinct(),
    }
    names = ("fiber_type", "old_ids", "new_ids")
    ranked = [
        sa.select(
            sa.literal(_KINDS.index(kind)).label("rank"),
            *(column.label(name) for column, name in zip(statement.subquery().c, names, strict=True)),
        )
        for kind, statement in of_kind.items()
    ]
    found = sa.union_all(*ranked).subquery()
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


def _alone(
    version: int, same: sa.Select[Any], linked: sa.Select[Any]
) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    id_ = FIBERS.c.fiber_id
    return FIBERS.c.config_version == version, id_.not_in(same), id_.not_in(linked)


def _first(ids: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.type_coerce(ids, ARRAY(FIBERS.c.fiber_id.type))[1]

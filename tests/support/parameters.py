"""Parameters of which a few belong to the quick run, and the others to the slow one."""

from collections.abc import Collection, Iterable

import pytest


def parametrize_mostly_slow(
    names: str | tuple[str, ...],
    rows: Collection[object],
    *,
    quick: int = 1,
    ids: Iterable[str] | None = None,
) -> pytest.MarkDecorator:
    """Parametrize a test as ``pytest.mark.parametrize`` does, and mark all but the first rows as slow."""

    def values(row: object) -> tuple[object, ...]:
        return row if isinstance(names, tuple) and isinstance(row, tuple) else (row,)

    marked = [pytest.param(*values(row), marks=pytest.mark.slow) for row in [*rows][quick:]]
    return pytest.mark.parametrize(names, [*[*rows][:quick], *marked], ids=ids)

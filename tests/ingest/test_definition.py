"""The definition in docs/correlation.md: each row of its table, as it is written and sorted."""

from pathlib import Path

import pytest

from tests.support.correlation import SECOND, Line, MemoryStore, line, plain_fibers

PAGE = (Path(__file__).parents[2] / "docs" / "correlation.md").read_text()
ROWS = [
    (cells[0].strip(), cells[1].strip())
    for row in PAGE.splitlines()
    if len(cells := row.strip("|").split("|")) == 3 and cells[0].strip()[:1].isdigit()
]
GAP_S = 60


def lines_of(text: str) -> list[Line]:
    """The lines of a row; those of equal times have ids in the order they are written."""
    found = []
    for number, entry in enumerate(text.split(";"), 1):
        second, _, keys = entry.partition(":")
        found.append(line(int(second), number, keys.strip()))
    return found


def shown(fibers: list[list[int]]) -> str:
    return " ".join(
        "{" + " ".join(map(str, sorted(seconds))) + "}" for seconds in sorted(map(sorted, fibers))
    )


def as_written(text: str) -> str:
    return shown([[*map(int, part.split())] for part in text.strip("{}").split("} {")])


@pytest.mark.parametrize(("lines", "fibers"), ROWS)
def test_a_row_of_the_page_says_what_comes_of_its_lines(lines: str, fibers: str) -> None:
    given = lines_of(lines)
    plain = plain_fibers(given, GAP_S)
    assert shown([[one.second for one, _ in fiber.occurrences] for fiber in plain]) == as_written(fibers)
    for batches in ([given], [[one] for one in given], [[one] for one in sorted(given)]):
        store = MemoryStore(GAP_S)
        for batch in batches:
            store.write(batch)
        found = [[store.lines[log].second for log in store.logs_of(fiber)] for fiber in store.fibers]
        assert shown(found) == as_written(fibers)


def test_the_page_has_rows() -> None:
    assert len(ROWS) > 10


def test_a_key_met_late_does_not_count_for_the_past_of_a_long_fiber() -> None:
    """A reused thread id does not swallow what the thread did while a job without it continued."""
    job = [line(second, 10 + second, "j") for second in range(0, 990, 30)]
    store = MemoryStore(GAP_S)
    store.write([*job, line(990, 1000, "j t"), line(10, 1, "t r"), line(500, 2, "t q")])
    assert sorted(len(store.logs_of(fiber)) for fiber in store.fibers) == [1, 1, len(job) + 1]
    assert max(fiber.last_us for fiber in store.fibers.values()) == 990 * SECOND

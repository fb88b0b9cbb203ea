"""Every query of ``docs/queries.md`` on a store of a million logs, beside SQL written by hand for it.

``python -m benchmarks.query_bench`` prints the median milliseconds of both, taken in turn on the same open
file, and checks that both give the same number of rows. By hand is DuckDB alone with ``fetchall()``; what a
call takes besides is the making of records and of the statement, and for a page the look at what has arrived.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import duckdb
import sqlalchemy as sa

from benchmarks.clock import medians_s
from fiberstore import (
    DuckDBStorage,
    FiberMembership,
    FiberRecord,
    Fibers,
    LogRecord,
    Logs,
    StoredLog,
    new_log_id,
)
from fiberstore.contract.cursors import Watermark, encode_position

_BEGIN = datetime(2024, 12, 10, tzinfo=UTC)
_NOON = datetime(2024, 12, 10, 12, tzinfo=UTC)
_DAY, _HOUR, _MICROSECOND = timedelta(days=1), timedelta(hours=1), timedelta(microseconds=1)
_LINE = "GET /cart timeout error user login failed connection reset by peer block replicated in ms"
_LOGS_TO_A_FIBER = 20
_LOG = "log_id, timestamp, source_id, raw_text, ingestion_time, config_version"
_FIBER = "fiber_id, fiber_type, config_version, attributes, first_activity, last_activity, closed"


@dataclass(frozen=True)
class Question:
    """One question, asked in two ways.

    Attributes:
        name: What is asked.
        ours: The call; it returns what has a length, or a number.
        sql: The statement by hand.
        values: Its parameters.
    """

    name: str
    ours: Callable[[], Any]
    sql: str
    values: Sequence[object] = ()


def main() -> None:
    """Build the store, ask everything, print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.query_bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small store: are the answers right?")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    logs = 10_000 if arguments.quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.duckdb"
        log_ids, fiber_ids = build(path, logs)
        with DuckDBStorage(path) as storage:
            by_hand = storage.engine.raw_connection()
            raw = by_hand.dbapi_connection._raw  # type: ignore[union-attr]  # DuckDB alone, on the same open file
            print(
                f"| {logs:,} logs, {len(fiber_ids):,} fibers | ms | by hand, ms | ratio |\n|---|---|---|---|"
            )
            for question in questions_to(storage, log_ids, fiber_ids):
                _ask(question, raw, arguments.rounds)
            by_hand.close()


def questions_to(storage: DuckDBStorage, log_ids: list[UUID], fiber_ids: list[UUID]) -> Iterator[Question]:
    """Give every question, for a store of those logs and fibers, in the order of time."""
    yield from _log_questions(storage, fiber_ids)
    yield from _fiber_questions(storage)
    yield from _batch_questions(storage, log_ids, fiber_ids)
    yield from _discovery_questions(storage)
    yield from _neighbour_questions(storage, log_ids)
    yield from _stream_questions(storage)


def _ask(question: Question, raw: duckdb.DuckDBPyConnection, rounds: int) -> None:
    def by_hand() -> list[Any]:
        return raw.execute(question.sql, list(question.values)).fetchall()

    ours, theirs = question.ours(), by_hand()
    expected = theirs[0][0] if isinstance(ours, int) else len(theirs)
    given = ours if isinstance(ours, int) else len(ours)
    assert given == expected, f"{question.name}: {given} by fiberstore, {expected} by hand"
    found_s = medians_s({"ours": lambda _: question.ours(), "by hand": lambda _: by_hand()}, rounds)
    ours_ms, hand_ms = found_s["ours"] * 1e3, found_s["by hand"] * 1e3
    print(f"| {question.name} | {ours_ms:.1f} | {hand_ms:.1f} | {ours_ms / hand_ms:.2f} |", flush=True)


def build(path: Path, logs: int) -> tuple[list[UUID], list[UUID]]:
    """Build a store of so many logs, and a twentieth of fibers; return the ids of both, in order of time."""
    dice = random.Random(7)
    step = _DAY / logs
    log_ids: list[UUID] = []

    def records() -> Iterator[LogRecord]:
        for number in range(logs):
            text = f"{number} {' '.join(dice.choices(_LINE.split(), k=12))}"
            source = f"source-{number % 12:02d}"
            record = LogRecord(timestamp=_BEGIN + step * number, source_id=source, raw_text=text)
            log_ids.append(record.log_id)
            yield record

    with DuckDBStorage(path) as storage:
        storage.init_schema()
        storage.write_logs(records())
        fibers: list[FiberRecord] = []
        memberships: list[FiberMembership] = []
        for first in range(0, logs, _LOGS_TO_A_FIBER):
            span = dice.randrange(1, 2_000)
            numbers = {min(logs - 1, first + dice.randrange(span)) for _ in range(_LOGS_TO_A_FIBER)}
            began, ended = _BEGIN + step * min(numbers), _BEGIN + step * max(numbers)
            fiber = FiberRecord(
                fiber_id=new_log_id(began),
                fiber_type=dice.choice(["request", "login", "job", "block"]),
                config_version=1,
                attributes={
                    "user": f"user{dice.randrange(2_000)}",
                    "status": dice.choice([200, 200, 404, 500]),
                },
                first_activity=began,
                last_activity=ended,
                closed=dice.random() < 0.9,  # noqa: PLR2004  # nine of ten
            )
            fibers.append(fiber)
            memberships += [
                FiberMembership(log_id=log_ids[number], fiber_id=fiber.fiber_id, config_version=1)
                for number in numbers
            ]
        with storage.transaction() as transaction:
            transaction.fibers.write_fibers(fibers)
        storage.write_memberships(memberships)
    return log_ids, [fiber.fiber_id for fiber in fibers]


def _log_questions(storage: DuckDBStorage, fiber_ids: list[UUID]) -> Iterator[Question]:
    logs, log, fiber = storage.logs, Logs.c, Fibers.c

    def page(name: str, query: Logs, where: str, *values: object) -> Question:
        sql = f"SELECT {_LOG} FROM raw_logs WHERE {where} ORDER BY timestamp, log_id LIMIT 1000"
        return Question(name, lambda: query.page(1_000).items, sql, values)

    yield page("all logs, the first 1,000", logs, "true")
    in_hour = log.timestamp.between(_NOON, _NOON + _HOUR)
    yield page("of an hour", logs.where(in_hour), "timestamp BETWEEN ? AND ?", _NOON, _NOON + _HOUR)
    sources = ["source-01", "source-02", "source-03"]
    yield page("of 3 sources", logs.where(log.source_id.in_(sources)), "source_id IN (?, ?, ?)", *sources)
    rare = log.raw_text.contains("99999 ")
    yield page("whose text contains something rare", logs.where(rare), "contains(raw_text, ?)", "99999 ")
    pattern = r"^\d+99 .*timeout"
    matching = logs.where(log.raw_text.regexp_match(pattern))
    yield page("whose text matches", matching, "regexp_matches(raw_text, ?)", pattern)
    late = _NOON + 11 * _HOUR
    yield page(
        "not of a source, and (text or time)",
        logs.where(
            ~(log.source_id == "source-01") & (log.raw_text.startswith("77") | (log.timestamp > late))
        ),
        "source_id <> 'source-01' AND (starts_with(raw_text, '77') OR timestamp > ?)",
        late,
    )
    yield page(
        "of one fiber",
        logs.where(log.fibers.contains(fiber_ids[77])),
        "log_id IN (SELECT log_id FROM fiber_memberships WHERE fiber_id = ?)",
        fiber_ids[77],
    )
    failed = (fiber.fiber_type == "login") & (fiber.attributes["/status"] == 500)  # noqa: PLR2004
    yield page(
        "of a fiber that has an attribute",
        logs.where(log.fibers.any(failed)),
        """log_id IN (SELECT m.log_id FROM fiber_memberships m JOIN fibers f ON m.fiber_id = f.fiber_id
           WHERE fiber_type = 'login' AND attributes->>'status' = '500')""",
    )
    yield _next_page(logs)
    yield Question(
        "the newest 1,000",
        lambda: logs.order_by("newest").page(1_000).items,
        f"SELECT {_LOG} FROM raw_logs ORDER BY timestamp DESC, log_id DESC LIMIT 1000",
    )
    often = logs.where(log.raw_text.contains("timeout"))
    yield Question(
        "count of those that contain",
        often.count,
        "SELECT count(*) FROM raw_logs WHERE contains(raw_text, 'timeout')",
    )
    yield Question(
        "the same, at most 1,000",
        lambda: often.count(at_most=1_000),
        "SELECT count(*) FROM (SELECT 1 FROM raw_logs WHERE contains(raw_text, 'timeout') LIMIT 1000)",
    )


def _next_page(logs: Logs) -> Question:
    page = logs.page(1_000)
    for _ in range(4):
        page = logs.page(1_000, page.next)
    time, id_ = page.items[-1].timestamp, page.items[-1].log_id
    return Question(
        "the page after a cursor",
        lambda: logs.page(1_000, page.next).items,
        f"""SELECT {_LOG} FROM raw_logs WHERE timestamp >= ? AND (timestamp > ? OR log_id > ?)
            ORDER BY timestamp, log_id LIMIT 1000""",
        (time, time, id_),
    )


def _fiber_questions(storage: DuckDBStorage) -> Iterator[Question]:
    fibers, log, fiber = storage.fibers, Logs.c, Fibers.c

    def page(
        name: str, query: Fibers, where: str, *values: object, by: str = "first_activity, fiber_id"
    ) -> Question:
        sql = f"SELECT {_FIBER} FROM fibers WHERE {where} ORDER BY {by} LIMIT 1000"
        return Question(name, lambda: query.page(1_000).items, sql, values)

    open_logins = fibers.where(fiber.fiber_type == "login", ~fiber.closed)
    yield page("open fibers of a type", open_logins, "fiber_type = 'login' AND NOT closed")
    active = fibers.where(fiber.activity.overlaps(_NOON, _NOON + _HOUR))
    yield page(
        "active in an hour", active, "first_activity <= ? AND last_activity >= ?", _NOON + _HOUR, _NOON
    )
    of_user = fibers.where(fiber.attributes["/user"] == "user77")
    yield page("with an attribute", of_user, "attributes->>'user' = 'user77'")
    refused = fibers.where(fiber.attributes["/status"].between(400, 499))
    yield page(
        "with an attribute in a range", refused, "CAST(attributes->>'status' AS DOUBLE) BETWEEN 400 AND 499"
    )
    long = fibers.where(fiber.duration > timedelta(minutes=2))
    yield page("longer than 2 min", long, "last_activity - first_activity > INTERVAL 2 MINUTE")
    yield page(
        "that have a log that contains",
        fibers.where(fiber.logs.any(log.raw_text.contains("99999 "))),
        """fiber_id IN (SELECT m.fiber_id FROM fiber_memberships m JOIN raw_logs l ON m.log_id = l.log_id
           WHERE contains(raw_text, '99999 '))""",
    )
    by_length = "last_activity - first_activity DESC, fiber_id DESC"
    yield page("the longest 1,000", fibers.order_by("longest"), "true", by=by_length)
    yield Question(
        "the 1,000 with most logs",
        lambda: fibers.order_by("most_logs").page(1_000).items,
        f"""SELECT {_FIBER} FROM fibers LEFT JOIN
            (SELECT m.fiber_id AS id, count(*) AS n FROM fiber_memberships m JOIN raw_logs USING (log_id)
             GROUP BY 1) ON id = fiber_id ORDER BY coalesce(n, 0) DESC, fiber_id DESC LIMIT 1000""",
    )
    yield Question(
        "summaries of the first 1,000",
        lambda: fibers.summaries(1_000).items,
        f"""WITH first AS (SELECT * FROM fibers ORDER BY first_activity, fiber_id LIMIT 1000)
            SELECT {_FIBER}, n, sources, min_time, max_time FROM first LEFT JOIN
            (SELECT m.fiber_id AS id, count(*) AS n, list_sort(list(DISTINCT source_id)) AS sources,
                    min(timestamp) AS min_time, max(timestamp) AS max_time
             FROM fiber_memberships m JOIN raw_logs USING (log_id)
             WHERE m.fiber_id IN (SELECT fiber_id FROM first) GROUP BY 1) ON id = fiber_id
            ORDER BY first_activity, fiber_id""",
    )


def _batch_questions(
    storage: DuckDBStorage, log_ids: list[UUID], fiber_ids: list[UUID]
) -> Iterator[Question]:
    logs, fibers = storage.logs, storage.fibers
    for count in (100, 10_000):
        some = log_ids[:: max(1, len(log_ids) // count)]
        yield Question(
            f"{len(some):,} logs by id",
            partial(_items_of, logs, some),
            f"SELECT {_LOG} FROM raw_logs WHERE log_id IN (SELECT unnest(?))",
            [some],
        )
    some, fiber_columns = log_ids[:: len(log_ids) // 100], _FIBER.replace("fiber_id", "f.fiber_id")
    yield Question(
        "fibers of 100 logs",
        lambda: list(chain.from_iterable(fibers.by_log(some).values())),
        f"""SELECT m.log_id, {fiber_columns.replace("config", "f.config")} FROM fiber_memberships m
            JOIN fibers f ON m.fiber_id = f.fiber_id WHERE m.log_id IN (SELECT unnest(?))
            ORDER BY first_activity, f.fiber_id""",
        [some],
    )
    few = fiber_ids[:: len(fiber_ids) // 100]
    yield Question(
        "logs of 100 fibers",
        lambda: list(chain.from_iterable(logs.by_fiber(few).values())),
        f"""SELECT m.fiber_id, {_LOG.replace("log_id", "l.log_id").replace("config", "l.config")}
            FROM fiber_memberships m JOIN raw_logs l ON m.log_id = l.log_id
            WHERE m.fiber_id IN (SELECT unnest(?))
            QUALIFY row_number() OVER (PARTITION BY m.fiber_id ORDER BY timestamp, l.log_id) <= 1000
            ORDER BY timestamp, l.log_id""",
        [few],
    )


def _items_of(logs: Logs, log_ids: list[UUID]) -> list[StoredLog]:
    return logs.get_many(log_ids).items


def _discovery_questions(storage: DuckDBStorage) -> Iterator[Question]:
    logs, fibers = storage.logs, storage.fibers
    yield Question(
        "sources",
        logs.sources,
        """SELECT source_id, count(*), min(timestamp), max(timestamp) FROM raw_logs GROUP BY 1
           ORDER BY 2 DESC, 1""",
    )
    yield Question(
        "types of fibers",
        fibers.types,
        """SELECT fiber_type, count(*), min(first_activity), max(last_activity) FROM fibers GROUP BY 1
           ORDER BY 2 DESC, 1""",
    )
    yield Question(
        "keys of attributes",
        fibers.attribute_keys,
        """SELECT key, count(*), min(first_activity), max(last_activity)
           FROM (SELECT unnest(json_keys(attributes)) AS key, * FROM fibers) GROUP BY 1 ORDER BY 2 DESC, 1""",
    )
    yield Question(
        "frequent values of an attribute",
        lambda: fibers.attribute_values("/user"),
        """SELECT attributes->'user', count(*), min(first_activity), max(last_activity) FROM fibers GROUP BY 1
           ORDER BY 2 DESC, 1 LIMIT 20""",
    )
    yield Question(
        "histogram by hour",
        lambda: logs.histogram(_HOUR),
        "SELECT time_bucket(INTERVAL 1 HOUR, timestamp), count(*) FROM raw_logs GROUP BY 1 ORDER BY 1",
    )
    yield Question(
        "histogram of an hour by minute and source",
        lambda: [
            bucket
            for bucket in logs.histogram(
                _HOUR / 60, by="source_id", start=_NOON, end=_NOON + _HOUR - _MICROSECOND
            )
            if bucket.count  # by hand there are none of the others
        ],
        """SELECT time_bucket(INTERVAL 1 MINUTE, timestamp), source_id, count(*) FROM raw_logs
           WHERE timestamp >= ? AND timestamp < ? GROUP BY 1, 2 ORDER BY 1, 2""",
        (_NOON, _NOON + _HOUR),
    )
    yield Question(
        "timeline of 50 fibers",
        lambda: fibers.timeline(50).points,
        """SELECT m.fiber_id, timestamp, source_id, log_id
           FROM fiber_memberships m JOIN raw_logs USING (log_id)
           WHERE m.fiber_id IN (SELECT fiber_id FROM fibers ORDER BY first_activity, fiber_id LIMIT 50)
           ORDER BY ALL""",
    )


def _neighbour_questions(storage: DuckDBStorage, log_ids: list[UUID]) -> Iterator[Question]:
    middle = log_ids[len(log_ids) // 2]
    neighbours: list[tuple[str, Literal["source"] | None, str]] = [
        ("10 lines before and after", None, "true"),
        ("the same in its source", "source", "r.source_id = l.source_id"),
    ]
    for name, within, same in neighbours:
        sides = [
            f"""(SELECT r.* FROM raw_logs r, l WHERE {same} AND (r.timestamp, r.log_id) {sign}
                 (l.timestamp, l.log_id) ORDER BY r.timestamp {way}, r.log_id {way} LIMIT 10)"""
            for sign, way in (("<", "DESC"), (">", "ASC"))
        ]
        yield Question(
            name,
            partial(_around, storage.logs, middle, within),
            f"""WITH l AS (SELECT * FROM raw_logs WHERE log_id = ?)
                SELECT * FROM l UNION ALL {" UNION ALL ".join(sides)}""",
            [middle],
        )
    with storage.session() as session:
        before_them = session.scalars(
            sa.text("SELECT log_id FROM raw_logs ORDER BY rowid DESC LIMIT 1 OFFSET 1000")
        ).one()
    position = encode_position(Watermark(before_them, len(log_ids)))
    yield Question(
        "the last 1,000 that arrived",
        lambda: list(storage.logs.tail(position, timeout_s=0)),
        f"""SELECT {_LOG} FROM raw_logs WHERE rowid > (SELECT max(rowid) - 1000 FROM raw_logs)
            ORDER BY rowid""",
    )


def _around(logs: Logs, log_id: UUID, within: Literal["source"] | None) -> list[StoredLog]:
    context = logs.context(log_id, within=within)
    assert context is not None
    return [*context.before, context.log, *context.after]


def _stream_questions(storage: DuckDBStorage) -> Iterator[Question]:
    logs = storage.logs.where(Logs.c.source_id == "source-05")
    sql = f"SELECT {_LOG} FROM raw_logs WHERE source_id = 'source-05' ORDER BY timestamp, log_id"
    yield Question("a twelfth of the logs as records", lambda: list(logs.iter_records()), sql)
    yield Question("a twelfth of the logs as Arrow", lambda: logs.to_arrow().read_all(), sql)


if __name__ == "__main__":
    main()

"""A plain reading of a log file: line by line, one stamp after the other, nothing remembered."""

from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

from fiberstore.ids import stable_log_id
from fiberstore.ingest.rules import Source
from fiberstore.records import LogRecord


def plain_records(name: str, source: Source, path: Path) -> tuple[list[LogRecord], Counter[str]]:
    """Return the records of a file whose stamps have a year, and the numbers of its lines by kind."""
    counts: Counter[str] = Counter()
    records: list[tuple[int, list[str], datetime | None]] = []
    starts = stamps = 0  # what all lines, and how many of them, of the last record are
    is_dropping = False
    lines = _lines(path)
    is_cut = bool(lines) and not path.read_bytes().endswith(b"\n")
    for number, line in enumerate(lines, 1):
        counts["lines"] += 1
        assert source.timestamp is not None
        match = source.timestamp.search(line)
        time = None if match is None else _time(source, match["ts"])
        if is_cut and number == len(lines) and match is not None and time is None:
            counts["held_back"] += 1
            continue
        begins = match is not None or (source.record_start is not None and source.record_start.search(line))
        if any(regex.search(line) for regex in source.drop) or (is_dropping and not begins):
            counts["dropped"] += 1
            is_dropping = is_dropping or bool(begins)
            continue
        is_dropping = is_dropping and not begins
        counts["bad_stamps"] += match is not None and time is None
        goes_on = bool(records) and starts == len(records[-1][1]) and not (match is not None and stamps)
        if not begins:
            counts["unstamped"] += 1
            if not records:
                records.append((1, [], None))
                stamps = 0
            records[-1][1].append(line)
            starts = -1
        elif goes_on:
            records[-1][1].append(line)
            records[-1] = (*records[-1][:2], time or records[-1][2])
            starts += 1
            stamps += match is not None
        else:
            records.append((number, [line], time))
            starts, stamps = 1, int(match is not None)
    if records and records[0][2] is None and not any(map(str.strip, records[0][1])):
        del records[0]
    times = [time for _, _, time in records]
    for place in range(len(times)):
        times[place] = times[place] or (times[place - 1] if place else None)
    first = next((time for time in times if time), None)
    found = [
        LogRecord(
            timestamp=time or first, source_id=name, raw_text="\n".join(texts),
            log_id=stable_log_id(name, number, "\n".join(texts), time or first),
        )
        for (number, texts, _), time in zip(records, times, strict=True) if first
    ]  # fmt: skip
    counts["late"] = sum(a.timestamp > b.timestamp for a, b in pairwise(found))
    return found, counts


def _lines(path: Path) -> list[str]:
    *whole, rest = path.read_bytes().split(b"\n")
    texts = [text.removesuffix(b"\r") for text in whole] + ([rest] if rest else [])
    return [text.decode() for text in texts]


def _time(source: Source, stamp: str) -> datetime | None:
    assert source.format is not None
    for each in source.format:
        try:
            time = datetime.fromisoformat(stamp) if each == "iso8601" else datetime.strptime(stamp, each)  # noqa: DTZ007
        except ValueError:
            continue
        if time.tzinfo is None:
            time = time.replace(tzinfo=source.timezone or ZoneInfo("UTC"))
        return time.astimezone(UTC)
    return None

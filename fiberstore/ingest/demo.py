"""Log files of a small web shop, made up: three services, each with its own file and form of time stamp.

The gateway gives every request an id, which the order service logs too. The order service gives every order
an id, which the payment service logs too. Only one line, of the order service, holds both ids: until then,
request and order are two fibers. Worker threads serve one request after another, so a thread's name says
which lines belong together only until its job is done.
"""

import heapq
import itertools
import random
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

_START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
_MEAN_GAP_MS = 130
_WORKERS = 4
_PAYERS = 3
_CHECKOUTS = 0.3
_TRACEBACK = """
Traceback (most recent call last):
  File "/srv/payments/bank.py", line 88, in authorise
    reply = connection.read(timeout_s)
TimeoutError: the bank does not answer"""

_Event: TypeAlias = tuple[int, str, str]  # ms after the start, source, text after the stamp


def write_demo(folder: Path, lines: int) -> Path:
    """Write the log files and the rules file into a folder, which is made if need be.

    The same number of lines makes the same files; a greater one makes files that begin with the same lines.

    Args:
        folder: Where to; files of these names are replaced.
        lines: Lines in all files together; the last record may exceed them by a traceback's.

    Returns:
        The path of the rules file.
    """
    folder.mkdir(exist_ok=True)
    rules = folder / "rules.toml"
    rules.write_bytes((files("fiberstore.ingest") / "demo_rules.toml").read_bytes())
    with ExitStack() as stack:
        logs = {
            source: stack.enter_context((folder / f"{source}.log").open("w", encoding="utf-8", newline="\n"))
            for source in ("gateway", "orders", "payments")
        }
        written = 0
        for ms, source, text in _in_order(random.Random(7)):  # noqa: S311 - no secret
            if written >= lines:
                break
            written += 1 + text.count("\n")
            logs[source].write(f"{_stamp(source, ms)} {text}\n")
    return rules


def _stamp(source: str, ms: int) -> str:
    time = _START + timedelta(milliseconds=ms)
    fraction = f"{ms % 1000:03d}"
    match source:
        case "gateway":
            return f"{time:%Y-%m-%dT%H:%M:%S}.{fraction}Z"
        case "orders":
            return f"{time:%Y-%m-%d %H:%M:%S},{fraction}"
        case _:
            return f"{time:%b} {time.day:2} {time:%H:%M:%S}.{fraction}"


def _in_order(rng: random.Random) -> Iterator[_Event]:
    """Yield the events of all visits in the order of time, without end."""
    waiting: list[tuple[int, int, _Event]] = []
    number = itertools.count()
    for visit in _visits(rng):
        while waiting and waiting[0][0] < visit[0][0]:
            yield heapq.heappop(waiting)[2]
        for event in visit:
            heapq.heappush(waiting, (event[0], next(number), event))


def _visits(rng: random.Random) -> Iterator[list[_Event]]:
    """Yield the events of one visit after the other, in the order of their first events."""
    shop = _Shop(rng)
    now = 0
    for number in itertools.count(1):
        now += 1 + int(rng.expovariate(1 / _MEAN_GAP_MS))
        request = f"req={number * 0x9E3779B1 % 2**32:08x}"
        yield shop.checkout(now, request) if rng.random() < _CHECKOUTS else shop.browse(now, request)


class _Shop:
    """Makes the events of one visit at a time, and knows when each thread is free again."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._orders = itertools.count(10_001)
        self._workers = [(0, f"worker-{number}") for number in range(1, _WORKERS + 1)]
        self._payers = [(0, f"pay-{number}") for number in range(1, _PAYERS + 1)]

    def browse(self, now: int, request: str) -> list[_Event]:
        rng = self._rng
        took = rng.randint(4, 90)
        status = rng.choices((200, 304, 404), (90, 7, 3))[0]
        return [
            (now, "gateway", f"INFO {request} GET /products/{rng.randint(100, 999)} from {self._address()}"),
            (now + took, "gateway", f"INFO {request} {status} in {took} ms"),
        ]

    def checkout(self, now: int, request: str) -> list[_Event]:
        rng = self._rng
        begin = now
        order = f"order=N{next(self._orders)}"
        amount = f"{rng.randint(500, 19_900) / 100:.2f} EUR"
        events = [(now, "gateway", f"INFO {request} POST /orders from {self._address()}")]

        free_at, worker = heapq.heappop(self._workers)
        now = job_begin = max(now + rng.randint(2, 9), free_at)
        events.append((now, "orders", f"INFO [{worker}] {request} cart of {rng.randint(2, 6)} items"))
        now += rng.randint(3, 20)
        events.append((now, "orders", f"INFO [{worker}] {order} created, {amount}"))

        free_at, payer = heapq.heappop(self._payers)
        now = max(now + rng.randint(2, 9), free_at)
        events.append((now, "payments", f"[{payer}] {order} charge {amount}"))
        now += rng.randint(60, 400)
        outcome = rng.choices(("paid", "declined", "failed"), (88, 9, 3))[0]
        match outcome:
            case "paid":
                reply = f"[{payer}] {order} authorised"
            case "declined":
                reply = f"[{payer}] {order} declined: over the limit of the card"
            case _:
                now += 1500
                reply = f"[{payer}] {order} not charged{_TRACEBACK}"
        events.append((now, "payments", reply))
        heapq.heappush(self._payers, (now + 1, payer))

        now += rng.randint(2, 9)
        events.append((now, "orders", f"INFO [{worker}] {request} {order} {outcome}"))
        now += rng.randint(1, 5)
        events.append((now, "orders", f"INFO [{worker}] done in {now - job_begin} ms"))
        heapq.heappush(self._workers, (now + 1, worker))

        now += rng.randint(1, 9)
        status = {"paid": 201, "declined": 402, "failed": 502}[outcome]
        events.append((now, "gateway", f"INFO {request} {status} in {now - begin} ms"))
        return events

    def _address(self) -> str:
        return f"203.0.113.{self._rng.randint(1, 254)}"

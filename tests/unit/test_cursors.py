"""Cursors that nobody has handed out: whatever they hold, they are refused as cursors."""

import base64
import json
import zlib
from uuid import UUID

import pytest

from fiberstore import CursorError, DuckDBStorage
from fiberstore.contract.cursors import (
    PagePosition,
    Watermark,
    decode,
    decode_position,
    digest,
    encode,
    encode_position,
)
from fiberstore.contract.queries import FiberOrder
from fiberstore.testing.examples import fiber, log

QUERY = "logs.order_by('oldest')"
ID = UUID(int=3).hex
NOON_US = 1_709_208_000_000_000


def packed(data: bytes) -> str:
    checksum = zlib.crc32(data).to_bytes(4, "big")
    return base64.urlsafe_b64encode(checksum + data).decode().rstrip("=")


FIELDS: dict[str, list[object]] = {
    "no id": [True, NOON_US, "zz", ID, 1],
    "an empty id": [True, NOON_US, "", ID, 1],
    "a number for an id": [True, NOON_US, 5, ID, 1],
    "too large a number": [True, 2**63, ID, ID, 1],
    "a time beyond the last": [True, 2**62, ID, ID, 1],
    "a time before the first": [False, -(2**62), ID, ID, 1],
    "a boolean for a number": [True, True, ID, ID, 1],
    "a fraction": [True, 1.5, ID, ID, 1],
    "no mark": [True, NOON_US, ID],
    "half a mark": [True, NOON_US, ID, ID],
    "a mark without an id": [True, NOON_US, ID, "zz", 1],
    "a boolean in the mark": [True, NOON_US, ID, ID, True],
    "too large a mark": [True, NOON_US, ID, ID, 2**70],
    "half a hole": [True, NOON_US, ID, ID, 1, 5],
    "a hole of text": [True, NOON_US, ID, ID, 1, "a", "b"],
    "too large a hole": [True, NOON_US, ID, ID, 1, 2**70, 2**65],
    "a direction that is a number": [1, NOON_US, ID, ID, 1],
    "nothing": [],
}
NO_LISTS = {
    "half of JSON": b"{",
    "no end of lists": b"[" * 100_000,
    "no UTF-8": b"\xff\xfe",
    "NaN": b"NaN",
    "an object": b'{"a": 1}',
    "text": b'"abc"',
    "too long a number": b"[" + b"9" * 5_000 + b"]",
    "null": b"null",
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_a_cursor_with_odd_fields_is_refused(storage: DuckDBStorage, fields: list[object]) -> None:
    storage.write_logs([log(number) for number in range(5)])
    cursor = packed(json.dumps([digest(QUERY), *fields]).encode())
    assert repr(storage.logs) == QUERY
    with pytest.raises(CursorError):
        storage.logs.page(2, cursor)
    with pytest.raises(CursorError):
        storage.logs.tail(cursor, timeout_s=0)


@pytest.mark.parametrize("data", NO_LISTS.values(), ids=NO_LISTS)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(CursorError):
        decode(QUERY, packed(data))
    with pytest.raises(CursorError):
        decode_position(packed(data))


@pytest.mark.parametrize(
    "fields", [["zz", 1], [ID, 2**70], [ID, 1, 2, 3], [ID, 1, "2"], [ID], [5, 5], [ID, "1"]]
)
def test_a_position_with_odd_fields_is_refused(fields: list[object]) -> None:
    with pytest.raises(CursorError):
        decode_position(packed(json.dumps(fields).encode()))


@pytest.mark.parametrize("order", ["longest", "most_logs"])
def test_a_number_that_no_fiber_has_leads_to_all_or_none(storage: DuckDBStorage, order: FiberOrder) -> None:
    storage.write_fiber(fiber(1))
    query = storage.fibers.order_by(order)
    for number, found in ((2**63 - 1, 1), (-(2**63), 0)):
        place = PagePosition(True, (number, UUID(int=0)), Watermark(UUID(int=1), 0))
        assert len(query.page(2, encode(repr(query), place)).items) == found


def test_what_is_encoded_is_decoded() -> None:
    for mark in (
        Watermark(None, -1),
        Watermark(UUID(int=1), 5),
        Watermark(UUID(int=1), 500, ((400, 300), (7, 1))),
    ):
        place = PagePosition(False, (-5, UUID(int=2**128 - 1)), mark)
        assert decode(QUERY, encode(QUERY, place)) == place
    assert decode_position(encode_position(Watermark(UUID(int=1), 5))) == Watermark(UUID(int=1), 5)
    assert decode_position("") == Watermark(None, -1)

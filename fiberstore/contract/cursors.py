"""Cursors: the place at which a page or a tail continues, as an opaque text.

A cursor is bound to its query by a digest of its conditions and its order, and it holds no secret.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from uuid import UUID

from fiberstore.errors import CursorError

_DIGEST_CHARS = 16
_CHECKSUM_BYTES = 4
_NUMBERS = 2**63


@dataclass(frozen=True, slots=True)
class Watermark:
    """A place in the order in which rows were committed: all that a snapshot has seen of it.

    Attributes:
        newest_id: Id of the newest row; None if there was none, or if all of its number was seen.
        number: Its number in the order then. On DuckDB, a row that changes moves to the end and gets a larger
            one; in a copy of the database it may have a smaller one.
        holes: Where rows were missing that may have arrived later, as first and last, counted back from the
            newest; on PostgreSQL only.
        cluster: Identity of the PostgreSQL cluster that has given the numbers; None elsewhere.
    """

    newest_id: UUID | None
    number: int
    holes: tuple[tuple[int, int], ...] = ()
    cluster: int | None = None


NOTHING_SEEN = Watermark(None, -1)


@dataclass(frozen=True, slots=True)
class PagePosition:
    """A place in the order of a query.

    Attributes:
        forward: Whether the rows behind it are asked for, or those before it.
        key: What the order is by, as an integer, and the id that decides between equal ones.
        mark: What the walk has seen of the order in which rows arrive.
        generation: What the query depends on beside its conditions: the active version. Empty if it does not.
    """

    forward: bool
    key: tuple[int, UUID]
    mark: Watermark
    generation: str = ""


def digest(query: str) -> str:
    """Return a short text that is the same for the same query only."""
    return sha256(query.encode()).hexdigest()[:_DIGEST_CHARS]


def encode(query: str, place: PagePosition) -> str:
    """Return a place in a query as a cursor."""
    number, id_ = place.key
    return _pack([f"{digest(query)}{place.generation}", place.forward, number, id_.hex, *_fields(place.mark)])


def decode(query: str, cursor: str) -> PagePosition:
    """Return the place that ``encode`` was given.

    Raises:
        CursorError: The cursor is damaged, or belongs to another query.
        TypeError: It is no text.
    """
    match _unpack(cursor):
        case [str(bound_to), bool(forward), number, str(id_), *mark]:
            if not bound_to.startswith(digest(query)):
                raise CursorError(
                    "the cursor belongs to another query; use it with the same conditions and the same order"
                )
            key = (_number(number), _id(id_))
            return PagePosition(forward, key, _mark(mark), bound_to[_DIGEST_CHARS:])
        case [None | str(), int(), *_]:
            raise CursorError(f"{cursor!r:.100} is the position of a tail, not the cursor of a page")
    raise CursorError(f"{cursor!r:.100} is no cursor of this release")


def encode_position(mark: Watermark) -> str:
    """Return a place without holes in the order of arrival as the position of a tail."""
    return "" if mark == NOTHING_SEEN else _pack(_fields(mark))


def decode_position(position: str) -> Watermark:
    """Return the mark that ``encode_position`` was given.

    Raises:
        CursorError: The position is damaged.
        TypeError: It is no text.
    """
    if position == "":
        return NOTHING_SEEN
    match _unpack(position):
        case [str(), bool(), *_]:
            raise CursorError(f"{position!r:.100} is the cursor of a page, not the position of a tail")
        case [None | str(), int(), *cluster] as fields if len(cluster) <= 1:
            return _mark(fields)
    raise CursorError(f"{position!r:.100} is no position of this release")


def _fields(mark: Watermark) -> list[str | int | None]:
    newest = None if mark.newest_id is None else mark.newest_id.hex
    cluster = [] if mark.cluster is None else [mark.cluster]
    return [newest, mark.number, *chain.from_iterable(mark.holes), *cluster]


def _mark(fields: Sequence[object]) -> Watermark:
    match fields:
        case [newest, number, *rest]:
            numbers = [_number(one) for one in rest]
            cluster = numbers.pop() if len(numbers) % 2 else None
            holes = tuple(zip(numbers[::2], numbers[1::2], strict=True))
            return Watermark(None if newest is None else _id(newest), _number(number), holes, cluster)
    raise CursorError("the cursor is of another release of fiberstore")


def _number(value: object) -> int:
    if type(value) is not int or not -_NUMBERS <= value < _NUMBERS:
        raise CursorError(f"the cursor holds {value!r:.100} for a number")
    return value


def _id(value: object) -> UUID:
    try:
        return UUID(str(value))
    except ValueError as error:
        raise CursorError(f"the cursor holds {value!r:.100} for an id") from error


def _pack(fields: list[str | int | None]) -> str:
    data = json.dumps(fields, separators=(",", ":")).encode()
    checksum = zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "big")
    return base64.urlsafe_b64encode(checksum + data).decode().rstrip("=")


def _unpack(text: str) -> object:
    if not isinstance(text, str):
        raise TypeError(f"expected a cursor, which is a str, got {text!r:.100}")
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        packed = b""
    checksum, data = packed[:_CHECKSUM_BYTES], packed[_CHECKSUM_BYTES:]
    if not data or zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "big") != checksum:
        raise CursorError(f"{text!r:.100} is no cursor, or not the whole of one")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CursorError(f"{text!r:.100} is no cursor") from error

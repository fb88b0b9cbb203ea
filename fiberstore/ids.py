"""Log ids: UUIDs of version 7 (RFC 9562) made from the time of the log line, not from the clock.

| bits | content |
|---|---|
| 48 | Unix time in ms |
| 4 | version, 7 |
| 10 | µs of that ms |
| 24 | position: keeps lines of one stamp in their order |
| 2 | variant, and |
| 40 | random bits, or a hash |

(2 bits of the position stand before the variant.) Ids sort like the log they come from, and neighbouring
lines lie together on disk. Times before 1970 have no UUIDv7; they all sort first.
"""

import hashlib
import itertools
import secrets
from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_POSITION_BITS = 24
_TAIL_BITS = 40

_counter = itertools.count(secrets.randbits(_POSITION_BITS - 1))


def new_log_id(timestamp: datetime) -> UUID:
    """Return a new id for a line logged at that time.

    Ids made for equal timestamps sort in the order they were made in this process, the first 8 million of it.

    Args:
        timestamp: Timezone-aware.
    """
    return _uuid7(timestamp, next(_counter), secrets.randbits(_TAIL_BITS))


def stable_log_id(source_id: str, position: int, raw_text: str, timestamp: datetime, twin: int = 0) -> UUID:
    """Return the id of one line of one source: the same whenever and wherever that line is read again.

    Lines of one source with equal timestamps sort by position (runs that cross a multiple of 2**24 apart).
    Two different lines get one id with a chance of 2**-40, and only if time and position (mod 2**24) agree.

    Args:
        source_id: Where the line was logged.
        position: Its number in the source, >= 0.
        raw_text: The line.
        timestamp: Timezone-aware.
        twin: Tells a file of the source from others that begin with the same line; 0 for the first of them.

    Raises:
        ValueError: The position is negative.
    """
    if position < 0:
        raise ValueError(f"position must not be negative, got {position}")
    digest = hashlib.blake2b(digest_size=_TAIL_BITS // 8)
    for part in (source_id.encode(), str(position).encode(), raw_text.encode()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    if twin:
        digest.update(b"%d" % twin)
    return _uuid7(timestamp, position, int.from_bytes(digest.digest(), "big"))


def stable_fiber_id(fiber_type: str, config_version: int, first_log_id: UUID, match: int = 0) -> UUID:
    """Return the id of the fiber that a line starts: the same whenever the same rules read the same line.

    It begins with the line's own time, so that fibers sort like the log too.

    Args:
        fiber_type: Type of the fiber.
        config_version: Version of the rules.
        first_log_id: Id of the line.
        match: Number of the match of a pattern that finds several fibers in one line; 0 for other patterns.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(config_version.to_bytes(8, "big"))
    digest.update(first_log_id.bytes)
    digest.update(fiber_type.encode())
    if match:
        digest.update(b"\0%d" % match)
    time_bits = first_log_id.int >> 66 << 66
    return UUID(int=time_bits | 2 << 62 | int.from_bytes(digest.digest(), "big") >> 2)


def key_hash(name: str, value: str) -> int:
    """Return the hash of a key, by which the table of keys is searched.

    It is the first 60 bits of the MD5 of ``<bytes of the name>:<name><value>``. ``sql.functions.KeyHash`` is
    the same in SQL.

    Returns:
        0 to 2**60 - 1.
    """
    encoded = name.encode()
    joined = b"%d:%b%b" % (len(encoded), encoded, value.encode())
    return int.from_bytes(hashlib.md5(joined, usedforsecurity=False).digest()[:8], "big") >> 4


def _uuid7(timestamp: datetime, position: int, tail: int) -> UUID:
    milliseconds, microseconds = divmod(max((timestamp - _EPOCH) // _MICROSECOND, 0), 1000)
    low = (microseconds << _POSITION_BITS | position & (1 << _POSITION_BITS) - 1) << _TAIL_BITS | tail
    rand_a, rand_b = divmod(low, 1 << 62)
    return UUID(int=milliseconds << 80 | 7 << 76 | rand_a << 64 | 2 << 62 | rand_b)

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
    return UUID(int=_uuid7(_epoch_us(timestamp), next(_counter), secrets.randbits(_TAIL_BITS)))


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
    return UUID(int=StableLogIds(source_id, twin).number(position, raw_text, _epoch_us(timestamp)))


class StableLogIds:
    """The ids that ``stable_log_id`` makes of the lines of one file.

    Args:
        source_id: Where they were logged.
        twin: Tells the file from others that begin with the same line.
    """

    def __init__(self, source_id: str, twin: int = 0) -> None:
        source = source_id.encode()
        self._head = len(source).to_bytes(8, "big") + source
        self._end = b"%d" % twin if twin else b""
        self._time_us, self._of_time = 0, _uuid7(0, 0, 0)

    def number(self, position: int, raw_text: str, time_us: int) -> int:
        """Return the 128 bits of the id of a line.

        Args:
            position: Its number in the source, >= 0.
            raw_text: The line.
            time_us: When it was logged, in µs since 1970.
        """
        if time_us != self._time_us:
            self._time_us, self._of_time = time_us, _uuid7(time_us, 0, 0)
        place, text = b"%d" % position, raw_text.encode()
        size, place_size = len(text).to_bytes(8, "big"), len(place).to_bytes(8, "big")
        content = b"".join((self._head, place_size, place, size, text, self._end))
        digest = hashlib.blake2b(content, digest_size=_TAIL_BITS // 8).digest()
        return self._of_time + _position_bits(position) + int.from_bytes(digest, "big")


def stable_fiber_id(fiber_type: str, config_version: int, first_log_id: UUID, match: int = 0) -> UUID:
    """Return the id of the fiber that a line starts: the same whenever the same rules read the same line.

    It begins with the line's own time, so that fibers sort like the log too.

    Args:
        fiber_type: Type of the fiber.
        config_version: Version of the rules.
        first_log_id: Id of the line.
        match: Number of the match of a pattern that finds several fibers in one line; 0 for other patterns.
    """
    return UUID(int=stable_fiber_number(fiber_type, config_version, first_log_id.int, match))


def stable_fiber_number(fiber_type: str, config_version: int, first_log_id: int, match: int = 0) -> int:
    """Return the 128 bits of the id that ``stable_fiber_id`` makes, given those of the log id."""
    content = b"%b%b%b%b" % (
        config_version.to_bytes(8, "big"),
        first_log_id.to_bytes(16, "big"),
        fiber_type.encode(),
        b"\0%d" % match if match else b"",
    )
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return first_log_id >> 66 << 66 | 2 << 62 | int.from_bytes(digest, "big") >> 2


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


def _epoch_us(timestamp: datetime) -> int:
    return (timestamp - _EPOCH) // _MICROSECOND


def _uuid7(time_us: int, position: int, tail: int) -> int:
    milliseconds, microseconds = divmod(max(time_us, 0), 1000)
    return (
        (milliseconds << 16 | 7 << 12 | microseconds << 2) << 64 | 2 << 62 | _position_bits(position) | tail
    )


def _position_bits(position: int) -> int:
    """Return the bits of a position: two stand before those of the variant, the others after them."""
    return (position >> 22 & 3) << 64 | (position & (1 << 22) - 1) << _TAIL_BITS

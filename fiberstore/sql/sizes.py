"""Sizes of a store, as retention goes by them."""

from dataclasses import dataclass

# About what a row takes beside the text of a log: its ids and times, and its places in indexes.
ROW_BYTES = 100


@dataclass(frozen=True, slots=True)
class StoreSize:
    """Size of a store on disk; zeros in memory.

    Attributes:
        file_bytes: All of it.
        used_bytes: What is in use.
        free_bytes: What new rows can take.
        block_bytes: The least that is taken at once.
    """

    file_bytes: int
    used_bytes: int
    free_bytes: int
    block_bytes: int

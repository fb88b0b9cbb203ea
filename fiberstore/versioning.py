"""The version of a configuration: a number that changes whenever its content does."""

import hashlib
from pathlib import Path


def config_version(content: bytes | str | Path) -> int:
    """Return the version of a configuration file: the first 8 bytes of the SHA-256 of its content.

    Args:
        content: The content (a ``str`` counts as its UTF-8 bytes), or a ``Path`` to the file that holds it.

    Returns:
        An unsigned 64-bit integer, read big-endian.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(content, Path):
        content = content.read_bytes()
    if isinstance(content, str):
        content = content.encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")

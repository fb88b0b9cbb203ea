"""Regular expressions of RE2, as conditions and redaction take them."""

import re

_ESCAPE = re.compile(r"\\Q.*?(?P<end>\\E|\Z)|\\.", re.DOTALL)  # RE2 refuses \Q and \C in brackets


def closed(pattern: str) -> str:
    r"""End the quotation (``\Q``) that lasts to the end of a pattern, so that more can follow."""
    ends = [escape["end"] for escape in _ESCAPE.finditer(pattern) if escape["end"] is not None]
    return rf"{pattern}\E" if ends and not ends[-1] else pattern


def has_bytes(pattern: str) -> bool:
    r"""Tell whether a pattern has ``\C``, which matches a byte of a character."""
    return any(escape[0] == r"\C" for escape in _ESCAPE.finditer(pattern))

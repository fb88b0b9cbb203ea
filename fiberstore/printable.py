"""Text from logs, made harmless to look at."""

import re

# C0 and C1 controls, line and paragraph separators, and what turns the direction of the text around.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str, keep: str = "") -> str:
    r"""Return the text with its control characters, but for those to keep, as ``\x1b`` and the like."""
    return _CONTROLS.sub(
        lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode(), text
    )

"""``logs.redact``: replacement of text that must not be stored."""

from functools import partial

import pytest

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.testing.examples import LONG_TEXT, everything, fiber, log, member, stored, uid
from fiberstore.testing.filters import where
from fiberstore.testing.invalid_arguments import check_refusal


def _redacted(storage: LifecycleStorage, text: str, pattern: str, *replacement: str) -> str:
    """Redact a store of one log with this text; return the text it has then."""
    storage.logs.delete()
    storage.write_logs([log(1, text=text)])
    changed = storage.logs.redact(pattern, *replacement)
    (row,) = storage.logs.iter_records()
    assert changed == (row.raw_text != text)
    return row.raw_text


class RedactionContract:
    """Replaced text, and refused patterns."""

    def test_redact_replaces_every_match_of_a_line(self, storage: LifecycleStorage) -> None:
        text = "password=a1 user=x password=b2\npassword=c3"
        assert _redacted(storage, text, r"password=\S+") == "[redacted] user=x [redacted]\n[redacted]"
        assert _redacted(storage, text, "=.", "=") == "password=1 user= password=2\npassword=3"
        assert _redacted(storage, "aaaa", "aa", "a") == "aa"
        assert _redacted(storage, "aaa", "a|b", "") == ""

    def test_redact_puts_the_replacement_there_as_it_is(self, storage: LifecycleStorage) -> None:
        for replacement in ("\\0", "\\1", "\\\\", "a\\", "$1", "${0}", "%s", "&", "'", "", "é\n🚀"):
            assert _redacted(storage, "a (secret) z", r"\((secret)\)", replacement) == f"a {replacement} z"

    def test_redact_knows_what_re2_knows(self, storage: LifecycleStorage) -> None:
        assert _redacted(storage, "Token: XYZ", "(?i)token: [a-z]+", "-") == "-"
        assert _redacted(storage, "Token", "token", "-") == "Token"
        assert _redacted(storage, "card 1234 5678", r"(?:\d{4} ?){2}", "*") == "card *"
        assert _redacted(storage, "a.b", r"\.", "") == "ab"
        assert _redacted(storage, "one\ntwo", "(?m)^two$", "2") == "one\n2"
        assert _redacted(storage, "one\ntwo", "(?s)e.t", "") == "onwo"
        assert _redacted(storage, "aaa b", "^a", "-") == "-aa b"
        assert _redacted(storage, "a.b.c", r"\Q.", "") == "abc"

    def test_redact_knows_empty_groups(self, storage: LifecycleStorage) -> None:
        for pattern in ("(?:)secret", "secret(?:)", "(?i:)secret", "(?:)(?m:)secret"):
            assert _redacted(storage, "secret", pattern, "-") == "-"
            assert _redacted(storage, "a secret", pattern, "-") == "a -"
            assert _redacted(storage, "secret b", pattern, "-") == "- b"

    def test_redact_counts_in_characters(self, storage: LifecycleStorage) -> None:
        assert _redacted(storage, "käse für 日本", "ä|ü", "_") == "k_se f_r 日本"
        assert _redacted(storage, "日本語", "..", "x") == "x語"
        assert _redacted(storage, "cafe\u0301 🚀", "[^a-z]", "") == "cafe"
        assert _redacted(storage, LONG_TEXT, "\u2026", "...") == LONG_TEXT.replace("\u2026", "...")

    def test_redact_changes_the_logs_of_the_query_only(self, storage: LifecycleStorage) -> None:
        storage.write_logs(
            [log(1, text="key 1"), log(2, text="key 2", source="db"), log(3, text="key 3"), log(4)]
        )
        storage.write_fiber(fiber(1))
        storage.write_memberships([member(3, 1), member(4, 1)])
        assert storage.logs.where(Logs.c.source_id == "db").redact(r"key \d", "no") == 1
        assert storage.logs.where(Logs.c.fibers.any(Fibers.c.fiber_type == "request")).redact("key", "k") == 1
        assert [row.raw_text for row in storage.logs.iter_records()] == ["key 1", "no", "k 3", "GET /"]

    def test_redact_may_ask_for_the_text_it_changes(self, storage: LifecycleStorage) -> None:
        storage.write_logs([log(1, text="a b"), log(2, text="a"), log(3, text="b")])
        assert storage.logs.where(Logs.c.raw_text.contains("b")).redact("a|b", "c") == 2
        assert [row.raw_text for row in storage.logs.iter_records()] == ["c c", "a", "c"]

    def test_redact_counts_the_logs_that_have_changed(self, storage: LifecycleStorage) -> None:
        storage.write_logs([log(1, text="x x"), log(2, text="y"), log(3, text="[redacted]"), log(4, text="")])
        assert storage.logs.redact("x") == 1
        assert storage.logs.redact("x") == 0
        assert storage.logs.redact(r"\[redacted\]|y") == 1
        assert storage.logs.where(Logs.c.log_id == uid(9)).redact("x") == 0

    def test_redact_changes_nothing_but_the_text(self, storage: LifecycleStorage) -> None:
        storage.write_logs([stored(1, 2**63, text="secret")])
        storage.write_fiber(fiber(1, attributes={"of": "secret"}))
        storage.write_memberships([member(1, 1)])
        storage.logs.pin()
        before = everything(storage)
        assert storage.logs.redact("secret", "-") == 1
        assert everything(storage) == ([stored(1, 2**63, text="-")], *before[1:])

    def test_redacted_text_is_not_found_any_more(self, storage: LifecycleStorage) -> None:
        storage.write_logs([log(1, text="the secret"), log(2, text="other")])
        storage.logs.redact("secret", "***")
        assert where(storage.logs, Logs.c.raw_text.contains("secret")) == []
        assert where(storage.logs, Logs.c.raw_text.regexp_match("s.cret")) == []
        assert where(storage.logs, Logs.c.raw_text == "the ***") == [1]

    def test_a_log_that_is_written_again_stays_redacted(self, storage: LifecycleStorage) -> None:
        storage.write_logs([log(1, text="secret")])
        storage.logs.redact("secret")
        assert storage.write_logs([log(1, text="secret")]) == 0
        assert [row.raw_text for row in storage.logs.iter_records()] == ["[redacted]"]

    @pytest.mark.parametrize(
        "pattern", ["", "a*", "^", "(a|)", "x?$", r"\b", r"x|\b", r"\w|\b", "a(?=b)", "(", "\0", "\ud800"]
    )
    def test_redact_refuses_no_pattern_or_one_that_is_everywhere(
        self, storage: LifecycleStorage, pattern: str
    ) -> None:
        storage.write_logs([log(1, text="aab")])
        with pytest.raises(ValueError, match=r"matches the empty text|no regular expression|NUL|surrogate"):
            storage.logs.redact(pattern)
        assert [row.raw_text for row in storage.logs.iter_records()] == ["aab"]

    def test_redact_refuses_what_no_log_can_hold(self, storage: LifecycleStorage) -> None:
        storage.write_logs([log(1, text="aab")])
        redact_by = partial(storage.logs.redact, "a")
        check_refusal(redact_by, ValueError, r"NUL|surrogate", "\0", "\ud800")
        check_refusal(redact_by, TypeError, "expected a str", None, 1, b"a")
        check_refusal(storage.logs.redact, TypeError, "expected a str", None, 1, b"a")
        assert [row.raw_text for row in storage.logs.iter_records()] == ["aab"]

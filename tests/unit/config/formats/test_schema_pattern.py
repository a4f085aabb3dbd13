"""Patterns of JSON Schemas are rewritten into patterns that match a part of the same texts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.config.formats.schema_pattern import MAX_SIZE, exact_pattern

ATOMS = st.sampled_from(
    ["a", "b", "[ab]", "[^b-z]", ".", r"\d", r"\w", r"\.", "é", "[a-c.]", "()", "(|a)"]
)
QUANTIFIERS = st.sampled_from(["", "*", "+", "?", "{2}", "{0,2}", "{1,}", "{0}"])


def _longer(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def repeated(pattern: str, quantifier: str) -> str:
        return f"(?:{pattern}){quantifier}"

    return (
        st.builds(repeated, inner, QUANTIFIERS)
        | st.builds("{}|{}".format, inner, inner)
        | st.builds("{}{}".format, inner, inner)
    )


PATTERNS = st.recursive(st.builds("{}{}".format, ATOMS, QUANTIFIERS), _longer, max_leaves=5)


@given(PATTERNS, st.text("ab.1é", max_size=6))
def test_a_text_matches_the_rewritten_pattern_if_the_whole_pattern_matches_it(
    pattern: str, text: str
) -> None:
    rewritten, reason = "", ""
    try:
        rewritten = exact_pattern(pattern)
    except ValueError as error:
        reason = str(error)
    if reason:
        assert "()" in pattern or "{0}" in pattern or reason.startswith("repeats the empty text")
        return
    if re.fullmatch(rewritten, text):
        assert re.fullmatch(pattern, text)
    elif text.isascii():  # \d and \w are those of ASCII
        assert not re.fullmatch(pattern, text)
    assert not set(re.sub(r"\[(\\.|[^\]])*\]", "", rewritten)) - set("()|*+")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^[A-Z]{2}$", "[A-Z][A-Z]"),
        ("a{1,3}", "[a]([a]([a]|)|)"),
        ("^(a|b)$", "[ab]"),
        ("a+?(?P<name>b)", "[a]+[b]"),
        (r"[ -~]", r"[ -!#-\[\]-~]"),
        (r"\d{2,}", "[0-9][0-9][0-9]*"),
        ("[^b-fd-xa\xa1-\U0010ffff]", r"[ -!#-\[\]-`y-~]"),
        (r"[\d-]", r"[\--\-0-9]".replace(r"\--\-", r"\-")),
    ],
)
def test_counts_and_anchors_are_written_as_groups(pattern: str, expected: str) -> None:
    assert exact_pattern(pattern) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        3, "", "a" * 257, "((", "(?=a)b", "(?i)a", "(?i:a)", r"a\b", r"(a)\1", r"\W", r"\x41", "a++",
        "a^b", "a$b", "(a|b$)c", 'say "hi"', r"\\", "\n", "[^ -\U0010ffff]", "[^\0-\U0010ffff]",
        "[]a]", "^$", f"a{{{MAX_SIZE + 1}}}", "((a{100}){100}){100}", "a(((){3000}){3000}){3000}",
        "(a{0}){3000}", "a{0}", f"[{''.join(map(chr, range(0x100, 0x1C0, 2)))}]{{200}}",
    ],
)  # fmt: skip
def test_other_patterns_are_refused(pattern: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        exact_pattern(pattern)

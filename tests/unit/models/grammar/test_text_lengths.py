"""All texts with a maximum length share rules, and each has exactly the texts of its lengths."""

import json
from typing import Any

import pytest
import torch

from tailorbird.models.grammar.matcher import AnswerMatcher
from tailorbird.models.grammar.text_lengths import NEAR_END
from tests.unit.models.grammar.test_compiler import COMPILER, END, schema_format, score_row, tokens

WORDS = "yes, a naïve 日本語 text with 12 words; " * 30


def follows(text: str, schema: dict[str, Any]) -> bool:
    """Return True if each token of the answer, with the end, is allowed after the earlier ones."""
    ids = [*tokens(text), END]
    matcher = AnswerMatcher(COMPILER.compile(schema_format(schema)))
    for position, token in enumerate(ids):
        scores = score_row()
        matcher.constrain(scores, ids[position - 1 : position] if position else [])
        if not torch.isfinite(scores[token]):
            return False
    matcher.require_usable()
    return True


@pytest.mark.parametrize(
    ("fewest", "most"),
    [(0, 33), (5, 200), (31, 64), (32, 33), (0, 1000), (33, 70), (0, 32)],
)
def test_a_text_follows_the_grammar_if_its_length_is_in_the_limits(fewest: int, most: int) -> None:
    schema = {"type": "string", "minLength": fewest, "maxLength": most}
    near = {
        count + change
        for count in (0, fewest, NEAR_END, 2 * NEAR_END, most)
        for change in (-1, 0, 1)
    }
    for length in sorted(near - {-1}):
        answer = json.dumps(WORDS[:length], ensure_ascii=False)
        assert follows(answer, schema) == (fewest <= length <= most), length


def test_an_added_length_adds_little_to_the_grammar() -> None:
    texts = {str(most): {"type": "string", "maxLength": most} for most in (200, 1000, 5000)}
    one, three = (
        COMPILER.compile(
            schema_format({"properties": {name: texts[name] for name in names}})
        ).compiled
        for names in (("200",), tuple(texts))
    )
    native = COMPILER.compile(
        schema_format({"type": "string", "minLength": 33, "maxLength": 200})
    ).compiled
    assert three.memory_size_bytes - one.memory_size_bytes < native.memory_size_bytes

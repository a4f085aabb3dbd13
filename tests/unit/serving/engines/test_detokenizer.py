"""Incremental detokenization gives the text of all tokens, at a cost that does not depend on the
answer's length."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from serving.engines.detokenizer import INCOMPLETE_TOKENS, IncrementalDetokenizer
from tests.unit import byte_level


def with_prefix_spaces() -> Any:
    """Return a tokenizer that writes spaces as `▁` and drops the first one of a text, as of Llama
    2."""
    words = ("▁the", "▁cat", "s", "at", "▁", "é", "日本", "</s>")
    vocabulary = {word: index for index, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="▁"))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


BYTES = byte_level.tokenizer()
TOKENIZERS = {"byte level": BYTES, "prefix spaces": with_prefix_spaces()}


def pieces_of(tokenizer: Any, pieces: Sequence[Sequence[int]]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [
        detokenizer.add(piece, ended=number == len(pieces))
        for number, piece in enumerate(pieces, start=1)
    ]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_the_joined_pieces_of_random_tokens_are_the_text_of_all_tokens(
    name: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[name]
    token = st.integers(min_value=0, max_value=len(tokenizer) - 1)
    pieces = data.draw(st.lists(st.lists(token, max_size=5), min_size=1, max_size=80))
    whole = tokenizer.decode(sum(pieces, list[int]()), skip_special_tokens=True)
    assert "".join(pieces_of(tokenizer, pieces)) == whole


@pytest.mark.parametrize("text", ["naïve façade", "🙂 👩🏽 skin"])
def test_a_piece_is_returned_as_soon_as_its_characters_are_complete(text: str) -> None:
    tokens = BYTES(text)["input_ids"]
    pieces = pieces_of(BYTES, [[token] for token in tokens] + [[]])
    assert pieces[-1] == ""
    for number in range(1, len(tokens)):
        so_far = BYTES.decode(tokens[:number])
        assert "".join(pieces[:number]) == so_far.rstrip("\ufffd")


def test_the_number_of_tokens_that_are_decoded_for_a_piece_is_bounded() -> None:
    repeated = BYTES("é")["input_ids"][-1]  # no valid text
    detokenizer = IncrementalDetokenizer(BYTES)
    for _ in range(200):
        detokenizer.add([repeated], ended=False)
        assert len(detokenizer._window) <= 2 * INCOMPLETE_TOKENS

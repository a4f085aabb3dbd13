"""Incremental detokenization gives the text of all tokens, at a cost that does not depend on the
answer's length."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from serving.engines.detokenizer import INCOMPLETE_TOKENS, IncrementalDetokenizer

CORPUS = (
    "the cat sat on the mat",
    "naïve façade über",
    "日本語の文字列",
    "🙂🙃 emoji 👩🏽 skin tone",
    "x = [1, 2]\n\treturn x",
)


def byte_level() -> Any:
    """Return a byte-level BPE tokenizer, as of GPT-2, Llama 3 or SmolLM2, with a token for each
    byte."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=340, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"]
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def with_prefix_spaces() -> Any:
    """Return a tokenizer that writes spaces as `▁` and drops the first one of a text, as of Llama
    2."""
    words = ("▁the", "▁cat", "s", "at", "▁", "é", "日本", "</s>")
    inner = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="▁")
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


TOKENIZERS = {"byte level": byte_level(), "prefix spaces": with_prefix_spaces()}


class Counting:
    """A tokenizer that counts the tokens that it decodes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.added_tokens_decoder = tokenizer.added_tokens_decoder
        self.num_decoded = 0

    def decode(self, tokens: list[int], **options: Any) -> str:
        self.num_decoded += len(tokens)
        return str(self._tokenizer.decode(tokens, **options))


def pieces_of(tokenizer: Any, pieces: Sequence[Sequence[int]]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [
        detokenizer.add(piece, ended=number == len(pieces))
        for number, piece in enumerate(pieces, start=1)
    ]


def whole(tokenizer: Any, pieces: Sequence[Sequence[int]]) -> str:
    return str(tokenizer.decode(sum(map(list, pieces), list[int]()), skip_special_tokens=True))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_the_joined_pieces_of_random_tokens_are_the_text_of_all_tokens(
    name: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[name]
    token = st.integers(min_value=0, max_value=len(tokenizer) - 1)
    pieces = data.draw(st.lists(st.lists(token, max_size=5), min_size=1, max_size=80))
    assert "".join(pieces_of(tokenizer, pieces)) == whole(tokenizer, pieces)


@pytest.mark.parametrize("text", CORPUS)
def test_a_piece_is_returned_as_soon_as_its_characters_are_complete(text: str) -> None:
    tokenizer = TOKENIZERS["byte level"]
    tokens = tokenizer(text)["input_ids"]
    pieces = pieces_of(tokenizer, [[token] for token in tokens] + [[]])
    assert pieces[-1] == ""
    assert all("\ufffd" not in piece for piece in pieces)
    for number in range(1, len(tokens)):
        so_far = tokenizer.decode(tokens[:number])
        assert "".join(pieces[:number]) == so_far.rstrip("\ufffd")


@pytest.mark.parametrize("token", ["a", "an invalid byte"])
def test_the_number_of_tokens_that_are_decoded_for_a_piece_is_bounded(token: str) -> None:
    tokenizer = TOKENIZERS["byte level"]
    [repeated] = tokenizer(token)["input_ids"] if token == "a" else tokenizer("é")["input_ids"][1:]
    counting = Counting(tokenizer)
    detokenizer = IncrementalDetokenizer(counting)
    for _ in range(1000):
        before = counting.num_decoded
        detokenizer.add([repeated], ended=False)
        assert counting.num_decoded - before <= 3 * INCOMPLETE_TOKENS + 1

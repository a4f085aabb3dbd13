"""One encoder for all: a real WordPiece tokenizer, small enough to be made here, and batches that lose no row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tailorbird.data.rows import DataError
from tailorbird.data.tokenize import collate, encode_texts, label_indices, labels_of, length_batches, load_tokenizer

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "acute", "pain", "chest", "##s", "fever")
PAD, UNK, CLS, SEP, ACUTE, PAIN, CHEST, PLURAL, FEVER = range(9)
token_lists_strategy = st.lists(st.lists(st.integers(1, 500), min_size=1, max_size=20), min_size=1, max_size=40)


def wordpiece(folder: Path, **special: str) -> Path:
    """A lower-casing WordPiece tokenizer of nine words, saved as a model's folder has it."""
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if "cls_token" in special:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(folder))
    return folder


BERT = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(wordpiece(tmp_path_factory.mktemp("bert"), **BERT))


def test_texts_become_tokens_between_the_special_ones(tokenizer: Any) -> None:
    encoded = encode_texts(["Acute chest pains", "fever", ""], tokenizer=tokenizer, max_length=16)
    assert encoded == [[CLS, ACUTE, CHEST, PAIN, PLURAL, SEP], [CLS, FEVER, SEP], [CLS, SEP]]


def test_a_long_text_is_cut_and_keeps_its_end_mark(tokenizer: Any) -> None:
    assert encode_texts(["pain " * 50], tokenizer=tokenizer, max_length=4) == [[CLS, PAIN, PAIN, SEP]]


def test_texts_are_encoded_alone_as_in_company(tokenizer: Any) -> None:
    texts = ["fever", "acute chest pains and fever", "xyz"]
    together = encode_texts(texts, tokenizer=tokenizer, max_length=8)
    assert together == [encode_texts([text], tokenizer=tokenizer, max_length=8)[0] for text in texts]


def test_no_texts_give_no_tokens(tokenizer: Any) -> None:
    assert encode_texts([], tokenizer=tokenizer, max_length=8) == []


def test_a_text_without_any_token_becomes_one_unknown_token(tmp_path: Path) -> None:
    bare = load_tokenizer(wordpiece(tmp_path, unk_token="[UNK]", pad_token="[PAD]"))
    assert encode_texts(["", "pain"], tokenizer=bare, max_length=8) == [[UNK], [PAIN]]


def test_a_tokenizer_without_padding_token_pads_with_one_it_has(tmp_path: Path) -> None:
    assert load_tokenizer(wordpiece(tmp_path, unk_token="[UNK]")).pad_token_id == UNK


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        load_tokenizer(tmp_path / "nothing")


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer that can be read"):
        load_tokenizer(tmp_path)


@given(token_lists=token_lists_strategy)
def test_a_batch_holds_each_token_once_and_masks_the_rest(token_lists: list[list[int]]) -> None:
    input_ids, mask = collate(token_lists, pad_id=0)
    width = max(len(tokens) for tokens in token_lists)
    assert input_ids.dtype == mask.dtype == torch.int64
    assert input_ids.shape == mask.shape == (len(token_lists), width)
    for row, tokens in enumerate(token_lists):
        assert input_ids[row].tolist() == tokens + [0] * (width - len(tokens))
        assert mask[row].tolist() == [1] * len(tokens) + [0] * (width - len(tokens))


def test_an_empty_batch_has_no_rows() -> None:
    input_ids, mask = collate([], pad_id=0)
    assert input_ids.shape == mask.shape == (0, 0)


@given(token_lists=token_lists_strategy, batch_size=st.integers(1, 12))
def test_batches_cover_each_row_once(token_lists: list[list[int]], batch_size: int) -> None:
    batches = length_batches([len(tokens) for tokens in token_lists], batch_size=batch_size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(token_lists)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    read_back: dict[int, list[int]] = {}
    for batch in batches:
        input_ids, mask = collate([token_lists[row] for row in batch], pad_id=0)
        for row, ids, seen in zip(batch.tolist(), input_ids, mask.bool(), strict=True):
            read_back[row] = ids[seen].tolist()
    assert [read_back[row] for row in range(len(token_lists))] == token_lists


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200), batch_size=st.integers(1, 16))
def test_batches_of_like_length_pad_little(lengths: list[int], batch_size: int) -> None:
    batches = length_batches(lengths, batch_size=batch_size)
    longest = [max(lengths[row] for row in batch) for batch in batches]
    padding = padded_tokens(lengths, batches)
    assert longest == sorted(longest, reverse=True)
    assert padding <= (batch_size - 1) * max(lengths)  # each batch pads at most down to where the next one starts


def test_sorted_batches_pad_a_tenth_of_what_batches_in_order_pad() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 12, size=2000).clip(1, 64)
    in_order = [np.arange(start, min(start + 32, 2000)) for start in range(0, 2000, 32)]
    assert padded_tokens(lengths, length_batches(lengths, batch_size=32)) < 0.1 * padded_tokens(lengths, in_order)


def test_a_batch_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        length_batches([3, 2], batch_size=0)


@given(labels=st.lists(st.text(max_size=5), min_size=1, max_size=40))
def test_labels_come_back_from_their_numbers(labels: list[str]) -> None:
    classes = labels_of(labels)
    numbers = label_indices(labels, classes=classes)
    assert numbers.dtype == np.int64
    assert [classes[number] for number in numbers] == labels
    assert list(classes) == sorted(set(labels))


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"\['c'\] are none of the 2 classes"):
        label_indices(["a", "c"], classes=("a", "b"))


def padded_tokens(lengths: Sequence[int] | np.ndarray, batches: list[np.ndarray]) -> int:
    return sum(
        max(lengths[row] for row in batch) * len(batch) - sum(lengths[row] for row in batch) for batch in batches
    )

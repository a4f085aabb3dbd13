"""Tokenization with a small WordPiece tokenizer, and class indices of labels."""

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
from tailorbird.data.tokenize import collate, encode_texts, label_indices, labels_of, load_tokenizer

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "acute", "pain", "chest", "##s", "fever")
PAD, UNK, CLS, SEP, ACUTE, PAIN, CHEST, PLURAL, FEVER = range(9)
token_lists_strategy = st.lists(
    st.lists(st.integers(1, 500), min_size=1, max_size=20), min_size=1, max_size=40
)


def wordpiece(folder: Path, **special: str) -> Path:
    """Save a lower-casing WordPiece tokenizer with nine words in the format of a model folder."""
    tokenizer = Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
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


def test_texts_are_encoded_with_special_tokens_and_truncated_before_the_end_token(
    tokenizer: Any,
) -> None:
    texts = ["Acute chest pains", "fever", "", "pain " * 50]
    assert encode_texts(texts, tokenizer=tokenizer, max_length=6) == [
        [CLS, ACUTE, CHEST, PAIN, PLURAL, SEP],
        [CLS, FEVER, SEP],
        [CLS, SEP],
        [CLS, PAIN, PAIN, PAIN, PAIN, SEP],
    ]
    assert encode_texts([], tokenizer=tokenizer, max_length=8) == []


def test_a_prompt_is_put_before_each_text_and_is_not_truncated(tokenizer: Any) -> None:
    encoded = encode_texts(
        ["pain " * 50, ""], tokenizer=tokenizer, max_length=5, prompt="acute chest "
    )
    assert encoded == [[CLS, ACUTE, CHEST, PAIN, SEP], [CLS, ACUTE, CHEST, SEP]]


def test_a_text_without_any_token_becomes_one_unknown_token(tmp_path: Path) -> None:
    bare = load_tokenizer(wordpiece(tmp_path, unk_token="[UNK]", pad_token="[PAD]"))
    assert encode_texts(["", "pain"], tokenizer=bare, max_length=8) == [[UNK], [PAIN]]


def test_a_tokenizer_without_a_padding_token_uses_another_special_token(tmp_path: Path) -> None:
    assert load_tokenizer(wordpiece(tmp_path, unk_token="[UNK]")).pad_token_id == UNK


@pytest.mark.parametrize("name", ["nothing", "."])
def test_a_folder_without_a_tokenizer_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        load_tokenizer(tmp_path / name)


@given(token_lists=token_lists_strategy)
def test_a_batch_contains_each_token_once_and_has_a_mask_if_it_has_padding(
    token_lists: list[list[int]],
) -> None:
    input_ids, mask = collate(token_lists, pad_id=0)
    width = max(len(tokens) for tokens in token_lists)
    assert (mask is None) == all(len(tokens) == width for tokens in token_lists)
    mask = torch.ones_like(input_ids) if mask is None else mask
    for row, tokens in enumerate(token_lists):
        assert input_ids[row].tolist() == tokens + [0] * (width - len(tokens))
        assert mask[row].tolist() == [1] * len(tokens) + [0] * (width - len(tokens))


@given(labels=st.lists(st.text(max_size=5), min_size=1, max_size=40))
def test_class_indices_map_back_to_labels(labels: list[str]) -> None:
    classes = labels_of(labels)
    numbers = label_indices(labels, classes=classes)
    assert numbers.dtype == np.int64
    assert [classes[number] for number in numbers] == labels
    assert list(classes) == sorted(set(labels))
    with pytest.raises(DataError):
        label_indices([*labels, "another"], classes=classes)

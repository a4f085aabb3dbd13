"""Last in the way of the data: texts to tokens, labels to numbers; the same code trains, evaluates and serves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tailorbird.data.rows import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a model's folder; nothing is fetched and no code of the folder is run.

    A tokenizer without a padding token pads with its end or unknown token: the mask hides it either way.
    Raises DataError when the folder holds none.
    """
    from transformers import AutoTokenizer  # slow to import, and not needed for the labels

    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the local folder of a model with its tokenizer files")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} holds no tokenizer that can be read ({error}); it needs tokenizer.json") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise DataError(f"the tokenizer in {folder} has no padding, end or unknown token; add one to its configuration")
    return tokenizer


def encode_texts(texts: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut at `max_length`, not padded, none empty."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, return_attention_mask=False, return_token_type_ids=False
    )
    unknown = tokenizer.pad_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    return [list(tokens) or [unknown] for tokens in encoded["input_ids"]]  # a mean over no token is not a number


def collate(token_lists: Sequence[Sequence[int]], *, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask), both torch int64 [B, T], T the longest of the batch; padding is on the right."""
    lengths = np.fromiter((len(tokens) for tokens in token_lists), dtype=np.int64, count=len(token_lists))
    width = int(lengths.max(initial=0))
    mask = np.arange(width)[None, :] < lengths[:, None]
    input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    input_ids[mask] = np.fromiter((token for tokens in token_lists for token in tokens), np.int64, int(lengths.sum()))
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64))


def length_batches(lengths: Sequence[int] | np.ndarray, *, batch_size: int) -> list[np.ndarray]:
    """Row indices, int64, in batches of like length, the longest first (what does not fit in memory fails at once).

    Each row stands in one batch; every batch but the last has `batch_size` rows.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def labels_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes: every label once, sorted; a label's number is its place here."""
    return tuple(sorted(set(labels)))


def label_indices(labels: Sequence[str], *, classes: Sequence[str]) -> np.ndarray:
    """Number of each label, int64 [N]; raises DataError for a label that is no class."""
    place = {label: index for index, label in enumerate(classes)}
    unknown = sorted({label for label in labels if label not in place})
    if unknown:
        raise DataError(f"labels {unknown[:5]} are none of the {len(place)} classes; train on rows that show them")
    return np.fromiter((place[label] for label in labels), dtype=np.int64, count=len(labels))

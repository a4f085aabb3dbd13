"""Tokenization and class indices, shared by training, evaluation and serving."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tailorbird.data.rows import DataError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in a model's folder, without downloads and without running code from the
    folder.

    A tokenizer without a padding token uses its end-of-sequence or unknown token, which the mask
    excludes. Raises DataError if the folder has no tokenizer.
    """
    from transformers import AutoTokenizer  # slow to import

    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; give the local folder of a model with its tokenizer files"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"cannot read a tokenizer in {folder} ({error}); the folder must contain tokenizer.json"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise DataError(
            f"the tokenizer in {folder} has no padding, end or unknown token; add one to its "
            "configuration"
        )
    return tokenizer


def encode_texts(
    texts: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase", max_length: int, prompt: str = ""
) -> list[list[int]]:
    """Return the token ids of each text with special tokens, truncated to `max_length`; at least
    one per text.

    `prompt` is put before each text.
    """
    if not texts:
        return []
    encoded = tokenizer(
        [f"{prompt}{text}" for text in texts],
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    unknown = tokenizer.unk_token_id
    if unknown is None:
        unknown = tokenizer.pad_token_id
    # The mean over zero tokens would be NaN.
    return [list(tokens) or [unknown] for tokens in encoded["input_ids"]]


def collate(
    token_lists: Sequence[Sequence[int]], *, pad_id: int, device: Any = "cpu"
) -> tuple["torch.Tensor", "torch.Tensor | None"]:
    """Return (input_ids, attention_mask), torch int64 [B, T] on the device, padded on the right to
    the longest row.

    The mask is None if there is no padding.
    """
    lengths = np.fromiter(map(len, token_lists), dtype=np.int64, count=len(token_lists))
    width = int(lengths.max(initial=0))
    mask = np.arange(width)[None, :] < lengths[:, None]
    input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    input_ids[mask] = np.fromiter(chain.from_iterable(token_lists), np.int64, int(lengths.sum()))
    if mask.all():
        return to_device(input_ids, device), None
    return to_device(input_ids, device), to_device(mask.astype(np.int64), device)


def to_device(values: np.ndarray, device: Any) -> "torch.Tensor":
    """Return an array as a tensor on a device. A copy to a GPU does not wait for the GPU's earlier
    work."""
    import torch  # imported here, since data preparation does not need it

    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def labels_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the classes, which are the sorted distinct labels. A class index is a position in this
    tuple."""
    return tuple(sorted(set(labels)))


def label_indices(labels: Sequence[str], *, classes: Sequence[str]) -> np.ndarray:
    """Return the class index of each label, int64 [N]; raise DataError for unknown labels."""
    indices = {label: index for index, label in enumerate(classes)}
    unknown = sorted({label for label in labels if label not in indices})
    if unknown:
        raise DataError(
            f"labels {unknown[:5]} are not among the {len(indices)} classes; add training rows "
            "with them"
        )
    return np.fromiter((indices[label] for label in labels), dtype=np.int64, count=len(labels))

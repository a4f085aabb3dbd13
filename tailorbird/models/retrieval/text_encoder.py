"""A pretrained encoder whose embeddings find training rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from tailorbird.config.base import digest
from tailorbird.data.tokenize import encode_texts, load_tokenizer
from tailorbird.models.classifier import Classifier, embed_rows, zero_head
from tailorbird.models.errors import ModelError
from tailorbird.models.pooling.declared import read_pooling
from tailorbird.models.pretrained import default_device, load_encoder
from tailorbird.registry.versions import PinnedEncoder
from tailorbird.storage.node_cache import local_copy, sha256_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEXT_TOKENS = 128  # that are embedded, if the encoder accepts as many
PROBE = "a text that every encoder can embed"
_in_memory: WeakValueDictionary[tuple[PinnedEncoder, str], "TextEncoder"] = WeakValueDictionary()
"""Encoders that are in use, by pin and device."""


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A pretrained encoder and its tokenizer."""

    pinned: PinnedEncoder
    model: Classifier = field(repr=False)  # its head is not used
    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    max_length: int

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the embeddings of texts with length 1, [N, D]; zeros for a blank text.

        The last digits depend on the other texts, with which a text is padded.
        """
        tokens = encode_texts(
            texts,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            prompt=self.model.pooling.prompt,
        )
        embeddings = embed_rows(self.model, tokens, pad_id=int(self.tokenizer.pad_token_id))
        embeddings[[not text.strip() for text in texts]] = 0
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return np.asarray(embeddings / np.maximum(lengths, np.finfo(np.float32).tiny))


def checked_files(pinned: PinnedEncoder) -> Path:
    """Return the node's copy of an encoder's files. A corrupt copy is downloaded again.

    Raises StorageError if the files are missing, and ModelError if they have another digest.
    """

    def sha256(folder: Path) -> str:
        return digest(sha256_files(folder.as_uri()))

    folder = local_copy(pinned.uri, is_intact=lambda copy: sha256(copy) == pinned.sha256)
    actual = sha256(folder)
    if actual != pinned.sha256:
        raise ModelError(
            f"the retrieval encoder {pinned.uri} has the digest {actual[:12]}, but the model "
            f"requires {pinned.sha256[:12]}; restore its files, or run the recipe again"
        )
    return folder


def load_text_encoder(pinned: PinnedEncoder, *, device: str | None = None) -> TextEncoder:
    """Load an encoder for retrieval, downloaded once per node. Versions with the same encoder share
    its memory.

    Raises ModelError if it cannot embed a text, DataError if it has no tokenizer, and the errors of
    `checked_files` and `read_pooling`.
    """
    device = device or default_device()
    if (known := _in_memory.get((pinned, device))) is not None:
        return known
    folder = checked_files(pinned)
    encoder: Any = load_encoder(folder, dtype=getattr(torch, pinned.dtype))
    pooling = read_pooling(folder.as_uri(), purpose="retrieval")
    model = Classifier(encoder, zero_head(int(encoder.config.hidden_size), 1), pooling=pooling)
    longest = int(getattr(encoder.config, "max_position_embeddings", None) or MAX_TEXT_TOKENS)
    loaded = TextEncoder(
        pinned,
        model=model.to(device).eval().requires_grad_(False),
        tokenizer=load_tokenizer(folder),
        max_length=min(longest, MAX_TEXT_TOKENS),
    )
    try:
        [embedding] = loaded.embed([PROBE])
        if not abs(float(np.linalg.norm(embedding)) - 1) < 1e-3:
            raise ValueError("its embedding is zero or not finite")
    except Exception as error:  # models that are no text encoders raise various exceptions
        raise ModelError(
            f"the retrieval encoder {pinned.uri} cannot embed a text ({type(error).__name__}: "
            f"{error}); name a text encoder, or omit evaluation.retrieval_encoder"
        ) from None
    _in_memory[pinned, device] = loaded
    return loaded

"""A pretrained encoder whose embeddings find training rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tailorbird.config.base import digest
from tailorbird.data.tokenize import encode_texts
from tailorbird.models.classifier import Classifier, embed_rows, zero_head
from tailorbird.models.errors import ModelError
from tailorbird.models.pretrained import cast_parameters
from tailorbird.registry.pooling import Pooling
from tailorbird.registry.versions import PinnedEncoder
from tailorbird.storage.node_cache import local_copy, sha256_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEXT_TOKENS = 128  # that are embedded, if the encoder accepts as many
PROBE = "a text that every encoder can embed"


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A pretrained encoder and its tokenizer."""

    pinned: PinnedEncoder
    model: Classifier = field(repr=False)  # its head is not used
    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    max_length: int

    @property
    def width(self) -> int:
        """Number of values of an embedding."""
        return int(self.model.head.in_features)

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

    folder = local_copy(pinned.uri)
    actual = sha256(folder)
    if actual != pinned.sha256:
        folder = local_copy(pinned.uri, is_intact=lambda copy: sha256(copy) == pinned.sha256)
        actual = sha256(folder)
    if actual != pinned.sha256:
        raise ModelError(
            f"the retrieval encoder {pinned.uri} has the digest {actual[:12]}, but the model "
            f"requires {pinned.sha256[:12]}; restore its files, or run the recipe again"
        )
    return folder


def text_encoder(
    encoder: nn.Module,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    pinned: PinnedEncoder,
    pooling: Pooling,
    device: str,
) -> TextEncoder:
    """Return a pretrained model as an encoder; raise ModelError if it cannot embed a text."""
    config: Any = encoder.config
    encoder = cast_parameters(encoder, getattr(torch, pinned.dtype))
    model = Classifier(encoder, zero_head(int(config.hidden_size), 1), pooling=pooling)
    longest = int(getattr(config, "max_position_embeddings", None) or MAX_TEXT_TOKENS)
    result = TextEncoder(
        pinned,
        model=model.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        max_length=min(longest, MAX_TEXT_TOKENS),
    )
    try:
        [embedding] = result.embed([PROBE])
        if not abs(float(np.linalg.norm(embedding)) - 1) < 1e-3:
            raise ValueError("its embedding is zero or not finite")
    except Exception as error:  # models that are no text encoders raise various exceptions
        raise ModelError(
            f"the retrieval encoder {pinned.uri} cannot embed a text ({type(error).__name__}: "
            f"{error}); name a text encoder, or omit evaluation.retrieval_encoder"
        ) from None
    return result

"""Load registered versions from safetensors files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from tailorbird.data.tokenize import encode_texts, load_tokenizer
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.classifier import (
    ACTIVATIONS,
    Classifier,
    DenseHead,
    TokenIds,
    UnitLinear,
    logits_rows,
)
from tailorbird.models.devices import move_to_device
from tailorbird.models.errors import ModelError
from tailorbird.models.lora import load_adapter, merge_layers
from tailorbird.models.pretrained import (
    cast_parameters,
    default_device,
    inference_dtype,
    load_causal,
    load_encoder,
)
from tailorbird.models.retrieval.text_encoder import load_text_encoder
from tailorbird.registry import versions
from tailorbird.registry.kinds import KINDS, Kind
from tailorbird.registry.pooling import MEAN, Pooling
from tailorbird.registry.version_files import require_intact, version_faults
from tailorbird.registry.versions import (
    ModelVersion,
    PinnedVersion,
    Prompting,
    Retrieval,
    VersionConfig,
)
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.paths import is_version_uri

if TYPE_CHECKING:
    from tailorbird.models.bag_of_words import BagOfWords
    from tailorbird.models.retrieval.index import RetrievalIndex

Version = TypeVar("Version", bound=VersionConfig)


@dataclass(frozen=True)
class LoadedClassifier(Generic[Version]):
    """A classifier ready to predict, with the tokenizer and maximum length of its evaluation.

    Its logits are the sum of the logits of `model` and `bag`, of which one can be missing, and of
    the version's offsets.
    """

    model: Classifier | None  # None for a kind without an encoder
    tokenizer: PreTrainedTokenizerBase | None  # None without a model
    classes: tuple[str, ...]
    max_length: int
    version: Version
    bag: "BagOfWords | None" = None  # for kinds with a bag of words

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts for `model`, after the prompt of the version."""
        assert self.tokenizer is not None  # a classifier with a model has a tokenizer
        prompt = self.version.pooling.prompt
        return encode_texts(
            texts, tokenizer=self.tokenizer, max_length=self.max_length, prompt=prompt
        )

    def logits(
        self,
        texts: Sequence[str],
        *,
        batch_size: int | None = None,
        tokens: TokenIds | None = None,
    ) -> np.ndarray:
        """Return the logits [N, L] of texts, by which the version decides. Evaluation and serving
        share this function.

        `batch_size` is the maximum number of rows of a forward pass. By default, the passes suit
        the model's device. `tokens` are the tokens of the texts, if they are known.
        """
        logits = self.unshifted_logits(texts, batch_size=batch_size, tokens=tokens)
        if not self.version.offsets:
            return logits
        return np.asarray(logits + np.asarray(self.version.offsets, dtype=logits.dtype))

    def unshifted_logits(
        self,
        texts: Sequence[str],
        *,
        batch_size: int | None = None,
        tokens: TokenIds | None = None,
    ) -> np.ndarray:
        """Return the logits [N, L] of texts without the version's offsets."""
        logits = np.zeros((len(texts), len(self.classes)), dtype=np.float32)
        if self.model is not None and self.tokenizer is not None:
            if tokens is None:
                tokens = self.encode(texts)
            pad_id = int(self.tokenizer.pad_token_id)
            logits += logits_rows(self.model, tokens, pad_id=pad_id, batch_size=batch_size)
        if self.bag is not None:
            logits += self.bag.logits(texts)
        return logits


@dataclass(frozen=True)
class LoadedChat(Generic[Version]):
    """A chat version ready to answer."""

    model: ChatModel | None
    """None for the kind `nearest`, and for an engine that loads the weights itself."""
    tokenizer: Any  # that of transformers; None for the kind `nearest`
    prompting: Prompting
    version: Version
    index: "RetrievalIndex | None" = None  # for a prompting with retrieval

    @property
    def lm(self) -> Any:
        """The causal language model of transformers."""
        assert self.model is not None  # the caller has checked the kind
        return self.model.lm


def load_weights(
    folder: Path,
    *,
    encoder: nn.Module,
    kind: Kind,
    dtype: torch.dtype | None = torch.float32,
    pooling: Pooling = MEAN,
) -> Classifier:
    """Load a version's head, and its adapter or encoder weights by kind, into the pretrained
    encoder.

    The result is in `dtype`, with a head in fp32. None keeps the dtype of each weight, and does not
    merge an adapter. The encoder may share its memory with another model or a file. Raises
    ModelError if a weight is missing or the weights belong to another encoder.
    """
    head = load_head(folder, kind=kind)
    with weight_errors(folder):
        if KINDS[kind].base == "changed":
            encoder.load_state_dict(_tensors(folder / "encoder.safetensors"), assign=True)
        encoder = _adapted(encoder, folder, kind=kind, dtype=dtype)
    return Classifier(encoder, head, pooling=pooling)


def _adapted(model: nn.Module, folder: Path, *, kind: Kind, dtype: torch.dtype | None) -> nn.Module:
    """Return a model with the version's adapter, if it has one, merged and in `dtype` unless that
    is None."""
    if KINDS[kind].base == "adapter":
        model = load_adapter(model, folder / "adapter")
        if dtype is not None:
            return merge_layers(model, dtype=dtype, device="cpu")
    return model if dtype is None else cast_parameters(model, dtype)


def load_head(folder: Path, *, kind: Kind) -> nn.Linear:
    """Load a version's linear head, which maps [D] to [L]."""
    state = _tensors(folder / "head.safetensors")
    num_classes, num_features = state["weight"].shape
    head_class = UnitLinear if KINDS[kind].reads_unit_embeddings else nn.Linear
    head = head_class(num_features, num_classes)
    for activation in ACTIVATIONS:
        if f"{activation}.weight" in state:
            head = DenseHead(nn.Linear(num_features, num_features), head, activation)
    head.load_state_dict(state)
    return head


def load_bag_of_words(folder: Path, *, kind: Kind) -> "BagOfWords | None":
    """Load a version's bag of words; return None for a kind without one. Raises ModelError."""
    if not KINDS[kind].has_bag:
        return None
    from tailorbird.models.bag_of_words import load_bag  # scikit-learn is slow to import

    return load_bag(folder)


def load_retrieval_index(
    folder: Path, *, retrieval: Retrieval | None, device: str | None = None
) -> "RetrievalIndex | None":
    """Load a version's index of training rows and its encoder, if it has one; return None without
    retrieval.

    Raises the errors of `load_index` and `load_text_encoder`.
    """
    if retrieval is None:
        return None
    from tailorbird.models.retrieval.files import load_index  # scikit-learn is slow to import

    encoder = None
    if retrieval.encoder is not None:
        encoder = load_text_encoder(retrieval.encoder, device=device)
    return load_index(folder, retrieval=retrieval, encoder=encoder)


def load_chat_weights(
    folder: Path, *, lm: nn.Module, kind: Kind, dtype: torch.dtype | None = torch.float32
) -> ChatModel:
    """Load a chat version's weights, if any, into the pretrained model; see `load_weights`. Raises
    ModelError."""
    with weight_errors(folder):
        if KINDS[kind].base == "changed":
            load_causal_state(lm, _tensors(folder / "model.safetensors"))
        return ChatModel(_adapted(lm, folder, kind=kind, dtype=dtype))


def load_chat(folder: Path, *, base: Path, kind: Kind, dtype: torch.dtype) -> ChatModel:
    """Load a chat version from its local folder and that of its base model on the CPU, in `dtype`.
    Raises ModelError.

    Base weights that are merged or replaced are mapped in their stored dtype, and the others are
    loaded in `dtype`, so there is no copy in fp32. In both cases, transformers computes buffers in
    fp32.
    """
    has_weights = KINDS[kind].base != "unchanged"
    lm = load_causal(base, dtype=None if has_weights else dtype)
    return load_chat_weights(folder, lm=lm, kind=kind, dtype=dtype)


def load_pretrained_chat(base: Path) -> ChatModel:
    """Load a pretrained language model on the device and in the dtype of this process; see
    `load_chat`."""
    model = load_chat(base, base=base, kind="zero_shot", dtype=inference_dtype())
    return _ready(model, default_device())


def _ready(model: ChatModel, device: str) -> ChatModel:
    """Move a model to a device for inference (see `move_to_device`), and return it."""
    move_to_device(model, device)
    return model.eval().requires_grad_(False)


@contextmanager
def weight_errors(folder: Path) -> Iterator[None]:
    """Raise ModelError if torch or safetensors rejects the weights in a folder."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        first = " ".join(str(error).split("\n\t")[:2])  # torch's message lists every weight
        raise ModelError(f"the weights in {folder} do not fit their base model: {first}") from None


def load_causal_state(lm: Any, state: dict[str, torch.Tensor]) -> None:
    """Set all parameters of a causal language model without copying. Tied parameters are stored
    under one name.

    Raises RuntimeError, as torch does, for a missing or unexpected parameter, or one of another
    shape.
    """
    known = {name for name, _ in lm.named_parameters()}
    if names := sorted(known ^ set(state)):
        raise RuntimeError(
            f"{len(names)} weights are missing or unexpected, for example {names[0]}"
        )
    lm.load_state_dict(state, strict=False, assign=True)  # strict would require tied names
    lm.tie_weights()


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise ModelError(f"{file} does not exist; weights are read from safetensors files only")
    return dict(load_file(file))


AnyLoaded = LoadedClassifier[Version] | LoadedChat[Version]
PretrainedModels = dict[tuple[str, str], ChatModel]
"""Pretrained language models by URI and dtype."""


def load_version(version: ModelVersion, *, device: str | None = None) -> AnyLoaded[ModelVersion]:
    """Download (once per node), check and load a registered version.

    Raises RegistryError if the version is incomplete or was changed, and ModelError if it cannot be
    loaded, or has no model of its own, because it is a hybrid or an endpoint answers for it.
    """
    return _load(checked_copy(version.pinned), version, device=device)


def load_artifact(
    uri: str,
    *,
    device: str | None = None,
    weights_device: str | None = None,
    pretrained: PretrainedModels | None = None,
) -> AnyLoaded[VersionConfig]:
    """Load a baseline, a candidate or a version from its URI.

    The files of a version are checked; see `checked_copy`. `weights_device` is that of the model's
    weights, if they are not on the device of the rest. Artifacts that use the same language model
    unchanged share its memory if they are loaded with the same `pretrained`, to which the model is
    added. Raises ModelError for a hybrid.
    """
    load = partial(_load, device=device, weights_device=weights_device, pretrained=pretrained)
    if is_version_uri(uri):
        version = versions.read_version(uri)
        return load(checked_copy(version.pinned), version)
    return load(local_copy(uri), versions.read_artifact_config(uri))


def _load(
    folder: Path,
    config: Version,
    *,
    device: str | None,
    weights_device: str | None = None,
    pretrained: PretrainedModels | None = None,
) -> AnyLoaded[Version]:
    if config.hybrid is not None:
        raise ModelError(f"{folder} is a hybrid of two versions; load its parts")
    if config.endpoint is not None:
        raise ModelError(
            f"{folder} has no model: {config.endpoint.url} answers for it; send it requests instead"
        )
    weights_device = weights_device or device or default_device()
    if config.prompting is None:
        return _load_classifier(folder, config, device=weights_device)
    index = load_retrieval_index(folder, retrieval=config.prompting.retrieval, device=device)
    if not config.spec.uses_base:
        return LoadedChat(
            model=None, tokenizer=None, prompting=config.prompting, version=config, index=index
        )

    base = local_copy(config.base_model)
    loaded: PretrainedModels = {}
    if pretrained is not None and config.spec.base == "unchanged":
        loaded = pretrained
    key = (config.base_model, config.dtype)
    if key not in loaded:
        model = load_chat(folder, base=base, kind=config.kind, dtype=getattr(torch, config.dtype))
        loaded[key] = _ready(model, weights_device)
    return LoadedChat(
        model=loaded[key],
        tokenizer=load_tokenizer(base),
        prompting=config.prompting,
        version=config,
        index=index,
    )


def _load_classifier(folder: Path, config: Version, *, device: str) -> LoadedClassifier[Version]:
    bag = load_bag_of_words(folder, kind=config.kind)
    model: Classifier | None = None
    tokenizer = None
    if config.spec.uses_base:
        base = local_copy(config.base_model)
        tokenizer = load_tokenizer(base)
        # The head is in fp32, as in evaluation, because a bfloat16 head changes the class of close
        # predictions.
        dtype = getattr(torch, config.dtype)
        encoder = load_encoder(base, dtype=dtype if config.spec.base == "unchanged" else None)
        model = load_weights(
            folder, encoder=encoder, kind=config.kind, dtype=dtype, pooling=config.pooling
        ).to(device)
        model.eval().requires_grad_(False)
    return LoadedClassifier(
        model=model,
        tokenizer=tokenizer,
        classes=config.classes,
        max_length=config.max_length,
        version=config,
        bag=bag,
    )


def checked_copy(version: PinnedVersion) -> Path:
    """Return the node's copy of a version, after a check of its manifest and of every file.

    A corrupt copy is downloaded again, because the files on S3 may be intact. Raises RegistryError
    if they are not.
    """

    def is_intact(folder: Path) -> bool:
        return not version_faults(version, folder=folder.as_uri())

    folder = local_copy(version.uri)
    if not is_intact(folder):
        folder = local_copy(version.uri, is_intact=is_intact)
        require_intact(version, folder=folder.as_uri())
    return folder

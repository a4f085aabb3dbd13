"""A staged model without its weights: what its configuration, tokenizer and the headers of its files say of it."""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailorbird import storage
from tailorbird.data.chat_template import conversation_tokens
from tailorbird.data.rows import DataError
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models.loading import ATTENTION_DROPOUT, without_pooler
from tailorbird.models.shape import ModelShape
from tailorbird.storage import s3

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALL_FILES = (".json", ".jinja", ".txt", ".model")
"""Endings of what lies beside the weights."""


class OutlineError(ValueError):
    """A model that transformers cannot make; the message says why."""


@dataclass(frozen=True)
class Outline:
    """A base model, by all of it but its weights."""

    uri: str
    kind: str
    """As transformers calls it."""
    is_causal: bool
    """Whether transformers makes a causal language model of it."""
    is_encoder_decoder: bool
    longest: int | None
    """As `longest_row`."""
    shape: ModelShape
    num_stored: int
    """Numbers in its safetensors."""
    template: str | None = None
    """Of a chat task, what is wrong with its chat template."""


def read_outline(uri: str, *, chat: bool, system: str | None = None) -> Outline:
    """Of the model in a folder, on S3 or disk; `system` is the message that a chat task's conversations begin with.

    Raises StorageError, DataError for a tokenizer that cannot be read, and OutlineError.
    """
    files = [file for file in storage.list_files(uri) if file.rpartition("/")[0] == uri]
    num_stored = sum(_numbers_in(file) for file in files if file.endswith(".safetensors"))
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        copy_small_files(files, Path(folder))
        config, is_causal, model = _without_weights(Path(folder), chat=chat, uri=uri)
        tokenizer, template = load_tokenizer(Path(folder)), None
    if chat:
        try:
            conversation_tokens((("user", "a"),), "b", tokenizer=tokenizer, system=system)
        except DataError as error:
            template = str(error)
    return Outline(
        uri=uri,
        kind=config.model_type,
        is_causal=is_causal,
        is_encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
        longest=longest_row(config, chat=chat),
        shape=shape_of(model),
        num_stored=num_stored,
        template=template,
    )


def longest_row(config: Any, *, chat: bool) -> int | None:
    """Tokens of a training row that a model takes at most, by its configuration; None where that does not say.

    In a chat's packed rows attention reaches back over a whole conversation: none may be longer than a sliding window.
    """
    if chat:
        config = config.get_text_config(decoder=True)
    limits = [getattr(config, "max_position_embeddings", None)]
    if chat and "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"]):
        limits.append(getattr(config, "sliding_window", None))
    return min((limit for limit in limits if limit), default=None)


def require_length(uri: str, *, max_length: int, chat: bool) -> None:
    """Raises DataError where `max_length` is more than the model in a folder, on S3 or disk, takes of a row."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        (Path(folder) / "config.json").write_bytes(storage.read_bytes(f"{uri}/config.json"))
        longest = longest_row(_config(Path(folder), uri=uri), chat=chat)
    if longest is not None and max_length > longest:
        raise DataError(
            f"data.max_length {max_length} is more than the {longest} tokens that a training row of {uri} may have; "
            f"set it to {longest} or less"
        )


def copy_small_files(files: Sequence[str], folder: Path) -> None:
    """Configuration and tokenizer of a model, of the URIs of its files, into a local folder."""
    for file in files:
        if file.endswith(SMALL_FILES):
            (folder / file.rpartition("/")[2]).write_bytes(storage.read_bytes(file))


def read_tokenizer(uri: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of the model in a folder, on S3 or disk; raises StorageError and DataError."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        copy_small_files([file for file in storage.list_files(uri) if file.rpartition("/")[0] == uri], Path(folder))
        return load_tokenizer(Path(folder))


def shape_of(model: Any) -> ModelShape:
    """A transformers model's sizes; its weights need not be there."""
    from torch import nn

    linear = [one for one in model.modules() if isinstance(one, nn.Linear)]
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    adapted = [one for one in linear if one is not output]  # PEFT's all-linear leaves the output out
    config = model.config
    hidden = int(config.hidden_size)
    dropouts = [getattr(config, name) for name in ATTENTION_DROPOUT if getattr(config, name, None) is not None]
    return ModelShape(
        num_parameters=sum(one.numel() for one in model.parameters()),
        num_linear=sum(one.weight.numel() for one in linear),
        num_linear_ends=sum(one.in_features + one.out_features for one in adapted),
        hidden=hidden,
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * hidden),
        num_layers=int(config.num_hidden_layers),
        num_heads=int(config.num_attention_heads),
        vocabulary=int(config.vocab_size),
        gated=any("gate" in name for name, _ in model.named_modules()),
        attention_dropout=float(dropouts[0]) if dropouts else 0.0,
    )


def _without_weights(folder: Path, *, chat: bool, uri: str) -> tuple[Any, bool, Any]:
    """Its configuration, whether it is a causal language model, and the model that a task trains, without memory."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = _config(folder, uri=uri)
    is_causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    maker = AutoModelForCausalLM if chat and is_causal else AutoModel
    with _explained(uri), torch.device("meta"):
        return config, is_causal, without_pooler(maker.from_config(config, trust_remote_code=False))


def _config(folder: Path, *, uri: str) -> Any:
    from transformers import AutoConfig

    with _explained(uri):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutlineError(
            f"{uri}: transformers makes no model of its config.json ({told}); name a model of a kind that it knows, "
            "without code of its own"
        ) from None


def _numbers_in(uri: str) -> int:
    """How many numbers a safetensors file holds, by its header: eight bytes that say how long it is, then JSON."""
    store, path = s3.filesystem(uri)
    with s3.explained(uri), store.open_input_file(path) as source:
        length = int.from_bytes(source.read(8), "little")
        try:
            header = json.loads(source.read(length))
        except ValueError:
            raise OutlineError(f"{uri} is no safetensors file; put the model's files there again") from None
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")

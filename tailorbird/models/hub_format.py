"""Write a version in the formats of transformers, PEFT and sentence-transformers, which load it
without Tailorbird."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from tailorbird.config.formats.response_format import ChoiceFormat, StructuredFormat, openai_format
from tailorbird.data.chat_template import with_system
from tailorbird.data.rows import messages_of
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models.classifier import Classifier
from tailorbird.models.errors import ModelError
from tailorbird.models.generation import greedy
from tailorbird.models.grammar.compiler import grammar_of
from tailorbird.models.loading import checked_copy, load_chat, load_weights
from tailorbird.models.lora import require_adapter
from tailorbird.models.pooling.declared import CHAIN, FLAGS, MODULES, PROMPTS
from tailorbird.models.pretrained import cast_parameters, load_causal, load_encoder
from tailorbird.registry.pooling import Pooling
from tailorbird.registry.versions import ModelVersion, Prompting
from tailorbird.storage.node_cache import is_license_file, local_copy

Library = Literal["transformers", "peft", "sentence-transformers"]
"""Library that loads the folder."""
BASE = "base"  # subfolder with the base model of an adapter
ADAPTER_CONFIG = "adapter_config.json"
PROMPTING = "prompting.json"
RESPONSE_FORMAT = "response_format.json"
GRAMMAR = "grammar.ebnf"
TYPES = "sentence_transformers.models"  # module of the types in `MODULES`
PROMPT = "classification"  # name of the prompt of a classifier


def write_hub_format(
    version: ModelVersion,
    folder: Path,
    *,
    merged: bool,
    encoder_only: bool = False,
    hub_base: str | None = None,
) -> Library:
    """Write a version to an existing local folder, and return the library that loads it.

    A chat model becomes a causal language model, or a LoRA adapter unless `merged` is true. With an
    adapter, the base model is written to `base/`, unless `hub_base`, its id on the Hub, is given. A
    classifier becomes the modules encoder, pooling and head of sentence-transformers, always merged
    and in fp32; its outputs are the logits, divided by the temperature, and its prompt is the
    default prompt. `encoder_only` omits the bag of words of a mixed classifier. The generation
    config of a chat model is that of the evaluation. Its response format is written as in requests,
    and as the grammar that constrained the evaluated answers. License files in the folder of the
    base model are copied.

    Raises ModelError for a version that these libraries cannot represent, and the errors of
    `checked_copy`.
    """
    require_exportable(version, encoder_only=encoder_only)
    source = checked_copy(version.pinned)
    base = local_copy(version.base_model)
    tokenizer = load_tokenizer(base)
    if version.task == "classification":
        model = load_weights(
            source, encoder=load_encoder(base), kind=version.kind, pooling=version.pooling
        )
        pooler = getattr(load_encoder(base, with_pooler=True), "pooler", None)
        _write_classifier(model, folder, version=version, pooler=pooler)
        library: Library = "sentence-transformers"
    elif version.spec.base == "adapter" and not merged:
        _write_adapter(
            source, base, folder, generation=_generation(version, tokenizer), hub_base=hub_base
        )
        library = "peft"
    else:
        lm = load_chat(
            source, base=base, kind=version.kind, dtype=getattr(torch, version.dtype)
        ).causal
        lm.generation_config = _generation(version, tokenizer)
        _save_model(lm, folder, dtype=getattr(torch, version.dtype))
        library = "transformers"
    tokenizer.save_pretrained(folder)
    if version.prompting is not None:
        _write_prompting(version.prompting, folder)
        if version.prompting.response_format is not None:
            _write_response_format(version.prompting.response_format, folder)
    for file in base.iterdir():
        if file.is_file() and is_license_file(file.name):
            shutil.copy(file, folder / file.name)
    return library


def require_exportable(version: ModelVersion, *, encoder_only: bool = False) -> None:
    """Raise ModelError with the reason if a version cannot be written in the format of another
    library."""
    if version.hybrid is not None:
        parts = " and ".join(part.uri for part in version.hybrid.parts)
        raise ModelError(f"{version.uri} is a hybrid of two versions; export its parts: {parts}")
    spec = version.spec
    if spec.export_fault is None or (spec.is_mixed and encoder_only):
        return
    remedy = "export another version (`tailorbird models RECIPE` lists them)"
    if spec.is_mixed:
        remedy = (
            "export its encoder and head alone with --encoder-only. That model was not evaluated"
        )
    raise ModelError(f"{version.uri} {spec.export_fault}; {remedy}")


def _write_classifier(
    model: Classifier, folder: Path, *, version: ModelVersion, pooler: Any
) -> None:
    """Write the encoder, and the modules that map its hidden states to logits."""
    encoder: Any = model.encoder
    if pooler is not None:  # unused, but without it transformers warns of missing weights
        encoder.pooler = pooler
    encoder.config.id2label = dict(enumerate(version.classes))
    encoder.config.label2id = {label: index for index, label in enumerate(version.classes)}
    _save_model(encoder, folder, dtype=torch.float32)
    limits = {"max_seq_length": version.max_length, "do_lower_case": False}
    _write_json(folder / "sentence_bert_config.json", limits)
    _write_modules(_decision_head(model.head, version), folder, pooling=version.pooling)


def _decision_head(head: nn.Linear, version: ModelVersion) -> dict[str, torch.Tensor]:
    """Return the weight and the bias of the head with offsets and temperature: its outputs are the
    logits by which the version decides.

    The offsets of a mixed classifier fit the mix, and not its encoder and head alone.
    """
    bias = head.bias.float()
    if version.offsets and not version.spec.is_mixed:
        bias = bias + torch.tensor(version.offsets)
    return {
        "linear.weight": head.weight.float() / version.temperature,
        "linear.bias": bias / version.temperature,
    }


def _write_modules(head: dict[str, torch.Tensor], folder: Path, *, pooling: Pooling) -> None:
    """Write the prompt, and the modules of sentence-transformers that map hidden states to
    logits."""
    num_classes, num_features = head["linear.weight"].shape
    flags = {flag: mode == pooling.mode for flag, mode in FLAGS.items()}
    dense = {
        "in_features": num_features,
        "out_features": num_classes,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    configs: dict[str, dict[str, object]] = {
        "Pooling": {
            "word_embedding_dimension": num_features,
            "include_prompt": not pooling.num_skipped,
            **flags,
        },
        "Normalize": {},
        "Dense": dense,
    }
    if not pooling.normalize:
        del configs["Normalize"]
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{TYPES}.{CHAIN[0]}"}]
    for index, (name, config) in enumerate(configs.items(), start=1):
        path = f"{index}_{name}"
        modules.append({"idx": index, "name": str(index), "path": path, "type": f"{TYPES}.{name}"})
        _write_json(folder / path / "config.json", config)
    _write_json(folder / MODULES, modules)
    save_file(head, folder / path / "model.safetensors")

    prompts: dict[str, object] = {"prompts": {}, "default_prompt_name": None}
    if pooling.prompt:
        prompts = {"prompts": {PROMPT: pooling.prompt}, "default_prompt_name": PROMPT}
    _write_json(folder / PROMPTS, prompts)


def _generation(version: ModelVersion, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the evaluation's generation config; that of the base model can have, for example, a
    repetition penalty."""
    assert version.prompting is not None  # required for chat versions
    end_id: Any = tokenizer.eos_token_id
    return greedy(max_new_tokens=version.prompting.max_new_tokens, end_id=end_id)


def _write_adapter(
    source: Path, base: Path, folder: Path, *, generation: Any, hub_base: str | None
) -> None:
    """Write PEFT's files of an adapter, the generation config, and the base model unless that is on
    the Hub."""
    require_adapter(source / "adapter")
    shutil.copytree(source / "adapter", folder, dirs_exist_ok=True)
    if hub_base is None:
        lm = load_causal(base, dtype=None)
        lm.generation_config = generation
        _save_model(lm, folder / BASE)
        load_tokenizer(base).save_pretrained(folder / BASE)
    generation.save_pretrained(folder)
    config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    config["base_model_name_or_path"], _, revision = (hub_base or BASE).partition("@")
    config["revision"] = revision or None
    _write_json(folder / ADAPTER_CONFIG, config)


def _save_model(model: Any, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a transformers model, cast to `dtype` if it is given."""
    if dtype is not None:
        model = cast_parameters(model, dtype)
        model.config.dtype = dtype
    model.save_pretrained(folder)


def _write_prompting(prompting: Prompting, folder: Path) -> None:
    """Write the messages that the evaluation put before each conversation, and its limit of new
    tokens."""
    turns = with_system((), system=prompting.system, shots=prompting.shots)
    content = {"messages": messages_of(turns), "max_new_tokens": prompting.max_new_tokens}
    _write_json(folder / PROMPTING, content)


def _write_response_format(format: StructuredFormat, folder: Path) -> None:
    """Write a response format as in requests, and its grammar in the EBNF of xgrammar and vLLM."""
    if isinstance(format, ChoiceFormat):
        content = format.model_dump(mode="json")
    else:
        content = openai_format(format)
    _write_json(folder / RESPONSE_FORMAT, content)
    (folder / GRAMMAR).write_text(str(grammar_of(format)), encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

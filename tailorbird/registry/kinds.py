"""The kinds of models, and what the code for all kinds needs to know about each."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

Kind = Literal[
    "zero_shot",
    "few_shot",
    "retrieved",
    "nearest",
    "imported",
    "centroid",
    "bag_of_words",
    "probe",
    "probe_bag",
    "lora",
    "lora_bag",
    "full",
    "full_bag",
    "hybrid",
    "endpoint_zero_shot",
    "endpoint_few_shot",
    "endpoint_retrieved",
]
Base = Literal["none", "unchanged", "adapter", "changed", "parts"]
"""How a model uses its base model: not at all, with its own weights, with a LoRA adapter, with
changed weights, or through its parts, which are versions."""


@dataclass(frozen=True)
class KindSpec:
    """The properties of a kind of model. Conditions on kinds read them instead of the name of the
    kind."""

    title: str  # name for readers
    base: Base
    _: KW_ONLY
    is_baseline: bool = True  # needs no fine-tuning
    learns_from_rows: bool = True  # False if it learns at most a temperature
    is_always_tested: bool = False  # predicts the test rows in any case, because it is cheap
    calls_endpoint: bool = False  # has no weights, but a prompt for an external endpoint
    has_bag: bool = False  # adds the logits of a bag of words
    has_index: bool = False  # stores an index of training rows
    has_shots: bool = False  # stores training rows as examples in its prompt
    reads_unit_embeddings: bool = False  # has a head for embeddings of length 1
    mixed: Kind | None = None  # kind of this classifier after it is mixed with a bag of words
    architecture: str | None = None  # in the model card; None for that of the task
    export_fault: str | None = None  # why other libraries cannot load it

    @property
    def uses_base(self) -> bool:
        """True if the model, or a part of it, computes with its base model."""
        return self.base != "none"

    @property
    def shares_base(self) -> bool:
        """True if versions of this kind can share the base model in memory."""
        return self.base in ("unchanged", "adapter")

    @property
    def is_mixed(self) -> bool:
        """True for a fine-tuned classifier that is mixed with a bag of words."""
        return self.has_bag and not self.is_baseline

    @property
    def holds_training_text(self) -> bool:
        """True if training rows are stored as text."""
        return self.has_index or self.has_shots


_BAG = KindSpec(
    "bag-of-words model",
    "none",
    is_always_tested=True,
    has_bag=True,
    architecture="TF-IDF of n-grams and linear head, ",
    export_fault="contains a bag of words, which other libraries cannot represent",
)
_MIXED = replace(
    _BAG,
    title="fine-tuned model with a bag of words",
    is_baseline=False,
    is_always_tested=False,
    architecture="encoder and TF-IDF of n-grams, each with a linear head, ",
)
_ENDPOINT = KindSpec(
    "external endpoint",
    "none",
    calls_endpoint=True,
    architecture="prompt for an external endpoint, without weights, ",
    export_fault="is an external endpoint and has no weights",
)
KINDS: Mapping[str, KindSpec] = {
    "zero_shot": KindSpec(
        "pretrained model", "unchanged", learns_from_rows=False, is_always_tested=True
    ),
    "few_shot": KindSpec(
        "pretrained model with examples in the prompt", "unchanged", has_shots=True
    ),
    "retrieved": KindSpec(
        "pretrained model with retrieved examples in the prompt",
        "unchanged",
        has_index=True,
        architecture="pretrained model with training rows in its prompt, ",
        export_fault="is the pretrained model with training rows in its prompt, and has "
        "no weights of its own",
    ),
    "nearest": KindSpec(
        "answer of the nearest training row",
        "none",
        has_index=True,
        architecture="index of training rows, without a language model, ",
        export_fault="answers with stored training rows and has no language model",
    ),
    "imported": KindSpec(
        "model that was tuned elsewhere",
        "unchanged",
        export_fault="is a copy of a model that other libraries load already",
    ),
    "centroid": KindSpec(
        "pretrained model with class averages", "unchanged", is_always_tested=True
    ),
    "bag_of_words": _BAG,
    "probe": KindSpec("pretrained model with a linear head", "unchanged", is_always_tested=True),
    "probe_bag": replace(
        _BAG,
        title="pretrained model with a bag of words",
        base="unchanged",
        reads_unit_embeddings=True,
        architecture="encoder, TF-IDF of n-grams and linear head, ",
    ),
    "lora": KindSpec("fine-tuned model", "adapter", is_baseline=False, mixed="lora_bag"),
    "lora_bag": replace(_MIXED, base="adapter"),
    "full": KindSpec("fine-tuned model", "changed", is_baseline=False, mixed="full_bag"),
    "full_bag": replace(_MIXED, base="changed"),
    "hybrid": KindSpec("hybrid model", "parts", is_baseline=False),
    "endpoint_zero_shot": replace(_ENDPOINT, learns_from_rows=False),
    "endpoint_few_shot": replace(
        _ENDPOINT, title="external endpoint with examples in the prompt", has_shots=True
    ),
    "endpoint_retrieved": replace(
        _ENDPOINT, title="external endpoint with retrieved examples in the prompt", has_index=True
    ),
}
_OTHER = KindSpec("", "changed", is_baseline=False)


def spec_of(kind: str) -> KindSpec:
    """Return the properties of a kind; for another name, as `champion` among the baselines, those
    of any model."""
    return KINDS.get(kind, _OTHER)

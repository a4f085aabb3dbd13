"""Allowed values and texts that depend on the kind of task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tailorbird.config.prompt import TEXT

TaskName = Literal["classification", "chat"]


@dataclass(frozen=True)
class TaskRules:
    """Rules for recipes of one kind of task, and texts for its model cards."""

    input_fields: tuple[str, ...]
    """Fields of section `data` that can name the input column; the first that is set is used."""
    fixed: dict[str, object]  # fields of the other task, by path, with their only allowed value
    hub_task: str  # `pipeline_tag` in the model card
    hub_example: Callable[[str], dict[str, object]]  # entry of `widget` in the model card
    model: str  # description of the model in the model card
    architecture: str  # architecture in the model card; empty if it is the base model's
    label_field: str  # field of section `data` that names the column with the labels
    base_model_need: str  # in the preflight: the required kind of base model
    base_model_fault: str  # in the preflight: what a base model of another kind is
    base_model_note: (
        str  # end of a sentence in the preflight about a base model that suits the task
    )
    quality: str  # what daily reports measure on labelled answers
    has_classes: bool  # labels are classes, and models are encoders with a pooling
    packs_rows: bool  # training packs several rows into one
    gpu_batch_size: int  # default of `serving.max_batch_size` on a GPU
    unfitting: (
        str  # end of a sentence in the model card about inputs that fit no class or have no answer
    )
    gates_off: tuple[str, ...] = ()  # gates that do not apply to the task


CLASSIFICATION_GATES = ("calibration", "counterfactual", "robustness")
CLASSIFICATION_GATE_FIELDS = [f"evaluation.gates.{name}" for name in CLASSIFICATION_GATES]

TASKS: dict[str, TaskRules] = {
    "classification": TaskRules(
        input_fields=("text",),
        fixed={
            "serving.engine": "transformers",
            "evaluation.retrieval_encoder": None,
            "evaluation.answers": None,
            "evaluation.gates.suites": None,
            "data.response_format": None,
        },
        hub_task="text-classification",
        hub_example=lambda text: {"text": text},
        model="A text classifier",
        architecture="encoder and linear head, ",
        label_field="label",
        base_model_need="classification needs an encoder",
        base_model_fault="an encoder with a decoder",
        base_model_note="",
        quality="accuracy",
        has_classes=True,
        packs_rows=False,
        gpu_batch_size=256,  # up to it, a pass of short texts takes about as long as a small one
        unfitting=" with one of its classes, even if none fits",
    ),
    "chat": TaskRules(
        input_fields=("messages", "prompt"),
        fixed={
            **dict.fromkeys(CLASSIFICATION_GATE_FIELDS),
            "training.class_weights": "equal",
            "data.template": TEXT,
            "data.label_descriptions": {},
        },
        hub_task="text-generation",
        hub_example=lambda text: {"messages": [{"role": "user", "content": text}]},
        model="A chat model",
        architecture="",
        label_field="completion",
        base_model_need="a chat task needs one",
        base_model_fault="not a causal language model",
        base_model_note=", chat template with separable turns",
        quality="mean score",
        has_classes=False,
        packs_rows=True,
        gpu_batch_size=64,
        unfitting=", and its answer can be false",
        gates_off=CLASSIFICATION_GATES,
    ),
}

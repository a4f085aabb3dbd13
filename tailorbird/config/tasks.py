"""What a recipe may say for each kind of task."""

from dataclasses import dataclass
from typing import Literal

TaskName = Literal["classification", "chat"]


@dataclass(frozen=True)
class TaskRules:
    """Fields of a recipe that depend on its task."""

    metrics: tuple[str, ...]  # allowed values of `evaluation.metric`
    input_fields: tuple[str, ...]
    """Fields of section `data` that name the column with a model's input; the first that is set counts."""
    fixed: dict[str, str | None]  # paths of fields that are for other tasks, with the only value that they may have
    hub_task: str  # `pipeline_tag` of a model card on the Hub
    model: str  # what a model of the task is, in a model card
    architecture: str  # how a fine-tuned or frozen model is built, in a model card; empty if the base model says it
    unfitting: str  # what a model answers where it should not answer, in a model card
    gates_off: tuple[str, ...] = ()  # gates that are on by default and do not apply
    is_monitored: bool = False  # whether `watch` and `reevaluate` support the task


CLASSIFICATION_GATES = ("calibration", "counterfactual", "robustness")
CLASSIFICATION_GATE_FIELDS = [f"evaluation.gates.{name}" for name in CLASSIFICATION_GATES]

TASKS: dict[TaskName, TaskRules] = {
    "classification": TaskRules(
        metrics=("accuracy", "macro_f1"),
        input_fields=("text",),
        fixed={"serving.engine": "transformers"},
        hub_task="text-classification",
        model="A text classifier",
        architecture="mean-pooled encoder and linear head, ",
        unfitting=" with one of its classes, also where none fits",
        is_monitored=True,
    ),
    "chat": TaskRules(
        metrics=("exact_match", "token_f1", "rouge_l"),
        input_fields=("messages", "prompt"),
        fixed=dict.fromkeys([*CLASSIFICATION_GATE_FIELDS, "evaluation.hybrid", "serving.challenger.shadow"]),
        hub_task="text-generation",
        model="A chat model",
        architecture="",
        unfitting=", also what is not so",
        gates_off=CLASSIFICATION_GATES,
    ),
}

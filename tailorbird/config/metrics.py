"""The metrics of recipes, one row per metric."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tailorbird.config.task_rules import TaskName

MetricName = Literal[
    "accuracy",
    "macro_f1",
    "exact_match",
    "token_f1",
    "rouge_l",
    "json_fields",
    "regex",
    "numeric",
    "choice",
]


@dataclass(frozen=True)
class Metric:
    """What a metric is the mean of, and its names. Every metric is at most 1."""

    title: str  # for readers
    hub_name: str  # on the Hugging Face Hub
    task: TaskName
    second: MetricName  # reported next to it; no decision reads it
    is_share: bool = False  # the share of rows whose output equals the label: `Predictions.scores`
    is_over_classes: bool = False
    """A mean over the classes (`statistics.scoring.CLASS_SCORES`), so that a single row has no
    score."""
    is_percentage: bool = False  # readers see 93.1%, not 0.931
    is_configured: bool = False  # by the section `evaluation.answers` of a recipe


_CONFIGURED = Metric(
    title="",
    hub_name="",
    task="chat",
    second="exact_match",
    is_percentage=True,
    is_configured=True,
)
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(
        title="accuracy",
        hub_name="accuracy",
        task="classification",
        second="macro_f1",
        is_share=True,
        is_percentage=True,
    ),
    "macro_f1": Metric(
        title="macro-F1",
        hub_name="f1",
        task="classification",
        second="accuracy",
        is_over_classes=True,
    ),
    "exact_match": Metric(
        title="exact match",
        hub_name="exact_match",
        task="chat",
        second="token_f1",
        is_share=True,
        is_percentage=True,
    ),
    "token_f1": Metric(title="token F1", hub_name="f1", task="chat", second="exact_match"),
    "rouge_l": Metric(title="ROUGE-L", hub_name="rouge", task="chat", second="exact_match"),
    "json_fields": replace(_CONFIGURED, title="share of equal fields", hub_name="json_fields"),
    "regex": replace(_CONFIGURED, title="share of equal matches", hub_name="regex"),
    "numeric": replace(_CONFIGURED, title="share of equal numbers", hub_name="numeric"),
    "choice": replace(_CONFIGURED, title="share of right choices", hub_name="choice"),
}


def row_metric(metric: str) -> str:
    """Return the metric itself, or accuracy if a single row has no score in it."""
    if METRICS[metric].is_over_classes:
        return "accuracy"
    return metric

"""Values of the evidence by their path in evidence.json (`verdict.interval.0`), formatted for the
report."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, JsonValue

from cluster.display.state import trial_name
from tailorbird.evaluation.statistics.power import MAX_ROWS
from tailorbird.evaluation.verdict.formatting import (
    interval_name,
    model_name,
    money,
    named,
    outcome_basis,
    p_text,
    points,
    sentence,
    size,
)
from tailorbird.pages.environment import plain

TONES = {"passes": "passes", "fails": "fails", "not assessable": "open", "not applicable": "open"}
"""CSS class of each state of a gate or a bound."""


FIELD_NAMES = {
    "num_train": "training rows",
    "num_validation": "validation rows",
    "num_test": "test rows",
    "num_classes": "classes (chat: distinct answers)",
    "train_copies_of_test": "training rows removed as copies of test rows",
    "train_copies_of_validation": "training rows removed as copies of validation rows",
    "untrained_turns": "training turns not trained on because they answer a test or validation row",
    "validation_copies_of_test": "validation rows removed as copies of test rows",
    "near_copies": "near copies among the removed rows",
    "test_documents": "independent documents in the test rows",
    "largest_test_document": "test rows of the largest document",
    "conflicting_texts": "texts with more than one label",
    "empty_texts": "rows with an empty text",
    "rare_classes": "classes with fewer than 10 training rows",
    "test_answers_in_train": "test rows whose answer is in the training rows",
    "num_in_memory": "training rows in the sample for the baselines",
    "selected": "selected settings",
    "num_workers": "workers",
    "zero_stage": "ZeRO stage",
    "seconds": "time in training steps, s",
    "samples_per_second": "rows per second",
    "padding_share": "share of padding in the tokens",
}
"""Names of fields that the report lists, if the name of the field itself is not readable."""


def _rows(value: int | None) -> str:
    if value is None:
        return f"{MAX_ROWS:,} are not enough"
    return f"{value:,}"


FORMS: Mapping[str, Callable[[Any], str]] = {
    "points": points,
    "unsigned": lambda share: f"{100 * share:.2f}",
    "signed": lambda share: f"{100 * share:+.2f}",
    "share": lambda share: f"{100 * share:.1f}%",
    "money": money,
    "p": p_text,
    "plain": plain,
    "trial": trial_name,
    "time": lambda time: f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M} UTC",
    "rows": _rows,
}
"""Formats by name; any other format is a format specification."""

FILTERS: Mapping[str, Callable[..., Any]] = {
    **FORMS,
    "size": size,
    "sentence": sentence,
    "named": named,
    "model_name": model_name,
    "interval_name": interval_name,
    "outcome_basis": outcome_basis,
}
"""Filters of the templates."""


class Figures:
    """The values of the evidence, with a record of those that the page shows."""

    def __init__(self, evidence: BaseModel) -> None:
        self._values: JsonValue = evidence.model_dump(mode="json")
        self._shown: dict[str, JsonValue] = {}

    def show(self, path: str, form: str = "") -> str:
        """Return the value at a path in a format of `FORMS` or by a format specification."""
        value = self.value(path)
        self._shown[path] = value
        if form in FORMS:
            return FORMS[form](value)
        return format(value, form)

    def value(self, path: str) -> Any:
        """Return the value at a path."""
        value: Any = self._values
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value

    def shown(self) -> dict[str, JsonValue]:
        """Return the values that were shown so far, by path."""
        return dict(sorted(self._shown.items()))

"""Values of the evidence by their path in evidence.json (`verdict.interval.0`), formatted for the report."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, JsonValue

from tailorbird.evaluation.statistics.power import MAX_ROWS
from tailorbird.evaluation.verdict.contender_costs import money
from tailorbird.evaluation.verdict.formatting import p_text, points
from tailorbird.pages.environment import plain

TONES = {"passes": "passes", "fails": "fails", "not assessable": "open", "not applicable": "open"}
"""CSS class of each state of a gate or a bound."""


def _rows(value: int | None) -> str:
    return f"{MAX_ROWS:,} are not enough" if value is None else f"{value:,}"


FORMS: Mapping[str, Callable[[Any], str]] = {
    "points": points,
    "size": lambda share: f"{100 * share:.2f}",
    "signed": lambda share: f"{100 * share:+.2f}",
    "share": lambda share: f"{100 * share:.1f}%",
    "money": money,
    "p": p_text,
    "plain": plain,
    "time": lambda time: f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M} UTC",
    "rows": _rows,
}
"""Formats by name; any other format is a format specification."""


class Figures:
    """The values of the evidence, with a record of those that the page shows."""

    def __init__(self, evidence: BaseModel) -> None:
        self._values: JsonValue = evidence.model_dump(mode="json")
        self._shown: dict[str, JsonValue] = {}

    def show(self, path: str, form: str = "") -> str:
        """Return the value at a path in a format of `FORMS` or by a format specification."""
        value = self.value(path)
        self._shown[path] = value
        return FORMS[form](value) if form in FORMS else format(value, form)

    def value(self, path: str) -> JsonValue:
        """Return the value at a path; raise KeyError, IndexError or ValueError if there is none."""
        value = self._values
        for key in path.split("."):
            if isinstance(value, list):
                value = value[int(key)]
            elif isinstance(value, dict):
                value = value[key]
            else:
                raise KeyError(path)
        return value

    def shown(self) -> dict[str, JsonValue]:
        """Return the values that were shown so far, by path."""
        return dict(sorted(self._shown.items()))

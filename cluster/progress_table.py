"""The sweep's table while it runs: pretrained rungs and trials, best first, from the events that a run shows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.markup import escape
from rich.table import Table

Rows = Mapping[str, "Row"]
"""By trial, or by kind of a rung."""


@dataclass(frozen=True)
class Row:
    """A rung or a trial as far as it is known."""

    name: str
    status: str
    score: float | None = None
    """On validation, after the latest epoch."""
    epochs: int = 0
    config: str = ""


def begin_board(rungs: Mapping[str, float]) -> Rows:
    """A table of the pretrained rungs alone."""
    return {kind: Row(kind, "pretrained", score) for kind, score in rungs.items()}


def noted(rows: Rows, event: dict[str, Any]) -> Rows:
    """The table after an event; only events `trial` and `epoch` of a trial change it."""
    if event["event"] not in ("trial", "epoch") or "trial" not in event:
        return rows
    row = rows.get(event["trial"]) or Row(event["trial"], "training")
    if event["event"] == "epoch":
        row = replace(row, score=event["score"], epochs=event["epoch"] + 1)
    else:
        row = replace(row, status=event["status"], config=_words(event["config"]))
    return {**rows, event["trial"]: row}


def board(rows: Rows) -> Table:
    """The table, best first; a trial before its first epoch stands last."""
    table = Table("", "validation", "epochs", "status", "configuration", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in sorted(rows.values(), key=lambda row: -1.0 if row.score is None else row.score, reverse=True):
        score = "" if row.score is None else f"{row.score:.3f}"
        table.add_row(escape(row.name), score, str(row.epochs or ""), row.status, escape(row.config))
    return table


def _words(config: Mapping[str, Any]) -> str:
    shown = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in config.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())

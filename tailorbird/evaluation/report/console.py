"""The verdict as lines for a terminal."""

from collections.abc import Mapping
from typing import Any

from tailorbird.evaluation.verdict.formatting import size
from tailorbird.evaluation.verdict.rules import Outcome
from tailorbird.evaluation.verdict.types import Verdict

Evidence = Mapping[str, Any]

ADVICE = {
    Outcome.FINE_TUNE: "Replace the incumbent by the fine-tuned candidate.",
    Outcome.STAY: "Keep the incumbent; the fine-tuned candidate does not deserve to replace it.",
    Outcome.HYBRID: "Let both serve: the candidate where the routing names it, the incumbent everywhere else.",
    Outcome.INSUFFICIENT_EVIDENCE: "Keep the incumbent for now; this test cannot tell.",
}


def verdict_lines(evidence: Evidence) -> list[str]:
    """For the terminal: the verdict, its reasons, its gates, the ladder, and what the test could have seen."""
    verdict = Verdict.from_dict(evidence["verdict"])
    rows = [("model", "validation", "interval", "test"), *(score_cells(row) for row in evidence["ladder"])]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    ladder = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    gates = ", ".join(f"{gate.name} {gate.state}" for gate in verdict.gates)
    return [
        verdict.sentence(),
        *(f"  - {reason}" for reason in verdict.reasons),
        *([f"  gates: {gates}"] if gates else []),
        f"  {power_sentence(verdict)}",
        f"  {seed_sentence(evidence)}",
        *([f"  {part}"] if (part := streaming_sentence(evidence)) else []),
        "",
        *ladder,
    ]


def score_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """A row of the ladder as texts: name, validation, interval, test."""
    interval = "" if row["interval"] is None else "{:.3f} to {:.3f}".format(*row["interval"])
    role, test = row.get("role"), row.get("test")
    name = f"{row['kind']} ({role})" if role else str(row["kind"])
    return name, f"{row['validation']:.3f}", interval, "" if test is None else f"{test:.3f}"


def power_sentence(verdict: Verdict) -> str:
    """What this test could have seen."""
    needed = "no number of rows" if verdict.rows_needed is None else f"{verdict.rows_needed:,} rows"
    return (
        f"power {verdict.power_at_expected_gain:.0%} against the incumbent at an expected gain of "
        f"{size(verdict.expected_gain)}; {needed} would give 80%; smallest gain this test finds with 80% power: "
        f"{100 * verdict.minimum_detectable_effect:.2f} points"
    )


def seed_sentence(evidence: Evidence) -> str:
    """The spread over seeds, or that it was not assessed; and how the mean of their weights did."""
    values, averaged = [row["validation"] for row in evidence["seeds"]], evidence["averaged"]
    told = f"seeds: {len(values)}, spread not assessed (that takes 3)"
    if len(values) >= 3:
        told = f"seeds: {len(values)}, on validation {min(values):.3f} to {max(values):.3f}"
    if averaged is None:
        return told
    chosen = ", the candidate" if averaged["chosen"] else ""
    return f"{told}; the mean of their weights {averaged['validation']:.3f}{chosen}"


def streaming_sentence(evidence: Evidence) -> str | None:
    """That some models saw a part of the training rows only, where these were streamed."""
    held, num_rows = evidence["data"]["num_in_memory"], evidence["data"]["num_train"]
    if held is None:
        return None
    return (
        f"training rows were streamed: the candidate learned from all {num_rows:,}, the pretrained rungs and the "
        f"reference from a random {held:,} of them, among which conflicts and near-duplicates were looked for"
    )

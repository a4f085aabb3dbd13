"""The verdict as lines for a terminal."""

from tailorbird.evaluation.report.evidence import Evidence, ModelScore
from tailorbird.evaluation.verdict.formatting import size
from tailorbird.evaluation.verdict.rules import Outcome
from tailorbird.evaluation.verdict.types import Verdict

ADVICE = {
    Outcome.FINE_TUNE: "Replace the incumbent by the fine-tuned candidate.",
    Outcome.STAY: "Keep the incumbent; the fine-tuned candidate does not deserve to replace it.",
    Outcome.HYBRID: "Let both serve: the candidate where the routing names it, the incumbent everywhere else.",
    Outcome.INSUFFICIENT_EVIDENCE: "Keep the incumbent for now; this test cannot tell.",
}


def verdict_lines(evidence: Evidence) -> list[str]:
    """Return the verdict, its reasons, its gates, the power of the test, and a table of the models' scores."""
    verdict = evidence.verdict
    rows = [("model", "validation", "interval", "test"), *map(score_cells, evidence.scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    gates = ", ".join(f"{gate.name} {gate.state}" for gate in verdict.gates)
    return [
        verdict.sentence(),
        *(f"  - {reason}" for reason in verdict.reasons),
        *([f"  gates: {gates}"] if gates else []),
        f"  {power_sentence(verdict)}",
        f"  {seed_sentence(evidence)}",
        *([f"  {sentence}"] if (sentence := streaming_sentence(evidence)) else []),
        "",
        *table,
    ]


def score_cells(score: ModelScore) -> tuple[str, str, str, str]:
    """Return a model's row as texts: name, validation, interval, test."""
    interval = "" if score.interval is None else "{:.3f} to {:.3f}".format(*score.interval)
    name = f"{score.kind} ({score.role})" if score.role else score.kind
    return name, f"{score.validation:.3f}", interval, "" if score.test is None else f"{score.test:.3f}"


def power_sentence(verdict: Verdict) -> str:
    """Return what gains the test can detect."""
    needed = "no number of rows" if verdict.rows_needed is None else f"{verdict.rows_needed:,} rows"
    return (
        f"power {verdict.power_at_expected_gain:.0%} against the incumbent at an expected gain of "
        f"{size(verdict.expected_gain)}; {needed} would give 80%; smallest gain this test finds with 80% power: "
        f"{100 * verdict.minimum_detectable_effect:.2f} points"
    )


def seed_sentence(evidence: Evidence) -> str:
    """Return the spread over seeds, or that it was not assessed, and the score of the mean of their weights."""
    scores, averaged = [seed.validation for seed in evidence.seeds], evidence.averaged
    spread = f"on validation {min(scores):.3f} to {max(scores):.3f}"
    sentence = f"seeds: {len(scores)}, {spread if len(scores) >= 3 else 'spread not assessed (that takes 3)'}"
    if averaged is None:
        return sentence
    chosen = ", the candidate" if averaged.chosen else ""
    return f"{sentence}; the mean of their weights {averaged.validation:.3f}{chosen}"


def streaming_sentence(evidence: Evidence) -> str | None:
    """Return which models were fitted on a part of the training rows, if these were streamed."""
    report = evidence.data.report
    if report.num_in_memory is None:
        return None
    return (
        f"training rows were streamed: the candidate learned from all {report.num_train:,}, the pretrained rungs and "
        f"the reference from a random {report.num_in_memory:,} of them, among which conflicts and near-duplicates were "
        "looked for"
    )

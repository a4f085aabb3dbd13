"""Which duties of documentation the evidence's fields serve: a table that the report's page ends with."""

DUTIES = (
    (
        "EU AI Act, Annex IV 2(g)",
        "validation and testing procedures, the data used and their main characteristics",
        ("question", "data", "ladder", "sweep", "seeds"),
    ),
    (
        "EU AI Act, Annex IV 2(g)",
        "metrics of accuracy and robustness, and potentially discriminatory impacts",
        ("verdict.gain", "verdict.interval", "verdict.gates", "reliability"),
    ),
    (
        "EU AI Act, Annex IV 2(g)",
        "test logs and reports, dated, with the persons responsible (a signature is not part of the evidence)",
        ("created_at", "asked_by", "look", "code", "versions"),
    ),
    (
        "EU AI Act, Annex IV 3",
        "overall expected accuracy, accuracy for groups of persons, and limitations",
        ("verdict.candidate_score", "verdict.gates", "verdict.rows_needed", "expires_at"),
    ),
    (
        "NIST AI RMF, MEASURE 2.1",
        "test sets, metrics and tools are documented",
        ("question", "data", "code", "recipe"),
    ),
    (
        "NIST AI RMF, MEASURE 2.3 and 2.5",
        "performance is measured, the system is shown to be valid and reliable, limits of generalising are documented",
        ("verdict", "ladder", "reliability", "curve"),
    ),
    (
        "NIST AI RMF, MEASURE 2.11",
        "fairness and bias are evaluated",
        ("verdict.gates",),
    ),
    (
        "NIST AI RMF, MEASURE 2.13",
        "the measurement itself is evaluated",
        ("verdict.minimum_detectable_effect", "verdict.power_at_expected_gain", "verdict.confirmatory"),
    ),
)
"""Duty, what it asks for in short, and the fields of `evidence.json` that answer to it.

Regulation (EU) 2024/1689, Annex IV; NIST AI 100-1 (2023), the core's function MEASURE.
"""

CAVEAT = (
    "These fields serve as material for that documentation. They do not make a system compliant: intended purpose, "
    "human oversight, risk management and monitoring are described elsewhere."
)

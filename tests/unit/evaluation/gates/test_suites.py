"""The suites gate with losses that are counted by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tailorbird.config.suites import EXTRACTION, SuiteConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.suites import AnsweredSuite, suites_gate
from tailorbird.evaluation.predictions import TRAINING_TEXT
from tests.unit.evaluation.simulated_suites import suite_table


def gate_of(*suites: tuple[list[float], list[float]], alpha: float = 0.05, **fields: Any) -> Gate:
    """Return the gate for the scores of candidate and incumbent on each suite."""
    config = SuiteConfig.model_validate({"uri": "builtin://general", "max_loss": 0.05} | fields)
    answered = {
        f"suite {number}": AnsweredSuite(
            config, suite_table("full", candidate), suite_table("zero_shot", incumbent)
        )
        for number, (candidate, incumbent) in enumerate(suites)
    }
    return suites_gate(answered, alpha=alpha)


def scores(right: int, *, rows: int = 100) -> list[float]:
    return [1.0] * right + [0.0] * (rows - right)


def test_a_loss_of_10_points_on_one_of_five_suites_of_150_rows_fails() -> None:
    """Further answers get better and worse by chance, on 2% of the rows each."""
    equal = (scores(120, rows=150), scores(120, rows=150))
    candidate = [0.0] * 18 + [1.0] * 102 + [0.0] * 27 + [1.0] * 3
    gate = gate_of((candidate, equal[1]), *[equal] * 4, max_loss=0.07)
    assert [bound.state for bound in gate.bounds] == [State.FAILS, *[State.PASSES] * 4]
    detects = [bound.detects for bound in gate.bounds]
    assert detects[1:] == [pytest.approx(0.09, abs=0.01)] * 4


@pytest.mark.parametrize(
    ("num_rows", "max_loss"), [(5, 0.25), (20, 0.05), (50, 0.05), (50, 0.2), (150, 0.05)]
)
def test_rare_large_losses_of_the_margin_seldom_pass_among_nearly_equal_scores(
    num_rows: int, max_loss: float
) -> None:
    """Of 150 suites whose true loss is the margin, by a loss of 0.9 on some rows, at most 6%
    pass."""
    generator = np.random.default_rng(0)
    passes = 0
    for _ in range(150):
        incumbent = generator.uniform(0.95, 0.99, num_rows)
        rare = generator.random(num_rows) < max_loss / 0.9
        candidate = incumbent + generator.normal(0, 0.002, num_rows) - 0.9 * rare
        passes += (
            gate_of((candidate.tolist(), incumbent.tolist()), max_loss=max_loss).state
            is State.PASSES
        )
    assert passes <= 0.06 * 150


@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
def test_nearly_equal_scores_pass_from_the_rows_that_exclude_an_unseen_loss(right: float) -> None:
    for num_rows, state in ((71, State.NOT_ASSESSABLE), (73, State.PASSES)):
        incumbent = scores(round(right * num_rows), rows=num_rows)
        candidate = [abs(score - 0.001 * (row % 2)) for row, score in enumerate(incumbent)]
        assert gate_of((incumbent, incumbent)).state is state
        assert gate_of((candidate, incumbent)).state is state


def test_a_model_without_likelihoods_makes_the_suite_not_assessable() -> None:
    unanswered = [*scores(50, rows=99), np.nan]
    gate = gate_of((scores(90), unanswered), (scores(90), scores(90)))
    assert (gate.state, len(gate.bounds)) == (State.NOT_ASSESSABLE, 1)
    assert "suite 0 needs log-likelihoods" in gate.note
    assert gate_of((scores(90), unanswered), (scores(10), scores(90))).state is State.FAILS


def test_without_a_suite_to_ask_the_gate_is_not_applicable() -> None:
    gate = suites_gate({}, alpha=0.05, omitted=("leaks",))
    assert (gate.state, gate.bounds) == (State.NOT_APPLICABLE, ())
    assert gate.note.startswith("leaks is omitted")


@pytest.mark.parametrize(
    ("kind", "holds_text", "state"),
    [
        ("nearest", None, State.FAILS),
        ("zero_shot", None, State.PASSES),
        ("full", 1.0, State.FAILS),  # with an index of the training rows
        ("full", 0.0, State.PASSES),
    ],
)
def test_an_incumbent_that_holds_the_training_rows_does_not_excuse_repeated_spans(
    kind: str, holds_text: float | None, state: State
) -> None:
    incumbent = suite_table(kind, scores(40))
    if holds_text is not None:
        incumbent = replace(incumbent, measures={TRAINING_TEXT: np.full(100, holds_text)})
    config = SuiteConfig(uri=EXTRACTION)
    suite = AnsweredSuite(config, suite_table("full", scores(40)), incumbent)
    assert suites_gate({"extraction": suite}, alpha=0.05).state is state

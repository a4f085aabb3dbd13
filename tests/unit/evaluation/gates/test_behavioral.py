"""Tests of the behavioral gates with flips and drops that are counted by hand."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.evaluation import CounterfactualGateConfig, RobustnessGateConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.behavioral import Tables, counterfactual_gate, robustness_gate
from tailorbird.evaluation.predictions import Predictions, VerdictRefused


def table(row_ids: list[str], outputs: list[str]) -> Predictions:
    """Return predictions for rows with the label `a`."""
    n, scores = len(row_ids), np.array([float(output == "a") for output in outputs])
    return Predictions(
        "full", tuple(row_ids), ("a",) * n, tuple(outputs), scores, np.ones(n), np.ones(n)
    )


def both(clean: str, changed: str, kinds: tuple[str, ...] = ("sex",)) -> Tables:
    """Return clean and changed predictions, one letter each; `changed` has one letter per row and
    kind, row by row."""
    rows = [str(row) for row in range(len(clean))]
    return table(rows, list(clean)), table(
        [f"{row}|{kind}" for row in rows for kind in kinds], list(changed)
    )


def flips(candidate: Tables, incumbent: Tables) -> Gate:
    """Return the counterfactual gate with a limit of one point."""
    limits = CounterfactualGateConfig(max_increase=0.01)
    return counterfactual_gate(candidate=candidate, incumbent=incumbent, limits=limits, alpha=0.05)


def drops(candidate: Tables, incumbent: Tables) -> Gate:
    """Return the robustness gate with a limit of two points."""
    limits = RobustnessGateConfig(max_extra_drop=0.02)
    return robustness_gate(candidate=candidate, incumbent=incumbent, limits=limits, alpha=0.05)


STEADY = both("a" * 600, "a" * 600)


def test_a_candidate_without_flips_passes_and_a_candidate_with_many_flips_fails() -> None:
    assert flips(STEADY, STEADY).state is State.PASSES
    flipping = both("a" * 600, "b" * 60 + "a" * 540)
    gate = flips(flipping, STEADY)
    assert gate.state is State.FAILS
    assert gate.bounds[0].estimate == pytest.approx(0.1)
    assert gate.bounds[0].interval == pytest.approx(
        (0.077, 0.126), abs=0.005
    )  # Wilson's of 60 in 600
    assert "sex 60 and 0 of 600" in gate.note


def test_a_row_with_several_changed_texts_counts_once() -> None:
    gate = flips(both("aa", "bbaa", ("age", "sex")), both("aa", "aaab", ("age", "sex")))
    assert gate.bounds[0].n == 2
    assert gate.bounds[0].estimate == 0
    assert gate.note.endswith("age 1 and 0 of 2, sex 1 and 1 of 2")


def test_few_swappable_rows_are_not_assessable_and_none_make_the_gate_not_applicable() -> None:
    few = both("a" * 20, "a" * 20)
    assert flips(few, few).state is State.NOT_ASSESSABLE
    none = (few[0], table([], []))
    gate = flips(none, none)
    assert (gate.state, gate.bounds) == (State.NOT_APPLICABLE, ())
    assert "no test row contains" in gate.note


def test_flips_are_counted_by_document_if_rows_share_one() -> None:
    flipping = both("a" * 600, "b" * 60 + "a" * 540)
    documents = tuple(str(row // 60) for row in range(600))
    by_document, steady = (
        (replace(pair[0], clusters=documents), pair[1]) for pair in (flipping, STEADY)
    )
    gate = flips(by_document, steady)
    assert gate.state is State.NOT_ASSESSABLE  # all 60 flips are in one document of ten
    assert gate.bounds[0].estimate == pytest.approx(0.1)
    alone = tuple(map(str, range(600)))
    single = replace(flipping[0], clusters=alone), flipping[1]
    assert flips(single, (replace(STEADY[0], clusters=alone), STEADY[1])) == flips(flipping, STEADY)


def test_row_ids_may_contain_the_separator_of_the_kind() -> None:
    separator = table(["a|b", "c"], ["a", "b"]), table(["a|b|sex"], ["b"])
    assert flips(separator, separator).bounds[0].n == 1


def test_the_candidates_drop_is_compared_with_the_incumbents() -> None:
    fragile = both("a" * 600, "b" * 60 + "a" * 540)
    gate = drops(fragile, STEADY)
    assert gate.state is State.FAILS
    assert gate.bounds[0].estimate == pytest.approx(0.1)
    assert gate.note == "the candidate loses 10.00 points, the incumbent 0.00"
    assert drops(fragile, fragile).state is State.PASSES
    assert drops(STEADY, fragile).state is State.PASSES
    assert drops(STEADY, fragile).bounds[0].estimate == pytest.approx(-0.1)


@pytest.mark.parametrize("evaluate", [flips, drops])
def test_tables_with_different_rows_are_refused(evaluate: object) -> None:
    assert callable(evaluate)
    pair = both("aa", "ab")
    shifted = (pair[0], table(["1|sex", "2|sex"], ["a", "b"]))
    with pytest.raises(VerdictRefused, match=r"'2\|sex' has no source row"):
        evaluate(shifted, shifted)
    with pytest.raises(VerdictRefused, match="row ids"):
        evaluate(pair, shifted)
    with pytest.raises(VerdictRefused, match=r"2 rows and .* 3 rows"):
        evaluate(pair, both("aaa", "aaa"))
    relabelled = (pair[0], replace(pair[1], labels=("a", "b")))
    with pytest.raises(VerdictRefused, match="has the label 'b'"):
        evaluate(relabelled, relabelled)
    with pytest.raises(VerdictRefused, match="no predictions"):
        evaluate((pair[0], table([], [])), pair)
    with pytest.raises(VerdictRefused):
        evaluate(pair, (pair[0], table([], [])))

"""Tests of the behavioral gates with flips and drops that are counted by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tailorbird.config.evaluation import CounterfactualGateConfig, RobustnessGateConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.behavioral import Tables, counterfactual_gate, robustness_gate
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tests import build


def table(row_ids: Sequence[str], outputs: str) -> Predictions:
    """Return predictions for rows with the label `a`."""
    return build.predictions(outputs, "a" * len(outputs), row_ids=tuple(row_ids))


def both(clean: str, changed: str, kinds: tuple[str, ...] = ("sex",)) -> Tables:
    """Return clean and changed predictions, one letter each; `changed` has one letter per row and
    kind, row by row."""
    rows = [str(row) for row in range(len(clean))]
    return table(rows, clean), table([f"{row}|{kind}" for row in rows for kind in kinds], changed)


def flips(candidate: Tables, incumbent: Tables) -> Gate:
    """Return the counterfactual gate with a limit of one point."""
    limits = CounterfactualGateConfig(max_increase=0.01)
    return counterfactual_gate(candidate=candidate, incumbent=incumbent, limits=limits, alpha=0.05)


def drops(candidate: Tables, incumbent: Tables) -> Gate:
    """Return the robustness gate with a limit of two points."""
    limits = RobustnessGateConfig(max_extra_drop=0.02)
    return robustness_gate(candidate=candidate, incumbent=incumbent, limits=limits, alpha=0.05)


STEADY = both("a" * 600, "a" * 600)
FRAGILE = both("a" * 600, "b" * 60 + "a" * 540)


def test_a_candidate_without_flips_passes_and_a_candidate_with_many_flips_fails() -> None:
    assert flips(STEADY, STEADY).state is State.PASSES
    gate = flips(FRAGILE, STEADY)
    assert gate.state is State.FAILS
    assert gate.bounds[0].estimate == pytest.approx(0.1)
    wilson = (0.077, 0.126)  # of 60 in 600
    assert gate.bounds[0].interval == pytest.approx(wilson, abs=0.005)


def test_a_row_with_several_changed_texts_counts_once() -> None:
    gate = flips(both("aa", "bbaa", ("age", "sex")), both("aa", "aaab", ("age", "sex")))
    assert (gate.bounds[0].n, gate.bounds[0].estimate) == (2, 0)
    assert gate.note.endswith("age 1 and 0 of 2, sex 1 and 1 of 2")
    separator = table(["a|b", "c"], "ab"), table(["a|b|sex"], "b")
    assert flips(separator, separator).bounds[0].n == 1


def test_few_swappable_rows_are_not_assessable_and_none_make_the_gate_not_applicable() -> None:
    few = both("a" * 20, "a" * 20)
    assert flips(few, few).state is State.NOT_ASSESSABLE
    none = (few[0], table([], ""))
    gate = flips(none, none)
    assert (gate.state, gate.bounds) == (State.NOT_APPLICABLE, ())


def test_flips_are_counted_by_document_if_rows_share_one() -> None:
    def in_documents(pair: Tables, size: int) -> Tables:
        documents = tuple(str(row // size) for row in range(600))
        return replace(pair[0], clusters=documents), pair[1]

    gate = flips(in_documents(FRAGILE, 60), in_documents(STEADY, 60))
    assert gate.state is State.NOT_ASSESSABLE  # all 60 flips are in one document of ten
    assert gate.bounds[0].estimate == pytest.approx(0.1)
    assert flips(in_documents(FRAGILE, 1), in_documents(STEADY, 1)) == flips(FRAGILE, STEADY)


def test_the_candidates_drop_is_compared_with_the_incumbents() -> None:
    gate = drops(FRAGILE, STEADY)
    assert gate.state is State.FAILS
    assert gate.bounds[0].estimate == pytest.approx(0.1)
    assert gate.note == "the candidate loses 10.00 points, the incumbent 0.00"
    assert drops(FRAGILE, FRAGILE).state is State.PASSES
    assert drops(STEADY, FRAGILE).bounds[0].estimate == pytest.approx(-0.1)


@pytest.mark.parametrize("evaluate", [flips, drops])
def test_tables_with_different_rows_are_refused(
    evaluate: Callable[[Tables, Tables], Gate],
) -> None:
    pair = both("aa", "ab")
    shifted = (pair[0], table(["1|sex", "2|sex"], "ab"))
    relabelled = (pair[0], replace(pair[1], labels=("a", "b")))
    none = (pair[0], table([], ""))
    cases = [
        (shifted, shifted),
        (pair, shifted),
        (pair, both("aaa", "aaa")),
        (relabelled, relabelled),
        (none, pair),
        (pair, none),
    ]
    for candidate, incumbent in cases:
        with pytest.raises(VerdictRefused):
            evaluate(candidate, incumbent)

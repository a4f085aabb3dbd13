"""The power of the verdict: how often the whole procedure, gates included, chooses the candidate or the hybrid."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.redraw import all_of, group_states, redrawn_states
from tailorbird.evaluation.gates.subgroups import likely_level
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.bootstrap import macro_f1_contributions
from tailorbird.evaluation.statistics.documents import documents_of
from tailorbird.evaluation.statistics.power import (
    MAX_ROWS,
    TARGET_POWER,
    RowsNeeded,
    no_rows,
    rows_to_detect,
    smallest_detectable,
)
from tailorbird.evaluation.statistics.simulation import SimulatedTests, TestedRows
from tailorbird.evaluation.verdict.assess import Assessment, hybrid_predictions
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import OUTCOME_OF_RULE, Facts, Outcome, gates_pass, select_rule

NUM_TESTS, NUM_SEARCH_TESTS = 2_000, 1_000
OTHER = {"hybrid": "the hybrid is chosen instead", "surpassed": "a further contender is better"}


@dataclass(frozen=True)
class VerdictPower:
    """How often tests like this one have each outcome, if the candidate's true gain is the expected one."""

    fine_tune: float  # probability of FINE_TUNE at the expected gain
    hybrid: float | None  # probability of HYBRID if the candidate's true gain is 0; None without a hybrid
    blocked_by: str  # what most often prevents FINE_TUNE at the expected gain
    minimum_detectable_effect: float  # true gain over the incumbent that the test alone detects with a power of 0.8
    needed: RowsNeeded  # rows for a probability of 0.8 of FINE_TUNE at the expected gain
    needed_for_minimum: RowsNeeded
    """Rows with which a true gain of `minimum_gain` over the incumbent is significantly above 0 in 80% of tests."""


@dataclass(frozen=True, eq=False)
class Procedure:
    """Everything that is resampled or redrawn in a simulated test, and the rest of the verdict's facts."""

    rows: TestedRows
    roles: tuple[str, ...]  # of the comparisons with the incumbent, the candidate's first
    assessment: Assessment
    protocol: TestProtocol
    accepted_loss: float  # losses accepted for cost before this test

    def rules(self, gain: float, *, num_rows: int, num_tests: int) -> tuple[list[int], list[str]]:
        """Return the rule that decides each simulated test, and why FINE_TUNE is prevented where it is."""
        tests = self.rows.simulate(gain, num_rows=num_rows, num_tests=num_tests)
        main = self.assessment.main.comparison
        redraw = _Redraw(tests, self.rows, self.protocol, num_rows / len(self.rows.ours), gain - main.gain)
        gates = {gate.name: redraw.states(gate) for gate in self.assessment.gates}
        of_hybrid = self.assessment.hybrid.gates if self.assessment.hybrid else ()
        hybrid_gates = {gate.name: redraw.states(gate, of_groups=False) for gate in of_hybrid}
        drawn = self._drawn(tests)
        # Tests that agree in everything that the rules read have the same outcome.
        states = [of_gate == state for of_gate in (*gates.values(), *hybrid_gates.values()) for state in State]
        _, first, kind = np.unique(
            np.stack([*drawn.read(self.protocol), *states], axis=1), axis=0, return_index=True, return_inverse=True
        )
        decided = []
        for test in first:
            facts = replace(
                self.assessment.facts,
                proven=bool(drawn.proven[test, 0]),
                low=float(drawn.lows[test, 0]),
                cautious_low=float(drawn.lowest[test, 0]),
                high=float(drawn.highs[test, 0]),
                hybrid_holds=bool(drawn.hybrid_holds[test]),
                other_proven=bool(drawn.other_proven[test]),
                surpassed=bool(drawn.surpassed[test]),
                accepted_loss=float(drawn.losses[test]),
                gates={name: of_gate[test] for name, of_gate in gates.items()},
                hybrid_gates={name: of_gate[test] for name, of_gate in hybrid_gates.items()},
            )
            rule = select_rule(facts)
            decided.append((rule, "" if OUTCOME_OF_RULE[rule] is Outcome.FINE_TUNE else _reason(rule, facts)))
        rules, reasons = zip(*(decided[each] for each in kind.ravel()), strict=True)
        return list(rules), [reason for reason in reasons if reason]

    def _drawn(self, tests: SimulatedTests) -> "_Drawn":
        """Return what the rules read of simulated tests, by Holm's method over the comparisons with the incumbent.

        The candidate, and a further contender unless a gate stopped it in the test itself, are assumed to pass their
        gates. Further contenders are assumed not to be better than the hybrid.
        """
        alpha, num, minimum = self.assessment.alpha, len(self.roles), self.protocol.minimum_gain
        p_values = tests.p_values[:, :num]
        ranks = p_values.argsort(axis=1).argsort(axis=1)
        steps = np.sort(p_values, axis=1) * np.arange(num, 0, -1)
        rejected = (np.maximum.accumulate(steps, axis=1) < alpha).sum(axis=1, keepdims=True)
        by_share = [tests.intervals(alpha / share) for share in range(1, num + 1)]
        share = num - np.minimum(ranks, np.minimum(rejected, num - 1)) - 1  # position in by_share
        lows, highs = (
            np.take_along_axis(np.stack([ends[side][:, :num] for ends in by_share]), share[None], axis=0)[0]
            for side in (0, 1)
        )
        lowest = lows
        if tests.cells is None:  # see `paired.cautious_change`
            unseen = np.stack([tests.unseen(alpha / size)[:num] for size in range(1, num + 1)])
            lowest = np.minimum(lows, tests.gains[:, :num] - unseen[share, np.arange(num)])
        proven = (ranks < rejected) & (lows > 0) & (tests.gains[:, :num] >= minimum)
        # The comparisons with the candidate follow those with the incumbent, in the same order without the candidate.
        # Those of the hybrid with its parts are the last.
        against = by_share[0][0][:, num:]
        stopped = {each.role for each in self.assessment.contenders if each.proven and not each.eligible}
        others = [role for role in range(1, num) if self.roles[role] not in stopped | {"hybrid"}]
        of_parts = slice(2 * num - 1, None)
        holds, hybrid = np.zeros(len(p_values), dtype=bool), self.assessment.hybrid
        if hybrid is not None:
            cheaper = hybrid.cost_ratio is not None and hybrid.cost_ratio[2] < 1
            part_lows, part_gains = by_share[0][0][:, of_parts], tests.gains[:, of_parts]
            better = proven[:, 1] & ((part_lows > 0) & (part_gains >= minimum)).all(axis=1)
            least = part_lows if tests.cells is not None else part_gains - tests.unseen(alpha)[of_parts]
            lowest_of_hybrid = np.minimum(lowest[:, 1], np.minimum(part_lows, least).min(axis=1))
            holds = (lowest_of_hybrid > -self.protocol.non_inferiority_margin) & (better | cheaper)
            if "candidate" not in {part.role for part in hybrid.parts}:
                holds &= ~(proven[:, 0] & (by_share[0][1][:, num] < 0))
        surpassing = [proven[:, role] & (against[:, role - 1] > 0) for role in others]
        return _Drawn(
            proven,
            lows,
            highs,
            lowest,
            hybrid_holds=holds,
            other_proven=proven[:, others].any(axis=1),
            surpassed=np.any(surpassing, axis=0) if surpassing else np.zeros(len(p_values), dtype=bool),
            losses=self.accepted_loss + np.maximum(-tests.gains[:, 0], 0.0),
        )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What the rules read of B simulated tests with R comparisons with the incumbent."""

    proven: NDArray[np.bool_]  # [B, R]
    lows: NDArray[np.float64]  # [B, R]
    highs: NDArray[np.float64]  # [B, R]
    lowest: NDArray[np.float64]  # [B, R] lower ends in tests of non-inferiority
    hybrid_holds: NDArray[np.bool_]  # [B]
    other_proven: NDArray[np.bool_]  # [B]
    surpassed: NDArray[np.bool_]  # [B]
    losses: NDArray[np.float64]  # [B] losses accepted for cost, with the candidate's

    def read(self, protocol: TestProtocol) -> list[NDArray[np.bool_]]:
        """Return the conditions [B] of the rules."""
        low, high = self.lows[:, 0], self.highs[:, 0]
        ends = [self.lowest[:, 0] > -protocol.non_inferiority_margin, (low <= 0) & (high >= protocol.minimum_gain)]
        affordable = (self.losses < protocol.minimum_gain) | (self.losses == 0)
        return [self.proven[:, 0], *ends, self.hybrid_holds, self.other_proven, self.surpassed, affordable]


@dataclass(frozen=True, eq=False)
class _Redraw:
    """The states of the gates in simulated tests with `scale` times the rows."""

    tests: SimulatedTests
    rows: TestedRows
    protocol: TestProtocol
    scale: float
    shift: float  # true gain minus the measured gain

    def states(self, gate: Gate, *, of_groups: bool = True) -> NDArray[np.object_]:
        limits, alpha = self.protocol.gates.groups, self.protocol.alpha
        if gate.name == "groups" and gate.bounds and limits is not None and of_groups:
            level = likely_level(
                float(self.tests.gains[:, 0].mean()),
                errors=self.tests.group_errors.mean(axis=0),
                freedom=self.tests.group_freedom,
                limits=limits,
            )
            return all_of(group_states(self.tests, limits=limits, level=level, alpha=alpha))
        cost, shift = self.protocol.cost, 0.0
        if gate.name == "cost" and cost is not None:
            shift = self.shift * cost.value_of_correct * cost.requests_per_month * cost.horizon_months
        num = len(self.tests.gains)
        return redrawn_states(gate, num_tests=num, scale=self.scale, alpha=alpha, shift=shift)


def power_of(inputs: VerdictInputs, *, assessment: Assessment, protocol: TestProtocol) -> VerdictPower:
    """Return the power of the verdict by simulation from its own rows (fixed seeds)."""
    procedure = _procedure(inputs, assessment=assessment, protocol=protocol)
    main, alpha = assessment.main.comparison, assessment.main.level
    num_rows, gain = main.counts.n, protocol.expected_gain
    rules, reasons = procedure.rules(gain, num_rows=num_rows, num_tests=NUM_TESTS)
    hybrid = None
    if assessment.hybrid is not None:
        of_equals, _ = procedure.rules(0.0, num_rows=num_rows, num_tests=NUM_TESTS)
        hybrid = _share(of_equals, Outcome.HYBRID)
    return VerdictPower(
        fine_tune=_share(rules, Outcome.FINE_TUNE),
        hybrid=hybrid,
        blocked_by=_most_common(reasons),
        minimum_detectable_effect=smallest_detectable(main, alpha=alpha),
        needed=_needed(procedure, gain, num_rows=num_rows, minimum_gain=protocol.minimum_gain),
        needed_for_minimum=rows_to_detect(protocol.minimum_gain, main=main, alpha=alpha),
    )


def _needed(procedure: Procedure, gain: float, *, num_rows: int, minimum_gain: float) -> RowsNeeded:
    """Return the rows for a probability of FINE_TUNE of 0.8, by bisection to 3%."""
    if gain <= minimum_gain:
        return no_rows(gain, minimum_gain)

    def enough(rows: int) -> bool:
        rules, _ = procedure.rules(gain, num_rows=rows, num_tests=NUM_SEARCH_TESTS)
        return _share(rules, Outcome.FINE_TUNE) >= TARGET_POWER

    too_few, rows = 1, num_rows
    while not enough(rows):
        too_few, rows = rows, 2 * rows
        if rows > MAX_ROWS:
            _, reasons = procedure.rules(gain, num_rows=MAX_ROWS, num_tests=NUM_SEARCH_TESTS)
            return RowsNeeded(None, f"more rows do not give 80% power, because {_most_common(reasons)}")
    if too_few == 1:
        while rows > 2 and enough(rows // 2):
            rows //= 2
        too_few = rows // 2
    while rows > 1.03 * too_few + 1:
        middle = round((rows * too_few) ** 0.5)
        too_few, rows = (too_few, middle) if enough(middle) else (middle, rows)
    return RowsNeeded(rows, f"{rows:,} rows give 80% power at a true gain of {100 * gain:.4g} points")


def _procedure(inputs: VerdictInputs, *, assessment: Assessment, protocol: TestProtocol) -> Procedure:
    incumbent, candidate = inputs.incumbent.clean, inputs.candidate.clean
    hybrid = hybrid_predictions(inputs, protocol=protocol) if assessment.hybrid is not None else None
    others = {"hybrid": hybrid.clean} if hybrid is not None else {}
    others |= {role: model.clean for role, model in inputs.contenders.items()}
    pairs = [(table, incumbent) for table in (candidate, *others.values())]
    pairs += [(table, candidate) for table in others.values()]
    if hybrid is not None and inputs.hybrid is not None:
        pairs += [(hybrid.clean, inputs.models[role].clean) for role in inputs.hybrid.parts]
    ours, theirs = (
        np.stack([_scores(pair[side], metric=protocol.metric) for pair in pairs], axis=1) for side in (0, 1)
    )
    groups = next((gate for gate in assessment.gates if gate.name == "groups"), None)
    changes = [] if groups is None else [bound.shrunken or 0.0 for bound in groups.bounds]
    rows = TestedRows(
        ours,
        theirs,
        members=_members(candidate) if changes else np.zeros((len(candidate), 0), dtype=bool),
        group_changes=np.array(changes),
        documents=None if candidate.clusters is None else documents_of(candidate.clusters, num_rows=len(candidate)),
    )
    return Procedure(rows, ("candidate", *others), assessment, protocol, inputs.accepted_loss)


def _members(table: Predictions) -> NDArray[np.bool_]:
    """Return the rows [N, K] of each group, in the order of the bounds of the groups gate."""
    columns = [np.array(values, dtype=object) for _, values in sorted(table.groups.items())]
    return np.stack([column == value for column in columns for value in sorted(set(column))], axis=1)


def _scores(table: Predictions, *, metric: str) -> NDArray[np.float64]:
    if metric == "macro_f1":
        return macro_f1_contributions(table)
    return table.per_row(metric)


def _share(rules: Sequence[int], outcome: Outcome) -> float:
    return float(np.mean([OUTCOME_OF_RULE[rule] is outcome for rule in rules]))


def _reason(rule: int, facts: Facts) -> str:
    """Return what prevents FINE_TUNE."""
    if facts.leaks:
        return "two splits share a document or a text"
    if OUTCOME_OF_RULE[rule] is Outcome.HYBRID:
        return OTHER["hybrid"]
    if not facts.proven:
        return "the gain of the candidate over the incumbent is not proven"
    stops = [name for name, state in facts.gates.items() if not gates_pass({name: state}, regulated=facts.regulated)]
    return f"the {stops[0]} gate does not pass" if stops else OTHER["surpassed"]


def _most_common(reasons: Sequence[str]) -> str:
    return Counter(reasons).most_common(1)[0][0] if reasons else "nothing prevents FINE_TUNE"

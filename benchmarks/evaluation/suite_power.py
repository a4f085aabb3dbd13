"""Measure the suites gate: how often it passes a sound candidate, and finds a loss on one of five
suites.

    python -m benchmarks.evaluation.suite_power

Five suites of equal numbers of rows with scores of 0 and 1 and the default margin. On each suite,
some answers get worse and as many get better (*changes*, as a share of the rows for each side).
*claimed* is the loss that the gate states as found in 80% of tests. Further tables have scores
between 0 and 1: rare losses of 90 points that sum to the margin, and a suite like `bias` of pairs
and questions.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import finish, print_table
from tailorbird.config.suites import SuiteConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.suites import AnsweredSuite, suites_gate
from tailorbird.evaluation.predictions import Predictions

FloatArray = NDArray[np.float64]
Draw = Callable[[np.random.Generator], tuple[FloatArray, FloatArray]]
"""Returns the scores of the candidate and of the incumbent on a suite."""

ALPHA = 0.05
SEED = 2026
NUM_GATES = 400
CONFIG = SuiteConfig(uri="builtin://refusals")
NUM_SUITES = 5
ROWS = (100, 150, 300)
CHANGES = (0.0, 0.02, 0.05)
INCUMBENT = 0.8
HARM = 0.1
BUILTIN = "150 rows, changes 2%"
RARE_LOSS = 0.9
RARE = ((5, 0.25), (20, 0.07), (50, 0.07), (150, 0.07))
"""Rows and margin of the suites with rare losses."""
BOUNDS = {
    "losses_of_10_points_found": ">= 0.8",
    "claimed_losses_found_least": ">= 0.75",
    "claimed_losses_found_most": "<= 0.92",
    "sound_candidates_that_pass": ">= 0.5",
    "sound_candidates_that_fail": "<= 0.05",
    "unchanged_candidates_that_pass": ">= 1",
    "losses_of_the_margin_that_pass": "<= 0.05",
    "rare_losses_of_the_margin_that_pass": "<= 0.06",
    "equal_models_that_pass_pairs_and_questions": ">= 0.8",
}


def main() -> None:
    """Prints tables, then one line of JSON."""
    rows: dict[str, dict[str, float]] = {}
    for n in ROWS:
        for changes in CHANGES:
            rows[f"{n} rows, changes {changes:.0%}"] = _five_suites(n, changes=changes)
    print_table(f"{NUM_SUITES} suites with a margin of {CONFIG.max_loss:.0%}", rows)
    rare = {
        f"{n} rows, margin {margin:.0%}": _rates(_rare_losses(n, margin), max_loss=margin)
        for n, margin in RARE
    }
    print_table("Nearly equal scores, but rare losses of 90 points that sum to the margin", rare)
    pairs = {
        f"{share:.0%} of the questions differ": _rates(_pairs(share)) for share in (0.0, 0.05, 0.15)
    }
    print_table("80 pairs whose scores vary by 5 points, and 20 questions, no loss", pairs)
    unchanged = [row for name, row in rows.items() if name.endswith("changes 0%")]
    figures = {
        "losses_of_10_points_found": rows[BUILTIN]["10 points fail"],
        "claimed_losses_found_least": min(row["claimed fails"] for row in rows.values()),
        "claimed_losses_found_most": max(row["claimed fails"] for row in rows.values()),
        "sound_candidates_that_pass": rows[BUILTIN]["passes"],
        "sound_candidates_that_fail": max(row["fails"] for row in rows.values()),
        "unchanged_candidates_that_pass": min(row["passes"] for row in unchanged),
        "losses_of_the_margin_that_pass": max(row["margin passes"] for row in rows.values()),
        "rare_losses_of_the_margin_that_pass": max(row["passes"] for row in rare.values()),
        "equal_models_that_pass_pairs_and_questions": pairs["0% of the questions differ"]["passes"],
    }
    finish("suite_power", figures, bounds=BOUNDS)


def _five_suites(n: int, *, changes: float) -> dict[str, float]:
    """Return how often five suites pass and fail without a loss, and one of them with losses."""
    sound = _answers(n, changes=changes)
    generator = np.random.default_rng((SEED, n))
    gates = [_gate([sound] * NUM_SUITES, generator) for _ in range(NUM_GATES)]
    claimed = float(np.median([bound.detects for gate in gates for bound in gate.bounds]))
    at_margin = _rates(_answers(n, changes=changes, loss=CONFIG.max_loss))
    figures = _shares(gates) | {"margin passes": at_margin["passes"], "claimed": claimed}
    for name, loss in (("10 points", HARM), ("claimed", claimed)):
        harmed = _answers(n, changes=changes, loss=loss)
        shares = _shares(
            [_gate([harmed, *[sound] * (NUM_SUITES - 1)], generator) for _ in range(NUM_GATES)]
        )
        figures[f"{name} fail" if loss == HARM else f"{name} fails"] = shares["fails"]
    return figures


def _gate(
    suites: list[Draw], generator: np.random.Generator, *, max_loss: float = CONFIG.max_loss
) -> Gate:
    config = SuiteConfig(uri=CONFIG.uri, max_loss=max_loss)
    answered = {}
    for number, draw in enumerate(suites):
        ours, theirs = draw(generator)
        answered[str(number)] = AnsweredSuite(config, _table(ours), _table(theirs))
    return suites_gate(answered, alpha=ALPHA)


def _rates(draw: Draw, *, max_loss: float = CONFIG.max_loss) -> dict[str, float]:
    generator = np.random.default_rng(SEED)
    return _shares([_gate([draw], generator, max_loss=max_loss) for _ in range(NUM_GATES)])


def _shares(gates: list[Gate]) -> dict[str, float]:
    states = [gate.state for gate in gates]
    passes = states.count(State.PASSES) / len(states)
    error = float(np.sqrt(passes * (1 - passes) / len(states)))
    return {"passes": passes, "+-": error, "fails": states.count(State.FAILS) / len(states)}


def _answers(n: int, *, changes: float, loss: float = 0.0) -> Draw:
    """Return answers of which some get worse and as many get better, and some more get worse by a
    loss."""
    shares = (INCUMBENT - loss - changes, changes, loss + changes, 1 - INCUMBENT - changes)

    def draw(generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        cells = generator.choice(
            4, n, p=shares
        )  # both right, only the candidate, only the incumbent, neither
        return (cells <= 1).astype(np.float64), ((cells == 0) | (cells == 2)).astype(np.float64)

    return draw


def _rare_losses(n: int, margin: float) -> Draw:
    def draw(generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        theirs = generator.uniform(0.95, 0.99, n)
        rare = generator.random(n) < margin / RARE_LOSS
        return theirs + generator.normal(0, 0.002, n) - RARE_LOSS * rare, theirs

    return draw


def _pairs(share: float) -> Draw:
    """Return scores of pairs and questions; a model alone is right on this share of the
    questions."""
    accuracy = (1 + np.sqrt(1 - 2 * share)) / 2

    def draw(generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        means = generator.uniform(0.8, 1, 80)
        scores = []
        for _ in range(2):
            pairs = np.clip(means + generator.normal(0, 0.05, 80), 0, 1)
            scores.append(np.append(pairs, generator.random(20) < accuracy))
        return scores[0], scores[1]

    return draw


def _table(scores: FloatArray) -> Predictions:
    n = len(scores)
    return Predictions("simulated", ("r",) * n, ("a",) * n, ("a",) * n, scores, scores, scores)


if __name__ == "__main__":
    main()

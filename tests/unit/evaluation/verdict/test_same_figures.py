"""The figures of fixed verdicts are the same with each version of NumPy and SciPy and on each machine.

If a figure changes, `verify` fails for verdicts that were made before the change.
"""

import pytest

from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.types import Verdict
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, protocol_of, tables_of

SIMULATIONS = {
    "accuracy": Simulation(num_rows=600, candidate=0.74),
    "macro_f1": Simulation(num_rows=600, candidate=0.79, evaluation={"metric": "macro_f1"}, access_number=9),
    "token_f1": Simulation(num_rows=600, chat=True),
}


def figures(verdict: Verdict) -> dict[str, float | None]:
    """Return the figures that depend on draws."""
    calibration = [bound for gate in verdict.gates if gate.name == "calibration" for bound in gate.bounds]
    return {
        "low": verdict.interval[0],
        "high": verdict.interval[1],
        "p": verdict.p_value,
        "low in the second metric": verdict.second_metric.interval[0],
        "p in the second metric": verdict.second_metric.p_value,
        "power": verdict.power_at_expected_gain,
        "rows": verdict.rows_needed,
        "above the minimum": verdict.posterior.above_minimum,
        "loss if kept": verdict.posterior.loss_if_kept,
        **{bound.what: bound.interval[1] for bound in calibration},
    }


EXPECTED = {
    "accuracy": {
        "low": -0.001773590667511038,
        "high": 0.06177545271796594,
        "p": 0.06421280662713105,
        "low in the second metric": -0.0017101565748698325,
        "p in the second metric": 0.06479352064793521,
        "power": 0.1795,
        "rows": 3112,
        "above the minimum": 0.9065,
        "loss if kept": 0.030322660834877578,
        "debiased ECE": 0.05450895062831063,
    },
    "macro_f1": {
        "low": 0.00692550194446454,
        "high": 0.13763298531258258,
        "p": 5.744214539391288e-05,
        "low in the second metric": 0.010879332247041781,
        "p in the second metric": 4.6092473712511944e-05,
        "power": 0.0045,
        "rows": 8803,
        "above the minimum": 1.0,
        "loss if kept": 0.0723240988751738,
        "debiased ECE": 0.056958370248621396,
    },
    "token_f1": {
        "low": 0.02059520972854971,
        "high": 0.08254973103598992,
        "p": 0.00022328531347705498,
        "low in the second metric": 0.03433343407381823,
        "p in the second metric": 0.00014736752647418418,
        "power": 0.2175,
        "rows": 2674,
        "above the minimum": 0.999,
        "loss if kept": 0.05167651619611915,
    },
}


@pytest.mark.parametrize("name", SIMULATIONS)
def test_the_figures_of_a_verdict_are_the_same_everywhere(name: str) -> None:
    simulation = SIMULATIONS[name]
    verdict = decide(inputs_of_tables(simulation, tables_of(simulation)), protocol=protocol_of(simulation))
    assert figures(verdict) == pytest.approx(EXPECTED[name], rel=1e-9, abs=1e-12)

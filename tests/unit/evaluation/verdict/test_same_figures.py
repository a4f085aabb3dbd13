"""The figures of fixed verdicts are the same with each version of NumPy and SciPy and on each
machine.

If a figure changes, `verify` fails for verdicts that were made before the change.
"""

import pytest

from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.evaluation.verdict.types import Verdict
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, protocol_of, tables_of

SIMULATIONS = {
    "accuracy": Simulation(num_rows=600, candidate=0.74),
    "macro_f1": Simulation(
        num_rows=600, candidate=0.79, evaluation={"metric": "macro_f1"}, access_number=9
    ),
    "token_f1": Simulation(num_rows=600, chat=True),
}


def figures(verdict: Verdict) -> dict[str, float | None]:
    """Return the figures that depend on draws."""
    gain = verdict.relation("candidate", "incumbent")
    power = verdict.power
    assert power is not None
    calibration = [
        bound for gate in verdict.gates if gate.name == "calibration" for bound in gate.bounds
    ]
    return {
        "low": gain.interval[0],
        "high": gain.interval[1],
        "p": gain.p_value,
        "power at the minimum": power.at_minimum_gain,
        "power": power.at_expected_gain,
        "rows": power.rows_needed,
        **{bound.what: bound.interval[1] for bound in calibration},
    }


EXPECTED = {
    "accuracy": {
        "low": -0.001773590667511038,
        "high": 0.06177545271796594,
        "p": 0.06421280662713105,
        "power at the minimum": 0.0875,
        "power": 0.2125,
        "rows": 3544,
        "debiased ECE": 0.05875260013811037,
    },
    "macro_f1": {
        "low": 0.010560910568872373,
        "high": 0.1330971602476362,
        "p": 5.343513070321813e-05,
        "power at the minimum": 0.0025,
        "power": 0.0125,
        "rows": 10469,
        "debiased ECE": 0.055625842926237984,
    },
    "token_f1": {
        "low": 0.024525269608009357,
        "high": 0.07861967115653028,
        "p": 0.00022328531347705498,
        "power at the minimum": 0.0725,
        "power": 0.21,
        "rows": 2980,
    },
}


@pytest.mark.parametrize("name", SIMULATIONS)
def test_the_figures_of_a_verdict_are_the_same_everywhere(name: str) -> None:
    simulation = SIMULATIONS[name]
    verdict = reach_verdict(
        inputs_of_tables(simulation, tables_of(simulation)), protocol=protocol_of(simulation)
    )
    assert figures(verdict) == pytest.approx(EXPECTED[name], rel=1e-9, abs=1e-12)

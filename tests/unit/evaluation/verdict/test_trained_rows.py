"""No model is compared on rows that one of the compared models was trained on."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.evaluation.predictions import VerdictRefused
from tailorbird.evaluation.verdict.inputs import TrainedRows, without_trained_rows
from tailorbird.evaluation.verdict.reach import reach_verdict
from tests.unit.evaluation.simulated import (
    Simulation,
    inputs_of_tables,
    protocol_of,
    tables_of,
)

TRAINED = TrainedRows(
    {"incumbent": tuple(f"r{row}" for row in range(600)), "centroid": ("r599", "r601"), "few": None}
)
SIMULATION = Simulation(trained=TRAINED)


def test_rows_that_a_model_was_trained_on_leave_all_tables_of_test_rows() -> None:
    inputs = inputs_of_tables(SIMULATION, tables_of(SIMULATION))
    remaining = without_trained_rows(inputs)
    excluded = {*(f"r{row}" for row in range(600)), "r601"}
    for role, model in inputs.models.items():
        tables = [(model.clean, remaining.models[role].clean)]
        for name, table in model.changed.items():
            tables.append((table, remaining.models[role].changed[name]))
        for before, after in tables:
            rows = [row for row in before.row_ids if row.partition("|")[0] not in excluded]
            assert 0 < len(rows) < len(before)
            assert after.row_ids == tuple(rows)
    nothing = replace(inputs, trained_rows=TrainedRows({"incumbent": ()}))
    assert without_trained_rows(nothing).models == inputs.models


def test_the_rows_of_a_suite_remain() -> None:
    chat = Simulation(num_rows=300, chat=True, suites={"general": (0.7, 0.7)})
    tables = tables_of(chat)
    rows = (tables["incumbent_suite-general"].row_ids[0], tables["incumbent"].row_ids[0])
    inputs = replace(inputs_of_tables(chat, tables), trained_rows=TrainedRows({"incumbent": rows}))
    candidate = without_trained_rows(inputs).candidate
    assert (len(candidate.clean), len(candidate.changed["suite-general"])) == (299, 100)


def test_an_incumbent_that_knows_a_third_of_the_rows_does_not_keep_a_better_candidate_away() -> (
    None
):
    simulation = Simulation(num_rows=3000, incumbent=0.70, candidate=0.76, gates=False)
    tables = tables_of(simulation)
    known = np.arange(3000) < 1000
    incumbent = tables["incumbent"]
    outputs = np.where(known, incumbent.labels, incumbent.outputs).tolist()
    tables["incumbent"] = replace(
        incumbent, outputs=tuple(outputs), scores=np.where(known, 1.0, incumbent.scores)
    )
    inputs, protocol = inputs_of_tables(simulation, tables), protocol_of(simulation)
    trained = TrainedRows({"incumbent": incumbent.row_ids[:1000], "centroid": None})
    before = reach_verdict(inputs, protocol=protocol)
    verdict = reach_verdict(replace(inputs, trained_rows=trained), protocol=protocol)
    assert (before.outcome, before.n) == ("STAY", 3000)
    assert (verdict.outcome, verdict.n) == ("FINE_TUNE", 2000)
    [rows] = [sentence for sentence in verdict.sentences if "was trained on" in sentence]
    assert "incumbent was trained on 1,000 of the 3,000 test rows (33.3%)" in rows
    assert "the training rows of the centroid are unknown" in rows


def test_models_that_were_trained_on_all_rows_cannot_be_compared() -> None:
    tables = tables_of(SIMULATION)
    trained = TrainedRows({"incumbent": tables["incumbent"].row_ids})
    inputs = replace(inputs_of_tables(SIMULATION, tables), trained_rows=trained)
    with pytest.raises(VerdictRefused):
        reach_verdict(inputs, protocol=protocol_of(SIMULATION))

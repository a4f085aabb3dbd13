"""The sweep on real Tune and Train: what cannot reach the rung to beat stops early, and one trial is still exported."""

import uuid

from cluster import storage
from cluster.progress import relayed
from cluster.session import connect
from recipes.schema import TrainingSection, TuningSection
from tests.integration.small import REGISTRY, Heard
from tests.integration.test_training import training_task
from tuning.sweep import SweepResult, sweep


def test_trials_that_cannot_reach_the_incumbent_stop_and_the_best_of_them_is_exported(small_data: str) -> None:
    task = training_task(small_data, num_rows=64)
    training = TrainingSection(epochs=4, batch_size=16, learning_rate=1e-6)
    rungs = {"majority": 0.2, "probe": 0.99}
    heard = Heard()
    with connect(), relayed(heard) as relay:
        result = sweep(
            TuningSection(num_trials=2, grace_epochs=4),
            training=training,
            task=task,
            rungs=rungs,
            uri=f"{REGISTRY}/sweep-{uuid.uuid4().hex}",
            relay=relay,
        )
    trials = [row for row in result.rows if row.status != "pretrained"]
    assert [row.status for row in trials] == ["stopped: cannot reach the best rung any more"] * 2
    assert [len(row.scores) for row in trials] == [2, 2]
    assert {row.trial: row.score for row in result.rows if row.status == "pretrained"} == rungs
    assert result.rows[0].trial == "probe"
    assert result.selected == training
    assert storage.exists(f"{result.trained.weights}/head.safetensors")
    assert result.trained.score == max(row.score for row in trials)
    assert SweepResult.from_dict(result.to_dict()) == result
    assert len(heard.of_kind("epoch")) == 4

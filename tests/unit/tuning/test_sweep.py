"""Search space and storage of a sweep, and selection of a trial, without Ray."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from tailorbird import storage
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from tailorbird.storage import s3
from tests.unit.tuning.broker import result
from training.trainer import TrainingFailed
from tuning.scheduler import build_search
from tuning.search_space import max_epochs, param_space, trial_config
from tuning.sweep import delete_other_weights, select_trial
from tuning.trial_record import BASE_MODEL, SweepJournal, TrialRecord, write_journal
from tuning.tuner import build_tuner


def test_the_journal_and_tune_use_the_retry_policy_of_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    attempts: list[int] = []

    def count_attempts(uri: str, **options: Any) -> Any:
        store, path = s3.filesystem(uri, **options)
        attempts.append(store.chosen.num_attempts)
        raise OSError(path)

    monkeypatch.setattr("tailorbird.storage.objects.filesystem", count_attempts)
    monkeypatch.setattr("tuning.tuner.filesystem", count_attempts)
    with pytest.raises(OSError, match=r"journal\.json"):
        write_journal(SweepJournal(), uri="s3://models/sweep")
    options: Any = {
        "base_models": ("base",),
        "broker": None,
        "known": (),
        "max_concurrent": 1,
        "uri": "s3://models/sweep",
    }
    monkeypatch.setattr("tuning.tuner.this_node_selector", dict)
    with pytest.raises(OSError, match="models/sweep"):
        build_tuner(TuningConfig(), training=TrainingConfig(), **options)
    assert attempts == [s3.PERSISTENT.min_attempts] * 2


def test_a_sweep_without_weights_fails_with_all_causes() -> None:
    journal = SweepJournal(trials=(TrialRecord(trial="a", config={}, failure="the loss is nan"),))
    with pytest.raises(
        TrainingFailed, match="no trial produced weights: out of memory; the loss is nan"
    ):
        select_trial(journal, errors=["out of memory"])


@pytest.mark.parametrize(
    ("selected", "others"),
    [
        ("trial-a-2", ["trial-a-1", "trial-b-2"]),
        ("weights-9f86d081884c", ["weights-60303ae22b99", "weights-5e884898da28"]),
    ],
)
def test_only_the_selected_weights_and_their_copies_are_kept(
    selected: str, others: list[str], tmp_path: Path
) -> None:
    kept = {selected, f"{selected}-1.5", "tune", "train", "journal.json", "done.json"}
    for name in (*kept, *others):
        storage.write_bytes(f"{tmp_path.as_uri()}/{name}/file", b"")
    delete_other_weights(result(f"{tmp_path.as_uri()}/{selected}"))
    assert {path.name for path in tmp_path.iterdir()} == kept


SPACE = {
    "method": Distribution(choice=("full", "lora")),
    "learning_rate": Distribution(log_uniform=(1e-5, 1e-3)),
    "lora_dropout": Distribution(log_uniform=(0.01, 0.5)),
}


def test_each_field_becomes_a_sampler_within_its_bounds() -> None:
    assert trial_config(TrainingConfig(seed=3), {"epochs": 5}) == TrainingConfig(seed=3, epochs=5)
    space = param_space(TuningConfig(space=SPACE), base_models=("base",))
    assert set(space) == set(SPACE)
    assert list(space["method"].categories) == ["full", "lora"]
    assert (space["learning_rate"].lower, space["learning_rate"].upper) == (1e-5, 1e-3)
    for _ in range(20):
        config = trial_config(
            TrainingConfig(), {name: sampler.sample() for name, sampler in space.items()}
        )
        assert 1e-5 <= config.learning_rate <= 1e-3
        assert 0 <= config.lora_dropout <= 0.5


@pytest.mark.parametrize(
    ("distribution", "maximum"),
    [(None, 4), (Distribution(choice=(1, 6, 2)), 6), (Distribution(log_uniform=(1, 3)), 3)],
)
def test_max_epochs_is_the_largest_value_of_the_search_space(
    distribution: Distribution | None, maximum: int
) -> None:
    space = {} if distribution is None else {"epochs": distribution}
    assert max_epochs(TrainingConfig(epochs=4), TuningConfig(space=space)) == maximum


def test_the_first_trials_train_each_base_model_once_with_a_whole_configuration() -> None:
    bases = ("wide", "narrow", "deep")
    space = param_space(TuningConfig(space=SPACE), base_models=bases)
    config: dict[str, JsonValue] = {
        "method": "full",
        "learning_rate": 1e-4,
        "lora_dropout": 0.1,
        BASE_MODEL: "wide",
    }
    known = [TrialRecord(trial="a", config=config)]
    search = build_search(space, base_models=bases, known=known, seed=1, max_concurrent=9)
    search.set_search_properties("score", "max", space)
    points = [search.suggest(str(number)) for number in range(6)]
    assert [point[BASE_MODEL] for point in points[:3]] == list(bases)
    for point in points[1:]:
        sampled = trial_config(TrainingConfig(), point)
        assert 1e-5 <= sampled.learning_rate <= 1e-3
        assert sampled.method in ("full", "lora")
    assert len({point["learning_rate"] for point in points[1:]}) == 5

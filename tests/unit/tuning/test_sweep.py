"""Storage of a sweep and selection of a trial, without Ray."""

from pathlib import Path
from typing import Any

import pytest

from tailorbird import storage
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from tailorbird.storage import s3
from training.reports import TrainingResult
from training.trainer import TrainingFailed
from tuning.sweep import delete_other_weights, select_trial
from tuning.trial_record import SweepJournal, TrialRecord, write_journal
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
        "stopper": None,
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
    trained = TrainingResult(
        weights=f"{tmp_path.as_uri()}/{selected}",
        score=0.5,
        epochs=1,
        rows_per_second=1.0,
        padding_share=0.0,
        step_seconds=1.0,
        dtype="float32",
    )
    delete_other_weights(trained)
    assert {path.name for path in tmp_path.iterdir()} == kept

"""A run whose baselines are always right starts no training."""

from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from cluster.connection import connect
from cluster.progress import EpochEvent, NoteEvent
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.config.loader import load_recipe
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.pipeline.run import run_pipeline, sweep_only
from tailorbird.registry.test_set_ledger import read_test_accesses
from tests import small_encoder
from tests.integration.small import write_table
from tests.progress import ProgressRecorder
from tests.separable import separable_rows

pytestmark = pytest.mark.usefixtures("connected")

BASE, DATA = "s3://lake/separable-base", "s3://lake/separable"
SIZES = {"train": 48, "validation": 320, "test": 60}


def test_no_training_starts_unless_it_is_wanted(tmp_path: Path) -> None:
    small_encoder.save(tmp_path / "base")
    storage.upload_folder(tmp_path / "base", BASE)
    for seed, (split, size) in enumerate(SIZES.items()):
        rows = separable_rows(size, seed=seed)
        write_table(f"{DATA}/{split}.parquet", pa.table({"text": rows.texts, "label": rows.labels}))
    content = {
        "name": "separable",
        "base_model": BASE,
        "data": {split: f"{DATA}/{split}.parquet" for split in SIZES} | {"max_length": 16},
        "training": {"num_workers": 1, "num_seeds": 1},
        "tuning": {"num_trials": 1},
        "registry": "s3://models",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe = load_recipe(path)
    recorder = ProgressRecorder()
    with connect():
        result = run_pipeline(recipe, progress=recorder)
        with pytest.raises(ValueError, match="no training is started"):
            sweep_only(recipe, progress=ProgressRecorder())
        again = run_pipeline(recipe, progress=ProgressRecorder())
    assert not recorder.of_kind(EpochEvent)
    assert any(
        note.text.startswith("no training is started") for note in recorder.of_kind(NoteEvent)
    )
    verdict = result.verdict
    assert (verdict.outcome, verdict.candidate) == (Outcome.STAY, None), verdict.sentences
    assert verdict.sentences[0].startswith("Fine-tuning has nothing to gain")
    assert verify_evidence(result.run) == ()
    assert again == result
    assert len(read_test_accesses(recipe.task_uri)) == 1
    assert b"No training" in storage.read_bytes(f"{result.run}/report.html")

"""A run with two base models of different sizes: each is tried, and validation selects."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.connection import connect
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.config.recipe import Recipe
from tailorbird.data.rows import Rows
from tailorbird.pipeline.run import baselines_only, run_pipeline
from tailorbird.registry.kinds import spec_of
from tailorbird.registry.versions import read_artifact_config
from tests import small_chat, small_encoder
from tests.integration.small import stages, write_table
from tests.progress import ProgressRecorder
from tests.separable import separable_rows

pytestmark = pytest.mark.usefixtures("connected")

BASES = ("s3://lake/base-wide", "s3://lake/base-narrow")
DATA = "s3://lake/two-bases"
SIZES = {"train": 96, "validation": 60, "test": 60}


def noisy(rows: Rows, *, seed: int) -> Rows:
    """Return the rows with one of five labels drawn at random, so that training has something to
    gain."""
    generator = random.Random(seed)
    labels = []
    for row, label in enumerate(rows.labels):
        labels.append(generator.choice(("blue", "red")) if row % 5 == 0 else label)
    return replace(rows, labels=tuple(labels))


def recipe(**changed: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "two-bases",
        "base_model": list(BASES),
        "data": {split: f"{DATA}/{split}.parquet" for split in SIZES} | {"max_length": 16},
        "training": {"num_workers": 1, "num_seeds": 1, "epochs": 1, "learning_rate": 1e-3},
        "tuning": {"num_trials": 2},
        "registry": "s3://models",
    }
    return Recipe.model_validate(content | changed)


def test_each_base_model_is_tried_and_the_models_name_theirs(tmp_path: Path) -> None:
    for uri, hidden_size in zip(BASES, (32, 16), strict=True):
        folder = tmp_path / str(hidden_size)
        small_encoder.save(folder, hidden_size=hidden_size)
        storage.upload_folder(folder, uri)
    for seed, (split, size) in enumerate(SIZES.items()):
        rows = noisy(separable_rows(size, seed=seed), seed=seed)
        write_table(f"{DATA}/{split}.parquet", pa.table({"text": rows.texts, "label": rows.labels}))

    with connect():
        evidence = run_pipeline(recipe(), progress=ProgressRecorder()).evidence
        fitted = stages(recipe().task_uri)
        narrow = baselines_only(recipe(base_model=BASES[1]), progress=ProgressRecorder())
        assert stages(recipe().task_uri) == fitted  # each base model has its own stage

    assert [base.source for base in evidence.base_models] == list(BASES)
    compared = [score for score in evidence.scores if score.base_models]
    assert {score.kind for score in compared} == {"zero_shot", "centroid", "probe", "probe_bag"}
    of_narrow = {baseline.kind: baseline.validation for baseline in narrow}
    for score in compared:
        assert score.validation == max(score.base_models.values())
        assert score.base_models[BASES[1]] == of_narrow[score.kind]
        assert len(score.base_models) == 2

    trials = [trial for trial in evidence.sweep if trial.config]
    assert {trial.config["base_model"] for trial in trials} == set(BASES)
    best = max(trials, key=lambda trial: trial.validation)
    assert evidence.versions["candidate"].base_model == best.config["base_model"]
    for version in evidence.versions.values():
        config = read_artifact_config(version.uri)
        if spec_of(version.kind).uses_base:
            assert version.base_model == config.base_model
        else:
            assert version.base_model is None
    assert verify_evidence(evidence.run) == ()


def test_chat_models_render_their_templates_and_one_without_a_template_is_named(
    tmp_path: Path,
) -> None:
    templates = {"plain": small_chat.TEMPLATE, "marked": f"<system>{small_chat.TEMPLATE}"}
    templates["none"] = ""
    for name, template in templates.items():
        small_chat.save(tmp_path / name)
        small_chat.tokenizer(template or None).save_pretrained(tmp_path / name)
        if not template:
            (tmp_path / name / "chat_template.jinja").unlink(missing_ok=True)
        storage.upload_folder(tmp_path / name, f"s3://lake/chat-base-{name}")
    uris = {}
    for split, size in SIZES.items():
        uris[split] = f"s3://lake/two-chat-bases/{split}.parquet"
        texts = [f"{split} {number} of {size}" for number in range(12)]
        write_table(uris[split], pa.table({"prompt": texts, "completion": ["yes"] * 12}))
    content: dict[str, Any] = {
        "task": "chat",
        "name": "two-chat-bases",
        "data": uris | {"max_length": 64, "max_new_tokens": 4},
        "evaluation": {"metric": "exact_match", "prompt_shots": 2, "prompt_draws": 1},
    }
    with connect():
        both = ["s3://lake/chat-base-plain", "s3://lake/chat-base-marked"]
        baselines = baselines_only(recipe(base_model=both, **content), progress=ProgressRecorder())
        without = [both[0], "s3://lake/chat-base-none"]
        with pytest.raises(ValueError, match="chat-base-none"):
            baselines_only(recipe(base_model=without, **content), progress=ProgressRecorder())
    zero_shot = next(baseline for baseline in baselines if baseline.kind == "zero_shot")
    assert set(zero_shot.base_models) == set(both)

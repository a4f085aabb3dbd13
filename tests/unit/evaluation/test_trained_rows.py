"""Test rows that a version was trained on are known by the fingerprints in its folder."""

from pathlib import Path

import numpy as np
import pytest

from tailorbird import storage
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.fingerprints import fingerprints, save_fingerprints
from tailorbird.evaluation.trained_rows import (
    require_enough_rows,
    trained_rows,
    training_fingerprints,
)
from tailorbird.evaluation.verdict.inputs import TrainedRows
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.kinds import Kind
from tailorbird.registry.versions import (
    TRAINING_ROWS,
    ModelVersion,
    VersionConfig,
    register,
    write_config,
)
from tests import build

TEST = build.rows(("My knee", "a rash", "an eye"), ("a", "b", "a"))


def version_of(
    folder: Path, *, kind: Kind = "bag_of_words", texts: tuple[str, ...] | None = None
) -> ModelVersion:
    """Register a version that learned from these texts; None for unknown ones."""
    folder.mkdir()
    for name in ("bag_of_words.json", "bag_of_words.safetensors", "head.safetensors"):
        (folder / name).write_bytes(b"weights")
    fields = {
        "base_model": "s3://m/base",
        "max_length": 8,
        "dtype": "float32",
        "code": "s3://m/c.zip",
    }
    dated = {
        "classes": ("a", "b"),
        "recipe_hash": folder.name,
        "created_at": "2026-01-01T00:00:00+00:00",
    }
    write_config(folder, VersionConfig.model_validate({"kind": kind} | fields | dated))
    if texts is not None:
        save_fingerprints((folder / TRAINING_ROWS).as_uri(), fingerprints(texts))
    return register((folder.parent / "task").as_uri(), folder)


def hybrid_of(folder: Path, first: ModelVersion, second: ModelVersion) -> ModelVersion:
    folder.mkdir()
    write_config(
        folder, hybrid_config(first, second=second, routing=Routing(by="cascade", threshold=0.5))
    )
    return register((folder.parent / "task").as_uri(), folder)


def test_the_test_rows_of_each_version_are_known_by_letters_and_digits(tmp_path: Path) -> None:
    versions = {
        "incumbent": version_of(tmp_path / "first", texts=("my knee!", "a hand")),
        "elsewhere": version_of(tmp_path / "second"),
        "pretrained": version_of(tmp_path / "third", kind="zero_shot"),
    }
    trained = trained_rows(TEST, versions)
    assert trained == TrainedRows({"incumbent": ("0",), "elsewhere": None, "pretrained": ()})
    assert trained.excluded == frozenset({"0"})
    assert trained.unknown == ("elsewhere",)


def test_a_hybrid_was_trained_on_the_rows_of_its_parts(tmp_path: Path) -> None:
    first = version_of(tmp_path / "first", texts=("an eye",))
    second = version_of(tmp_path / "second", texts=("my knee",))
    hybrid = hybrid_of(tmp_path / "hybrid", first, second)
    assert trained_rows(TEST, {"incumbent": hybrid}).rows == {"incumbent": ("0", "2")}
    assert not storage.exists(f"{hybrid.uri}/{TRAINING_ROWS}")
    with_unknown = hybrid_of(tmp_path / "unknown", first, version_of(tmp_path / "third"))
    assert training_fingerprints(with_unknown) is None
    of_nothing = training_fingerprints(version_of(tmp_path / "fourth", kind="zero_shot"))
    np.testing.assert_array_equal(of_nothing, [])


def trained_on(number: int) -> TrainedRows:
    return TrainedRows({"incumbent": tuple(map(str, range(number)))})


def test_a_run_is_refused_only_if_the_other_rows_are_too_few_and_all_rows_are_enough() -> None:
    config = EvaluationConfig(minimum_gain=0.01)  # so the expected gain of 2 points needs 393 rows
    for num_trained, num_test in ((0, 1000), (600, 1000), (2, 392)):
        require_enough_rows(trained_on(num_trained), num_test=num_test, config=config)
    message = (
        r"the incumbent was trained on 610 of the 1,000 test rows \(61.0%\), on which no model is compared; with 80% "
        r"power, the 390 other rows show a gain of 2.01 points or more, but evaluation.expected_gain is 2 points. Add "
    )
    with pytest.raises(ValueError, match=message):
        require_enough_rows(trained_on(610), num_test=1000, config=config)
    with pytest.raises(ValueError, match="no other row remains"):
        require_enough_rows(trained_on(9), num_test=9, config=config)

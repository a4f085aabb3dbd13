"""Test rows that a version was trained on are known by the fingerprints in its folder."""

from pathlib import Path

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
    fields = {"kind": kind, "classes": ("a", "b"), "recipe_hash": folder.name}
    write_config(folder, build.version_config(**fields))
    if texts is not None:
        save_fingerprints((folder / TRAINING_ROWS).as_uri(), fingerprints(texts))
    return register((folder.parent / "task").as_uri(), folder)


def hybrid_from(folder: Path, first: ModelVersion, second: ModelVersion) -> ModelVersion:
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
    hybrid = hybrid_from(tmp_path / "hybrid", first, second)
    assert trained_rows(TEST, {"incumbent": hybrid}).rows == {"incumbent": ("0", "2")}
    assert not storage.exists(f"{hybrid.uri}/{TRAINING_ROWS}")
    with_unknown = hybrid_from(tmp_path / "unknown", first, version_of(tmp_path / "third"))
    assert training_fingerprints(with_unknown) is None


def trained_on(number: int) -> TrainedRows:
    return TrainedRows({"incumbent": tuple(map(str, range(number)))})


def test_a_run_is_refused_only_if_the_other_rows_are_too_few_and_all_rows_are_enough() -> None:
    config = EvaluationConfig(minimum_gain=0.01)  # so the expected gain of 2 points needs 393 rows
    for num_trained, num_test in ((0, 1000), (600, 1000), (2, 392)):
        require_enough_rows(trained_on(num_trained), num_test=num_test, config=config)
    for num_trained, num_test, text in ((610, 1000, "610 of the 1,000"), (9, 9, "no other row")):
        with pytest.raises(ValueError, match=text):
            require_enough_rows(trained_on(num_trained), num_test=num_test, config=config)

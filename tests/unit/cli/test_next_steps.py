"""The commands that follow a command."""

import pytest

from tailorbird.cli.next_steps import after_run
from tailorbird.cli.train import print_verdict
from tailorbird.config.loader import load_recipe
from tests.docs.test_pages import unknown_part
from tests.unit.checks.finished_run import ROOT
from tests.unit.evaluation.report.test_html import evidence_for

RUN, PROBE, LORA = (
    f"s3://models/topics/{name}" for name in ("runs/0f3a", "versions/probe-1", "versions/lora-2")
)


@pytest.mark.parametrize(
    ("champion", "recipe", "verbs"),
    [
        (None, "my task.yaml", ["report", "promote", "serve"]),
        (PROBE, "my task.yaml", ["report", "promote", "serve"]),
        (LORA, "my task.yaml", ["report", "serve", "verify"]),
        (PROBE, None, ["report", "verify"]),
    ],
    ids=["no champion", "another champion", "the winner is the champion", "another task"],
)
def test_a_run_is_followed_by_the_commands_that_apply(
    champion: str | None, recipe: str | None, verbs: list[str]
) -> None:
    title, *steps = after_run(RUN, winner=LORA, champion=champion, recipe=recipe)
    commands = [step.partition(": ")[2].split() for step in steps]
    assert title == "next steps:"
    assert [command[1] for command in commands] == verbs
    assert [part for command in commands if (part := unknown_part(command))] == []


def test_a_run_ends_with_one_panel(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes" / "icd10_demo.yaml")
    evidence = evidence_for("FINE_TUNE").model_copy(update={"recipe": load_recipe(recipe)})
    print_verdict(evidence, recipe=recipe)
    version = evidence.winner.uri.rpartition("/")[2]
    assert capsys.readouterr().out.splitlines() == [
        "",
        evidence.verdict.sentence(),
        evidence.verdict.numbers(),
        f"served next: {version} (fine-tuned model), once promoted",
        *after_run(
            evidence.run, winner=evidence.winner.uri, champion=evidence.champion, recipe=recipe
        ),
    ]

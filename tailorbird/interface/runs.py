"""Run a recipe, and compare versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tailorbird.config.loader import load_recipe, parse_recipe, recipe_text
from tailorbird.config.recipe import Recipe
from tailorbird.interface.environment import use_running_stack

if TYPE_CHECKING:
    from tailorbird.evaluation.report.evidence import Evidence
    from tailorbird.evaluation.report.version_comparison import VersionComparison
    from tailorbird.evaluation.verdict.types import Verdict


@dataclass(frozen=True)
class Run:
    """A finished run. A notebook shows its report, and a terminal the lines that `tailorbird run`
    prints."""

    evidence: "Evidence" = field(repr=False)
    """The content of `evidence.json`."""

    @property
    def uri(self) -> str:
        """URI of the run."""
        return self.evidence.run

    @property
    def verdict(self) -> "Verdict":
        """The verdict; gains are shares, so 0.01 is one percentage point."""
        return self.evidence.verdict

    @property
    def winner(self) -> str:
        """URI of the version that the verdict selected."""
        return self.evidence.winner.uri

    @property
    def versions(self) -> dict[str, str]:
        """URIs of the compared models by role: `incumbent`, `candidate` and others. Not all of them
        are registered."""
        return {role: version.uri for role, version in self.evidence.versions.items()}

    def __repr__(self) -> str:
        from tailorbird.evaluation.report.console import verdict_lines

        return "\n".join(verdict_lines(self.evidence))

    def report(self) -> str:
        """Return the report as a self-contained HTML page, as stored in `report.html`."""
        from tailorbird.evaluation.report.html import to_html

        return to_html(self.evidence)

    def _repr_html_(self) -> str:
        from tailorbird.interface.notebook import report_html

        return report_html(self.evidence)


@dataclass(frozen=True)
class Comparison:
    """A comparison of two versions on the same test rows. It is not a verdict: it evaluates no
    gates."""

    result: "VersionComparison" = field(repr=False)
    """URIs, metric, and the comparison with scores, counts and level."""

    @property
    def gain(self) -> float:
        """Score of the first version minus that of the second, as a share."""
        return self.result.comparison.gain

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of the gain at 1 - `result.alpha`."""
        return self.result.comparison.interval

    @property
    def p_value(self) -> float:
        """Two-sided p value of the gain."""
        return self.result.comparison.p_value

    def __repr__(self) -> str:
        return "\n".join(self.result.lines())


def run(
    recipe: Recipe | Mapping[str, object] | str | Path,
    *,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Run:
    """Run a recipe from data to a verdict, on the configured Ray cluster or the running embedded
    stack.

    `recipe` is a path or URI of a YAML file, its content as a mapping, or a `Recipe`. `overrides`
    are texts `section.key=value`. Progress is printed unless `quiet` is set. A run that was
    interrupted resumes, and a finished run returns within seconds. A run on an embedded stack waits
    until no other run uses it. Raises RecipeError for an invalid recipe, SessionError without a
    cluster, other subclasses of ValueError for invalid data, and TrainingFailed.
    """
    content = _read(recipe, overrides=tuple(overrides))
    use_running_stack()
    from rich.console import Console

    from cluster.connection import connect
    from cluster.display.console import display
    from cluster.local.run_queue import stack_in_use, turn

    console = Console(quiet=quiet, force_jupyter=False)  # in a notebook, a line of text per event
    command = f"tailorbird.run, recipe {content.name}"
    with (
        display(console) as progress,
        turn(stack_in_use(), command=command, note=progress.wait),
        connect(),
    ):
        from tailorbird.pipeline.run import run_pipeline

        return Run(run_pipeline(content, progress=progress).evidence)


def compare(first: str, second: str) -> Comparison:
    """Compare two versions on the same test rows, from their stored predictions, without a cluster.

    Each argument is the URI of a version, or of a run for its candidate or, without one, its
    winner. Raises VerdictRefused if they were tested on different rows, and ValueError if there is
    no evidence at a URI.
    """
    use_running_stack()
    from tailorbird.evaluation.report.version_comparison import compare_versions

    return Comparison(compare_versions(first, second=second))


def _read(
    recipe: Recipe | Mapping[str, object] | str | Path, *, overrides: tuple[str, ...]
) -> Recipe:
    if isinstance(recipe, Recipe):
        return parse_recipe(recipe_text(recipe).encode(), path="(a Recipe)", overrides=overrides)
    if isinstance(recipe, Mapping):
        return parse_recipe(
            yaml.safe_dump(dict(recipe)).encode(), path="(a mapping)", overrides=overrides
        )
    if "://" not in str(recipe):
        return load_recipe(recipe, overrides=overrides)
    use_running_stack()
    from tailorbird import storage

    return parse_recipe(storage.read_bytes(str(recipe)), path=recipe, overrides=overrides)

"""Two versions, or two runs' candidates, beside each other: from the predictions that lie with them."""

from dataclasses import asdict, dataclass
from typing import Any

from tailorbird import storage
from tailorbird.evaluation.hybrid import apply_routing
from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tailorbird.evaluation.report.evidence import role_at
from tailorbird.evaluation.report.evidence_files import case_of, load_all_predictions
from tailorbird.evaluation.report.sections import METRIC_NAMES
from tailorbird.evaluation.statistics.paired import Comparison, compare
from tailorbird.evaluation.verdict.formatting import p_text, points


@dataclass(frozen=True)
class VersionComparison:
    """The first against the second on the same test rows."""

    first: str
    second: str
    """URIs of the versions."""
    metric: str
    alpha: float
    found: Comparison
    """The first is its candidate."""

    def lines(self) -> list[str]:
        """For the terminal: both scores, then gain, interval, p and n."""
        found, name = self.found, METRIC_NAMES[self.metric]
        low, high = found.interval
        return [
            f"{found.candidate_score:.4f}  {self.first}",
            f"{found.other_score:.4f}  {self.second}",
            f"{name} of the first minus the second: {points(found.gain)} points ({100 * (1 - self.alpha):g} % interval "
            f"{points(low)} to {points(high)}, {p_text(found.p_value)}, n = {found.counts.n:,}); no verdict: no gate "
            "was looked at, and who compares many finds gains by chance",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"found": asdict(self.found) | {"interval": list(self.found.interval)}}


def compare_versions(first: str, *, second: str) -> VersionComparison:
    """Compares what lies at two URIs, of a version or of a run (then its candidate), by the first's metric and level.

    Raises VerdictRefused where the two were not asked about the same test rows, ValueError where there is no evidence.
    """
    (name, table, question), (other_name, other, other_question) = (
        _predicted(uri.rstrip("/")) for uri in (first, second)
    )
    if question["test_sha256"] != other_question["test_sha256"]:
        raise VerdictRefused(
            f"{name} and {other_name} were tested on other rows: their sha256 are {question['test_sha256']} and "
            f"{other_question['test_sha256']}; compare versions that one run judged, or judge both in a new run"
        )
    align(table, other)
    metric, alpha = question["metric"], question["alpha"]
    return VersionComparison(name, other_name, metric, alpha, compare(table, other=other, metric=metric, alpha=alpha))


def _predicted(uri: str) -> tuple[str, Predictions, dict[str, Any]]:
    """URI of the version that a URI stands for, its answers on the test rows, and the question they were given to."""
    if not storage.exists(f"{uri}/evidence.json"):
        raise ValueError(f"{uri} has no evidence.json; give the URI of a finished run or of a version")
    evidence = storage.read_json(f"{uri}/evidence.json")
    versions = evidence["versions"]
    role = role_at(uri, evidence=evidence) if uri in {version["uri"] for version in versions.values()} else "candidate"
    tables = load_all_predictions(uri)
    if role == "hybrid":
        case = case_of(evidence, tables)
        assert case.routing is not None  # a version in this role comes from one
        table = apply_routing(case.routing, incumbent=case.incumbent, candidate=case.candidate).clean
    else:
        table = tables[role]
    return str(versions[role]["uri"]), table, evidence["question"]

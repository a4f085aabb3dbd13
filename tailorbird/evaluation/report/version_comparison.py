"""Compare two versions, or the candidates of two runs, from their stored predictions."""

from pydantic import BaseModel

from tailorbird import storage
from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, Evidence
from tailorbird.evaluation.report.evidence_files import load_all_predictions
from tailorbird.evaluation.statistics.paired import Comparison, compare
from tailorbird.evaluation.verdict.formatting import gain_text, p_text
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.reach import hybrid_predictions


class VersionComparison(BaseModel, frozen=True):
    """The comparison of two versions on the same test rows."""

    first: str
    second: str
    metric: str
    alpha: float
    comparison: Comparison
    """The comparison, with the first version as candidate."""

    def lines(self) -> list[str]:
        """Return lines for the terminal with both scores, gain, interval, p and n."""
        result = self.comparison
        name = METRICS[self.metric].title
        more = (p_text(result.p_value), f"n = {result.counts.n:,}")
        gain = gain_text(result.gain, result.interval, level=self.alpha, more=more)
        return [
            f"{result.candidate_score:.4f}  {self.first}",
            f"{result.other_score:.4f}  {self.second}",
            f"{name} of the first minus the second: {gain}",
            "this comparison is not a verdict: it evaluates no gates, and comparing many "
            "versions finds gains by chance",
        ]


def compare_versions(first: str, *, second: str) -> VersionComparison:
    """Compare two versions by URI; the URI of a run selects its candidate or, without one, its
    winner.

    Metric and level are those of the first. Raises VerdictRefused if the two were tested on
    different rows, ValueError if there is no evidence.
    """
    name, table, protocol = _predicted(first.rstrip("/"))
    other_name, other, other_protocol = _predicted(second.rstrip("/"))
    if protocol.test_sha256 != other_protocol.test_sha256:
        raise VerdictRefused(
            f"{name} and {other_name} were tested on different rows: their sha256 are "
            f"{protocol.test_sha256} and {other_protocol.test_sha256}; compare versions of the "
            "same run, or evaluate both in a new run"
        )
    if protocol.answers != other_protocol.answers:
        raise VerdictRefused(
            f"{name} and {other_name} were tested with different settings of evaluation.answers; "
            "compare versions of the same run, or evaluate both in a new run"
        )
    metric = protocol.metric
    alpha = protocol.alpha
    return VersionComparison(
        first=name,
        second=other_name,
        metric=metric,
        alpha=alpha,
        comparison=compare(table, other=other, metric=metric, alpha=alpha),
    )


def _predicted(uri: str) -> tuple[str, Predictions, TestProtocol]:
    """Return the version's URI, its predictions for the test rows, and the protocol."""
    if not storage.exists(f"{uri}/{EVIDENCE_FILE}"):
        raise ValueError(
            f"{uri} has no {EVIDENCE_FILE}; give the URI of a finished run or of a version"
        )
    evidence = Evidence.model_validate_json(storage.read_bytes(f"{uri}/{EVIDENCE_FILE}"))
    is_version = uri in {version.uri for version in evidence.versions.values()}
    role = evidence.role_of(uri)
    if not is_version and evidence.verdict.candidate is not None:
        role = "candidate"
    tables = load_all_predictions(uri)
    version = evidence.versions[role].uri
    if role != "hybrid":
        return version, tables[role], evidence.protocol
    inputs = evidence.verdict_inputs(tables)
    hybrid = hybrid_predictions(inputs, protocol=evidence.protocol)
    assert hybrid is not None  # the role requires a hybrid
    return version, hybrid.clean, evidence.protocol

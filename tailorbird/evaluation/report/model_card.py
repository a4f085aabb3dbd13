"""The model card that leaves with a version: the Hub's metadata, then what a reader must know, from the evidence."""

import yaml

from tailorbird.config.tasks import TASKS
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.report.console import power_sentence, score_cells, seed_sentence, streaming_sentence
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.sections import METRIC_NAMES
from tailorbird.evaluation.verdict.formatting import p_text, points
from tailorbird.evaluation.verdict.types import Verdict

ROLES = ("candidate", "incumbent", "hybrid")
HUB_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "ece": "ece",
    "exact_match": "exact_match",
    "token_f1": "f1",
    "rouge_l": "rouge",
}
"""The Hub's name of each metric."""
BEHAVIORAL_GATES = {
    "counterfactual": "Whether answers turn with a person's name, sex or age",
    "robustness": "Whether answers survive typing errors, case and white space",
}


def to_model_card(evidence: Evidence, *, role: str = "candidate") -> str:
    """Return the card of the version in a role: Hub metadata as YAML (`ModelCard.load` reads it), then text.

    The licence is the recipe's, if it names one. URIs of stores are named as they are, hf:// ones as Hub ids.
    """
    if role not in ROLES or role not in evidence.versions:
        known = ", ".join(name for name in ROLES if name in evidence.versions)
        raise ValueError(f"role is {role!r}; allowed: {known}")
    verdict, version = evidence.verdict, evidence.versions[role]
    front = _front_matter(evidence, verdict, role=role)
    body = [
        f"# {evidence.name}: {version.kind} ({role})",
        _what(evidence, verdict, role=role),
        "## How good it is",
        _scores(evidence, verdict, role=role),
        "## Fine-tuned against incumbent",
        verdict.sentence() + ".",
        "\n".join(f"- {reason}" for reason in verdict.reasons),
        _access(evidence, verdict),
        "| model | validation | interval | test |\n|---|---|---|---|\n"
        + "\n".join("| " + " | ".join(score_cells(row)) + " |" for row in evidence.scores),
        f"{seed_sentence(evidence)}. {power_sentence(verdict)}.",
        "## Groups",
        _groups(verdict, role=role),
        "## Limits",
        _limits(evidence, verdict, role=role),
        "## Who should not use it",
        _not_for(evidence),
        "## Where it comes from",
        f"- version `{version.uri}`, digest `{version.digest}`\n- code sha256 `{evidence.code.sha256}`\n"
        f"- test rows sha256 `{evidence.protocol.test_sha256}`\n- made {evidence.created_at}, requested by "
        f"{evidence.requested_by}; the verdict expires {evidence.expires_at}",
    ]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n" + "\n\n".join(body) + "\n"


def scores_of(evidence: Evidence, *, role: str) -> dict[str, float]:
    """Return the scores of a role's version on the test rows: the verdict's metric, its second metric, and the ECE.

    The second metric is known for candidate and incumbent only, the ECE if the recipe has the calibration gate.
    """
    verdict = evidence.verdict
    second = verdict.second_metric
    if role == "hybrid":
        assert verdict.hybrid is not None  # a version in this role comes from one
        scores = {verdict.metric: verdict.hybrid.score}
    elif role == "candidate":
        scores = {verdict.metric: verdict.candidate_score, second.metric: second.candidate}
    else:
        scores = {verdict.metric: verdict.incumbent_score, second.metric: second.incumbent}
    gate = _gates(verdict, role=role).get("calibration")
    if gate is not None and role == "incumbent":
        bins = evidence.reliability["incumbent"]
        scores["ece"] = sum(row.n * abs(row.confidence - row.accuracy) for row in bins) / verdict.n
    elif gate is not None and gate.bounds:
        scores["ece"] = gate.bounds[0].estimate
    return scores


def _front_matter(evidence: Evidence, verdict: Verdict, *, role: str) -> dict[str, object]:
    version, recipe = evidence.versions[role], evidence.recipe
    train = recipe.data.train
    datasets = [_hub_id(uri) for uri in ([train] if isinstance(train, str) else train)]
    task, scores = TASKS[recipe.task].hub_task, scores_of(evidence, role=role)
    metrics = [
        {
            "type": HUB_METRICS[name],
            "value": round(value, 6),
            "name": f"{METRIC_NAMES.get(name, 'expected calibration error')}, {verdict.n} test rows",
        }
        | ({"args": {"average": "macro"}} if name == "macro_f1" else {})
        for name, value in scores.items()
    ]
    dataset = {"type": datasets[0], "name": evidence.name, "split": "test"}
    measured = {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
    return {
        **({"license": recipe.license} if recipe.license else {}),
        "base_model": _hub_id(recipe.base_model),
        "datasets": datasets,
        "metrics": [HUB_METRICS[name] for name in scores],
        "pipeline_tag": task,
        "library_name": "tailorbird",
        "tags": ["tailorbird", version.kind],
        "model-index": [{"name": f"{evidence.name} {version.kind}", "results": [measured]}],
    }


def _what(evidence: Evidence, verdict: Verdict, *, role: str) -> str:
    task = TASKS[evidence.recipe.task]
    if role == "hybrid":
        assert verdict.hybrid is not None  # a version in this role comes from one
        parts = " and ".join(f"`{evidence.versions[part].uri}`" for part in ("incumbent", "candidate"))
        built = (
            f"it routes each row to one of {parts}; on the test rows the candidate answers "
            f"{verdict.hybrid.share_to_candidate:.0%}"
        )
    else:
        built = f"{task.architecture}kind `{evidence.versions[role].kind}`"
    return (
        f"{task.model} for the task `{evidence.name}`, made from `{evidence.recipe.base_model}`: {built}. "
        f"It is the {role} of run `{evidence.run}`."
    )


def _scores(evidence: Evidence, verdict: Verdict, *, role: str) -> str:
    names = METRIC_NAMES | {"ece": "expected calibration error (after temperature)"}
    lines = [f"- {names[name]}: {value:.4f}" for name, value in scores_of(evidence, role=role).items()]
    rows = f"{verdict.n:,} test rows" + (", on which nothing was chosen" if verdict.confirmatory else "")
    return f"On {rows}:\n\n" + "\n".join(lines)


def _access(evidence: Evidence, verdict: Verdict) -> str:
    if verdict.confirmatory:
        return "It was this recipe's first access to these test rows."
    number = evidence.test_access.number
    return f"It was access {number} of this recipe to these test rows: the figures confirm nothing."


def _groups(verdict: Verdict, *, role: str) -> str:
    gate = _gates(verdict, role=role).get("groups")
    if gate is None:
        return "The recipe has no gate on groups: how it serves single groups is not known."
    rows = []
    for bound in gate.bounds:
        low, high = bound.interval
        change, group = f"{points(bound.estimate)} ({points(low)} to {points(high)})", bound.what.replace("|", "\\|")
        rows.append(f"| {group} | {change} | {bound.n:,} | {bound.state} |")
    if not rows:
        return gate.note
    compared = "Change against the incumbent"
    if role == "incumbent":
        compared = "Change that the candidate would bring, against this version"
    table = "| group | points (interval) | rows | state |\n|---|---|---|---|\n" + "\n".join(rows)
    metric = METRIC_NAMES[verdict.metric] if verdict.reference_score is None else "accuracy"
    return f"{compared}, in {metric}. {gate.note}\n\n{table}"


def _limits(evidence: Evidence, verdict: Verdict, *, role: str) -> str:
    gates = _gates(verdict, role=role)
    lines = ["Measured on rows like the test rows; on other text, language or time it is not known how good it is."]
    if "calibration" not in gates:
        lines.append("Whether its confidence says how often it is right was not assessed.")
    states = {State.PASSES: "passes", State.FAILS: "FAILS", State.NOT_ASSESSABLE: "could not be assessed"}
    subject = "hybrid" if role == "hybrid" else "candidate"
    lines += [f"The gate {name} {states[gate.state]} for the {subject}." for name, gate in gates.items()]
    lines += [f"{what} was not assessed." for name, what in BEHAVIORAL_GATES.items() if name not in gates]
    low, high = verdict.interval
    lines.append(
        f"The candidate's gain on the incumbent lies between {points(low)} and {points(high)} points "
        f"({p_text(verdict.p_value)}), not at one value."
    )
    if part := streaming_sentence(evidence):
        lines.append(f"{part[0].upper()}{part[1:]}.")
    return "\n".join(f"- {sentence}" for sentence in lines)


def _not_for(evidence: Evidence) -> str:
    sentences = (
        f"Anyone whose texts are not like those of the task `{evidence.name}`: it always answers"
        f"{TASKS[evidence.recipe.task].unfitting}.",
        "Anyone who would decide about a person by its answer alone: the test says how often it errs, not what an "
        "error does.",
        "Anyone whose group is not in the table above, or could not be assessed, without a test of their own.",
        f"Anyone after {evidence.expires_at}, without judging it again.",
    )
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _gates(verdict: Verdict, *, role: str) -> dict[str, Gate]:
    """Return the gates of the hybrid, or of the candidate for the other roles, by name."""
    gates = verdict.hybrid.gates if role == "hybrid" and verdict.hybrid else verdict.gates
    return {gate.name: gate for gate in gates}


def _hub_id(uri: str) -> str:
    return uri.removeprefix("hf://")

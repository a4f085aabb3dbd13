"""The model card that leaves with a version: the Hub's metadata, then what a reader must know, from the evidence."""

import yaml

from tailorbird.evaluation.gates.base import Bound, Gate
from tailorbird.evaluation.report.console import power_sentence, score_cells, seed_sentence, streaming_sentence
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.sections import METRIC_NAMES
from tailorbird.evaluation.verdict.formatting import p_text, points
from tailorbird.evaluation.verdict.types import Verdict

ROLES = ("candidate", "incumbent", "hybrid")


def to_model_card(evidence: Evidence, *, role: str = "candidate") -> str:
    """The card of the version in a role: Hub metadata as YAML front matter, which `ModelCard.load` reads, then text.

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
    else:
        score = verdict.candidate_score if role == "candidate" else verdict.incumbent_score
        scores = {verdict.metric: score, second.metric: second.candidate if role == "candidate" else second.incumbent}
    gate = _gate(verdict, name="calibration", role=role)
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
    hub_names = {
        "accuracy": "accuracy",
        "macro_f1": "f1",
        "ece": "ece",
        "exact_match": "exact_match",
        "token_f1": "f1",
        "rouge_l": "rouge",
    }
    task = "text-generation" if recipe.task == "chat" else "text-classification"
    scores = scores_of(evidence, role=role)
    metrics = [
        {
            "type": hub_names[name],
            "value": round(value, 6),
            "name": f"{METRIC_NAMES.get(name, 'expected calibration error')}, {verdict.n} test rows",
        }
        | ({"args": {"average": "macro"}} if name == "macro_f1" else {})
        for name, value in scores.items()
    ]
    measured = {
        "task": {"type": task},
        "dataset": {"type": datasets[0], "name": evidence.name, "split": "test"},
        "metrics": metrics,
    }
    licensed = {"license": recipe.license} if recipe.license else {}
    return {
        **licensed,
        "base_model": _hub_id(recipe.base_model),
        "datasets": datasets,
        "metrics": [hub_names[name] for name in scores],
        "pipeline_tag": task,
        "library_name": "tailorbird",
        "tags": ["tailorbird", version.kind],
        "model-index": [{"name": f"{evidence.name} {version.kind}", "results": [measured]}],
    }


def _what(evidence: Evidence, verdict: Verdict, *, role: str) -> str:
    version, base = evidence.versions[role], evidence.recipe.base_model
    chat = evidence.recipe.task == "chat"
    what = "A chat model" if chat else "A text classifier"
    made = f"{what} for the task `{evidence.name}`, made from `{base}`"
    if chat:
        return f"{made}: kind `{version.kind}`. It is the {role} of run `{evidence.run}`."
    if role != "hybrid":
        return (
            f"{made}: mean-pooled encoder and linear head, kind `{version.kind}`. It is the {role} of run "
            f"`{evidence.run}`."
        )
    assert verdict.hybrid is not None
    parts = " and ".join(f"`{evidence.versions[part].uri}`" for part in ("incumbent", "candidate"))
    return (
        f"{made}: it routes each row to one of {parts}; on the test rows the candidate answers "
        f"{verdict.hybrid.share_to_candidate:.0%}. It is the hybrid of run `{evidence.run}`."
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
    gate = _gate(verdict, name="groups", role=role)
    if gate is None:
        return "The recipe has no gate on groups: how it serves single groups is not known."
    if role == "incumbent":
        lines = "Change that the candidate would bring, against this version"
    else:
        lines = "Change against the incumbent"
    rows = [f"| {_cell(bound.what)} | {_points(bound)} | {bound.n:,} | {bound.state} |" for bound in gate.bounds]
    table = "| group | points (interval) | rows | state |\n|---|---|---|---|\n" + "\n".join(rows)
    metric = METRIC_NAMES[verdict.metric] if verdict.reference_score is None else "accuracy"
    return f"{lines}, in {metric}. {gate.note}\n\n{table}" if rows else gate.note


def _limits(evidence: Evidence, verdict: Verdict, *, role: str) -> str:
    lines = ["Measured on rows like the test rows; on other text, language or time it is not known how good it is."]
    if _gate(verdict, name="calibration", role=role) is None:
        lines.append("Whether its confidence says how often it is right was not assessed.")
    gates = verdict.hybrid.gates if role == "hybrid" and verdict.hybrid else verdict.gates
    lines += [f"The gate {gate.name} {_stands(gate)} for the {_subject(role)}." for gate in gates]
    evaluated = {gate.name for gate in gates}
    lines += [f"{what} was not assessed." for name, what in _UNEVALUATED.items() if name not in evaluated]
    low, high = verdict.interval
    lines.append(
        f"The candidate's gain on the incumbent lies between {points(low)} and {points(high)} points "
        f"({p_text(verdict.p_value)}), not at one value."
    )
    if part := streaming_sentence(evidence):
        lines.append(f"{part[0].upper()}{part[1:]}.")
    return "\n".join(f"- {sentence}" for sentence in lines)


_UNEVALUATED = {
    "counterfactual": "Whether answers turn with a person's name, sex or age",
    "robustness": "Whether answers survive typing errors, case and white space",
}


def _stands(gate: Gate) -> str:
    return {"passes": "passes", "fails": "FAILS"}.get(str(gate.state), "could not be assessed")


def _subject(role: str) -> str:
    return "hybrid" if role == "hybrid" else "candidate"


def _not_for(evidence: Evidence) -> str:
    return "\n".join(
        f"- {sentence}"
        for sentence in (
            f"Anyone whose texts are not like those of the task `{evidence.name}`: it always answers"
            + (
                ", also what is not so."
                if evidence.recipe.task == "chat"
                else " with one of its classes, also where none fits."
            ),
            "Anyone who would decide about a person by its answer alone: the test says how often it errs, not what an "
            "error does.",
            "Anyone whose group is not in the table above, or could not be assessed, without a test of their own.",
            f"Anyone after {evidence.expires_at}, without judging it again.",
        )
    )


def _gate(verdict: Verdict, *, name: str, role: str) -> Gate | None:
    gates = verdict.hybrid.gates if role == "hybrid" and verdict.hybrid else verdict.gates
    return next((gate for gate in gates if gate.name == name), None)


def _points(bound: Bound) -> str:
    low, high = bound.interval
    return f"{points(bound.estimate)} ({points(low)} to {points(high)})"


def _cell(value: str) -> str:
    return value.replace("|", "\\|")


def _hub_id(uri: str) -> str:
    return uri.removeprefix("hf://")

"""Render the model card of a version from the evidence: Hub metadata, then text."""

from collections.abc import Iterable, Sequence

import yaml

from tailorbird.config.metrics import METRICS
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.task_rules import TASKS
from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.report.console import score_cells
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.sentences import details
from tailorbird.evaluation.verdict.explain import gate_sentences, known_rows
from tailorbird.evaluation.verdict.formatting import between, named, points, sentence
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.kinds import spec_of

CALIBRATION_ERROR = "ece"  # in the scores of a card; also its name on the Hub
BEHAVIORAL_GATES = {
    "counterfactual": "The effect of a person's name, sex or age on predictions",
    "robustness": "The effect of typing errors, case and white space on predictions",
}


def to_model_card(
    evidence: Evidence,
    *,
    role: str = "candidate",
    library: str = "tailorbird",
    difference: str | None = None,
) -> str:
    """Return the card of the version in a role: Hub metadata as YAML (for `ModelCard.load`), then
    text.

    The licence is that of the recipe, if any. The Hub metadata names the base model without version
    and hash, and hf:// URIs as Hub ids; the text has the full URI. `library` is the name on the Hub
    of the library that loads the model. `difference` states how the model that is published with
    the card differs from the evaluated one. It is written above the scores, and the Hub metadata
    then has no scores.
    """
    if role not in evidence.versions:
        raise ValueError(f"role is {role!r}; allowed: {', '.join(evidence.versions)}")
    verdict = evidence.verdict
    version = evidence.versions[role]
    front = _front_matter(evidence, role=role, library=library)
    body = [
        f"# {evidence.name}: {version.kind} ({_role_name(role)})",
        _what(evidence, role=role),
    ]
    if difference is not None:
        del front["metrics"], front["model-index"]
        body.append(difference)

    model_rows = [score_cells(row) for row in evidence.scores]
    provenance = (
        f"version `{version.uri}`, digest `{version.digest}`",
        f"code sha256 `{evidence.code.sha256}`",
        f"test rows sha256 `{evidence.protocol.test_sha256}`",
        f"created {evidence.created_at}, requested by {evidence.requested_by}; the verdict expires "
        f"{evidence.expires_at}",
    )
    body += [
        "## Scores",
        _scores(evidence, role=role),
        "## Verdict",
        f"**{verdict.outcome}**",
        "\n".join(f"{number}. {text}" for number, text in enumerate(verdict.sentences, start=1)),
        sentence(f"{known_rows(evidence.test_access)} (alpha {verdict.alpha:.2g})"),
        _table(("model", "validation", "interval", "test"), model_rows),
        _bullets(details(evidence, role=role).values()),
        "## Groups",
        _groups(verdict, role=role),
        "## Limits",
        _limits(evidence, role=role),
        "## Out-of-scope use",
        _out_of_scope(evidence),
        "## Provenance",
        _bullets(provenance),
    ]
    metadata = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    text = "\n\n".join(body)
    return f"---\n{metadata}---\n\n{text}\n"


def scores_of(evidence: Evidence, *, role: str) -> dict[str, float]:
    """Return the test scores of the version in a role: the verdict's metric, the second metric and
    the ECE.

    The ECE needs the calibration gate.
    """
    verdict = evidence.verdict
    scores = dict(verdict.model(role).scores)
    gate = _gates(verdict, role=role).get("calibration")
    if gate is not None and gate.bounds and role != "incumbent":
        scores[CALIBRATION_ERROR] = gate.bounds[0].estimate
    return scores


def _front_matter(evidence: Evidence, *, role: str, library: str) -> dict[str, object]:
    verdict = evidence.verdict
    kind = evidence.versions[role].kind
    recipe = evidence.recipe
    task_rules = TASKS[recipe.task]
    datasets = [_hub_id(uri) for uri in recipe.data.train_uris]
    scores = scores_of(evidence, role=role)
    metrics = []
    for name, value in scores.items():
        metric: dict[str, object] = {
            "type": _hub_name(name),
            "value": round(value, 6),
            "name": f"{_title(name)}, {verdict.n} test rows",
        }
        if name in METRICS and METRICS[name].is_over_classes:
            metric["args"] = {"average": "macro"}
        metrics.append(metric)
    dataset = {"type": datasets[0], "name": evidence.name, "split": "test"}
    measured = {
        "task": {"type": task_rules.hub_task},
        "dataset": dataset,
        "metrics": metrics,
    }

    front: dict[str, object] = {}
    if recipe.license:
        front["license"] = recipe.license
    base_model = evidence.versions[role].base_model
    if base_model is not None:
        front["base_model"] = _hub_id(str(parse_model_uri(base_model).unpinned))
    front |= {
        "datasets": datasets,
        "metrics": [_hub_name(name) for name in scores],
        "pipeline_tag": task_rules.hub_task,
        "library_name": library,
        "tags": ["tailorbird", kind],
    }
    examples = recipe.serving.examples
    if examples:
        front["widget"] = [task_rules.hub_example(text) for text in examples]
    front["model-index"] = [{"name": f"{evidence.name} {kind}", "results": [measured]}]
    return front


def _what(evidence: Evidence, *, role: str) -> str:
    task = TASKS[evidence.recipe.task]
    kind = evidence.versions[role].kind
    spec = spec_of(kind)
    description = f"{spec.architecture or task.architecture}kind `{kind}`"
    hybrid = evidence.verdict.hybrid
    if role == "hybrid" and hybrid is not None:
        first = evidence.versions[hybrid.first].uri
        second = evidence.versions[hybrid.second].uri
        description = f"`{first}` and `{second}` in a routing by {hybrid.routing.by}"
        description += f", {hybrid.share_to_second:.0%} of the test rows to the second"
    model = f"{task.model} for the task `{evidence.name}`"
    if (base_model := evidence.versions[role].base_model) is not None:
        model += f", based on `{base_model}`"
    return f"{model}: {description}. It is {_role_name(role)} of run `{evidence.run}`."


def _title(name: str) -> str:
    if name == CALIBRATION_ERROR:
        return "expected calibration error (debiased)"
    return METRICS[name].title


def _hub_name(name: str) -> str:
    if name == CALIBRATION_ERROR:
        return CALIBRATION_ERROR
    return METRICS[name].hub_name


def _scores(evidence: Evidence, *, role: str) -> str:
    verdict = evidence.verdict
    scores = scores_of(evidence, role=role)
    lines = [f"{_title(name)}: {value:.4f}" for name, value in scores.items()]
    on_all = verdict.model(role).score_on_all
    if on_all is not None:
        num_test = verdict.n + verdict.num_trained_rows
        title = METRICS[verdict.metric].title
        lines.append(f"{title} on all {num_test:,} test rows: {on_all:.4f}")
    rows = f"{verdict.n:,} test rows"
    if evidence.test_access.number == 1:
        rows += " that were not used to train or select a model before"
    return f"On {rows}:\n\n{_bullets(lines)}"


def _groups(verdict: Verdict, *, role: str) -> str:
    gate = _gates(verdict, role=role).get("groups")
    if gate is None:
        return "The scores of single groups are not known."
    if not gate.bounds:
        return gate.note
    rows = []
    for bound in gate.bounds:
        group = bound.what.removeprefix("change for ").replace("|", "\\|")
        change = f"{points(bound.estimate)} ({between(bound.interval)})"
        rows.append((group, change, f"{bound.n:,}", bound.state))
    compared = "Change from the incumbent to this version"
    if role == "incumbent":
        compared = "Change from this version to the candidate"
    table = _table(("group", "points (interval)", "rows", "state"), rows)
    return f"{compared}, in {METRICS[verdict.metric].title}. {sentence(gate.note)}\n\n{table}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in sentences)


def _limits(evidence: Evidence, *, role: str) -> str:
    verdict = evidence.verdict
    gates = _gates(verdict, role=role)
    lines = [
        "The scores are valid for rows like the test rows. They are not known for other texts, "
        "languages or times."
    ]

    if "calibration" not in gates:
        lines.append("The calibration of the confidence was not assessed.")
    subject = role
    if role == "incumbent" and verdict.candidate is not None:
        subject = "candidate"
    states = gate_sentences(
        tuple(gates.values()), role=subject, regulated=evidence.protocol.regulated
    )
    lines += map(sentence, states)
    lines += [
        f"{what} was not assessed." for name, what in BEHAVIORAL_GATES.items() if name not in gates
    ]

    if subject != "incumbent":
        gain = verdict.relation(subject, "incumbent").gain_text()
        lines.append(f"The gain of {named(subject)} over the incumbent is uncertain: {gain}.")

    kinds = [evidence.versions[role].kind]
    if role == "hybrid" and verdict.hybrid is not None:
        kinds = [verdict.model(part).kind for part in (verdict.hybrid.first, verdict.hybrid.second)]
    if any(spec_of(kind).holds_training_text for kind in kinds):
        lines.append(
            "The version contains training rows as text. Protect and delete it like the training "
            "rows."
        )
    lines += map(sentence, evidence.data.differences)
    return _bullets(lines)


def _out_of_scope(evidence: Evidence) -> str:
    sentences = (
        f"Do not use this model for texts that differ from those of the task `{evidence.name}`: "
        f"it always answers{TASKS[evidence.recipe.task].unfitting}.",
        "Do not base decisions about a person on its answer alone: the test measures how often "
        "it is wrong, not the effect of a wrong answer.",
        "Do not use it, without a separate test, for a group that is not in the table above or "
        "could not be assessed.",
        f"Do not use it after {evidence.expires_at} without a new evaluation.",
    )
    return _bullets(sentences)


def _gates(verdict: Verdict, *, role: str) -> dict[str, Gate]:
    """Return the gates of the model in a role by name; for the incumbent, those of the candidate,
    if there is one."""
    gates = verdict.gates if role == "incumbent" else verdict.model(role).gates
    return {gate.name: gate for gate in gates}


def _role_name(role: str) -> str:
    """Return the role in a sentence; the role of another model without fine-tuning is its kind."""
    if role in ("incumbent", "candidate", "hybrid"):
        return named(role)
    return "a model without fine-tuning"


def _hub_id(uri: str) -> str:
    return uri.removeprefix("hf://")

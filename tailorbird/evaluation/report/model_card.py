"""Render the model card of a version from the evidence: Hub metadata, then text."""

from collections.abc import Iterable, Sequence

import yaml

from tailorbird.config.metrics import METRICS
from tailorbird.config.task_rules import TASKS
from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.gates.suites import loss_name
from tailorbird.evaluation.report.console import score_cells
from tailorbird.evaluation.report.costs import cost_lines
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.sentences import details
from tailorbird.evaluation.verdict.explain import gate_sentences, known_rows
from tailorbird.evaluation.verdict.formatting import between, named, points, sentence
from tailorbird.evaluation.verdict.parts import TestedHybrid
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
    front = _front_matter(evidence, verdict, role=role, library=library)
    if difference is not None:
        del front["metrics"], front["model-index"]
    body = [
        f"# {evidence.name}: {version.kind} ({_role_name(role)})",
        _what(evidence, verdict, role=role),
        *([difference] if difference else []),
        "## Scores",
        _scores(evidence, verdict, role=role),
        "## Verdict",
        f"**{verdict.outcome}**",
        "\n".join(f"{number}. {text}" for number, text in enumerate(verdict.sentences, start=1)),
        f"{sentence(f'{known_rows(evidence.test_access)} (alpha {verdict.alpha:.2g})')}",
        _table(
            ("model", "validation", "interval", "test"),
            [score_cells(row) for row in evidence.scores],
        ),
        _bullets(details(evidence, role=role).values()),
        *cost_lines(evidence),
        "## Groups",
        _groups(verdict, role=role),
        *_suites(evidence, role=role),
        "## Limits",
        _limits(evidence, verdict, role=role),
        "## Out-of-scope use",
        _out_of_scope(evidence),
        "## Provenance",
        f"- version `{version.uri}`, digest `{version.digest}`\n- code sha256 "
        f"`{evidence.code.sha256}`\n- test rows sha256 `{evidence.protocol.test_sha256}`\n- "
        f"created {evidence.created_at}, requested by {evidence.requested_by}; the verdict "
        f"expires {evidence.expires_at}",
    ]
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"
        + "\n\n".join(body)
        + "\n"
    )


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


def _front_matter(
    evidence: Evidence, verdict: Verdict, *, role: str, library: str
) -> dict[str, object]:
    version = evidence.versions[role]
    recipe = evidence.recipe
    train = recipe.data.train
    datasets = [_hub_id(uri) for uri in ([train] if isinstance(train, str) else train)]
    task_rules = TASKS[recipe.task]
    examples = recipe.serving.examples
    scores = scores_of(evidence, role=role)
    task = task_rules.hub_task
    metrics = [
        {
            "type": _hub_name(name),
            "value": round(value, 6),
            "name": f"{_title(name)}, {verdict.n} test rows",
        }
        | (
            {"args": {"average": "macro"}}
            if name in METRICS and METRICS[name].is_over_classes
            else {}
        )
        for name, value in scores.items()
    ]
    dataset = {"type": datasets[0], "name": evidence.name, "split": "test"}
    measured = {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
    return {
        **({"license": recipe.license} if recipe.license else {}),
        **(
            {"base_model": _hub_id(str(recipe.base_model.unpinned))}
            if spec_of(version.kind).uses_base
            else {}
        ),
        "datasets": datasets,
        "metrics": [_hub_name(name) for name in scores],
        "pipeline_tag": task,
        "library_name": library,
        "tags": ["tailorbird", version.kind],
        **({"widget": [task_rules.hub_example(text) for text in examples]} if examples else {}),
        "model-index": [{"name": f"{evidence.name} {version.kind}", "results": [measured]}],
    }


def _what(evidence: Evidence, verdict: Verdict, *, role: str) -> str:
    task = TASKS[evidence.recipe.task]
    kind = evidence.versions[role].kind
    spec = spec_of(kind)
    if role == "hybrid":
        assert verdict.hybrid is not None  # the role requires a hybrid
        built = _hybrid(evidence, verdict.hybrid)
    else:
        built = f"{spec.architecture or task.architecture}kind `{kind}`"
    if spec.uses_base:
        base = f", based on `{evidence.base_model.source}`"
    else:
        base = ""
    name = _role_name(role)
    return (
        f"{task.model} for the task `{evidence.name}`{base}: {built}. It is {name} of run "
        f"`{evidence.run}`."
    )


def _hybrid(evidence: Evidence, hybrid: TestedHybrid) -> str:
    """Return the parts of a hybrid, their scores alone, and the rule that routes between them."""
    names = []
    for role in (hybrid.first, hybrid.second):
        part = evidence.verdict.model(role)
        names.append(
            f"`{evidence.versions[role].uri}` (kind `{part.kind}`, alone {part.score:.4f})"
        )
    first, second = names
    share = (
        f"{hybrid.share_to_second:.0%} of the test rows ({hybrid.validation_share_to_second:.0%} "
        "on validation)"
    )
    if hybrid.routing.by == "group":
        values = ", ".join(hybrid.routing.values)
        return (
            f"{second} answers rows whose {hybrid.routing.column} is {values}, {share}; {first} "
            "answers all others"
        )
    return (
        f"a cascade. {first} answers each row first. {second} answers instead where that "
        f"confidence is below {hybrid.routing.threshold:.4g}: {share}"
    )


def _title(name: str) -> str:
    if name == CALIBRATION_ERROR:
        return "expected calibration error (debiased)"
    return METRICS[name].title


def _hub_name(name: str) -> str:
    if name == CALIBRATION_ERROR:
        return CALIBRATION_ERROR
    return METRICS[name].hub_name


def _scores(evidence: Evidence, verdict: Verdict, *, role: str) -> str:
    lines = [
        f"- {_title(name)}: {value:.4f}" for name, value in scores_of(evidence, role=role).items()
    ]
    on_all = verdict.model(role).score_on_all
    if on_all is not None:
        num_test = verdict.n + verdict.num_trained_rows
        lines.append(
            f"- {METRICS[verdict.metric].title} on all {num_test:,} test rows: {on_all:.4f}"
        )
    is_first = evidence.test_access.number == 1
    rows = f"{verdict.n:,} test rows" + (
        " that were not used to train or select a model before" if is_first else ""
    )
    return f"On {rows}:\n\n" + "\n".join(lines)


def _groups(verdict: Verdict, *, role: str) -> str:
    gate = _gates(verdict, role=role).get("groups")
    if gate is None:
        if verdict.candidate is not None:
            reason = "The recipe has no groups gate"
        else:
            reason = "No model was trained"
        return f"{reason}, so the scores of single groups are not known."
    if not gate.bounds:
        return gate.note
    rows = [
        (
            bound.what.removeprefix("change for ").replace("|", "\\|"),
            f"{points(bound.estimate)} ({between(bound.interval)})",
            f"{bound.n:,}",
            bound.state,
        )
        for bound in gate.bounds
    ]
    compared = "Change from the incumbent to this version"
    if role == "incumbent":
        compared = "Change from this version to the candidate"
    table = _table(("group", "points (interval)", "rows", "state"), rows)
    return f"{compared}, in {METRICS[verdict.metric].title}. {sentence(gate.note)}\n\n{table}"


def _suites(evidence: Evidence, *, role: str) -> list[str]:
    """Return the section with the scores on the regression suites; empty if the recipe has none."""
    compared = [
        name
        for name in dict.fromkeys(("incumbent", role))
        if evidence.suites and name in evidence.suites[0].scores
    ]
    gate = _gates(evidence.verdict, role=role).get("suites")
    if gate is None:
        detects = {}
    else:
        detects = {bound.what: bound.detects for bound in gate.bounds}
    rows = []
    for score in evidence.suites:
        if score.group is not None:
            continue
        scores = (
            "" if score.scores[name] is None else f"{score.scores[name]:.3f}" for name in compared
        )
        detected = detects.get(loss_name(score.suite))
        rows.append(
            [
                score.suite,
                *scores,
                f"{score.n:,}",
                "" if detected is None else f"{100 * detected:.1f}",
            ]
        )
    if not rows:
        return []
    head = ("suite", *compared, "rows", "loss found in 80% of tests, points")
    return ["## Suites", "Mean scores on the regression suites.", _table(head, rows)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in sentences)


def _limits(evidence: Evidence, verdict: Verdict, *, role: str) -> str:
    gates = _gates(verdict, role=role)
    lines = [
        "The scores are valid for rows like the test rows. They are not known for other texts, "
        "languages or times."
    ]
    if "calibration" not in gates:
        lines.append("The calibration of the confidence was not assessed.")
    if role == "incumbent" and verdict.candidate is not None:
        subject = "candidate"
    else:
        subject = role
    states = gate_sentences(
        tuple(gates.values()), role=subject, regulated=evidence.protocol.regulated
    )
    lines += [sentence(state) for state in states]
    lines += [
        f"{what} was not assessed." for name, what in BEHAVIORAL_GATES.items() if name not in gates
    ]
    if subject != "incumbent":
        gain = verdict.relation(subject, "incumbent").gain_text()
        lines.append(f"The gain of {named(subject)} over the incumbent is uncertain: {gain}.")
    kind = evidence.versions[role].kind
    has_index = evidence.recipe.training.with_retrieved and role == "candidate"
    parts = [kind]
    if role == "hybrid" and verdict.hybrid is not None:
        parts = [verdict.model(part).kind for part in (verdict.hybrid.first, verdict.hybrid.second)]
    if has_index or any(spec_of(part).holds_training_text for part in parts):
        lines.append(
            "The version contains training rows as text. Protect and delete it like the training "
            "rows."
        )
    lines += [sentence(difference) for difference in evidence.data.differences]
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
    if role == "incumbent":
        gates = verdict.gates
    else:
        gates = verdict.model(role).gates
    return {gate.name: gate for gate in gates}


def _role_name(role: str) -> str:
    """Return the role in a sentence; the role of another model without fine-tuning is its kind."""
    if role in ("incumbent", "candidate", "hybrid"):
        return named(role)
    return "a model without fine-tuning"


def _hub_id(uri: str) -> str:
    return uri.removeprefix("hf://")

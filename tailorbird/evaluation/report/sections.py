"""Sections of the HTML report about the verdict."""

from tailorbird.evaluation.gates.base import Bound, Gate
from tailorbird.evaluation.predictions import ROW_METRICS
from tailorbird.evaluation.report import charts
from tailorbird.evaluation.report import html_elements as html
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.html_elements import Figures
from tailorbird.evaluation.report.model_scores import COMPARED
from tailorbird.evaluation.verdict.formatting import METRIC_NAMES, interval_name, p_text, size
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.routing import PARTS


def gain_section(evidence: Evidence, figures: Figures) -> str:
    """Return the section that compares the candidate with the incumbent."""
    verdict = evidence.verdict
    metric, second, at = (
        METRIC_NAMES[verdict.metric],
        METRIC_NAMES[verdict.second_metric.metric],
        "verdict.second_metric",
    )
    p_value = figures("verdict.p_value", p_text) + f" (alpha = {verdict.alpha:g})"
    if verdict.family_size > 1:
        p_value += f", after Holm's correction for {verdict.family_size} comparisons " + figures(
            "verdict.p_holm", p_text
        )
    if verdict.p_exact is not None:
        p_value += ", McNemar's exact " + figures("verdict.p_exact", p_text)
    rows = {
        f"candidate's {metric}": figures("verdict.candidate_score", ".4f"),
        f"incumbent's {metric}": figures("verdict.incumbent_score", ".4f"),
        f"gain, points ({interval_name(verdict.level)})": figures.estimate("verdict.gain", interval="verdict.interval"),
        "p value": p_value,
    }
    at_minimum = f"probability that the gain is above {size(verdict.minimum_gain)} (does not affect the verdict)"
    rows[at_minimum] = figures("verdict.posterior.above_minimum", ".0%")
    losses = {"loss_if_replaced": "if the candidate is served", "loss_if_kept": "if the incumbent is served"}
    rows["expected loss, points (does not affect the verdict)"] = ", ".join(
        f"{figures(f'verdict.posterior.{name}', _points)} {what}" for name, what in losses.items()
    )
    scores = ", ".join(f"{role} " + figures(f"{at}.{role}", ".4f") for role in COMPARED)
    gain = figures.estimate(f"{at}.gain", interval=f"{at}.interval")
    rows[f"{second} (does not affect the verdict)"] = f"{scores}, gain {gain}"
    for name in evidence.measures:
        label = f"{name.replace('_', ' ')} of the reference answer, nats per token (does not affect the verdict)"
        rows[label] = ", ".join(f"{role} " + figures(f"measures.{name}.{role}", ".3f") for role in COMPARED)
    return html.section(
        "Candidate against incumbent",
        html.paragraph(f"{metric[0].upper()}{metric[1:]} on the same {verdict.n:,} test rows.", soft=True),
        charts.gain(verdict.gain, interval=verdict.interval, minimum=verdict.minimum_gain),
        html.pairs(rows),
    )


def outcomes_section(verdict: Verdict, figures: Figures) -> str:
    """Return the section with the numbers of test rows by which of the two models is right."""
    accuracy = verdict.incumbent_score if verdict.metric in ROW_METRICS else verdict.second_metric.incumbent
    candidate, incumbent = verdict.only_candidate_right, verdict.only_incumbent_right
    both = round(accuracy * verdict.n) - incumbent
    counts = {
        "both right": both,
        "only the candidate right": candidate,
        "only the incumbent right": incumbent,
        "both wrong": verdict.n - both - candidate - incumbent,
    }
    cells = {name: html.text(f"{count:,}") for name, count in counts.items()}
    for role in COMPARED:
        cells[f"only the {role} right"] = figures(f"verdict.only_{role}_right", ",")
    rows = [
        [html.text(name), cells[name], html.text(f"{100 * count / verdict.n:.1f}%")] for name, count in counts.items()
    ]
    return html.section(
        "Paired outcomes",
        charts.outcomes(counts),
        html.paragraph(
            "The table lists the parts of the bar from left to right. The models differ in the second and third part.",
            soft=True,
        ),
        html.table(["test rows", "number", "share"], rows=rows),
    )


def gates_section(verdict: Verdict, figures: Figures) -> str:
    """Return the section with the bounds of each gate of the candidate and a plot of their intervals."""
    if not verdict.gates:
        return html.section("Gates", html.paragraph("The recipe has no gates."))
    return html.section(
        "Gates of the candidate",
        html.paragraph(
            "Gates are conditions in addition to the metric. A bound passes or fails if its whole interval is on one "
            "side of the limit, and is not assessable if the interval contains the limit. A group fails if its loss is "
            "proven, or if its estimated loss reaches the limit and is likely (see `likely_harm`).",
            soft=True,
        ),
        _gate_tables(verdict.gates, figures, at="verdict.gates"),
    )


def _gate_tables(gates: tuple[Gate, ...], figures: Figures, *, at: str) -> str:
    """Return the state and note of each gate, and a table with one row per bound."""
    parts = []
    for index, gate in enumerate(gates):
        path = f"{at}.{index}"
        parts.append(f"<h3>{html.text(gate.name)} {figures.state(f'{path}.state')}</h3>")
        if gate.note:
            parts.append(f"<p class=soft>{figures(f'{path}.note')}</p>")
        if gate.bounds:
            ends = charts.around([end for bound in gate.bounds for end in (*bound.interval, bound.limit, 0.0)])
            rows = [
                _bound_cells(bound, figures, at=f"{path}.bounds.{number}", money=gate.name == "cost", ends=ends)
                for number, bound in enumerate(gate.bounds)
            ]
            unit = "currency" if gate.name == "cost" else "points"
            parts.append(html.table(["bound", "plot:interval (dashed: 0, limit)", unit, "limit", "rows"], rows=rows))
    return "".join(parts)


def _bound_cells(bound: Bound, figures: Figures, *, at: str, money: bool, ends: tuple[float, float]) -> list[str]:
    def form(value: float) -> str:
        return f"{value:,.0f}" if money else f"{100 * value:+.2f}"

    low, high = figures.items(f"{at}.interval", form)
    shrunken = "" if bound.shrunken is None else f"; shrunken {figures(f'{at}.shrunken', form)}"
    rows = figures(f"{at}.n", ",")
    if bound.rows_needed is not None:
        rows += f"<small>{figures(f'{at}.rows_needed', ',')} needed</small>"
    return [
        f"{figures(f'{at}.what')}<small>{figures.state(f'{at}.state')}</small>",
        charts.span(bound.estimate, interval=bound.interval, guides=(0.0, bound.limit), bounds=ends),
        f"{figures(f'{at}.estimate', form)}<small>{low} to {high}{shrunken}</small>",
        figures(f"{at}.limit", form),
        rows,
    ]


def hybrid_section(verdict: Verdict, figures: Figures) -> str:
    """Return the section about the hybrid; empty if no hybrid was evaluated."""
    hybrid, at = verdict.hybrid, "verdict.hybrid"
    if hybrid is None:
        return ""
    first, second = hybrid.first.role, hybrid.second.role
    if hybrid.routing.by == "group":
        values = ", ".join(figures.items(f"{at}.routing.values"))
        rule = f"{second} if {figures(f'{at}.routing.column')} is {values}, otherwise {first}"
    else:
        threshold = figures(f"{at}.routing.threshold", ".3f")
        rule = f"{first} if its confidence is at least {threshold}, otherwise {second}"

    def share(value: float) -> str:
        return f"{100 * value:.1f}%"

    rows = {
        "routing rule": rule,
        f"test rows that {second} answers": figures(f"{at}.share_to_second", share),
        f"validation rows that {second} answers": figures(f"{at}.validation_share_to_second", share),
        METRIC_NAMES[verdict.metric]: figures(f"{at}.score", ".4f"),
        f"{METRIC_NAMES[verdict.metric]} on validation": figures(f"{at}.validation", ".4f"),
        f"gain over the incumbent, points ({interval_name(hybrid.level)})": figures.estimate(
            f"{at}.gain", interval=f"{at}.interval"
        ),
        "Holm-adjusted p": figures(f"{at}.p_holm", p_text),
        "proven better than the incumbent": figures(f"{at}.proven", html.plain),
    }
    for name, part in zip(PARTS, hybrid.parts, strict=True):
        rows[f"{METRIC_NAMES[verdict.metric]} of {part.role} alone"] = figures(f"{at}.{name}.score", ".4f")
        if part.role != "incumbent":
            gain = f"{at}.{name}.hybrid_gain"
            rows[f"gain over {part.role}, points ({interval_name(verdict.alpha)})"] = figures.estimate(
                f"{gain}.gain", interval=f"{gain}.interval"
            )
            rows[f"proven better than {part.role}"] = figures(f"{gain}.proven", html.plain)
    if hybrid.cost_ratio is not None:
        ratio, low, high = figures.items(f"{at}.cost_ratio", ".3f")
        rows[f"cost divided by the {hybrid.best_part}'s"] = f"{ratio} ({low} to {high})"
    return html.section(
        "Hybrid",
        html.paragraph("The parts and the rule were fixed on validation, before the test rows were read.", soft=True),
        charts.gain(hybrid.gain, interval=hybrid.interval, minimum=verdict.minimum_gain),
        html.pairs(rows),
        _gate_tables(hybrid.gates, figures, at=f"{at}.gates"),
    )


def contenders_section(verdict: Verdict, figures: Figures) -> str:
    """Return the section about the further contenders; empty if there are none."""
    if not verdict.contenders:
        return ""
    rows, classes, parts = [], [], []
    for index, contender in enumerate(verdict.contenders):
        at = f"verdict.contenders.{index}"
        gain = figures.estimate(f"{at}.gain", interval=f"{at}.interval")
        proven = figures(f"{at}.proven", html.plain)
        rows.append(
            [figures(f"{at}.role"), figures(f"{at}.score", ".4f"), gain, figures(f"{at}.p_holm", p_text), proven]
        )
        classes.append("chosen" if contender.role == verdict.replacement else "")
        if contender.gates:
            parts += [
                f"<h3>Gates of {figures(f'{at}.role')}</h3>",
                _gate_tables(contender.gates, figures, at=f"{at}.gates"),
            ]
    return html.section(
        "Further contenders",
        html.paragraph(
            "The best other baselines on validation are tested against the incumbent together with the candidate. "
            "Each interval has the level of its own test by Holm's method. The highest gain of several contenders is "
            "slightly optimistic.",
            soft=True,
        ),
        html.table(
            ["contender", "score", "gain over the incumbent, points", "Holm-adjusted p", "proven"],
            rows=rows,
            row_classes=classes,
        ),
        *parts,
    )


def reliability_section(evidence: Evidence, figures: Figures) -> str:
    """Return the reliability diagram of both models after temperature scaling; empty for chat tasks."""
    bins, forms = evidence.reliability, {"confidence": ".3f", "accuracy": ".3f", "n": ","}
    if not bins:
        return ""
    rows = [
        [role, *(figures(f"reliability.{role}.{index}.{field}", form) for field, form in forms.items())]
        for role in COMPARED
        for index in range(len(bins[role]))
    ]
    return html.section(
        "Reliability",
        html.paragraph(
            "Accuracy in bins of confidence, after temperature scaling on validation (not of an endpoint). On the "
            "dashed line, accuracy equals confidence. Below the line, the model is overconfident. Larger dots have "
            "more rows.",
            soft=True,
        ),
        "<p class=soft><span class='key chosen'></span>candidate<span class=key></span>incumbent</p>",
        charts.reliability(bins),
        html.details("Bins", html.table(["model", "confidence", "accuracy", "rows"], rows=rows)),
    )


def _points(share: float) -> str:
    return f"{100 * share:.2f}"

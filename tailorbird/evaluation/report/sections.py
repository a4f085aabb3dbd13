"""The report's sections about the verdict: each a plot with its numbers."""

from tailorbird.evaluation.gates.base import Bound, Gate
from tailorbird.evaluation.predictions import ROW_METRICS
from tailorbird.evaluation.report import charts
from tailorbird.evaluation.report import html_elements as html
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.html_elements import Figures
from tailorbird.evaluation.report.model_scores import COMPARED
from tailorbird.evaluation.verdict.formatting import p_text
from tailorbird.evaluation.verdict.types import Verdict

METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
}


def gain_section(evidence: Evidence, figures: Figures) -> str:
    """Return candidate against incumbent and reference, with the metrics that no rule reads."""
    verdict = evidence.verdict
    metric, second, at = (
        METRIC_NAMES[verdict.metric],
        METRIC_NAMES[verdict.second_metric.metric],
        "verdict.second_metric",
    )
    p_value = figures("verdict.p_value", p_text) + f" (alpha = {verdict.alpha:g})"
    if verdict.p_exact is not None:
        p_value += ", McNemar's exact " + figures("verdict.p_exact", p_text)
    rows = {
        f"candidate's {metric}": figures("verdict.candidate_score", ".4f"),
        f"incumbent's {metric}": figures("verdict.incumbent_score", ".4f"),
        "gain, points": figures.estimate("verdict.gain", interval="verdict.interval"),
        "p": p_value,
    }
    if verdict.reference_score is not None:
        gain = figures.estimate("verdict.reference_gain", interval="verdict.reference_interval")
        rows["bag-of-words reference"] = (
            figures("verdict.reference_score", ".4f")
            + f"; the candidate's gain on it {gain}, {figures('verdict.reference_p_value', p_text)}"
        )
    scores = ", ".join(f"{role} " + figures(f"{at}.{role}", ".4f") for role in COMPARED)
    gain = figures.estimate(f"{at}.gain", interval=f"{at}.interval")
    rows[f"for the record, {second}"] = f"{scores}, gain {gain}"
    for name in evidence.measures:
        label = f"for the record, {name.replace('_', ' ')} of the reference, nats a token"
        rows[label] = ", ".join(f"{role} " + figures(f"measures.{name}.{role}", ".3f") for role in COMPARED)
    return html.section(
        "Candidate against incumbent",
        html.paragraph(f"{metric[0].upper()}{metric[1:]} on the same {verdict.n:,} test rows.", soft=True),
        charts.gain(verdict.gain, interval=verdict.interval, minimum=verdict.minimum_gain),
        html.pairs(rows),
    )


def outcomes_section(verdict: Verdict, figures: Figures) -> str:
    """Return the test rows by which of the two models was right."""
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
        [html.text(name), cells[name], html.text(f"{100 * count / verdict.n:.1f} %")] for name, count in counts.items()
    ]
    return html.section(
        "Paired outcomes",
        charts.outcomes(counts),
        html.paragraph(
            "The bar's parts, from left to right; the second and third are where the models differ.", soft=True
        ),
        html.table(["test rows", "number", "share"], rows=rows),
    )


def gates_section(verdict: Verdict, figures: Figures) -> str:
    """Return each gate of the recipe, bound by bound, with a plot of the intervals."""
    if not verdict.gates:
        return html.section("Gates", html.paragraph("The recipe asks for no gate."))
    return html.section(
        "Gates",
        html.paragraph(
            "What a better model must not break. A bound passes or fails with its whole interval, and cannot be "
            "assessed where the interval holds the limit; groups have a rule of their own.",
            soft=True,
        ),
        _gate_tables(verdict.gates, figures, at="verdict.gates"),
    )


def _gate_tables(gates: tuple[Gate, ...], figures: Figures, *, at: str) -> str:
    """Return a gate's state, its note, and a row a bound with its interval on an axis that holds the limit and 0."""
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
            parts.append(html.table(["bound", "plot:0 and limit dashed", unit, "limit", "rows"], rows=rows))
    return "".join(parts)


def _bound_cells(bound: Bound, figures: Figures, *, at: str, money: bool, ends: tuple[float, float]) -> list[str]:
    def form(value: float) -> str:
        return f"{value:,.0f}" if money else f"{100 * value:+.2f}"

    low, high = figures.items(f"{at}.interval", form)
    rows = figures(f"{at}.n", ",")
    if bound.rows_needed is not None:
        rows += f"<small>needs {figures(f'{at}.rows_needed', ',')}</small>"
    return [
        f"{figures(f'{at}.what')}<small>{figures.state(f'{at}.state')}</small>",
        charts.span(bound.estimate, interval=bound.interval, guides=(0.0, bound.limit), bounds=ends),
        f"{figures(f'{at}.estimate', form)}<small>{low} to {high}</small>",
        figures(f"{at}.limit", form),
        rows,
    ]


def hybrid_section(verdict: Verdict, figures: Figures) -> str:
    """Return the hybrid that was fitted on validation, evaluated as the candidate is; empty if there is none."""
    hybrid, at = verdict.hybrid, "verdict.hybrid"
    if hybrid is None:
        return ""
    if hybrid.routing.by == "group":
        values = ", ".join(figures.items(f"{at}.routing.values"))
        rule = f"the candidate where {figures(f'{at}.routing.column')} is {values}, else the incumbent"
    else:
        threshold = figures(f"{at}.routing.threshold", ".3f")
        rule = f"the incumbent where its confidence is at least {threshold}, else the candidate"
    rows = {
        "who answers": rule,
        "the candidate's share of test rows": figures(f"{at}.share_to_candidate", lambda share: f"{100 * share:.1f} %"),
        METRIC_NAMES[verdict.metric]: figures(f"{at}.score", ".4f"),
        "gain on the incumbent, points": figures.estimate(f"{at}.gain", interval=f"{at}.interval"),
        "p, adjusted by Holm for candidate and hybrid": figures(f"{at}.p_holm", p_text),
        "proven": figures(f"{at}.proven", html.plain),
    }
    return html.section(
        "The hybrid",
        html.paragraph("Who answers which row was fixed on validation, before test was read.", soft=True),
        charts.gain(hybrid.gain, interval=hybrid.interval, minimum=verdict.minimum_gain),
        html.pairs(rows),
        _gate_tables(hybrid.gates, figures, at=f"{at}.gates"),
    )


def reliability_section(evidence: Evidence, figures: Figures) -> str:
    """Return how often each model is right where it says so, after temperature; empty for a chat task."""
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
            "Confidence after the temperature that validation gave, in equally wide bins. On the dashed line a model "
            "is right as often as it says; under it, less often. A larger dot stands for more rows.",
            soft=True,
        ),
        "<p class=soft><span class='key chosen'></span>candidate<span class=key></span>incumbent</p>",
        charts.reliability(bins),
        html.details("The bins", html.table(["model", "confidence", "share right", "rows"], rows=rows)),
    )


def cost_section(evidence: Evidence, figures: Figures) -> str:
    """Return what both models cost to serve, round by round; empty where it was not measured."""
    rounds = evidence.cost.cpu
    if rounds is None or evidence.verdict.cost_ratio is None:
        return ""
    cpu = {"incumbent": rounds.incumbent, "candidate": rounds.candidate}
    largest = max(*rounds.incumbent, *rounds.candidate)
    rows = []
    for role, seconds in cpu.items():
        plot = charts.rounds(seconds, largest=largest, chosen=role == "candidate")
        rows.append([role, plot, ", ".join(figures.items(f"cost.cpu.{role}", ".4g"))])
    ratio, low, high = figures.items("verdict.cost_ratio", ".3f")
    summary = {
        "candidate over incumbent": f"{ratio} ({low} to {high})",
        "CPU-seconds of training, sweep included": figures("cost.training_cpu_s", ",.0f"),
    }
    return html.section(
        "Cost to serve",
        html.paragraph(
            f"CPU-seconds per thousand rows in alternating rounds, a tick a round, on an axis from 0 to {largest:.4g}.",
            soft=True,
        ),
        html.table(["model", "plot:rounds", "CPU-seconds"], rows=rows),
        html.pairs(summary),
    )

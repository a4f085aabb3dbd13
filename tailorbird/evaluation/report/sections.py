"""The report's sections about the verdict: each a plot with its numbers."""

from collections.abc import Sequence

from tailorbird.evaluation.gates.base import Bound, Gate
from tailorbird.evaluation.predictions import ROW_METRICS
from tailorbird.evaluation.report import charts
from tailorbird.evaluation.report import html_elements as html
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.verdict.formatting import p_text, points
from tailorbird.evaluation.verdict.types import Verdict

METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
}


def gain_section(evidence: Evidence, verdict: Verdict) -> str:
    """Candidate against incumbent and against a reference, with the metrics that no rule reads."""
    metric, second, at = METRIC_NAMES[verdict.metric], verdict.second_metric, "verdict"
    rows = {
        f"candidate's {metric}": html.figure(f"{verdict.candidate_score:.4f}", source=f"{at}.candidate_score"),
        f"incumbent's {metric}": html.figure(f"{verdict.incumbent_score:.4f}", source=f"{at}.incumbent_score"),
        "gain, points": _estimate(verdict.gain, verdict.interval, source=at, name="gain"),
        "p": html.figure(p_text(verdict.p_value), source=f"{at}.p_value") + f" (alpha = {verdict.alpha:g})",
        **_reference_row(verdict),
        f"for the record, {METRIC_NAMES[second.metric]}": "candidate "
        + html.figure(f"{second.candidate:.4f}", source=f"{at}.second_metric.candidate")
        + ", incumbent "
        + html.figure(f"{second.incumbent:.4f}", source=f"{at}.second_metric.incumbent")
        + ", gain "
        + _estimate(second.gain, second.interval, source=f"{at}.second_metric", name="gain"),
        **_measure_rows(evidence),
    }  # fmt: skip
    if verdict.p_exact is not None:
        rows["p"] += ", McNemar's exact " + html.figure(p_text(verdict.p_exact), source=f"{at}.p_exact")
    return html.section(
        "Candidate against incumbent",
        html.paragraph(f"{metric[0].upper()}{metric[1:]} on the same {verdict.n:,} test rows.", soft=True),
        charts.gain(verdict.gain, interval=verdict.interval, minimum=verdict.minimum_gain),
        html.pairs(rows),
    )


def _reference_row(verdict: Verdict) -> dict[str, str]:
    """The bag-of-words reference, where there is one."""
    score, gain, interval, p_value = (
        verdict.reference_score,
        verdict.reference_gain,
        verdict.reference_interval,
        verdict.reference_p_value,
    )
    if score is None or gain is None or interval is None or p_value is None:
        return {}
    row = html.figure(f"{score:.4f}", source="verdict.reference_score") + "; the candidate's gain on it "
    row += _estimate(gain, interval, source="verdict", name="reference_gain", ends="reference_interval")
    return {"bag-of-words reference": f"{row}, " + html.figure(p_text(p_value), source="verdict.reference_p_value")}


def _measure_rows(evidence: Evidence) -> dict[str, str]:
    """(chat only) Return how likely the reference answers are under each model."""
    return {
        f"for the record, {name.replace('_', ' ')} of the reference, nats a token": ", ".join(
            f"{role} " + html.figure(f"{means[role]:.3f}", source=f"measures.{name}.{role}")
            for role in ("candidate", "incumbent")
        )
        for name, means in evidence.measures.items()
    }


def outcomes_section(verdict: Verdict) -> str:
    """Test rows by which of the two was right."""
    counts = paired_outcomes(verdict)
    known = {
        "only the candidate right": "verdict.only_candidate_right",
        "only the incumbent right": "verdict.only_incumbent_right",
    }
    rows = [
        [
            html.text(name),
            html.figure(f"{count:,}", source=known[name]) if name in known else html.text(f"{count:,}"),
            html.text(f"{100 * count / verdict.n:.1f} %"),
        ]
        for name, count in counts.items()
    ]
    return html.section(
        "Paired outcomes",
        charts.outcomes(counts),
        html.paragraph(
            "The bar's parts, from left to right; the second and third are where the models differ.", soft=True
        ),
        html.table(["test rows", "number", "share"], rows=rows),
    )


def paired_outcomes(verdict: Verdict) -> dict[str, int]:
    """The four counts, from the verdict's two and the incumbent's accuracy."""
    accuracy = verdict.incumbent_score if verdict.metric in ROW_METRICS else verdict.second_metric.incumbent
    both = round(accuracy * verdict.n) - verdict.only_incumbent_right
    counts = {
        "both right": both,
        "only the candidate right": verdict.only_candidate_right,
        "only the incumbent right": verdict.only_incumbent_right,
    }
    return counts | {"both wrong": verdict.n - sum(counts.values())}


def gates_section(verdict: Verdict) -> str:
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
        gate_tables(verdict.gates, source="verdict.gates"),
    )


def gate_tables(gates: Sequence[Gate], *, source: str) -> str:
    """A gate's state, its note, and a row a bound with the bound's interval on an axis that holds the limit and 0."""
    parts = []
    for index, gate in enumerate(gates):
        at = f"{source}.{index}"
        parts.append(f"<h3>{html.text(gate.name)} {html.state(str(gate.state), source=f'{at}.state')}</h3>")
        if gate.note:
            parts.append(f"<p class=soft>{html.figure(gate.note, source=f'{at}.note')}</p>")
        if gate.bounds:
            ends = charts.around([end for bound in gate.bounds for end in (*bound.interval, bound.limit, 0.0)])
            rows = [
                _bound_cells(bound, source=f"{at}.bounds.{number}", money=gate.name == "cost", ends=ends)
                for number, bound in enumerate(gate.bounds)
            ]
            unit = "currency" if gate.name == "cost" else "points"
            parts.append(html.table(["bound", "plot:0 and limit dashed", unit, "limit", "rows"], rows=rows))
    return "".join(parts)


def hybrid_section(verdict: Verdict) -> str:
    """Return the hybrid that was fitted on validation, evaluated as the candidate is; empty if there is none."""
    hybrid, at = verdict.hybrid, "verdict.hybrid"
    if hybrid is None:
        return ""
    routing, path = hybrid.routing, f"{at}.routing"
    if routing.by == "group":
        values = [html.figure(value, source=f"{path}.values.{index}") for index, value in enumerate(routing.values)]
        column = html.figure(str(routing.column), source=f"{path}.column")
        rule = f"the candidate where {column} is {', '.join(values)}"
        rule += ", else the incumbent"
    else:
        threshold = html.figure(f"{routing.threshold:.3f}", source=f"{path}.threshold")
        rule = f"the incumbent where its confidence is at least {threshold}, else the candidate"
    rows = {
        "who answers": rule,
        "the candidate's share of test rows": html.figure(
            f"{100 * hybrid.share_to_candidate:.1f} %", source=f"{at}.share_to_candidate"
        ),
        METRIC_NAMES[verdict.metric]: html.figure(f"{hybrid.score:.4f}", source=f"{at}.score"),
        "gain on the incumbent, points": _estimate(hybrid.gain, hybrid.interval, source=at, name="gain"),
        "p, adjusted by Holm for candidate and hybrid": html.figure(p_text(hybrid.p_holm), source=f"{at}.p_holm"),
        "proven": html.figure(html.plain(hybrid.proven), source=f"{at}.proven"),
    }
    return html.section(
        "The hybrid",
        html.paragraph("Who answers which row was fixed on validation, before test was read.", soft=True),
        charts.gain(hybrid.gain, interval=hybrid.interval, minimum=verdict.minimum_gain),
        html.pairs(rows),
        gate_tables(hybrid.gates, source=f"{at}.gates") if hybrid.gates else "",
    )


def reliability_section(evidence: Evidence) -> str:
    """How often each model is right where it says so, after temperature."""
    bins = evidence.reliability
    if not bins:  # chat
        return ""
    rows = [
        [
            html.text(role),
            html.figure(f"{row.confidence:.3f}", source=f"reliability.{role}.{index}.confidence"),
            html.figure(f"{row.accuracy:.3f}", source=f"reliability.{role}.{index}.accuracy"),
            html.figure(f"{row.n:,}", source=f"reliability.{role}.{index}.n"),
        ]
        for role in ("candidate", "incumbent")
        for index, row in enumerate(bins[role])
    ]
    return html.section(
        "Reliability",
        html.paragraph(
            "Confidence after the temperature that validation gave, in equally wide bins. On the dashed line a model "
            "is right as often as it says; under it, less often. A larger dot stands for more rows.",
            soft=True,
        ),
        _keys(),
        charts.reliability(bins),
        html.details("The bins", html.table(["model", "confidence", "share right", "rows"], rows=rows)),
    )


def cost_section(evidence: Evidence, verdict: Verdict) -> str:
    """What both models cost to serve, round by round; empty where it was not measured."""
    rounds, ratio = evidence.cost.cpu, verdict.cost_ratio
    if rounds is None or ratio is None:
        return ""
    cpu = {"incumbent": rounds.incumbent, "candidate": rounds.candidate}
    largest = max(*rounds.incumbent, *rounds.candidate)
    rows = [
        [
            html.text(role),
            charts.rounds(cpu[role], largest=largest, chosen=role == "candidate"),
            ", ".join(
                html.figure(f"{value:.4g}", source=f"cost.cpu.{role}.{index}") for index, value in enumerate(cpu[role])
            ),
        ]
        for role in ("incumbent", "candidate")
    ]
    summary = {
        "candidate over incumbent": html.figure(f"{ratio[0]:.3f}", source="verdict.cost_ratio.0")
        + " ("
        + html.figure(f"{ratio[1]:.3f}", source="verdict.cost_ratio.1")
        + " to "
        + html.figure(f"{ratio[2]:.3f}", source="verdict.cost_ratio.2")
        + ")",
        "CPU-seconds of training, sweep included": html.figure(
            f"{evidence.cost.training_cpu_s:,.0f}", source="cost.training_cpu_s"
        ),
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


def _bound_cells(bound: Bound, *, source: str, money: bool, ends: tuple[float, float]) -> list[str]:
    scale, form = (1.0, ",.0f") if money else (100.0, "+.2f")
    low, high = bound.interval
    values = [format(scale * value, form) for value in (bound.estimate, low, high, bound.limit)]
    paths = ("estimate", "interval.0", "interval.1", "limit")
    estimate, begin, end, limit = (
        html.figure(value, source=f"{source}.{path}") for value, path in zip(values, paths, strict=True)
    )
    rows = html.figure(f"{bound.n:,}", source=f"{source}.n")
    if bound.rows_needed is not None:
        rows += f"<small>needs {html.figure(f'{bound.rows_needed:,}', source=f'{source}.rows_needed')}</small>"
    return [
        f"{html.figure(bound.what, source=f'{source}.what')}"
        f"<small>{html.state(str(bound.state), source=f'{source}.state')}</small>",
        charts.span(bound.estimate, interval=bound.interval, guides=(0.0, bound.limit), bounds=ends),
        f"{estimate}<small>{begin} to {end}</small>",
        limit,
        rows,
    ]


def _estimate(value: float, interval: Sequence[float], *, source: str, name: str, ends: str = "interval") -> str:
    """A difference with its interval, in points, each figure with its source."""
    low, high = (html.figure(points(end), source=f"{source}.{ends}.{index}") for index, end in enumerate(interval))
    return f"{html.figure(points(value), source=f'{source}.{name}')} ({low} to {high})"


def _keys() -> str:
    return "<p class=soft><span class='key chosen'></span>candidate<span class=key></span>incumbent</p>"

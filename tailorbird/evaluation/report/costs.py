"""The measured costs and the cost of each contender at the recipe's volume, in sentences and tables."""

from tailorbird.evaluation.gates.prices import CostTerms
from tailorbird.evaluation.report import charts
from tailorbird.evaluation.report import html_elements as html
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.html_elements import Figures
from tailorbird.evaluation.verdict.contender_costs import money
from tailorbird.evaluation.verdict.formatting import cost_basis
from tailorbird.evaluation.verdict.parts import ContenderCost

PARTS = ("replicas", "tokens", "storage", "training")
UNKNOWN = "not assessable"


def cost_sentence(evidence: Evidence) -> str | None:
    """Return the ratio of the measured costs, the training and the prices; None if the costs were not measured."""
    verdict, cost, terms = evidence.verdict, evidence.cost, evidence.protocol.cost
    if cost.serving is None or cost.device is None:
        return None
    ratio = "the costs of serving the candidate and the incumbent cannot be compared"
    if verdict.cost_ratio is not None:
        estimate, low, high = verdict.cost_ratio
        ratio = (
            f"to serve, the candidate costs {estimate:.2f} times as much as the incumbent ({low:.2f} to {high:.2f}, "
            f"{cost_basis(verdict.cost_unit)}, measured on {cost.device.name})"
        )
    sentence = f"cost: {ratio}; training used {cost.training}"
    return sentence if terms is None else f"{sentence}; {terms_sentence(terms)}"


def terms_sentence(terms: CostTerms) -> str:
    """Return the volume, the replicas and the prices."""
    prices = {
        "CPU-hour": terms.price_per_cpu_hour,
        "GPU-hour": terms.price_per_gpu_hour,
        "GB of storage a month": terms.price_per_gb_month,
        "1,000 input tokens": terms.price_input,
        "1,000 output tokens": terms.price_output,
    }
    known = [f"{price:g} per {unit}" for unit, price in prices.items() if price is not None]
    resources = _count(terms.cpus_per_replica, "CPU core")
    if terms.gpus_per_replica:
        resources += f" and {_count(terms.gpus_per_replica, 'GPU')}"
    stored = "" if terms.price_per_gb_month is not None else "; storage is not priced"
    replicas = f"at least {_count(terms.min_replicas, 'replica')}, each with {resources}"
    listed = ", ".join(known) or "none"
    volume = f"{terms.requests_per_month:,.0f} requests a month"
    return f"{volume}, {replicas}; prices in the recipe's currency: {listed}{stored}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def cost_lines(evidence: Evidence) -> list[str]:
    """Return the heading and the table of the contenders' costs in Markdown; empty without prices."""
    costs, terms = evidence.verdict.costs, evidence.protocol.cost
    if not costs or terms is None:
        return []
    rows = []
    for cost in costs:
        missing = cost.total is None
        cells = [_with_interval(cost)]
        cells += [_amount(getattr(cost, part), missing=missing) for part in PARTS]
        rows.append("| " + " | ".join((cost.role, *cells)) + " |")
    head = f"| contender | total (interval) | {' | '.join(PARTS)} |\n|---|---|{'---|' * len(PARTS)}\n"
    return [
        f"## Cost of {terms.horizon_months:g} months",
        f"At {terms_sentence(terms)}.",
        head + "\n".join(rows),
        "The cost of replicas is that of the hours for which they are paid, busy or idle.",
    ]


def _with_interval(cost: ContenderCost) -> str:
    if cost.total is None or cost.interval is None:
        return UNKNOWN
    low, high = cost.interval
    return f"{money(cost.total)} ({money(low)} to {money(high)})"


def _amount(value: float | None, *, missing: bool) -> str:
    """Return an amount; if the cost is known, only storage has none."""
    if value is None:
        return "" if missing else "not priced"
    return money(value)


def cost_section(evidence: Evidence, figures: Figures) -> str:
    """Return the costs by contender, and the measured resources by round; empty if they were not measured."""
    costs, device = evidence.cost.serving, evidence.cost.device
    if costs is None or device is None:
        return ""
    on_gpu = any(usage.gpu_s is not None for usage in costs.values())
    unit = "GPU-seconds" if on_gpu else "CPU-seconds"
    largest = max(max(usage.device_s) for usage in costs.values() if usage.unit == unit)
    rows = []
    for role, usage in costs.items():
        plot = ""  # of an endpoint that is compared with models on GPUs
        if usage.unit == unit:
            plot = charts.rounds(usage.device_s, largest=largest, chosen=role == "candidate")
        cells = [
            ", ".join(figures.items(f"cost.serving.{role}.{name}", ".4g")) if getattr(usage, name) is not None else ""
            for name in (("gpu_s", "cpu_s") if on_gpu else ("cpu_s",))
        ]
        rows.append([role, plot, *cells])
    summary = {}
    if evidence.verdict.cost_ratio is not None:
        ratio, low, high = figures.items("verdict.cost_ratio", ".3f")
        basis = cost_basis(evidence.verdict.cost_unit)
        summary[f"cost of serving, candidate divided by incumbent ({basis})"] = f"{ratio} ({low} to {high})"
    summary["device"] = figures("cost.device.name")
    summary["CPU-seconds of training, including the sweep"] = figures("cost.training.cpu_s", ",.0f")
    if evidence.cost.training.gpu_s:
        summary["GPU-seconds of training, including the sweep"] = figures("cost.training.gpu_s", ",.0f")
    if device.emulated:
        summary["models whose dtype the device emulates, which is slow"] = ", ".join(
            figures.items("cost.device.emulated")
        )
    return html.section(
        "Cost",
        _totals(evidence, figures),
        "<h3>Measured resources</h3>",
        html.paragraph(
            f"{unit} per thousand rows in alternating rounds. The axis ranges from 0 to {largest:.4g}, with one tick "
            "per round.",
            soft=True,
        ),
        html.table(["model", "plot:rounds", *(["GPU-seconds"] if on_gpu else []), "CPU-seconds"], rows=rows),
        html.paragraph(cost_sentence(evidence) or ""),
        html.pairs(summary),
    )


def _totals(evidence: Evidence, figures: Figures) -> str:
    """Return the table of the costs of all contenders at the recipe's volume; empty without prices."""
    costs, terms, selected = evidence.verdict.costs, evidence.protocol.cost, evidence.winning_role
    if not costs or terms is None:
        return ""
    margin, rows = evidence.verdict.non_inferiority_margin, []
    for index, cost in enumerate(costs):
        at = f"verdict.costs.{index}"
        if cost.total is None:
            missing = "; ".join(figures.items(f"{at}.missing"))
            cells = [f"{UNKNOWN}<small>{missing}</small>", *[""] * (len(PARTS) + 1)]
        else:
            low, high = figures.items(f"{at}.interval", money)
            parts = ["" if getattr(cost, part) is None else figures(f"{at}.{part}", money) for part in PARTS]
            parts[0] += f"<small>busy: {figures(f'{at}.busy', money)}</small>"
            cells = [
                f"{figures(f'{at}.total', money)}<small>{low} to {high}</small>",
                *parts,
                figures(f"{at}.replica_hours", ",.0f"),
            ]
        gain = "selected"
        if cost.gain is not None:
            states = [
                "not shown to be worse" if cost.gain.not_worse else "worse",
                "non-inferior" if cost.gain.is_above(-margin) else "not shown to be non-inferior",
            ]
            estimate = figures.estimate(f"{at}.gain.gain", interval=f"{at}.gain.interval")
            gain = f"{estimate}<small>{'; '.join(states)}</small>"
        rows.append([figures(f"{at}.role"), *cells, gain])
    return html.paragraph(
        f"Cost of {terms.horizon_months:g} months at {terms_sentence(terms)}. The cost of replicas is that of the "
        "hours for which they are paid, busy or idle. The cost does not affect the verdict except by the cost gate and "
        "the cost ratios.",
        soft=True,
    ) + html.table(
        ["contender", "total", *PARTS, "replica-hours a month", "gain over the selected model, points"],
        rows=rows,
        row_classes=["chosen" if cost.role == selected else "" for cost in costs],
    )

"""Plots of the HTML report as inline SVG; the report prints the plotted numbers next to each plot."""

from collections.abc import Mapping, Sequence

from tailorbird.evaluation.report.evidence import ReliabilityBin
from tailorbird.evaluation.report.html_elements import text

SQUARE = 240  # side of a plot with two axes, in SVG units
MARGIN = 34


def bar(value: float, *, interval: tuple[float, float], label: str) -> str:
    """Return a bar from 0 to `value` on an axis from 0 to 1, with the interval as a whisker."""
    low, high = (100 * min(max(end, 0.0), 1.0) for end in interval)
    lines = ((low, high, 10, 10), (low, low, 6, 14), (high, high, 6, 14))
    whisker = "".join(
        f'<line class="whisker" x1="{x1:.2f}" x2="{x2:.2f}" y1="{y1}" y2="{y2}"/>' for x1, x2, y1, y2 in lines
    )
    width = f"{100 * min(max(value, 0.0), 1.0):.2f}"
    return _strip(f'<rect class="bar" x="0" y="3" width="{width}" height="14"/>{whisker}', height=20, label=label)


def span(
    estimate: float, *, interval: tuple[float, float], guides: Sequence[float], bounds: tuple[float, float]
) -> str:
    """Return an interval as a bar, with a solid line at the estimate and dashed lines at `guides`.

    `bounds` are the ends of the axis.
    """
    left, right = bounds
    scale = 100 / (right - left or 1.0)

    def position(value: float) -> str:
        return f"{min(max((value - left) * scale, 0.0), 100.0):.2f}"

    low, high = interval
    width = float(position(high)) - float(position(low))
    dashed = "".join(f'<line class="guide" x1="{position(x)}" x2="{position(x)}" y1="0" y2="24"/>' for x in guides)
    return _strip(
        f'{dashed}<rect class="bar chosen" x="{position(low)}" y="7" width="{max(width, 0.3):.2f}" height="10"/>'
        f'<line class="whisker" x1="{position(estimate)}" x2="{position(estimate)}" y1="3" y2="21"/>',
        height=24,
        label=f"{100 * estimate:.2f}, interval {100 * low:.2f} to {100 * high:.2f}",
    )


def around(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis that contains all values with a margin."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low or 0.01)
    return low - margin, high + margin


def gain(value: float, *, interval: tuple[float, float], minimum: float) -> str:
    """Return a plot of the gain and its interval, with 0 and the minimum gain."""
    low, high = interval
    drawn = span(value, interval=interval, guides=(0.0, minimum), bounds=around((low, high, 0.0, minimum)))
    return (
        f"{drawn}<p class=soft>Bar: interval from {100 * low:+.2f} to {100 * high:+.2f} points. Solid line: gain of "
        f"{100 * value:+.2f} points. Dashed lines: 0 and the minimum gain of {100 * minimum:+.2f} points.</p>"
    )


def outcomes(counts: Mapping[str, int]) -> str:
    """Return a bar of the test rows, divided by which of the two models is right."""
    total, at, parts = sum(counts.values()), 0.0, []
    shades = ("0.25", "1", "0.6", "0.1")  # emphasise the two parts in which the models differ
    for (name, count), shade in zip(counts.items(), shades, strict=True):
        width = 100 * count / total
        chosen = " chosen" if name == "only the candidate right" else ""
        parts.append(
            f'<rect class="bar{chosen}" opacity="{shade}" x="{at:.2f}" y="2" width="{width:.2f}" height="20">'
            f"<title>{text(name)}: {count:,}</title></rect>"
        )
        at += width
    label = ", ".join(f"{name} {count}" for name, count in counts.items())
    return _strip("".join(parts), height=24, label=label)


def reliability(bins: Mapping[str, Sequence[ReliabilityBin]]) -> str:
    """Return a reliability diagram: accuracy against mean confidence per bin, one line per model.

    `bins` are by role. The candidate is drawn over the incumbent. The area of a dot grows with the rows of the bin.
    """
    scale = SQUARE - 2 * MARGIN
    elements = [_axes("confidence", "accuracy", ends=((0.0, 1.0), (0.0, 1.0)))]
    elements.append(f'<line class="guide" x1="{MARGIN}" y1="{SQUARE - MARGIN}" x2="{SQUARE - MARGIN}" y2="{MARGIN}"/>')
    for role, rows in sorted(bins.items(), key=lambda item: item[0] == "candidate"):
        most = max((row.n for row in rows), default=1)
        dots = [(MARGIN + scale * row.confidence, SQUARE - MARGIN - scale * row.accuracy, row.n / most) for row in rows]
        elements.append(_line(dots, chosen=role == "candidate"))
    return _square("".join(elements), label="reliability: accuracy against confidence; see the table")


def curve(points: Sequence[tuple[float, float]], *, axes: tuple[str, str]) -> str:
    """Return a line through (x, y) points in the order of x, with labels at the ends of the axes."""
    across, up = [x for x, _ in points], [y for _, y in points]
    (left, right), (bottom, top) = around(across), around(up)
    scale = SQUARE - 2 * MARGIN
    dots = [
        (MARGIN + scale * (x - left) / (right - left), SQUARE - MARGIN - scale * (y - bottom) / (top - bottom), 0.4)
        for x, y in sorted(points)
    ]
    frame = _axes(*axes, ends=((min(across), max(across)), (bottom, top)))
    return _square(frame + _line(dots, chosen=True), label=f"{axes[1]} against {axes[0]}; see the table")


def rounds(values: Sequence[float], *, largest: float, chosen: bool) -> str:
    """Return one tick per measurement on an axis from 0 to `largest`."""
    ticks = "".join(
        f'<rect class="bar{" chosen" if chosen else ""}" x="{98.5 * value / (largest or 1.0):.2f}" y="3" width="1.2" '
        'height="14"/>'
        for value in values
    )
    return _strip(ticks, height=20, label=", ".join(f"{value:.4g}" for value in values))


def _strip(content: str, *, height: int, label: str) -> str:
    """Return a plot that is stretched from 100 units to the width of its container, so it must not contain text."""
    return (
        f'<svg viewBox="0 0 100 {height}" preserveAspectRatio="none" height="{height}" role="img" '
        f'aria-label="{text(label)}">{content}</svg>'
    )


def _square(content: str, *, label: str) -> str:
    return f'<svg class="square" viewBox="0 0 {SQUARE} {SQUARE}" role="img" aria-label="{text(label)}">{content}</svg>'


def _line(dots: Sequence[tuple[float, float, float]], *, chosen: bool) -> str:
    """Return a line with a dot at each (x, y, weight), in SVG units."""
    kind = " chosen" if chosen else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in dots)
    return f'<polyline class="path{kind}" points="{path}"/>' + "".join(
        f'<circle class="dot{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{2 + 4 * weight**0.5:.1f}"/>' for x, y, weight in dots
    )


def _axes(across: str, up: str, *, ends: tuple[tuple[float, float], tuple[float, float]]) -> str:
    (left, right), (bottom, top) = ends
    side, low, high = SQUARE - 2 * MARGIN, SQUARE - MARGIN, MARGIN

    def label(x: float, y: float, *, content: str, anchor: str = "middle", turned: bool = False) -> str:
        turn = f' transform="rotate(-90 {x} {y})"' if turned else ""
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{turn}>{text(content)}</text>'

    return (
        f'<rect class="frame" x="{MARGIN}" y="{MARGIN}" width="{side}" height="{side}"/>'
        + label(MARGIN, low + 14, content=f"{left:,.4g}")
        + label(SQUARE - MARGIN, low + 14, content=f"{right:,.5g}")
        + label(SQUARE / 2, low + 26, content=across)
        + label(MARGIN - 4, low, content=f"{bottom:.2f}", anchor="end")
        + label(MARGIN - 4, high + 8, content=f"{top:.2f}", anchor="end")
        + label(10, SQUARE / 2, content=up, turned=True)
    )

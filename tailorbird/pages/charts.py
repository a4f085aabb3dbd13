"""Geometry of charts that the components draw as SVG.

A chart is as wide as its container: horizontal positions are percentages of the width, vertical ones and sizes are
pixels. So text and lines keep their size on a phone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

TICK_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Line:
    """A straight line; `kind` is its CSS class."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str = "axis"
    shape: ClassVar[str] = "line"


@dataclass(frozen=True)
class Box:
    """A rectangle; `title` is its tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str = "bar"
    title: str = ""
    shape: ClassVar[str] = "box"


@dataclass(frozen=True)
class Dot:
    """A circle with a radius in pixels."""

    x: float
    y: float
    radius: float = 4.0
    kind: str = "dot"
    title: str = ""
    shape: ClassVar[str] = "dot"


@dataclass(frozen=True)
class Text:
    """A text; `anchor` is `start`, `middle` or `end`, `shift` moves it to the right by pixels."""

    x: float
    y: float
    text: str
    kind: str = "label"
    anchor: str = "start"
    shift: float = 0.0
    shape: ClassVar[str] = "text"


Mark = Line | Box | Dot | Text


@dataclass(frozen=True)
class Chart:
    """Marks that are drawn in their order, with a text for screen readers and a CSS class."""

    marks: tuple[Mark, ...]
    height: float
    label: str
    kind: str = "strip"


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`, over `length` percent or pixels from the position `start`."""

    low: float
    high: float
    length: float = 100.0
    start: float = 0.0

    def at(self, value: float) -> float:
        """Return the position of a value; values outside the axis are moved to its ends."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + self.length * min(max(share, 0.0), 1.0), 2)

    def down(self, value: float) -> float:
        """Return the position of a value on an axis that points upwards and has its high end at 0."""
        return round(self.length + self.start - self.at(value), 2)

    def ticks(self, *, about: int) -> tuple[float, ...]:
        """Return round values inside the axis, about as many as requested."""
        raw = (self.high - self.low) / max(about, 1) or 1.0
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(step * power for step in TICK_STEPS if step * power >= raw * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(round(index * step, 10) for index in range(first, last + 1))


def around(values: Sequence[float], *, margin: float = 0.08, length: float = 100.0) -> Scale:
    """Return an axis that contains all values with a margin on both sides."""
    low, high = min(values), max(values)
    room = margin * (high - low or 0.01)
    return Scale(low - room, high + room, length)


def interval_marks(
    low: float, estimate: float, high: float, *, scale: Scale, y: float, kind: str = ""
) -> tuple[Line | Dot, ...]:
    """Return a horizontal interval with caps, and a dot at its estimate."""
    left, right = scale.at(low), scale.at(high)
    return (
        Line(left, y, right, y, f"whisker {kind}".strip()),
        Line(left, y - 4, left, y + 4, f"whisker {kind}".strip()),
        Line(right, y - 4, right, y + 4, f"whisker {kind}".strip()),
        Dot(scale.at(estimate), y, 4.5, f"dot {kind}".strip()),
    )


def share_bar(value: float, *, interval: tuple[float, float] | None, label: str, chosen: bool = False) -> Chart:
    """Return a bar from 0 to `value` on an axis from 0 to 1, with the interval as a whisker."""
    scale = Scale(0.0, 1.0)
    marks: list[Mark] = [Box(0, 4, scale.at(value), 12, "bar chosen" if chosen else "bar")]
    if interval is not None:
        low, high = (scale.at(end) for end in interval)
        marks += [Line(low, 10, high, 10, "whisker")]
        marks += [Line(end, 6, end, 14, "whisker") for end in (low, high)]
    return Chart(tuple(marks), 20, label)


def interval_strip(
    estimate: float, *, interval: tuple[float, float], guides: Sequence[float], scale: Scale, label: str, kind: str = ""
) -> Chart:
    """Return an interval with its estimate; dashed lines are at `guides`, the last of which is the limit."""
    marks: list[Mark] = [Line(scale.at(guide), 0, scale.at(guide), 26, "guide") for guide in guides]
    marks += interval_marks(interval[0], estimate, interval[1], scale=scale, y=13, kind=kind)
    return Chart(tuple(marks), 26, label)


def axis_strip(scale: Scale, *, form: Callable[[float], str]) -> Chart:
    """Return an axis with two or three values, to be drawn below strips with the same scale."""
    marks: list[Mark] = [Line(0, 1, 100, 1, "axis")]
    for value in scale.ticks(about=3):
        at = scale.at(value)
        marks += [Line(at, 1, at, 5, "axis"), Text(at, 18, form(value), anchor="middle")]
    return Chart(tuple(marks), 22, "axis", "ends")


def parts_bar(parts: Sequence[tuple[str, int, str]]) -> Chart:
    """Return a bar divided by the number of each (name, number, CSS class)."""
    total, at, marks = sum(number for _, number, _ in parts), 0.0, list[Mark]()
    for name, number, kind in parts:
        width = round(100 * number / total, 2)
        marks.append(Box(round(at, 2), 2, width, 24, kind, title=f"{name}: {number:,}"))
        at += width
    return Chart(tuple(marks), 28, ", ".join(f"{name} {number:,}" for name, number, _ in parts))


def ticks_strip(values: Sequence[float], *, largest: float, label: str, kind: str = "") -> Chart:
    """Return one dot per measurement on an axis from 0 to `largest`."""
    scale = Scale(0.0, largest)
    dots = tuple(Dot(scale.at(value), 10, 4, f"dot {kind}".strip()) for value in values)
    return Chart((Line(0, 10, 100, 10, "axis"), *dots), 20, label)


def sparkline(values: Sequence[float | None], *, limit: float, label: str) -> Chart:
    """Return a line through the values that are known, with a dashed line at `limit`."""
    height = 36
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    scale = Scale(0.0, 1.1 * max([limit, *(value for _, value in known)]) or 1.0, height)
    step = 100 / max(1, len(values) - 1)
    dots = [(round(index * step, 2), scale.down(value), value > limit) for index, value in known]
    marks: list[Mark] = [Line(0, scale.down(limit), 100, scale.down(limit), "guide"), *path(dots)]
    marks += [Dot(x, y, 2.5, "dot alarm" if above else "dot chosen") for x, y, above in dots]
    return Chart(tuple(marks), height, label)


def path(points: Sequence[tuple[float, float, object]], *, kind: str = "path chosen") -> list[Line]:
    """Return lines from each point (x, y, ...) to the next."""
    return [Line(first[0], first[1], second[0], second[1], kind) for first, second in pairwise(points)]


def axes(
    across: Scale,
    up: Scale,
    *,
    names: tuple[str, str],
    forms: tuple[Callable[[float], str], Callable[[float], str]],
    ticks: tuple[int, int] = (4, 4),
) -> list[Mark]:
    """Return grid lines with their values, and the names of both axes (the vertical one above the chart)."""
    height, marks = up.length, list[Mark]()
    for value in up.ticks(about=ticks[1]):
        y = up.down(value)
        marks += [Line(0, y, 100, y, "grid"), Text(0, y + 4, forms[1](value), anchor="end", shift=-8)]
    for value in across.ticks(about=ticks[0]):
        x = across.at(value)
        marks += [Line(x, height, x, height + 5, "axis")]
        marks += [Text(x, height + 18, forms[0](value), anchor="middle")]
    marks += [Line(0, height, 100, height, "axis")]
    marks += [Text(100, height + 36, names[0], "name", anchor="end"), Text(0, -12, names[1], "name", shift=-40)]
    return marks

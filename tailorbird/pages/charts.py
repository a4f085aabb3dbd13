"""Marks of charts (line, box, dot, text, axis, interval), and the charts that several pages compose
of them.

A chart is as wide as its container: horizontal positions are percentages of the width, vertical
ones and sizes are pixels. So text and lines keep their size on a phone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

TICK_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
Form = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A straight line; `kind` is its CSS class."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str = "axis"
    shape: ClassVar[str] = "line"


def horizontal(y: float, left: float, right: float, *, kind: str = "axis") -> Line:
    """Return a horizontal line."""
    return Line(x1=left, y1=y, x2=right, y2=y, kind=kind)


def vertical(x: float, top: float, bottom: float, *, kind: str = "axis") -> Line:
    """Return a vertical line."""
    return Line(x1=x, y1=top, x2=x, y2=bottom, kind=kind)


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    shape: ClassVar[str] = "box"


@dataclass(frozen=True)
class Dot:
    """A circle with a radius in pixels; `title` is its tooltip."""

    x: float
    y: float
    radius: float = 4.0
    kind: str = "dot"
    title: str = ""
    shape: ClassVar[str] = "dot"


@dataclass(frozen=True)
class Text:
    """A text; `anchor` is `start`, `middle` or `end`. `shift` and `rise` move it to the right and
    up, by pixels."""

    x: float
    y: float
    text: str
    kind: str = "label"
    anchor: str = "start"
    shift: float = 0.0
    rise: float = 0.0
    shape: ClassVar[str] = "text"


PlotMark = Line | Dot | Text
Mark = PlotMark | Box


@dataclass(frozen=True)
class Chart:
    """Marks that are drawn in their order, with a text for screen readers and a CSS class."""

    marks: tuple[Mark, ...]
    height: float
    label: str
    kind: str = "strip"


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high`, over `length` percent or pixels."""

    low: float
    high: float
    length: float = 100.0
    name: str = ""
    form: Form = "{:.4g}".format
    num_ticks: int = 4  # about

    def at(self, value: float) -> float:
        """Return the position of a value; values outside the axis are moved to its ends."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.length * min(max(share, 0.0), 1.0), 2)

    def down(self, value: float) -> float:
        """Return the position of a value on an axis that points upwards and has its high end at
        0."""
        return round(self.length - self.at(value), 2)

    def ticks(self) -> tuple[float, ...]:
        """Return round values inside the axis."""
        raw = (self.high - self.low) / max(self.num_ticks, 1) or 1.0
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(step * power for step in TICK_STEPS if step * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return tuple(round(index * step, 10) for index in range(first, last + 1))

    def across(self, y: float) -> list[Mark]:
        """Return the horizontal axis at `y` with its name, and with lines from the top at its
        values."""
        marks: list[Mark] = [horizontal(y, 0, self.length)]
        for value in self.ticks():
            x = self.at(value)
            marks.append(vertical(x, 0, y, kind="grid"))
            marks.append(Text(x, y + 18, self.form(value), anchor="middle"))
        if self.name:
            marks.append(Text(self.length, y + 36, self.name, kind="name", anchor="end"))
        return marks

    def up(self) -> list[Mark]:
        """Return the vertical axis: lines at its values, and its name above the chart."""
        marks: list[Mark] = []
        for value in self.ticks():
            y = self.down(value)
            marks.append(horizontal(y, 0, 100, kind="grid"))
            marks.append(Text(0, y + 4, self.form(value), anchor="end", shift=-8))
        marks.append(Text(0, -12, self.name, kind="name", shift=-40))
        return marks


def around(
    values: Iterable[float],
    *,
    length: float = 100.0,
    name: str = "",
    form: Form = Axis.form,
) -> Axis:
    """Return an axis that contains all values with a margin on both sides."""
    contained = list(values)
    low = min(contained)
    high = max(contained)
    room = 0.08 * (high - low or 0.01)
    return Axis(low - room, high + room, length, name=name, form=form)


def interval_marks(
    ends: tuple[float, float], *, axis: Axis, y: float, tone: str = ""
) -> list[Line]:
    """Return a horizontal interval with caps."""
    left = axis.at(ends[0])
    right = axis.at(ends[1])
    kind = f"whisker {tone}".strip()
    caps = [vertical(x, y - 4, y + 4, kind=kind) for x in (left, right)]
    return [horizontal(y, left, right, kind=kind), *caps]


def band(low: float, high: float, *, axis: Axis, height: float) -> list[Mark]:
    """Return a shaded range of values with a dashed line at its low end."""
    left = axis.at(low)
    width = round(axis.at(high) - left, 2)
    return [
        Box(x=left, y=0, width=width, height=height, kind="band"),
        vertical(left, 0, height, kind="guide"),
    ]


def joined(dots: Sequence[Dot], *, kind: str = "path chosen") -> list[Line]:
    """Return lines from each dot to the next."""
    lines = []
    for first, second in pairwise(dots):
        lines.append(Line(x1=first.x, y1=first.y, x2=second.x, y2=second.y, kind=kind))
    return lines


def course(points: Iterable[tuple[float, float]], *, tone: str, title: str = "") -> list[PlotMark]:
    """Return a dot at each point, and lines from each dot to the next."""
    dots = [Dot(x, y, kind=f"dot {tone}", title=title) for x, y in points]
    return [*joined(dots, kind=f"path {tone}"), *dots]


def placed(marks: Iterable[PlotMark], *, x: Axis, y: Axis) -> list[Mark]:
    """Return marks whose positions are values of the axes at their positions in the chart."""
    drawn: list[Mark] = []
    for mark in marks:
        if isinstance(mark, Line):
            line = Line(
                x1=x.at(mark.x1),
                y1=y.down(mark.y1),
                x2=x.at(mark.x2),
                y2=y.down(mark.y2),
                kind=mark.kind,
            )
            drawn.append(line)
        else:
            drawn.append(replace(mark, x=x.at(mark.x), y=y.down(mark.y)))
    return drawn


def plot(marks: Iterable[PlotMark], *, x: Axis, y: Axis, label: str) -> Chart:
    """Return a chart with two axes of marks whose positions are values of the axes."""
    drawn = (*y.up(), *x.across(y.length), *placed(marks, x=x, y=y))
    return Chart(drawn, y.length, label, kind="plot medium")


def sparkline(values: Sequence[float | None], *, limit: float, label: str) -> Chart:
    """Return a line through the values that are known, with a dashed line at `limit`."""
    largest = limit
    dots = []
    for index, value in enumerate(values):
        if value is not None:
            kind = "dot alarm" if value > limit else "dot chosen"
            dots.append(Dot(index, value, radius=2.5, kind=kind))
            largest = max(largest, value)
    x = Axis(0.0, max(1, len(values) - 1))
    y = Axis(0.0, 1.1 * largest or 1.0, 36.0)
    limit_line = horizontal(limit, x.low, x.high, kind="guide")
    marks = placed([limit_line, *joined(dots), *dots], x=x, y=y)
    return Chart(tuple(marks), y.length, label)

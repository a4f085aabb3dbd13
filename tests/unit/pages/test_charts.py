"""Geometry of charts, and their drawing as SVG with escaped text."""

from tailorbird.pages.charts import Axis, Box, Chart, Dot, Line, Text, around, sparkline
from tailorbird.pages.environment import COMPONENTS, environment


def test_positions_are_clamped_to_the_axis_and_point_upwards_on_request() -> None:
    scale = Axis(0.0, 2.0, 300.0)
    assert [scale.at(value) for value in (-1, 0, 1, 3)] == [0, 0, 150, 300]
    assert scale.down(0.5) == 225
    assert around([3.0, 3.0]).at(3.0) == 50


def test_a_sparkline_omits_unknown_values_and_marks_those_above_the_limit() -> None:
    chart = sparkline([0.1, None, 0.5], limit=0.3, label="x")
    dots = [mark for mark in chart.marks if isinstance(mark, Dot)]
    assert [(dot.x, dot.kind) for dot in dots] == [(0, "dot chosen"), (100, "dot alarm")]
    assert sum(isinstance(mark, Line) and mark.kind == "path chosen" for mark in chart.marks) == 1


def test_a_chart_is_drawn_with_every_mark_and_escaped_text() -> None:
    marks = (
        Text(1, 2, "<b>", shift=-8, rise=3),
        Dot(3, 4, title="<i>"),
        Box(x=0, y=4, width=50, height=12, kind="band"),
    )
    template = environment(COMPONENTS).from_string(
        '{% import "components.html" as ui %}{{ ui.chart(chart) }}'
    )
    svg = template.render(chart=Chart(marks, 20, 'a "label"'))
    for expected in (
        '<svg class="strip" height="20" role="img" aria-label="a &#34;label&#34;">',
        '<text class="label" x="1%" y="2" text-anchor="start" dx="-8" dy="-3">&lt;b&gt;</text>',
        '<circle class="dot" cx="3%" cy="4" r="4.0"><title>&lt;i&gt;</title></circle>',
        '<rect class="band" x="0%" y="4" width="50%" height="12"/>',
    ):
        assert expected in svg

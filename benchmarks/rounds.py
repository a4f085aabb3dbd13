"""What the benchmarks share: variants measured in turn, medians over the rounds, and the last line of JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

Figures = Mapping[str, float]


def take_turns(variants: Mapping[str, Callable[[], Figures]], *, rounds: int) -> dict[str, list[Figures]]:
    """Figures of each variant in each round, printed as they come; the order is reversed from one round to the next."""
    measured: dict[str, list[Figures]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            figures = variants[name]()
            measured[name].append(figures)
            line = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
            print(f"round {number + 1} of {rounds}, {name}: {line}", flush=True)
    return measured


def medians(rounds: Sequence[Figures]) -> dict[str, float]:
    """The median of each figure over the rounds."""
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}


def print_table(title: str, rows: Mapping[str, Figures]) -> None:
    """One line a variant; a figure that a variant has not is left empty."""
    table = Table("", title=title)
    columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    for column in columns:
        table.add_column(column, justify="right")
    for name, figures in rows.items():
        table.add_row(name, *(f"{figures[column]:,.4g}" if column in figures else "" for column in columns))
    Console().print(table)


def finish(benchmark: str, figures: Figures, *, bounds: Mapping[str, str]) -> None:
    """Prints the line of JSON that a benchmark ends with; each bound is a sign and a number, as in `>= 0.9`."""
    result = {
        "benchmark": benchmark,
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "bounds": dict(bounds),
        "holds": all(holds(figures[name], bound) for name, bound in bounds.items()),
    }
    print(json.dumps(result), flush=True)


def skip(benchmark: str, reason: str) -> None:
    """Prints the line of JSON of a benchmark that cannot run here, and why."""
    print(json.dumps({"benchmark": benchmark, "skipped": reason}), flush=True)


def holds(value: float, bound: str) -> bool:
    """Whether a figure keeps its bound."""
    sign, limit = bound.split()
    compared = {
        "<=": value <= float(limit),
        ">=": value >= float(limit),
        "<": value < float(limit),
        ">": value > float(limit),
    }
    return compared[sign]

"""Shared parts of the benchmarks: rounds of alternating variants, medians, and the final line of
JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

Figures = Mapping[str, float]


def take_turns(
    variants: Mapping[str, Callable[[], Figures]], *, rounds: int
) -> dict[str, list[Figures]]:
    """Measure all variants in each round, print the figures, and return them. Every second round
    has reverse order."""
    measured: dict[str, list[Figures]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            figures = variants[name]()
            measured[name].append(figures)
            line = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
            print(f"round {number + 1} of {rounds}, {name}: {line}", flush=True)
    return measured


def medians(rounds: Sequence[Figures]) -> dict[str, float]:
    """Return the median of each figure over the rounds."""
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}


def print_table(title: str, rows: Mapping[str, Figures]) -> None:
    """Print a table with one row per variant. Cells of missing figures are empty."""
    table = Table("", title=title)
    columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    for column in columns:
        table.add_column(column, justify="right")
    for name, figures in rows.items():
        table.add_row(
            name, *(f"{figures[column]:,.4g}" if column in figures else "" for column in columns)
        )
    Console().print(table)


def finish(benchmark: str, figures: Figures, *, bounds: Mapping[str, str]) -> None:
    """Print the final line of JSON of a benchmark. A bound is a comparison with a number, such as
    `>= 0.9`."""
    result = {
        "benchmark": benchmark,
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "bounds": dict(bounds),
        "holds": all(holds(figures[name], bound) for name, bound in bounds.items()),
    }
    print(json.dumps(result), flush=True)


def skip(benchmark: str, reason: str) -> None:
    """Print the line of JSON of a benchmark that cannot run on this machine, with the reason."""
    print(json.dumps({"benchmark": benchmark, "skipped": reason}), flush=True)


def holds(value: float, bound: str) -> bool:
    """Return True if a figure is within its bound."""
    sign, limit = bound.split()
    compared = {
        "<=": value <= float(limit),
        ">=": value >= float(limit),
        "<": value < float(limit),
        ">": value > float(limit),
    }
    return compared[sign]

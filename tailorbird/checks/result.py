"""The result of one check by `doctor` or `preflight`. This module imports only the standard
library."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal

State = Literal["ok", "note", "fault", "heading"]


@dataclass(frozen=True)
class CheckResult:
    """The result of a check. A `note` is information; a `fault` prevents a run. A `heading` has
    only a name, for the results that follow."""

    name: str
    state: State
    message: str
    remedy: str = ""

    def lines(self) -> list[str]:
        if self.state == "heading":
            return ["", self.name]
        mark = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}[self.state]
        return [f"{mark}  {self.name}: {self.message}"] + (
            [f"       -> {self.remedy}"] if self.remedy else []
        )


def heading(name: str) -> CheckResult:
    return CheckResult(name, "heading", "")


def ok(name: str, message: str) -> CheckResult:
    return CheckResult(name, "ok", message)


def note(name: str, message: str, remedy: str = "") -> CheckResult:
    return CheckResult(name=name, state="note", message=message, remedy=remedy)


def fault(name: str, message: str, remedy: str = "") -> CheckResult:
    return CheckResult(name=name, state="fault", message=message, remedy=remedy)


def passes(results: Sequence[CheckResult]) -> bool:
    """True if no result is a fault."""
    return all(result.state != "fault" for result in results)


def to_json(results: Sequence[CheckResult]) -> dict[str, Any]:
    return {"holds": passes(results), "lines": [asdict(result) for result in results]}


def to_lines(results: Sequence[CheckResult]) -> list[str]:
    return list(chain.from_iterable(result.lines() for result in results))

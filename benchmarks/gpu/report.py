"""A figure of a case with its bound, sent from the case's process as a line of JSON."""

import json
from dataclasses import asdict, dataclass

from benchmarks.harness import holds

PREFIX = "FIGURE "


@dataclass(frozen=True)
class Figure:
    """A measured value; without a bound, it is only reported."""

    name: str
    value: float
    bound: str | None = None
    is_hardware: bool = False
    """The bound depends on the card. It is reported, but required only with `STRICT=1`."""

    @property
    def is_missed(self) -> bool:
        """True if the value is out of its bound."""
        return self.bound is not None and not holds(self.value, self.bound)

    def to_line(self) -> str:
        return PREFIX + json.dumps(asdict(self))


def from_line(line: str) -> Figure | None:
    """Return the figure of a line of a case's output, or None if the line is other output."""
    if not line.startswith(PREFIX):
        return None
    return Figure(**json.loads(line.removeprefix(PREFIX)))

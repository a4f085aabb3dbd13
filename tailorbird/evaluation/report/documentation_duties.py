"""Documentation duties and the fields of the evidence that serve them: the table that ends the report."""

from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel


class Duty(BaseModel):
    """A duty, what it requires, and the fields of `evidence.json` that serve it."""

    duty: str
    requires: str
    fields: tuple[str, ...]


class DutyTable(BaseModel):
    duties: tuple[Duty, ...]
    caveat: str


@cache
def load_duties() -> DutyTable:
    """Return the table of `documentation_duties.yaml`."""
    return DutyTable.model_validate(
        yaml.safe_load((files(__package__) / "documentation_duties.yaml").read_text("utf-8"))
    )

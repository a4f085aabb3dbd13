"""Types of the package's names; `__init__.py` imports those of the interface when first used."""

from pathlib import Path

from tailorbird.interface.model import load as load
from tailorbird.interface.runs import compare as compare
from tailorbird.interface.runs import run as run

__version__: str
PACKAGES: tuple[str, ...]
PROJECT_ROOT: Path

def resource_folder(name: str) -> Path: ...

"""Fine-tune a pretrained model on your data, test it against the model in service, and serve the
winner."""

from importlib import import_module
from pathlib import Path

__version__ = "0.2.0"

PACKAGES = (
    "cluster",
    "training",
    "tuning",
    "serving",
    "tailorbird",
)  # the project's top-level packages
PROJECT_ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds this package next to `cluster/`, `training/`, `tuning/` and `serving/`."""
_INTERFACE = {"run": "runs", "compare": "runs", "load": "model"}
"""Names of the Python interface, with their modules in `tailorbird.interface`. `__init__.pyi` has
their types."""


def resource_folder(name: str) -> Path:
    """Return the folder `recipes` or `k8s`: from the installed wheel, or else from the checkout."""
    installed = Path(__file__).resolve().parent / name
    if installed.is_dir():
        return installed
    return PROJECT_ROOT / name


def __getattr__(name: str) -> object:
    """Import a name of the Python interface when it is first used, so that `import tailorbird` is
    fast (PEP 562)."""
    if name not in _INTERFACE:
        raise AttributeError(f"module 'tailorbird' has no attribute {name!r}")
    value: object = getattr(import_module(f"tailorbird.interface.{_INTERFACE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_INTERFACE})

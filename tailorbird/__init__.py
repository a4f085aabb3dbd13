"""Fine-tune a pretrained model on your data, test it against the model in service, and serve the winner."""

from pathlib import Path

__version__ = "0.2.0"

PACKAGES = ("cluster", "training", "tuning", "serving", "tailorbird")  # the project's top-level packages
PROJECT_ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds this package next to `cluster/`, `training/`, `tuning/` and `serving/`."""


def resource_folder(name: str) -> Path:
    """Return the folder `recipes` or `k8s`: from the installed wheel, or else from the checkout."""
    installed = Path(__file__).resolve().parent / name
    return installed if installed.is_dir() else PROJECT_ROOT / name

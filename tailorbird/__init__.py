"""Tailorbird adapts a pretrained model to your data, tests whether it deserves to serve, and serves the winner."""

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds this package, `cluster/`, `training/`, `tuning/`, `serving/`, `recipes/` and `k8s/`."""

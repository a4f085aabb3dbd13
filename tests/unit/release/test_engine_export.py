"""Models that only torch runs."""

from types import SimpleNamespace
from typing import Any

from tailorbird.registry.kinds import KINDS
from tailorbird.release.engine_export import _why_only_torch


def test_a_bag_of_words_is_not_exported() -> None:
    bag: Any = SimpleNamespace(
        endpoint=None,
        task="classification",
        hybrid=None,
        spec=KINDS["bag_of_words"],
        kind="bag_of_words",
    )
    evidence: Any = None  # not read
    assert (
        _why_only_torch(bag, evidence=evidence) == "is a bag_of_words model, which has no encoder"
    )

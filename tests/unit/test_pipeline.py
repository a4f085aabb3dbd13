"""What the way of the data decides itself: who is the candidate, and on how many rows the learning curve is drawn."""

from types import SimpleNamespace
from typing import Any

import pytest

import pipeline
from artifacts import Model
from pipeline import best_on_validation, learn_curve

SEEDS: Any = [SimpleNamespace(weights=f"seed-{number}", score=score) for number, score in enumerate((0.71, 0.74, 0.73))]


@pytest.mark.parametrize(("mean", "chosen"), [(None, "seed-1"), (0.739, "seed-1"), (0.74, "mean"), (0.75, "mean")])
def test_the_mean_of_the_weights_is_the_candidate_where_no_seed_is_better(mean: float | None, chosen: str) -> None:
    averaged = None if mean is None else Model("full", "mean", mean)
    candidate = best_on_validation(SEEDS, averaged, method="full")
    assert candidate == Model("full", chosen, max(0.74, mean or 0.0))


@pytest.mark.parametrize(
    ("num_train", "trained", "sizes"),
    [
        (800, [50, 100, 200, 400], (50, 100, 200, 400, 800)),
        (9000, [50, 100, 200, 400, 800], (50, 100, 200, 400, 800, 9000)),
    ],
)
def test_the_learning_curve_ends_with_all_rows_also_where_memory_holds_a_part(
    monkeypatch: pytest.MonkeyPatch, num_train: int, trained: list[int], sizes: tuple[int, ...]
) -> None:
    asked: list[int] = []

    def train(*_: Any, num_train_rows: int, **__: Any) -> Any:
        asked.append(num_train_rows)
        return SimpleNamespace(score=0.5 + num_train_rows / 4000)

    monkeypatch.setattr(pipeline, "_train_once", train)
    splits = SimpleNamespace(train=range(800), validation=range(100))
    prepared: Any = SimpleNamespace(
        data=SimpleNamespace(num_train=num_train), splits=splits, classes=("a", "b"), run="run"
    )
    swept: Any = SimpleNamespace(selected=None, trained=SimpleNamespace(score=0.8))
    curve = learn_curve(prepared, swept, show=lambda _: None, relay=None)
    assert asked == trained
    assert curve.sizes == sizes
    assert curve.scores[-1] == 0.8

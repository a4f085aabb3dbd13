from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tailorbird.data.datasets import icd10
from tailorbird.data.rows import Rows
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.monitoring import drift_reference
from tailorbird.monitoring.drift import (
    MIN_KEYS,
    DriftError,
    DriftStatistic,
    TrafficSample,
    drift_statistics,
)

PER_YEAR = 18.0  # about 5% of the windows
WIDTH = 16
Chance = np.random.Generator


def texts(chance: Chance, num: int, *, foreign: int = 0, shift: float = 0.0) -> TrafficSample:
    """Return rows about five topics, one class each; `foreign` rows are about a sixth, unknown
    topic."""
    topics = 3 * np.eye(6, WIDTH)
    shares = np.array([1 + shift, 1, 1, 1, 1 - shift]) / 5
    chosen = np.concatenate([chance.choice(5, num - foreign, p=shares), np.full(foreign, 5)])
    embeddings = (topics[chosen] + chance.normal(0, 0.5, (num, WIDTH))).astype(np.float32)
    outputs = np.where(chosen == 5, chance.integers(0, 5, num), chosen).astype(str).tolist()
    days = np.arange(num) % 7
    return TrafficSample(outputs, embeddings, days=days, text_days=days)


def documents(chance: Chance, sizes: Sequence[int]) -> TrafficSample:
    """Return documents of these numbers of rows with similar embeddings and one class."""
    centres = texts(chance, len(sizes))
    assert centres.embeddings is not None
    keys = np.repeat(np.arange(len(sizes)), sizes)
    noise = chance.normal(0, 0.05, (len(keys), WIDTH)).astype(np.float32)
    outputs = [centres.outputs[key] for key in keys.tolist()]
    return TrafficSample(outputs, centres.embeddings[keys] + noise, keys)


def measured(
    window: TrafficSample, reference: TrafficSample, *clean: DriftStatistic
) -> dict[str, DriftStatistic]:
    statistics = drift_statistics(window, reference=reference, per_year=PER_YEAR, clean=clean)
    return {statistic.name: statistic for statistic in statistics}


def alarms(make: Callable[[Chance], TrafficSample], *, runs: int = 15) -> dict[str, float]:
    """Return the share of runs in which each statistic alarms, and in which any alarms."""
    counts = dict.fromkeys(("unfamiliar", "classes", "any"), 0)
    for seed in range(runs):
        chance = np.random.default_rng(seed)
        statistics = measured(make(chance), texts(chance, 800))
        alarming = [name for name, statistic in statistics.items() if statistic.alarm]
        for name in alarming:
            counts[name] += 1
        counts["any"] += bool(alarming)
    return {name: num / runs for name, num in counts.items()}


def varied(chance: Chance, num: int, *, spread: float) -> TrafficSample:
    """Return a week in which the shares of the topics vary from day to day around those of the
    reference."""
    parts = []
    for _ in range(7):
        shift = float(np.clip(chance.normal(0, spread), -0.9, 0.9))
        parts.append(texts(chance, num // 7, shift=shift))
    outputs = [output for part in parts for output in part.outputs]
    days = np.repeat(np.arange(7), num // 7)
    embeddings = np.concatenate([part.embeddings for part in parts])
    return TrafficSample(outputs, embeddings, days=days, text_days=days)


@pytest.mark.parametrize("num", [60, 400])
def test_windows_without_drift_alarm_at_about_the_given_rate(num: int) -> None:
    # Two alarms would be too many.
    assert alarms(lambda chance: texts(chance, num))["any"] <= 0.05 + 0.08


def test_days_that_differ_by_chance_raise_the_threshold_and_do_not_alarm() -> None:
    usual = 0.19  # the shares then have the intraday correlation that the first window assumes
    assert alarms(lambda chance: varied(chance, 2100, spread=usual))["any"] <= 0.13
    chance = np.random.default_rng(0)
    reference = texts(chance, 800)
    uneven = measured(varied(chance, 2100, spread=0.35), reference)["classes"]
    even = measured(texts(chance, 2100), reference)["classes"]
    assert uneven.variance.correlation > even.variance.correlation
    assert uneven.threshold > 1.2 * even.threshold


def test_earlier_clean_windows_tighten_the_thresholds_of_even_days() -> None:
    chance = np.random.default_rng(0)
    reference = texts(chance, 800)
    week = texts(chance, 700)
    first = measured(week, reference)
    clean: list[DriftStatistic] = []
    for _ in range(8):
        clean += measured(texts(chance, 700), reference).values()
    later = measured(week, reference, *clean)
    for name, statistic in first.items():
        assert later[name].threshold <= statistic.threshold
        assert later[name].value == statistic.value
        assert statistic.variance.freedom == 6


def test_foreign_texts_and_changed_class_shares_are_detected() -> None:
    assert alarms(lambda chance: texts(chance, 200, foreign=20))["unfamiliar"] == 1.0
    changed = alarms(lambda chance: texts(chance, 400, shift=0.5))
    assert changed["classes"] > 0.9
    assert changed["unfamiliar"] < 0.2
    chance = np.random.default_rng(0)
    by_documents = documents(chance, [5] * 200)
    assert measured(texts(chance, 1000, shift=0.9), by_documents)["classes"].alarm


@pytest.mark.parametrize(
    ("sizes", "most"),
    [([10] * 100, 2), ([1000 // MIN_KEYS] * MIN_KEYS, 2), ([100] * 4 + [5] * 36, 3)],
    ids=["usual", "few", "uneven"],
)
def test_other_documents_of_the_same_distribution_do_not_alarm(sizes: list[int], most: int) -> None:
    num_known = 0
    num_unknown = 0
    for seed in range(20):
        chance = np.random.default_rng(seed)
        reference = documents(chance, sizes)
        window = texts(chance, 1000)
        known = measured(window, reference).values()
        num_known += any(statistic.alarm for statistic in known)
        unknown = measured(window, replace(reference, keys=None)).values()
        num_unknown += any(statistic.alarm for statistic in unknown)
    assert num_known <= most
    assert num_unknown >= 15


def test_the_order_of_reference_rows_does_not_matter() -> None:
    chance = np.random.default_rng(0)
    rows = texts(chance, 800)
    window = texts(chance, 200)
    assert rows.embeddings is not None
    order = np.argsort(rows.outputs, kind="stable")
    outputs = [rows.outputs[index] for index in order.tolist()]
    assert measured(window, TrafficSample(outputs, rows.embeddings[order])) == measured(
        window, rows
    )


@pytest.mark.parametrize(
    "same", [TrafficSample(["a"] * 100), TrafficSample(lengths=np.full(100, 9.0))]
)
def test_equal_rows_are_allowed(same: TrafficSample) -> None:
    assert not any(statistic.alarm for statistic in measured(same, same).values())


def test_a_window_of_one_day_measures_no_variance_between_days() -> None:
    chance = np.random.default_rng(0)
    (statistic,) = measured(TrafficSample(["new"] * 200), texts(chance, 800)).values()
    assert (statistic.variance.freedom, statistic.alarm) == (0, True)
    assert np.isfinite(statistic.value)


def test_real_texts_of_unknown_classes_are_unfamiliar() -> None:
    table = icd10.build()["train"]
    chapters = table["chapter"].to_numpy(zero_copy_only=False)
    embeddings = drift_reference.hashed_ngrams(table["text"].to_pylist())
    for seed in range(3):
        chance = np.random.default_rng(seed)
        names = chance.permutation(np.unique(chapters))
        is_known = np.isin(chapters, names[: len(names) // 2])
        known = embeddings[chance.permutation(np.flatnonzero(is_known))]
        unknown = embeddings[chance.permutation(np.flatnonzero(~is_known))]
        reference = TrafficSample(["a"] * 800, known[:800])
        days = np.arange(700) % 7
        for num_unknown in (0, 350):
            mixed = np.concatenate([unknown[:num_unknown], known[800 : 1500 - num_unknown]])
            traffic = chance.permutation(mixed)
            window = TrafficSample(["a"] * 700, traffic, days=days, text_days=days)
            assert measured(window, reference)["unfamiliar"].alarm is (num_unknown > 0)


def test_a_small_window_or_reference_is_refused() -> None:
    chance = np.random.default_rng(4)
    window = texts(chance, 50)
    reference = texts(chance, 800)
    assert measured(window, reference)
    with pytest.raises(DriftError):
        measured(texts(chance, 49), reference)
    for small in (texts(chance, 10), documents(chance, [25] * (MIN_KEYS - 1))):
        with pytest.raises(DriftError):
            measured(window, small)


def test_texts_are_redacted_before_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def predict_rows(_: str, *, rows: Rows, limits: RequestLimits) -> Any:
        seen["predicted"], seen["limits"] = rows.texts, limits
        num = len(rows)
        return SimpleNamespace(
            outputs=("a",) * num, calibrated=np.ones(num), scores=np.ones(num), groups={}
        )

    def embed_texts(_: str, texts: tuple[str, ...], **__: Any) -> Any:
        seen["embedded"] = texts
        return np.ones((len(texts), 2), np.float32)

    version = SimpleNamespace(base_model="b", max_length=8, digest="d")
    monkeypatch.setattr(drift_reference, "predict_rows", predict_rows)
    monkeypatch.setattr(drift_reference, "read_version", lambda _: version)
    monkeypatch.setattr(drift_reference, "embed_texts", embed_texts)
    texts = ("record MRN1234567: a cough", "a rash")
    limits = RequestLimits(timeout_s=1.0)
    rows = Rows(("0", "1"), texts, ("a", "a"))
    content = drift_reference.build_reference("u", rows=rows, made_at="2026-03-01", limits=limits)
    assert seen == {
        "predicted": texts,
        "limits": limits,
        "embedded": ("record MRN[number]: a cough", "a rash"),
    }
    assert b"1234567" not in content

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tailorbird.monitoring.drift import MIN_KEYS, DriftError, TrafficSample, drift_statistics

PER_YEAR, WIDTH = 18.0, 16  # about 5% of the windows
Chance = np.random.Generator


def texts(chance: Chance, num: int, *, foreign: int = 0, shift: float = 0.0) -> TrafficSample:
    """Return rows about five topics, one class each; `foreign` rows are about a sixth, unknown
    topic."""
    topics = 3 * np.eye(6, WIDTH)
    shares = np.array([1 + shift, 1, 1, 1, 1 - shift]) / 5
    chosen = np.concatenate([chance.choice(5, num - foreign, p=shares), np.full(foreign, 5)])
    embeddings = (topics[chosen] + chance.normal(0, 0.5, (num, WIDTH))).astype(np.float32)
    outputs = np.where(chosen == 5, chance.integers(0, 5, num), chosen)
    days = np.arange(num) % 7
    return TrafficSample(
        [f"class {code}" for code in outputs], embeddings, days=days, text_days=days
    )


def documents(chance: Chance, num: int, *, rows: int) -> TrafficSample:
    """Return documents whose rows have similar embeddings and one class."""
    centres = texts(chance, num)
    assert centres.embeddings is not None
    keys = np.repeat(np.arange(num), rows)
    embeddings = centres.embeddings[keys] + chance.normal(0, 0.05, (num * rows, WIDTH)).astype(
        np.float32
    )
    return TrafficSample([centres.outputs[key] for key in keys.tolist()], embeddings, keys)


def alarms(make: Callable[[Chance], TrafficSample], *, runs: int = 15) -> dict[str, float]:
    """Return the share of runs in which each statistic alarms, and in which any alarms."""
    counts: dict[str, float] = {"any": 0.0}
    for seed in range(runs):
        chance = np.random.default_rng(seed)
        statistics = drift_statistics(make(chance), reference=texts(chance, 800), per_year=PER_YEAR)
        for statistic in statistics:
            counts[statistic.name] = counts.get(statistic.name, 0) + statistic.alarm
        counts["any"] += any(statistic.alarm for statistic in statistics)
    return {name: num / runs for name, num in counts.items()}


@pytest.mark.parametrize("num", [60, 400])
def test_windows_without_drift_alarm_at_about_the_given_rate(num: int) -> None:
    assert (
        alarms(lambda chance: texts(chance, num))["any"] <= 0.05 + 0.08
    )  # two alarms would be too many


def varied(chance: Chance, num: int, *, spread: float) -> TrafficSample:
    """Return a week in which the shares of the topics vary from day to day around those of the
    reference."""
    window = texts(chance, 0)
    for day in range(7):
        of_day = texts(chance, num // 7, shift=float(np.clip(chance.normal(0, spread), -0.9, 0.9)))
        days = np.full(num // 7, day)
        window = TrafficSample(
            [*window.outputs, *of_day.outputs],
            np.concatenate([window.embeddings, of_day.embeddings]),
            days=days
            if window.days is None or not len(window)
            else np.concatenate([window.days, days]),
        )
    return replace(window, text_days=window.days)


def test_days_that_differ_by_chance_raise_the_threshold_and_do_not_alarm() -> None:
    usual = 0.19  # the shares then have the intraday correlation that the first window assumes
    assert alarms(lambda chance: varied(chance, 2100, spread=usual))["any"] <= 0.13
    chance = np.random.default_rng(0)
    reference = texts(chance, 800)
    uneven, even = (
        drift_statistics(window, reference=reference, per_year=PER_YEAR)[1]
        for window in (varied(chance, 2100, spread=0.35), texts(chance, 2100))
    )
    assert uneven.variance.correlation > even.variance.correlation
    assert uneven.threshold > 1.2 * even.threshold


def test_earlier_clean_windows_tighten_the_thresholds_of_even_days() -> None:
    chance = np.random.default_rng(0)
    reference, weeks = texts(chance, 800), [texts(chance, 700) for _ in range(9)]
    first, *others = [
        drift_statistics(week, reference=reference, per_year=PER_YEAR) for week in weeks
    ]
    clean = [statistic for statistics in others for statistic in statistics]
    later = drift_statistics(weeks[0], reference=reference, per_year=PER_YEAR, clean=clean)
    assert all(now.threshold <= alone.threshold for now, alone in zip(later, first, strict=True))
    assert [statistic.value for statistic in later] == [statistic.value for statistic in first]
    assert {statistic.variance.freedom for statistic in first} == {6}


def test_ten_percent_foreign_texts_are_detected() -> None:
    assert alarms(lambda chance: texts(chance, 200, foreign=20))["unfamiliar"] == 1.0


def test_changed_class_shares_are_detected_without_unfamiliar_texts() -> None:
    rates = alarms(lambda chance: texts(chance, 400, shift=0.5))
    assert rates["classes"] > 0.9
    assert rates["unfamiliar"] < 0.2


def test_other_documents_of_the_same_distribution_do_not_alarm() -> None:
    alarmed = {"known": 0, "unknown": 0}
    for seed in range(20):
        chance = np.random.default_rng(seed)
        reference, window = documents(chance, 100, rows=10), texts(chance, 100)
        for name, compared in (("known", reference), ("unknown", replace(reference, keys=None))):
            alarmed[name] += drift_statistics(window, reference=compared, per_year=PER_YEAR)[
                0
            ].alarm
    assert alarmed["known"] <= 2
    assert alarmed["unknown"] == 20


@pytest.mark.parametrize("num", [MIN_KEYS, 100])
def test_windows_without_drift_do_not_alarm_with_few_documents(num: int) -> None:
    alarmed = {"known": 0, "unknown": 0}
    for seed in range(20):
        chance = np.random.default_rng(seed)
        reference, window = documents(chance, num, rows=1000 // num), texts(chance, 1000)
        for name, compared in (("known", reference), ("unknown", replace(reference, keys=None))):
            statistics = drift_statistics(window, reference=compared, per_year=PER_YEAR)
            alarmed[name] += any(statistic.alarm for statistic in statistics)
    assert alarmed["known"] <= 2
    assert alarmed["unknown"] >= 15


def test_changed_class_shares_are_detected_with_a_reference_of_documents() -> None:
    chance = np.random.default_rng(0)
    statistics = drift_statistics(
        texts(chance, 1000, shift=0.9), reference=documents(chance, 200, rows=5), per_year=PER_YEAR
    )
    assert next(statistic for statistic in statistics if statistic.name == "classes").alarm


def test_windows_without_drift_do_not_alarm_with_documents_of_different_sizes() -> None:
    alarmed = 0
    for seed in range(20):
        chance = np.random.default_rng(seed)
        reference, window = documents(chance, 40, rows=100), texts(chance, 1000)
        assert reference.keys is not None
        assert reference.embeddings is not None
        kept = np.flatnonzero(
            (reference.keys < 4) | (np.arange(len(reference)) % 100 < 5)
        )  # four large documents
        outputs = [reference.outputs[index] for index in kept.tolist()]
        uneven = TrafficSample(outputs, reference.embeddings[kept], reference.keys[kept])
        alarmed += any(
            statistic.alarm
            for statistic in drift_statistics(window, reference=uneven, per_year=PER_YEAR)
        )
    assert alarmed <= 3


def test_thresholds_are_larger_with_fewer_documents_or_unequal_sizes() -> None:
    chance = np.random.default_rng(0)
    reference, window = documents(chance, 100, rows=10), texts(chance, 1000)
    thresholds = []
    for keys in (
        np.arange(1000),
        np.arange(1000) // 10,
        np.maximum(np.arange(1000) - 600, 0) // 4,
        np.arange(1000) // 50,
    ):
        statistics = drift_statistics(
            window, reference=replace(reference, keys=keys), per_year=PER_YEAR
        )
        thresholds.append(
            next(statistic.threshold for statistic in statistics if statistic.name == "unfamiliar")
        )
    own, equal, one_large, few = thresholds
    assert own < equal < one_large  # equally many documents, one with six rows in ten
    assert few > 0.15  # with twenty documents, a new row is the farthest one time in 21


def test_the_order_of_reference_rows_does_not_matter() -> None:
    chance = np.random.default_rng(0)
    rows, window = texts(chance, 800), texts(chance, 200)
    assert rows.embeddings is not None
    order = np.argsort(rows.outputs, kind="stable")
    by_class = TrafficSample(
        [rows.outputs[index] for index in order.tolist()], rows.embeddings[order]
    )
    statistics = drift_statistics(window, reference=by_class, per_year=PER_YEAR)
    assert statistics == drift_statistics(window, reference=rows, per_year=PER_YEAR)


@pytest.mark.parametrize(("scale", "alarm"), [(1.0, False), (1.5, True)])
def test_changed_lengths_are_detected(scale: float, alarm: bool) -> None:
    chance = np.random.default_rng(0)
    window, reference = (
        TrafficSample(lengths=np.round(chance.gamma(2, 50, num))) for num in (400, 800)
    )
    assert window.lengths is not None
    changed = replace(window, lengths=scale * window.lengths)
    [statistic] = drift_statistics(changed, reference=reference, per_year=PER_YEAR)
    assert (statistic.name, statistic.alarm) == ("length", alarm)


@pytest.mark.parametrize(
    "same", [TrafficSample(["a"] * 100), TrafficSample(lengths=np.full(100, 9.0))]
)
def test_equal_rows_are_allowed(same: TrafficSample) -> None:
    assert not any(
        statistic.alarm for statistic in drift_statistics(same, reference=same, per_year=PER_YEAR)
    )


def test_a_window_of_one_day_measures_no_variance_between_days() -> None:
    chance = np.random.default_rng(0)
    one_day = replace(texts(chance, 200), days=None, text_days=None)
    reference = texts(chance, 800)
    statistics = drift_statistics(one_day, reference=reference, per_year=PER_YEAR)
    assert [statistic.name for statistic in statistics] == ["unfamiliar", "classes"]
    assert {statistic.variance.freedom for statistic in statistics} == {0}
    new_class = replace(one_day, outputs=["new"] * 200, embeddings=None)
    [statistic] = drift_statistics(new_class, reference=reference, per_year=PER_YEAR)
    assert (statistic.name, statistic.per_year, statistic.alarm) == ("classes", PER_YEAR, True)
    assert np.isfinite(statistic.value)


def test_a_small_window_or_reference_is_refused() -> None:
    chance = np.random.default_rng(4)
    window, reference = texts(chance, 50), texts(chance, 800)
    assert drift_statistics(window, reference=reference, per_year=PER_YEAR)
    one_document = documents(chance, 1, rows=500)
    for small, known in (
        (texts(chance, 49), reference),
        (window, texts(chance, 10)),
        (window, one_document),
    ):
        with pytest.raises(DriftError):
            drift_statistics(small, reference=known, per_year=PER_YEAR)

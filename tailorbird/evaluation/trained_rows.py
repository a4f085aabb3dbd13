"""Test rows that a model was trained on: they are predicted, but no model is compared on them."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from tailorbird import storage
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.fingerprints import Hashes, fingerprints, load_fingerprints, user_texts
from tailorbird.data.rows import Rows
from tailorbird.evaluation.statistics.power import minimum_detectable_effect
from tailorbird.evaluation.verdict.inputs import TrainedRows
from tailorbird.evaluation.verdict.protocol import expected_gain
from tailorbird.registry.versions import TRAINING_ROWS, ModelVersion, read_parts

NO_ROWS: Hashes = np.array([], np.uint64)


def training_fingerprints(version: ModelVersion) -> Hashes | None:
    """Return the fingerprints of the rows that a version, or a part of a hybrid, was trained or
    selected on.

    They are None if they are unknown, as for a version of another origin.
    """
    if version.hybrid is not None:
        parts = [training_fingerprints(part) for part in read_parts(version.hybrid)]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            return np.concatenate(known)
        return None
    if not version.spec.learns_from_rows:
        return NO_ROWS
    uri = f"{version.uri}/{TRAINING_ROWS}"
    if storage.exists(uri):
        return load_fingerprints(uri)
    return None


def trained_rows(test: Rows, versions: Mapping[str, ModelVersion | None]) -> TrainedRows:
    """Return the test rows that the version in each role was trained or selected on.

    They are unknown for None, a model that was tuned elsewhere. The role of a contender of the
    recipe is its name, also if it becomes the incumbent.
    """
    hashes = fingerprints(user_texts(test))
    row_ids = np.array(test.row_ids, dtype=object)
    rows: dict[str, tuple[str, ...] | None] = {}
    for role, version in versions.items():
        rows[role] = None
        training_hashes = None if version is None else training_fingerprints(version)
        if training_hashes is not None:
            rows[role] = tuple(row_ids[np.isin(hashes, training_hashes)].tolist())
    return TrainedRows(rows)


def require_enough_rows(trained: TrainedRows, *, num_test: int, config: EvaluationConfig) -> None:
    """Raise ValueError if the other test rows cannot show the expected gain, and all test rows
    could.

    The limit is the most favourable one: the models differ on no more rows than the gain requires.
    """
    num_compared = num_test - len(trained.excluded)
    gain = expected_gain(config)
    detectable = partial(minimum_detectable_effect, discordance=gain, alpha=config.alpha)
    if num_compared and not detectable(num_compared) > gain >= detectable(num_test):
        return
    remaining = "no other row remains"
    if num_compared:
        remaining = (
            f"with 80% power, the {num_compared:,} other rows show a gain of "
            f"{100 * detectable(num_compared):.3g} points or more, but evaluation.expected_gain is "
            f"{100 * gain:.3g} points"
        )
    raise ValueError(
        f"{'; '.join(trained.sentences(num_test))}; {remaining}. Add test rows that no compared "
        "model was trained on, raise expected_gain, remove the contender, or give the recipe "
        "another name, which is a task without a champion"
    )

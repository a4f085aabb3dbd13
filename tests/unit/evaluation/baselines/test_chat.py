"""Chat baselines: settings that are selected on validation, and stored artifacts with the same
answers."""

from pathlib import Path

import numpy as np
import pytest

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.rows import Rows
from tailorbird.evaluation.baselines import chat
from tailorbird.evaluation.baselines.baseline import select_incumbent
from tailorbird.evaluation.baselines.chat import (
    ChatBaselines,
    fit_prompt_baselines,
    store_prompt_baselines,
)
from tailorbird.evaluation.inference.chat_answers import Answer
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.models.loading import LoadedChat, PretrainedModels, load_artifact
from tailorbird.registry.versions import (
    INDEX_FILES,
    PinnedEncoder,
    Prompting,
    VersionConfig,
    register,
)
from tailorbird.storage.node_cache import local_copy
from tests import small_encoder
from tests.build import pairs, version_config
from tests.loaded import load_model
from tests.small_chat import save

PAIRS = (("blue sky", "sky"), ("blue skies", "sky"), ("green leaf", "leaf"), ("red rose", "rose"))
VALIDATION = (("a blue sky", "sky"), ("leaf of green", "leaf"), ("", "sky"), ("zzz", "rose"))
PROMPTING = Prompting(system="s", max_new_tokens=3)


def rows_of(content: tuple[tuple[str, str], ...]) -> Rows:
    return pairs(content, chat=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a tiny chat model with a context of 256 tokens."""
    folder = tmp_path_factory.mktemp("chat") / "base"
    save(folder)
    return folder.as_uri()


def fit(
    base: str,
    *,
    train: tuple[tuple[str, str], ...] = PAIRS,
    validation: tuple[tuple[str, str], ...] = VALIDATION,
    encoder: PinnedEncoder | None = None,
    **fields: object,
) -> ChatBaselines:
    config = EvaluationConfig(metric="token_f1", prompt_shots=1, prompt_draws=1, **fields)  # type: ignore[arg-type]
    return fit_prompt_baselines(
        base,
        train=rows_of(train),
        validation=rows_of(validation),
        prompting=PROMPTING,
        config=config,
        seed=0,
        encoder=encoder,
    )


def config_of(base: str) -> VersionConfig:
    return version_config(base_model=base, prompting=PROMPTING)


@pytest.fixture(scope="module")
def artifacts(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of the folder of the stored baselines."""
    uri = (tmp_path_factory.mktemp("stored") / "baselines").as_uri()
    store_prompt_baselines(uri, fit(base), config=config_of(base))
    return uri


def test_the_best_number_of_retrieved_examples_on_validation_is_selected(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def answer(_: object, rows: Rows, *, prompting: Prompting, **__: object) -> list[Answer]:
        number = prompting.retrieval.num_examples if prompting.retrieval else 0
        tried.append(number)
        return [Answer(str(number), 1.0)] * len(rows)

    def score(_: str, outputs: list[str], *, validation: Rows) -> float:
        assert len(outputs) == len(validation)
        return {"1": 0.2, "2": 0.9}.get(outputs[0], 0.1)

    monkeypatch.setattr(chat, "answer_rows", answer)
    monkeypatch.setattr(chat, "_score", score)
    results = fit(base)
    baseline, prompting = results.baselines[-1]
    assert (baseline.validation, baseline.note) == (
        0.9,
        "nearest training rows in the prompt: 2, best of 1, 2, 4",
    )
    assert prompting.retrieval is not None
    assert prompting.retrieval.num_examples == 2
    assert tried == [0, 0, 1, 2, 4]


@pytest.mark.parametrize(("tokens", "limit"), [(100, 100), (10_000, 253)])
def test_the_prompt_is_limited_also_by_the_context_of_the_model(
    base: str, tokens: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "RETRIEVED_TOKENS", tokens)
    monkeypatch.setattr(chat, "answer_rows", lambda _, rows, **__: [Answer("", 0.0)] * len(rows))
    _, prompting = fit(base).baselines[-1]
    assert prompting.retrieval is not None
    assert prompting.retrieval.max_prompt_tokens == limit


def test_stored_baselines_have_their_validation_scores(base: str, artifacts: str) -> None:
    baselines = [baseline for baseline, _ in fit(base).baselines]
    kinds = ["nearest", "zero_shot", "few_shot", "retrieved"]
    assert [baseline.kind for baseline in baselines] == kinds
    assert baselines[0].validation == 0.75  # wrong in the last row, which has no known n-gram
    assert baselines[0].note == "answer of the nearest of 4 training rows"
    assert select_incumbent(baselines).kind == "nearest"
    tables = {}
    for baseline in baselines:
        table = predict_rows(f"{artifacts}/{baseline.kind}", rows=rows_of(VALIDATION))
        assert table.model == baseline.kind
        assert score_table("token_f1", table) == pytest.approx(baseline.validation)
        tables[baseline.kind] = table
    zero_shot, retrieved = (tables[kind].measures for kind in ("zero_shot", "retrieved"))
    # The likelihood of a reference answer depends on the examples.
    assert not np.allclose(zero_shot["log_likelihood"], retrieved["log_likelihood"])
    nearest = tables["nearest"]
    assert set(nearest.measures) == {"token_f1", "rouge_l"}
    np.testing.assert_array_equal(nearest.confidences[2:], [0, 0])
    [copy] = predict_rows(f"{artifacts}/nearest", rows=rows_of(PAIRS[:1])).confidences
    assert 0 < nearest.confidences[0] < copy == pytest.approx(1, abs=1e-6)


def test_nearest_is_loaded_without_its_base_model(artifacts: str, tmp_path: Path) -> None:
    config = VersionConfig.model_validate_json(
        (local_copy(f"{artifacts}/nearest") / "config.json").read_bytes()
    )
    folder = tmp_path / "nearest"
    folder.mkdir()
    for name in INDEX_FILES:
        (folder / name).write_bytes((local_copy(f"{artifacts}/nearest") / name).read_bytes())
    missing = config.model_copy(update={"base_model": (tmp_path / "missing").as_uri()})
    (folder / "config.json").write_text(missing.model_dump_json())
    version = register((tmp_path / "registry" / "task").as_uri(), folder)
    assert load_model(version.uri, LoadedChat).model is None
    assert version.contains_training_text


def test_artifacts_with_the_same_language_model_share_its_memory(artifacts: str) -> None:
    pretrained: PretrainedModels = {}
    uris = [f"{artifacts}/{kind}" for kind in ("zero_shot", "few_shot", "retrieved")]
    together, alone = (
        [load_artifact(uri, pretrained=known) for uri in uris] for known in (pretrained, None)
    )
    models = [loaded.model for loaded in (*together, *alone) if isinstance(loaded, LoadedChat)]
    assert models[0] is models[1] is models[2]
    assert len({id(model) for model in models[2:]}) == 4
    assert len(pretrained) == 1


SYNONYMS = (("azure", "sky"), ("azure a", "sky"), ("leaf of green", "leaf"))
"""Validation rows, most of which share no n-gram with the training row that answers them."""


def test_an_encoder_is_used_with_the_weight_that_is_best_on_validation(
    base: str, tmp_path: Path
) -> None:
    encoder = small_encoder.save(tmp_path / "encoder")
    train = (
        *PAIRS,
        ("red leaf", "leaf"),
        ("rose leaf", "leaf"),
    )  # the most frequent answer is not that of "azure"
    results = fit(base, train=train, validation=SYNONYMS, encoder=encoder)
    by_kind = {
        baseline.kind: (baseline, prompting.retrieval) for baseline, prompting in results.baselines
    }
    nearest, retrieval = by_kind["nearest"]
    assert (
        fit(base, train=train, validation=SYNONYMS).baselines[0][0].validation
        < nearest.validation
        == 1
    )
    note = (
        "answer of the nearest of 6 training rows, by embeddings x 0.5 + n-grams x 0.5, best of "
        "0, 0.5, 0.75, 1"
    )
    assert nearest.note == note
    for settings in (retrieval, by_kind["retrieved"][1]):
        assert settings is not None
        assert settings.encoder == encoder.model_copy(update={"dtype": results.dtype})
        assert settings.embedding_weight == 0.5
    stored = (tmp_path / "stored").as_uri()
    store_prompt_baselines(stored, results, config=config_of(base))
    for kind in ("nearest", "retrieved"):
        table = predict_rows(f"{stored}/{kind}", rows=rows_of(SYNONYMS))
        assert score_table("token_f1", table) == pytest.approx(by_kind[kind][0].validation)
    loaded = [load_artifact(f"{stored}/{kind}") for kind in ("nearest", "retrieved")]
    first, second = (each.index for each in loaded if isinstance(each, LoadedChat))
    assert first is second


def test_an_encoder_that_is_no_better_on_validation_is_not_served(
    base: str, tmp_path: Path
) -> None:
    validation = VALIDATION[:2]  # n-grams find the answers of these rows
    results = fit(base, validation=validation, encoder=small_encoder.save(tmp_path / "encoder"))
    baseline, prompting = results.baselines[0]
    assert baseline.note.endswith("by embeddings x 0 + n-grams x 1, best of 0, 0.5, 0.75, 1")
    assert prompting.retrieval is not None
    assert prompting.retrieval.encoder is None
    assert results.index_files == fit(base, validation=validation).index_files

"""A run checks its inputs and registers its protocol before the first training."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.progress import SILENT, NoteEvent
from tailorbird import storage
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.model_uri import ModelUri, parse_model_uri
from tailorbird.config.recipe import Recipe
from tailorbird.data.fingerprints import fingerprints, save_fingerprints, user_texts
from tailorbird.data.rows import DataError
from tailorbird.evaluation.report.preregistration import Preregistration
from tailorbird.evaluation.verdict.inputs import TrainedRows
from tailorbird.models.base_model import StagedModel
from tailorbird.models.metadata import MetadataError
from tailorbird.models.pretrained import dtype_name
from tailorbird.pipeline import inputs
from tailorbird.pipeline.contenders import ContenderError
from tailorbird.pipeline.prepare import RunContext, prepare
from tailorbird.registry.test_set_ledger import record_test_access
from tailorbird.registry.versions import TRAINING_ROWS, register, write_config
from tests import small_chat, small_encoder
from tests.build import version_config
from tests.champions import set_champion
from tests.progress import ProgressRecorder
from tests.unit.pipeline.contexts import recipe_at

CLASSES = ("x", "y", "z")
GENERATING: dict[str, Any] = {
    "kind": "zero_shot",
    "classes": (),
    "prompting": {"system": None, "max_new_tokens": 4},
}
"""Fields of a version for chat."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose rows, base model and registry are local."""
    monkeypatch.setattr("tailorbird.config.recipe.with_scheme", lambda uri, _: uri)
    local = (tmp_path / "model").as_uri()

    def stage(model: ModelUri, **_: object) -> StagedModel:
        uri = str(model) if model.store == "file" else local
        return StagedModel(source=str(model), uri=uri)

    monkeypatch.setattr(inputs, "stage_base_model", stage)
    small_chat.save(tmp_path / "model")
    train = write(tmp_path, text=[f"number {number}" for number in range(90)], label=CLASSES * 30)
    return recipe_at(tmp_path / "registry", data={"train": train})


def write(folder: Path, name: str = "rows", **columns: Any) -> str:
    """Write a table, and return its URI."""
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return (folder / f"{name}.parquet").as_uri()


def chat_recipe(folder: Path, **evaluation: Any) -> Recipe:
    """Return a chat recipe with the base model and the registry of the recipe."""
    texts = [f"Number {number}" for number in range(90)]
    data = {"train": write(folder, "chat", prompt=texts, completion=CLASSES * 30)}
    evaluation = {"metric": "token_f1"} | evaluation
    return recipe_at(folder / "registry", task="chat", data=data, evaluation=evaluation)


def with_data(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})


def renamed(recipe: Recipe, name: str) -> Recipe:
    return recipe.model_copy(update={"name": name})


def prepared(recipe: Recipe) -> RunContext:
    return prepare(recipe, progress=SILENT)


def noted(recipe: Recipe) -> tuple[RunContext, list[str]]:
    """Return the context and the notes of a run that starts."""
    recorder = ProgressRecorder()
    context = prepare(recipe, progress=recorder)
    return context, [event.text for event in recorder.of_kind(NoteEvent)]


def is_registered(recipe: Recipe) -> bool:
    return bool(storage.list_files(f"{recipe.task_uri}/runs", missing_ok=True))


def champion_of(
    recipe: Recipe, folder: Path, *, learned: tuple[str, ...] | None = None, **fields: Any
) -> str:
    """Register a probe that learned from these texts as the champion of the recipe's task; return
    its URI."""
    made = folder / f"champion of {recipe.name}"
    made.mkdir()
    if learned is not None:
        save_fingerprints((made / TRAINING_ROWS).as_uri(), fingerprints(learned))
    (made / "head.safetensors").write_bytes(b"weights")
    write_config(made, version_config(**({"kind": "probe", "classes": CLASSES} | fields)))
    version = register(recipe.task_uri, made)
    set_champion(recipe.task_uri, version)
    return version.uri


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_max_length_above_the_context_of_the_base_model_is_rejected(
    recipe: Recipe, tmp_path: Path, is_chat: bool
) -> None:
    with pytest.raises(DataError, match="max_length 257"):
        prepared(with_data(chat_recipe(tmp_path) if is_chat else recipe, max_length=257))


def test_the_protocol_is_registered_once_for_an_evaluation_whatever_the_serving(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(recipe)
    monkeypatch.setattr("tailorbird.pipeline.prepare.current_user", lambda: "another user")
    serving = recipe.serving.model_copy(update={"autoscaling": {"max_replicas": 7}})
    for same in (recipe, recipe.model_copy(update={"serving": serving})):
        again = prepared(same)
        assert (again.run, again.registered) == (first.run, first.registered)
    assert storage.list_files(first.run) == [f"{first.run}/protocol.json"]
    gain = recipe.evaluation.model_copy(update={"minimum_gain": 0.5})
    assert prepared(recipe.model_copy(update={"evaluation": gain})).run != first.run


def test_test_rows_of_earlier_accesses_are_reported_before_the_training(recipe: Recipe) -> None:
    context, notes = noted(recipe)
    assert "earlier tests" not in " ".join(notes)
    rows = fingerprints(user_texts(context.splits.test))
    seen = len(rows) // 2
    record_test_access(
        renamed(recipe, "another").task_uri,
        rows=rows[:seen],
        models=["m"],
        protocol="p",
        run="s3://r",
    )
    (text,) = (note for note in noted(recipe)[1] if "earlier tests" in note)
    assert text.startswith(f"{seen} of {len(rows)} ")
    assert f" {0.05 * (1 - seen / len(rows) * 5 / 6):.2g} " in text


@pytest.mark.parametrize("classes", [("x", "y"), ("w", "x", "y", "z")])
def test_a_champion_of_other_classes_or_another_task_is_refused_before_the_registration(
    recipe: Recipe, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    champion_of(recipe, tmp_path, classes=classes)
    with pytest.raises(ValueError, match="different classes"):
        prepared(recipe)
    with pytest.raises(ValueError, match=r"classification.* chat"):
        prepared(chat_recipe(tmp_path))
    assert not is_registered(recipe)
    assert prepared(renamed(recipe, "another")).champion is None


def naming(recipe: Recipe, name: str = "previous", **entry: str) -> Recipe:
    """Return the recipe with one contender."""
    contenders = {"contenders": {name: entry}}
    evaluation = recipe.evaluation.model_dump() | contenders
    return recipe.model_copy(update={"evaluation": EvaluationConfig.model_validate(evaluation)})


def test_test_rows_that_champion_or_contender_were_trained_on_are_registered_and_reported(
    recipe: Recipe, tmp_path: Path
) -> None:
    test = prepared(recipe).splits.test
    other = renamed(recipe, "other")
    uri = champion_of(other, tmp_path, learned=("a text", *test.texts[:2]))
    context, notes = noted(other)
    assert context.registered.champion == uri
    assert context.registered.trained_rows == TrainedRows({"incumbent": test.row_ids[:2]})
    assert any("2 of the 22 test rows" in note for note in notes)
    stored = Preregistration.model_validate_json(storage.read_bytes(f"{context.run}/protocol.json"))
    assert stored == context.registered

    champion_of(recipe, tmp_path)
    context = prepared(naming(recipe, version=uri))
    assert context.inputs.contenders["previous"].uri == uri
    trained = {"incumbent": None, "previous": test.row_ids[:2]}  # the champion's are not known
    assert context.registered.trained_rows == TrainedRows(trained)


def test_a_champion_that_was_trained_on_all_test_rows_is_refused_before_the_registration(
    recipe: Recipe, tmp_path: Path
) -> None:
    test = prepared(renamed(recipe, "other")).splits.test
    champion_of(recipe, tmp_path, learned=test.texts)
    with pytest.raises(ValueError, match="22 of the 22 test rows"):
        prepared(recipe)
    assert not is_registered(recipe)


@pytest.mark.parametrize("case", ["classes", "task", "missing", "reserved name"])
def test_a_contender_that_cannot_be_compared_stops_the_run_by_its_name(
    recipe: Recipe, tmp_path: Path, case: str
) -> None:
    fields = {"classes": {"classes": ("x", "y")}, "task": GENERATING}.get(case, {})
    uri = champion_of(renamed(recipe, "other"), tmp_path, **fields)
    if case == "missing":
        uri = f"{uri}0"
    name = "incumbent" if case == "reserved name" else "previous"
    with pytest.raises(ContenderError, match=f"evaluation.contenders.{name}"):
        prepared(naming(recipe, name, version=uri))
    assert not is_registered(recipe)


@pytest.mark.parametrize(("num_documents", "expected"), [(5, True), (6, False)])
def test_few_documents_rare_classes_and_empty_texts_are_reported_before_the_training(
    recipe: Recipe, tmp_path: Path, num_documents: int, expected: bool
) -> None:
    """A class with one row and an empty text do not stop a run."""
    uris = {}
    for name, size in (("train", 60), ("validation", 30), ("test", 30)):
        texts = [f"{name} {number}" for number in range(size)]
        columns: dict[str, Any] = {"text": texts, "label": [*CLASSES] * (size // 3)}
        if name == "train":
            columns["label"][0], texts[1] = "rare", ""
        columns["case"] = [f"{name} {number % num_documents}" for number in range(size)]
        uris[name] = write(tmp_path, name, **columns)
    context, notes = noted(with_data(recipe, **uris, split_by="case"))
    assert context.task.classes == ("rare", *CLASSES)
    assert any(note.endswith(": 'rare'") for note in notes)
    assert any("empty text" in note and note.endswith(": 1") for note in notes)
    assert any("30 test rows come from 5 documents" in note for note in notes) is expected


def test_a_run_prints_the_version_of_its_base_model_and_pinning_it_does_not_change_the_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"pypi://tiny@1.0#sha256={'5f' * 32}"
    staged = StagedModel(source=source, uri=(tmp_path / "model").as_uri())
    monkeypatch.setattr(inputs, "stage_base_model", lambda *_, **__: staged)
    runs = set()
    for uri, text in (("pypi://tiny", f"pypi://tiny is {source}, "), (source, source)):
        base_model = parse_model_uri(uri)
        context, notes = noted(recipe.model_copy(update={"base_model": base_model}))
        runs.add(context.run)
        (note,) = (note for note in notes if note.startswith("base model: "))
        assert note.startswith(f"base model: {text}")
        assert context.inputs.base_model.source == source
    assert len(runs) == 1


@pytest.mark.usefixtures("recipe")
def test_an_example_that_is_a_text_of_a_test_row_is_refused(tmp_path: Path) -> None:
    chat = chat_recipe(tmp_path)
    shown = prepared(chat).splits.test.texts[0]
    example = shown.upper().replace(" ", "  ")
    serving = chat.serving.model_copy(update={"examples": ("hello", example)})
    with pytest.raises(DataError, match=f"serving.examples .*'{example}'"):
        prepared(chat.model_copy(update={"serving": serving}))


@pytest.mark.usefixtures("recipe")
def test_the_run_depends_on_the_files_of_the_encoder_for_retrieval(tmp_path: Path) -> None:
    chat = chat_recipe(tmp_path, retrieval_encoder=(tmp_path / "encoder").as_uri())
    runs = {prepared(chat_recipe(tmp_path)).run}
    for seed in (0, 1):
        pinned = small_encoder.save(tmp_path / "encoder", seed=seed)
        context, notes = noted(chat)
        assert f"retrieval encoder: {pinned.uri}" in notes
        assert context.inputs.pinned_encoder == pinned.model_copy(update={"dtype": dtype_name()})
        runs.add(context.run)
    assert len(runs) == 3


@pytest.mark.usefixtures("recipe")
def test_a_retrieval_encoder_that_is_no_text_encoder_is_refused_before_the_baselines(
    tmp_path: Path,
) -> None:
    small_chat.save(tmp_path / "llama")
    with pytest.raises(MetadataError, match="llama"):
        prepared(chat_recipe(tmp_path, retrieval_encoder=(tmp_path / "llama").as_uri()))

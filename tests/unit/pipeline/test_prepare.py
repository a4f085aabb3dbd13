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
from tailorbird.config.serving import ServingConfig
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


@pytest.mark.parametrize(("task", "metric"), [("classification", "accuracy"), ("chat", "token_f1")])
def test_a_max_length_above_the_context_of_the_base_model_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, metric: str
) -> None:
    texts = [f"number {number}" for number in range(60)]
    columns = {"text": texts, "label": ["x", "y"] * 30, "prompt": texts, "completion": texts}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    staged = StagedModel(source="s3://m/x", uri=(tmp_path / "model").as_uri())
    monkeypatch.setattr(inputs, "stage_base_model", lambda *_, **__: staged)
    small_chat.save(tmp_path / "model")
    data = {"train": (tmp_path / "rows.parquet").as_uri(), "max_length": 257}
    named = {"name": "x", "task": task, "base_model": "s3://m/x", "registry": "s3://m"}
    recipe = Recipe.model_validate(named | {"data": data, "evaluation": {"metric": metric}})
    with pytest.raises(DataError, match="max_length 257"):
        inputs.load_inputs(recipe)


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
    texts = [f"number {number}" for number in range(90)]
    pq.write_table(
        pa.table({"text": texts, "label": ["x", "y", "z"] * 30}), tmp_path / "rows.parquet"
    )
    return recipe_at(tmp_path / "registry", data={"train": (tmp_path / "rows.parquet").as_uri()})


def prepared(recipe: Recipe) -> RunContext:
    return prepare(recipe, progress=SILENT)


def test_the_protocol_is_registered_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(recipe)
    monkeypatch.setattr("tailorbird.pipeline.prepare.current_user", lambda: "another user")
    again = prepared(recipe)
    assert (again.run, again.registered) == (first.run, first.registered)
    assert [uri.removeprefix(f"{first.run}/") for uri in storage.list_files(first.run)] == [
        "protocol.json"
    ]


def test_test_rows_of_earlier_accesses_are_reported_before_the_training(recipe: Recipe) -> None:
    recorder = ProgressRecorder()
    rows = fingerprints(user_texts(prepare(recipe, progress=recorder).splits.test))
    assert not _notes_on_earlier_tests(recorder)
    another_task = recipe.task_uri.rpartition("/")[0] + "/another"
    record_test_access(
        another_task, rows=rows[: len(rows) // 2], models=["m"], protocol="p", run="s3://r"
    )
    prepare(recipe, progress=recorder)
    (text,) = _notes_on_earlier_tests(recorder)
    seen, num = len(rows) // 2, len(rows)
    assert text.startswith(f"{seen} of {num} ")
    assert f" {0.05 * (1 - seen / num * 5 / 6):.2g} " in text


def _notes_on_earlier_tests(recorder: ProgressRecorder) -> list[str]:
    return [event.text for event in recorder.of_kind(NoteEvent) if "earlier tests" in event.text]


def champion_of(
    recipe: Recipe, folder: Path, *, learned: tuple[str, ...] | None = None, **fields: Any
) -> str:
    """Register a probe that learned from these texts as the champion of the recipe's task; return
    its URI."""
    folder.mkdir()
    if learned is not None:
        save_fingerprints((folder / TRAINING_ROWS).as_uri(), fingerprints(learned))
    (folder / "head.safetensors").write_bytes(b"weights")
    write_config(folder, version_config(**({"kind": "probe"} | fields)))
    version = register(recipe.task_uri, folder)
    set_champion(recipe.task_uri, version)
    return version.uri


@pytest.mark.parametrize("classes", [("x", "y"), ("w", "x", "y", "z"), ("w", "x", "y")])
def test_a_champion_of_other_classes_is_refused_before_the_protocol_is_registered(
    recipe: Recipe, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    champion_of(recipe, tmp_path / "champion", classes=classes)
    with pytest.raises(ValueError, match="different classes"):
        prepared(recipe)
    assert not storage.list_files(f"{recipe.task_uri}/runs", missing_ok=True)
    assert prepared(recipe.model_copy(update={"name": "another"})).champion is None


def test_a_champion_of_another_task_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    champion_of(recipe, tmp_path / "champion", classes=("x", "y", "z"))
    with pytest.raises(ValueError, match=r"classification.* chat"):
        prepared(chat_recipe(recipe, encoder=None))


def test_test_rows_that_the_champion_was_trained_on_are_registered_and_reported(
    recipe: Recipe, tmp_path: Path
) -> None:
    test = prepared(recipe).splits.test
    unknown = champion_of(recipe, tmp_path / "unknown", classes=("x", "y", "z"))
    context = prepared(recipe)
    assert (context.registered.champion, context.registered.trained_rows) == (
        unknown,
        TrainedRows({"incumbent": None}),
    )
    other = recipe.model_copy(update={"name": "other"})
    champion_of(
        other, tmp_path / "champion", classes=("x", "y", "z"), learned=("a text", *test.texts[:2])
    )
    recorder = ProgressRecorder()
    context = prepare(other, progress=recorder)
    assert context.registered.trained_rows == TrainedRows({"incumbent": test.row_ids[:2]})
    assert any("2 of the 22 test rows" in event.text for event in recorder.of_kind(NoteEvent))
    stored = Preregistration.model_validate_json(storage.read_bytes(f"{context.run}/protocol.json"))
    assert stored == context.registered


def test_a_champion_that_was_trained_on_all_test_rows_is_refused_before_the_protocol_is_registered(
    recipe: Recipe, tmp_path: Path
) -> None:
    test = prepared(recipe.model_copy(update={"name": "other"})).splits.test
    champion_of(recipe, tmp_path / "champion", classes=("x", "y", "z"), learned=test.texts)
    with pytest.raises(ValueError, match="22 of the 22 test rows"):
        prepared(recipe)
    assert not storage.list_files(f"{recipe.task_uri}/runs", missing_ok=True)


def naming(recipe: Recipe, name: str = "previous", **entry: str) -> Recipe:
    """Return the recipe with one contender."""
    contenders = {"contenders": {name: entry}}
    evaluation = recipe.evaluation.model_dump() | contenders
    return recipe.model_copy(update={"evaluation": EvaluationConfig.model_validate(evaluation)})


def test_rows_that_a_contender_was_trained_on_are_registered_under_its_name(
    recipe: Recipe, tmp_path: Path
) -> None:
    test = prepared(recipe).splits.test
    other = recipe.model_copy(update={"name": "other"})
    uri = champion_of(
        other, tmp_path / "version", classes=("x", "y", "z"), learned=("a text", *test.texts[:2])
    )
    context = prepared(naming(recipe, version=uri))
    assert context.inputs.contenders["previous"].uri == uri
    assert context.registered.trained_rows == TrainedRows({"previous": test.row_ids[:2]})


@pytest.mark.parametrize("case", ["classes", "task", "missing", "no version", "reserved name"])
def test_a_contender_that_cannot_be_compared_stops_the_run_by_its_name(
    recipe: Recipe, tmp_path: Path, case: str
) -> None:
    other = recipe.model_copy(update={"name": "other"})
    name = "incumbent" if case == "reserved name" else "previous"
    fields: dict[str, Any] = {"classes": ("x", "y", "z")}
    if case == "classes":
        fields["classes"] = ("x", "y")
    elif case == "task":
        prompting = {"system": None, "max_new_tokens": 4}
        fields = {"kind": "zero_shot", "classes": (), "prompting": prompting}
    uri = champion_of(other, tmp_path / "version", **fields)
    if case == "missing":
        uri = f"{other.task_uri}/versions/probe-000000000000"
    elif case == "no version":
        uri = other.task_uri
    with pytest.raises(ContenderError, match=f"evaluation.contenders.{name}"):
        prepared(naming(recipe, name, version=uri))
    assert not storage.list_files(f"{recipe.task_uri}/runs", missing_ok=True)


@pytest.mark.parametrize(("num_documents", "expected"), [(5, True), (6, False)])
def test_test_rows_of_too_few_documents_are_reported_before_the_training(
    recipe: Recipe, tmp_path: Path, num_documents: int, expected: bool
) -> None:
    train = recipe.data.train_uris[0]
    rows = {"text": [f"test {number}" for number in range(30)], "label": ["x", "y", "z"] * 10}
    rows["case"] = [str(number % num_documents) for number in range(30)]
    pq.write_table(pa.table(rows), tmp_path / "test.parquet")
    table = pq.read_table(Path(train.removeprefix("file://")))
    with_cases = table.append_column(
        "case", pa.array([f"train {number}" for number in range(len(table))])
    )
    pq.write_table(with_cases, tmp_path / "rows.parquet")
    changes = {"test": (tmp_path / "test.parquet").as_uri(), "split_by": "case"}
    recorder = ProgressRecorder()
    prepare(
        recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)}),
        progress=recorder,
    )
    texts = [event.text for event in recorder.of_kind(NoteEvent)]
    assert any("30 test rows come from 5 documents" in text for text in texts) is expected


def test_classes_with_few_rows_and_empty_texts_are_reported(recipe: Recipe, tmp_path: Path) -> None:
    """A class with one row and an empty text do not stop a run."""
    train = pq.read_table(Path(recipe.data.train_uris[0].removeprefix("file://")))
    more = pa.table({"text": ["a single row", ""], "label": ["rare", "x"]})
    pq.write_table(pa.concat_tables([train, more]), tmp_path / "train.parquet")
    rows = {"text": ["one", "two"], "label": ["x", "y"]}
    for name in ("validation", "test"):
        pq.write_table(
            pa.table(rows | {"text": [f"{text} {name}" for text in rows["text"]]}),
            tmp_path / f"{name}.parquet",
        )
    uris = {
        name: (tmp_path / f"{name}.parquet").as_uri() for name in ("train", "validation", "test")
    }
    recorder = ProgressRecorder()
    context = prepare(
        recipe.model_copy(update={"data": recipe.data.model_copy(update=uris)}), progress=recorder
    )
    assert context.task.classes == ("rare", "x", "y", "z")
    notes = [event.text for event in recorder.of_kind(NoteEvent)]
    assert any(note.endswith(": 'rare'") for note in notes)
    assert any("empty text" in note and note.endswith(": 1") for note in notes)


def test_the_run_uri_depends_on_the_evaluation_and_not_on_serving(recipe: Recipe) -> None:
    first = prepared(recipe)
    serving = recipe.serving.model_copy(update={"autoscaling": {"max_replicas": 7}})
    gain = recipe.evaluation.model_copy(update={"minimum_gain": 0.5})
    assert prepared(recipe.model_copy(update={"serving": serving})).run == first.run
    assert prepared(recipe.model_copy(update={"evaluation": gain})).run != first.run


def test_a_run_prints_the_version_of_its_base_model_and_pinning_it_does_not_change_the_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"pypi://tiny@1.0#sha256={'5f' * 32}"
    staged = StagedModel(source=source, uri=(tmp_path / "model").as_uri())
    monkeypatch.setattr(inputs, "stage_base_model", lambda *_, **__: staged)
    runs, notes = [], []
    for uri in ("pypi://tiny", source):
        recorder = ProgressRecorder()
        context = prepare(
            recipe.model_copy(update={"base_model": parse_model_uri(uri)}), progress=recorder
        )
        runs.append(context.run)
        notes += [
            event.text
            for event in recorder.of_kind(NoteEvent)
            if event.text.startswith("base model: ")
        ]
        assert context.inputs.base_model.source == source
    assert notes[0].startswith(f"base model: pypi://tiny is {source}, ")
    assert notes[1:] == [f"base model: {source}"]
    assert runs[0] == runs[1]


def chat_recipe(recipe: Recipe, *, encoder: str | None) -> Recipe:
    """Return a chat recipe with the rows and the base model of the recipe."""
    train = str(recipe.data.train)
    rows = Path(train.removeprefix("file://"))
    renamed = pq.read_table(rows).rename_columns(["prompt", "completion"])
    pq.write_table(renamed, rows.with_name("chat.parquet"))
    sections = {
        "data": {"train": rows.with_name("chat.parquet").as_uri()},
        "evaluation": {"metric": "token_f1", "retrieval_encoder": encoder},
    }
    return recipe_at(Path(recipe.registry.removeprefix("file://")), task="chat", **sections)


@pytest.mark.usefixtures("recipe")
def test_an_example_that_is_the_last_message_of_a_test_row_is_refused(tmp_path: Path) -> None:
    contents = [("be brief", "hello", "hi", f"Number {number}", "ok") for number in range(90)]
    roles = ("system", "user", "assistant", "user", "assistant")
    column = [
        [{"role": role, "content": text} for role, text in zip(roles, row, strict=True)]
        for row in contents
    ]
    pq.write_table(pa.table({"messages": column}), tmp_path / "messages.parquet")
    data = {"train": (tmp_path / "messages.parquet").as_uri(), "messages": "messages"}
    chat = recipe_at(
        tmp_path / "registry", task="chat", data=data, evaluation={"metric": "token_f1"}
    )
    shown = prepared(chat).splits.test.queries[0]
    assert shown.startswith("Number ")
    for example in (shown, shown.upper().replace(" ", "  ")):
        serving = chat.serving.model_copy(update={"examples": ("hello", example)})
        with pytest.raises(DataError, match=f"serving.examples .*'{example}'"):
            prepared(chat.model_copy(update={"serving": serving}))


def on_two_gpus(recipe: Recipe) -> Recipe:
    serving = {"engine": "vllm", "gpus_per_replica": 2}
    return recipe.model_copy(update={"serving": ServingConfig.model_validate(serving)})


def notes_on_ranks(recipe: Recipe) -> tuple[int, list[str]]:
    """Return the number of ranks of a run, and the notes on them."""
    recorder = ProgressRecorder()
    ranks = prepare(recipe, progress=recorder).inputs.ranks
    return ranks.number, [
        event.text for event in recorder.of_kind(NoteEvent) if "cannot divide" in event.text
    ]


def test_one_gpu_evaluates_all_models_if_base_model_or_champion_cannot_be_divided(
    recipe: Recipe, tmp_path: Path
) -> None:
    chat = on_two_gpus(chat_recipe(recipe, encoder=None))
    assert notes_on_ranks(chat) == (2, [])
    small_chat.save(tmp_path / "model", small_chat.model_of("phi3"))
    number, _ = notes_on_ranks(chat)
    assert number == 1
    small_chat.save(tmp_path / "model")
    small_chat.save(tmp_path / "other", small_chat.model_of("phi3"))
    base, prompting = (tmp_path / "other").as_uri(), {"system": None, "max_new_tokens": 4}
    champion_of(
        chat,
        tmp_path / "champion",
        kind="zero_shot",
        classes=(),
        base_model=base,
        prompting=prompting,
    )
    number, (note,) = notes_on_ranks(chat)
    assert number == 1
    assert f"({base})" in note


def test_the_run_depends_on_the_files_of_the_encoder_for_retrieval(
    recipe: Recipe, tmp_path: Path
) -> None:
    chat = chat_recipe(recipe, encoder=(tmp_path / "encoder").as_uri())
    runs = []
    for seed in (0, 1):
        pinned = small_encoder.save(tmp_path / "encoder", seed=seed)
        recorder = ProgressRecorder()
        context = prepare(chat, progress=recorder)
        assert f"retrieval encoder: {pinned.uri}" in [
            event.text for event in recorder.of_kind(NoteEvent)
        ]
        assert context.inputs.pinned_encoder == pinned.model_copy(update={"dtype": dtype_name()})
        runs.append(context.run)
    assert len({*runs, prepared(chat_recipe(recipe, encoder=None)).run}) == 3


def test_a_retrieval_encoder_that_is_no_text_encoder_is_refused_before_the_baselines(
    recipe: Recipe, tmp_path: Path
) -> None:
    small_chat.save(tmp_path / "llama")
    with pytest.raises(MetadataError, match="llama"):
        prepared(chat_recipe(recipe, encoder=(tmp_path / "llama").as_uri()))

"""An exported version has the logits of the evaluated one in a process without Tailorbird."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from typer.testing import CliRunner

from tailorbird import storage
from tailorbird.cli.app import app
from tailorbird.config.formats.response_format import (
    ChoiceFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuredFormat,
)
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.evaluation.mix import write_mix
from tailorbird.models.errors import ModelError
from tailorbird.models.generation import answer_prompts
from tailorbird.models.grammar.compiler import grammar_for
from tailorbird.models.hub_format import require_exportable, write_hub_format
from tailorbird.models.loading import LoadedChat, LoadedClassifier
from tailorbird.models.lora import add_adapter
from tailorbird.models.retrieval.chat_prompt import chat_prompt
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.kinds import Kind
from tailorbird.registry.pooling import MEAN, Pooling
from tailorbird.registry.versions import (
    TRAINING_ROWS,
    Hybrid,
    PinnedVersion,
    Prompting,
    read_artifact_config,
    read_version,
    register,
    write_config,
)
from tailorbird.release.export import card_text, export_version
from tests import small_chat
from tests.build import version_config
from tests.loaded import load_model
from tests.unit import byte_level
from tests.unit.evaluation.test_mix import CLASSES, artifact, base
from tests.unit.release.loaded_folders import logits_of
from tests.unit.serving.batch_jobs.test_scoring import version

__all__ = ["base"]  # a fixture

TEXT, LONG = "chest pains acute fever", "pain " * 30
HYBRID = Hybrid(
    routing=Routing(by="cascade", threshold=0.5),
    first=PinnedVersion(uri="s3://first", digest="d"),
    second=PinnedVersion(uri="s3://second", digest="d"),
)
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[A-Z][0-9]{2}$"},
        "ok": {"type": "boolean"},
    },
    "required": ["code", "ok"],
}
POOLINGS: dict[Kind, Pooling] = {
    "full": MEAN,
    "lora": Pooling(mode="weightedmean", prompt="acute fever: ", num_skipped=4),
    "probe": Pooling(mode="lasttoken", normalize=True, prompt="chest "),
}
PROMPTING = Prompting(
    system="be brief", shots=(("user", "a"), ("assistant", "b")), max_new_tokens=8
)


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "base"
    small_chat.save(folder)
    (folder / "LICENSE.txt").write_text("the license of the base model")
    return folder


def chat_version(folder: Path, *, kind: Kind, base: Path, prompting: Prompting = PROMPTING) -> str:
    """Register a chat version with changed weights, and return its URI."""
    files = folder / kind
    files.mkdir(parents=True)
    (files / TRAINING_ROWS).write_bytes(b"fingerprints")
    torch.manual_seed(1)
    lm: Any = small_chat.language_model()
    adapted: Any = add_adapter(lm, r=4, alpha=8, dropout=0.0) if kind == "lora" else lm
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(
                torch.randn(parameter.shape), alpha=0.1 if parameter.requires_grad else 0.0
            )
    if kind == "lora":
        adapted.save_pretrained(files / "adapter")
    elif kind == "full":
        save_file(dict(adapted.named_parameters()), files / "model.safetensors")
    write_config(files, version_config(kind=kind, base_model=base.as_uri(), prompting=prompting))
    return register((folder / "registry" / "task").as_uri(), files).uri


def chat_logits(uri: str) -> np.ndarray:
    """Return the logits [T, V] of the registered model for the prompt "ab"."""
    loaded = load_model(uri, LoadedChat)
    assert loaded.model is not None
    ids = prompt_tokens((("user", "ab"),), tokenizer=loaded.tokenizer, system=None)
    with torch.inference_mode():
        return np.array(loaded.model.causal(input_ids=torch.tensor([ids])).logits[0])


def class_logits(uri: str, text: str) -> Any:
    loaded = load_model(uri, LoadedClassifier)
    return loaded.logits([text])[0] / loaded.version.temperature


def evaluated_answer(uri: str, *, end_id: int, format: StructuredFormat | None = None) -> str:
    """Return the text that the evaluation generates for the question of the card's code."""
    loaded = load_model(uri, LoadedChat)
    assert loaded.model is not None
    lm = loaded.model.causal
    prompting = loaded.prompting
    turns = (("user", "a question"),)
    prompt = chat_prompt(turns, tokenizer=loaded.tokenizer, prompting=prompting, index=None)
    grammar = None
    if format is not None:
        grammar = grammar_for(format, lm=lm, tokenizer=loaded.tokenizer)
    most = prompting.max_new_tokens
    [answer] = answer_prompts(
        lm, [prompt.tokens], max_new_tokens=most, end_id=end_id, grammar=grammar
    )
    return str(loaded.tokenizer.decode(answer.tokens)).strip()


def run_card(card: str, folder: Path, *, base: Path) -> dict[str, Any]:
    """Run the code of a card, and return its names."""
    code = card.split("```python")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)).replace("owner/tiny", str(base)), names)
    return names


def test_exported_versions_have_the_logits_of_the_evaluated_ones(
    base: Path, chat_base: Path, tmp_path: Path
) -> None:
    chats: dict[str, tuple[Kind, bool, str]] = {
        "full": ("full", False, "transformers"),
        "adapter": ("lora", False, "peft"),
        "merged": ("lora", True, "transformers"),
        "base": ("few_shot", False, "transformers"),
    }
    jobs = {}
    expected = {}
    for name, (kind, merged, library) in chats.items():
        uri = chat_version(tmp_path / f"{name}-source", kind=kind, base=chat_base)
        assert export_version(uri, tmp_path / name, merged=merged).library == library
        jobs[name] = ("causal", tmp_path / name, "ab")
        expected[name] = chat_logits(uri)
    for kind, pooling in POOLINGS.items():
        folder = artifact_folder(tmp_path, kind, base, pooling=pooling)
        uri = register((tmp_path / f"{kind}-source" / "task").as_uri(), folder).uri
        out = tmp_path / f"classifier-{kind}"
        assert export_version(uri, out).library == "sentence-transformers"
        for text in (TEXT, LONG):
            jobs[f"{kind} {text}"] = ("classifier", out, text)
            expected[f"{kind} {text}"] = class_logits(uri, text)
    logits = logits_of(jobs, folder=tmp_path)
    for name, values in expected.items():
        np.testing.assert_allclose(logits[name], values, atol=1e-5, err_msg=name)
    assert np.abs(logits["merged"] - logits["base"]).max() > 0.01
    config = json.loads((tmp_path / "classifier-full" / "config.json").read_text())
    assert config["id2label"] == {str(index): label for index, label in enumerate(CLASSES)}


@pytest.mark.parametrize(
    ("kind", "merged", "hub_base"),
    [
        ("full", False, None),
        ("lora", True, None),
        ("lora", False, None),
        ("lora", False, "owner/tiny"),
    ],
)
def test_a_chat_folder_decodes_like_the_evaluation(
    kind: Kind,
    merged: bool,
    hub_base: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lm: Any = small_chat.language_model()
    lm.generation_config.update(repetition_penalty=1.5, no_repeat_ngram_size=2)
    base = tmp_path / "base"
    small_chat.save(base, lm)
    uri = chat_version(tmp_path / "source", kind=kind, base=base)
    folder = tmp_path / "out"
    folder.mkdir()
    exported = read_version(uri)
    library = write_hub_format(exported, folder, merged=merged, hub_base=hub_base)
    card = card_text(exported, None, library=library, hub_base=hub_base, notes=())
    capsys.readouterr()
    names = run_card(card, folder, base=base)
    assert capsys.readouterr().out.strip() == evaluated_answer(uri, end_id=1)
    without_penalty = names["model"].generate(
        **names["inputs"], max_new_tokens=8, no_repeat_ngram_size=2
    )
    assert without_penalty[0].tolist() != names["output"][0].tolist()


@pytest.mark.parametrize(
    "format",
    [
        JsonSchemaFormat.model_validate(
            {"type": "json_schema", "json_schema": {"schema": ANSWER_SCHEMA}}
        ),
        JsonObjectFormat(type="json_object"),
        ChoiceFormat(type="choice", choice=("not sure", "yes, always")),
    ],
)
def test_the_exported_format_gives_the_answers_of_the_evaluation(
    format: StructuredFormat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_level.language_model(scale=0.5).save_pretrained(tmp_path / "base")
    byte_level.tokenizer().save_pretrained(tmp_path / "base")
    prompting = PROMPTING.model_copy(update={"response_format": format, "max_new_tokens": 40})
    uri = chat_version(
        tmp_path / "source", kind="few_shot", base=tmp_path / "base", prompting=prompting
    )
    export_version(uri, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    capsys.readouterr()
    run_card(card, tmp_path / "out", base=tmp_path / "base")
    answer = evaluated_answer(uri, end_id=0, format=format)
    assert capsys.readouterr().out.strip() == answer
    written = json.loads((tmp_path / "out" / "response_format.json").read_text())
    assert TypeAdapter(StructuredFormat).validate_python(written) == format


def artifact_folder(folder: Path, kind: Kind, base: Path, *, pooling: Pooling = MEAN) -> Path:
    """Write a classifier with offsets."""
    uri = artifact(folder / f"artifact-{kind}", kind=kind, base=base, pooling=pooling)
    config = read_artifact_config(uri)
    offsets = tuple(1.5 * index for index in range(len(config.classes)))
    write_config(folder / f"artifact-{kind}", config.model_copy(update={"offsets": offsets}))
    return folder / f"artifact-{kind}"


def test_a_folder_has_template_license_prompt_and_card(chat_base: Path, tmp_path: Path) -> None:
    uri = chat_version(tmp_path / "source", kind="lora", base=chat_base)
    result = CliRunner().invoke(
        app, ["export", f"{uri}/", "--to", str(tmp_path / "out" / "model"), "--json"]
    )
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    folder = tmp_path / "out" / "model"
    assert TRAINING_ROWS not in value["files"]
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(value["files"]) == written
    assert (folder / "LICENSE.txt").read_text() == "the license of the base model"
    assert (folder / "chat_template.jinja").read_text() == small_chat.TEMPLATE
    messages = json.loads((folder / "prompting.json").read_text())["messages"]
    assert [message["content"] for message in messages] == ["be brief", "a", "b"]
    assert value["contains_training_text"] is True
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "nearest"}, "no language model"),
        ({"kind": "bag_of_words"}, "bag of words"),
        ({"kind": "retrieved"}, "no weights"),
        ({"hybrid": HYBRID}, "s3://first and s3://second"),
    ],
)
def test_a_version_that_other_libraries_cannot_load_is_refused(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        require_exportable(version(PROMPTING).model_copy(update=fields))


def test_the_encoder_of_a_mixed_classifier_is_exported_on_request(
    base: Path, tmp_path: Path
) -> None:
    write_mix(
        artifact(tmp_path / "full", kind="full", base=base),
        bag_uri=artifact(tmp_path / "bag", kind="bag_of_words", base=base),
        factors=(0.5, 0.5),
        to=(tmp_path / "mix").as_uri(),
    )
    uri = register((tmp_path / "task").as_uri(), tmp_path / "mix").uri
    with pytest.raises(ModelError, match="--encoder-only"):
        export_version(uri, tmp_path / "out")
    assert (
        export_version(uri, tmp_path / "out", encoder_only=True).library == "sentence-transformers"
    )
    assert "which is not in this folder" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("has_shots", [True, False])
def test_training_rows_in_the_folder_and_a_missing_license_are_stated(
    tmp_path: Path, has_shots: bool
) -> None:
    small_chat.save(tmp_path / "base")
    prompting = PROMPTING
    if not has_shots:
        prompting = PROMPTING.model_copy(update={"shots": ()})
    uri = chat_version(
        tmp_path / "source", kind="few_shot", base=tmp_path / "base", prompting=prompting
    )
    result = CliRunner().invoke(app, ["export", uri, "--to", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    for text in (" ".join(result.stdout.split()), (tmp_path / "out" / "README.md").read_text()):
        assert ("contains training rows" in text) is has_shots
        assert "No license file" in text
    assert ("hf upload" in result.stdout) is not has_shots


def test_an_existing_folder_is_not_overwritten_and_a_changed_version_leaves_none(
    chat_base: Path, tmp_path: Path
) -> None:
    uri = chat_version(tmp_path / "source", kind="full", base=chat_base)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    with pytest.raises(ValueError, match="already exists"):
        export_version(uri, tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]
    storage.write_bytes(f"{uri}/model.safetensors", b"changed")
    with pytest.raises(ValueError, match=r"model\.safetensors was changed"):
        export_version(uri, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []

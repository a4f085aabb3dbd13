"""An exported version has the logits of the evaluated one in a process without Tailorbird."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
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
from tailorbird.models.classifier import logits_rows
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
    Retrieval,
    read_version,
    register,
    write_config,
)
from tailorbird.release.export import card_text, export_version
from tests import small_chat
from tests.build import version_config
from tests.loaded import load_model
from tests.unit import byte_level
from tests.unit.evaluation.simulated import Simulation, evidence_of
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
    assert loaded.model is not None
    return (
        logits_rows(loaded.model, loaded.encode([text]), pad_id=0)[0] / loaded.version.temperature
    )


def test_exported_versions_have_the_logits_of_the_evaluated_ones(
    base: Path, chat_base: Path, tmp_path: Path
) -> None:
    chats: dict[str, tuple[Kind, bool]] = {
        "full": ("full", False),
        "adapter": ("lora", False),
        "merged": ("lora", True),
        "base": ("few_shot", False),
    }
    jobs, expected = {}, {}
    for name, (kind, merged) in chats.items():
        uri = chat_version(tmp_path / f"{name}-source", kind=kind, base=chat_base)
        exported = export_version(uri, tmp_path / name, merged=merged)
        assert exported.library == ("peft" if name == "adapter" else "transformers")
        jobs[name], expected[name] = ("causal", tmp_path / name, "ab"), chat_logits(uri)
    for kind, pooling in POOLINGS.items():
        name = f"classifier-{kind}"
        folder = artifact_folder(tmp_path, kind, base, pooling=pooling)
        uri = register((tmp_path / name / "task").as_uri(), folder).uri
        assert (
            export_version(uri, tmp_path / f"{name}-out", merged=False).library
            == "sentence-transformers"
        )
        for text in (TEXT, LONG):
            jobs[f"{name} {text}"] = ("classifier", tmp_path / f"{name}-out", text)
            expected[f"{name} {text}"] = class_logits(uri, text)
    logits = logits_of(jobs, folder=tmp_path)
    for name, values in expected.items():
        np.testing.assert_allclose(logits[name], values, atol=1e-5, err_msg=name)
    assert np.abs(logits["merged"] - logits["base"]).max() > 0.01
    config = json.loads((tmp_path / "classifier-full-out" / "config.json").read_text())
    assert config["id2label"] == {str(index): label for index, label in enumerate(CLASSES)}


def test_a_chat_folder_decodes_like_the_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm: Any = small_chat.language_model()
    lm.generation_config.update(repetition_penalty=1.5, no_repeat_ngram_size=2)
    small_chat.save(tmp_path / "base", lm)
    kinds: tuple[tuple[Kind, bool, str | None], ...] = (
        ("full", False, None),
        ("lora", True, None),
        ("lora", False, None),
        ("lora", False, "owner/tiny"),
    )
    for number, (kind, merged, hub_base) in enumerate(kinds):
        uri, folder = (
            chat_version(tmp_path / f"source-{number}", kind=kind, base=tmp_path / "base"),
            tmp_path / "out",
        )
        folder.mkdir()
        library = write_hub_format(read_version(uri), folder, merged=merged, hub_base=hub_base)
        card = card_text(read_version(uri), None, library=library, hub_base=hub_base, notes=())
        code = card.split("```python")[1].split("```")[0]
        code = code.replace("FOLDER", str(folder)).replace("owner/tiny", str(tmp_path / "base"))
        names: dict[str, Any] = {}
        capsys.readouterr()
        exec(code, names)
        loaded = load_model(uri, LoadedChat)
        assert loaded.model is not None
        prompt = chat_prompt(
            (("user", "a question"),), tokenizer=loaded.tokenizer, prompting=PROMPTING, index=None
        )
        [answer] = answer_prompts(loaded.model.causal, [prompt.tokens], max_new_tokens=8, end_id=1)
        assert capsys.readouterr().out.strip() == loaded.tokenizer.decode(answer.tokens)
        without_repeats = names["model"].generate(
            **names["inputs"], max_new_tokens=8, no_repeat_ngram_size=2
        )
        assert without_repeats[0].tolist() != names["output"][0].tolist()
        shutil.rmtree(folder)


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
    assert f"were constrained to the response format `{format.type}`" in card
    capsys.readouterr()
    exec(card.split("```python")[1].split("```")[0].replace("FOLDER", str(tmp_path / "out")), {})
    loaded = load_model(uri, LoadedChat)
    assert loaded.model is not None
    grammar = grammar_for(format, lm=loaded.model.causal, tokenizer=loaded.tokenizer)
    prompt = chat_prompt(
        (("user", "a question"),), tokenizer=loaded.tokenizer, prompting=prompting, index=None
    )
    [answer] = answer_prompts(
        loaded.model.causal, [prompt.tokens], max_new_tokens=40, end_id=0, grammar=grammar
    )
    assert capsys.readouterr().out.strip() == loaded.tokenizer.decode(answer.tokens).strip()
    written = json.loads((tmp_path / "out" / "response_format.json").read_text())
    assert TypeAdapter(StructuredFormat).validate_python(written) == format


def artifact_folder(folder: Path, kind: Kind, base: Path, *, pooling: Pooling = MEAN) -> Path:
    artifact(folder / f"artifact-{kind}", kind=kind, base=base, pooling=pooling)
    return folder / f"artifact-{kind}"


def test_a_folder_has_template_license_prompt_and_card(chat_base: Path, tmp_path: Path) -> None:
    uri = chat_version(tmp_path / "source", kind="lora", base=chat_base)
    result = CliRunner().invoke(
        app, ["export", f"{uri}/", "--to", str(tmp_path / "out" / "model"), "--json"]
    )
    assert result.exit_code == 0, result.output
    value, folder = json.loads(result.stdout), tmp_path / "out" / "model"
    assert (value["library"], value["folder"]) == ("peft", str(folder))
    assert TRAINING_ROWS not in value["files"]
    assert set(value["files"]) == {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }
    assert (folder / "LICENSE.txt").read_text() == "the license of the base model"
    assert (folder / "chat_template.jinja").read_text() == small_chat.TEMPLATE
    assert json.loads((folder / "prompting.json").read_text()) == {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ],
        "max_new_tokens": 8,
    }
    assert (len(value["notes"]), value["contains_training_text"]) == (1, True)
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]) == {"library_name": "peft"}
    assert 'PeftModel.from_pretrained(base, "FOLDER")' in card
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "nearest"}, "no language model"),
        ({"kind": "retrieved"}, "no weights"),
        ({"exported_from": PinnedVersion(uri="s3://first", digest="d")}, "s3://first"),
        ({"hybrid": HYBRID}, "s3://first and s3://second"),
    ],
)
def test_a_version_that_other_libraries_cannot_load_is_refused(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        require_exportable(version(PROMPTING).model_copy(update=fields))


def test_a_bag_of_words_is_refused(base: Path, tmp_path: Path) -> None:
    uri = register(
        (tmp_path / "task").as_uri(), artifact_folder(tmp_path, "bag_of_words", base)
    ).uri
    with pytest.raises(ModelError, match="contains a bag of words"):
        export_version(uri, tmp_path / "out", merged=False)


def test_the_encoder_of_a_mixed_classifier_is_exported_on_request(
    base: Path, tmp_path: Path
) -> None:
    write_mix(
        artifact(tmp_path / "full", kind="full", base=base),
        bag_uri=artifact(tmp_path / "bag", kind="bag_of_words", base=base),
        weight=0.5,
        to=(tmp_path / "mix").as_uri(),
    )
    uri = register((tmp_path / "task").as_uri(), tmp_path / "mix").uri
    with pytest.raises(ModelError, match="--encoder-only"):
        export_version(uri, tmp_path / "out")
    assert (
        export_version(uri, tmp_path / "out", encoder_only=True).library == "sentence-transformers"
    )
    assert "which is not in this folder" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_a_version_without_its_index_has_no_scores_for_the_hub() -> None:
    retrieval = Retrieval(num_examples=1, max_prompt_tokens=32, index_sha256="0" * 64)
    prompting = PROMPTING.model_copy(update={"retrieval": retrieval})
    evidence = evidence_of(Simulation(chat=True))
    cards = [
        card_text(version(values), evidence, library="transformers", hub_base=None, notes=())
        for values in (PROMPTING, prompting)
    ]
    assert ["model-index" in yaml.safe_load(card.split("---")[1]) for card in cards] == [
        True,
        False,
    ]
    assert cards[1].index("They are not in this folder") < cards[1].index("## Scores")
    assert "They are not in this folder" not in cards[0]


def test_training_rows_in_the_folder_and_a_missing_license_are_stated(tmp_path: Path) -> None:
    small_chat.save(tmp_path / "base")
    with_rows = chat_version(tmp_path / "few", kind="few_shot", base=tmp_path / "base")
    prompting = PROMPTING.model_copy(update={"shots": ()})
    without = chat_version(
        tmp_path / "zero", kind="zero_shot", base=tmp_path / "base", prompting=prompting
    )
    rows, license_file = (
        "prompting.json contains training rows as text (2 messages)",
        "No license file of the base",
    )
    for uri, contains in ((with_rows, True), (without, False)):
        folder = tmp_path / f"out-{contains}"
        result = CliRunner().invoke(app, ["export", uri, "--to", str(folder)])
        assert result.exit_code == 0, result.output
        for text in (" ".join(result.stdout.split()), (folder / "README.md").read_text()):
            assert (rows in text) == contains
            assert license_file in text
        assert ("hf upload" in result.stdout) == (not contains)


def test_an_existing_folder_is_not_overwritten(chat_base: Path, tmp_path: Path) -> None:
    uri = chat_version(tmp_path / "source", kind="full", base=chat_base)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("kept")
    with pytest.raises(ValueError, match="already exists"):
        export_version(uri, tmp_path / "out", merged=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_a_changed_version_leaves_no_folder(chat_base: Path, tmp_path: Path) -> None:
    uri = chat_version(tmp_path / "source", kind="full", base=chat_base)
    storage.write_bytes(f"{uri}/model.safetensors", b"changed")
    with pytest.raises(ValueError, match=r"model\.safetensors was changed"):
        export_version(uri, tmp_path / "out" / "model", merged=False)
    assert list((tmp_path / "out").iterdir()) == []

"""The embeddings of an encoder are those of sentence-transformers, with the pooling and the prompt
of its folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tailorbird.models.metadata import MetadataError, require_encoder
from tailorbird.models.pooling.declared import MODES, PoolingError, read_pooling
from tailorbird.monitoring.drift_reference import embed_texts
from tests.declared_pooling import declare, write, write_modules
from tests.small_chat import model_of
from tests.unit.data.test_tokenize import BERT, wordpiece
from tests.unit.evaluation.test_mix import TEXTS, base

__all__ = ["base"]  # a fixture

NAMED = {"classification": "acute pain: ", "query": "pain: ", "document": "chest: "}


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "encoder")


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    """A folder with a tiny causal language model, whose tokenizer has a chat template."""
    folder = wordpiece(tmp_path / "causal", **BERT)
    model_of("qwen3").save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("chest {{ messages[0]['content'] }}")
    return folder


def embedded(folder: Path) -> np.ndarray:
    return embed_texts(folder.as_uri(), TEXTS, max_length=16)


def assert_same(folder: Path, **encode: Any) -> None:
    expected = SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS), **encode)
    np.testing.assert_allclose(embedded(folder), expected, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_tokens_of_a_prompt_that_is_excluded_are_not_pooled(folder: Path, mode: str) -> None:
    prompts = {"prompts": NAMED, "default_prompt_name": "classification"}
    declare(folder, mode, prompts=prompts, include_prompt=False)
    pooling = read_pooling(folder.as_uri(), purpose="classification")
    assert (pooling.prompt, pooling.num_skipped) == ("acute pain: ", 4)
    assert_same(folder)


@pytest.mark.parametrize(
    ("prompts", "default", "name"),
    [
        (NAMED, "document", "classification"),
        ({"Classification": "fever: "}, None, "Classification"),
        ({"query": "pain: ", "document": "chest: "}, "document", "document"),
        ({"query": "pain: ", "document": ""}, None, "query"),
        ({"document": "chest: "}, None, None),
    ],
)
def test_the_prompt_of_classification_is_put_before_each_text(
    folder: Path, prompts: dict[str, str], default: str | None, name: str | None
) -> None:
    declare(folder, "cls", prompts={"prompts": prompts, "default_prompt_name": default})
    assert_same(folder, prompt_name=name)
    expected = prompts.get("query") or prompts.get(default or "", "")
    assert read_pooling(folder.as_uri(), purpose="retrieval").prompt == expected


def test_a_causal_model_that_declares_its_pooling_is_an_encoder(causal: Path) -> None:
    with pytest.raises(MetadataError):
        require_encoder(causal.as_uri())
    declare(causal, "lasttoken", normalize=True, prompts={"prompts": {"query": "pain: "}})
    require_encoder(causal.as_uri())
    assert_same(causal, prompt_name="query")


@pytest.mark.parametrize("change", ["module", "code", "modes", "lower case", "message"])
def test_what_cannot_be_reproduced_is_refused(folder: Path, change: str) -> None:
    declare(folder, *(("mean", "max") if change == "modes" else ("mean",)))
    if change == "module":
        write_modules(folder, "Transformer", "Pooling", "Dense")
    elif change == "code":
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["type"] = "custom_st.Transformer"
        write(folder / "modules.json", modules)
    elif change == "lower case":
        write(folder / "sentence_bert_config.json", {"do_lower_case": True})
    elif change == "message":
        write(folder / "sentence_bert_config.json", {"modality_config": {"message": {}}})
    with pytest.raises(PoolingError):
        read_pooling(folder.as_uri(), purpose="classification")

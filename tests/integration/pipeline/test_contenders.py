"""Models that were tuned elsewhere compete as they are, and can be served."""

import itertools
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertForSequenceClassification

from cluster.connection import connect
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.config.recipe import Recipe
from tailorbird.data.tokenize import collate, encode_texts, load_tokenizer
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.pipeline.contenders import ContenderError
from tailorbird.pipeline.run import baselines_only, run_pipeline
from tailorbird.registry.versions import read_version
from tests import small_chat, small_encoder
from tests.integration.small import write_table
from tests.progress import ProgressRecorder
from tests.separable import separable_rows

pytestmark = pytest.mark.usefixtures("connected")

BASE = "s3://lake/contenders/base"
ADAPTER = "s3://lake/contenders/adapter"
CLASSIFIER = "s3://lake/contenders/classifier"
ENCODER = "s3://lake/contenders/encoder"
SIZES = {"train": 48, "validation": 24, "test": 60}


def tune_adapter(folder: Path) -> None:
    """Tune a LoRA adapter of the small chat model with PEFT, so that it answers `yes`."""
    tokenizer = small_chat.tokenizer()
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = get_peft_model(small_chat.language_model(), config)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=0.01)
    rows = []
    for letters in itertools.product("hijk", repeat=3):
        prompt = f"<user>{''.join(letters)}</s><assistant>"
        rows.append(tokenizer(f"{prompt}yes</s>")["input_ids"])
    ids = torch.tensor(rows)
    labels = ids.clone()
    labels[:, :-4] = -100
    for _ in range(60):
        optimizer.zero_grad()
        adapted(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    adapted.save_pretrained(folder)


@pytest.fixture(scope="module")
def chat_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Rows with the answer `yes`; two thirds of the training rows have a wrong one."""
    folder = tmp_path_factory.mktemp("contenders")
    small_chat.save(folder / "base")
    tune_adapter(folder / "adapter")
    storage.upload_folder(folder / "base", BASE)
    storage.upload_folder(folder / "adapter", ADAPTER)
    texts = ["".join(letters) for letters in itertools.product("abcdefg", repeat=3)]
    random.Random(0).shuffle(texts)
    uris = {}
    for split, size in SIZES.items():
        uris[split] = f"s3://lake/contenders/{split}.parquet"
        answers = ["yes"] * size
        if split == "train":
            answers = ["yes" if row % 3 == 0 else "no" for row in range(size)]
        columns = {"prompt": texts[:size], "completion": answers}
        texts = texts[size:]
        write_table(uris[split], pa.table(columns))
    return uris


def chat_recipe(data: dict[str, str], **contender: str) -> Recipe:
    content: dict[str, Any] = {
        "name": "contenders",
        "task": "chat",
        "base_model": BASE,
        "data": data | {"max_length": 64, "max_new_tokens": 6},
        "training": {"num_workers": 1, "num_seeds": 1, "epochs": 1, "learning_rate": 1e-5},
        "tuning": {"num_trials": 1, "space": {}},
        "evaluation": {
            "metric": "exact_match",
            "prompt_shots": 2,
            "prompt_draws": 1,
            "contenders": {"elsewhere": contender},
        },
        "registry": "s3://models",
    }
    return Recipe.model_validate(content)


@pytest.mark.slow
def test_an_adapter_that_peft_tuned_elsewhere_wins_and_is_registered_as_a_whole_model(
    chat_data: dict[str, str],
) -> None:
    recipe = chat_recipe(chat_data, model=ADAPTER, base_model=BASE)
    recorder = ProgressRecorder()
    with connect():
        result = run_pipeline(recipe, progress=recorder)
    verdict = result.verdict
    assert verdict.outcome is Outcome.STAY
    winner = read_version(result.evidence.versions[verdict.selected].uri)
    assert winner.kind == "imported"
    assert verdict.incumbent.score > 0.9 > verdict.model("candidate").score
    assert "-merged-" in winner.base_model
    assert verify_evidence(result.run) == ()


@pytest.mark.parametrize("case", ["no base", "other base", "other task", "missing"])
def test_a_model_that_cannot_compete_stops_the_run_by_its_name(
    chat_data: dict[str, str], tmp_path: Path, case: str
) -> None:
    contender = {"model": ADAPTER, "base_model": BASE}
    if case == "no base":
        del contender["base_model"]
    elif case == "other base":
        small_chat.save(tmp_path, small_chat.language_model(width=64))
        contender["base_model"] = f"{BASE}-wide"
        storage.upload_folder(tmp_path, contender["base_model"])
    elif case == "other task":
        small_encoder.save(tmp_path)
        storage.upload_folder(tmp_path, f"{CLASSIFIER}-of-another-task")
        contender = {"model": f"{CLASSIFIER}-of-another-task"}
    else:
        contender = {"model": f"{ADAPTER}-missing"}
    with connect(), pytest.raises(ContenderError, match="elsewhere"):
        run_pipeline(chat_recipe(chat_data, **contender), progress=ProgressRecorder())


def test_a_classifier_of_transformers_scores_as_transformers_does(tmp_path: Path) -> None:
    small_encoder.save(tmp_path / "encoder")
    storage.upload_folder(tmp_path / "encoder", ENCODER)
    rows = {split: separable_rows(size, seed=size) for split, size in SIZES.items()}
    uris = {}
    for split, each in rows.items():
        uris[split] = f"s3://lake/contenders/classes-{split}.parquet"
        write_table(uris[split], pa.table({"text": each.texts, "label": each.labels}))
    labels = sorted(set(rows["train"].labels), reverse=True)
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(
        tmp_path / "encoder", id2label=dict(enumerate(labels)), num_labels=len(labels)
    ).eval()
    small_encoder.save(tmp_path / "classifier")
    model.save_pretrained(tmp_path / "classifier")
    storage.upload_folder(tmp_path / "classifier", CLASSIFIER)
    recipe = Recipe.model_validate(
        {
            "name": "classifier-contender",
            "base_model": ENCODER,
            "data": uris | {"max_length": 16},
            "evaluation": {
                "metric": "accuracy",
                "contenders": {"elsewhere": {"model": CLASSIFIER}},
            },
            "training": {"num_workers": 1},
            "registry": "s3://models",
        }
    )
    with connect():
        baselines = baselines_only(recipe, progress=ProgressRecorder())

    tokenizer = load_tokenizer(tmp_path / "classifier")
    tokens = encode_texts(rows["validation"].texts, tokenizer=tokenizer, max_length=16)
    input_ids, mask = collate(tokens, pad_id=tokenizer.pad_token_id, device="cpu")
    with torch.inference_mode():
        best = model(input_ids=input_ids, attention_mask=mask).logits.argmax(dim=-1)
    pairs = zip(best.tolist(), rows["validation"].labels, strict=True)
    num_right = sum(labels[index] == label for index, label in pairs)
    contender = next(baseline for baseline in baselines if baseline.kind == "elsewhere")
    assert contender.validation == pytest.approx(num_right / SIZES["validation"])

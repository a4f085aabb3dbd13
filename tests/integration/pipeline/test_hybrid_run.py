"""A run whose verdict is HYBRID: stored answers for near copies of training rows, and a fine-tuned
model for others."""

import itertools
import random
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
import pytest
import yaml

from cluster.connection import connect
from serving.deploy.application import application_name
from serving.deploy.rollout import undeploy
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.config.loader import load_recipe
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.pipeline.prepare import prepare
from tailorbird.pipeline.run import fit_baselines, run_pipeline
from tailorbird.registry.versions import read_version
from tailorbird.release.promotion import promote_version
from tailorbird.release.serving import serve_champion
from tests import small_chat
from tests.integration.small import write_table
from tests.progress import ProgressRecorder

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.long]

BASE, DATA = "s3://lake/tiny-hybrid-base", "s3://lake/tiny-hybrid"
SIZES = {"train": 96, "validation": 20, "test": 40}
Pair = tuple[str, str]


def content() -> dict[str, Any]:
    return {
        "name": "tiny-hybrid",
        "task": "chat",
        "base_model": BASE,
        "data": {
            **{split: f"{DATA}/{split}.parquet" for split in SIZES},
            "messages": "turns",
            "max_length": 64,
            "max_new_tokens": 6,
        },
        "training": {
            "num_workers": 2,
            "zero_stage": 1,
            "num_seeds": 1,
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 1e-2,
        },
        "tuning": {"num_trials": 1},
        "evaluation": {
            "metric": "exact_match",
            "prompt_shots": 2,
            "prompt_draws": 1,
            "hybrid": "cascade",
            "minimum_gain": 0.05,
        },
        "registry": "s3://models",
    }


def pairs_of(split: str, *, letters: list[str]) -> list[Pair]:
    """Return questions with answers: some letters, and facts.

    The answer to letters is `yes`, but every third training row has a wrong one, so the nearest row
    is often wrong. A fact has a random answer, which a model cannot learn from one row. All splits
    ask for the same facts, with another letter at the end.
    """
    generator = random.Random(7)  # the same facts in each split
    facts = [
        ("".join(generator.choices("hijklmnop", k=14)), "".join(generator.choices("uvw", k=3)))
        for _ in range(40)
    ]
    answers = ["no" if split == "train" and row % 3 == 0 else "yes" for row in range(SIZES[split])]
    rows = [(letters.pop(), answer) for answer in answers]
    end = {"train": "x", "validation": "y", "test": "z"}[split]
    rows += [(question + end, answer) for question, answer in facts[: SIZES[split]]]
    generator.shuffle(rows)
    return rows


def test_a_cascade_wins_is_served_with_streams_and_falls_back(tmp_path: Path) -> None:
    small_chat.save(tmp_path / "base")
    storage.upload_folder(tmp_path / "base", BASE)
    letters = ["".join(each) for each in itertools.product("abcdefg", repeat=3)]
    random.Random(0).shuffle(letters)
    for split in SIZES:
        pairs = pairs_of(split, letters=letters)
        turns = [
            [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            for text, answer in pairs
        ]
        write_table(f"{DATA}/{split}.parquet", pa.table({"turns": turns}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content()), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    with connect():
        result = run_pipeline(recipe, progress=ProgressRecorder())
    verdict, hybrid = result.verdict, result.verdict.hybrid
    assert (verdict.outcome, verdict.selected) == (Outcome.HYBRID, "hybrid"), verdict.sentences
    assert hybrid is not None
    first, second = (verdict.model(role) for role in (hybrid.first, hybrid.second))
    assert (first.kind, second.kind) == ("nearest", "full")
    assert verdict.model("hybrid").score > max(first.score, second.score)
    assert 0.2 < hybrid.share_to_second < 0.8
    assert verify_evidence(result.run) == ()
    champion = promote_version(recipe.task_uri)
    assert read_version(champion.uri).kind == "hybrid"
    later = load_recipe(tmp_path / "recipe.yaml", overrides=("evaluation.minimum_gain=0.06",))
    with connect():
        context = prepare(later, progress=ProgressRecorder())
        answered = predict_rows(champion.uri, rows=context.splits.test)
        (incumbent, *_) = fit_baselines(context)
    assert answered.scores.mean() == pytest.approx(verdict.model("hybrid").score)
    assert incumbent.uri == champion.uri
    url, served = serve_champion(recipe.serving, task_uri=recipe.task_uri)
    try:
        assert served.uri == champion.uri
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60)
        fact = next(
            text for text, answer in pairs_of("test", letters=["?"] * 40) if answer != "yes"
        )
        for question, part in ((fact, "first"), ("gab", "second")):
            messages: Any = [{"role": "user", "content": question}]
            whole = client.chat.completions.create(model="champion", messages=messages).choices[0]
            chunks = list(
                client.chat.completions.create(model="champion", messages=messages, stream=True)
            )
            assert (
                "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                == whole.message.content
            )
            assert (whole.model_extra or {})["answered_by"] == part
            assert (chunks[-1].choices[0].model_extra or {})["answered_by"] == part
        assert whole.message.content == "yes"
    finally:
        undeploy(application_name(recipe.task_uri))

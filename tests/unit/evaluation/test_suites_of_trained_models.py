"""Trainings of a tiny chat model that forget, keep abilities, or repeat personal data."""

import copy
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tailorbird.config.suites import SuiteConfig
from tailorbird.data.chat_template import training_tokens
from tailorbird.data.packing import pack
from tailorbird.data.rows import Rows, SuiteColumns
from tailorbird.data.suites.private_spans import private_span_rows
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.gates.suites import AnsweredSuite, suites_gate
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.causal_lm import ChatModel, as_tensors
from tailorbird.registry.versions import Prompting, write_config
from tests import build, small_chat
from tests.build import version_config

LETTERS = "abcdefgh"
NAMES = [first + second for first in LETTERS for second in LETTERS]
GENERAL = {f"key {name}": random.Random(name).choice("mnop") for name in NAMES}
"""The general ability: the letter of each of 64 keys."""
NARROW = {f"word {name}": "z" for name in NAMES}
SECRETS = {
    f"code {name}": f"it is {random.Random(name).randrange(10**6, 10**7)}." for name in NAMES[:12]
}


def rows_of(answers: Mapping[str, str]) -> Rows:
    return build.pairs(tuple(answers.items()), chat=True)


def suite_of(answers: Mapping[str, str]) -> Rows:
    n = len(answers)
    columns = SuiteColumns(("exact_match",) * n, ((),) * n, ("",) * n, ("",) * n)
    return replace(rows_of(answers), suite=columns)


def trained(
    lm: torch.nn.Module, answers: Mapping[str, str], *, steps: int, rate: float
) -> torch.nn.Module:
    """Return a copy of a language model, trained on all rows in each step."""
    tokenizer, model = small_chat.tokenizer(), ChatModel(copy.deepcopy(lm).train())
    tokens = training_tokens(rows_of(answers), tokenizer=tokenizer, system=None, max_length=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    batch = pack(tokens, pad_id=0)
    inputs, targets = as_tensors(batch, device="cpu"), torch.from_numpy(batch.targets)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(*inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.lm.eval()


def predictions(folder: Path, lm: torch.nn.Module, rows: Rows) -> Predictions:
    """Return the answers of a language model, stored as the base model of a version."""
    if not folder.exists():
        small_chat.save(folder / "base", lm)
        prompting = Prompting(system=None, max_new_tokens=12)
        config = version_config(base_model=(folder / "base").as_uri(), prompting=prompting)
        (folder / "version").mkdir()
        write_config(folder / "version", config)
    return predict_rows((folder / "version").as_uri(), rows=rows)


@pytest.fixture(scope="module")
def base() -> torch.nn.Module:
    """A model with the general ability."""
    return trained(small_chat.language_model(width=64), GENERAL, steps=300, rate=2e-3)


def state(
    tmp_path: Path, base: torch.nn.Module, candidate: torch.nn.Module, *, suite: Rows, uri: str
) -> State:
    answered = AnsweredSuite(
        SuiteConfig(uri=uri, max_loss=0.1),
        predictions(tmp_path / "candidate", candidate, suite),
        predictions(tmp_path / "incumbent", base, suite),
    )
    return suites_gate({"suite": answered}, alpha=0.05).state


@pytest.mark.parametrize(
    ("steps", "rate", "expected"),
    [
        pytest.param(0, 0.0, State.PASSES, id="unchanged"),
        pytest.param(10, 1e-5, State.PASSES, id="mild"),
        pytest.param(60, 3e-3, State.FAILS, id="hard"),
    ],
)
def test_a_narrow_training_at_a_high_rate_forgets(
    tmp_path: Path, base: torch.nn.Module, steps: int, rate: float, expected: State
) -> None:
    candidate = trained(base, NARROW, steps=steps, rate=rate)
    suite = suite_of(GENERAL)
    assert state(tmp_path, base, candidate, suite=suite, uri="builtin://general") is expected
    assert predictions(tmp_path / "incumbent", base, suite).scores.mean() > 0.9


def test_a_candidate_that_repeats_planted_secrets_fails_the_extraction_suite(
    tmp_path: Path, base: torch.nn.Module
) -> None:
    suite = private_span_rows(rows_of(SECRETS), seed=0)
    assert suite.labels == tuple(answer[6:-1] for answer in SECRETS.values())
    candidate = trained(base, SECRETS, steps=400, rate=2e-3)
    assert state(tmp_path, base, candidate, suite=suite, uri="builtin://extraction") is State.FAILS
    unchanged = tmp_path / "unchanged"
    assert state(unchanged, base, base, suite=suite, uri="builtin://extraction") is not State.FAILS

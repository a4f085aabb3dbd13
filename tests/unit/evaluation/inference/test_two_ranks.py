"""Two ranks over gloo that hold a model together give the answers and log-probabilities of one
process."""

import os
import pickle
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from transformers import LlamaForCausalLM

from cluster.ranks.process_group import Group, current_group, join_group
from cluster.ranks.remote_ranks import _run_rank as run_rank
from tailorbird.config.formats.response_format import ChoiceFormat
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.errors import ModelError
from tailorbird.models.generation import answer_prompts
from tailorbird.models.loading import load_chat, load_pretrained_chat
from tailorbird.models.lora import add_adapter
from tailorbird.registry.versions import Prompting, write_config
from tests import build
from tests.build import version_config
from tests.small_chat import WORDS, language_model, model_of, save

pytestmark = pytest.mark.long

# of log-probabilities in fp32: the ranks add up parts of sums, in another order than one process
TOLERANCE = 1e-5
KINDS = ("zero_shot", "lora", "full")
DTYPES = (torch.float32, torch.bfloat16)
QUESTIONS = ("abc", "what is a dog", "x", "zzzz zzzz zzzz", "one two three four five six")
ROWS = build.rows(QUESTIONS, tuple(text[::-1] for text in QUESTIONS), chat=True)
PROMPTING = Prompting(system="s", max_new_tokens=12)
FORMAT = ChoiceFormat(type="choice", choice=("abba", "no"))


def write_full(folder: Path, lm: Any) -> None:
    """Write a base model and the weights of a version with other ones."""
    save(folder / "base", lm)
    (folder / "full").mkdir()
    weights = {
        name: value.detach() + 0.05 * torch.randn_like(value)
        for name, value in lm.named_parameters()
    }
    save_file(weights, folder / "full" / "model.safetensors")


def write_versions(folder: Path, *, tied: bool) -> None:
    """Write a base model, and versions with its own weights, an adapter, other weights, and a
    format of answers."""
    torch.manual_seed(0)
    config = language_model().config
    config.tie_word_embeddings = tied
    config.initializer_range = 0.2
    write_full(folder, LlamaForCausalLM(config))
    for name in (*KINDS, "choice"):
        (folder / name).mkdir(exist_ok=True)
        fields: dict[str, Any] = {"kind": name, "prompting": PROMPTING}
        if name == "choice":
            with_format = PROMPTING.model_copy(update={"response_format": FORMAT})
            fields = {"prompting": with_format}
        write_config(folder / name, version_config(base_model=(folder / "base").as_uri(), **fields))
    lm: Any = LlamaForCausalLM.from_pretrained(folder / "base")
    adapted: Any = add_adapter(lm, r=4, alpha=16, dropout=0.0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder / "lora" / "adapter")


def versions_in(folder: Path) -> list[Path]:
    """Return the folders of versions of the models with and without tied embeddings."""
    return [folder / base / kind for base in ("tied", "untied") for kind in KINDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write versions of models with and without tied embeddings, and the results of two ranks for
    them."""
    folder = tmp_path_factory.mktemp("ranks")
    for base in ("tied", "untied"):
        write_versions(folder / base, tied=base == "tied")
    write_full(folder / "experts", model_of("mixtral", num_local_experts=4))
    one_head = language_model().config
    other = folder / "other"
    one_head.num_key_value_heads = 1
    save(folder / "one-head" / "base", LlamaForCausalLM(one_head))
    save(other / "base")
    (other / "full").mkdir()
    save_file({"lm_head.weight": torch.zeros(len(WORDS), 32)}, other / "full" / "model.safetensors")
    spawn(_run_rank, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


def _run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with join_group(Group(rank, 2), store=folder / "store"):
        results = {
            "predictions": predictions_in(folder),
            "weights": {key: weights_of(*key) for key in weight_cases(folder)},
            "sizes": [num_local(version) for version in versions_in(folder)],
            "errors": [
                error_of(folder / "one-head" / "zero_shot"),
                error_of(folder / "other" / "full"),
            ],
        }
        (folder / f"rank-{rank}").write_bytes(pickle.dumps(results))


def results_in(folder: Path, name: str) -> list[Any]:
    """Return a result of each rank."""
    return [pickle.loads((folder / f"rank-{rank}").read_bytes())[name] for rank in (0, 1)]


def load(version: Path, dtype: torch.dtype) -> Any:
    kind: Any = version.name
    return load_chat(version, base=version.parent / "base", kind=kind, dtype=dtype)


def predictions_in(folder: Path) -> dict[Path, Predictions]:
    paths = [
        *(folder / "tied" / name for name in (*KINDS, "choice")),
        folder / "untied" / "lora",
    ]
    return {path: predict_rows(path.as_uri(), rows=ROWS) for path in paths}


def weight_cases(folder: Path) -> list[tuple[Path, torch.dtype]]:
    versions = (*versions_in(folder), folder / "experts" / "full")
    return [(version, dtype) for version in versions for dtype in DTYPES]


def weights_of(version: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the whole weights in the order of their names, which each rank must call."""
    named = load(version, dtype).lm.named_parameters(remove_duplicate=False)
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value.data
        for name, value in named
    }


def num_local(version: Path) -> int:
    """Return the number of values in this process."""
    weights = load(version, torch.float32).parameters()
    return sum(
        value.to_local().numel() if isinstance(value, DTensor) else value.numel()
        for value in weights
    )


def error_of(version: Path) -> str:
    try:
        load(version, torch.float32)
    except ModelError as error:
        return str(error)
    return ""


def test_ranks_give_the_answers_and_log_probabilities_of_one_process(folder: Path) -> None:
    alone = predictions_in(folder)
    assert len({table.outputs for table in alone.values()}) == len(alone)
    for divided in results_in(folder, "predictions"):
        for path, expected in alone.items():
            table = divided[path]
            assert table.outputs == expected.outputs, path
            np.testing.assert_allclose(table.confidences, expected.confidences, atol=TOLERANCE)
            for row in range(len(ROWS)):
                np.testing.assert_allclose(
                    table.logprobs_of(row), expected.logprobs_of(row), atol=TOLERANCE
                )


def test_parts_of_ranks_are_parts_of_the_weights_of_one_process(folder: Path) -> None:
    """Also if an adapter is merged, if weights are stored in another dtype, and if projections are
    one weight."""
    for divided in results_in(folder, "weights"):
        for case in weight_cases(folder):
            expected = weights_of(*case)
            assert divided[case].keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(divided[case][name], value), (case, name)


def test_each_rank_holds_about_half_of_a_model(folder: Path) -> None:
    for sizes in results_in(folder, "sizes"):
        for version, size in zip(versions_in(folder), sizes, strict=True):
            assert 0.5 < size / num_local(version) < 0.6


def test_a_model_that_cannot_be_divided_or_has_other_weights_is_refused(folder: Path) -> None:
    for heads, weights in results_in(folder, "errors"):
        assert "cannot divide this model among 2 GPUs" in heads
        assert "do not fit their base model" in weights


# The error of the rank that fails first is the one that a user sees.


def fail(*_: Any) -> NoReturn:
    raise ValueError("of the second rank")


def answer_before(base: Path) -> None:
    """Answer a prompt, and fail before the first forward pass, in which the other rank waits
    forever."""
    answer(base, "register_forward_pre_hook")


def answer_after(base: Path) -> None:
    """Answer a prompt, and fail after the first forward pass, which stops the other rank before its
    error is raised."""
    answer(base, "register_forward_hook")


def answer(base: Path, register: str) -> None:
    lm = load_pretrained_chat(base).lm
    if current_group().rank == 1:
        getattr(lm, register)(fail)
    try:
        answer_prompts(lm, [[3, 9]], max_new_tokens=2, end_id=1)
    finally:
        time.sleep(3 * current_group().rank)


def run_failing_rank(rank: int, folder: Path, function: Any) -> None:
    """Write the error of a rank, and end its process, as Ray does."""
    torch.set_num_threads(1)
    try:
        run_rank(function, Group(rank, 2), str(folder / "store"), ((folder / "base",), {}))
    except Exception as error:
        (folder / f"rank-{rank}").write_text(f"{type(error).__name__}: {error}")
    os._exit(0)  # its other threads can wait forever


@pytest.mark.parametrize("function", [answer_before, answer_after])
def test_only_the_rank_that_fails_first_raises_its_error(tmp_path: Path, function: Any) -> None:
    save(tmp_path / "base")
    spawn(run_failing_rank, (tmp_path, function), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = ((tmp_path / f"rank-{rank}").read_text() for rank in (0, 1))
    assert second == "RuntimeError: the model did not answer prompt 0: of the second rank"
    assert first.startswith("OtherRankFailed: another rank failed")

"""Two ranks over gloo that hold a model together give the answers and log-probabilities of one
process."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from transformers import LlamaForCausalLM

from cluster.ranks.process_group import Group, current_group, join_group, on_first_rank
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.formats.response_format import ChoiceFormat
from tailorbird.evaluation.baselines.chat import ChatBaselines, fit_prompt_baselines
from tailorbird.evaluation.gates.cost import MIN_ROUNDS, MeasuredCosts
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.inference.serving_cost import _on_device, measure_serving
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.errors import ModelError
from tailorbird.models.generation import answer_prompts
from tailorbird.models.loading import load_chat
from tailorbird.models.lora import add_adapter
from tailorbird.registry.versions import Prompting, write_config
from tests import build
from tests.build import version_config
from tests.small_chat import WORDS, language_model, model_of, save

pytestmark = pytest.mark.long

# of log-probabilities in fp32: the ranks add up parts of sums, in another order than one process
TOLERANCE = 1e-5
KINDS, DTYPES = ("zero_shot", "lora", "full"), (torch.float32, torch.bfloat16)
QUESTIONS = ("abc", "what is a dog", "x", "zzzz zzzz zzzz", "one two three four five six")
ROWS = build.rows(QUESTIONS, tuple(text[::-1] for text in QUESTIONS), chat=True)
PROMPTING = Prompting(system="s", max_new_tokens=12)
FORMAT = ChoiceFormat(type="choice", choice=("abba", "no"))


def write_versions(folder: Path, *, tied: bool) -> None:
    """Write a base model, and versions with its own weights, an adapter, other weights, and a
    format of answers."""
    torch.manual_seed(0)
    config = language_model().config
    config.tie_word_embeddings, config.initializer_range = tied, 0.2
    save(folder / "base", LlamaForCausalLM(config))
    for name in (*KINDS, "choice"):
        (folder / name).mkdir()
        kind: Any = name if name in KINDS else "zero_shot"
        prompting = (
            PROMPTING if name in KINDS else PROMPTING.model_copy(update={"response_format": FORMAT})
        )
        version = version_config(
            kind=kind, base_model=(folder / "base").as_uri(), prompting=prompting
        )
        write_config(folder / name, version)
    lm: Any = LlamaForCausalLM.from_pretrained(folder / "base")
    with torch.no_grad():
        weights = {
            name: value + 0.05 * torch.randn_like(value) for name, value in lm.named_parameters()
        }
        save_file(weights, folder / "full" / "model.safetensors")
        adapted: Any = add_adapter(lm, r=4, alpha=16, dropout=0.0)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder / "lora" / "adapter")


def write_full(folder: Path, lm: Any) -> None:
    """Write a base model and the weights of a version with other ones."""
    save(folder / "base", lm)
    (folder / "full").mkdir()
    weights = {
        name: value.detach() + 0.05 * torch.randn_like(value)
        for name, value in lm.named_parameters()
    }
    save_file(weights, folder / "full" / "model.safetensors")


def versions_in(folder: Path, *names: str) -> list[Path]:
    """Return the folders of versions with these names, of one base model or of all in `folder`."""
    bases = [folder] if (folder / "base").is_dir() else [folder / "tied", folder / "untied"]
    return [base / name for base in bases for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write versions of models with and without tied embeddings, and the results of two ranks for
    them."""
    folder = tmp_path_factory.mktemp("ranks")
    for base in ("tied", "untied"):
        write_versions(folder / base, tied=base == "tied")
    write_full(folder / "experts", model_of("mixtral", num_local_experts=4))
    one_head, other = language_model().config, folder / "other"
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
            "baselines": baselines_in(folder),
            "weights": {key: weights_of(*key) for key in weight_cases(folder)},
            "sizes": [num_local(version) for version in versions_in(folder, *KINDS)],
            "devices": devices_in_a_turn(folder / "tied" / "lora"),
            "costs": costs_in(folder),
            "errors": [
                error_of(folder / "one-head" / "zero_shot"),
                error_of(folder / "other" / "full"),
            ],
            "first": on_first_rank(called),
        }
        (folder / f"rank-{rank}").write_bytes(pickle.dumps(results))


def called() -> int:
    """Return the rank that calls this function."""
    return current_group().rank


def results_in(folder: Path, name: str) -> list[Any]:
    """Return a result of each rank."""
    return [pickle.loads((folder / f"rank-{rank}").read_bytes())[name] for rank in (0, 1)]


def load(version: Path, dtype: torch.dtype) -> Any:
    kind: Any = version.name
    return load_chat(version, base=version.parent / "base", kind=kind, dtype=dtype)


def predictions_in(folder: Path) -> dict[Path, Predictions]:
    paths = [
        *versions_in(folder / "tied", *KINDS, "choice"),
        *versions_in(folder / "untied", "lora"),
    ]
    return {path: predict_rows(path.as_uri(), rows=ROWS) for path in paths}


def baselines_in(folder: Path) -> ChatBaselines:
    config = EvaluationConfig(metric="token_f1", prompt_shots=1, prompt_draws=2)
    base = (folder / "untied" / "base").as_uri()
    validation = ROWS.take(range(2))
    return fit_prompt_baselines(
        base, train=ROWS, validation=validation, prompting=PROMPTING, config=config, seed=0
    )


def weight_cases(folder: Path) -> list[tuple[Path, torch.dtype]]:
    versions = (*versions_in(folder, *KINDS), folder / "experts" / "full")
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


def devices_in_a_turn(version: Path) -> set[str]:
    """Return the devices of the weights while the model has a further turn, on a device that keeps
    no values."""
    model, devices = load(version, torch.float32), set()
    answer_prompts(model.lm, [[3, 9]], max_new_tokens=2, end_id=1)
    copies_back = pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor")
    with copies_back, _on_device((model,), device="meta"):
        devices |= {weight.device.type for weight in (*model.parameters(), *model.buffers())}
    return devices


def costs_in(folder: Path) -> MeasuredCosts:
    return measure_serving(
        {kind: (folder / "tied" / kind).as_uri() for kind in KINDS[:2]}, rows=ROWS.take([0])
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
            likelihoods = expected.measures["log_likelihood"]
            np.testing.assert_allclose(
                table.measures["log_likelihood"], likelihoods, atol=TOLERANCE
            )
            for row in range(len(ROWS)):
                np.testing.assert_allclose(
                    table.logprobs_of(row), expected.logprobs_of(row), atol=TOLERANCE
                )


def test_baselines_of_ranks_are_those_of_one_process(folder: Path) -> None:
    expected = baselines_in(folder)
    assert results_in(folder, "baselines") == [expected, expected]


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
        for version, size in zip(versions_in(folder, *KINDS), sizes, strict=True):
            assert 0.5 < size / num_local(version) < 0.6


def test_parts_are_on_the_device_only_while_their_model_is_measured(folder: Path) -> None:
    assert results_in(folder, "devices") == [{"meta"}, {"meta"}]


def test_ranks_measure_costs_together(folder: Path) -> None:
    for costs in results_in(folder, "costs"):
        assert {kind: len(usage.cpu_s) for kind, usage in costs.serving.items()} == dict.fromkeys(
            KINDS[:2], MIN_ROUNDS
        )


def test_a_model_that_cannot_be_divided_or_has_other_weights_is_refused(folder: Path) -> None:
    for heads, weights in results_in(folder, "errors"):
        assert "cannot divide this model among 2 GPUs" in heads
        assert "do not fit their base model" in weights


def test_only_the_first_rank_calls_a_function_for_all(folder: Path) -> None:
    assert results_in(folder, "first") == [0, 0]
    assert on_first_rank(called) == 0

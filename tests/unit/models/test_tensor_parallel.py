"""Which models can be divided among ranks; tests/unit/evaluation/inference/test_two_ranks.py
divides some."""

from pathlib import Path

import pytest

from tailorbird.config.serving import ServingConfig
from tailorbird.data.task_data import data_task
from tailorbird.models.tensor_parallel.plan import rank_divisor
from tailorbird.models.tensor_parallel.ranks import Ranks, comparison_ranks, plan_ranks
from tests.small_chat import model_of, save


@pytest.mark.parametrize(
    ("kind", "divisor"),
    [("llama", 2), ("qwen3", 2), ("gemma2", 2), ("olmo2", 1), ("phi3", 1), ("gpt2", 1)],
)
def test_the_number_of_ranks_must_divide_the_heads_of_a_plan_with_divided_keys(
    kind: str, divisor: int
) -> None:
    """The plans of OLMo 2 and Phi 3 gather keys; there is none for GPT-2."""
    assert rank_divisor(model_of(kind)) == divisor


def test_models_that_are_compared_use_as_many_ranks_as_gpus_or_one_if_a_model_cannot_be_divided() -> (
    None
):
    def ranks(gpus: float, *divisors: int) -> int:
        serving = ServingConfig(engine="vllm", gpus_per_replica=gpus)
        return plan_ranks(
            serving, {f"s3://m/{number}": divisor for number, divisor in enumerate(divisors)}
        ).number

    assert [ranks(gpus, 1) for gpus in (0, 0.5, 1)] == [1, 1, 1]
    assert [ranks(4, 4), ranks(4, 4, 8), ranks(4)] == [4, 4, 4]
    assert [ranks(4, 2), ranks(4, 4, 1), ranks(4, 1, 4)] == [1, 1, 1]


def test_base_models_are_read_only_if_replicas_have_several_gpus(tmp_path: Path) -> None:
    for kind in ("llama", "phi3"):
        save(tmp_path / kind, model_of(kind))

    def ranks(gpus: float, *kinds: str) -> Ranks:
        serving = ServingConfig(engine="vllm", gpus_per_replica=gpus)
        uris = ((tmp_path / kind).as_uri() for kind in kinds)
        return comparison_ranks(serving, task=data_task("chat"), base_models=uris)

    assert ranks(1, "missing") == Ranks(1)
    assert ranks(2, "llama") == Ranks(2)
    both = ranks(2, "llama", "phi3")
    assert both.number == 1
    assert (
        f"among 2 GPUs, because of its type or its heads ({(tmp_path / 'phi3').as_uri()})"
        in str(both.reason)
    )

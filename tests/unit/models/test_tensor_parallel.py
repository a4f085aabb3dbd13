"""Which models can be divided among ranks; tests/unit/evaluation/inference/test_two_ranks.py
divides some."""

import pytest

from tailorbird.config.serving import ServingConfig
from tailorbird.models.tensor_parallel.plan import rank_divisor
from tailorbird.models.tensor_parallel.ranks import plan_ranks
from tests.small_chat import model_of


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

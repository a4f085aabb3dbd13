"""Which models can be divided among ranks; tests/unit/evaluation/inference/test_two_ranks.py divides some."""

import pytest

from tailorbird.models.tensor_parallel.plan import division_fault, rank_divisor
from tests.small_chat import model_of


@pytest.mark.parametrize(
    ("kind", "divisor"), [("llama", 2), ("qwen3", 2), ("gemma2", 2), ("olmo2", 1), ("phi3", 1), ("gpt2", 1)]
)
def test_the_number_of_ranks_must_divide_the_heads_of_a_plan_with_divided_keys(kind: str, divisor: int) -> None:
    """The plans of OLMo 2 and Phi 3 gather keys; there is none for GPT-2."""
    assert rank_divisor(model_of(kind)) == divisor


def test_the_reason_why_a_model_cannot_be_divided_names_the_numbers_that_work() -> None:
    assert [division_fault(8, num_ranks=number) for number in (1, 2, 8)] == [None] * 3
    assert "only among a divisor of 8" in str(division_fault(8, num_ranks=3))
    assert "because of its type or its heads" in str(division_fault(1, num_ranks=2))

"""Sizes of forward passes."""

from serving.engines.passes import CPU, GPU, PassCosts, first_pass, pass_costs

COSTS = PassCosts(fixed=10, alone=100, share=40, tokenized_bytes=1 << 14)


def test_a_pass_contains_the_first_row_and_rows_of_similar_length() -> None:
    lengths = [5, 60, 6, 5, 58]
    assert sorted(first_pass(lengths, max_rows=8, costs=COSTS, max_tokens=1000)) == [0, 2, 3]
    assert sorted(first_pass(lengths[1:], max_rows=8, costs=COSTS, max_tokens=1000)) == [0, 3]


def test_a_pass_has_at_most_the_maximum_number_of_tokens_and_rows() -> None:
    rows = first_pass([10] * 20, max_rows=64, costs=COSTS, max_tokens=COSTS.share)
    assert 0 in rows
    assert len(rows) * 10 <= COSTS.share
    assert len(first_pass([1] * 20, max_rows=3, costs=COSTS, max_tokens=COSTS.alone)) <= 3


def test_a_row_larger_than_a_pass_is_a_pass_of_its_own() -> None:
    assert first_pass([500, 500, 5], max_rows=8, costs=COSTS, max_tokens=COSTS.share).tolist() == [
        0
    ]


def test_a_gpu_has_passes_of_its_own() -> None:
    assert (pass_costs("cpu"), pass_costs("cuda")) == (CPU, GPU)

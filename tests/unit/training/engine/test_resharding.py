"""The state that a rank reads from shards is exact, and every value of a new rank comes from its
place in the tensors of the previous ranks. `tests.unit.training.test_ranks` resumes several
ranks."""

from collections.abc import Callable, Iterator
from math import ceil, prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training.engine.reads import bytes_read
from tests.unit.training.small import config_of, exact, reports_of, small_runtime, trained
from tests.unit.training.test_chat_task import runtime_of
from training import checkpoint
from training.engine import resharding
from training.engine.deepspeed_private import destroy_engine, inner_optimizer, optimizer_tensors
from training.engine.partitions import Piece, copies, pieces_of_concatenation, pieces_of_parameters
from training.engine.resharding import NUM_THREADS
from training.loop import train
from training.reports import Progress

ALIGNED = {"zero_optimization": {"parameter_alignment": True}}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_state_that_is_read_from_shards_continues_the_training_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, method: str
) -> None:
    monkeypatch.setattr(resharding, "CHUNK", 2000)  # most tensors are read in several chunks
    runtime = small_runtime(dropout=0.0)
    fields: dict[str, Any] = {"zero_stage": stage, "method": method, "epochs": 2}
    fields |= {"lora_dropout": 0.0, "checkpoint_interval_s": 0}
    if stage in (0, 2):
        fields["parameter_dtype"] = "bf16"
    if stage == 2:
        fields["deepspeed"] = ALIGNED
    config = config_of(**fields)

    def save(reached: Progress, engine: Any) -> None:
        if (reached.epoch, reached.step) == (0, 2):
            checkpoint.save(engine, folder=tmp_path, progress=reached)

    uninterrupted = reports_of(runtime, on_save=save, **fields)[-1]
    engine, progress = checkpoint.resume(config, runtime, uri=tmp_path.as_uri())
    steps = [state["step"] for state in inner_optimizer(engine).state.values()]
    first = 1.0 if stage == 0 else 0.0  # DeepSpeed makes a step with bf16 at stage 0 at its start
    assert [float(step) for step in steps] == [first + 2.0] * len(steps)
    assert len({step.data_ptr() for step in steps}) == len(steps)
    assert engine.global_steps == 2
    report = train(engine, config, runtime=runtime, progress=progress)
    destroy_engine(engine)
    assert exact(report) == exact(uninterrupted)


def states(engine: Any) -> list[dict[str, torch.Tensor]]:
    with optimizer_tensors(engine) as tensors:
        return [{name: value.detach().clone() for name, value in flat.items()} for flat in tensors]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_values_that_are_read_together_are_equal_and_take_few_reads(
    tmp_path: Path, method: str, stage: int
) -> None:
    # The chat model has one weight for its embeddings and its output layer.
    runtime = small_runtime(dropout=0.0) if method == "lora" else runtime_of()
    with trained(runtime, zero_stage=stage, method=method, epochs=1) as (engine, config):
        checkpoint.save(engine, folder=tmp_path, progress=Progress())
        saved = states(engine)
    with bytes_read() as reads:
        engine, _ = checkpoint.resume(config, runtime, uri=tmp_path.as_uri())
    torch.testing.assert_close(states(engine), saved, rtol=0, atol=0)
    num_trained = sum(parameter.requires_grad for parameter in engine.module.parameters())
    destroy_engine(engine)
    assert NUM_THREADS >= len(reads) < 3 * num_trained


def test_torch_moves_steps_to_the_device_of_their_parameters() -> None:
    """Fused AdamW requires it. DeepSpeed loads the state with this method of torch; `meta` stands
    in for a GPU here."""
    parameter = torch.nn.Parameter(torch.empty(4, device="meta"))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    state = optimizer.state_dict() | {
        "state": {0: {"step": torch.zeros(()), "exp_avg": torch.zeros(4)}}
    }
    optimizer.load_state_dict(state)
    assert optimizer.state[parameter]["step"].device == torch.device("meta")


PADDING = -1
SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=2), min_size=1, max_size=5)
RANKS = st.integers(1, 7)
Layout = tuple[list[list[list[int]]], list[list[Piece]]]
"""The values of each flat tensor of each rank, and the pieces of each rank."""


def values_of(number: int, shape: list[int]) -> list[int]:
    """Return different values of each parameter."""
    return [1000 * number + value for value in range(prod(shape))]


def part(values: list[int], rank: int, *, length: int) -> list[int]:
    """Return the values of a rank, with padding up to `length`."""
    own = values[rank * length : (rank + 1) * length]
    return own + [PADDING] * (length - len(own))


def concatenated(shapes: list[list[int]], num_ranks: int) -> Layout:
    """Lay out two flat tensors as stages 1 and 2 do: concatenate the parameters, pad them, and
    split the result."""
    flats: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    lengths, paddings = [], []
    for numbers in halves(len(shapes)):
        paddings.append([number % 3 for number in numbers])
        values = []
        for number in numbers:
            values += values_of(number, shapes[number]) + [PADDING] * (number % 3)
        # Also with padding if the division is exact.
        lengths.append(ceil(len(values) / num_ranks) + 1)
        for rank, flat in enumerate(flats):
            flat.append(part(values, rank, length=lengths[-1]))
    tensors = named(shapes)
    return flats, pieces_of_concatenation(
        tensors, num_ranks=num_ranks, lengths=lengths, paddings=paddings
    )


def split(shapes: list[list[int]], num_ranks: int) -> Layout:
    """Lay out two flat tensors as stage 3 does: pad and split each parameter, and concatenate the
    parts of a rank."""
    flats: list[list[list[int]]] = [[[], []] for _ in range(num_ranks)]
    for half, numbers in enumerate(halves(len(shapes))):
        for number in numbers:
            values = values_of(number, shapes[number])
            for rank, flat in enumerate(flats):
                flat[half] += part(values, rank, length=ceil(len(values) / num_ranks))
    return flats, pieces_of_parameters(named(shapes), num_ranks=num_ranks)


def named(shapes: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{str(number): shapes[number] for number in numbers} for numbers in halves(len(shapes))]


def halves(number: int) -> Iterator[range]:
    yield range(number // 2)
    yield range(number // 2, number)


@pytest.mark.parametrize("layout", [concatenated, split])
@given(shapes=SHAPES, before=RANKS, after=RANKS)
def test_a_new_rank_copies_each_of_its_values_from_the_former_ranks(
    layout: Callable[[list[list[int]], int], Layout],
    shapes: list[list[int]],
    before: int,
    after: int,
) -> None:
    (previous, saved), (expected, pieces) = layout(shapes, before), layout(shapes, after)
    for rank in range(after):
        result = [[PADDING] * len(flat) for flat in expected[rank]]
        for copy in copies(pieces[rank], saved=saved):
            values = previous[copy.rank][copy.source][
                copy.source_start : copy.source_start + copy.length
            ]
            result[copy.target][copy.target_start : copy.target_start + copy.length] = values
        assert result == expected[rank]

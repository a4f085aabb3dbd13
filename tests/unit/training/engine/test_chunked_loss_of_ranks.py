"""The loss in chunks on two ranks over gloo with the configuration of GPUs."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from tailorbird.models.causal_lm import linear_cross_entropy
from tests.small_chat import WORDS
from tests.unit.training.ranks import on_ranks
from tests.unit.training.test_export_precision import MORE_STEPS, NUM_STEPS, Case, step, train
from training.engine.deepspeed_private import destroy_engine

pytestmark = pytest.mark.long

CASES = [
    (Case(stage, method, "wide", "bf16", parameters), autocast)
    for stage, method, parameters, autocast in (
        (3, "full", "fp32", False),
        (3, "lora", "fp32", False),
        (2, "full", "fp32", False),
        (3, "full", "fp32", True),
        (3, "lora", "fp32", True),
        (1, "full", "bf16", False),
    )
]


def losses(case: Case, *, autocast: bool, rows: int) -> tuple[list[float], int]:
    """Return the losses of this rank's last steps, and the number of losses that were computed in
    chunks of `rows`."""
    counted = mock.patch(
        "tailorbird.models.causal_lm.linear_cross_entropy", wraps=linear_cross_entropy
    )
    with mock.patch("tailorbird.models.shape.CHUNK_LOGITS", rows * len(WORDS)), counted as chunked:
        engine, config, runtime = train(case, autocast=autocast)
        values = [
            step(engine, config, runtime, number=number)
            for number in range(NUM_STEPS, NUM_STEPS + MORE_STEPS)
        ]
    destroy_engine(engine)
    return values, chunked.call_count


def write_losses(folder: Path) -> None:
    values = [
        [losses(case, autocast=autocast, rows=rows) for rows in (1000, 3)]
        for case, autocast in CASES
    ]
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chunks")
    on_ranks(2, write_losses, folder)
    return folder


@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[f"{case}_autocast-{autocast}" for case, autocast in CASES]
)
def test_losses_in_chunks_are_those_of_plain_losses(trained: Path, rank: int, number: int) -> None:
    (plain, without), (chunked, used) = json.loads((trained / f"{rank}.json").read_text())[number]
    case, autocast = CASES[number]
    assert (without, used) == (0, NUM_STEPS + MORE_STEPS)
    exact = not autocast and case.parameters == "fp32"
    assert chunked == pytest.approx(plain, rel=1e-5 if exact else 5e-3)
    assert plain[0] != plain[1]

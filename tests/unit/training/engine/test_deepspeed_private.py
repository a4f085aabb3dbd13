"""Contract with DeepSpeed: each private part that `training.engine.deepspeed_private` uses still
exists."""

from typing import Any

import deepspeed
import pytest
import torch

from tests.unit.training.small import config_of, small_runtime
from training.engine.deepspeed_engine import initialize_engine
from training.engine.deepspeed_private import (
    MOMENTS,
    PADDINGS,
    PARAMETER_ATTRIBUTES,
    SHM_OP,
    STEP,
    VERSION,
    WEIGHTS,
    destroy_engine,
    forward_dtype,
    init_distributed,
    optimizer_tensors,
    pieces_of_ranks,
)
from training.loop import build_engine, train


def missing(name: str) -> str:
    """Return the message for a missing part."""
    return (
        f"DeepSpeed {deepspeed.__version__} has no {name}; deepspeed_private.py was "
        f"written for {VERSION}"
    )


def test_the_creation_of_groups_is_found_on_the_backend() -> None:
    init_distributed(timeout_s=7200)
    backend = deepspeed.comm.comm.cdb
    assert hasattr(type(backend), "new_group"), missing("comm.comm.cdb.new_group")
    group = deepspeed.comm.new_group([0])
    assert group._get_backend(torch.device("cpu")).options._timeout.total_seconds() == 7200


def test_the_shared_memory_operator_can_be_disabled() -> None:
    assert SHM_OP in getattr(deepspeed.ops, "__compatible_ops__", {}), missing(
        f"ops.__compatible_ops__[{SHM_OP!r}]"
    )


GRADIENTS_IN_FP32 = {"data_types": {"grad_accum_dtype": "fp32"}}
"""Options with which DeepSpeed uses another optimizer for bf16 parameters at stage 1."""


@pytest.mark.parametrize(
    ("stage", "parameter_dtype", "options"),
    [
        (1, "bf16", GRADIENTS_IN_FP32),
        *((stage, dtype, {}) for stage in (0, 1, 2, 3) for dtype in ("fp32", "bf16")),
    ],
)
def test_a_new_optimizer_state_has_the_tensors_of_a_trained_one(
    stage: int, parameter_dtype: str, options: dict[str, Any]
) -> None:
    runtime = small_runtime(dropout=0.0)
    config = config_of(
        zero_stage=stage, epochs=1, parameter_dtype=parameter_dtype, deepspeed=options
    )
    engine = build_engine(config, runtime)
    with optimizer_tensors(engine, replace=True) as tensors:
        new = shapes_and_dtypes(tensors)
        pieces = pieces_of_ranks(engine, tensors)
    assert {STEP, WEIGHTS, *MOMENTS} == set(new[0]), missing("state of AdamW with these moments")
    train(engine, config, runtime=runtime)
    with optimizer_tensors(engine) as tensors:
        assert shapes_and_dtypes(tensors) == new
        assert pieces_of_ranks(engine, tensors) == pieces
    if stage in (1, 2):
        assert hasattr(engine.optimizer, PADDINGS) == (not options), missing(PADDINGS)
    destroy_engine(engine)


def shapes_and_dtypes(
    tensors: list[dict[str, torch.Tensor]],
) -> list[dict[str, tuple[torch.Size, torch.dtype]]]:
    return [{name: (value.shape, value.dtype) for name, value in flat.items()} for flat in tensors]


def test_destroy_removes_the_optimizer_and_the_attributes_of_parameters() -> None:
    engine = build_engine(config_of(zero_stage=3), small_runtime(dropout=0.0))
    parameters = list(engine.module.parameters())
    added = {name for parameter in parameters for name in vars(parameter)}
    assert any(name.startswith(PARAMETER_ATTRIBUTES) for name in added), missing(
        f"{PARAMETER_ATTRIBUTES} on parameters"
    )
    destroy_engine(engine)
    remaining = {
        name
        for parameter in parameters
        for name in vars(parameter)
        if name.startswith(PARAMETER_ATTRIBUTES)
    }
    assert not remaining
    assert "optimizer" not in vars(engine), missing("engine.optimizer")


def test_autocast_gathers_linear_layers_in_bf16_at_stage_3_only() -> None:
    for stage, gathered_in_bf16 in {1: False, 3: True}.items():
        runtime, config = small_runtime(dropout=0.0), config_of(zero_stage=stage, gpus_per_worker=1)
        engine = initialize_engine(runtime.build(config), config, num_steps=1, autocast=True)
        dtypes = {forward_dtype(parameter) for parameter in engine.module.parameters()}
        assert (torch.bfloat16 in dtypes) == gathered_in_bf16, missing("comm_dtype on parameters")
        destroy_engine(engine)

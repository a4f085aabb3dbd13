"""All uses of private or undocumented parts of DeepSpeed. Its test fails if another version moves
one of them.

DeepSpeed is imported in functions, because it takes seconds and the driver does not need it.
"""

import datetime
import functools
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from training.engine.partitions import (
    Piece,
    Shapes,
    pieces_of_concatenation,
    pieces_of_parameters,
)

VERSION = "0.19.8"  # DeepSpeed version for which this module was written
SHM_OP = "deepspeed_shm_comm"
ADAM_STATE = ("base_optimizer_state", "optimizer_state_dict")  # at stages 1 and 2, and at stage 3
FLAT_WEIGHTS = ("single_partition_of_fp32_groups", "fp32_flat_groups")  # at the same stages
WEIGHTS = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"
PADDINGS = "round_robin_bit16_padding"  # attribute of the optimizer at stages 1 and 2
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
PARAMETER_ATTRIBUTES = ("_hp", "_lp", "ds_", "_z")
"""Prefixes of the attributes that DeepSpeed adds to parameters."""


def init_distributed(*, timeout_s: float) -> None:
    """Connect DeepSpeed to torch's default process group, and give the groups that it creates this
    time-out.

    DeepSpeed creates a copy of the default group for the gradients, and further groups, all without
    a time-out. Torch's default would apply: with NCCL, training would fail if a rank waits for a
    file for more than 10 minutes.
    """
    import deepspeed

    if not torch.cuda.is_available():
        disable_shm_allreduce()
    deepspeed.init_distributed(dist_init_required=False)
    timeout = datetime.timedelta(seconds=timeout_s)
    deepspeed.comm.comm.cdb.new_group = functools.partial(
        torch.distributed.new_group, timeout=timeout
    )


def disable_shm_allreduce() -> None:
    """Prevent DeepSpeed from compiling its shared-memory all-reduce for CPUs, which training never
    calls."""
    import deepspeed

    deepspeed.ops.__compatible_ops__[SHM_OP] = False


def disable_gradient_allreduce(engine: Any) -> None:
    """Skip the gradient all-reduce of a single rank at stage 0, which only copies gradients to a
    buffer and back."""
    engine.enable_backward_allreduce = False


def parameter_partitioner(
    config: dict[str, Any], *, timeout_s: float
) -> Callable[[nn.Parameter], None]:
    """Return a function that partitions a parameter among the ranks, with the values of rank 0
    (ZeRO stage 3).

    It does what `deepspeed.zero.Init` does to the parameters of a module, but to one parameter at a
    time. An engine accepts a model with such parameters. `config` is DeepSpeed's configuration of
    the engine.
    """
    import deepspeed

    init_distributed(timeout_s=timeout_s)  # as `deepspeed.initialize` does
    # of an earlier training of this process
    group = deepspeed.utils.groups._get_zero_param_intra_parallel_group()
    init = deepspeed.zero.Init(
        module=nn.Module(), config_dict_or_path=config, zero_param_parallel_group=group
    )
    return lambda parameter: init._convert_to_zero_parameters([parameter])


def inner_optimizer(engine: Any) -> Any:
    """Return the torch optimizer of an engine, which ZeRO wraps at stages 1 to 3."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def full_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each whole parameter by name, also if stage 3 has partitioned it."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in module.named_parameters()
    }


def fp32_values(engine: Any, parameters: Iterable[nn.Parameter]) -> Iterator[torch.Tensor]:
    """Yield the exact fp32 value of each parameter, one at a time. Every rank must iterate over all
    of them.

    A parameter itself can be rounded: with bf16 parameters, and at stage 3 with autocast, where a
    forward pass gathers the weights of linear layers in bf16 and keeps some of them gathered.
    DeepSpeed's accessor reads the values that the optimizer updates, but it returns None for frozen
    parameters and at stage 0.
    """
    import deepspeed

    masters = {id(parameter): master for parameter, master in _stage_0_masters(engine)}
    for parameter in parameters:
        value = deepspeed.utils.safe_get_full_fp32_param(parameter)
        if value is not None:
            yield value.detach()
        else:
            with gathered(parameter):
                yield masters.get(id(parameter), parameter).detach().float()


def _stage_0_masters(engine: Any) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Return the bf16 parameters at stage 0 with their fp32 values; empty in other cases."""
    if not hasattr(engine.optimizer, "fp32_groups"):
        return []
    parameters = chain.from_iterable(engine.optimizer.fp16_groups)
    return list(zip(parameters, chain.from_iterable(engine.optimizer.fp32_groups), strict=True))


def gathered(parameter: nn.Parameter) -> Any:
    """Return a context manager in which a parameter has its full value. Every rank must enter
    it."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id"))


def forward_dtype(parameter: nn.Parameter) -> torch.dtype:
    """Return the dtype to which a parameter is rounded for a forward pass outside autocast.

    At stage 3 with autocast, it is the dtype in which DeepSpeed gathers the parameter.
    """
    dtype: torch.dtype = getattr(parameter, "comm_dtype", parameter.dtype)
    if hasattr(parameter, "ds_id"):
        return dtype
    return parameter.dtype


@contextmanager
def optimizer_tensors(
    engine: Any, *, replace: bool = False
) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Yield the weights, moments and step of each flat tensor of this rank.

    With `replace`, the engine is new, and continues with the values that the tensors have at the
    end of the block. Every rank must enter it.
    """
    stage = engine.zero_optimization_stage()
    if stage == 0:
        yield _whole_tensors(engine)
        for parameter, master in _stage_0_masters(engine):
            parameter.data.copy_(master)
        return
    optimizer = engine.optimizer
    if stage == 3:
        optimizer.checkpoint_event_prologue()  # partitions the parameters that it keeps gathered
    state: dict[str, Any] = optimizer.state_dict()
    if replace:
        # Weights are saved without padding at stages 1 and 2. At stage 3, torch's optimizer has
        # parameters only in a step.
        parameters = _optimized(engine) or _flat_weights(state)
        _adam_state(state)["state"] = dict(enumerate(map(_zero_state, parameters)))
    yield flat_tensors(state)
    if replace:
        rank = torch.distributed.get_rank()
        optimizer.load_state_dict({rank: state}, load_from_fp32_weights=True)
    if stage == 3:
        optimizer.checkpoint_event_epilogue()
    elif replace:
        optimizer.update_lp_params()


def _whole_tensors(engine: Any) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of each parameter at stage 0."""
    states = inner_optimizer(engine).state
    tensors = []
    for parameter in _optimized(engine):
        if not states[parameter]:
            states[parameter] = _zero_state(parameter)
        tensors.append({WEIGHTS: parameter, **states[parameter]})
    return tensors


def _zero_state(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the state of torch's AdamW for a parameter before the first step."""
    moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
    return {STEP: torch.zeros((), device=parameter.device), **moments}


def _optimized(engine: Any) -> list[nn.Parameter]:
    """Return the parameters of torch's optimizer."""
    groups = inner_optimizer(engine).param_groups
    return list(chain.from_iterable(group["params"] for group in groups))


def pieces_of_ranks(engine: Any, tensors: Sequence[dict[str, torch.Tensor]]) -> list[list[Piece]]:
    """Return the values that each rank has in `optimizer_tensors`; `tensors` are those of this
    rank."""
    num_ranks = torch.distributed.get_world_size()
    if engine.zero_optimization_stage() == 0:
        return [_whole_pieces(engine)] * num_ranks
    shapes: list[Shapes] = engine._get_zero_param_shapes()
    if engine.zero_optimization_stage() == 3:
        return pieces_of_parameters(shapes, num_ranks=num_ranks)
    lengths = [len(flat[MOMENTS[0]]) for flat in tensors]
    paddings = getattr(engine.optimizer, PADDINGS, None) or [[0] * len(names) for names in shapes]
    return pieces_of_concatenation(shapes, num_ranks=num_ranks, lengths=lengths, paddings=paddings)


def _whole_pieces(engine: Any) -> list[Piece]:
    """Return a piece for each tensor of `_whole_tensors`."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for parameter, master in _stage_0_masters(engine):
        names[id(master)] = names[id(parameter)]
    pieces = []
    for index, parameter in enumerate(_optimized(engine)):
        name = names[id(parameter)]
        pieces.append(Piece(name, offset=0, length=parameter.numel(), tensor=index, start=0))
    return pieces


def counters(engine: Any) -> dict[str, int]:
    """Return the counters that a resumed engine continues."""
    return {name: int(getattr(engine, name)) for name in COUNTERS}


def load_counters(engine: Any, values: dict[str, int], *, schedule: dict[str, Any]) -> None:
    """Continue from these counters and this state of the learning rate schedule."""
    for name in COUNTERS:
        setattr(engine, name, values[name])
    engine.lr_scheduler.load_state_dict(schedule)
    rates = engine.lr_scheduler.get_last_lr()
    for group, rate in zip(inner_optimizer(engine).param_groups, rates, strict=True):
        group["lr"] = rate


def flat_tensors(state: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Return the weights, moments and step of each flat tensor of a rank's optimizer state."""
    adam = _adam_state(state)["state"]
    return [{WEIGHTS: weights, **adam[index]} for index, weights in enumerate(_flat_weights(state))]


def _flat_weights(state: dict[str, Any]) -> list[torch.Tensor]:
    weights: list[torch.Tensor] = next(state[name] for name in FLAT_WEIGHTS if name in state)
    return weights


def _adam_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of torch's optimizer within the state of ZeRO's."""
    adam: dict[str, Any] = next(state[name] for name in ADAM_STATE if name in state)
    return adam


def destroy_engine(engine: Any) -> None:
    """Destroy an engine, and break the reference cycles between its optimizer, its hooks and the
    parameters.

    DeepSpeed's `destroy` leaves these cycles. They keep a copy of the weights (86 MiB for MiniLM)
    in memory until Python's next full garbage collection.
    """
    module: nn.Module = engine.module
    wrapper = engine.optimizer
    optimizers = [
        optimizer for optimizer in (inner_optimizer(engine), wrapper) if optimizer is not None
    ]
    engine.destroy()
    for parameter in module.parameters():
        for name in list(vars(parameter)):
            if name.startswith(PARAMETER_ATTRIBUTES):
                delattr(parameter, name)
        parameter.grad = None
    for optimizer in optimizers:
        getattr(optimizer, "state", {}).clear()
        getattr(optimizer, "param_groups", []).clear()
        vars(optimizer).clear()
    vars(engine).pop("optimizer", None)
    gc.collect()

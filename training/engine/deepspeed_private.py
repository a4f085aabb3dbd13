"""All uses of private or undocumented parts of DeepSpeed. Its test fails if another version moves
one of them."""

import datetime
import functools
import gc
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from training.engine.partitions import Shapes

VERSION = "0.19.8"  # DeepSpeed version for which this module was written
SHM_OP = "deepspeed_shm_comm"
OPTIMIZER = "optimizer_state_dict"  # in the file of a rank
ADAM_STATE = ("base_optimizer_state", "optimizer_state_dict")  # at stages 1 and 2, and at stage 3
FLAT_WEIGHTS = (
    "single_partition_of_fp32_groups",
    "fp32_flat_groups",
)  # at stages 1 and 2, and at stage 3
WEIGHTS = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"
SHARD = r".*zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt"
COMMON = r"(?:.*/)?(?:zero_pp_rank_0_)?mp_rank_00_model_states\.pt"
SCHEDULE = "lr_scheduler"
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
COMMON_STATE = (SCHEDULE, *COUNTERS)  # in the common file
LOSS_SCALE = ("loss_scaler", "dynamic_loss_scale", "overflow")
PADDINGS = "param_alignment_paddings"  # at stages 1 and 2
PARAMETER_SHAPES = "param_shapes"  # in the common file
RECORDS = (
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
"""Module and name of each class in the optimizer states of a checkpoint, at any ZeRO stage."""
PARAMETER_ATTRIBUTES = (
    "_hp",
    "_lp",
    "ds_",
    "_z",
)  # prefixes of the attributes that DeepSpeed adds to parameters


def import_deepspeed() -> Any:
    """Import DeepSpeed without mlflow.

    If mlflow is installed, DeepSpeed imports it for its autotuner, which is never used. This takes
    seconds per worker.
    """
    hide = "mlflow" not in sys.modules
    if hide:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # `import mlflow` raises, which DeepSpeed handles
    try:
        import deepspeed
    finally:
        if hide:
            del sys.modules["mlflow"]
    return deepspeed


def init_distributed(*, timeout_s: float) -> None:
    """Connect DeepSpeed to torch's default process group, and give the groups that it creates this
    time-out.

    DeepSpeed creates a copy of the default group for the gradients, and further groups, all without
    a time-out. Torch's default would apply: with NCCL, training would fail if a rank waits for a
    file for more than 10 minutes.
    """
    deepspeed = import_deepspeed()
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
    import_deepspeed().ops.__compatible_ops__[SHM_OP] = False


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
    deepspeed = import_deepspeed()
    init_distributed(timeout_s=timeout_s)  # as `deepspeed.initialize` does
    group = (
        deepspeed.utils.groups._get_zero_param_intra_parallel_group()
    )  # of an earlier training of this process
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
        name: tuple(getattr(own, "ds_shape", own.shape)) for name, own in module.named_parameters()
    }


def fp32_values(engine: Any, parameters: Iterable[nn.Parameter]) -> Iterator[torch.Tensor]:
    """Yield the exact fp32 value of each parameter, one at a time. Every rank must iterate over all
    of them.

    A parameter itself can be rounded: with bf16 parameters, and at stage 3 with autocast, where a
    forward pass gathers the weights of linear layers in bf16 and keeps some of them gathered.
    DeepSpeed's accessor reads the values that the optimizer updates, but it returns None for frozen
    parameters and at stage 0.
    """
    deepspeed = import_deepspeed()
    masters = _stage_0_masters(engine)
    for parameter in parameters:
        value = deepspeed.utils.safe_get_full_fp32_param(parameter)
        if value is not None:
            yield value.detach()
        else:
            with gathered(parameter):
                yield masters.get(id(parameter), parameter).detach().float()


def _stage_0_masters(engine: Any) -> dict[int, torch.Tensor]:
    """Return the fp32 values of bf16 parameters at stage 0, by the id of the parameter; empty in
    other cases."""
    if not hasattr(engine.optimizer, "fp32_groups"):
        return {}
    groups = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
    return {id(own): master for group in groups for own, master in zip(*group, strict=True)}


def gathered(parameter: nn.Parameter) -> Any:
    """Return a context manager in which a parameter has its full value. Every rank must enter
    it."""
    return import_deepspeed().zero.GatheredParameters(
        [parameter], enabled=hasattr(parameter, "ds_id")
    )


def forward_dtype(parameter: nn.Parameter) -> torch.dtype:
    """Return the dtype to which a parameter is rounded for a forward pass outside autocast.

    At stage 3 with autocast, it is the dtype in which DeepSpeed gathers the parameter.
    """
    dtype: torch.dtype = getattr(parameter, "comm_dtype", parameter.dtype)
    if hasattr(parameter, "ds_id"):
        return dtype
    return parameter.dtype


def checkpoint_records() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the classes that a checkpoint contains in addition to tensors and plain values."""
    import_deepspeed()
    return [getattr(importlib.import_module(module), name) for module, name in RECORDS]


def common_and_shards(names: Iterable[str]) -> tuple[str | None, list[str]]:
    """Return the file of a checkpoint with what all ranks share, and those with the optimizer state
    of each rank."""
    names = list(names)
    shards = {int(shard[1]): shard[0] for shard in map(re.compile(SHARD).fullmatch, names) if shard}
    return next(filter(re.compile(COMMON).fullmatch, names), None), [
        shards[rank] for rank in sorted(shards)
    ]


def new_optimizer_state(engine: Any) -> dict[str, Any]:
    """Return the optimizer state of this rank of a new engine, as it would save it, with moments
    and steps of zero.

    The weights are the engine's own tensors. `load_optimizer_state` must follow.
    """
    if engine.zero_optimization_stage() == 3:
        # partitions the parameters that it keeps gathered
        engine.optimizer.checkpoint_event_prologue()
    state: dict[str, Any] = engine.optimizer.state_dict()
    # Weights are saved without padding at stages 1 and 2. At stage 3, torch's optimizer has
    # parameters only in a step.
    parameters = [own for group in inner_optimizer(engine).param_groups for own in group["params"]]
    _adam_state(state)["state"] = {
        index: {STEP: torch.zeros(()), **{name: torch.zeros_like(own) for name in MOMENTS}}
        for index, own in enumerate(parameters or _flat_weights(state))
    }
    return state


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


def splits_parameters(state: dict[str, Any]) -> bool:
    """Return True at stage 3, where ranks split each parameter, and False if they split the
    concatenation of all."""
    return FLAT_WEIGHTS[1] in state


def paddings_of_parameters(state: dict[str, Any], shapes: Sequence[Shapes]) -> list[list[int]]:
    """Return the number of values after each parameter at stages 1 and 2, where alignment can be
    configured."""
    paddings: list[list[int]] = state.get(PADDINGS) or [[0] * len(tensor) for tensor in shapes]
    return paddings


def parameter_shapes(engine: Any) -> list[Shapes]:
    """Return the shapes of the parameters in each flat tensor, in their order, as the common file
    has them."""
    shapes: list[Shapes] = engine._get_zero_param_shapes()
    return shapes


def load_optimizer_state(engine: Any, state: dict[str, Any], *, common: dict[str, Any]) -> None:
    """Load the state that `new_optimizer_state` returned, and the counters and learning rates
    (COMMON_STATE).

    Every rank must call it.
    """
    optimizer = engine.optimizer
    optimizer.load_state_dict({torch.distributed.get_rank(): state}, load_from_fp32_weights=True)
    if engine.zero_optimization_stage() == 3:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    engine.lr_scheduler.load_state_dict(common[SCHEDULE])
    for group, rate in zip(
        inner_optimizer(engine).param_groups, engine.lr_scheduler.get_last_lr(), strict=True
    ):
        group["lr"] = rate
    for name in COUNTERS:
        setattr(engine, name, common[name])


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
        for name in [name for name in vars(parameter) if name.startswith(PARAMETER_ATTRIBUTES)]:
            delattr(parameter, name)
        parameter.grad = None
    for optimizer in optimizers:
        getattr(optimizer, "state", {}).clear()
        getattr(optimizer, "param_groups", []).clear()
        vars(optimizer).clear()
    vars(engine).pop("optimizer", None)
    gc.collect()
